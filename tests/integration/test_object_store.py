"""Storage, cache and decoding against a real S3 server (Ceph's gateway), which is killed at times."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ceph import Gateway
from clips import storage
from clips.cache import Cache
from clips.decode import open_video
from clips.decode import source as sources
from clips.decode.source import local_copy, with_local_copy
from clips.storage import StorageError
from clips.synthetic import encode, numbered_frames, read_number

pytestmark = pytest.mark.slow  # a minute: the gateway is killed and waited for


@pytest.fixture(scope="module")
def bucket(ceph: Gateway) -> str:
    return ceph.bucket("object-store")


def back_after(gateway: Gateway, seconds: float) -> threading.Timer:
    """Kill the gateway now, and start it again later."""
    gateway.kill()
    timer = threading.Timer(seconds, gateway.start)
    timer.start()
    return timer


# --- a server that runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.mp4", "a b.mp4", "deep/er/\u00e9.mp4", "100%+#?&=~.mp4", "x//y"]
)
def test_whatever_the_name_bytes_come_back(object_store: Gateway, bucket: str, name: str) -> None:
    uri, data = f"{bucket}/names/{name}", os.urandom(5000)
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.read_range(uri, start=4000, length=2000) == data[4000:]
    assert storage.read_range(uri, start=9000, length=10) == b""
    info = storage.stat(uri)
    assert (info.size, bool(info.etag)) == (5000, True)
    listed = {file.path: file for file in storage.iterate_files(f"{bucket}/names")}
    assert (listed[name].size, listed[name].etag) == (5000, info.etag)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_more_objects_than_a_page_are_listed_in_order(object_store: Gateway, bucket: str) -> None:
    client = object_store.client()
    names = sorted(f"many/{n % 7}{'.-/'[n % 3]}{n}" for n in range(1010))

    def put(name: str) -> None:
        client.put_object(Bucket="object-store", Key=name, Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, names))
    before = storage.traffic()
    assert [f"many/{file.path}" for file in storage.iterate_files(f"{bucket}/many")] == names
    assert storage.traffic().since(before).requests == 2
    storage.remove(f"{bucket}/many")
    assert storage.list_names(f"{bucket}/many") == []


def test_of_many_claims_one_succeeds(object_store: Gateway, bucket: str) -> None:
    for number in range(5):
        uri = f"{bucket}/claims/{number}"
        contents = [b"%d" % writer * 1000 for writer in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(lambda data, uri=uri: storage.create_exclusive(uri, data), contents)
            )
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == contents[won.index(True)]


def test_a_reader_sees_the_old_bytes_or_the_new(object_store: Gateway, bucket: str) -> None:
    uri = f"{bucket}/replaced"
    versions = [bytes([number]) * 500_000 for number in range(2)]
    storage.write_bytes(uri, versions[0])
    done = threading.Event()

    def write() -> None:
        for number in range(20):
            storage.write_bytes(uri, versions[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(storage.read_bytes(uri))
    writer.join()
    assert all(data in versions for data in seen)


def test_wrong_keys_are_denied(
    object_store: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/secret", b"1")
    wrong = os.environ | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    code = "import sys; from clips import storage; storage.read_bytes(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, f"{bucket}/secret"],
        env=wrong | {"PYTHONPATH": str(Path(storage.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert f"StorageError: access denied to {bucket}/secret" in done.stderr


def test_keys_exchanged_on_the_server_reach_a_running_process(
    object_store: Gateway, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"

    def hand_out(key: str) -> None:
        object_store.make_key(key)
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={key}\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    hand_out("first-key")
    storage.write_bytes(f"{bucket}/rotated", b"1")
    hand_out("second-key")
    object_store.drop_key("first-key")
    assert storage.read_bytes(f"{bucket}/rotated") == b"1"
    object_store.drop_key("second-key")
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(f"{bucket}/rotated")
    assert caught.value.kind == "expired"


# --- a server that dies --------------------------------------------------------------------


def test_a_server_that_stays_away_is_named_within_the_patience(
    object_store: Gateway, bucket: str
) -> None:
    object_store.kill()
    with storage.patience(0.5), pytest.raises(StorageError) as caught:
        storage.read_bytes(f"{bucket}/any")
    assert caught.value.kind == "unreachable"


@pytest.mark.parametrize(
    "act",
    [
        lambda uri: storage.read_bytes(f"{uri}/old") == b"old",
        lambda uri: storage.exists(f"{uri}/old"),
        lambda uri: "old" in [file.path for file in storage.iterate_files(uri)],
        lambda uri: storage.write_bytes(f"{uri}/new", b"new") is None,
        lambda uri: storage.create_exclusive(f"{uri}/claim", b""),
    ],
    ids=["read", "exists", "list", "write", "create"],
)
def test_whatever_is_asked_waits_for_a_server_that_comes_back(
    object_store: Gateway, bucket: str, act: Callable[[str], bool]
) -> None:
    storage.write_bytes(f"{bucket}/outage/old", b"old")
    storage.remove(f"{bucket}/outage/claim")
    before = storage.traffic()
    timer = back_after(object_store, 1.0)
    with storage.patience(60):
        assert act(f"{bucket}/outage")
    timer.join()
    assert storage.traffic().since(before).retries >= 1


def test_a_reader_goes_on_over_a_server_that_was_killed(object_store: Gateway, bucket: str) -> None:
    data = os.urandom(6 << 20)
    storage.write_bytes(f"{bucket}/long", data)
    read = []
    with storage.patience(60), storage.open_seekable(f"{bucket}/long") as file:
        read.append(file.read(1 << 19))
        timer = back_after(object_store, 2.0)
        while piece := file.read(1 << 19):
            read.append(piece)
        timer.join()
    assert b"".join(read) == data


# --- the cache -----------------------------------------------------------------------------


def test_a_second_pass_needs_no_server(object_store: Gateway, bucket: str, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), limit_bytes=1 << 30)
    objects = {f"{bucket}/set/{number}": os.urandom(10_000 + number) for number in range(20)}
    for uri, data in objects.items():
        storage.write_bytes(uri, data)

    def visit() -> None:
        for uri, data in objects.items():
            path = local_copy(uri, size=len(data), etag="1", cache=cache)
            assert isinstance(path, str)
            assert Path(path).read_bytes() == data

    before = storage.traffic()
    visit()
    object_store.kill()
    visit()
    cost = storage.traffic().since(before)
    assert (cost.requests, cost.cache_misses, cost.cache_hits) == (20, 20, 20)
    assert cost.bytes_read == sum(len(data) for data in objects.values())


# --- decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_bytes", [16 << 20, 4096], ids=["whole", "by ranges"])
@pytest.mark.parametrize("cached", [False, True])
def test_frames_from_a_bucket_are_those_from_disk(
    object_store: Gateway,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_bytes: int,
    cached: bool,
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", whole_bytes)
    data = encode(numbered_frames(24, width=64, height=64))
    file = tmp_path / "a.mp4"
    file.write_bytes(data)
    storage.write_bytes(f"{bucket}/a.mp4", data)
    cache = Cache(str(tmp_path / "cache"), limit_bytes=1 << 30) if cached else None
    wanted = [np.arange(0, 16, 2)]

    def frames(source: str | bytes) -> np.ndarray:
        with open_video(source, size=len(data)) as reader:
            return reader.read(wanted)[0]

    expected = frames(str(file))
    found = with_local_copy(frames, f"{bucket}/a.mp4", size=len(data), cache=cache)
    assert np.array_equal(found, expected)


def test_a_video_is_decoded_over_a_server_that_was_killed(
    object_store: Gateway, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WHOLE_BYTES", 4096)
    data = encode(numbered_frames(24, width=64, height=64))
    storage.write_bytes(f"{bucket}/b.mp4", data)
    timer = back_after(object_store, 1.0)
    with storage.patience(60), open_video(f"{bucket}/b.mp4", size=len(data)) as reader:
        frames = reader.read([np.arange(0, 24)])[0]
    timer.join()
    assert [read_number(frame) for frame in frames] == list(range(24))
