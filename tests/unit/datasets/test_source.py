import os
from pathlib import Path
from typing import Any

import pytest

from clips import storage
from clips.cache import Cache
from clips.decode import DecodeError
from clips.decode import source as sources
from clips.decode.source import is_evicted, local_copy, openable, with_local_copy


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), limit_bytes=100_000)


# --- without a cache -----------------------------------------------------------------------


def test_a_local_file_is_given_by_its_path(tmp_path: Path, cache: Cache) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"12345")
    assert local_copy(str(file), size=5) == str(file)
    assert local_copy(f"file://{file}", size=None, cache=cache) == str(file)
    assert not os.path.exists(cache.folder)


def test_a_small_object_is_fetched_with_one_request(s3: Any) -> None:
    s3.buckets["videos"]["a.mp4"] = b"12345"
    assert local_copy("s3://videos/a.mp4", size=5) == b"12345"
    assert s3.requests == ["GET /videos/a.mp4"]


def test_a_large_object_is_left_to_be_read_by_ranges(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 1000)
    s3.buckets["videos"]["long.mp4"] = bytes(range(250)) * 20
    uri = "s3://videos/long.mp4"
    assert local_copy(uri, size=5000) == uri
    opened = openable(uri, size=5000)
    assert not isinstance(opened, str)
    opened.seek(4990)
    assert opened.read(100) == bytes(range(240, 250))


def test_a_member_of_a_shard_is_read_alone(s3: Any, tmp_path: Path) -> None:
    s3.buckets["videos"]["a.tar"] = b"." * 512 + b"video" + b"." * 1000
    (tmp_path / "a.tar").write_bytes(s3.buckets["videos"]["a.tar"])
    for root in ("s3://videos", str(tmp_path)):
        uri = f"{root}/a.tar/x.mp4"
        assert local_copy(uri, size=5, offset=512) == b"video"
        opened = openable(uri, size=5, offset=512)
        assert not isinstance(opened, str)
        assert opened.read() == b"video"
    assert s3.requests == ["GET /videos/a.tar"] * 2


# --- files that are not those of the manifest ----------------------------------------------


@pytest.mark.parametrize(("found", "how"), [(4, "4, not"), (6, "more than"), (0, "0, not")])
def test_another_length_than_the_manifests_is_named(
    s3: Any, tmp_path: Path, cache: Cache, found: int, how: str
) -> None:
    s3.buckets["videos"]["a.mp4"] = b"x" * found
    (tmp_path / "a.mp4").write_bytes(b"x" * found)
    for uri, kept in (
        ("s3://videos/a.mp4", None),
        ("s3://videos/a.mp4", cache),
        (f"{tmp_path}/a.mp4", None),
    ):
        with pytest.raises(DecodeError) as caught:
            local_copy(uri, size=5, cache=kept)
        assert caught.value.kind == "changed"
        if uri.startswith("s3") or found < 5:
            assert caught.value.message == (
                f"{uri} has {how} the 5 bytes that the manifest was made of; run jobs/prepare.py again"
            )


def test_a_large_object_of_another_length_is_named(
    s3: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 1000)
    s3.buckets["videos"]["a.mp4"] = b"x" * 6000
    for kept in (None, cache):
        with pytest.raises(
            DecodeError, match=r"^changed: s3://videos/a.mp4 has more than the 5000"
        ):
            local_copy("s3://videos/a.mp4", size=5000, cache=kept)


def test_an_object_that_shrinks_while_it_is_read_is_named(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 1000)
    s3.buckets["videos"]["a.mp4"] = b"x" * 5000
    opened = openable("s3://videos/a.mp4", size=5000)
    s3.buckets["videos"]["a.mp4"] = b"x" * 3000
    assert not isinstance(opened, str)
    with pytest.raises(DecodeError, match=r"^changed: s3://videos/a.mp4 has 3000, not the 5000"):
        opened.read(10)


