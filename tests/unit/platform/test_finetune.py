"""The fine-tuning task: layer rates, losses, sums over held-out clips, fresh models, starting weights."""

import dataclasses
import functools
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
from tubelet.config import ConfigError, UserError, load
from tubelet.feed import Unit
from tubelet.loops import finetune
from tubelet.loops.finetune import Classifying
from tubelet.recipes import Finetune, HeadConfig, Pretrain
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
    made.export(state, 1, "", {})
    made.export(state, 1, "best", {"step": 7})
    best = load_export(tmp_path / "export" / "draw_2" / "best")
    assert (best.extra["step"], best.extra["sampling"]) == (7, "strided")
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
    model, head = build_classifier(MODEL, num_classes=4), HeadConfig(init=str(init))
    with pytest.raises(UserError) as caught:
        finetune.load(model, head, classes=CLASSES, root="/nowhere")
    return str(caught.value)


def test_weights_of_another_width_are_named_with_both_shapes(tmp_path: Path) -> None:
    pretrained(tmp_path, dataclasses.replace(MODEL, width=48))
    text = error_of(tmp_path)
    assert text.startswith(
        f"head.init: {tmp_path}: the weights do not fit the model of preset tiny"
    )
    assert "encoder.blocks.0.norm1.weight is [48], the model has [96]" in text
    assert text.endswith(
        "give the model the sizes that the weights have (model.preset and the fields that override it), "
        "or load what fits with head.match=any"
    )


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


@pytest.mark.parametrize(("classes", "word"), [(9, "more"), (3, "fewer")])
def test_a_head_of_other_classes_is_counted_and_needs_a_word(
    tmp_path: Path, classes: int, word: str
) -> None:
    state = build_classifier(MODEL, num_classes=classes).state_dict()
    handover.write(
        str(tmp_path), state, MODEL, extra={}, class_names=[f"c{i}" for i in range(classes)]
    )
    text = error_of(tmp_path)
    assert f"\n  head.weight is [{classes}, 96], the model has [4, 96]" in text
    assert text.endswith(
        f"its head has {classes} classes, {word} than the 4 of the data: head.match=body starts with a fresh head"
    )
    model = build_classifier(MODEL, num_classes=4)
    report = finetune.load(
        model, HeadConfig(init=str(tmp_path), match="body"), classes=CLASSES, root="/nowhere"
    )
    assert report.skipped == ("head.weight", "head.bias")
    assert torch.equal(model.fc_norm.weight, state["fc_norm.weight"])


def test_a_head_of_as_many_other_classes_is_told_by_their_names(tmp_path: Path) -> None:
    state = build_classifier(MODEL, num_classes=4).state_dict()
    theirs = ("down", "left", "out", "up")
    handover.write(str(tmp_path), state, MODEL, extra={}, class_names=theirs)
    assert error_of(tmp_path) == (
        f"head.init: {tmp_path}: its head has as many classes as the data, but others: class 2 is 'out' there and "
        "'right' here; head.match=body starts with a fresh head"
    )
    for match in ("body", "any"):
        model = build_classifier(MODEL, num_classes=4)
        fresh = model.head.weight.clone()
        other = HeadConfig(init=str(tmp_path), match=match)
        report = finetune.load(model, other, classes=CLASSES, root="/nowhere")
        assert report.skipped == ("head.weight", "head.bias")
        assert torch.equal(model.head.weight, fresh)
        assert torch.equal(model.fc_norm.weight, state["fc_norm.weight"])
    same = HeadConfig(init=str(tmp_path))
    report = finetune.load(
        build_classifier(MODEL, num_classes=4), same, classes=theirs, root="/nowhere"
    )
    assert report.missing == ()


def test_a_head_may_be_taken_class_by_class(tmp_path: Path) -> None:
    state = build_classifier(MODEL, num_classes=6).state_dict()
    theirs = ("out", *reversed(CLASSES), "in")
    handover.write(str(tmp_path), state, MODEL, extra={}, class_names=theirs)
    model = build_classifier(MODEL, num_classes=4)
    by_name = HeadConfig(init=str(tmp_path), match="classes")
    assert finetune.load(model, by_name, classes=CLASSES, root="/nowhere").missing == ()
    for number, name in enumerate(CLASSES):
        assert torch.equal(model.head.weight[number], state["head.weight"][theirs.index(name)])
        assert model.head.bias[number] == state["head.bias"][theirs.index(name)]
    with pytest.raises(UserError) as caught:
        finetune.load(model, by_name, classes=("hop", *CLASSES[1:]), root="/nowhere")
    assert str(caught.value) == (
        f"head.init: {tmp_path}: head.match=classes takes the head's rows by name, and of 4 classes of the data it has "
        "none for 1 ('hop'): name the classes alike, or start with a fresh head by head.match=body"
    )


