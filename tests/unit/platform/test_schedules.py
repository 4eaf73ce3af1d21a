"""Learning rates against values of the authors' scheduler, computed from its description."""

import math

import numpy as np
import pytest

from tubelet.schedules import cosine, effective_lr

PEAK, FLOOR, STEPS, WARMUP = 1.2e-3, 8e-5, 1000, 200  # 10 epochs of 100 steps, 2 of them warming up


def rate(step: int) -> float:
    return cosine(step, peak=PEAK, floor=FLOOR, steps=STEPS, warmup_steps=WARMUP)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 6.0302e-6), (199, 1.2e-3), (200, 1.2e-3), (600, 6.4e-4), (999, 8.000432e-5)],
)
def test_rates_are_the_authors(step: int, expected: float) -> None:
    assert rate(step) == pytest.approx(expected, rel=1e-5, abs=0)


def test_the_whole_schedule_is_a_line_and_half_a_cosine() -> None:
    line = np.linspace(0.0, PEAK, WARMUP)
    rest = np.arange(STEPS - WARMUP)
    curve = FLOOR + 0.5 * (PEAK - FLOOR) * (1 + np.cos(np.pi * rest / len(rest)))
    expected = np.concatenate([line, curve])
    np.testing.assert_allclose([rate(s) for s in range(STEPS)], expected, rtol=1e-12)


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert cosine(0, peak=2.0, floor=1.0, steps=10) == 2.0
    assert cosine(5, peak=2.0, floor=1.0, steps=10) == pytest.approx(1.5)


def test_one_warm_up_step_starts_at_zero_and_divides_by_nothing() -> None:
    values = [cosine(s, peak=1.0, floor=0.0, steps=3, warmup_steps=1) for s in range(3)]
    assert values == pytest.approx([0.0, 1.0, 0.5])


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    values = [cosine(s, peak=1.0, floor=0.0, steps=4, warmup_steps=11) for s in range(4)]
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3])
    at_its_end = [cosine(s, peak=1.0, floor=0.0, steps=4, warmup_steps=4) for s in range(4)]
    assert at_its_end[-1] == 1.0


def test_a_schedule_that_rises_is_the_same_curve() -> None:
    """Weight decay may end above where it starts."""
    assert cosine(0, peak=0.05, floor=0.4, steps=8) == pytest.approx(0.05)
    assert cosine(4, peak=0.05, floor=0.4, steps=8) == pytest.approx(0.225)
    last = 0.4 - 0.35 * (1 + math.cos(math.pi * 7 / 8)) / 2
    assert cosine(7, peak=0.05, floor=0.4, steps=8) == pytest.approx(last)


def test_the_rate_scales_with_the_visits_of_a_step() -> None:
    assert effective_lr(1.5e-4, 256) == 1.5e-4
    assert effective_lr(1.5e-4, 1024) == pytest.approx(6e-4)
    assert effective_lr(1.5e-4, 64) == pytest.approx(3.75e-5)
