import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import DecodeConfig, DecodeError, open_video
from clips.augment.geometry import Box
from clips.synthetic import Encoding, encode, numbered_frames, read_number

DECORD = DecodeConfig(backend="decord")
CASES = {
    "h264": Encoding(gop=30, bframes=3),
    "h264 in matroska": Encoding(container="matroska", bframes=2),
    "mpeg4 in avi": Encoding(codec="mpeg4", container="avi", gop=12),
    "vp9": Encoding(
        codec="libvpx-vp9", container="webm", options={"cpu-used": "8", "deadline": "realtime"}
    ),
}


@pytest.fixture
def decord() -> Any:
    return pytest.importorskip("decord", reason="decord has wheels for x86-64 Linux only")


@pytest.mark.parametrize("name", CASES)
def test_both_backends_agree_on_frame_numbers_and_nearly_on_pixels(decord: Any, name: str) -> None:
    data = encode(numbered_frames(60, width=96, height=64), CASES[name])
    wanted = [np.array([0, 7, 7, 59]), np.arange(3, 40, 4)]
    pixels: list[list[np.ndarray]] = []
    for config in (DecodeConfig(), DECORD):
        with open_video(data, config=config) as reader:
            assert reader.frames == 60
            assert abs(reader.fps - 24) < 0.01
            np.testing.assert_allclose(reader.times_s, np.arange(60) / 24, atol=2e-3)
            pixels.append(reader.read(wanted))
    for ours, theirs, indices in zip(*pixels, wanted, strict=True):
        assert [read_number(f) for f in theirs] == indices.tolist()
        assert [read_number(f) for f in ours] == indices.tolist()
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def test_crops_are_cut_from_the_frames(decord: Any, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(numbered_frames(20, width=96, height=64)))
    with open_video(str(path), config=DECORD) as reader:
        (whole,) = reader.read([np.arange(5)])
        (part,) = reader.read(
            [np.arange(5)], boxes=lambda width, height: [Box(width - 20, 7, 20, 31)]
        )
    np.testing.assert_array_equal(part, whole[:, 7:38, 76:96])


@pytest.mark.parametrize(("data", "kind"), [(b"", "empty"), (b"text" * 500, "corrupt")])
def test_bad_files_have_a_reason(decord: Any, data: bytes, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        open_video(data, config=DECORD)
    assert caught.value.kind == kind


def test_frames_over_the_limit_are_refused(decord: Any) -> None:
    data = encode(numbered_frames(5, width=96, height=64))
    config = DecodeConfig(backend="decord", max_pixels=100)
    with (
        open_video(data, config=config) as reader,
        pytest.raises(DecodeError, match="too_large: frames of 96x64"),
    ):
        reader.read([np.array([0])])


def test_where_decord_is_missing_the_key_to_change_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def without_decord(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "decord":
            raise ImportError("No module named 'decord'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_decord)
    with pytest.raises(
        ValueError,
        match=r"^decode.backend is decord, which is not installed .*use decode.backend=pyav$",
    ):
        open_video(b"x", config=DECORD)
