"""What of the pure decode rate arrives at a training worker: the feed as runs have it, and an idle consumer.

    make bench-feed [UNITS=300]

Generated videos (340x256, H.264, 10 s, groups of 250) make units of 16 clips. First so many processes as the machine
has cores decode units and nothing else; then the feed's transport (in order, one consumer that drops what it gets)
delivers `units` after 20 of warm-up; then the processes once more. The ratio is the feed's rate to the mean of both.
Meanwhile the object store's use is sampled. Writes feed.json into build/bench.
"""

import json
import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from annotated_types import Ge

from clips import ClipConfig, DecodeConfig, Manifest, storage, write_manifest
from clips.synthetic import Encoding, MotionConfig, encode, motion_frames
from tubelet import cluster, config, terminal
from tubelet.items import DataPlan, decode_item
from tubelet.ledger import Ledger
from tubelet.timetable import Timetable

_SAMPLE_EVERY_S = 2.0  # each look costs all processes of Ray something
WIDTH, HEIGHT, SECONDS, FPS = 340, 256, 10, 30


@dataclass(frozen=True)
class Bench:
    """Arguments of the benchmark."""

    units: Annotated[int, Ge(1)] = 300
    """Delivered and timed."""
    warmup: Annotated[int, Ge(1)] = 20
    """Delivered before."""
    clips: Annotated[int, Ge(1)] = 16
    """Of a unit."""
    videos: Annotated[int, Ge(2)] = 24
    prefetch: Annotated[int, Ge(0)] = 2
    """As ``data.prefetch``."""
    folder: str = "build/bench"