def test_a_shard_that_ends_too_early_is_named(s3: Any) -> None:
    s3.buckets["videos"]["a.tar"] = b"." * 514
    for offset in (512, 2048):
        with pytest.raises(DecodeError, match=r"^changed: s3://videos/a.tar has [02], not the 5"):
            local_copy("s3://videos/a.tar/x.mp4", size=5, offset=offset)


def test_nothing_there_and_nothing_in_it_differ(s3: Any, tmp_path: Path) -> None:
    s3.buckets["videos"]["empty.mp4"] = b""
    (tmp_path / "empty.mp4").write_bytes(b"")
    for root in ("s3://videos", str(tmp_path)):
        with pytest.raises(DecodeError) as caught:
            local_copy(f"{root}/none.mp4", size=5)
        assert caught.value.kind == "io"
        with pytest.raises(DecodeError) as caught:
            local_copy(f"{root}/empty.mp4", size=None)
        assert caught.value.kind == "empty"


# --- with a cache --------------------------------------------------------------------------


def test_the_second_time_costs_no_request(s3: Any, cache: Cache) -> None:
    s3.buckets["videos"].update({"a.mp4": b"12345", "a.tar": b".." + b"member"})
    before = storage.traffic()
    for _ in range(3):
        for uri, size, offset, content in (
            ("s3://videos/a.mp4", 5, None, b"12345"),
            ("s3://videos/a.tar/x.mp4", 6, 2, b"member"),
        ):
            found = local_copy(uri, size=size, offset=offset, etag="1", cache=cache)
            assert isinstance(found, str)
            assert Path(found).read_bytes() == content
    assert s3.requests == ["GET /videos/a.mp4", "GET /videos/a.tar"]
    cost = storage.traffic().since(before)
    assert cost == storage.Traffic(requests=2, bytes_read=11, cache_hits=4, cache_misses=2)


def test_a_new_version_is_fetched_anew(s3: Any, cache: Cache) -> None:
    for etag, content in (("1", b"old"), ("2", b"new")):
        s3.buckets["videos"]["a.mp4"] = content
        found = local_copy("s3://videos/a.mp4", size=3, etag=etag, cache=cache)
        assert Path(str(found)).read_bytes() == content


def test_a_large_object_is_cached_in_pieces_unless_it_would_fill_the_cache(
    s3: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 1000)
    s3.buckets["videos"] = {"long.mp4": os.urandom(4500), "film.mp4": bytes(26_000)}
    found = local_copy("s3://videos/long.mp4", size=4500, cache=cache)
    assert Path(str(found)).read_bytes() == s3.buckets["videos"]["long.mp4"]
    assert s3.requests == ["HEAD /videos/long.mp4"] + ["GET /videos/long.mp4"] * 5
    assert local_copy("s3://videos/film.mp4", size=26_000, cache=cache) == "s3://videos/film.mp4"


def test_an_evicted_copy_is_fetched_again(s3: Any, cache: Cache) -> None:
    s3.buckets["videos"]["a.mp4"] = b"12345"
    given = []

    def read(source: str | bytes) -> bytes:
        given.append(source)
        if len(given) == 1:
            os.unlink(source)  # as another process may, which needs the room
        opened = openable(source)
        return Path(opened.removeprefix("file:")).read_bytes() if isinstance(opened, str) else b""

    assert with_local_copy(read, "s3://videos/a.mp4", size=5, cache=cache) == b"12345"
    assert len(given) == 2
    assert not is_evicted(given[0], cache)  # the new copy is in its place


def test_an_error_that_is_no_eviction_is_the_readers(s3: Any, cache: Cache) -> None:
    s3.buckets["videos"]["a.mp4"] = b"12345"

    def read(source: str | bytes) -> bytes:
        raise DecodeError("corrupt", "as always")

    with pytest.raises(DecodeError, match="as always"):
        with_local_copy(read, "s3://videos/a.mp4", size=5, cache=cache)
    assert s3.requests == ["GET /videos/a.mp4"]
