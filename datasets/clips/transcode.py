"""A copy of a video that costs a third to decode: encoded once, read at every visit.

What makes a clip dear is the way to its first frame: with keyframes 250 apart, 182 frames are decoded for 16. The copy
has the short side of the model's crops, closed groups of 64 frames, and seven B-frames in a row that no other frame
refers to, so that the decoder skips those nobody asked for. It is MPEG-4 part 2, which takes 30 % less time to decode
than the cheapest H.264, and 22 % more bytes (`encoder.codec`). Measured (docs/benchmarks.md): a fifth to a quarter of
the time a clip on Kinetics-like files, 1.2 times the bytes of the source, 38 to 44 dB, 0.5 to 2 s of a core for 10 s.

Guarantees: as many frames as the source shows, each at its time and turned the same way; audio is left out. The copy
says in its comment what it was made of and how, so that a later run can tell it from a stale one, and what it lost.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from clips import storage
from clips.decode import DecodeConfig, DecodeError
from clips.decode.frames import CONTAINER, FramesReader
from clips.decode.pyav import PyavReader
from clips.ingest import Entry, Probe, Rejected, probe, probe_opened, write_records

_CLOCK = Fraction(1, 90_000)
"""Times of the copy: finer than any video's, and a multiple of the usual rates."""
_MUXER = {"movflags": "faststart", "video_track_timescale": str(_CLOCK.denominator)}
_COUNT = Fraction(1, 30)
"""The encoder's clock, which only counts frames."""
_UNREFERRED = 7
"""B-frames in a row: the frames between two that have to be decoded."""
_SAMPLED = 8
_UNSAID_COLOUR = (0, 2)
_USUAL_COLOUR = 6
"""FFmpeg's numbers for colours of which nothing is said, or that are red, green and blue; for standard television's."""
_BLANK = "  not-yet-known  "
"""In a copy's comment, where its PSNR will be."""
_VERSION = 3


@dataclass(frozen=True)
class Encoder:
    """How copies are encoded; the defaults are the cheapest to decode of those measured."""

    codec: Literal["mpeg4", "h264"] = "mpeg4"
    """MPEG-4 part 2 is the cheapest to decode; H.264 takes 1.4 times the time, a fifth less room, and more programs
    play it."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos keep their size."""
    gop: int = 64
    """Frames from one keyframe to the next."""
    quantiser: int = 4
    """MPEG-4's quality: lower is better and larger."""
    crf: int = 22
    """H.264's quality: lower is better and larger."""
    preset: str = "medium"
    """H.264's effort: `veryfast` takes half the time and a tenth more bytes."""

    def __post_init__(self) -> None:
        if self.codec not in _CODECS:
            raise ValueError(f"codec is {self.codec!r}; allowed: {', '.join(_CODECS)}")
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side is {self.short_side}; it must be even and at least 16")
        if self.gop < 1:
            raise ValueError(f"gop is {self.gop}; it must be at least 1")
        if not 1 <= self.quantiser <= 12:
            raise ValueError(f"quantiser is {self.quantiser}; it must be 1 to 12")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}; x264 takes 0 to 51")
        if self.preset not in _PRESETS:
            raise ValueError(f"preset is {self.preset!r}; allowed: {', '.join(_PRESETS)}")


_CODECS = {"mpeg4": "mpeg4", "h264": "libx264"}
"""FFmpeg's names of the encoders."""
_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast", "medium"),
    *("slow", "slower", "veryslow"),
)


@dataclass(frozen=True)
class Copy:
    """An encoded copy."""

    data: bytes
    frames: int
    psnr_db: float
    """Of the brightness of a sample of frames, against the scaled source; infinite when equal."""


@dataclass(frozen=True)
class Quality:
    """What became of one video."""

    video_id: str
    """Of the source."""
    source_size: int
    size: int
    psnr_db: float
    kept: bool = False
    """Whether the copy was there already."""


def write_quality(quality: Sequence[Quality], uri: str) -> None:
    """Write the list of copies as Parquet, a column for each field of `Quality`."""
    schema = pa.schema(
        [
            ("video_id", pa.string()),
            ("source_size", pa.int64()),
            ("size", pa.int64()),
            ("psnr_db", pa.float64()),
            ("kept", pa.bool_()),
        ]
    )
    write_records(quality, schema, uri)


Signature = dict[str, Any]
"""What a copy's comment says, as JSON: of which bytes it was made, and how; then what it lost (`psnr_db`)."""


def signature(source_size: int, source_etag: str | None, encoder: Encoder) -> Signature:
    """Return the signature of a copy of these bytes with these settings."""
    source = {"size": source_size, "etag": source_etag}
    # Begins with COPY_MARK of clips.decode.groups, by which a reader knows that groups are closed.
    return {"tubelet": _VERSION, "source": source, "encoder": asdict(encoder)}


