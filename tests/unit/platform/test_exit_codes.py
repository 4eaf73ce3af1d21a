"""How a job ends: whose mistake it was, and what is said about it."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tubelet import config
from tubelet.config import UserError


def run_job(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "job.py"
    script.write_text(
        "from tubelet import config\n"
        f"def main(arguments):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "config.run_main(main)\n"
    )
    path = [str(Path(config.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, str(script), "one", "two"],
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = run_job(tmp_path, "print('working'); raise config.UserError('videos: no such folder')")
    assert (done.returncode, done.stdout) == (2, "working\n")
    assert done.stderr == "error: videos: no such folder\n"


def test_a_bug_shows_its_traceback_and_one_closing_line_with_exit_code_1(tmp_path: Path) -> None:
    done = run_job(tmp_path, "int('x')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == (
        "error: ValueError: invalid literal for int() with base 10: 'x' "
        "(unexpected; traceback above)"
    )


def test_a_full_disk_is_no_bug(tmp_path: Path) -> None:
    done = run_job(tmp_path, "import os; raise OSError(28, os.strerror(28), '/data/run/log')")
    assert done.returncode == 3
    assert done.stderr == (
        "error: [Errno 28] No space left on device: '/data/run/log'; make room: what is done is kept, and the same "
        "command goes on from there\n"
    )


def test_a_full_disk_that_a_storage_error_hides_is_seen() -> None:
    body = "try:\n    raise OSError(28, 'No space left')\nexcept OSError as e:\n    raise ValueError('storage') from e"
    assert code_of(body, "clips.storage") == 3


def test_other_ends_keep_their_own_code(tmp_path: Path) -> None:
    assert run_job(tmp_path, "assert arguments == ['one', 'two']").returncode == 0
    assert run_job(tmp_path, "return 3").returncode == 3
    assert run_job(tmp_path, "raise SystemExit(75)").returncode == 75
    interrupted = run_job(tmp_path, "raise KeyboardInterrupt")
    assert interrupted.returncode == 75
    assert interrupted.stderr.startswith("interrupted; finished work stays")


def code_of(body: str, module: str) -> int:
    """The exit code for what ``body`` raises inside a module of that name."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(f"def fail():\n{textwrap.indent(textwrap.dedent(body), '    ')}", namespace)
    try:
        namespace["fail"]()
    except Exception as error:
        return config.exit_code(error)
    raise AssertionError("the body must raise")


@pytest.mark.parametrize(
    ("body", "module", "code"),
    [
        ("raise ValueError('data.stride is 0')", "clips.sampling", 2),
        ("raise ValueError('data.stride is 0')", "torch.nn", 1),
        ("int('x')", "clips.sampling", 1),
        ("a, b = [1]", "clips.sampling", 1),
        ("b'\\xff'.decode()", "clips.sampling", 1),
        ("raise RuntimeError('x')", "clips.sampling", 1),
        (
            "try:\n    int('x')\nexcept ValueError as e:\n    raise ValueError('y') from e",
            "tubelet.x",
            2,
        ),
        ("try:\n    int('x')\nexcept ValueError:\n    raise", "tubelet.x", 1),
    ],
)
def test_a_value_error_is_the_users_where_our_code_says_so_on_purpose(
    body: str, module: str, code: int
) -> None:
    assert code_of(body, module) == code


def test_value_errors_of_our_own_classes_are_the_users_even_without_a_traceback() -> None:
    own = {
        package: type("Wrong", (ValueError,), {"__module__": f"{package}.storage"})
        for package in ("tubelet", "clips", "videomae", "torch")
    }
    codes = {package: config.exit_code(kind("x")) for package, kind in own.items()}
    assert codes == {"tubelet": 2, "clips": 2, "videomae": 2, "torch": 1}
    wrapped = type("RayTaskError", (own["clips"],), {"__module__": "ray.exceptions"})
    assert config.exit_code(wrapped("x")) == 2
    assert config.exit_code(UserError("x")) == 2
    assert config.exit_code(ValueError("x")) == 1
