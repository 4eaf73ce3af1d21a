import functools
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from clips import cache as caches
from clips.cache import Cache, Kept, oldest
from clips.storage import StorageError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), limit_bytes=1000)


def put(cache: Cache, name: str, size: int = 100) -> str | None:
    key = cache.key(name, size=size)
    return cache.store(key, (name.encode().ljust(size, b"."),), size=size)


def has(cache: Cache, name: str, size: int = 100) -> bool:
    return cache.find(cache.key(name, size=size), size=size) is not None


def gone(cache: Cache, names: int, size: int = 100) -> list[int]:
    """Which of the names 0 .. names - 1 are not there; none counts as used by this."""
    there = {path.name for path in objects(cache)}
    return [n for n in range(names) if cache.key(str(n), size=size) not in there]


def objects(cache: Cache) -> list[Path]:
    return [path for path in Path(cache.folder).glob("??/*") if path.is_file()]


def taken(cache: Cache) -> int:
    return sum(path.stat().st_size for path in objects(cache))


# --- one process ---------------------------------------------------------------------------


def test_what_was_stored_is_found_whole(cache: Cache) -> None:
    assert not has(cache, "a")
    path = cache.store(cache.key("a", size=6), (b"one", b"two"), size=6)
    assert path is not None
    assert Path(path).read_bytes() == b"onetwo"
    assert cache.find(cache.key("a", size=6), size=6) == path
    assert cache.owns(path)
    assert not cache.owns("/elsewhere/a")


def test_a_version_a_part_and_a_length_are_objects_of_their_own(cache: Cache) -> None:
    keys = {
        cache.key("s3://b/a", size=5),
        cache.key("s3://b/a", size=6),
        cache.key("s3://b/a", size=5, etag="1"),
        cache.key("s3://b/a", size=5, offset=0),
        cache.key("s3://b/a", size=5, offset=512),
    }
    assert len(keys) == 5


def test_the_least_recently_used_makes_room(cache: Cache) -> None:
    for number in range(10):
        put(cache, str(number))
    assert has(cache, "0")  # and so it is the newest now
    put(cache, "10")
    assert gone(cache, 11) == [1]
    put(cache, "large", size=250)
    assert gone(cache, 11) == [1, 2, 3, 4]
    assert taken(cache) == 950


def test_nothing_larger_than_a_quarter_is_kept(cache: Cache) -> None:
    assert cache.takes(250)
    assert not cache.takes(251)
    assert put(cache, "a", size=251) is None


def test_a_copy_that_a_crash_of_the_machine_cut_short_is_not_used(cache: Cache) -> None:
    path = put(cache, "a")
    assert path is not None
    os.truncate(path, 50)
    assert not has(cache, "a")
    assert put(cache, "a") == path
    assert has(cache, "a")


def test_who_has_an_object_open_keeps_its_bytes(cache: Cache) -> None:
    path = put(cache, "a")
    assert path is not None
    with open(path, "rb") as file:
        for number in range(20):
            put(cache, str(number))
        assert not os.path.exists(path)
        assert file.read() == b"a".ljust(100, b".")


def test_a_failed_fetch_leaves_nothing(cache: Cache) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise StorageError("unreachable", "gone")

    with pytest.raises(StorageError):
        cache.store(cache.key("a", size=8), pieces(), size=8)
    assert not has(cache, "a", size=8)
    assert os.listdir(Path(cache.folder) / "incoming") == []


def test_files_that_somebody_deleted_make_room_again(cache: Cache) -> None:
    for number in range(10):
        put(cache, str(number))
    for path in objects(cache):
        path.unlink()
    for number in range(10):
        assert put(cache, str(number))
    assert taken(cache) == 1000


def test_a_cache_whose_lock_was_deleted_knows_what_it_holds(cache: Cache) -> None:
    for number in range(10):
        put(cache, str(number))
    (Path(cache.folder) / "lock").unlink()
    put(cache, "10")
    assert taken(cache) == 1000


def test_a_cache_travels_as_its_two_fields(cache: Cache) -> None:
    put(cache, "a")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy == cache
    assert has(copy, "a")


def test_a_folder_must_be_absolute_and_a_limit_positive() -> None:
    with pytest.raises(ValueError, match=r"^the cache folder 'c' is a relative path; give an abs"):
        Cache("c", 1)
    with pytest.raises(ValueError, match=r"^the cache may take 0 bytes; give it at least 1$"):
        Cache("/c", 0)


# --- a disk that does not take it ----------------------------------------------------------


def test_a_full_disk_is_warned_of_once_and_what_is_there_is_read(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))  # writing more fails: EFBIG
    try:
        with caplog.at_level(logging.WARNING):
            assert put(cache, "b", size=200) is None
            assert put(cache, "c", size=200) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        caches._given_up.clear()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"the cache {cache.folder} is no longer written to: ")
    assert caplog.messages[0].endswith("; videos are read from their storage")
    assert has(cache, "a")
    assert os.listdir(Path(cache.folder) / "incoming") == []


def test_a_folder_that_cannot_be_made_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(str(tmp_path / "file" / "cache"), 1000)
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b"):
            with cache.turn(cache.key(name, size=1)):
                assert not has(cache, name)
                assert put(cache, name) is None
    caches._given_up.clear()
    assert len(caplog.messages) == 1


# --- many processes ------------------------------------------------------------------------

_CONTEXT = multiprocessing.get_context("spawn")


def fetch_once(cache: Cache, name: str, log: str) -> None:
    """What `local_copy` does, with a slow storage that keeps a record of requests."""
    key = cache.key(name, size=100)
    if cache.find(key, size=100) is None:
        with cache.turn(key):
            if cache.find(key, size=100) is None:
                with open(log, "a") as file:
                    file.write(name + "\n")
                time.sleep(0.05)
                put(cache, name)


