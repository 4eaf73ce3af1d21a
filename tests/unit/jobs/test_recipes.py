"""Every recipe that ships loads, can be built, and is what its header says."""

import math
import re
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from published import FINETUNING, PRETRAINING
from tubelet import config
from tubelet.ledger import Ledger
from tubelet.recipes import Finetune, Pretrain
from tubelet.sweep import space, trials
from tubelet.sweep.recipe import Sweep
from videomae import VideoClassifier, VideoMAE, build_classifier, build_pretraining

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "jobs" / "recipes"
STACKS: dict[str, list[tuple[type[Pretrain] | type[Finetune], list[str]]]] = {
    # file: every (schema, files from the lowest to this one) that it is used in
    "demo/pretrain.yaml": [(Pretrain, ["demo/pretrain.yaml"])],
    "demo/finetune_pretrained.yaml": [(Finetune, ["demo/finetune_pretrained.yaml"])],
    "demo/finetune_16_labels.yaml": [(Finetune, ["demo/finetune_16_labels.yaml"])],
    "demo/finetune_scratch.yaml": [(Finetune, ["demo/finetune_scratch.yaml"])],
    "demo/own_videos.yaml": [(Pretrain, ["demo/pretrain.yaml", "demo/own_videos.yaml"])],
    "demo/own_labels.yaml": [
        (Finetune, ["demo/finetune_pretrained.yaml", "demo/own_labels.yaml"]),
        (Finetune, ["demo/finetune_scratch.yaml", "demo/own_labels.yaml"]),
    ],
}
STACKS |= {f"pretrain/{n}.yaml": [(Pretrain, [f"pretrain/{n}.yaml"])] for n in PRETRAINING}
STACKS |= {f"finetune/{n}.yaml": [(Finetune, [f"finetune/{n}.yaml"])] for n in FINETUNING}
USES = [(name, schema, files) for name, stacks in STACKS.items() for schema, files in stacks]
IDS = [" + ".join(files) for _, _, files in USES]


T = TypeVar("T")


def load(schema: type[T], files: list[str]) -> T:
    return config.load(schema, [RECIPES / file for file in files])


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_recipe_is_tested() -> None:
    found = {str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.y*ml")}
    assert {file for file in found if not file.startswith("sweep/")} == set(STACKS)


@pytest.mark.parametrize("file", sorted((RECIPES / "sweep").glob("*.yaml")), ids=lambda f: f.name)
def test_a_sweep_that_ships_loads_with_its_recipes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # a sweep names its recipes from there
    sweep = config.load(Sweep, [file])
    recipe = trials.base(sweep)
    for dimension in space.dimensions(sweep.space):
        for value in dimension.values:
            trials.with_values(recipe, {dimension.key: value})


@pytest.mark.parametrize(("name", "schema", "files"), USES, ids=IDS)
def test_a_recipe_loads_and_its_model_can_be_built(
    name: str, schema: type[Pretrain] | type[Finetune], files: list[str]
) -> None:
    recipe = load(schema, files)
    assert recipe.run.name == Path(files[0]).stem
    assert recipe.schedule.warmup_epochs < recipe.schedule.epochs
    with torch.device("meta"):
        if isinstance(recipe, Pretrain):
            model = build_pretraining(recipe.model)
            assert isinstance(model, VideoMAE)
        else:
            model = build_classifier(recipe.model, num_classes=8)
            assert isinstance(model, VideoClassifier)
    assert parameters(model) > 0


@pytest.mark.parametrize("name", STACKS)
def test_a_recipe_begins_with_what_it_is(name: str) -> None:
    header = (RECIPES / name).read_text().splitlines()[0]
    assert re.match(r"# [A-Z].*", header), "the first line says what the recipe is for"


@pytest.mark.parametrize("name", STACKS)
def test_the_commands_in_a_header_name_files_that_exist(name: str) -> None:
    comments = [line for line in (RECIPES / name).read_text().splitlines() if line[:1] == "#"]
    for path in re.findall(r"\b(?:jobs|infra)/[\w/]+\.(?:py|yaml)\b", "\n".join(comments)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(("name", "schema", "files"), USES, ids=IDS)
def test_a_recipe_is_its_own_resolved_form(
    name: str, schema: type[Pretrain] | type[Finetune], files: list[str], tmp_path: Path
) -> None:
    recipe = load(schema, files)
    (tmp_path / "whole.yaml").write_text(config.to_yaml(recipe))
    assert config.load(schema, [tmp_path / "whole.yaml"]) == recipe


def test_the_demos_two_sides_differ_in_nothing_but_their_rates() -> None:
    pretrained = config.flatten(load(Finetune, ["demo/finetune_pretrained.yaml"]))
    scratch = config.flatten(load(Finetune, ["demo/finetune_scratch.yaml"]))
    own = {"run.name", "optim.lr", "optim.min_lr", "optim.layer_decay"}
    assert {key for key in pretrained if pretrained[key] != scratch[key]} <= own
    encoder = load(Pretrain, ["demo/pretrain.yaml"])
    assert load(Finetune, ["demo/finetune_pretrained.yaml"]).model == encoder.model


def test_vit_b_on_kinetics_400_has_steps_for_every_visit() -> None:
    recipe = load(Pretrain, ["pretrain/vit_b_k400.yaml"])
    ledger = Ledger(
        rows=240_436,
        epochs=recipe.schedule.epochs,
        batch=recipe.batch.size,
        micro_batch=recipe.batch.micro,
        seed=recipe.run.seed,
    )
    assert ledger.steps == math.ceil(800 * 240_436 / 2048) == 93_921
    assert ledger.units_per_step == 64  # the authors' 64 GPUs x 32
