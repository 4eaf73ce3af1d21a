"""The package stands alone: it must run wherever torch does."""

import subprocess
import sys
from pathlib import Path

MODELS = Path(__file__).resolve().parents[3] / "models"
FORBIDDEN = ("ray", "mlflow", "fsspec", "s3fs", "av", "decord", "clips", "tubelet", "matplotlib")


def test_import_pulls_in_nothing_of_the_cluster() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(MODELS)!r}); import videomae\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_exists_and_is_listed_once() -> None:
    import videomae

    assert len(set(videomae.__all__)) == len(videomae.__all__)
    assert all(hasattr(videomae, name) for name in videomae.__all__)
