"""Whose fault a failure of MLflow is, and how to say so without telling secrets.

A server that does not answer may do so later: training goes on, and what it has to tell waits. An
address that leads nowhere, or an account that may not write, will be as wrong in an hour: that is
the user's mistake, and ends the start of a run with words about what to set.
"""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from tubelet.config import UserError

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# An "@" ends the userinfo if nothing before it is a path, or if a ":" (user:secret) precedes it:
# pasted secrets contain "/".
_USERINFO = re.compile(r"(://)(?:[^\s/@'\",]+|[^\s/@:'\",]*:[^\s'\",]*)@")
_QUERY = re.compile(r"(://[^\s?'\",]*)\?[^\s'\",]+")
_STATUS = re.compile(r"failed with error code (\d{3})")


class TrackingError(UserError):
    """MLflow cannot be used as asked; the message says what to set."""


def redact(text: str) -> str:
    """The text with the user name, password and query of every URI in it replaced by `***`."""
    return _QUERY.sub(r"\1?***", _USERINFO.sub(r"\1***@", text))


def refusal(error: Exception, uri: str) -> TrackingError | None:
    """What the user has to change; None when the server does not answer now, and may later."""
    if isinstance(error, TrackingError):
        return error
    where, said = redact(uri), first_line(error)
    scheme, host = urlsplit(uri).scheme, urlsplit(uri).hostname
    known = ("http", "https", "file", *DATABASES)
    if scheme.split("+")[0] not in known or (scheme.startswith("http") and not host):
        return TrackingError(
            f"MLFLOW_TRACKING_URI is {where}, which is no place of MLflow's: use http(s)://host:port, "
            "sqlite:////path/mlflow.db or postgresql://..., or unset it to log to a file under run.storage"
        )
    status = _http_status(error)
    if status in (401, 403):
        return TrackingError(
            f"MLflow at {where} refuses us ({said}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to an account that may write there"
        )
    if status == 404:
        return TrackingError(
            f"there is no MLflow at {where} ({said}): check host, port and path in MLFLOW_TRACKING_URI"
        )
    if _is_outage(error):
        return None
    return TrackingError(
        f"MLflow at {where} failed ({said}): check that it runs and that "
        "MLFLOW_TRACKING_URI names it, or unset that to log to a file under run.storage"
    )


def reason(error: BaseException) -> str:
    """Why there was no answer, in a few words."""
    chain = list(_causes(error))
    if any(isinstance(each, TimeoutError) for each in chain):
        return "no answer in time"
    told = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    return redact(told[-1]) if told else first_line(chain[-1])


def first_line(error: BaseException) -> str:
    """The first line of what an error says, redacted."""
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])


def _is_outage(error: Exception) -> bool:
    import requests.exceptions
    from sqlalchemy.exc import OperationalError

    mistakes = (  # made by requests itself, before or while it connects
        requests.exceptions.SSLError,
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
    )
    for each in _causes(error):
        if isinstance(each, requests.exceptions.RequestException):
            return not isinstance(each, mistakes)
        if isinstance(each, OperationalError):
            return "unable to open" not in str(each)
    return (_http_status(error) or 0) >= 500


def _http_status(error: Exception) -> int | None:
    """Status of the answer, if there was one that MLflow did not take."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return error.get_http_status_code()
    found = _STATUS.search(str(error)) if isinstance(error, MlflowException) else None
    return int(found[1]) if found else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