def copy_name(video_id: str) -> str:
    """Return the video_id of a video's copy, which is an MP4 file of its own whatever the source was."""
    name = video_id.replace("://", "/").replace(".tar/", "/")
    return name if name.endswith(".mp4") else f"{name}.mp4"


def make_copy(
    entry: Entry, *, root: str, target: str, encoder: Encoder, decode: DecodeConfig
) -> dict[str, Any] | Rejected:
    """Write the copy of one video, unless it is there already; what a worker does.

    Returns:
        The probe columns of the copy with its video_id, size and etag, and what `Quality` wants: `source` (the source's
        video_id), `source_size`, `psnr_db`, `kept`; or why there is none.
    """
    uri = storage.join(target, copy_name(entry.video_id))
    made_of = signature(entry.size, entry.etag, encoder)
    try:
        found = _standing(uri, made_of, decode)
        kept = found is not None
        if found is None:
            copy = copy_of(entry, root=root, encoder=encoder, decode=decode)
            storage.write_bytes(uri, copy.data)  # whole or not at all
            found = probe(copy.data, decode=decode), copy.psnr_db
    except DecodeError as error:
        return Rejected(entry.video_id, error.kind, error.message)
    info = storage.stat(uri)
    return {
        **asdict(found[0]),
        "video_id": copy_name(entry.video_id),
        "size": info.size,
        "etag": info.etag,
        "source": entry.video_id,
        "source_size": entry.size,
        "psnr_db": found[1],
        "kept": kept,
    }


def _standing(uri: str, made_of: Signature, decode: DecodeConfig) -> tuple[Probe, float] | None:
    """What is in the copy at `uri`; None where there is none, or one of other bytes or settings."""
    try:
        with PyavReader(uri, config=decode) as reader:
            said = json.loads(reader.info.comment)
            psnr_db = said.pop("psnr_db")
            return (probe_opened(reader), float(psnr_db)) if said == made_of else None
    except (DecodeError, json.JSONDecodeError, AttributeError, KeyError):  # none of ours
        return None


def copy_of(entry: Entry, *, root: str, encoder: Encoder, decode: DecodeConfig) -> Copy:
    """Encode the copy of one video of a manifest; see `transcode`."""
    return transcode(
        storage.join(root, entry.video_id),
        encoder=encoder,
        made_of=signature(entry.size, entry.etag, encoder),
        decode=decode,
        size=entry.size,
        offset=entry.offset,
        container=entry.container,
    )


def transcode(
    source: str | bytes,
    *,
    encoder: Encoder,
    made_of: Signature | None = None,
    decode: DecodeConfig,
    size: int | None = None,
    offset: int | None = None,
    container: str | None = None,
) -> Copy:
    """Encode a copy of a video and compare a sample of its frames with the source's.

    Args:
        source: Path, URI, or the bytes themselves.
        encoder: How to encode.
        made_of: Written into the copy's header, with the PSNR.
        decode: Limits for reading the source; its `seconds` bound the whole work.
        size: Length of a remote object, where it is known.
        offset: Of a member of a tar shard: where its `size` bytes begin.
        container: `frames` for a folder of pictures.

    Raises:
        DecodeError: The source cannot be decoded to its end, or the copy is not what it should be.
    """
    reader: PyavReader | FramesReader
    if container == CONTAINER:
        reader = FramesReader(str(source), config=decode)
    else:
        reader = PyavReader(source, config=decode, size=size, offset=offset)
    comment = json.dumps({**(made_of or {}), "psnr_db": _BLANK})
    with reader:
        kept = {i: np.empty(0) for i in _spread(reader.frames)}
        data = _encode(reader, encoder, comment, kept)
        times_s, frames = reader.times_s, reader.frames
    with PyavReader(data, config=decode) as copy:
        copied_s = copy.times_s  # of its packets, one by one: only then are its frames counted
        if copy.frames != frames or np.abs(copied_s - times_s).max() > 1e-3:
            raise DecodeError(
                "corrupt", f"the copy has {copy.frames} frames of {frames}, or other times"
            )
        errors = [
            np.square(_brightness(frame).astype(np.float64) - kept[index]).mean()
            for index, frame in copy.wanted_frames(sorted(kept))
        ]
    mean_error = float(np.mean(errors))
    psnr_db = round(10 * math.log10(255**2 / mean_error), 2) if mean_error else math.inf
    assert data.count(_BLANK.encode()) == 1, "the header has one place for what is known only now"
    return Copy(
        data.replace(_BLANK.encode(), f"{psnr_db:>{len(_BLANK)}}".encode()), frames, psnr_db
    )


