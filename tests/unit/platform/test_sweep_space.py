"""What may be searched, and what is said to a space that may not."""

from pathlib import Path
from typing import Any

import pytest

from tubelet import config
from tubelet.recipes import Finetune
from tubelet.sweep import space
from tubelet.sweep.recipe import Sweep
from tubelet.sweep.space import Dimension

SWEEP = """\
recipe: [base.yaml]
space:
  optim:
    lr: {log_uniform: [0.01, 0.5]}
  head.dropout: {choice: [0.0, 0.3]}
metric: eval/top1
mode: max
"""


def load(folder: Path, text: str, *overrides: str) -> Sweep:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return config.load(Sweep, [file], overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(config.ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_keys_are_written_as_lines_or_with_dots(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP, "space.optim.weight_decay={uniform: [0, 1]}")
    assert space.dimensions(sweep.space) == [
        Dimension("optim.lr", "log_uniform", (0.01, 0.5)),
        Dimension("optim.weight_decay", "uniform", (0.0, 1.0)),
        Dimension("head.dropout", "choice", (0.0, 0.3)),
    ]


def test_another_kind_replaces_a_files_when_that_is_taken_back(tmp_path: Path) -> None:
    sweep = load(tmp_path, SWEEP, "space.optim.lr={uniform: [0, 1], log_uniform: null}")
    assert space.dimensions(sweep.space)[0] == Dimension("optim.lr", "uniform", (0.0, 1.0))


def test_an_unknown_key_is_told_with_its_line_and_the_likely_one(tmp_path: Path) -> None:
    text = SWEEP.replace("    lr:", "    lrr:").replace("head.dropout", "head.dropuot")
    assert message(tmp_path, text) == (
        "sweep.yaml:4, sweep.yaml:5: space.optim.lrr: unknown key; did you mean 'optim.lr'?; "
        "space.head.dropuot: unknown key; did you mean 'head.dropout'?"
    )


def test_an_unknown_key_that_is_set_is_told_too(tmp_path: Path) -> None:
    assert message(tmp_path, SWEEP + "set:\n  data.manifst: x.parquet\n") == (
        "sweep.yaml:9: set.data.manifst: unknown key; did you mean 'data.manifest'?"
    )


def test_a_key_far_from_all_others_is_told_what_there_is() -> None:
    (said,) = space.problems({"labels": {"zzz": {"uniform": [0, 1]}}}, Finetune)
    assert said.startswith("space.labels.zzz: unknown key; expected one of labels.")
    (said,) = space.problems({"qqq": {"zzz": {"uniform": [0, 1]}}}, Finetune)
    assert said.startswith("space.qqq.zzz: unknown key; sections are run, model, head")


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    assert message(tmp_path, "recipe: [base.yaml]\n").endswith(
        "space is empty: name at least one recipe key with its values, such as "
        "optim: {lr: {log_uniform: [0.01, 0.5]}}"
    )


def test_a_metric_that_no_run_measures_is_refused(tmp_path: Path) -> None:
    said = (
        "metric is 'eval/top2', which a finetune run does not measure: use eval/top1 or eval/loss"
    )
    assert message(tmp_path, SWEEP, "metric=eval/top2").endswith(said)
    said = "metric is 'eval/top1', which a pretrain run does not measure: use eval/loss"
    text = SWEEP.replace("  head.dropout: {choice: [0.0, 0.3]}\n", "")
    assert message(tmp_path, text, "job=pretrain").endswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.1", "must be {uniform: [low, high]}, "),
        (
            "{normal: [0, 1]}",
            "'normal' is no kind of values: optim.lr takes {uniform: [low, high]}, ",
        ),
        ("{uniform: [0, 1], choice: [1]}", "must be one of {uniform: [low, high]}, "),
        ("{uniform: [1, 0]}", "uniform must be two numbers [low, high], low < high, got [1, 0]"),
        (
            "{uniform: [0, 1, 2]}",
            "uniform must be two numbers [low, high], low < high, got [0, 1, 2]",
        ),
        (
            "{uniform: ['0', 1]}",
            "uniform must be two numbers [low, high], low < high, got ['0', 1]",
        ),
        (
            "{uniform: [0, .inf]}",
            "uniform must be two numbers [low, high], low < high, got [0, inf]",
        ),
        (
            "{integer: [0.5, 2]}",
            "integer must be two whole numbers [low, high], low < high, got [0.5, 2]",
        ),
        ("{log_uniform: [0, 1]}", "log_uniform must begin above 0, got [0, 1]"),
        ("{choice: []}", "choice must be a list of values, got []"),
    ],
)
def test_values_of_the_wrong_form_are_refused(tmp_path: Path, value: str, said: str) -> None:
    text = SWEEP.replace("{log_uniform: [0.01, 0.5]}", value)
    assert message(tmp_path, text).startswith("sweep.yaml:4: space.optim.lr")
    assert said in message(tmp_path, text)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["set.optim.lr=0.1"], "set.optim.lr: space.optim.lr is searched; name the key once"),
        (["set.run.name=x"], "set.run.name: every trial gets its own; set the sweep's run.name"),
        (
            ["set.run.storage=x"],
            "set.run.storage: every trial gets its own; set the sweep's run.storage",
        ),
        (
            ["scheduler=pbt"],
            "space.head.dropout: scheduler=pbt changes values in the middle of a run, which only keys of optim, mask "
            "allow; use asha, or take it out",
        ),
        (
            ["scheduler=pbt", "search=optuna"],
            "search=optuna does not go with scheduler=pbt, which changes values",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    assert said in message(tmp_path, SWEEP, *overrides)


@pytest.mark.parametrize(
    ("dimension", "places"),
    [
        (Dimension("k", "uniform", (1.0, 3.0)), {1.0: 0.0, 2.0: 0.5, 3.0: 1.0}),
        (Dimension("k", "log_uniform", (0.01, 1.0)), {0.01: 0.0, 0.1: 0.5, 1.0: 1.0}),
        (Dimension("k", "log_integer", (1, 100)), {1: 0.0, 10: 0.5, 100: 1.0}),
        (Dimension("k", "choice", ("a", "b", "c")), {"a": 0.0, "b": 0.5, "c": 1.0}),
    ],
)
def test_a_value_lies_where_its_scale_has_it(
    dimension: Dimension, places: dict[Any, float]
) -> None:
    for value, place in places.items():
        assert dimension.place(value) == pytest.approx(place)


def test_changed_values_stay_inside_their_range() -> None:
    assert Dimension("k", "uniform", (0.0, 1.0)).clipped(1.2) == 1.0
    assert Dimension("k", "integer", (2, 8)).clipped(1) == 2
    assert Dimension("k", "integer", (2, 8)).clipped(5.6) == 6
    assert Dimension("k", "choice", (False, True)).clipped(True) is True
