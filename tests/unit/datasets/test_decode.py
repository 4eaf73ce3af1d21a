"""How PyAV's reader works, and bad files; that it is exact is in test_backends.py."""

import io
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clips.decode import DecodeConfig, DecodeError, open_video
from clips.decode.pyav import PyavReader
from clips.synthetic import Encoding, encode, numbered_frames
from odd_videos import COUNT, GENERATED, assert_exact, full_decode, video


@settings(max_examples=40)
@given(
    frames=st.integers(1, 60),
    gop=st.integers(1, 40),
    bframes=st.integers(0, 8),
    options=st.fixed_dictionaries(
        {
            "b-pyramid": st.sampled_from(["none", "strict", "normal"]),
            "b-adapt": st.integers(0, 2),
            "open-gop": st.integers(0, 1),
            "ref": st.integers(1, 5),
            "scenecut": st.sampled_from([0, 40]),
            "weightp": st.integers(0, 2),
        }
    ),
    container=st.sampled_from(["mp4", "matroska", "mpegts", "avi"]),
    keep_bytes=st.sampled_from([0, 1 << 20]),
    seed=st.integers(0, 10**6),
)
def test_any_h264_stream_is_exact(
    frames: int,
    gop: int,
    bframes: int,
    options: dict[str, object],
    container: str,
    keep_bytes: int,
    seed: int,
) -> None:
    words = ":".join(f"{name}={value}" for name, value in options.items())
    encoding = Encoding(
        container=container, gop=gop, options={"x264-params": f"bframes={bframes}:{words}"}
    )
    data = encode(numbered_frames(frames, width=48, height=32), encoding)
    assume(
        container != "mpegts" or len(data) > 2500
    )  # FFmpeg does not recognise a transport stream of a few packets
    with PyavReader(data, config=DecodeConfig(), keep_bytes=keep_bytes) as reader:
        assert_exact(reader, full_decode(data), seeds=range(seed, seed + 3))


@pytest.mark.parametrize(
    "name",
    [n for n in GENERATED if n.startswith(("h264 ", "hevc", "vp9", "mpeg4"))],
)
def test_large_files_are_read_twice_and_stay_exact(name: str) -> None:
    data = video(name)
    with PyavReader(data, config=DecodeConfig(), keep_bytes=0) as reader:
        assert_exact(reader, full_decode(data), seeds=range(8))


@pytest.mark.parametrize(("width", "height"), [(17, 13), (35, 27), (66, 34), (18, 14)])
def test_odd_sizes_are_exact(width: int, height: int) -> None:
    data = encode(
        numbered_frames(COUNT, width=width, height=height), Encoding(pixel_format="yuv444p")
    )
    with PyavReader(data, config=DecodeConfig()) as reader:
        assert_exact(reader, full_decode(data), seeds=range(6))


def test_frames_nobody_depends_on_are_skipped_and_gaps_are_jumped() -> None:
    data = encode(
        numbered_frames(120, width=64, height=48),
        Encoding(gop=40, options={"x264-params": "bframes=3:b-adapt=0:b-pyramid=none:scenecut=0"}),
    )
    fed: list[tuple[int, str]] = []

    class Watched(PyavReader):
        def _packets_from(self, position: int) -> Iterator[Any]:
            for item in super()._packets_from(position):
                yield item  # the reader decides how to decode a packet once it has it
                fed.append((item[0], str(self._stream.codec_context.skip_frame)))

    with Watched(data, config=DecodeConfig()) as reader:
        reader.read([np.array([85, 89, 93])])
    assert min(position for position, _ in fed) == 80  # the keyframe; not 0, and not 40
    assert max(position for position, _ in fed) < 100
    skipping = [mode for _, mode in fed if mode.endswith("NONREF")]
    assert len(skipping) >= len(fed) - 3


def test_one_reader_serves_many_reads() -> None:
    data = video("h264 with B-frames")
    expected = full_decode(data)
    with PyavReader(data, config=DecodeConfig()) as reader:
        for index in (50, 3, 69, 0, 3):
            (clip,) = reader.read([np.array([index])])
            np.testing.assert_array_equal(clip[0], expected[index])


# --- bad input -----------------------------------------------------------------------------

MP4 = video("h264 with B-frames")
JPEG = encode(
    numbered_frames(1, width=64, height=48),
    Encoding(codec="mjpeg", container="image2pipe", pixel_format="yuvj420p"),
)


