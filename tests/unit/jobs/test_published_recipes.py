"""Each published run has a recipe, and each recipe says what was published: sizes, steps, rates, batches, views."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from published import (
    CLASSES,
    FINETUNED,
    FINETUNING,
    PRETRAINED,
    PRETRAINING,
    ROWS,
    Finetuning,
    Pretraining,
)
from tubelet import config
from tubelet.ledger import Ledger
from tubelet.loops.finetune import build
from tubelet.recipes import Finetune, Pretrain
from tubelet.schedules import cosine, effective_lr
from videomae import build_pretraining

RECIPES = Path(__file__).resolve().parents[3] / "jobs" / "recipes"
OURS = "# not published, ours"


def test_there_is_a_file_for_every_row_and_none_without() -> None:
    for folder, table in (("pretrain", PRETRAINING), ("finetune", FINETUNING)):
        assert {path.stem for path in (RECIPES / folder).glob("*.y*ml")} == set(table)


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_is_as_published(name: str) -> None:
    row, recipe = PRETRAINING[name], config.load(Pretrain, [RECIPES / "pretrain" / f"{name}.yaml"])
    with torch.device("meta"):
        model = build_pretraining(recipe.model)
    assert sum(p.numel() for p in model.parameters()) == PRETRAINED[row.preset]
    assert (recipe.model.frames, recipe.model.image_size) == (16, 224)
    assert recipe.model.tokens == (2048 if row.preset == "vit_g" else 1568)
    assert (recipe.mask.kind, recipe.mask.ratio) == ("tube", row.ratio)
    decoder = "none" if row.decoder_ratio is None else "running_cell"
    assert (recipe.mask.decoder, recipe.mask.decoder_ratio) == (decoder, row.decoder_ratio or 0.5)
    clip = recipe.data.clip
    assert (clip.stride, clip.crop, clip.flip) == (row.stride, "multi_scale", False)
    assert (recipe.data.copies, clip.same_frames) == (row.copies, row.copies > 1)
    assert (recipe.optim.beta1, recipe.optim.beta2, recipe.optim.weight_decay) == (0.9, 0.95, 0.05)
    assert recipe.optim.clip_grad == row.clip_grad
    assert_steps_and_rates(recipe, row, floor=1e-5)


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_is_as_published(name: str) -> None:
    row, recipe = FINETUNING[name], config.load(Finetune, [RECIPES / "finetune" / f"{name}.yaml"])
    published, classes, width = FINETUNED[row.preset]
    with torch.device("meta"):
        model = build(recipe, CLASSES[row.data])
    expected = published + (CLASSES[row.data] - classes) * (width + 1)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert (recipe.model.frames, recipe.model.image_size) == (row.frames, row.size)
    clip = recipe.data.clip
    if row.data == "ssv2":
        assert (clip.sampling, clip.flip) == ("segments", False)
    else:
        span = row.stride * row.frames if row.frames == 16 else 64
        assert (clip.sampling, clip.flip) == ("window", True)
        assert clip.stride * recipe.model.frames == span
    assert (clip.crop, clip.rand_augment) == ("random_resized", "rand-m7-n4-mstd0.5-inc1")
    augment = recipe.augment
    assert (augment.erase, augment.mixup, augment.cutmix) == (0.25, 0.8, 1.0)
    assert (augment.mix_probability, augment.mix_switch) == (1.0, 0.5)
    assert (recipe.labels.smoothing, recipe.head.init_scale) == (0.1, 0.001)
    assert (recipe.optim.beta1, recipe.optim.beta2) == (0.9, 0.999)
    said = {
        "copies": (row.copies, recipe.data.copies),
        "drop_path": (row.drop_path, recipe.model.drop_path),
        "dropout": (row.dropout, recipe.head.dropout),
        "layer_decay": (row.layer_decay, recipe.optim.layer_decay),
        "weight_decay": (row.weight_decay, recipe.optim.weight_decay),
        "min_lr": (row.min_lr, recipe.optim.min_lr),
        "epochs": (row.epochs, recipe.schedule.epochs),
        "warmup_epochs": (row.warmup, recipe.schedule.warmup_epochs),
        "size": (row.batch, recipe.batch.size),
        "micro": (row.per_gpu, recipe.batch.micro),
    }
    for key, (there, here) in said.items():
        assert there in (None, here), key
        assert (there is None) == (OURS in line_of("finetune", name, key)), f"{key}: whose is it?"
    assert recipe.optim.clip_grad == row.clip_grad
    assert recipe.batch.micro * recipe.data.copies >= 2, "there is something to mix"
    assert_steps_and_rates(recipe, row, floor=recipe.optim.min_lr)


@pytest.mark.parametrize("name", FINETUNING)
def test_a_header_tests_with_the_published_views_and_names_the_figure(name: str) -> None:
    row, header = FINETUNING[name], header_of("finetune", name)
    assert re.search(rf"views={row.views[0]} crops={row.views[1]}\b", header)
    expected = "no figure" if row.top1 is None else f"top-1 {row.top1} "
    assert f"# Expected: {expected}" in header


@pytest.mark.parametrize(
    ("folder", "name"),
    [*(("pretrain", n) for n in PRETRAINING), *(("finetune", n) for n in FINETUNING)],
)
def test_a_header_says_what_it_is_how_it_is_run_and_where_its_figures_are_from(
    folder: str, name: str
) -> None:
    header = header_of(folder, name)
    for part in ("# VideoMAE", "# Hardware: ", "# Expected: ", "# Differences between paper and"):
        assert f"\n{part}" in f"\n{header}"
    assert f"jobs/{folder}.py jobs/recipes/{folder}/{name}.yaml" in header
    assert "Not run by us." in header.replace("\n#   ", " ")


def assert_steps_and_rates(
    recipe: Pretrain | Finetune, row: Pretraining | Finetuning, *, floor: float
) -> None:
    """Steps from rows, epochs and batch; the rate at the first step, its peak, half way down, and the last one."""
    batch, epochs = recipe.batch.size, recipe.schedule.epochs
    assert row.batch in (None, batch)
    assert row.epochs in (None, epochs)
    rows = ROWS[row.data]
    ledger = Ledger(rows=rows, epochs=epochs, batch=batch, micro_batch=recipe.batch.micro, seed=0)
    assert ledger.steps == math.ceil(epochs * rows / batch)
    assert ledger.units_per_step == batch / recipe.batch.micro
    warmup = round(recipe.schedule.warmup_epochs * rows / batch)
    options: dict[str, Any] = {
        "peak": recipe.optim.lr,
        "floor": recipe.optim.min_lr,
        "steps": ledger.steps,
        "warmup_steps": warmup,
    }
    assert recipe.optim.min_lr == floor
    least = effective_lr(floor, batch)
    peak = effective_lr(recipe.optim.lr, batch)
    if row.lr is not None:
        assert peak == pytest.approx(row.lr)
    half = warmup + (ledger.steps - warmup) // 2
    for step, rate in ((0, 0.0), (warmup, peak), (half, (peak + least) / 2)):
        got = effective_lr(cosine(step, **options), batch)
        assert got == pytest.approx(rate, rel=1e-2, abs=1e-12), step
    last = effective_lr(cosine(ledger.steps - 1, **options), batch)
    assert least <= last <= least + 1e-3 * peak


def line_of(folder: str, name: str, key: str) -> str:
    """The line that sets a key (of the last part of its name)."""
    lines = (RECIPES / folder / f"{name}.yaml").read_text().splitlines()
    (found,) = [line for line in lines if line.strip().startswith(f"{key}:")]
    return found


def header_of(folder: str, name: str) -> str:
    """The comment at the beginning."""
    text = (RECIPES / folder / f"{name}.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))