def fetch_many(cache: Cache, log: str, seed: int) -> int:
    """Fetch 40 objects in an order of one's own; return the most that the folder ever took."""
    names = [str(number) for number in range(40)]
    random.Random(seed).shuffle(names)
    most = 0
    for name in names:
        fetch_once(cache, name, log)
        files = [*Path(cache.folder).glob("??/*"), *Path(cache.folder).glob("incoming/*")]
        sizes = []
        for file in files:
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:
                continue
        most = max(most, sum(sizes))
    return most


def test_many_processes_fetch_each_object_once(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), limit_bytes=100_000)
    log = str(tmp_path / "log")
    with ProcessPoolExecutor(3, mp_context=_CONTEXT) as pool:
        most = list(pool.map(functools.partial(fetch_many, cache, log), range(3)))
    assert sorted(Path(log).read_text().split(), key=int) == [str(n) for n in range(40)]
    assert max(most) == taken(cache) == 4000


def test_many_threads_fetch_each_object_once(cache: Cache, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: fetch_once(cache, str(n % 4), log), range(32)))
    assert sorted(Path(log).read_text().split()) == ["0", "1", "2", "3"]


def test_many_processes_stay_below_the_limit(cache: Cache, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with ProcessPoolExecutor(3, mp_context=_CONTEXT) as pool:
        list(pool.map(functools.partial(fetch_many, cache, log), range(3)))
    assert 900 <= taken(cache) <= 1000
    assert os.listdir(Path(cache.folder) / "incoming") == []


def _environment() -> dict[str, str]:
    """So that a child runs the code of this checkout."""
    return os.environ | {"PYTHONPATH": str(Path(caches.__file__).parents[1])}


_HALF_WRITTEN = """
import sys, time
from clips.cache import Cache
cache = Cache(sys.argv[1], 1000)
key = cache.key("a", size=200)
def pieces():
    yield b"x" * 100
    print("half", flush=True)
    time.sleep(600)
with cache.turn(key):
    cache.store(key, pieces(), size=200)
"""


def test_a_killed_process_leaves_neither_a_lock_nor_a_file_for_long(cache: Cache) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _HALF_WRITTEN, cache.folder],
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        for number in range(9):  # what is being written counts: 8 of 100 fit beside its 200
            put(cache, str(number))
        assert taken(cache) == 800
        assert len(os.listdir(Path(cache.folder) / "incoming")) == 1
        child.kill()
    with cache.turn(cache.key("a", size=200)):
        assert put(cache, "a", size=200)
    assert has(cache, "a", size=200)
    assert taken(cache) == 1000
    assert os.listdir(Path(cache.folder) / "incoming") == []


_BUSY = """
import random, sys
from clips.cache import Cache
cache, chance = Cache(sys.argv[1], 100_000), random.Random()
while True:
    number = chance.randrange(400)
    size, byte = 500 + number, bytes([number % 256])
    key = cache.key(str(number), size=size)
    with cache.turn(key):
        if cache.find(key, size=size) is None:
            cache.store(key, (byte * 250, byte * (250 + number)), size=size)
"""


@pytest.mark.slow
def test_processes_killed_at_any_moment_leave_whole_objects_and_a_true_ledger(
    tmp_path: Path,
) -> None:
    cache = Cache(str(tmp_path / "cache"), 100_000)

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", _BUSY, cache.folder], env=_environment())

    contents: list[bytes] = []
    chance, busy = random.Random(1), [start() for _ in range(3)]
    try:
        for turn in range(45):
            time.sleep(0.3 + chance.random() / 2)
            with busy[turn % 3] as victim:
                victim.kill()
            busy[turn % 3] = start()
            with cache._ledger() as ledger:
                contents = [path.read_bytes() for path in objects(cache)]
                assert sum(map(len, contents)) <= ledger.total <= cache.limit_bytes
            assert all(len(set(content)) == 1 for content in contents)
    finally:
        for one in busy:
            with one:
                one.kill()
    put(cache, "last", size=1)
    assert os.listdir(Path(cache.folder) / "incoming") == []
    assert len(contents) > 100


# --- what goes -----------------------------------------------------------------------------


def kept(used_ns: int, size: int) -> Kept:
    return Kept(used_ns, size, str(used_ns), 0)


def test_the_oldest_go_and_a_few_more_if_there_is_slack() -> None:
    sample = [kept(3, 10), kept(1, 10), kept(2, 10), kept(4, 10)]
    assert [one.used_ns for one in oldest(sample, excess=11, slack=0)] == [1, 2]
    assert [one.used_ns for one in oldest(sample, excess=11, slack=19)] == [1, 2, 3]
    assert [one.used_ns for one in oldest(sample, excess=100, slack=0)] == [1, 2, 3, 4]


def test_room_in_a_large_cache_is_made_by_looking_at_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "SAMPLE", 64)
    looked_through = []
    monkeypatch.setattr(
        caches,
        "_scanned",
        lambda folder, scan=caches._scanned: looked_through.append(folder) or scan(folder),
    )
    cache = Cache(str(tmp_path / "cache"), limit_bytes=5_120)
    for number in range(512):
        put(cache, str(number), size=10)
    looked_through.clear()
    put(cache, "new", size=10)
    assert 20 <= len(looked_through) <= 60  # of 256: some 2 objects lie in each
    evicted = gone(cache, 512, size=10)
    assert 1 <= len(evicted) <= 3
    assert max(evicted) < 100  # among the oldest, if not the oldest of all
