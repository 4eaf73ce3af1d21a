"""Run the scripts of ``jobs/`` as a user does, several in one process: starting one takes seconds, a mistake none.

As a script (``python jobs.py CASES.json RESULTS.json``) it runs every case as ``python jobs/X.py ARGUMENTS`` would:
same module name, same arguments, same exit; descriptors 1 and 2 are files. ``run_jobs`` starts that script.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str
    seconds: float
    ray: bool
    """Whether Ray was running at its end."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with our packages on the path and one thread."""
    shelves = os.pathsep.join(str(ROOT / shelf) for shelf in ("platform", "models", "datasets"))
    ours = {
        "PYTHONPATH": shelves,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return {**os.environ, **ours, **more}


def run_jobs(
    cases: Mapping[str, Sequence[str]],
    *,
    cpus: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Ended]:
    """Run jobs one after another in one process, in the repository's root.

    Args:
        cases: by name: the job without folder and ending (or the path of another script), then its arguments.
        cpus: start a Ray of so many CPUs first, which the jobs then find running.
        variables: of the environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "cases.json"), Path(folder, "results.json")
        asked.write_text(
            json.dumps({"cpus": cpus, "cases": {n: list(c) for n, c in cases.items()}})
        )
        try:
            done = subprocess.run(
                [sys.executable, __file__, str(asked), str(answered)],
                cwd=ROOT,
                env=environment(**(variables or {})),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            ended = answered.read_text() if answered.exists() else "none"
            raise AssertionError(f"stuck after {_TIMEOUT_S} s; what had ended: {ended}") from error
        assert done.returncode == 0, done.stderr
        results = json.loads(answered.read_text())
    return {name: Ended(**result) for name, result in results.items()}


def _run(script: str, arguments: list[str], folder: Path) -> dict[str, object]:
    files = [folder / "out", folder / "err"]
    kept = [os.dup(1), os.dup(2)]
    for stream, file in enumerate(files, start=1):
        with file.open("w") as opened:
            os.dup2(opened.fileno(), stream)
    sys.argv = [script if script.endswith(".py") else f"jobs/{script}.py", *arguments]
    started = time.monotonic()
    code: object = "none: run_main always exits"
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    finally:
        seconds = time.monotonic() - started
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, stream)
            os.close(descriptor)
    out, err = (file.read_text() for file in files)
    ray = sys.modules.get("ray")
    running = ray is not None and ray.is_initialized()
    return {"code": code, "out": out, "err": err, "seconds": seconds, "ray": running}


def _main(asked: str, answered: str) -> None:
    given = json.loads(Path(asked).read_text())
    if given["cpus"]:
        import ray

        ray.init(num_cpus=given["cpus"], include_dashboard=False, object_store_memory=256 << 20)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (script, *arguments) in given["cases"].items():
            results[name] = _run(script, arguments, Path(folder))
            Path(answered).write_text(json.dumps(results))


if __name__ == "__main__":
    _main(*sys.argv[1:])
