"""The fine-tuning task: layer rates, losses, sums over held-out clips, fresh models, starting weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clips import Manifest, write_manifest
from clips.synthetic import CLASSES as DIRECTIONS
from tubelet import handover
from tubelet.config import UserError, load
from tubelet.feed import Unit
from tubelet.loops import finetune
from tubelet.loops.finetune import Classifying
from tubelet.recipes import Finetune
from tubelet.run_directory import Attempt, RunDirectory
from tubelet.session import Session
from videomae import (
    ModelConfig,
    VideoClassifier,
    build_classifier,
    build_pretraining,
    load_export,
    normalise,
)

CLASSES = ("down", "left", "right", "up")
OVERRIDES = (
    "model.preset=tiny",
    "model.frames=4",
    "model.image_size=16",
    "model.depth=3",
    "batch.size=8",
    "batch.micro=4",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)
MODEL = load(Finetune, [], OVERRIDES).model


class Logits(nn.Module):
    """A classifier whose answer is known: the given logits, whatever it sees."""

    def __init__(self, logits_BK: Tensor) -> None:
        super().__init__()
        self.logits_BK = logits_BK
        self.seen_BCTHW = torch.empty(0)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        self.seen_BCTHW = clips_BCTHW
        return self.logits_BK


def recipe(*overrides: str) -> Finetune:
    return load(Finetune, [], [*OVERRIDES, *overrides])


def task(*overrides: str, folder: Path = Path("/nowhere")) -> Classifying:
    def unused(*arguments: Any) -> Any:
        raise AssertionError("a task neither reports nor asks whether to stop")

    session = Session(
        run=RunDirectory(str(folder)),
        attempt=Attempt(1, 0, None, 1, "test"),
        feed=None,  # type: ignore[arg-type]  # what feeds the loop is the loop's business
        mesh=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        report=unused,
        stop_requested=unused,
    )
    return Classifying(recipe(*overrides), CLASSES, session)


def unit(labels: list[int], valid: list[int]) -> Unit:
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (len(labels), 4, 16, 16, 3), dtype=np.uint8)
    return Unit(
        number=0,
        frames_BTHWC=torch.from_numpy(frames),
        valid_B=torch.tensor(valid, dtype=torch.float32),
        label_B=torch.tensor(labels),
    )


# --- layer-wise decay ------------------------------------------------------------------------------


def test_layer_rates_of_vit_b_are_those_of_the_authors() -> None:
    config = load(Finetune, [], ["model.preset=vit_b", "optim.layer_decay=0.75"])
    with torch.device("meta"):
        model = build_classifier(config.model, num_classes=400)
    scales = dataclasses.replace(task(), recipe=config).learning_rate_scales(model)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    published = {  # reference/videomae.md 2.4
        "patch_embed.proj.weight": 0.0238,
        "patch_embed.proj.bias": 0.0238,
        "blocks.0.attn.qkv.weight": 0.0317,
        "blocks.0.norm1.bias": 0.0317,
        "blocks.11.mlp.fc2.weight": 0.75,
        "fc_norm.weight": 1.0,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    for name, value in published.items():
        assert scales[name] == pytest.approx(value, abs=5e-5), name
    for block in range(12):
        inside = {scale for name, scale in scales.items() if name.startswith(f"blocks.{block}.")}
        assert inside == {0.75 ** (12 - block)}


def test_without_layer_decay_all_parameters_learn_at_one_rate() -> None:
    made = task()
    assert made.learning_rate_scales(made.build(0)) == {}


@pytest.mark.parametrize(
    ("name", "layer"),
    [("patch_embed.proj.bias", 0), ("blocks.0.norm1.weight", 1), ("blocks.11.attn.q_bias", 12)]
    + [(name, 13) for name in ("norm.weight", "fc_norm.bias", "head.weight")],
)
def test_a_parameters_layer_is_read_off_its_name(name: str, layer: int) -> None:
    assert finetune.layer_of(name, depth=12) == layer


# --- losses ----------------------------------------------------------------------------------------


def test_label_smoothing_is_torchs_written_out() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    batch = unit([2, 0, 3], [1, 1, 1])
    model = Logits(logits)
    losses = task("labels.smoothing=0.1").losses(model, batch)
    for b, label in enumerate([2, 0, 3]):
        wanted = torch.full((4,), 0.1 / 4)
        wanted[label] += 0.9
        by_hand = -(wanted * logits[b].log_softmax(0)).sum()
        torch.testing.assert_close(losses[b], by_hand)
    torch.testing.assert_close(model.seen_BCTHW, normalise(batch.frames_BTHWC))
    plain = task("labels.smoothing=0.0").losses(model, batch)
    torch.testing.assert_close(plain, F.cross_entropy(logits, batch.label_B, reduction="none"))
    assert (losses != plain).all()


def test_the_loss_stays_float32_when_the_model_answers_in_bfloat16() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    losses = task().losses(Logits(logits.bfloat16()), unit([1, 2], [1, 1]))
    assert losses.dtype == torch.float32


def test_padding_without_a_label_has_a_finite_loss() -> None:
    losses = task().losses(Logits(torch.zeros(2, 4)), unit([1, -1], [1, 0]))
    assert torch.isfinite(losses).all()


def test_held_out_sums_count_only_valid_labelled_clips() -> None:
    logits = torch.tensor([[5.0, 0, 0, 0], [5, 0, 0, 0], [0, 5, 0, 0], [9, 0, 0, 0], [0, 0, 0, 7]])
    batch = unit([0, 1, 1, -1, 3], [1, 1, 0, 1, 1])
    sums = task("labels.smoothing=0.3").held_out(Logits(logits), batch)
    counted = [0, 1, 4]  # 2 could not be decoded, 3 has no label
    wanted = F.cross_entropy(logits[counted], torch.tensor([0, 1, 3]), reduction="sum")
    torch.testing.assert_close(sums["loss"], wanted)  # held-out loss is not smoothed
    assert sums["top1"] == 2
    assert sums["clips"] == 3


def test_a_unit_that_holds_nothing_adds_nothing() -> None:
    sums = task().held_out(Logits(torch.ones(2, 4)), unit([-1, 0], [1, 0]))
    assert {name: float(value) for name, value in sums.items()} == {
        "loss": 0.0,
        "top1": 0.0,
        "clips": 0.0,
    }


# --- fresh models ----------------------------------------------------------------------------------


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_draws_weights_depend_on_the_seed_and_the_draw_alone() -> None:
    first = task("run.seed=3").build(1)
    torch.manual_seed(12345)
    assert same(first, task("run.seed=3").build(1))
    assert not same(first, task("run.seed=3").build(0))
    assert not same(first, task("run.seed=4").build(1))


def test_draws_from_one_encoder_share_it_and_differ_in_the_head(tmp_path: Path) -> None:
    encoder = pretrained(tmp_path)
    made = task(f"head.init={tmp_path}")
    first, second = made.build(0), made.build(1)
    assert isinstance(first, VideoClassifier)
    assert isinstance(second, VideoClassifier)
    for model in (first, second):
        for name, value in model.state_dict().items():
            if not name.startswith(("head.", "fc_norm.")):
                assert torch.equal(value, encoder[f"encoder.{name}"]), name
    assert not torch.equal(first.head.weight, second.head.weight)
    assert len(made.blocks(first)) == MODEL.encoder.depth


def test_a_finished_draw_is_exported_with_all_that_prediction_needs(tmp_path: Path) -> None:
    made = task("labels.per_class=1", "labels.draws=2", "data.clip.stride=3", folder=tmp_path)
    state = made.build(1).state_dict()
    made.export(state, 1)
    found = load_export(tmp_path / "export" / "draw_2")
    assert not (tmp_path / "export" / "draw_1").exists()
    assert (found.kind, found.config, found.class_names) == ("classifier", MODEL, CLASSES)
    assert (found.extra["job"], found.extra["draw"], found.extra["stride"]) == ("finetune", 2, 3)
    assert all(torch.equal(found.state_dict[name], value) for name, value in state.items())
    assert finetune.exports(RunDirectory("/r"), 1) == ["/r/export"]
    assert finetune.exports(RunDirectory("/r"), 2) == ["/r/export/draw_1", "/r/export/draw_2"]


# --- starting weights ------------------------------------------------------------------------------


def pretrained(folder: Path, config: ModelConfig = MODEL) -> dict[str, Tensor]:
    torch.manual_seed(7)
    state = build_pretraining(config).state_dict()
    handover.write(str(folder), state, config, extra={})
    return state


def error_of(init: Path) -> str:
    with pytest.raises(UserError) as caught:
        finetune.load(build_classifier(MODEL, num_classes=4), str(init), root="/nowhere")
    return str(caught.value)


def test_weights_of_another_width_are_named_with_both_shapes(tmp_path: Path) -> None:
    pretrained(tmp_path, dataclasses.replace(MODEL, width=48))
    text = error_of(tmp_path)
    assert text.startswith(
        f"head.init: {tmp_path}: the weights do not fit the model of preset tiny"
    )
    assert "encoder.blocks.0.norm1.weight is [48], the model has [96]" in text


def test_weights_of_another_depth_are_named(tmp_path: Path) -> None:
    pretrained(tmp_path / "short", dataclasses.replace(MODEL, depth=2))
    assert "missing blocks.2.norm1.weight, [96]" in error_of(tmp_path / "short")
    pretrained(tmp_path / "long", dataclasses.replace(MODEL, depth=4))
    assert "unknown encoder.blocks.3.norm1.weight, [96]" in error_of(tmp_path / "long")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.safetensors", b"\x00" * 20, "not a readable safetensors file"),
        ("weights.pth", b"no torch file", "weights.pth"),
        ("weights.npz", b"numbers", "neither an export folder"),
        ("missing.pth", None, "no such file"),
        ("missing", None, "neither an export folder (model.safetensors and config.json)"),
    ],
)
def test_what_holds_no_weights_is_the_users_mistake_and_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    text = error_of(tmp_path / name)
    assert text.startswith(f"head.init: {tmp_path / name}: ")
    assert words in text


def test_a_half_written_export_is_the_users_mistake_and_named(tmp_path: Path) -> None:
    pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors" in error_of(tmp_path)


# --- the job as a whole ----------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    """24 training videos, 3 of each direction, and 8 held-out ones (nobody opens them here)."""
    rows = [
        {
            "video_id": f"{number:02d}.mp4",
            "size": 1,
            "label": DIRECTIONS[number % 8],
            "split": "train" if number < 24 else "val",
        }
        for number in range(32)
    ]
    uri = str(tmp_path / "manifest.parquet")
    write_manifest(Manifest.build(rows, root=str(tmp_path)), uri)
    return uri


@pytest.fixture
def of(manifest: str) -> Callable[..., Finetune]:
    return lambda *more: recipe(f"data.manifest={manifest}", "run.name=test", *more)


def test_a_job_tells_what_it_will_do_before_it_starts(
    of: Callable[..., Finetune], tmp_path: Path
) -> None:
    pretrained(tmp_path / "encoder")
    made = finetune.job(
        of(
            "labels.per_class=2",
            "labels.draws=3",
            "optim.lr=0.032",
            f"head.init={tmp_path / 'encoder'}",
        )
    )
    assert made.notes["labels"] == "16 videos of 8 classes in each of 3 draws"
    assert made.notes["learning rate"] == "0.001 at its peak"
    start = made.notes["starts from"]
    assert start.startswith(f"{tmp_path / 'encoder'} (loaded ")
    assert "fresh: fc_norm.weight, fc_norm.bias, head.weight, head.bias; not used: " in start
    assert made.plan.ledger.steps == 3 * 4  # 2 epochs of 16 videos in batches of 8
    assert len({tuple(rows[np.arange(len(rows))]) for rows in made.plan.rows}) == 3
    assert finetune.job(of()).notes["starts from"] == "random weights"


def test_too_few_labels_of_a_class_are_named(of: Callable[..., Finetune], manifest: str) -> None:
    with pytest.raises(UserError) as caught:
        finetune.job(of("labels.per_class=4"))
    assert str(caught.value) == (
        "labels.per_class: 4 labels per class were asked for, but class 'down' has 3 rows; "
        f"the manifest is {manifest}"
    )
