"""Whether a challenger becomes champion, from what both reach on the same videos."""

import pytest

from tubelet.promotion import Decision, decide


def test_a_better_or_equal_challenger_is_promoted() -> None:
    for new in (0.5, 0.9):
        made = decide(new, 0.5, metric="top1", force=False)
        assert made == Decision(True, f"top1 50.00 % -> {100 * new:.2f} %")


def test_a_worse_challenger_is_refused_unless_told() -> None:
    refused = decide(0.4, 0.5, metric="mean_class", force=False)
    assert not refused.promote
    assert refused.reason == (
        "mean_class 50.00 % -> 40.00 %: the challenger is worse; force=true promotes it all the same"
    )
    forced = decide(0.4, 0.5, metric="mean_class", force=True)
    assert forced == Decision(True, "mean_class 50.00 % -> 40.00 %, worse, but force=true")


@pytest.mark.parametrize("new", [0.0, 1.0])
def test_the_first_champion_has_nobody_to_beat(new: float) -> None:
    assert decide(new, None, metric="top1", force=False).promote