def _encode(
    reader: PyavReader | FramesReader, encoder: Encoder, comment: str, kept: dict[int, np.ndarray]
) -> bytes:
    """Encode all frames; fills `kept` with the brightness of the frames it names."""
    ticks = np.rint(reader.times_s / float(_CLOCK)).astype(np.int64).tolist()
    done = -1
    # A file on disk, because the muxer reads it again to move the index to the front.
    with (
        tempfile.NamedTemporaryFile(suffix=".mp4") as file,
        av.open(file.name, "w", options=_MUXER) as container,
    ):
        container.metadata["comment"] = comment
        stream: VideoStream | None = None
        for index, picture in _scaled(reader, encoder.short_side):
            if index != done + 1:
                break
            if stream is None:
                stream = _stream(container, picture, encoder, fps=reader.fps)
                if reader.rotation:
                    stream.set_display_rotation(reader.rotation)
            if index in kept:
                kept[index] = _brightness(picture).astype(np.float64)
            picture.pts, picture.time_base = index, _COUNT
            # Otherwise the encoder repeats the source's choice of B-frames.
            picture.pict_type = PictureType.NONE
            container.mux(_timed(stream.encode(picture), ticks))
            done = index
        if stream is None or done + 1 != reader.frames:
            raise DecodeError(
                "missing_frames", f"frame {done + 1} of {reader.frames} was not decoded"
            )
        container.mux(_timed(stream.encode(), ticks))
        container.close()
        return Path(file.name).read_bytes()


def _timed(packets: Sequence[Packet], ticks: Sequence[int]) -> list[Packet]:
    """Give packets that count frames the frames' times: MPEG-4's own clock is coarse, and bars long pauses."""
    step = max(1, round((ticks[-1] - ticks[0]) / max(1, len(ticks) - 1)))
    for packet in packets:
        assert packet.pts is not None, "the encoder numbers frames"
        assert packet.dts is not None, "the encoder numbers frames"
        early = min(0, packet.dts)  # the first are decoded before time begins
        packet.pts, packet.dts = ticks[packet.pts], ticks[packet.dts - early] + early * step
        packet.duration, packet.time_base = step, _CLOCK
    return list(packets)


def _stream(
    container: OutputContainer, picture: VideoFrame, encoder: Encoder, *, fps: float
) -> VideoStream:
    stream = container.add_stream(
        _CODECS[encoder.codec], rate=Fraction(fps).limit_denominator(1001)
    )
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    context = stream.codec_context
    context.time_base, context.thread_count = _COUNT, 1
    # Else the copy would be shown in other colours. MP4 keeps all or nothing; readers take the usual anyway.
    context.color_range = picture.color_range
    for name in ("colorspace", "color_primaries", "color_trc"):
        said = getattr(picture, name)
        setattr(context, name, _USUAL_COLOUR if said in _UNSAID_COLOUR else said)
    context.gop_size, context.max_b_frames = encoder.gop, _UNREFERRED
    context.options = _mpeg4(encoder) if encoder.codec == "mpeg4" else _h264(encoder)
    return stream


def _mpeg4(encoder: Encoder) -> dict[str, str]:
    return {
        # Bits without limit, so that every frame gets the least quantiser allowed to its kind.
        **{"b": "500000000", "bt": "500000000", "qmin": str(encoder.quantiser), "qmax": "31"},
        # Coarser where no other frame inherits the loss; 7 of 8 frames are such.
        **{"b_qfactor": "2.9", "b_qoffset": "0"},
        # Closed groups of one length, and always as many B-frames.
        **{"flags": "+cgop+mv4+aic", "sc_threshold": "1000000000", "b_strategy": "0"},
        # What each block costs and loses is tried out: a tenth fewer bytes at the same loss.
        **{"mbd": "rd", "trellis": "1", "mpv_flags": "+strict_gop+skip_rd+cbp_rd+mv0"},
        **dict.fromkeys(("cmp", "subcmp", "mbcmp"), "satd"),
    }


def _h264(encoder: Encoder) -> dict[str, str]:
    return {
        "crf": str(encoder.crf),
        "preset": encoder.preset,
        # Neither loop filter nor CABAC; no bits spent on looks.
        "tune": "psnr,fastdecode",
        "x264-params": f"b-adapt=0:b-pyramid=none:scenecut=0:open-gop=0:min-keyint={encoder.gop}",
    }


def _scaled(reader: PyavReader | FramesReader, short_side: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yield all frames in order, 8 bits, with even sides, scaled down to `short_side`."""
    reformatter, first = VideoReformatter(), None
    for index, frame in reader.wanted_frames(list(range(reader.frames))):
        shape = (frame.width, frame.height, frame.rotation)
        first = first or shape
        if shape != first:
            raise DecodeError("size_change", f"frame {index} is {shape}, the first was {first}")
        reader.rotation = frame.rotation
        scale = min(1.0, short_side / min(frame.width, frame.height))
        width, height = (
            max(2, round(side * scale / 2) * 2) for side in (frame.width, frame.height)
        )
        yield (
            index,
            reformatter.reformat(
                frame, width, height, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1
            ),
        )


def _brightness(frame: VideoFrame) -> np.ndarray:
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : plane.width].copy()


def _spread(frames: int) -> list[int]:
    return sorted(
        set(np.linspace(0, frames - 1, min(_SAMPLED, frames)).round().astype(int).tolist())
    )
