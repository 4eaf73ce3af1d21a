import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from tubelet import tracking
from tubelet.refusals import reason, refusal

IDENTITY = tracking.Identity("pretrain", "tiny", "/nowhere", key="k")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def failure(uri: str) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever MLflow makes of it)
        tracking.look(tracking.connect(uri), uri, IDENTITY)
    return caught.value


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def answers() -> Iterator[str]:
    """The address of a server that answers with the status that its path begins with."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"refuses us .*MLFLOW_TRACKING_USERNAME"),
        (403, r"refuses us .*MLFLOW_TRACKING_TOKEN"),
        (404, r"there is no MLflow at http://\*\*\*@127.*check host, port and path"),
        (400, r"failed \(.*check that it runs"),
    ],
)
def test_an_answer_that_will_be_the_same_in_an_hour_is_the_users_to_change(
    answers: str, status: int, words: str
) -> None:
    uri = f"{answers}/{status}"
    found = refusal(failure(uri), uri)
    assert found is not None
    assert "secret" not in str(found)
    with pytest.raises(tracking.TrackingError, match=words):
        raise found


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_in_trouble_may_answer_later(answers: str, status: int) -> None:
    uri = f"{answers}/{status}"
    assert refusal(failure(uri), uri) is None


def test_a_server_that_is_down_may_be_up_later() -> None:
    uri = "http://127.0.0.1:9"
    error = failure(uri)
    assert refusal(error, uri) is None
    assert reason(error) == "Connection refused"


def test_a_server_that_says_nothing_may_answer_later() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = failure(uri)
    assert refusal(error, uri) is None
    assert reason(error) == "no answer in time"


@pytest.mark.parametrize("uri", ["ftp://host/mlflow", "http://", "localhost:5000"])
def test_an_address_that_is_none_is_told(uri: str) -> None:
    with pytest.raises(tracking.TrackingError, match="which is no place of MLflow's: use http"):
        raise refusal(failure(uri), uri) or AssertionError("taken for an outage")


def test_a_file_that_cannot_be_opened_is_told_and_one_that_is_busy_waited_for(
    tmp_path: Path,
) -> None:
    """The errors are SQLAlchemy's own: MLflow asks for 100 s before it hands them on."""
    uri = f"sqlite:///{tmp_path}"
    found = refusal(sql_error(uri, "SELECT 1"), uri)
    with pytest.raises(tracking.TrackingError, match="unset that to log to a file"):
        raise found or AssertionError("taken for an outage")
    busy = f"sqlite:///{tmp_path}/busy.db?timeout=0"
    with create_engine(busy, poolclass=NullPool).connect() as writer:
        writer.execute(text("BEGIN EXCLUSIVE"))
        assert refusal(sql_error(busy, "CREATE TABLE t (x INTEGER)"), busy) is None


def sql_error(uri: str, statement: str) -> Exception:
    with (
        pytest.raises(OperationalError) as caught,
        create_engine(uri, poolclass=NullPool).connect() as connection,
    ):
        connection.execute(text(statement))
    return caught.value
