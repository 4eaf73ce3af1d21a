"""The shelves stay plain folders, and packages know only whom they may: docs/adr/0001."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELVES = ("platform", "models", "datasets")
PLAIN_FOLDERS = (*SHELVES, "jobs", "infra", "tests")

IMPORT_ALL = """
import importlib, pkgutil, sys
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if module.name not in {without}:
        importlib.import_module(module.name)
print(*sorted({strangers} & {{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("folder", PLAIN_FOLDERS)
def test_a_plain_folder_is_not_a_package(folder: str) -> None:
    found = ROOT / folder / "__init__.py"
    assert not found.exists(), f"{found} would hide another module named {folder}"


def test_no_folder_of_tests_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_module_hides_another() -> None:
    ours = {path.parent.name for shelf in SHELVES for path in (ROOT / shelf).glob("*/__init__.py")}
    assert ours == {"tubelet", "videomae", "clips"}
    ours |= {path.stem for path in (ROOT / "jobs").glob("*.py")}
    theirs = {name for name, owners in packages_distributions().items() if "tubelet" not in owners}
    assert ours & (set(sys.stdlib_module_names) | theirs) == set()


@pytest.mark.parametrize(
    ("package", "without", "strangers"),
    [
        ("videomae", (), {"clips", "tubelet", "ray", "mlflow", "fsspec", "av", "decord"}),
        ("clips", ("clips.pipeline",), {"videomae", "tubelet", "ray", "mlflow", "timm"}),
    ],
)
def test_a_lower_package_imports_alone(
    package: str, without: tuple[str, ...], strangers: set[str]
) -> None:
    code = IMPORT_ALL.format(package=package, without=without, strangers=strangers)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_only_membership_touches_rays_private_modules() -> None:
    touching = {
        path.relative_to(ROOT).as_posix()
        for shelf in SHELVES
        for path in (ROOT / shelf).rglob("*.py")
        for name in imported_names(path)
        if name.split(".")[0] == "ray" and any(part.startswith("_") for part in name.split("."))
    }
    assert {Path(file).parent.as_posix() for file in touching} <= {"platform/tubelet/membership"}


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_job_is_documented_and_defines_main_alone(job: Path) -> None:
    tree = ast.parse(job.read_text())
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert defined == ["main"]  # whatever travels to workers lives in a package
    assert ast.get_docstring(tree) is not None


def imported_names(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
