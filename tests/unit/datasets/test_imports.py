import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_importing_clips_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, clips; heavy = {'ray', 'mlflow', 'tubelet', 'videomae', 'torch', 'av', 'decord', 'fsspec', "
        "'boto3', 's3fs'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            "PYTHONPATH": ":".join(
                str(ROOT / shelf) for shelf in ("platform", "models", "datasets")
            )
        },
    )
    assert done.stdout == "[]\n"
