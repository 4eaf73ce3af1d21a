"""How requests are made: counted, tried again, paid for, and of which servers."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clips import storage
from clips.storage import StorageError, Traffic, access
from clips.storage.errors import explained

# --- counting ------------------------------------------------------------------------------


def test_every_request_that_reads_is_counted(s3: Any) -> None:
    s3.buckets["videos"]["long"] = bytes(3 << 20)
    before = storage.traffic()
    storage.read_range("s3://videos/long", start=5, length=10)
    storage.stat("s3://videos/long")
    list(storage.iterate_files("s3://videos"))
    with storage.open_seekable("s3://videos/long", size=3 << 20) as file:
        for position in (0, 100, 2 << 20):
            file.seek(position)
            file.read(100)
    cost = storage.traffic().since(before)
    assert (cost.requests, cost.bytes_read) == (5, 10 + (2 << 20))
    assert len(s3.requests) == 5


def test_a_request_made_again_is_counted_again(s3: Any) -> None:
    s3.buckets["videos"]["k"] = b"data"
    s3.failures[:] = [(503, "SlowDown")]
    before = storage.traffic()
    storage.read_bytes("s3://videos/k")
    assert storage.traffic().since(before) == Traffic(requests=2, bytes_read=4, retries=1)
    assert len(s3.requests) == 2


def test_threads_count_together_and_processes_are_added_up() -> None:
    before = storage.traffic()
    threads = [
        threading.Thread(
            target=lambda: [access.count(Traffic(requests=1, bytes_read=2)) for _ in range(1000)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mine = storage.traffic().since(before)
    assert mine == Traffic(requests=4000, bytes_read=8000)
    assert mine.plus(Traffic(cache_hits=1)) == Traffic(4000, 8000, cache_hits=1)


# --- patience ------------------------------------------------------------------------------


@pytest.fixture
def nobody(s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of a server that does not answer."""
    monkeypatch.delenv("CLIPS_STORAGE_RETRY_SECONDS")
    monkeypatch.setattr(
        access.tenacity, "wait_random_exponential", lambda **_: access.tenacity.wait_fixed(0.01)
    )
    s3.failures[:] = [(503, "SlowDown")] * 1000
    return "s3://videos/k"


def tries(uri: str) -> int:
    before = storage.traffic()
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(uri)
    assert caught.value.kind == "unreachable"
    return storage.traffic().since(before).requests


def test_patience_holds_within_its_block(nobody: str) -> None:
    with storage.patience(0):
        assert tries(nobody) == 1
        with storage.patience(0.5):
            assert tries(nobody) > 1
        assert tries(nobody) == 1
    assert access._patience.get() == access.RETRY_SECONDS


