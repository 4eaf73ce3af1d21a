"""Fixtures of the clips tests: real and odd videos, and a small S3 server on loopback."""

import contextlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from clips import storage
from clips.storage import access


@pytest.fixture(scope="session")
def videos(shared: Path) -> Path:
    folder = shared / "videos"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/videos")
    return folder


@dataclass
class S3Server:
    """A server that speaks enough S3 for listing, reading, and conditional writing.

    It checks who asks, and fails on demand: enough to see what a client makes of each failure.
    """

    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"videos": {}})
    access_key: str = "tester"
    failures: list[tuple[int, str]] = field(default_factory=list)
    """(status, code) of the next requests, used up one by one."""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request, with names in lower case."""
    silent_seconds: list[float] = field(default_factory=list)
    """How long the next answers stop in their middle, used up one by one."""
    page: int = 1000
    """Keys of one answer to a listing."""
    lock: Any = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: S3Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_DELETE = do_POST = do_GET

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urllib.parse.urlsplit(self.path)
        bucket, _, key = urllib.parse.unquote(split.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        with self.store.lock:
            self.store.requests.append(f"{self.command} {self.path}")
            self.store.headers.append({k.lower(): v for k, v in self.headers.items()})
            if self.store.failures:
                return self._error(*self.store.failures.pop(0))
            if f"Credential={self.store.access_key}/" not in self.headers.get("Authorization", ""):
                return self._error(403, "InvalidAccessKeyId")
            if bucket not in self.store.buckets:
                return self._error(404, "NoSuchBucket")
            return self._answer(self.store.buckets[bucket], bucket, key, query, body)

    def _answer(
        self, objects: dict[str, bytes], bucket: str, key: str, query: dict[str, str], body: bytes
    ) -> None:
        if self.command == "POST" and "delete" in query:
            for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                objects.pop(name, None)
            return self._send(200, b"<DeleteResult/>")
        if not key:
            return self._list(objects, bucket, query)
        if self.command == "PUT":
            if self.headers.get("If-None-Match") == "*" and key in objects:
                return self._error(412, "PreconditionFailed")
            objects[key] = body
            return self._send(200)
        if self.command == "DELETE":
            objects.pop(key, None)
            return self._send(204)
        if key not in objects:
            return self._error(404, "NoSuchKey")
        data = objects[key]
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            if int(first) >= len(data):
                return self._error(416, "InvalidRange")
            part = data[int(first) : int(last or len(data)) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self._send(206, part, {"Content-Range": span, "ETag": '"e"'})
        return self._send(200, data, {"ETag": f'"{len(data)}-{key}"'})

    def _list(self, objects: dict[str, bytes], bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = int(query.get("max-keys", self.store.page))
        after = query.get("continuation-token", "").encode()
        contents, folders, token = "", set(), ""
        found = sorted((k.encode(), k) for k in objects if k.startswith(prefix))
        left = [key for encoded, key in found if encoded > after]
        if len(left) > limit:
            last = escape(left[limit - 1])
            token = f"<NextContinuationToken>{last}</NextContinuationToken>"
        for key in left[:limit]:
            data, rest = objects[key], key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            contents += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>&quot;{len(data)}&quot;"
                "</ETag><LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
            )
        shared = "".join(
            f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>"
            for f in sorted(folders)
        )
        self._send(
            200,
            f'<?xml version="1.0"?><ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{token}{contents}{shared}</ListBucketResult>".encode(),
        )

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it gave us up
                self.wfile.write(body[:1])
                if self.store.silent_seconds:
                    self.wfile.flush()
                    time.sleep(self.store.silent_seconds.pop())
                self.wfile.write(body[1:])


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running S3 server, and the environment that leads to it."""
    store = S3Server()
    handler = type("Handler", (_Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    use_s3(monkeypatch, endpoint=store.url)
    yield store
    server.shutdown()
    thread.join()
    server.server_close()


def use_s3(monkeypatch: pytest.MonkeyPatch, *, endpoint: str) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tester")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLIPS_STORAGE_RETRY_SECONDS", "2")
    storage.forget_clients("s3")
    access._worked.clear()  # as in a new process
