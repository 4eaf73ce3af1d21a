"""infra/bootstrap.sh with made-up interpreters on PATH: what it says, picks, and does again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "bootstrap.sh"
TOOLS = ("sh", "cat", "cksum", "dirname", "mkdir", "rm", "cp")

# Runs the real interpreter under a false version; "-m venv" makes a folder of further stand-ins.
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
    echo "venv $0" >>calls
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    cp uv .venv/bin/uv ;;
"-m pip") echo "pip" >>calls ;;
*) exec {real} -c 'import sys
sys.version_info = ({version})
{modules}
exec(sys.argv[1])' "$2" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>calls
[ ! -e broken ]
"""


class Checkout:
    """A folder with the script, and a PATH that holds only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "infra").mkdir()
        shutil.copy(SCRIPT, folder / "infra")
        (folder / "pyproject.toml").write_text("[project]\n")
        (folder / "constraints.txt").write_text("a==1\n")
        self.program("uv", UV)
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path is not None
            self.program(f"bin/{tool}", f'#!/bin/sh\nexec {path} "$@"\n')

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def python(self, name: str, version: str, *, venv: bool = True) -> None:
        modules = "" if venv else 'sys.modules["ensurepip"] = None'
        text = PYTHON.format(real=sys.executable, version=version, modules=modules)
        self.program(f"bin/{name}", text)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "infra/bootstrap.sh"],
            cwd=self.folder,
            env={"PATH": str(self.folder / "bin"), "HOME": str(self.folder), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_any_python_the_one_line_names_python3(checkout: Checkout) -> None:
    done = checkout.run()
    assert done.returncode == 2
    assert done.stderr == (
        "error: python3 does not run; install the package python3 (3.11 to 3.13)\n"
    )


def test_a_python_that_is_too_old_is_named_with_its_version(checkout: Checkout) -> None:
    checkout.python("python3", "3, 9, 18")
    done = checkout.run()
    assert done.returncode == 2
    assert done.stderr == (
        "error: python3 is Python 3.9, and 3.11 to 3.13 is needed; "
        "install a newer python3 or set PYTHON=\n"
    )
    assert checkout.calls() == []


def test_a_python_that_is_too_new_is_not_taken(checkout: Checkout) -> None:
    checkout.python("python3", "3, 14, 0")
    assert "python3 is Python 3.14, and 3.11 to 3.13 is needed" in checkout.run().stderr


def test_a_missing_venv_module_is_one_line_that_names_the_package(checkout: Checkout) -> None:
    checkout.python("python3", "3, 11, 2", venv=False)
    done = checkout.run()
    assert done.returncode == 2
    assert done.stderr == (
        "error: python3 has no venv module with pip; "
        "install the package python3.11-venv (python3-venv)\n"
    )


def python_of(calls: list[str]) -> str:
    return Path(calls[0].removeprefix("venv ")).name


@pytest.mark.parametrize(
    ("prepare", "chosen"),
    [
        (lambda c: c.python("python3.13", "3, 13, 0"), "python3.13"),
        (lambda c: c.python("python3.13", "3, 13, 0", venv=False), "python3.12"),
        (lambda c: c.program("bin/python3.13", "#!/bin/sh\nexit 127\n"), "python3.12"),
    ],
    ids=["newest", "newest with venv", "a shim with nothing behind it"],
)
def test_the_newest_python_that_really_runs_is_taken(
    checkout: Checkout, prepare: Callable[[Checkout], None], chosen: str
) -> None:
    checkout.python("python3", "3, 11, 2")
    checkout.python("python3.12", "3, 12, 1")
    prepare(checkout)
    assert checkout.run().returncode == 0
    assert python_of(checkout.calls()) == chosen


def test_an_interpreter_can_be_asked_for(checkout: Checkout) -> None:
    checkout.python("python3.13", "3, 13, 0")
    checkout.python("mine", "3, 11, 2")
    assert checkout.run(PYTHON="mine").returncode == 0
    assert python_of(checkout.calls()) == "mine"


def test_the_first_call_installs_in_order_and_the_second_nothing(checkout: Checkout) -> None:
    checkout.python("python3", "3, 11, 2")
    done = checkout.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.calls()[1:] == [
        "pip",
        "uv pip install --require-hashes --requirements constraints.txt",
        "uv pip install --no-deps --no-build-isolation --editable .",
    ]
    again = checkout.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.calls() == []


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again_into_the_same_environment(
    checkout: Checkout, file: str
) -> None:
    checkout.python("python3", "3, 11, 2")
    checkout.run()
    checkout.calls()
    (checkout.folder / file).write_text("changed\n")
    assert checkout.run().returncode == 0
    assert [call.split()[0] for call in checkout.calls()] == ["pip", "uv", "uv"]
    checkout.run()
    assert checkout.calls() == []


def test_a_broken_off_installation_goes_on_at_the_next_call(checkout: Checkout) -> None:
    checkout.python("python3", "3, 11, 2")
    (checkout.folder / "broken").touch()
    assert checkout.run().returncode != 0
    checkout.calls()
    (checkout.folder / "broken").unlink()
    assert checkout.run().returncode == 0
    assert [call.split()[0] for call in checkout.calls()] == ["pip", "uv", "uv"]


def test_an_environment_whose_python_has_gone_is_made_anew(checkout: Checkout) -> None:
    checkout.python("python3", "3, 11, 2")
    checkout.run()
    checkout.calls()
    os.remove(checkout.folder / ".venv/bin/python")
    assert checkout.run().returncode == 0
    assert checkout.calls()[0].startswith("venv")


def test_a_checkout_that_was_moved_installs_itself_again(
    checkout: Checkout, tmp_path: Path
) -> None:
    checkout.python("python3", "3, 11, 2")
    checkout.run()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    checkout.folder.rename(moved)
    checkout.folder = moved
    checkout.calls()
    assert checkout.run().returncode == 0
    assert "uv pip install --no-deps --no-build-isolation --editable ." in checkout.calls()
