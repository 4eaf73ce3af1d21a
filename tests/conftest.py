"""Fixtures that more than one shelf uses."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from ceph import Gateway
    from whole_path import WholePath

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads spin for seconds under load

hypothesis.settings.register_profile("shared machine", deadline=None)  # load is no failure
hypothesis.settings.load_profile("shared machine")

PARTS = {  # what a test may need of the system: programs, any of which will do
    "ceph": ("radosgw",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "ffmpeg": ("ffmpeg",),
}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data beside the repository; its tests skip visibly without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def whole_path(tmp_path_factory: pytest.TempPathFactory) -> "WholePath":
    """Every job in turn on generated videos, once a session: what they printed and left."""
    from whole_path import walk

    return walk(tmp_path_factory.mktemp("whole_path"))


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """Path of a system program: ``require("chromium")``.

    Without it the test skips, or fails where TUBELET_REQUIRE names the part, as .ci/run has it.
    """

    def require(part: str) -> str:
        for program in PARTS[part]:
            if path := shutil.which(program):
                return path
        reason = f"needs {part}, and finds none of {', '.join(PARTS[part])} on PATH"
        if part in os.environ.get("TUBELET_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)

    return require


@pytest.fixture(scope="session")
def ceph(
    require: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator["Gateway"]:
    """A real S3 server on loopback, once a session; its `environment` leads other processes to it."""
    require("ceph")
    from ceph import running

    with running(tmp_path_factory.mktemp("ceph")) as gateway:
        yield gateway


@pytest.fixture
def object_store(ceph: "Gateway", monkeypatch: pytest.MonkeyPatch) -> Iterator["Gateway"]:
    """The S3 server, and this process's environment that leads to it; it may be killed."""
    from clips import storage

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_PAYER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    storage.forget_clients("s3")
    yield ceph
    if not ceph.runs:
        ceph.start()
    storage.forget_clients("s3")
