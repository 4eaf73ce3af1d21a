from pathlib import Path
from typing import Any

import pytest

from clips import storage
from clips.storage import StorageError
from clips.storage.access import REFRESHES


class Keys:
    """A credentials file, as rotation reaches a running process; and the server that knows one key."""

    def __init__(self, path: Path, server: Any) -> None:
        self.path, self.server = path, server

    def accept(self, key: str) -> None:
        self.server.access_key = key

    def hand_out(self, key: str) -> None:
        self.path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")


@pytest.fixture
def keys(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    keys = Keys(tmp_path / "credentials", s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys.path))
    s3.buckets["videos"]["k"] = b"data"
    keys.accept("first")
    keys.hand_out("first")
    assert storage.read_bytes("s3://videos/k") == b"data"
    return keys


@pytest.mark.parametrize(
    ("act", "result"),
    [
        (lambda: storage.read_bytes("s3://videos/k"), b"data"),
        (lambda: storage.size("s3://videos/k"), 4),
        (lambda: storage.exists("s3://videos/k"), True),
        (lambda: [file.path for file in storage.iterate_files("s3://videos")], ["k"]),
        (lambda: storage.list_names("s3://videos"), ["k"]),
        (lambda: storage.write_bytes("s3://videos/w", b""), None),
        (lambda: storage.create_exclusive("s3://videos/c", b""), True),
    ],
    ids=["read", "stat", "exists", "list", "names", "write", "create"],
)
def test_keys_that_were_exchanged_are_looked_up_anew(keys: Keys, act: Any, result: object) -> None:
    keys.accept("second")
    keys.hand_out("second")
    assert act() == result


def test_a_file_being_read_survives_the_exchange(keys: Keys) -> None:
    keys.server.buckets["videos"]["long"] = bytes(3 << 20)
    with storage.open_seekable("s3://videos/long") as file:
        assert file.read(10) == bytes(10)
        keys.accept("second")
        keys.hand_out("second")
        file.seek(2 << 20)
        assert file.read(10) == bytes(10)


def test_expired_keys_are_looked_up_anew_and_the_request_made_again(keys: Keys) -> None:
    before = storage.traffic()
    keys.server.failures[:] = [(400, "ExpiredToken")] * 2
    assert storage.read_bytes("s3://videos/k") == b"data"
    assert storage.traffic().since(before) == storage.Traffic(requests=3, bytes_read=4, retries=2)


def test_a_refusal_without_a_body_is_understood_too(keys: Keys) -> None:
    keys.server.requests.clear()
    keys.server.failures[:] = [(400, "ExpiredToken")] * 3
    assert storage.size("s3://videos/k") == 4
    assert keys.server.requests == [
        "HEAD /videos/k",
        "HEAD /videos",  # botocore's own, in search of another region
        "GET /videos/k",  # which says why
        "HEAD /videos/k",
    ]


def test_keys_that_stay_expired_are_named_after_some_tries(keys: Keys) -> None:
    keys.server.requests.clear()
    keys.server.failures[:] = [(400, "ExpiredToken")] * 100
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://videos/k")
    assert caught.value.kind == "expired"
    assert str(caught.value) == "the credentials have expired for s3://videos/k; renew them"
    assert len(keys.server.requests) == 1 + REFRESHES


def test_keys_that_the_server_no_longer_knows_have_expired(keys: Keys) -> None:
    keys.accept("second")  # and nobody hands it out
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://videos/k")
    assert caught.value.kind == "expired"


def test_keys_that_were_never_right_are_denied_at_once(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.access_key = "somebody else"
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://videos/k")
    assert caught.value.kind == "denied"
    assert len(s3.requests) == 1


def test_an_object_that_is_forbidden_is_denied_and_asked_for_once(keys: Keys) -> None:
    keys.server.requests.clear()
    keys.server.failures[:] = [(403, "AccessDenied")]
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://videos/k")
    assert caught.value.kind == "denied"
    assert len(keys.server.requests) == 1
