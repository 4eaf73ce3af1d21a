import functools
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clips import storage
from clips.storage import StorageError
from clips.storage.errors import explained

# --- local ---------------------------------------------------------------------------------


def test_listing_a_folder_gives_every_file_with_its_relative_path(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a.mp4").write_bytes(b"12")
    (tmp_path / "b" / "deep" / "c d.mp4").write_bytes(b"123")
    os.utime(tmp_path / "a.mp4", ns=(7, 7))
    found = storage.list_files(str(tmp_path))
    assert [(f.path, f.size) for f in found] == [("a.mp4", 2), ("b/deep/c d.mp4", 3)]
    assert found[0].etag == storage.stat(str(tmp_path / "a.mp4")).etag == "7-2"
    assert list(storage.list_files(f"file://{tmp_path}")) == list(storage.list_files(str(tmp_path)))


def test_a_missing_place_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        list(storage.list_files(str(tmp_path / "none")))
    assert str(caught.value) == f"there is nothing at {tmp_path}/none; check the spelling"
    assert caught.value.kind == "missing"
    assert not storage.exists(str(tmp_path / "none"))


def test_reading_whole_in_ranges_and_at_any_position(tmp_path: Path) -> None:
    uri = str(tmp_path / "f")
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.read_bytes(uri) == bytes(range(100))
    assert storage.read_range(uri, start=90, length=20) == bytes(range(90, 100))
    assert storage.size(uri) == 100
    with storage.open_seekable(uri) as file:
        file.seek(50)
        assert file.read(2) == b"23"


def test_writing_replaces_in_one_step_and_leaves_nothing_else(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "f")
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert os.listdir(tmp_path / "new") == ["f"]
    assert oct((tmp_path / "new" / "f").stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_of_many_threads_one_creates(tmp_path: Path) -> None:
    for round_number in range(20):
        claim = functools.partial(storage.create_exclusive, str(tmp_path / f"claim{round_number}"))
        contents = [b"%d" % i * 1000 for i in range(16)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(claim, contents))
        assert won.count(True) == 1
        assert storage.read_bytes(claim.args[0]) == contents[won.index(True)]
    assert len(os.listdir(tmp_path)) == 20


def test_exclusive_creation_needs_a_storage_that_has_it() -> None:
    with pytest.raises(StorageError, match=r"^cannot open memory://x \(atomic creation needs"):
        storage.create_exclusive("memory://x", b"")


def test_an_unknown_scheme_is_one_clear_line() -> None:
    with pytest.raises(
        StorageError, match=r"^cannot open nope://x \(ValueError: Protocol not known"
    ):
        storage.read_bytes("nope://x")


def test_removing_and_naming(tmp_path: Path) -> None:
    for name in ("b", "a"):
        storage.write_bytes(str(tmp_path / "d" / name), b"")
    assert storage.list_names(str(tmp_path / "d")) == ["a", "b"]
    storage.remove(str(tmp_path / "d"))
    storage.remove(str(tmp_path / "d"))
    assert storage.list_names(str(tmp_path / "d")) == []


# --- secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://user:pass@host/a.mp4?X-Amz-Signature=abc", "https://host/a.mp4"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://b/k?X-Amz-Credential=abc&X-Amz-Signature=s", "s3://b/k"),
        ("s3://b/what? a name@home.mp4", "s3://b/what? a name@home.mp4"),
        ("/data/a@b?c", "/data/a@b?c"),
    ],
)
def test_messages_hide_users_passwords_and_signatures(uri: str, shown: str) -> None:
    assert storage.redact(uri) == shown


def test_errors_show_no_secrets() -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("nope://user:hunter2@host/key?X-Amz-Signature=abc")
    assert "hunter2" not in str(caught.value)
    assert "Signature" not in str(caught.value)


def test_a_servers_words_are_quoted_whole_but_for_secrets() -> None:
    said = 'Could not connect to "https://me:hunter2@host/key?X-Amz-Signature=abc": refused'
    message = str(explained(ConnectionError(said), "s3://videos/a"))
    assert '(ConnectionError: Could not connect to "https://host/key": refused)' in message


