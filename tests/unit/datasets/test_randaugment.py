"""RandAugment against timm: its operations pixel by pixel, its draws in their distribution."""

import random
from collections import Counter

import numpy as np
import pytest
import timm.data.auto_augment as theirs
from PIL import Image

from clips.augment.randaugment import (
    INCREASING,
    PLAIN,
    Policy,
    Step,
    augment,
    draw_steps,
    level_value,
    parse_policy,
)

AUTHORS = "rand-m7-n4-mstd0.5-inc1"
LEVELS = (0.0, 0.4, 3.3, 7.0, 9.9, 10.0)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(2).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((68, 52), Image.Resampling.BICUBIC)


def test_the_operations_are_timms_in_timms_order() -> None:
    assert list(INCREASING) == theirs._RAND_INCREASING_TRANSFORMS
    assert list(PLAIN) == theirs._RAND_TRANSFORMS


@pytest.mark.parametrize("operation", sorted({*PLAIN, *INCREASING}))
@pytest.mark.parametrize("negative", [False, True])
def test_an_operation_is_timms_in_argument_and_every_pixel(
    operation: str, negative: bool, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs.random, "random", lambda: 0.9 if negative else 0.1)  # their sign
    frames = np.stack([np.asarray(picture), np.asarray(picture)[::-1]])
    for level in LEVELS:
        of_level = theirs.LEVEL_TO_ARG[operation]
        arguments = of_level(level, {}) if of_level else ()
        if not isinstance(arguments, tuple):  # some of theirs return a bare number
            arguments = (arguments,)
        value = level_value(operation, level, negative=negative)
        assert (value,) == (arguments or (None,))
        if "Posterize" in operation and arguments == (0,):
            continue  # Pillow from 12 on refuses it: the next test
        changed = augment(frames, [Step(operation, value)])
        for ours, frame in zip(changed, frames, strict=True):
            wanted = theirs.NAME_TO_OP[operation](
                Image.fromarray(frame),
                *arguments,
                fillcolor=(128, 128, 128),
                resample=Image.Resampling.BICUBIC,
            )
            np.testing.assert_array_equal(ours, np.asarray(wanted), err_msg=f"level {level}")


def test_posterising_to_no_bits_is_black_as_it_was_in_older_pillows(picture: Image.Image) -> None:
    assert level_value("PosterizeIncreasing", 10.0, negative=False) == 0
    assert not augment(np.asarray(picture)[None], [Step("PosterizeIncreasing", 0)]).any()


def test_steps_follow_each_other_and_none_changes_nothing(picture: Image.Image) -> None:
    clip = np.stack([np.asarray(picture)] * 3)
    first, second = Step("Rotate", 20.0), Step("Invert")
    np.testing.assert_array_equal(
        augment(clip, [first, second]), augment(augment(clip, [first]), [second])
    )
    assert augment(clip, []) is clip


@pytest.mark.parametrize("text", [AUTHORS, "rand-m9-n2", "rand-m9-n3-mstd0.5"])
def test_draws_are_distributed_as_timms(text: str) -> None:
    """Operations, number of layers, and the values of each kind, over 3,000 clips."""
    policy, clips = parse_policy(text), 3000
    ours = [step for seed in range(clips) for step in draw_steps(policy, seed=seed)]

    made = theirs.rand_augment_transform(text, {"interpolation": Image.Resampling.BICUBIC})
    seen: list[Step] = []
    for operation in made.ops:
        operation.aug_fn = _noting(operation.name, seen)
    random.seed(1)
    np.random.seed(1)
    blank = Image.new("RGB", (4, 4))
    for _ in range(clips):
        made(blank)

    assert len(ours) == pytest.approx(clips * policy.layers / 2, rel=0.05)
    assert len(ours) == pytest.approx(len(seen), rel=0.05)
    counts, wanted = Counter(s.operation for s in ours), Counter(s.operation for s in seen)
    assert counts.keys() == wanted.keys()
    for name, count in counts.items():
        assert count == pytest.approx(wanted[name], rel=0.25), name
        mine = [s.value or 0.0 for s in ours if s.operation == name]
        yours = [s.value or 0.0 for s in seen if s.operation == name]
        spread = np.std(yours) + 1e-6
        assert abs(np.mean(mine) - np.mean(yours)) < 6 * spread / len(mine) ** 0.5, name
        width = 0.05 * np.ptp(yours) + 1e-6
        assert np.std(mine) == pytest.approx(np.std(yours), abs=width), name


def _noting(name: str, seen: list[Step]):  # noqa: ANN202
    def note(image: Image.Image, *arguments: float, **_: object) -> Image.Image:
        seen.append(Step(name, arguments[0] if arguments else None))
        return image

    return note


def test_the_same_seed_draws_the_same_and_others_differ() -> None:
    policy = parse_policy(AUTHORS)
    assert policy == Policy(magnitude=7, layers=4, deviation=0.5, increasing=True)
    assert draw_steps(policy, seed=2**63 + 5) == draw_steps(policy, seed=2**63 + 5)
    assert len({draw_steps(policy, seed=seed) for seed in range(50)}) > 40


def test_draws_are_part_of_every_run_and_stay_what_they_are() -> None:
    first, second, *more = draw_steps(parse_policy(AUTHORS), seed=0)
    assert first == Step("ColorIncreasing", pytest.approx(0.3637480021082319))  # type: ignore[arg-type]
    assert second == Step("Equalize")
    assert [step.operation for step in more] == ["BrightnessIncreasing", "SolarizeAdd"]