def test_an_authors_file_starts_a_run_with_its_logits(shared: Path) -> None:
    """``finetune.pth`` of the authors' code, through the recipe: head.init and nothing else."""
    folder = shared / "peers" / "official"
    made = recipe(
        f"head.init={folder / 'finetune.pth'}",
        "model.frames=16",
        "model.image_size=32",
        "model.patch_size=16",
        "model.width=48",
        "model.depth=2",
        "model.heads=3",
    )
    model = finetune.build(made, 7).eval()
    report = finetune.load(model, made.head, classes="abcdefg", root="/nowhere")
    assert str(report) == (
        "loaded 32 of 32 tensors that can match, 100%; fresh: nothing; not used: nothing"
    )
    with np.load(folder / "finetune_io.npz", allow_pickle=False) as theirs:
        logits = model(torch.from_numpy(theirs["x_bcthw"])).detach().numpy()
        np.testing.assert_allclose(logits, theirs["logits"], rtol=0, atol=1e-5)
    pretrained_ = dataclasses.replace(made.head, init=str(folder / "pretrain.pth"))
    report = finetune.load(model, pretrained_, classes="abcdefg", root="/nowhere")
    assert str(report).startswith(
        "loaded 28 of 28 tensors that can match, 100%; fresh: fc_norm.weight"
    )
    assert "encoder.norm.weight" in report.unexpected, "as the authors do: gotcha A"


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


# --- what cannot be -------------------------------------------------------------------------------


def test_clips_are_not_mirrored_where_left_and_right_are_classes(
    of: Callable[..., Finetune],
) -> None:
    with pytest.raises(UserError) as caught:
        finetune.job(of("data.clip.flip=true"))
    assert str(caught.value) == (
        "data.clip.flip mirrors half of the clips, but a mirrored 'down_left' is a 'down_right': "
        "set data.clip.flip=false"
    )
    mirrored = recipe("data.clip.flip=true")
    finetune.check_mirrors(mirrored, ["turn right", "bright", "blight", "Left hook", "leftover"])
    with pytest.raises(
        UserError, match="a mirrored 'From Left to right' is a 'From Right to left'"
    ):
        finetune.check_mirrors(mirrored, ["From Left to right", "From Right to left"])


def test_a_unit_of_one_clip_cannot_be_mixed() -> None:
    for way in ("mixup", "cutmix"):
        with pytest.raises(
            ConfigError, match=r"mix the clips of a unit with each other, but a unit"
        ):
            recipe(f"augment.{way}=0.8", "batch.micro=1")
    assert recipe("augment.mixup=0.8", "batch.micro=1", "data.copies=2").augment.mixes


def test_a_faster_way_than_the_authors_names_itself(of: Callable[..., Finetune]) -> None:
    policy = "data.clip.rand_augment=rand-m7-n4-mstd0.5-inc1"
    assert "deviates" not in finetune.job(of(policy)).notes
    text = finetune.job(of(policy, "data.clip.rand_augment_on=crop")).notes["deviates"]
    assert text.startswith("RandAugment on the crops that the model sees, not on whole frames")


def test_class_weights_come_from_the_labels_of_the_training_rows(
    of: Callable[..., Finetune],
) -> None:
    made = finetune.job(of("labels.balance=0.99")).loop
    assert isinstance(made, functools.partial)
    assert made.keywords["weights"] == pytest.approx([1.0] * 8)  # three videos of each class


@pytest.mark.parametrize(
    ("key", "value"),
    [("schedule.patience", 3), ("checkpoint.export_best", "true"), ("checkpoint.keep_best", 1)],
)
def test_what_goes_by_held_out_loss_needs_held_out_clips(key: str, value: object) -> None:
    for kind in (Finetune, Pretrain):
        with pytest.raises(ConfigError) as caught:
            load(kind, [], [f"{key}={value}", "data.held_out_clips=0"])
        assert (
            f"{key} goes by the loss on held-out clips, but data.held_out_clips is 0: raise it, or leave {key} out"
            in str(caught.value)
        )


def test_draws_are_not_ended_early() -> None:
    with pytest.raises(ConfigError, match=r"set schedule\.patience=null or labels\.draws=1"):
        recipe("schedule.patience=2", "labels.draws=2", "labels.per_class=1")
