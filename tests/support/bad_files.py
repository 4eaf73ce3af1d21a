"""Files that are no good videos, made from small good ones: the same bytes in every run.

``corpus()`` gives them by name. What a name says first is its family: ``cut`` (ends too early), ``flip`` and ``zero``
(bytes changed), ``type`` (something else under a video's name), ``list`` (playlists that name other files and hosts),
``size`` and ``count`` (headers that claim the absurd), ``index`` (a table that points anywhere), ``odd`` (the rest).
"""

import gzip
import io
import json
import random
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from PIL import Image

from clips.synthetic import Encoding, encode, numbered_frames

FRAMES, WIDTH, HEIGHT = 60, 96, 64
GIB = 1 << 30

_KINDS = {
    "mp4": Encoding(gop=10),
    "mkv": Encoding(gop=10, container="matroska"),
    "avi": Encoding(gop=10, codec="mpeg4", container="avi"),
    "ts": Encoding(gop=10, container="mpegts"),
    "webm": Encoding(gop=10, codec="libvpx-vp9", container="webm", options={"cpu-used": "8"}),
}


def corpus(secret: Path) -> dict[str, tuple[bytes, int]]:
    """Return (bytes, length) by name: a file is extended with nothing, sparsely, to its length.

    Args:
        secret: A good video that the playlists name.
    """
    frames = numbered_frames(FRAMES, width=WIDTH, height=HEIGHT)
    good = {kind: encode(frames, encoding) for kind, encoding in _KINDS.items()}
    good["first.mp4"] = _moov_first(good["mp4"])
    made: dict[str, bytes] = {"odd-empty.mp4": b""}
    for part in (_cut, _changed, _absurd, _odd):
        made |= part(good)
    made |= _other_types(frames) | _playlists(secret)
    files = {name: (data, len(data)) for name, data in made.items()}
    for kind in ("mp4", "mkv", "ts"):  # ends in the middle of its data, and goes on with holes
        half = good[kind][: len(good[kind]) // 2]
        files[f"odd-endless.{kind}"] = (half, 2 * GIB)
    return files


def write(corpus: dict[str, tuple[bytes, int]], folder: Path) -> None:
    """Write the files into a folder."""
    for name, (data, length) in corpus.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.truncate(length)


# --- damage ------------------------------------------------------------------------------------------


def _cut(good: dict[str, bytes]) -> dict[str, bytes]:
    """Files that end in their header, early, in the middle, late, and one byte too soon."""
    made: dict[str, bytes] = {}
    for kind, data in good.items():
        places = {
            "header": 40,
            "tenth": len(data) // 10,
            "half": len(data) // 2,
            "last": len(data) - 1,
        }
        for place, length in places.items():
            made[f"cut-{place}.{kind}"] = data[:length]
    moov = good["first.mp4"].index(b"moov")
    made["cut-moov.first.mp4"] = good["first.mp4"][: moov + 300]
    made["cut-moov.mp4"] = good["mp4"][: good["mp4"].index(b"moov") + 300]
    return made


def _changed(good: dict[str, bytes]) -> dict[str, bytes]:
    """Bytes flipped at places drawn by a seed, and ranges of zeros."""
    made: dict[str, bytes] = {}
    for kind, data in good.items():
        length = len(data)
        parts = {
            "head": (0, 200),
            "data": (length // 4, 3 * length // 4),
            "tail": (length - 1200, length),
        }
        for number, (part, (start, end)) in enumerate(parts.items()):
            draw = random.Random(number)
            flipped, zeroed = bytearray(data), bytearray(data)
            for _ in range(max(20, (end - start) // 50)):
                flipped[draw.randrange(max(start, 0), end)] ^= 1 << draw.randrange(8)
            zeroed[max(start, 0) : end] = bytes(end - max(start, 0))
            made |= {f"flip-{part}.{kind}": bytes(flipped), f"zero-{part}.{kind}": bytes(zeroed)}
    return made


def _absurd(good: dict[str, bytes]) -> dict[str, bytes]:
    """Headers that claim sizes, counts, places and lengths that cannot be."""
    mp4, avi, mkv = good["mp4"], good["avi"], good["mkv"]
    sizes = struct.pack(">HH", 65535, 65535)
    sample = mp4.index(b"avc1", mp4.index(b"stsd"))
    huge = encode(numbered_frames(2, width=WIDTH, height=HEIGHT), Encoding(bframes=0))
    made = {
        "size-stsd.mp4": _put(mp4, sample + 28, sizes),
        "size-tkhd.mp4": _put(mp4, mp4.index(b"tkhd") + 80, b"\x7f\xff\xff\xff" * 2),
        "size-sps.mp4": _sps(mp4, 0xFF),
        "size-sps-zero.mp4": _sps(mp4, 0x00),
        "size-header.avi": _put(avi, avi.index(b"avih") + 40, struct.pack("<II", 1 << 30, 1 << 30)),
        "size-stream.avi": _put(avi, avi.index(b"strf") + 12, struct.pack("<II", 1 << 30, 1 << 30)),
        "size-pixels.mkv": _put(mkv, mkv.index(b"\xb0\x81") + 2, b"\xff"),
        "size-box.mp4": _put(mp4, mp4.index(b"moov") - 4, b"\x7f\xff\xff\xff"),
        "size-box-wide.mp4": _put(
            mp4, mp4.index(b"moov") - 4, struct.pack(">I4sQ", 1, b"moov", 1 << 62)
        ),
        "count-duration.mp4": _put(mp4, mp4.index(b"mdhd") + 20, b"\xff\xff\xff\xfe"),
        "count-timescale.mp4": _put(mp4, mp4.index(b"mdhd") + 16, bytes(4)),
        "count-frames.avi": _put(avi, avi.index(b"avih") + 20, b"\xff\xff\xff\x7f"),
        "count-rate.avi": _put(avi, avi.index(b"strh") + 24, bytes(8)),
        "index-zeros.avi": _put(avi, avi.index(b"idx1") + 8, bytes(16 * FRAMES)),
        "index-noise.avi": _put(
            avi, avi.index(b"idx1") + 8, random.Random(1).randbytes(16 * FRAMES)
        ),
        "index-claim.avi": _put(avi, avi.index(b"idx1") + 4, b"\xff\xff\xff\x7f"),
        "index-outside.mp4": _put(mp4, mp4.index(b"stco") + 12, b"\xff\xff\xff\x00"),
        "index-header.mp4": _put(mp4, mp4.index(b"stco") + 12, bytes(4)),
        "odd-one-frame.mp4": encode(numbered_frames(1, width=WIDTH, height=HEIGHT)),
        "odd-no-first-key.mkv": _without_first_key(),
        "odd-samples-of-one-byte.mp4": _put(
            huge, huge.index(b"stsz") + 8, struct.pack(">II", 1, 2)
        ),
    }
    for box, value in (
        ("stsz", 12),
        ("stts", 8),
        ("ctts", 8),
        ("stsc", 8),
        ("stss", 8),
        ("stco", 8),
    ):
        for name, count in (("2e31", 0x7FFFFFFF), ("2e24", 1 << 24)):
            made[f"count-{box}-{name}.mp4"] = _put(
                mp4, mp4.index(box.encode()) + value, struct.pack(">I", count)
            )
    # Samples of one fixed size need no table: a header of a few bytes is a list of 2^31 of them.
    fixed = struct.pack(">II", 1000, 0x7FFFFFFF)
    made["count-fixed-samples.mp4"] = _put(mp4, mp4.index(b"stsz") + 8, fixed)
    repeated = _put(made["count-fixed-samples.mp4"], mp4.index(b"stts") + 12, b"\x7f\xff\xff\xff")
    made["count-fixed-repeated.mp4"] = _put(repeated, mp4.index(b"stsc") + 16, b"\x7f\xff\xff\xff")
    return made


def _put(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def _sps(mp4: bytes, fill: int) -> bytes:
    """Another sequence header: behind its profile and level only ones (numbers of one bit) or zeros."""
    place = mp4.index(b"avcC") + 4 + 8
    length = int.from_bytes(mp4[place - 2 : place], "big")
    return _put(mp4, place + 4, bytes([fill]) * (length - 4))


def _moov_first(mp4: bytes) -> bytes:
    """The index before the data, as for the web."""
    moov, mdat = mp4.index(b"moov") - 4, mp4.index(b"mdat") - 4
    index = bytearray(mp4[moov:])
    place = index.index(b"stco") + 8
    for entry in range(int.from_bytes(index[place : place + 4], "big")):
        at = place + 4 + 4 * entry
        index[at : at + 4] = struct.pack(
            ">I", int.from_bytes(index[at : at + 4], "big") + len(index)
        )
    return mp4[:mdat] + bytes(index) + mp4[mdat:moov]


def _without_first_key() -> bytes:
    """Matroska without its only keyframe: every picture needs what is not there."""
    encoded = encode(
        numbered_frames(FRAMES, width=WIDTH, height=HEIGHT), Encoding(gop=1000, bframes=0)
    )
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(encoded), "r") as source,
        av.open(file, "w", format="matroska") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and not packet.is_keyframe:
                packet.stream = stream
                target.mux(packet)
    return file.getvalue()


# --- something else ----------------------------------------------------------------------------------


def _other_types(frames: np.ndarray) -> dict[str, bytes]:
    picture, text = Image.fromarray(frames[0]), b"no video at all\n" * 400

    def drawn(form: str) -> bytes:
        file = io.BytesIO()
        picture.save(file, format=form)
        return file.getvalue()

    def packed(write: Callable[[io.BytesIO], None]) -> bytes:
        file = io.BytesIO()
        write(file)
        return file.getvalue()

    def zipped(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo("a.txt"), text)

    def tarred(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))

    def sounding(file: io.BytesIO) -> None:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(random.Random(2).randbytes(16000))

    made = {form: drawn(form) for form in ("jpeg", "png", "gif", "bmp", "webp", "tiff", "ico")} | {
        "text": text,
        "html": b"<!DOCTYPE html><html><body>" + text + b"</body></html>",
        "json": json.dumps([{"text": str(i)} for i in range(500)]).encode(),
        "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n",
        "zip": packed(zipped),
        "tar": packed(tarred),
        "gzip": gzip.compress(text, mtime=0),
        "wav": packed(sounding),
        "mp3": _sound("mp3", "mp3"),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(2000),
        "noise": random.Random(3).randbytes(50_000),
        "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\nhello\n\n" * 20,
        "zeros": bytes(100_000),
    }
    return {f"type-{name}.mp4": data for name, data in made.items()} | {
        "type-sound.mp4": _sound("aac", "mp4"),
        "type-sound.mkv": _sound("aac", "matroska"),
    }


def _sound(codec: str, container: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=16000, layout="mono", format="fltp")
        assert isinstance(stream, AudioStream)
        tone = (np.sin(np.arange(16000) / 8) * 0.5).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return file.getvalue()


def _playlists(secret: Path) -> dict[str, bytes]:
    """Files that only name others: on this machine, or on a host."""
    host = "http://127.0.0.1:9/secret.mp4"
    made: dict[str, bytes] = {}
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    for place, target in (("file", str(secret)), ("host", host)):
        made |= {
            f"list-hls-{place}.mp4": hls.format(target).encode(),
            f"list-concat-{place}.mp4": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
            f"list-dash-{place}.mp4": (
                '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
                f'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL>'
                "</Representation></AdaptationSet></Period></MPD>"
            ).encode(),
        }
    made["list-sdp.mp4"] = (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    made["list-reference.mov"] = _box(b"ftyp", b"qt  \0\0\0\0qt  ") + _box(
        b"moov",
        _box(
            b"rmra",
            _box(
                b"rmda",
                _box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(host)) + host.encode()),
            ),
        ),
    )
    return made


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def _odd(good: dict[str, bytes]) -> dict[str, bytes]:
    """The rest: what changes on the way, nests without end, or unpacks to more than there is memory."""
    nested = b""
    for _ in range(20_000):
        nested = _box(b"moov", nested)
    bomb = zlib.compress(bytes(64 << 20))
    packed = _box(b"cmvd", struct.pack(">I", 0xFFFFFFF0) + bomb)
    start = _box(b"ftyp", b"isom\0\0\0\0isom")
    larger = encode(numbered_frames(FRAMES, width=160, height=128), _KINDS["ts"])
    mkv = good["mkv"]
    cluster = mkv.index(b"\x1f\x43\xb6\x75")
    return {
        "odd-size-change.ts": good["ts"] + larger,
        "odd-nested.mp4": start + nested,
        "odd-packed-index.mp4": start
        + _box(b"moov", _box(b"cmov", _box(b"dcom", b"zlib") + packed)),
        "odd-unknown-size.mkv": mkv[: cluster + 4]
        + b"\x01"
        + b"\xff" * 7
        + random.Random(4).randbytes(300_000),
        "odd-twice.mp4": good["mp4"] + good["mp4"],
        "odd-headless.mp4": good["mp4"][good["mp4"].index(b"mdat") - 4 :][:3000],
    }
