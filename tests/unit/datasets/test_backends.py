"""Every backend on every kind of video: exact, or refused for a reason that is named here."""

import builtins
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import DecodeConfig, DecodeError, open_video
from clips.augment.geometry import Box
from clips.synthetic import Encoding, encode, numbered_frames, read_number
from odd_videos import CASES, assert_exact, full_decode, numbers, turned, video

BACKENDS = ("pyav", "decord", "torchcodec")

GROUPS = "frames behind a keyframe refer to frames before it"
BEHIND = "frames shown before a keyframe are stored behind it"
CONTAINER = r"frames in this container \(.*\) cannot be found by their times"
COMMON = {
    "h264 open GOP": GROUPS,
    "h264 intra refresh": GROUPS,
    "h264 intra refresh without B-frames": GROUPS,
    "h264 in ts": CONTAINER,
    "h264 raw": CONTAINER,
    "mpeg4 in avi": CONTAINER,
    "mpeg4 in avi with B-frames": CONTAINER,
    "mpeg2 in ts": CONTAINER,
    "mjpeg in avi": CONTAINER,
    "size change": CONTAINER,
}
REFUSED = {
    "pyav": {"size change": "^size_change: frame 30 is 64x48, earlier ones are 96x64"},
    "decord": {
        **COMMON,
        "hevc": BEHIND,
        "hevc 10 bit": BEHIND,
        "mpeg4 in mp4 with B-frames": BEHIND,
        "av1": "it knows no AV1",
        "edit list": "it shows frames that the file's edit list hides",
        "small and turned": "it cannot turn pictures of this size",
    },
    "torchcodec": COMMON,
}
"""By backend and case: what the refusal says. Every other case is exact."""

REFUSED_FILES = {
    "pyav": {"nokey250.mkv": "missing_frames", "reschange.ts": "size_change"},
    "decord": {
        **dict.fromkeys(("opengop.mp4", "opengop_cut.mp4"), "unsupported"),
        **dict.fromkeys(("editlist.mp4", "editlist210.mp4"), "unsupported"),
        **dict.fromkeys(("av1.mp4", "tc_av1_video.mkv", "tc_h265_video.mp4"), "unsupported"),
        **dict.fromkeys(("mpeg2.ts", "reschange.ts", "raw.h264", "gif.gif"), "unsupported"),
        **dict.fromkeys(("mma2_test.avi", "nokey250.mkv"), "unsupported"),
    },
    "torchcodec": {
        **dict.fromkeys(("opengop.mp4", "opengop_cut.mp4", "nokey250.mkv"), "unsupported"),
        **dict.fromkeys(("mpeg2.ts", "reschange.ts", "raw.h264", "gif.gif"), "unsupported"),
        "mma2_test.avi": "unsupported",
    },
}
QUICK = (
    *("opengop.mp4", "editlist210.mp4", "vfr.mp4", "rot90.mp4", "decord_rot180.mov"),
    *("mma2_test.avi", "tc_h264_10bits.mp4", "tc_h265_video.mp4", "odd420.webm", "av1.mp4"),
    *("gif.gif", "raw.h264", "mpeg2.ts", "nokey250.mkv", "reschange.ts"),
)


@pytest.fixture(params=BACKENDS)
def config(request: pytest.FixtureRequest) -> DecodeConfig:
    """Each backend in turn, where it is installed."""
    backend = request.param
    config = DecodeConfig(backend=backend, seconds=120)
    if backend != "pyav":
        pytest.importorskip(backend, reason=f"{backend} is not installed")
    try:
        open_video(video("two frames"), config=config).close()
    except ValueError as error:
        if "ffmpeg" in os.environ.get("TUBELET_REQUIRE", "").split(","):
            raise
        pytest.skip(str(error))
    return config


def sequential(source: bytes | str, backend: str) -> list[np.ndarray]:
    """Every frame, from the first to the last, by the decoder itself."""
    if backend == "decord":
        import decord

        held = io.BytesIO(source) if isinstance(source, bytes) else source
        reader: Any = decord.VideoReader(held, ctx=decord.cpu(0), num_threads=1)
        return [reader.next().asnumpy() for _ in range(len(reader))]
    if backend == "torchcodec":
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(source, dimension_order="NHWC")
        return list(decoder.get_frames_in_range(0, len(decoder)).data.numpy())
    return full_decode(source)


@functools.cache
def shown(case: str) -> list[np.ndarray]:
    return full_decode(video(case))


@pytest.mark.parametrize("case", CASES)
def test_frames_are_exact_and_numbered_right_or_refused(config: DecodeConfig, case: str) -> None:
    data, reason = video(case), REFUSED[config.backend].get(case)
    if reason is not None:
        with pytest.raises(DecodeError) as caught, open_video(data, config=config) as reader:
            reader.read([np.arange(reader.frames)])
        assert caught.match(reason)
        if config.backend != "pyav":
            assert caught.match(
                f"^unsupported: {config.backend} is not exact here: .*; decode.backend=pyav is$"
            )
        return
    expected = sequential(data, config.backend)
    assert len(expected) == len(numbers(case))
    with open_video(data, config=config) as reader:
        assert reader.frames == len(expected)
        assert_exact(reader, expected, seeds=range(6))
        (clip,) = reader.read([np.arange(reader.frames)])
        assert np.all(np.diff(reader.times_s) > 0)
    assert [read_number(np.rot90(f, -turned(case))) for f in clip] == numbers(case)
    assert np.abs(clip.astype(int) - np.stack(shown(case))).mean((1, 2, 3)).max() <= 2


