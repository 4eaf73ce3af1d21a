"""``tubelet register``: what a finished run says of itself becomes the card of a registered model."""

import hashlib
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

import models_made
from tubelet import cli, registry, tracking
from tubelet.config import DONE, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run.storage`` with a pretraining run and a fine-tuned one that began there."""
    root = tmp_path_factory.mktemp("runs")
    models_made.leave_run(root, "pretrain", job="pretrain", mlflow_run_id="0123", manifest="b" * 64)
    run_id = models_made.start_run(root, eval_top1=0.75, train_loss=1.5)
    models_made.leave_run(root, "finetune", init="pretrain", mlflow_run_id=run_id)
    models_made.leave_run(root, "draws", draws=2, mlflow_run_id=run_id)
    return root


def test_a_finished_run_becomes_the_challenger_with_its_lineage_on_the_card(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli._command(["register", str(root / "finetune"), "name=motion", "views=3"]) == DONE
    assert capfd.readouterr().out == "models:/motion@challenger is version 1 now\n"
    uri = tracking.resolve_uri(str(root))
    assert registry.aliases("motion", uri=uri) == {"challenger": "1"}
    version = MlflowClient(uri).get_model_version("motion", "1")
    weights = (root / "pretrain" / "export" / "model.safetensors").read_bytes()
    assert version.tags["tubelet.lineage"] == (
        f"pretrain, pretrain run pretrain, MLflow run 0123, data manifest {'b' * 64}, "
        f"SHA-256 of its weights {hashlib.sha256(weights).hexdigest()}"
    )
    assert version.tags["tubelet.manifest"] == "a" * 64
    assert {n: v for n, v in version.tags.items() if not n.startswith("tubelet.")} == {
        "eval/top1": "0.75"
    }
    card = version.description or ""
    for part in ("| eval/top1 | 0.75 |", "| code revision | abc123 |", "  lr: 0.001", "Apache-2.0"):
        assert part in card


def test_one_draw_of_several_is_registered_when_it_is_chosen(root: Path) -> None:
    assert cli._command(["register", str(root / "draws"), "draw=2", "alias=second"]) == DONE
    uri = tracking.resolve_uri(str(root))
    assert registry.aliases("draws", uri=uri) == {"second": "1"}
    tags = MlflowClient(uri).get_model_version("draws", "1").tags
    assert not [name for name in tags if name.startswith("eval/")]  # those are of all draws


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        cli._command(["register", *arguments])
    return str(refused.value)


def test_what_cannot_be_registered_says_what_to_do(root: Path) -> None:
    assert "no RUN is named; usage: tubelet register RUN [key=value ...]" in error_of()
    assert "holds no run (no run.json; there is: " in error_of(str(root))
    text = error_of(str(root / "pretrain"))
    assert text.endswith(
        "is a pretrain run, whose model has no classes: fine-tune it first (jobs/finetune.py)"
    )
    text = error_of(str(root / "draws"))
    assert text.endswith(
        "holds 2 models, one for each draw of labels: choose one with draw=1 to draw=2"
    )
    (models_made.leave_run(root, "half", mlflow_run_id="1") / "finished.json").unlink()
    assert "is not finished: the command that started it" in error_of(str(root / "half"))
    untold = models_made.leave_run(root, "untold")
    assert "MLflow does not have the run of" in error_of(str(untold))
    assert "mlflow_run_id" not in json.loads((untold / "run.json").read_text())
