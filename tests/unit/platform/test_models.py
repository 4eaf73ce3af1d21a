"""Where ``model=`` leads: a run's folder, an export, all draws of a run, a registered model."""

from pathlib import Path

import pytest
import torch

from tubelet import handover, models, registry, tracking
from tubelet.config import UserError
from videomae import ModelConfig, build_classifier, build_pretraining

# MLflow's own use of SQLAlchemy and pandas.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)
NAMES = ("left", "right", "up")


def export(place: Path, *, seed: int = 0, stride: int = 4, names: tuple[str, ...] = NAMES) -> str:
    torch.manual_seed(seed)
    state = build_classifier(CONFIG, num_classes=3).state_dict()
    extra = {"stride": stride, "draw": seed}
    handover.write(str(place), state, CONFIG, extra=extra, class_names=names or None)
    return str(place)


def find(name: str | Path, folder: Path) -> list[models.Source]:
    return models.find(str(name), storage_root=str(folder / "store"), folder=folder)


def error_of(name: str | Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        find(name, folder)
    return str(caught.value)


def test_a_run_and_its_export_lead_to_the_same_model(tmp_path: Path) -> None:
    place = export(tmp_path / "run" / "export")
    for name in (tmp_path / "run", place, f"{place}/"):
        (found,) = find(name, tmp_path)
        assert (found.name, found.folder) == (str(name), place)
        assert (found.stride, found.views, found.crops) == (4, 1, 1)
        assert found.classes == NAMES


def test_a_run_of_several_draws_leads_to_all_of_them_in_order(tmp_path: Path) -> None:
    places = [export(tmp_path / "run" / "export" / f"draw_{n}", seed=n) for n in (1, 2, 10)]
    found = find(tmp_path / "run", tmp_path)
    assert [source.export.extra["draw"] for source in found] == [1, 2, 10]
    assert [source.folder for source in found] == [source.name for source in found] == places
    (one,) = find(places[1], tmp_path)
    assert one.folder == places[1]


def test_an_unfinished_draw_is_not_found(tmp_path: Path) -> None:
    first = export(tmp_path / "run" / "export" / "draw_1")
    second = export(tmp_path / "run" / "export" / "draw_2")
    Path(second, "config.json").unlink()  # it is written last
    assert [source.folder for source in find(tmp_path / "run", tmp_path)] == [first]


def test_classes_without_names_are_their_numbers(tmp_path: Path) -> None:
    (found,) = find(export(tmp_path / "run", names=()), tmp_path)
    assert found.classes == ("0", "1", "2")


def test_a_pretrained_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    state = build_pretraining(CONFIG).state_dict()
    handover.write(str(tmp_path / "run" / "export"), state, CONFIG, extra={})
    assert error_of(tmp_path / "run", tmp_path) == (
        f"{tmp_path / 'run'} is a pretrain model, which has no classes: "
        "fine-tune it first (jobs/finetune.py)"
    )


def test_a_place_without_a_model_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    for name in (tmp_path / "run", tmp_path / "missing"):
        assert error_of(name, tmp_path) == (
            f"{name} holds no model: name a finished fine-tuning run, its export folder, "
            "or models:/NAME@ALIAS"
        )


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose MLflow store, below ``store``, knows ``motion@champion``."""
    folder = tmp_path_factory.mktemp("registered")
    uri = tracking.resolve_uri(str(folder / "store"))
    (folder / "store").mkdir()
    run_id = tracking.start_run(
        uri,
        storage=str(folder / "store"),
        job="finetune",
        name="run",
        parameters={},
        recipe="",
        manifest="m",
        revision="r",
    )
    card = registry.Card(metrics={}, manifest="m", recipe="", lineage="random weights")
    registry.register(
        export(folder / "run" / "export", seed=5),
        uri=uri,
        name="motion",
        alias="champion",
        run_id=run_id,
        card=card,
        stride=2,
        views=5,
        crops=3,
    )
    return folder


def test_an_alias_leads_to_the_registered_weights_and_their_views(
    registered: Path, tmp_path: Path
) -> None:
    for name in ("models:/motion@champion", "models:/motion/1"):
        (found,) = models.find(name, storage_root=str(registered / "store"), folder=tmp_path)
        assert (found.stride, found.views, found.crops) == (2, 5, 3)
        assert (found.classes, found.export.extra["draw"]) == (NAMES, 5)
        assert Path(found.folder).is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/motion@chmpion", "model 'motion' has no alias 'chmpion'; there is champion"),
        ("models:/motion/7", "model 'motion' has no version 7; there is 1"),
        ("models:/moton@champion", "no model 'moton' is registered at sqlite:///"),
        ("models:/motion", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_unknown_name_alias_or_version_lists_those_there_are(
    registered: Path, name: str, message: str
) -> None:
    text = error_of(name, registered)
    assert message in text
    if "moton" in name:
        assert text.endswith("; there is motion")
