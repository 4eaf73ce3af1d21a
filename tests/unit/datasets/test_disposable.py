"""Decoding beside the caller: the same clips, and whatever a file does costs its own clips only."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clips import ClipConfig, DecodeConfig, DecodeError, Video, load_clips, load_views
from clips.disposable import Decoder, take_clips
from clips.load import Take
from clips.synthetic import encode, numbered_frames
from hostile import BACKEND

QUICK = DecodeConfig(backend=BACKEND, seconds=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good video under the names of all evils, and a bad one."""
    folder = tmp_path_factory.mktemp("videos")
    data = encode(numbered_frames(20, width=64, height=48))
    for name in ("good", "segfault", "hang", "hungry", "unlucky"):
        (folder / f"{name}.mp4").write_bytes(data)
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def take_of(path: Path, decode: DecodeConfig = QUICK, **wanted: object) -> Take:
    video = Video(str(path), path.name, 0, 0, None, (), None, None, None, None, None, None, None)
    return Take(video, ClipConfig(stride=2, flip=True), 4, 32, decode, **wanted)  # pyright: ignore[reportArgumentType]


def clips_of(decoder: Decoder, take: Take) -> np.ndarray:
    return decoder.take(take, take.video.uri)


def pid_of(decoder: Decoder) -> int:
    assert decoder._pool is not None
    (pid,) = decoder._pool._pool_manager.worker_manager.workers
    return pid


def test_the_clips_are_those_that_this_process_would_read(folder: Path, decoder: Decoder) -> None:
    good = folder / "good.mp4"
    take = take_of(good, seeds=(3, 4, 5))
    options = {"frames": 4, "size": 32, "decode": QUICK}
    expected = load_clips(take.video, take.config, seeds=take.seeds, **options)
    assert np.array_equal(clips_of(decoder, take), expected)
    assert np.array_equal(decoder.take(take, good.read_bytes()), expected)
    views = load_views(take.video, take.config, views=2, crops=3, **options)
    assert np.array_equal(clips_of(decoder, take_of(good, views=2, crops=3)), views)


def test_clips_stay_what_they_are_when_the_next_video_is_read(
    folder: Path, decoder: Decoder
) -> None:
    good = folder / "good.mp4"
    unresized = Take(take_of(good).video, ClipConfig(stride=1), 2, 48, QUICK)
    first = clips_of(decoder, unresized)
    before = first.copy()
    clips_of(decoder, take_of(good, seeds=tuple(range(6))))  # needs more of the shared memory
    assert np.array_equal(first, before)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("segfault", "crashed", "its decoder was ended by SIGSEGV, 2 times"),
        ("hang", "timeout", "not decoded within 4 s, 2 times"),
        ("hungry", "memory", "opening: .*, 2 times"),
    ],
)
def test_a_file_that_ends_its_process_twice_is_bad_and_the_next_one_is_read(
    name: str, kind: str, text: str, folder: Path, decoder: Decoder
) -> None:
    with pytest.raises(DecodeError, match=f"^{kind}: {text}$") as caught:
        clips_of(decoder, take_of(folder / f"{name}.mp4"))
    assert caught.value.stage == ("opening" if name == "hungry" else "process")
    assert clips_of(decoder, take_of(folder / "good.mp4")).shape == (1, 4, 32, 32, 3)


def test_a_process_killed_from_outside_costs_nothing(folder: Path, decoder: Decoder) -> None:
    unlucky = clips_of(decoder, take_of(folder / "unlucky.mp4"))
    assert np.array_equal(unlucky, clips_of(decoder, take_of(folder / "good.mp4")))
    os.kill(pid_of(decoder), signal.SIGKILL)  # between two videos
    assert np.array_equal(unlucky, clips_of(decoder, take_of(folder / "good.mp4")))


def test_an_ordinary_bad_file_is_read_once_and_keeps_its_reason(
    folder: Path, decoder: Decoder
) -> None:
    clips_of(decoder, take_of(folder / "good.mp4"))
    before = pid_of(decoder)
    with pytest.raises(DecodeError) as caught:
        clips_of(decoder, take_of(folder / "cut.mp4"))
    assert (caught.value.kind, caught.value.stage) == ("corrupt", "opening")
    assert pid_of(decoder) == before


def test_the_decoding_process_imports_neither_torch_nor_ray_and_dies_with_its_parent(
    folder: Path, tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    script = tmp_path / "main.py"
    script.write_text(
        "import os, ray, sys, time\n"  # a main module that imports what the process must not
        "from clips import ClipConfig, Video\n"
        "from clips.disposable import _decoder, take_clips\n"
        "from clips.load import Take\n"
        "video = Video(sys.argv[1], 'v', 0, 0, None, (), *[None] * 7)\n"
        "take_clips(Take(video, ClipConfig(stride=1), 4, 32))\n"
        "pool = _decoder(os.getpid())._pool\n"
        "print(*pool._pool_manager.worker_manager.workers, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script), str(folder / "good.mp4")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "libavcodec" in mapped
        assert not [line for line in mapped.splitlines() if "libtorch" in line or "/ray/" in line]
        parent.kill()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} outlives its parent")


def _clips_in_a_child(path: str) -> tuple[int, ...]:
    return take_clips(take_of(Path(path))).shape


def test_a_child_of_multiprocessing_that_decodes_ends(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        shape = pool.submit(_clips_in_a_child, str(folder / "good.mp4")).result(timeout=60)
        (child,) = pool._processes.values()
    child.join(timeout=30)
    assert (shape, child.exitcode) == ((1, 4, 32, 32, 3), 0)