def audio_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16000
        container.mux(stream.encode(frame))  # pyright: ignore
        container.mux(stream.encode())  # pyright: ignore
    return file.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "empty"),
    "text": (lambda: b"this is not a video\n" * 200, "corrupt"),
    "random bytes": (lambda: random.Random(0).randbytes(50_000), "corrupt"),
    "cut before the index": (lambda: MP4[: len(MP4) // 2], "corrupt"),
    "a header only": (lambda: MP4[:60], "corrupt"),
    "a picture": (lambda: JPEG, "still_image"),
    "sound": (audio_only, "no_video"),
    "a playlist": (
        lambda: (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
        ),
        "corrupt",
    ),
    "a concat script": (lambda: b"ffconcat version 1.0\nfile /etc/hostname\n", "unsupported"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_video_says_why(name: str, tmp_path: Path) -> None:
    make, kind = BAD[name]
    data = make()
    (tmp_path / "clip.mp4").write_bytes(data)
    for source in (data, str(tmp_path / "clip.mp4")):
        with pytest.raises(DecodeError) as caught, open_video(source) as reader:
            reader.read([np.array([0])])
        assert caught.value.kind == kind, caught.value


def test_damage_shows_only_in_the_clips_it_touches() -> None:
    data = bytearray(
        encode(numbered_frames(90, width=160, height=120), Encoding(gop=30, bframes=0))
    )
    middle = len(data) // 2
    data[middle : middle + 1500] = random.Random(1).randbytes(1500)
    expected = full_decode(
        encode(numbered_frames(90, width=160, height=120), Encoding(gop=30, bframes=0))
    )
    with open_video(bytes(data)) as reader:
        (clip,) = reader.read([np.array([0, 5])])
        np.testing.assert_array_equal(clip[1], expected[5])
        with pytest.raises(DecodeError) as caught:
            reader.read([np.arange(30, 60)])
    assert caught.value.kind == "corrupt"


def test_a_frame_beyond_the_pixel_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(DecodeError, match=r"too_large: frames of 96x64; decode.max_pixels is 1000"):
        open_video(MP4, config=DecodeConfig(max_pixels=1000))


def test_a_time_limit_ends_reading_and_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match="timeout: over 1e-09 s while reading packet 0"):
        PyavReader(MP4, config=DecodeConfig(seconds=1e-9))
    with PyavReader(MP4, config=DecodeConfig(seconds=30)) as reader:
        now = time.thread_time()
        monkeypatch.setattr(time, "thread_time", lambda: now + 31)
        with pytest.raises(DecodeError, match="timeout: over 30 s while decoding packet"):
            reader.read([np.array([69])])


def test_a_missing_file_is_an_io_error() -> None:
    with pytest.raises(DecodeError) as caught:
        open_video("/no/such/file.mp4")
    assert str(caught.value) == "io: there is nothing at /no/such/file.mp4; check the spelling"


def test_a_name_with_a_protocol_in_it_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "concat:a|b.mp4"
    path.write_bytes(MP4)
    with open_video(str(path)) as reader:
        assert reader.frames == COUNT


def test_every_bad_file_is_usable_or_refused_with_a_reason(videos: Path) -> None:
    def outcome(path: Path) -> str:
        try:
            with open_video(str(path)) as reader:
                reader.read([np.array([0, reader.frames // 2])])
        except DecodeError as error:
            return error.kind
        return "usable"

    outcomes = {path.name: outcome(path) for path in (videos / "bad").iterdir()}
    assert outcomes == {
        "audio_only.mp4": "no_video",
        "corrupt_bytes.mp4": "corrupt",
        "corrupt_moov.mp4": "empty",
        "corrupt_zero30.mp4": "corrupt",
        "corrupt_zero95.mp4": "corrupt",
        "decord_corrupted.mp4": "usable",
        "jpg_as.mp4": "still_image",
        "random.mp4": "corrupt",
        "still.jpg": "still_image",
        "text.mp4": "corrupt",
        "trunc.webm": "usable",
        "trunc50.avi": "usable",
        "trunc50.mkv": "usable",
        "trunc50_faststart.mp4": "usable",
        "trunc50_moovend.mp4": "corrupt",
        "trunc_header.mp4": "corrupt",
        "zero.mp4": "empty",
    }


def test_settings_out_of_range_name_their_key() -> None:
    for wrong in ("gpu", "module:", ":Class"):
        with pytest.raises(
            ValueError,
            match=rf"^decode\.backend is '{wrong}'; allowed: auto, pyav, .*, or module:Class, a Reader",
        ):
            DecodeConfig(backend=wrong)
    with pytest.raises(ValueError, match=r"decode\.seconds is 0; it must be positive"):
        DecodeConfig(seconds=0)
    with pytest.raises(ValueError, match=r"decode\.max_pixels is 0"):
        DecodeConfig(max_pixels=0)


def test_a_reader_of_ones_own_is_named_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reader.py").write_text(
        "from clips.decode.pyav import PyavReader\n\n\nclass Reader(PyavReader):\n    own = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with open_video(MP4, config=DecodeConfig(backend="own_reader:Reader")) as reader:
        assert (reader.frames, getattr(reader, "own", False)) == (COUNT, True)
    with pytest.raises(
        ValueError,
        match=r"^decode.backend is 'own_reader:Raeder', but own_reader has no class Raeder$",
    ):
        open_video(MP4, config=DecodeConfig(backend="own_reader:Raeder"))
    with pytest.raises(
        ValueError,
        match=r"^decode.backend is 'no_such:Reader', but no_such cannot be imported \(No module",
    ):
        open_video(MP4, config=DecodeConfig(backend="no_such:Reader"))


def test_a_decode_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("corrupt", "bits are wrong")))
    assert (error.kind, str(error)) == ("corrupt", "corrupt: bits are wrong")
