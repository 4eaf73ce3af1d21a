"""What must not be in the tree, and what the project's files promise each other."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400  # lines; a longer file tells more than one story

# Written in parts, so that this file does not name them either.
HOSTS = [
    r"\.".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("debian", "org"),
        ("ubuntu", "com"),
        ("anaconda", "org"),
        ("pytorch", "org/whl"),
    )
]
MACHINE = r"(?<![\w.])/(?:" + "|".join(("work", "root", "home")) + r")/\w"


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout, or no git: nothing lists the tracked files")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return found


def test_no_tracked_file_names_a_registrys_host(tracked: list[Path]) -> None:
    assert lines_with("|".join(HOSTS), tracked) == []


def test_no_tracked_file_names_a_path_of_somebodys_machine(tracked: list[Path]) -> None:
    assert lines_with(MACHINE, tracked) == []


def test_python_files_are_ascii_and_tell_one_story_each(tracked: list[Path]) -> None:
    sources = [path for path in tracked if path.suffix in (".py", ".sh", ".toml")]
    assert lines_with(r"[^\x00-\x7f]", sources) == []
    ours = [path for path in sources if "tests" not in path.relative_to(ROOT).parts]
    lengths = {path: len(path.read_text().splitlines()) for path in ours}
    assert {path.name: length for path, length in lengths.items() if length > LONGEST} == {}


def test_nothing_is_left_open_in_the_code(tracked: list[Path]) -> None:
    open_marks = "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"))
    sources = [path for path in tracked if path.suffix == ".py"]
    assert lines_with(rf"\b(?:{open_marks})\b", sources) == []


def test_constraints_pin_and_hash_every_requirement() -> None:
    text = (ROOT / "constraints.txt").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(pins) > 100
    assert [pin[:60] for pin in pins if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:", pin)] == []


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    direct = project["project"]["dependencies"] + [
        entry for group in groups.values() for entry in group if isinstance(entry, str)
    ]
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in direct}
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names - pinned == set()


def test_the_runtime_environment_sets_the_roots_and_nothing_the_driver_sets() -> None:
    environment = yaml.safe_load((ROOT / "infra/runtime_env.yaml").read_text())
    variables = environment["env_vars"]
    assert set(environment) == {"env_vars"}
    assert variables["PYTHONPATH"] == "platform:models:datasets"
    assert all(isinstance(value, str) for value in variables.values())
    driver = "".join(path.read_text() for path in (ROOT / "platform/tubelet").glob("cluster.py"))
    twice = [name for name in variables if f'"{name}"' in driver]
    assert twice == []  # Ray refuses a variable that the job and its driver both give


def test_pre_commit_hooks_need_nothing_but_the_environment() -> None:
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in settings["repos"]] == ["local"]
    assert {hook["language"] for hook in settings["repos"][0]["hooks"]} == {"system"}
