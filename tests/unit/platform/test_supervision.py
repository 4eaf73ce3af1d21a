"""What a classifier is shown and held against: timm's mixing and erasing, soft targets, weights, several labels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import mixup as theirs
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from clips.augment.erasing import erase_box
from clips.augment.mixing import Mix, draw_mix
from tubelet import ledger, supervision
from tubelet.config import UserError
from tubelet.feed import Unit
from tubelet.items import clip_seeds
from tubelet.rows import LabelConfig
from tubelet.supervision import AugmentConfig, Shown, Supervision, class_weights, mixed, partners
from videomae import normalise

CLASSES, SIDE = 5, 24
MIXES = [Mix(0.3), draw_mix(SIDE, SIDE, seed=2, mixup=0.0, cutmix=1.0)]


def unit(valid: list[int], number: int = 3, several: Tensor | None = None) -> Unit:
    random = np.random.default_rng(number)
    count = len(valid)
    return Unit(
        number=number,
        frames_BTHWC=torch.from_numpy(
            random.integers(0, 256, (count, 2, SIDE, SIDE, 3), dtype=np.uint8)
        ),
        valid_B=torch.tensor(valid, dtype=torch.float32),
        label_B=torch.from_numpy(random.integers(0, CLASSES, count)),
        labels_BK=several,
        source={
            "epoch": np.zeros(count, np.int64),
            "row": np.arange(count),
            "visit": np.zeros(count, np.int64),
            "copy": np.zeros(count, np.int64),
            "valid": np.array(valid, bool),
        },
    )


def supervised(augment: dict[str, Any] | None = None, **labels: Any) -> Supervision:
    weights = labels.pop("weights", None)
    return Supervision(LabelConfig(**labels), AugmentConfig(**(augment or {})), CLASSES, 7, weights)


def logits(count: int) -> Tensor:
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(1))


# --- mixing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", MIXES, ids=["mixup", "cutmix"])
def test_a_whole_unit_is_mixed_pixel_by_pixel_as_timm_mixes_a_batch(
    mix: Mix, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = unit([1] * 6)
    clips_BCTHW = normalise(batch.frames_BTHWC)
    made = theirs.Mixup(num_classes=CLASSES, label_smoothing=0.1)
    monkeypatch.setattr(made, "_params_per_batch", lambda: (mix.share, mix.box is not None))
    if mix.box is not None:
        x, y, w, h = mix.box
        same = ((y, y + h, x, x + w), mix.share)
        monkeypatch.setattr(theirs, "cutmix_bbox_and_lam", lambda *_, **__: same)
    pictures = clips_BCTHW.flatten(1, 2)  # as the authors hand clips to timm: [B, C * T, H, W]
    wanted, targets_BK = made(pictures.clone(), batch.label_B)

    partner_B = torch.from_numpy(partners(batch.source["valid"]))
    shown = mixed(clips_BCTHW, partner_B, mix)
    torch.testing.assert_close(shown.flatten(1, 2), wanted, rtol=0, atol=1e-6)
    losses_B = supervised(smoothing=0.1).losses(
        logits(6), batch, Shown(shown, partner_B, mix.share)
    )
    loss = SoftTargetCrossEntropy()(logits(6), targets_BK.float())
    torch.testing.assert_close(losses_B.mean(), loss)


def test_a_unit_is_mixed_by_its_number_and_the_runs_seed() -> None:
    made = supervised({"mixup": 0.8, "cutmix": 1.0})
    for number in range(8):
        batch = unit([1] * 4, number)
        shown = made.show(batch)
        seed = ledger.unit_seed(7, number)
        mix = draw_mix(SIDE, SIDE, seed=seed, mixup=0.8, cutmix=1.0)
        assert mix is not None
        assert shown.share == mix.share
        assert shown.partner_B is not None
        assert shown.partner_B.tolist() == [3, 2, 1, 0]
        torch.testing.assert_close(
            shown.clips_BCTHW, mixed(normalise(batch.frames_BTHWC), shown.partner_B, mix)
        )


def test_clips_that_could_not_be_decoded_mix_with_nobody() -> None:
    assert partners(np.array([True, False, True, True, False])).tolist() == [3, 1, 2, 0, 4]
    made = supervised({"cutmix": 1.0})
    batch = unit([1, 0, 1, 1])
    shown = made.show(batch)
    other = dataclasses.replace(batch, frames_BTHWC=batch.frames_BTHWC.clone())
    other.frames_BTHWC[1] = 7
    good = [0, 2, 3]
    torch.testing.assert_close(
        made.show(other).clips_BCTHW[good], shown.clips_BCTHW[good], rtol=0, atol=0
    )
    changed = dataclasses.replace(batch, label_B=batch.label_B.clone())
    changed.label_B[1] = -1
    ours, wanted = (made.losses(logits(4), each, shown)[good] for each in (changed, batch))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)


def test_dummies_and_held_out_clips_are_left_alone() -> None:
    made = supervised({"mixup": 0.8, "erase": 1.0}, smoothing=0.2)
    dummy = dataclasses.replace(unit([0, 0]), source={})
    assert torch.equal(made.show(dummy).clips_BCTHW, normalise(dummy.frames_BTHWC))
    batch = unit([1, 1, 1])
    held_out = made.losses(logits(3), batch)
    torch.testing.assert_close(
        held_out, F.cross_entropy(logits(3), batch.label_B, reduction="none")
    )


# --- erasing ---------------------------------------------------------------------------------------


def test_a_clips_own_seed_erases_the_same_box_of_all_its_frames_with_fresh_noise() -> None:
    made = supervised({"erase": 1.0})
    batch = unit([1] * 5 + [0])
    torch.manual_seed(0)
    shown, plain = made.show(batch).clips_BCTHW, normalise(batch.frames_BTHWC)
    noise: list[Tensor] = []
    for clip, before, seed in zip(shown, plain, clip_seeds(7, batch.source, "erase"), strict=True):
        box = erase_box(SIDE, SIDE, seed=int(seed), probability=1.0)
        assert box is not None
        x, y, w, h = box
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[y : y + h, x : x + w] = True
        changed = (clip != before).any(0)
        if clip is shown[5] or torch.equal(clip, before):
            continue
        for frame in changed:
            assert torch.equal(frame, inside)
        noise.append(clip[:, :, inside].flatten())
    assert len(noise) == 5, "the clip that could not be decoded stays"
    values = torch.cat(noise)
    assert len(values.unique()) == len(values)
    assert abs(values.mean()) < 0.1
    assert values.std() == pytest.approx(1.0, abs=0.1)


def test_what_is_erased_does_not_depend_on_the_other_clips() -> None:
    made = supervised({"erase": 1.0})
    batch = unit([1, 1, 1])
    boxes = [
        erase_box(SIDE, SIDE, seed=int(s), probability=0.5)
        for s in clip_seeds(7, batch.source, "erase")
    ]
    assert len(set(boxes)) > 1
    first = {n: c[:1] for n, c in batch.source.items()}
    alone = Unit(0, batch.frames_BTHWC[:1], batch.valid_B[:1], batch.label_B[:1], source=first)
    ours, wanted = made.show(alone).clips_BCTHW[0], made.show(batch).clips_BCTHW[0]
    plain = normalise(batch.frames_BTHWC)[0]
    assert torch.equal(ours != plain, wanted != plain)


# --- weights of classes ----------------------------------------------------------------------------


def test_class_weights_are_those_of_the_paper() -> None:
    """Cui et al. 2019, eq. 4, with weights that sum to the number of classes."""
    counts = np.array([1, 10, 100, 1000])
    weights = np.array(class_weights(counts, 0.99, "abcd"))
    by_hand = (1 - 0.99) / (1 - 0.99**counts)
    assert weights == pytest.approx(by_hand / by_hand.sum() * 4)
    assert class_weights(counts, 0.0, "abcd") == pytest.approx([1.0] * 4)
    inverse = np.array(class_weights(counts, 1.0, "abcd"))
    assert inverse * counts == pytest.approx([inverse[0]] * 4)
    assert inverse.sum() == pytest.approx(4)


def test_a_class_without_videos_cannot_be_weighted() -> None:
    with pytest.raises(UserError) as caught:
        class_weights(np.array([3, 0, 0]), 0.9, ("run", "sit", "jump"))
    assert str(caught.value) == (
        "labels.balance weighs classes by their labels, but 2 have none to train on, such as 'sit': "
        "set labels.balance=null, or add videos of them"
    )


def test_weights_scale_the_loss_of_training_and_not_of_evaluation() -> None:
    weights = (0.5, 1.0, 1.5, 0.25, 1.75)
    made, batch = supervised(weights=weights, smoothing=0.0), unit([1] * 4)
    plain = F.cross_entropy(logits(4), batch.label_B, reduction="none")
    torch.testing.assert_close(made.losses(logits(4), batch), plain)
    weighted = made.losses(logits(4), batch, made.show(batch))
    torch.testing.assert_close(weighted, plain * torch.tensor(weights)[batch.label_B])


def test_mixed_targets_and_plain_ones_are_weighted_and_smoothed_alike() -> None:
    made = supervised(weights=(0.5, 1.0, 1.5, 0.25, 1.75), smoothing=0.1)
    batch = unit([1] * 4)
    plain = Shown(normalise(batch.frames_BTHWC))
    itself = dataclasses.replace(plain, partner_B=torch.arange(4), share=0.4)
    torch.testing.assert_close(
        made.losses(logits(4), batch, itself), made.losses(logits(4), batch, plain)
    )


# --- several labels --------------------------------------------------------------------------------

SEVERAL = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.uint8)


def test_several_labels_are_judged_class_by_class() -> None:
    made = supervised(several=True, smoothing=0.2)
    batch = unit([1, 1, 1], several=SEVERAL)
    wanted = F.binary_cross_entropy_with_logits(logits(3), SEVERAL.float(), reduction="none")
    torch.testing.assert_close(made.losses(logits(3), batch), wanted.mean(1))
    smoothed = theirs.mixup_target(SEVERAL, CLASSES, lam=1.0, smoothing=0.2, multi_label=True)
    wanted = F.binary_cross_entropy_with_logits(logits(3), smoothed, reduction="none")
    torch.testing.assert_close(made.losses(logits(3), batch, made.show(batch)), wanted.mean(1))
    assert made.labelled(batch).tolist() == [True, True, False]
    best = torch.eye(CLASSES)[[2, 3, 0]]
    assert made.right(best, batch).tolist() == [True, False, False]


def test_several_labels_are_mixed_as_timm_mixes_them() -> None:
    made = supervised(several=True, smoothing=0.1)
    batch = unit([1, 1, 1], several=SEVERAL)
    shown = Shown(normalise(batch.frames_BTHWC), torch.tensor([2, 1, 0]), 0.3)
    targets = theirs.mixup_target(SEVERAL, CLASSES, lam=0.3, smoothing=0.1, multi_label=True)
    wanted = F.binary_cross_entropy_with_logits(logits(3), targets, reduction="none").mean(1)
    torch.testing.assert_close(made.losses(logits(3), batch, shown), wanted)


def test_few_labels_and_several_of_a_video_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"labels\.several is true: set it to null"):
        LabelConfig(several=True, per_class=4)
    assert supervision.AugmentConfig().mixes is False
