"""Copies in tar shards, WebDataset's form: few large objects instead of a million small ones.

Which videos go into which shard is settled before any is encoded, by the order and the size of the
sources, so that an interrupted job finds the same shards again. A shard is written whole or not at all;
then a small file beside it (`00000.tar.json`) says what it was made of and what is in it. Where that
file fits, the shard is finished and is not opened again; else it is made anew, all of it. So every video
is in exactly one shard that the manifest names.

Each video is encoded in a disposable process: one that crashes it costs itself, not its shard. On disk
a worker needs room for one shard.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clips import disposable, shards, storage
from clips.decode import DecodeConfig, DecodeError
from clips.ingest import Entry, Probe, Rejected, probe
from clips.transcode import Copy, Encoder, copy_name, copy_of, signature
from clips.whole_files import whole_file


@dataclass(frozen=True)
class Shard:
    """Videos whose copies go into one shard."""

    video_id: str
    """Path of the shard below the target."""
    entries: tuple[Entry, ...]


def deal(entries: Sequence[Entry], *, megabytes: int) -> list[Shard]:
    """Deal videos to shards of `megabytes` MiB of sources each, one at least, in the order of their names."""
    groups: list[list[Entry]] = []
    filled = 0
    for entry in sorted(entries, key=lambda entry: entry.video_id):
        if not groups or filled + entry.size > megabytes << 20:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.size
    return [Shard(f"{number:05d}.tar", tuple(group)) for number, group in enumerate(groups)]


def make_shard(
    shard: Shard, *, root: str, target: str, encoder: Encoder, decode: DecodeConfig
) -> list[dict[str, Any] | Rejected]:
    """Write the copies of a shard's videos, unless it is there already; what a worker does.

    Returns:
        For each video what `clips.transcode.make_copy` returns, with the `offset` in the shard.
    """
    uri = storage.join(target, shard.video_id)
    made_of = _digest(shard, encoder)
    found = _finished(uri, made_of)
    if found is None:
        found = _made(shard, uri, root, encoder, decode)
        record = {"made_of": made_of, "size": storage.size(uri), **found}
        storage.write_bytes(f"{uri}.json", json.dumps(record, indent=1).encode())
        kept = False
    else:
        kept = True
    etag = storage.stat(uri).etag if found["copies"] else None
    return [
        *({**copy, "etag": etag, "kept": kept} for copy in found["copies"]),
        *(Rejected(**one) for one in found["rejected"]),
    ]


def _digest(shard: Shard, encoder: Encoder) -> str:
    made_of = [[e.video_id, signature(e.size, e.etag, encoder)] for e in shard.entries]
    return hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()


def _finished(uri: str, made_of: str) -> dict[str, Any] | None:
    """What is in the shard at `uri`; None where there is none, or one of other videos or settings."""
    try:
        record = json.loads(storage.read_bytes(f"{uri}.json"))
        if record["made_of"] == made_of and record["size"] == storage.size(uri):
            return record
    except storage.StorageError as error:
        if error.kind != "missing":
            raise
    except (json.JSONDecodeError, KeyError, TypeError):  # no record of ours
        pass
    return None


def _made(
    shard: Shard, uri: str, root: str, encoder: Encoder, decode: DecodeConfig
) -> dict[str, Any]:
    from webdataset.writer import TarWriter  # imports torch

    copies: dict[str, dict[str, Any]] = {}
    rejected: list[dict[str, Any]] = []
    with whole_file(uri) as path:
        with open(path, "wb") as file, TarWriter(file, user="", group="", mtime=0) as tar:
            for entry in shard.entries:
                try:
                    copy, found = disposable.call(
                        _copied, entry, root, encoder, decode, decode=decode
                    )
                except DecodeError as error:
                    reason = Rejected(entry.video_id, error.kind, error.message)
                    rejected.append({n: v for n, v in asdict(reason).items() if n != "etag"})
                    continue
                key = _key(entry.video_id)
                label = {"label": entry.label} if entry.label is not None else {}
                tar.write(
                    {"__key__": key, "mp4": copy.data, "json": {**label, "source": entry.video_id}}
                )
                copies[f"{key}.mp4"] = {
                    **asdict(found),
                    "source": entry.video_id,
                    "source_size": entry.size,
                    "psnr_db": copy.psnr_db,
                }
        members = shards.members(path, size=Path(path).stat().st_size, suffixes=(".mp4",))
    rows = [
        {
            **copies[member.name],
            "video_id": f"{shard.video_id}/{member.name}",
            "size": member.size,
            "offset": member.offset,
        }
        for member in members
    ]
    assert len(rows) == len(copies), "a copy is lost in its shard"
    return {"copies": rows, "rejected": rejected}


def _copied(entry: Entry, root: str, encoder: Encoder, decode: DecodeConfig) -> tuple[Copy, Probe]:
    copy = copy_of(entry, root=root, encoder=encoder, decode=decode)
    return copy, probe(copy.data, decode=decode)


def _key(video_id: str) -> str:
    """A sample's key: the copy's name, without the dots that would end it."""
    return copy_name(video_id).removesuffix(".mp4").replace("%", "%25").replace(".", "%2E")
