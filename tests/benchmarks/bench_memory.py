"""Resident memory over thousands of decodes: a decoder that keeps a little of each ends a long run.

    make bench-memory [DECODES=5000]

Each backend runs in a process of its own and reads a clip of a few small generated videos in turn: opened, eight
frames with a crop, closed. Its resident memory is noted 20 times on the way, of which the one after 250 decodes is
compared with the last. Writes memory.json and memory.png into build/bench. A file that a backend refuses, and a
backend that is not installed, are listed under ``failed``.
"""

import gc
import io
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clips import DecodeConfig, DecodeError, open_video, sampling
from clips.augment.geometry import Box
from clips.decode import reader_class
from clips.synthetic import Encoding, MotionConfig, encode, motion_frames
from tubelet import config, terminal

BACKENDS = ("pyav", "decord", "torchcodec")
WARM = 250
"""Decodes after which a process should have all it needs."""
FRAMES, STRIDE, MARKS = 8, 2, 20
LIMITS = DecodeConfig(seconds=60.0)


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    decodes: Annotated[int, Ge(WARM)] = 5000
    """Of each backend."""
    folder: str = "build/bench"


def main(arguments: list[str]) -> int:
    """Run the backends one after the other, print the table, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder)
    videos = _generated(folder / "memory")
    cases: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with terminal.progress("bench-memory", len(BACKENDS), unit="backends") as bar:
        for number, backend in enumerate(BACKENDS, start=1):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                case, refused = pool.apply(decode_often, (backend, videos, bench.decodes))
            cases += [case] if case else []
            failed += refused
            bar.update(number, backend)
    report = {"cases": cases, "failed": failed}
    (folder / "memory.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "memory.png").write_bytes(_picture(cases))
    _tell(report)
    terminal.say(f"report     {folder / 'memory.json'}\npicture    {folder / 'memory.png'}")
    return config.DONE


def decode_often(
    backend: str, videos: list[str], decodes: int
) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    """Decode in this process and note its memory; (None, why) for a backend that can do nothing."""
    failed: list[dict[str, str]] = []
    readable: list[str] = []
    for path in videos:
        try:
            reader_class(backend)
            _decode(backend, path, seed=0)
            readable.append(path)
        except (DecodeError, ValueError) as error:  # refused, or not installed
            failed.append({"file": path, "way": backend, "reason": str(error)})
    if not readable:
        return None, failed
    marks = sorted({WARM, *np.linspace(WARM, decodes, MARKS).astype(int).tolist()})
    resident: dict[int, int] = {}
    for done in range(1, decodes + 1):
        _decode(backend, readable[done % len(readable)], seed=done)
        if done in marks:
            gc.collect()
            resident[done] = _resident_bytes()
    case = {
        "backend": backend,
        "decodes": decodes,
        f"rss_after_{WARM}_bytes": resident[WARM],
        "rss_end_bytes": resident[decodes],
        "ratio": round(resident[decodes] / resident[WARM], 4),
        "rss_bytes": [[done, size] for done, size in resident.items()],
    }
    return case, failed


def _decode(backend: str, path: str, *, seed: int) -> None:
    with open_video(path, config=DecodeConfig(backend=backend, seconds=LIMITS.seconds)) as reader:
        wanted = sampling.dense_indices(reader.frames, frames=FRAMES, stride=STRIDE, seed=seed)
        reader.read([wanted], boxes=lambda width, height: [Box(8, 8, width // 2, height // 2)])


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _generated(folder: Path) -> list[str]:
    """Small videos of several codecs and sizes: a decoder that meets another one sets up anew."""
    kinds = {
        "small.mp4": (128, Encoding(gop=48)),
        "large.mp4": (256, Encoding(gop=12)),
        "vp9.webm": (
            128,
            Encoding(codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
        ),
        "mpeg4.mp4": (160, Encoding(codec="mpeg4", gop=12)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, (size, encoding)) in enumerate(kinds.items()):
        motion = MotionConfig(size=size, frames=48)
        (folder / name).write_bytes(encode(motion_frames(index, seed=0, config=motion), encoding))
    return [str(folder / name) for name in kinds]


def _tell(report: dict[str, Any]) -> None:
    terminal.table(
        ("backend", "decodes", f"MB after {WARM}", "MB at the end", "ratio"),
        [
            (
                case["backend"],
                f"{case['decodes']:,}",
                f"{case[f'rss_after_{WARM}_bytes'] / 1e6:.1f}",
                f"{case['rss_end_bytes'] / 1e6:.1f}",
                f"{case['ratio']:.4f}",
            )
            for case in report["cases"]
        ],
    )
    for f in report["failed"]:
        terminal.say(f"failed: {f['way']} on {f['file']}: {f['reason']}")


def _picture(cases: list[dict[str, Any]]) -> bytes:
    """A PNG: resident memory of each backend over its decodes."""
    figure = Figure(figsize=(7, 3.5), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for case in cases:
        done, size = zip(*case["rss_bytes"], strict=True)
        axes.plot(done, [s / 1e6 for s in size], label=case["backend"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("decodes")
    axes.set_ylabel("resident memory (MB)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


if __name__ == "__main__":
    config.run_main(main)