def main(arguments: list[str]) -> int:
    """Measure, print the figures, write the report."""
    bench = config.from_command_line(Bench, arguments, needs_recipe=False)
    folder = Path(bench.folder).resolve()
    plan = _plan(bench, folder)
    cores = os.cpu_count() or 1
    least = max(2, bench.units // 4)
    before = _decode_rate(plan, cores, least)
    terminal.say(f"decoding alone    {before:6.1f} clips/s on {cores} cores")
    fed = _feed_rate(bench, plan, folder)
    terminal.say(f"through the feed  {fed['delivered_clips_s']:6.1f} clips/s")
    after = _decode_rate(plan, cores, least)
    terminal.say(f"decoding alone    {after:6.1f} clips/s")
    decode = (before + after) / 2
    report = {
        "decode_clips_s": decode,
        "decode_clips_s_before_and_after": [before, after],
        **fed,
        "ratio": fed["delivered_clips_s"] / decode,
        "units": bench.units,
        "clips_per_unit": bench.clips,
        "cores": cores,
    }
    (folder / "feed.json").write_text(json.dumps(report, indent=1) + "\n")
    peak, bound = (fed[f"store_{name}_bytes"] / 2**20 for name in ("peak", "bound"))
    terminal.say(
        f"ratio             {report['ratio']:6.3f}\n"
        f"object store      {peak:6.0f} MiB at most, bound {bound:.0f} MiB\n"
        f"report            {folder / 'feed.json'}"
    )
    return config.DONE


def _plan(bench: Bench, folder: Path) -> DataPlan:
    videos = folder / "feed"
    videos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(bench.videos):
        path = videos / f"{number:03d}.mp4"
        if not path.exists():
            storage.write_bytes(str(path), _video(number))
        rows.append({"video_id": path.name, "size": path.stat().st_size})
    manifest = write_manifest(Manifest.build(rows, root=str(videos)), str(folder / "feed.parquet"))
    units = bench.warmup + bench.units
    ledger = Ledger(
        rows=bench.videos,
        epochs=-(-units * bench.clips // bench.videos),
        batch=bench.clips,
        micro_batch=bench.clips,
        seed=0,
    )
    return DataPlan(
        ledger=ledger,
        timetable=Timetable(ledger.steps, 1),
        table=manifest.local_table(str(folder / "tables")),
        rows=(np.arange(bench.videos),),
        held_out_rows=np.arange(0),
        copies=1,
        clip=ClipConfig(stride=4),
        decode=DecodeConfig(),
        frames=16,
        size=224,
    )


def _video(number: int) -> bytes:
    """A moving pattern under sensor noise: as large and as dear as the real clips of Kinetics that were measured."""
    motion = MotionConfig(
        size=WIDTH, frames=SECONDS * FPS, fps=FPS, speed=(2.0, 6.0), wave=(6.0, 40.0)
    )
    frames_TYW = motion_frames(number, seed=0, config=motion)
    luma = frames_TYW[:, :HEIGHT].astype(np.int16)
    luma += np.random.default_rng(number).normal(0, 4, luma.shape).astype(np.int16)
    chroma = frames_TYW[:, WIDTH:].reshape(len(luma), 2, WIDTH // 2, WIDTH // 2)[
        :, :, : HEIGHT // 2
    ]
    planes = np.concatenate(
        [luma.clip(16, 235).astype(np.uint8), chroma.reshape(len(luma), HEIGHT // 2, WIDTH)], axis=1
    )
    return encode(planes, Encoding(fps=FPS, gop=250, options={"crf": "23", "preset": "medium"}))


# --- decoding alone ------------------------------------------------------------------------------------


def _decode_rate(plan: DataPlan, processes: int, units: int) -> float:
    """Clips a second of processes that decode units and drop them."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(_decode, [plan] * processes, [0] * processes))  # warm: imports, first files
        started = time.perf_counter()
        done = sum(pool.map(_decode, [plan] * units, range(units)))
        return done / (time.perf_counter() - started)


def _decode(plan: DataPlan, number: int) -> int:
    import torch

    torch.set_num_threads(1)
    item = decode_item(number, plan=plan, attempt=0, out={})
    return len(item["item"])


# --- through the feed ----------------------------------------------------------------------------------


def _feed_rate(bench: Bench, plan: DataPlan, folder: Path) -> dict[str, float]:
    """Clips a second that reach a consumer which does nothing with them, and the object store's use."""
    store = cluster.store_bytes(plan.unit_bytes, workers=1, prefetch=bench.prefetch)
    cluster.connect(trainer_cpus=0, store_bytes=store)
    import ray

    from tubelet import stream  # imports Ray, which `connect` prepares

    supply = stream.Supply(
        decode_cpus=1.0, prefetch=bench.prefetch, labelled=False, cpus_per_worker=0.0
    )
    consumer: Any = ray.remote(num_cpus=0)(Consumer)
    reading = consumer.remote(plan, supply).read.remote(bench.warmup + bench.units)
    done = threading.Event()
    peak: list[int] = [0]
    sampler = threading.Thread(target=_sample_store, args=(done, peak))
    sampler.start()
    try:
        times = ray.get(reading)
    finally:
        done.set()
        sampler.join()
    ray.shutdown()
    seconds = times[-1] - times[bench.warmup - 1]
    return {
        "delivered_clips_s": bench.units * bench.clips / seconds,
        "store_peak_bytes": peak[0],
        "store_bound_bytes": store // 2,
        "seconds": seconds,
    }


class Consumer:
    """Takes units and drops them, as a worker does once they are on its device."""

    def __init__(self, plan: DataPlan, supply: Any) -> None:
        from tubelet.stream import Stream

        self._stream = Stream(plan, supply, first_item=0, rank=0, world_size=1, attempt=1, out={})

    def read(self, units: int) -> list[float]:
        """When each unit arrived; they must be the first ones, in order."""
        times: list[float] = []
        for number, batch in zip(range(units), self._stream, strict=False):
            assert set(batch["item"].tolist()) == {number}
            times.append(time.perf_counter())
        return times


def _sample_store(done: threading.Event, peak: list[int]) -> None:
    """Keep the most that the object store held at once, looked at now and then."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    while not done.wait(_SAMPLE_EVERY_S):
        reply = get_memory_info_reply(state)
        peak[0] = max(peak[0], reply.store_stats.object_store_bytes_used)


if __name__ == "__main__":
    config.run_main(main)
