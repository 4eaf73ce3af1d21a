"""CPU time of a clip, side by side: our decoder, the authors' loader, each backend raw, and the limit in C.

    make bench-decode [VIDEOS=folder]        (default: generated videos)

Every way makes the same clips in turn, in an order that rotates, all in one process of one thread. What counts is CPU
time, page faults included, and pairs: a ratio is of two ways in the same round, and the median of the rounds stands for
a task, so that the ratios hold on a busy machine and no way is judged by its luckiest round. Writes decode.json and
decode.png into build/bench. A file that a way cannot read is listed under ``failed`` and counts for the other ways.
"""

import functools
import io
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import decode_ways as ways
from clips import DecodeError, Entry, Probe, Rejected, find_videos, probe
from clips.synthetic import Encoding, MotionConfig, encode, motion_frames
from clips.transcode import Encoder, copy_name, make_copy
from decode_ways import Task, Way
from tubelet import config, terminal

SHORT_SIDES = (200, 400)
LEAST_FRAMES = 64


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    videos: str | None = None
    """Folder with videos; null generates some."""
    tasks: int = 12
    """Clips (or sets of R clips) of each case."""
    rounds: int = 3
    folder: str = "build/bench"


@dataclass(frozen=True)
class Case:
    """Files that are measured together."""

    name: str
    files: tuple[str, ...]
    copies: int
    stride: int
    originals: tuple[str, ...] = ()
    """What the authors' loader reads instead of ``files``."""


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    videos = Path(bench.videos) if bench.videos else _generated(folder / "videos")
    failed: list[dict[str, str]] = []
    probes = _probed(str(videos), failed)
    cases = _cases(videos, probes, folder / "copies", failed)
    all_ways: dict[str, Way] = {
        "ours": ways.ours,
        "authors": ways.authors,
        "decord": ways.backend("decord"),
        "pyav": ways.backend("pyav"),
        "torchcodec": ways.backend("torchcodec"),
    }
    limit = ways.limit(folder)
    if limit is None:
        terminal.say("no C limit: it needs cc, pkg-config and the headers of libav")
    else:
        all_ways["c_limit"] = limit
    results: list[dict[str, Any]] = []
    with terminal.progress("bench-decode", bench.tasks * len(cases), unit="tasks") as bar:
        for number, case in enumerate(cases):
            measured: list[dict[str, list[float]]] = []
            for turn, pair in enumerate(_tasks(case, bench.tasks), start=1):
                measured.append(_measure(pair, all_ways, bench.rounds, failed, turn=turn))
                bar.update(number * bench.tasks + turn, case.name)
            results.append(_summary(case, measured))
    report = {"cases": results, "failed": _unique(failed)}
    (folder / "decode.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "decode.png").write_bytes(_picture(results))
    _tell(results, report["failed"])
    terminal.say(f"report     {folder / 'decode.json'}\npicture    {folder / 'decode.png'}")
    return config.DONE


# --- what is measured --------------------------------------------------------------------------------


def _generated(folder: Path) -> Path:
    """Videos of the two common kinds: long groups of H.264, and MPEG-4 in AVI."""
    kinds = {
        "mp4": Encoding(fps=30, gop=250, options={"crf": "23", "preset": "medium"}),
        "avi": Encoding(codec="mpeg4", container="avi", fps=25, gop=12, options={"q:v": "5"}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, encoding in kinds.items():
        for index in range(3):
            path = folder / f"{index}.{suffix}"
            if not path.exists():
                motion = MotionConfig(size=256, frames=300, speed=(1.0, 3.0), wave=(20.0, 120.0))
                path.write_bytes(encode(motion_frames(index, seed=0, config=motion), encoding))
    return folder


def _probed(videos: str, failed: list[dict[str, str]]) -> dict[str, Probe]:
    found = find_videos(videos)
    probes: dict[str, Probe] = {}
    for entry in found.entries:
        path = f"{found.root}/{entry.video_id}"
        try:
            probes[path] = _probe(path)
        except DecodeError as error:
            failed.append({"file": path, "way": "probe", "reason": str(error)})
    return probes


@functools.cache
def _probe(path: str) -> Probe:
    return probe(path)


def _cases(
    videos: Path, probes: Mapping[str, Probe], copies: Path, failed: list[dict[str, str]]
) -> list[Case]:
    """The cases that the files allow; makes the copies of the k400 files."""
    kinds: dict[str, list[str]] = {}
    for path, found in probes.items():
        short = min(found.width, found.height)
        if found.frames < LEAST_FRAMES or found.rotation:
            continue
        in_mp4 = any(name in found.container for name in ("mp4", "matroska"))
        if found.codec == "h264" and in_mp4 and SHORT_SIDES[0] <= short <= SHORT_SIDES[1]:
            kinds.setdefault("k400", []).append(path)
        elif found.codec == "mpeg4" and "avi" in found.container:
            kinds.setdefault("ucf", []).append(path)
        elif found.codec != "h264":
            kinds.setdefault(found.codec, []).append(path)
    cases: list[Case] = []
    if k400 := kinds.pop("k400", []):
        cases += [Case(f"k400_r{r}", tuple(k400), r, 4) for r in (1, 4)]
        pairs = [(path, _copied(path, videos, copies, failed)) for path in k400]
        kept = [(path, copy) for path, copy in pairs if copy is not None]
        originals, made = zip(*kept, strict=True)
        cases += [Case(f"copy_r{r}", made, r, 4, originals) for r in (1, 4)]
    if ucf := kinds.pop("ucf", []):
        cases.append(Case("ucf_r1", tuple(ucf), 1, 2))
    cases += [Case(f"{codec}_r1", tuple(files), 1, 4) for codec, files in sorted(kinds.items())]
    if not cases:
        raise config.UserError(
            f"videos={videos} holds none to measure: H.264 in MP4 or MKV with a short side of "
            f"{SHORT_SIDES[0]} to {SHORT_SIDES[1]}, MPEG-4 in AVI, or another codec, each of {LEAST_FRAMES} frames"
        )
    return cases


def _copied(path: str, videos: Path, copies: Path, failed: list[dict[str, str]]) -> str | None:
    root = str(videos.resolve())
    entry = Entry(str(Path(path).resolve().relative_to(root)), Path(path).stat().st_size)
    made = make_copy(
        entry, root=root, target=str(copies.resolve()), encoder=Encoder(), decode=ways.LIMITS
    )
    if isinstance(made, Rejected):
        failed.append({"file": path, "way": "copy", "reason": made.message})
        return None
    return str(copies.resolve() / copy_name(entry.video_id))


def _tasks(case: Case, count: int) -> list[tuple[Task, Task]]:
    """(task, the authors' task): the same clips, of the original where ``files`` are copies."""
    tasks: list[tuple[Task, Task]] = []
    for number in range(count):
        place = number % len(case.files)
        seeds = tuple(1000 * number + copy for copy in range(case.copies))
        both = [case.files[place], (case.originals or case.files)[place]]
        mine, theirs = (_task(path, case.stride, seeds) for path in both)
        tasks.append((mine, theirs))
    return tasks


def _task(path: str, stride: int, seeds: tuple[int, ...]) -> Task:
    found = _probe(path)
    return Task(path, stride, seeds, found.frames, found.width, found.height)


# --- measuring ---------------------------------------------------------------------------------------


def _measure(
    pair: tuple[Task, Task],
    all_ways: Mapping[str, Way],
    rounds: int,
    failed: list[dict[str, str]],
    *,
    turn: int,
) -> dict[str, list[float]]:
    """CPU milliseconds per clip by way, round by round; a way that fails has none."""
    task, authors_task = pair
    taken: dict[str, list[float]] = {}
    broken: set[str] = set()
    names = list(all_ways)
    for round_ in range(rounds):
        first = (round_ + turn) % len(names)
        for name in [*names[first:], *names[:first]]:
            if name in broken:
                continue
            mine = authors_task if name == "authors" else task
            started = time.process_time()
            try:
                all_ways[name](mine)
            except Exception as error:  # whatever a library raises: the file is listed
                broken.add(name)
                taken.pop(name, None)
                reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
                failed.append({"file": mine.path, "way": name, "reason": reason})
                continue
            spent = 1e3 * (time.process_time() - started) / len(mine.seeds)
            taken.setdefault(name, []).append(spent)
    return taken


def _summary(case: Case, measured: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        values = [statistics.median(m[name]) for m in measured if name in m]
        return round(statistics.fmean(values), 2) if values else None

    def ratios(above: str, below: str) -> list[float]:
        return [
            statistics.median(a / b for a, b in zip(m[above], m[below], strict=True))
            for m in measured
            if above in m and below in m
        ]

    gains, to_limit = ratios("authors", "ours"), ratios("ours", "c_limit")
    return {
        "case": case.name,
        "videos": len(case.files),
        "tasks": len(measured),
        "stride": case.stride,
        "ratio": round(statistics.median(gains), 2) if gains else None,
        "ratio_min": round(min(gains), 2) if gains else None,
        "ratio_max": round(max(gains), 2) if gains else None,
        "ms_ours": mean("ours"),
        "ms_authors": mean("authors"),
        "ms_c_limit": mean("c_limit"),
        "to_c_limit": round(statistics.median(to_limit), 3) if to_limit else None,
        "ms_raw": {name: mean(name) for name in ("pyav", "decord", "torchcodec")},
    }


def _unique(failed: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return list({(f["file"], f["way"]): f for f in failed}.values())


# --- showing -----------------------------------------------------------------------------------------


def _tell(results: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, str]]) -> None:
    def text(value: float | None, form: str = ".1f") -> str:
        return "-" if value is None else format(value, form)

    terminal.table(
        ("case", "videos", "ours ms", "authors ms", "ratio", "of", "limit ms", "ours/limit"),
        [
            (
                r["case"],
                str(r["videos"]),
                text(r["ms_ours"]),
                text(r["ms_authors"]),
                text(r["ratio"], ".2f"),
                f"{text(r['ratio_min'])} to {text(r['ratio_max'])}",
                text(r["ms_c_limit"]),
                text(r["to_c_limit"], ".2f"),
            )
            for r in results
        ],
    )
    for f in failed:
        terminal.say(f"failed: {f['way']} on {f['file']}: {f['reason']}")


def _picture(results: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: CPU time per clip of every way, case by case."""
    figure = Figure(figsize=(9, 0.9 + 0.75 * len(results)), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = {
        "ms_authors": ("authors' loader", "#6e7781"),
        "ms_ours": ("ours", "#0969da"),
        "ms_c_limit": ("limit (C)", "#1a7f37"),
    }
    for place, (key, (label, colour)) in enumerate(shown.items()):
        values = [r[key] or 0.0 for r in results]
        at = [row + 0.27 * (place - 1) for row in range(len(results))]
        bars = axes.barh(at, values, height=0.25, color=colour, label=label)
        axes.bar_label(
            bars, labels=[f"{v:.0f}" if v else "" for v in values], padding=3, fontsize=8
        )
    axes.set_yticks(range(len(results)), [r["case"] for r in results])
    axes.invert_yaxis()
    axes.set_xlabel("CPU time per clip of 16 frames at 224 x 224 (ms, less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


if __name__ == "__main__":
    config.run_main(main)
