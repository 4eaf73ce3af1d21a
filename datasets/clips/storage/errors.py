"""What a failing storage means for people: error classes of many libraries, sorted by what helps.

fsspec, s3fs, boto3, and the operating system each have their own exceptions for the same few
situations. Here the whole chain of causes is looked at, by class name and by the server's error
code, so that none of those libraries needs to be imported. Nothing secret reaches a message: users,
passwords, and queries of URIs are removed.
"""

import re
from collections.abc import Iterator
from typing import Literal

from clips.storage.names import redact, scheme

ErrorKind = Literal[
    "missing",
    "no_bucket",
    "no_credentials",
    "denied",
    "expired",
    "unreachable",
    "unsupported",
    "failed",
]

_ADVICE: dict[ErrorKind, tuple[str, str]] = {
    "missing": ("there is nothing at", "check the spelling"),
    "no_bucket": ("the bucket does not exist:", "check its name, and AWS_ENDPOINT_URL"),
    "no_credentials": ("no credentials for", ""),
    "denied": (
        "access denied to",
        "check the permissions (for a bucket, those of your credentials)",
    ),
    "expired": ("the credentials have expired for", "renew them"),
    "unreachable": ("cannot reach the storage of", "check the network, and AWS_ENDPOINT_URL"),
    "unsupported": ("cannot open", "use a local path, s3://, or install what fsspec asks for"),
    "failed": ("the storage failed on", "see the server's answer"),
}
_GOOGLE = "set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, or give the machine a role"
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
}


class StorageError(ValueError):
    """A place that cannot be read or written.

    Attributes:
        kind: What is wrong, one of a fixed set of words.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: ErrorKind = kind

    def __str__(self) -> str:
        return self.args[1]


def storage_error(kind: ErrorKind, uri: str, detail: str = "") -> StorageError:
    """Return the error for `uri`: what is wrong, the detail, and what to do."""
    what, advice = _ADVICE[kind]
    if kind == "no_credentials":
        advice = _CREDENTIALS.get(scheme(uri), "see its documentation")
    if scheme(uri) != "s3":
        advice = advice.replace(", and AWS_ENDPOINT_URL", "")
    return StorageError(
        kind, f"{what} {redact(uri)}" + (f" ({detail})" if detail else "") + f"; {advice}"
    )


def explained(error: Exception, uri: str) -> StorageError:
    """Return what a failure at `uri` means for people."""
    kind = _kind(error)
    clear = kind in ("missing", "no_bucket", "no_credentials", "expired")
    return storage_error(kind, uri, "" if clear else _detail(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _codes(error: BaseException) -> set[str]:
    """Return the servers' error codes and the class names of an error and its causes."""
    found: set[str] = set()
    for link in _chain(error):
        found.add(type(link).__name__)
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")))
        status = "status" if hasattr(link, "status") else "code"  # aiohttp's, or gcsfs's
        found.add(str(getattr(link, status, "")))
        if isinstance(link, OSError) and str(link).startswith("Forbidden: "):
            found.add("403")  # gcsfs says no more than that
        if "Anonymous caller" in str(link):
            found.add("NoCredentialsError")
    return found


_PASSING = {
    *("ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "BrokenPipeError"),
    *("EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError"),
    *("ReadTimeoutError", "ClientConnectorError", "ServerDisconnectedError", "ClientOSError"),
    *("ServerTimeoutError", "ConnectionTimeoutError", "SocketTimeoutError", "FSTimeoutError"),
    *("ProxyError", "ReadTimeout", "ConnectTimeout", "TooManyRequests", "408", "429"),
    *("ClientPayloadError", "IncompleteReadError"),
    *("ResponseStreamingError", "HTTPClientError", "TimeoutError", "RequestTimeout", "SlowDown"),
    *("InternalError", "ServiceUnavailable", "500", "502", "503", "504"),
}
_EXPIRED = {  # the server, or whoever gives out credentials, says that they were good once
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestExpired",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "RefreshError",
}
_UNKNOWN = {  # wrong from the start, or exchanged for others while we ran
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "DefaultCredentialsError",
}
_DENIED = {
    *_UNKNOWN,
    "AccessDenied",
    "PermissionError",
    "403",
    "401",
    "AllAccessDisabled",
}


def is_passing(error: BaseException) -> bool:
    """Return whether trying again may help: lost connections, time-outs, busy servers."""
    codes = _codes(error)
    return bool(codes & _PASSING) and not codes & (_EXPIRED | _NO_CREDENTIALS | _DENIED)


def refusal_of_credentials(error: BaseException) -> Literal["expired", "unknown"] | None:
    """Return whether new credentials may help: these have expired, or the server does not know them."""
    codes = _codes(error)
    return "expired" if codes & _EXPIRED else "unknown" if codes & _UNKNOWN else None


def is_past_the_end(error: BaseException) -> bool:
    """Return whether a range was asked for that begins at or after the end of the file."""
    return bool(_codes(error) & {"InvalidRange", "416"})


def hides_its_code(error: BaseException) -> bool:
    """Return whether S3 refused a HEAD request: its answer has no body, and so no code that says why."""
    return any(
        isinstance(response := getattr(link, "response", None), dict)
        and str(response.get("Error", {}).get("Code")) in ("400", "403")
        for link in _chain(error)
    )


def _kind(error: BaseException) -> ErrorKind:
    codes = _codes(error)
    if codes & _EXPIRED:
        return "expired"
    if codes & _NO_CREDENTIALS:
        return "no_credentials"
    if codes & _DENIED:
        return "denied"
    if "NoSuchBucket" in codes:
        return "no_bucket"
    if (
        codes & _PASSING
    ):  # before "missing": fsspec says that of a web server which cannot be reached
        return "unreachable"
    if codes & {"FileNotFoundError", "NoSuchKey", "404", "IsADirectoryError", "NotADirectoryError"}:
        return "missing"
    if codes & {"ImportError", "ModuleNotFoundError"} or (
        isinstance(error, ValueError) and "rotocol" in str(error)
    ):
        return "unsupported"
    return "failed"


def _detail(error: BaseException) -> str:
    """Return the first line of an error, with anything that looks like a URI's secrets removed."""
    text = (str(error).splitlines() or [""])[0][:200]
    text = re.sub(r"\w+://\S*[^\s\"'<>:;,.)]", lambda found: redact(found.group()), text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
