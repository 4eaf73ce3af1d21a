"""Where ``head.init`` leads: named once by the driver, read by workers that know nothing of MLflow."""

from pathlib import Path

import fsspec
import pytest
import torch
from mlflow import MlflowClient

from clips import storage
from tubelet import handover, origins, registry, tracking
from tubelet.config import UserError, load
from tubelet.loops import finetune
from tubelet.recipes import Finetune
from videomae import ModelConfig, build_classifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]
CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_classifier(CONFIG, num_classes=3, init_scale=1.0).state_dict()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def start(root: Path, *, name: str = "tiny") -> str:
    return tracking.start_run(
        tracking.resolve_uri(str(root)),
        storage=str(root),
        job="finetune",
        name=name,
        parameters={"run.storage": str(root), "run.name": name},
        recipe="",
        manifest="m",
        revision="r",
    )


def register(root: Path, run_id: str, *, seed: int, name: str = "motion") -> None:
    handover.write(str(root / f"export{seed}"), weights(seed), CONFIG, extra={})
    registry.register(
        root / f"export{seed}",
        uri=tracking.resolve_uri(str(root)),
        name=name,
        alias="champion",
        run_id=run_id,
        card=registry.Card(metrics={}, manifest="m", recipe="", lineage="random weights"),
        stride=1,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run.storage`` with a finished run ``pretrain``, a model ``motion@champion``, and MLflow's store."""
    root = tmp_path_factory.mktemp("runs")
    run_id = start(root)
    register(root, run_id, seed=1)
    handover.write(str(root / "pretrain" / "export"), weights(7), CONFIG, extra={})
    (root / "pretrain" / "run.json").write_text("{}")
    return root


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker is, that cannot reach it."""
    monkeypatch.setattr(tracking, "connect", None)
    monkeypatch.setattr(registry, "connect", None)


def test_a_run_is_found_by_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert origins.settle("pretrain", root=str(root)) == "pretrain"
    assert equal(origins.read("pretrain", root=str(root)), weights(7))


def test_a_relative_place_is_made_absolute_since_workers_stand_elsewhere(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(root)
    for place, whole in (
        ("pretrain", "pretrain"),  # a folder of this name is here
        ("./pretrain/export", "pretrain/export"),
        ("pretrain/export/model.safetensors", "pretrain/export/model.safetensors"),
    ):
        settled = origins.settle(place, root="/nowhere")
        assert settled == str(root / whole)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(tmp_path)
            assert equal(origins.read(settled, root="/nowhere"), weights(7))


def test_an_alias_becomes_its_version_and_stays_that_when_the_alias_moves(root: Path) -> None:
    run_id = start(root)
    register(root, run_id, seed=1, name="moving")
    first = origins.settle("models:/moving@champion", root=str(root))
    register(root, run_id, seed=2, name="moving")
    second = origins.settle("models:/moving@champion", root=str(root))
    assert (first, second) == ("models:/moving/1", "models:/moving/2")
    assert equal(origins.read(first, root=str(root)), weights(1))
    assert equal(origins.read(second, root=str(root)), weights(2))


def test_the_recipe_of_a_run_names_the_version(root: Path) -> None:
    recipe = load(Finetune, [], ["head.init=models:/motion@champion", f"run.storage={root}"])
    settled = finetune.settled(recipe, "models:/motion@champion")
    assert settled.head.init == "models:/motion/1"


def test_workers_read_a_registered_model_from_the_runs_storage(
    root: Path, request: pytest.FixtureRequest
) -> None:
    settled = origins.settle("models:/motion/1", root=str(root))
    request.getfixturevalue("without_mlflow")
    assert equal(origins.read(settled, root=str(root)), weights(1))
    taken = {path.name for path in (root / "imports" / "models" / "motion" / "1").iterdir()}
    assert taken == {"model.safetensors", "config.json"}  # and none of the model's code


def test_a_copy_in_a_bucket_is_complete_or_not_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.resolve_uri(str(root)))
    bucket = "memory://bucket/runs"
    settled = origins.settle("models:/motion@champion", root=bucket)
    place = origins.place_of(settled, root=bucket)
    assert equal(origins.read(settled, root=bucket), weights(1))
    storage.remove(f"{place}/config.json")  # as a killed driver leaves it
    origins.settle("models:/motion@champion", root=bucket)
    assert equal(origins.read(settled, root=bucket), weights(1))


@pytest.mark.parametrize("form", ["folder", "safetensors", "pth"])
def test_an_artifact_of_a_run_is_taken(form: str, root: Path, tmp_path: Path) -> None:
    run_id = start(root)
    client = MlflowClient(tracking.resolve_uri(str(root)))
    handover.write(str(tmp_path / "made"), weights(3), CONFIG, extra={})
    torch.save({"model": weights(3)}, tmp_path / "made" / "checkpoint.pth")
    (tmp_path / "made" / "huge.bin").write_bytes(b"not asked for")
    client.log_artifacts(run_id, str(tmp_path / "made"), "deep/er")
    end = {"folder": "", "safetensors": "/model.safetensors", "pth": "/checkpoint.pth"}[form]
    settled = origins.settle(f"runs:/{run_id}/deep/er{end}", root=str(root))
    assert settled == f"runs:/{run_id}/deep/er{end}"
    assert equal(origins.read(settled, root=str(root)), weights(3))
    assert not list((root / "imports").rglob("huge.bin"))


def test_a_run_of_ours_leads_to_its_own_export(root: Path) -> None:
    run_id = start(root, name="pretrain")
    for asked in (f"runs:/{run_id}/export", f"runs:/{run_id}"):
        settled = origins.settle(asked, root=str(root))
        assert settled == str(root / "pretrain" / "export")


def error_of(init: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        finetune.settled(load(Finetune, [], [f"run.storage={root}"]), init)
    return str(caught.value)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("models:/motion@chmp", "model 'motion' has no alias 'chmp'; there is champion"),
        ("models:/motion/9", "model 'motion' has no version 9; there is 1"),
        ("models:/moton@champion", "; there is mo"),
        ("models:/motion", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("runs:/0123/export", "has no run '0123'"),
        ("runs:/0123/../../export", "goes down, never up"),
        ("pretrian", "no run of this name in {root}, and no such file; there is pretrain"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(root: Path, init: str, message: str) -> None:
    text = error_of(init, root)
    assert text.startswith(f"head.init: {init}: ")
    assert message.format(root=root) in text


def test_a_missing_artifact_is_named_with_its_neighbours(root: Path) -> None:
    run_id = start(root)
    client = MlflowClient(tracking.resolve_uri(str(root)))
    client.log_text(run_id, "x", "export/other.txt")
    assert error_of(f"runs:/{run_id}/export", root) == (
        f"head.init: runs:/{run_id}/export: run {run_id} has no export/config.json and no export/model.safetensors "
        "among its artifacts; in export there is export/other.txt; name a folder with model.safetensors and "
        "config.json, or a .safetensors or .pth file"
    )
