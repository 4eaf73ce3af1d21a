"""Fixtures that more than one shelf uses."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from whole_path import WholePath

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads spin for seconds under load

hypothesis.settings.register_profile("shared machine", deadline=None)  # load is no failure
hypothesis.settings.load_profile("shared machine")

PARTS = {  # what a test may need of the system: programs, any of which will do
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
