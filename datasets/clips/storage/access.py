"""The way to a store: clients, credentials, and trying again.

Failures are sorted by what helps. Passing ones (connection lost, time-out, busy server) are tried
again with growing, jittered pauses for as long as the caller's patience lasts. Credentials that
have expired, or were exchanged while we ran, are looked up anew from the environment's chain and
the request is made again, a few times. All else, and what outlasts that, becomes one `StorageError`.
"""

import contextlib
import contextvars
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from clips.storage.errors import (
    StorageError,
    explained,
    hides_its_code,
    is_passing,
    refusal_of_credentials,
    storage_error,
)
from clips.storage.names import is_local, local_path, redact, scheme
from clips.storage.traffic import Traffic, count

if TYPE_CHECKING:
    import fsspec

T = TypeVar("T")

_log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
"""How long a passing failure is tried again by a command that people wait for."""
REFRESHES = 4
"""How often one request looks up credentials anew before they count as expired."""
CONNECT_SECONDS = 5
READ_SECONDS = 30
"""Longest silence of a server in mid-answer."""

_patience: contextvars.ContextVar[float] = contextvars.ContextVar("patience", default=RETRY_SECONDS)
_worked: set[str] = set()
"""Schemes whose credentials a server of this process has accepted."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within the block (of this thread) try passing failures again for `seconds`.

    CLIPS_STORAGE_RETRY_SECONDS overrides it: what an operator says counts for everything.
    """
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


def current_patience() -> float:
    """Return for how many seconds passing failures are tried again here."""
    return float(os.environ.get("CLIPS_STORAGE_RETRY_SECONDS") or _patience.get())


def attempt(uri: str, action: Callable[[Any, str], T], *, reads: bool = False) -> T:
    """Run `action(filesystem, path)` with retries; failures come out as `StorageError`.

    Args:
        uri: What it is about.
        action: What to do with the file system of `uri`, and the path there.
        reads: Count each try as a request that reads.
    """

    def act() -> T:
        if reads and not is_local(uri):
            count(Traffic(requests=1))
        fs, path = filesystem(uri)
        try:
            return action(fs, path)
        except Exception as error:
            if scheme(uri) == "s3" and "/" in path and hides_its_code(error):
                fs.cat_file(path, start=0, end=1)  # its failure says what the first one meant
            raise

    return guard(uri, act)


def guard(uri: str, action: Callable[[], T]) -> T:
    """Run `action`, which looks up its client itself, with retries and renewed credentials."""
    store = scheme(uri)
    seconds = current_patience()
    refreshes = 0
    first_failure = None  # not the first try: one that hung for long is made again too

    def helps(error: BaseException) -> bool:
        nonlocal refreshes, first_failure
        refusal = refusal_of_credentials(error)
        if refusal == "expired" or (refusal == "unknown" and store in _worked):
            forget_clients(store)
            refreshes += 1
            return refreshes <= REFRESHES
        if first_failure is None:
            first_failure = time.monotonic()
        return is_passing(error) and time.monotonic() - first_failure < seconds

    def before_sleep(state: tenacity.RetryCallState) -> None:
        count(Traffic(retries=1))
        why = state.outcome.exception() if state.outcome else None
        tried = state.attempt_number
        _log.info("storage: %s failed, attempt %d: %s", redact(uri), tried, type(why).__name__)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(helps),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        result = retrying(action)
    except StorageError:
        raise
    except Exception as error:
        if refreshes:
            raise storage_error("expired", uri) from error
        raise explained(error, uri) from error
    _worked.add(store)
    return result


def forget_clients(store: str) -> None:
    """Drop the clients of a scheme: the next request looks up credentials and endpoint anew."""
    import fsspec

    with contextlib.suppress(ImportError, ValueError):
        fsspec.get_filesystem_class(store).clear_instance_cache()
    if store == "s3":
        _s3_client_of.cache_clear()


def filesystem(uri: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """Return the file system of `uri`, and the path there."""
    import fsspec

    if is_local(uri):
        return fsspec.filesystem("file"), local_path(uri)
    fs = fsspec.filesystem(scheme(uri), **options(scheme(uri)))
    if scheme(uri) == "s3":
        fs.retries = 1  # ours count, and know how long to go on
    return fs, fs._strip_protocol(uri)


def options(store: str) -> dict[str, Any]:
    """Return what fsspec's file system of a scheme is opened with."""
    if store == "s3":
        _s3_environment()
        return {
            "endpoint_url": _endpoint(),
            "use_listings_cache": False,
            "requester_pays": _requester_pays(),
            "config_kwargs": {
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"total_max_attempts": 1},
            },
        }
    if store in ("http", "https"):
        import aiohttp

        silence = aiohttp.ClientTimeout(None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"client_kwargs": {"timeout": silence, "trust_env": True}}
    if store in ("gs", "gcs"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # else a page of stack a failed try
        return {"use_listings_cache": False}
    return {}


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write an S3 object unless there is one: the one atomic claim that S3 has."""
    import botocore.exceptions

    bucket, _, key = uri.split("://", 1)[1].partition("/")
    payer = {"RequestPayer": "requester"} if _requester_pays() else {}
    try:
        client = _s3_client()
        client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", **payer)
    except botocore.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise
    return True


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _requester_pays() -> bool:
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester"


def _s3_environment() -> None:
    """Settings that S3 servers other than Amazon's need; the user's own values win."""
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


@functools.lru_cache(maxsize=4)
def _s3_client_of(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 1},
        ),
    )


def _s3_client() -> Any:
    _s3_environment()
    return _s3_client_of(os.getpid(), _endpoint())