def test_the_operators_word_counts_for_everything(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPS_STORAGE_RETRY_SECONDS", "0")
    with storage.patience(600):
        assert tries(nobody) == 1


def test_a_server_silent_in_mid_answer_is_asked_again(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "READ_SECONDS", 1)
    s3.buckets["videos"]["k"] = b"data"
    s3.silent_seconds[:] = [1.6]
    assert storage.read_bytes("s3://videos/k") == b"data"
    assert len(s3.requests) >= 2


# --- requester pays, endpoints -------------------------------------------------------------


def test_who_pays_is_said_with_every_request(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    storage.write_bytes("s3://videos/k", b"data")
    storage.create_exclusive("s3://videos/claim", b"data")
    storage.read_bytes("s3://videos/k")
    storage.read_range("s3://videos/k", start=0, length=1)
    storage.stat("s3://videos/k")
    list(storage.iterate_files("s3://videos"))
    assert len(s3.requests) == 6
    assert [headers.get("x-amz-request-payer") for headers in s3.headers] == ["requester"] * 6


def test_nothing_is_paid_without_being_asked_to(s3: Any) -> None:
    storage.write_bytes("s3://videos/k", b"data")
    storage.read_bytes("s3://videos/k")
    assert [headers.get("x-amz-request-payer") for headers in s3.headers] == [None, None]


def test_an_endpoint_of_s3_alone_wins(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage.write_bytes("s3://videos/k", b"data")
    assert storage.create_exclusive("s3://videos/claim", b"data")
    assert set(s3.buckets["videos"]) == {"k", "claim"}


# --- web servers ---------------------------------------------------------------------------


class _Web(BaseHTTPRequestHandler):
    """A web server with one file; what it can do is in its address."""

    protocol_version = "HTTP/1.1"
    data = bytes(range(200)) * 10
    failures: list[int]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.failures:
            return self._answer(self.failures.pop(0), b"")
        if "none" in self.path:
            return self._answer(404, b"")
        if "secret" in self.path:
            return self._answer(403, b"")
        wanted = self.headers.get("Range")
        if wanted and "plain" not in self.path:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            status = 206 if first < len(self.data) else 416
            return self._answer(status, self.data[first : last + 1])
        self._answer(200, self.data)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[int]]]:
    """The address of a web server, and the list of statuses with which it answers next."""
    monkeypatch.setenv("CLIPS_STORAGE_RETRY_SECONDS", "2")
    failures: list[int] = []
    handler = type("Handler", (_Web,), {"failures": failures})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", failures
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["a.mp4", "plain/a.mp4"])
def test_a_web_server_is_read_with_and_without_ranges(
    web: tuple[str, list[int]], path: str
) -> None:
    uri = f"{web[0]}/{path}"
    assert storage.size(uri) == 2000
    assert storage.read_bytes(uri) == _Web.data
    assert storage.read_range(uri, start=1990, length=20) == _Web.data[1990:]
    assert storage.read_range(uri, start=3000, length=20) == b""
    with storage.open_seekable(uri) as file:
        file.seek(5)
        assert file.read(3) == _Web.data[5:8]


def test_a_web_server_that_is_busy_is_asked_again(web: tuple[str, list[int]]) -> None:
    web[1][:] = [503, 429]
    assert storage.read_bytes(f"{web[0]}/a.mp4") == _Web.data


@pytest.mark.parametrize(("path", "kind"), [("none", "missing"), ("secret", "denied")])
def test_what_a_web_server_refuses_is_named(
    web: tuple[str, list[int]], path: str, kind: str
) -> None:
    for read in (storage.read_bytes, storage.size):
        with pytest.raises(StorageError) as caught:
            read(f"{web[0]}/{path}?token=hunter2")
        assert caught.value.kind == kind
        assert "hunter2" not in str(caught.value)


def test_a_web_server_that_is_not_there_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPS_STORAGE_RETRY_SECONDS", "0")
    for read in (storage.read_bytes, storage.size):
        with pytest.raises(StorageError) as caught:
            read("http://127.0.0.1:9/a.mp4")
        assert caught.value.kind == "unreachable"
        assert str(caught.value).endswith("; check the network")


# --- Google's ------------------------------------------------------------------------------


def test_google_is_asked_with_the_credentials_of_its_own_chain() -> None:
    assert access.options("gs") == {"use_listings_cache": False}  # no token: gcsfs looks for it


def test_google_without_credentials_says_how_to_give_them() -> None:
    from gcsfs.retry import HttpError

    said = "Anonymous caller does not have storage.objects.get access to the object."
    error = explained(HttpError({"code": 401, "message": said}), "gs://b/a.mp4")
    assert error.kind == "no_credentials"
    assert str(error) == (
        "no credentials for gs://b/a.mp4; set GOOGLE_APPLICATION_CREDENTIALS, run "
        "gcloud auth application-default login, or give the machine a role"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Forbidden: b/a.mp4\nyou may not"), "denied"),
        (FileNotFoundError("b/a.mp4"), "missing"),
    ],
)
def test_what_google_refuses_is_named(error: Exception, kind: str) -> None:
    assert explained(error, "gs://b/a.mp4").kind == kind


def test_the_checksum_settings_are_the_users_if_there_are_any(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    storage.exists("s3://videos/x")
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_supported"