def check_file(path: Path, config: DecodeConfig, *, seeds: range) -> None:
    kind = REFUSED_FILES[config.backend].get(path.name)
    if kind is not None:
        with pytest.raises(DecodeError) as caught, open_video(str(path), config=config) as reader:
            reader.read([np.array([0, reader.frames // 2])])
        assert caught.value.kind == kind
        return
    expected = sequential(str(path), config.backend)
    with open_video(str(path), config=config) as reader:
        assert reader.frames == len(expected)
        assert_exact(reader, expected, seeds=seeds)
    if config.backend != "pyav":
        for ours, theirs in zip(full_decode(path), expected, strict=True):
            assert np.abs(ours.astype(int) - theirs).mean() <= 2


def files(videos: Path) -> list[Path]:
    return sorted([*(videos / "real").iterdir(), *(videos / "odd").iterdir()])


@pytest.mark.parametrize("name", QUICK)
def test_odd_files_equal_a_full_decode_or_are_refused(
    videos: Path, config: DecodeConfig, name: str
) -> None:
    (path,) = [p for p in files(videos) if p.name == name]
    check_file(path, config, seeds=range(3))


@pytest.mark.slow
def test_every_real_and_odd_file_equals_a_full_decode_or_is_refused(
    videos: Path, config: DecodeConfig
) -> None:
    for path in files(videos):
        check_file(path, config, seeds=range(16))


def test_crops_are_cut_from_the_frames_of_a_file(config: DecodeConfig, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(video("h264 with B-frames"))

    def corner(width: int, height: int) -> list[Box]:
        return [Box(width - 20, 7, 20, 31)]

    with open_video(str(path), config=config) as reader:
        (whole,) = reader.read([np.arange(5)])
        (part,) = reader.read([np.arange(5)], boxes=corner)
    np.testing.assert_array_equal(part, whole[:, 7:38, 76:96])


def test_times_are_those_of_a_variable_rate(config: DecodeConfig) -> None:
    with open_video(video("h264 variable rate"), config=config) as reader:
        expected = np.array([i * 40 + (i % 3) * 7 for i in range(reader.frames)]) / 1000
        np.testing.assert_allclose(reader.times_s, expected, atol=1e-6)


@pytest.mark.parametrize(("data", "kind"), [(b"", "empty"), (b"text" * 500, "corrupt")])
def test_bad_files_have_a_reason(config: DecodeConfig, data: bytes, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        open_video(data, config=config)
    assert caught.value.kind == kind


def test_damage_is_an_error(config: DecodeConfig) -> None:
    data = bytearray(
        encode(numbered_frames(90, width=160, height=120), Encoding(gop=30, bframes=0))
    )
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    with (
        open_video(bytes(data), config=config) as reader,
        pytest.raises(DecodeError) as caught,
    ):
        reader.read([np.arange(30, 60)])
    assert caught.value.kind in ("corrupt", "missing_frames")


def test_frames_over_the_limit_are_refused(config: DecodeConfig) -> None:
    small = DecodeConfig(backend=config.backend, max_pixels=100)
    with pytest.raises(DecodeError, match=r"too_large: frames of 96x64; decode.max_pixels is 100"):
        open_video(video("two frames"), config=small)


def without(monkeypatch: pytest.MonkeyPatch, package: str, error: Exception) -> None:
    original: Callable[..., Any] = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise error
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        (
            "decord",
            ModuleNotFoundError("No module"),
            "^decode.backend is decord, which is not installed .*use decode.backend=pyav$",
        ),
        (
            "torchcodec",
            ModuleNotFoundError("No module"),
            r"^decode.backend is torchcodec, which is not installed: pip install "
            r"'tubelet\[torchcodec\]', or use decode.backend=pyav$",
        ),
        (
            "torchcodec",
            RuntimeError("Could not load libtorchcodec. Likely causes: ..."),
            r"^decode.backend is torchcodec, which cannot be loaded \(Could not load libtorchcodec. Likely causes: "
            r"...\). It needs the shared libraries of FFmpeg 4 to 9 .*, and decode.memory_gb=8; or use "
            r"decode.backend=pyav$",
        ),
    ],
)
def test_where_a_backend_is_missing_its_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception, message: str
) -> None:
    without(monkeypatch, backend, error)
    with pytest.raises(ValueError, match=message):
        open_video(b"x", config=DecodeConfig(backend=backend))


def test_torchcodec_that_finds_no_ffmpeg_when_it_opens_a_file_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoders = pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not ...")

    monkeypatch.setattr(decoders, "VideoDecoder", broken)
    with pytest.raises(ValueError, match=r"cannot be loaded \(Could not load .*apt install ffmpeg"):
        open_video(video("two frames"), config=DecodeConfig(backend="torchcodec"))