# --- S3, from a server on loopback ---------------------------------------------------------


def test_a_bucket_is_listed_read_and_written(s3: Any) -> None:
    storage.write_bytes("s3://videos/a/1.mp4", b"0123456789")
    storage.write_bytes("s3://videos/b.mp4", b"x")
    found = [(f.path, f.size) for f in storage.list_files("s3://videos")]
    assert found == [("a/1.mp4", 10), ("b.mp4", 1)]
    assert [f.path for f in storage.list_files("s3://videos/a")] == ["1.mp4"]
    assert storage.read_bytes("s3://videos/a/1.mp4") == b"0123456789"
    assert storage.read_range("s3://videos/a/1.mp4", start=2, length=3) == b"234"
    assert storage.exists("s3://videos/b.mp4")
    assert storage.is_folder("s3://videos/a")
    assert storage.list_names("s3://videos/a") == ["1.mp4"]
    assert [r for r in s3.requests if "1.mp4" in r and r.startswith(("GET", "HEAD"))][:1] == [
        "GET /videos/a/1.mp4"
    ]
    storage.remove("s3://videos/b.mp4")
    assert "b.mp4" not in s3.buckets["videos"]


def test_the_checksum_settings_that_other_servers_need_are_set(s3: Any) -> None:
    storage.exists("s3://videos/x")
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert os.environ["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "when_required"


def test_of_many_writers_to_a_bucket_one_creates(s3: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(lambda i: storage.create_exclusive("s3://videos/c", b"%d" % i), range(8))
        )
    assert won.count(True) == 1
    assert s3.buckets["videos"]["c"] == b"%d" % won.index(True)


def test_a_busy_server_is_asked_again(s3: Any) -> None:
    s3.buckets["videos"]["k"] = b"data"
    s3.failures[:] = [(503, "SlowDown")] * 3
    assert storage.read_bytes("s3://videos/k") == b"data"
    s3.failures[:] = [(500, "InternalError")] * 2
    assert storage.create_exclusive("s3://videos/new", b"1")


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        ((404, "NoSuchBucket"), "no_bucket", "the bucket does not exist: s3://videos/k"),
        ((403, "AccessDenied"), "denied", "access denied to s3://videos/k"),
        ((400, "ExpiredToken"), "expired", "the credentials have expired for s3://videos/k"),
    ],
)
def test_each_refusal_of_a_bucket_is_named(
    s3: Any, failure: tuple[int, str], kind: str, message: str
) -> None:
    s3.failures[:] = [failure] * 4
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://videos/k")
    assert caught.value.kind == kind
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)


def test_a_missing_bucket_and_a_missing_object_differ(s3: Any) -> None:
    with pytest.raises(StorageError, match=r"^there is nothing at s3://videos/none; check the"):
        storage.read_bytes("s3://videos/none")
    with pytest.raises(StorageError, match=r"^the bucket does not exist: s3://nobucket"):
        list(storage.list_files("s3://nobucket/prefix"))


def test_wrong_credentials_are_denied(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.access_key = "somebody else"
    with pytest.raises(StorageError) as caught:
        list(storage.list_files("s3://videos/"))
    assert caught.value.kind == "denied"


def test_missing_credentials_say_how_to_give_them(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    storage.forget_clients("s3")
    for attempt in (
        lambda: list(storage.list_files("s3://videos/")),
        lambda: storage.create_exclusive("s3://videos/claim", b""),
    ):
        with pytest.raises(
            StorageError, match=r"^no credentials for s3://videos/.*AWS_ACCESS_KEY_ID"
        ):
            attempt()


def test_an_unreachable_endpoint_is_named_within_the_patience(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StorageError) as caught:
            storage.read_bytes("s3://videos/k")
    assert caught.value.kind == "unreachable"
    assert str(caught.value).startswith("cannot reach the storage of s3://videos/k")
    assert str(caught.value).endswith("check the network, and AWS_ENDPOINT_URL")
