"""``make demo-study``: does pretraining help, each side at its own best rate? More draws, several rates, two seeds."""

import json
from collections.abc import Sequence
from pathlib import Path

from tubelet import config, terminal
from tubelet.demo import stages
from tubelet.demo.run import Stages, prepare_motion

DRAWS = 6
PRETRAINING_SEEDS = (0, 1)
RATES = (0.5, 1.0, 2.0)
"""Multiples of each recipe's own rate; a side's own best is the best of them on the mean over the draws."""


def run(folder: Path, timed: Stages) -> None:
    """Train everything, print the table, write ``study.json``."""
    root = folder / "runs"
    manifest = prepare_motion(folder, timed)
    encoders = []
    for seed in PRETRAINING_SEEDS:
        with timed(f"pretrain_{seed}", f"Pretraining with seed {seed}"):
            encoders.append(
                stages.pretrain_run(root, manifest, f"run.seed={seed}", f"run.name=pretrain_{seed}")
            )
    sides = {"pretrained": encoders[0], "scratch": None}
    top1: dict[str, dict[float, list[float]]] = {}
    for side, encoder in sides.items():
        trained = []
        for rate in RATES:
            with timed(
                f"{side}_x{rate:g}", f"Fine-tuning, {side}, {rate:g} times the recipe's rate"
            ):
                trained.append(_finetune(root, manifest, side, rate, encoder, encoder_seed=0))
        with timed(f"evaluate_{side}", "Evaluating on held-out videos"):
            accuracies, _ = stages.evaluate(manifest, trained)
        top1[side] = {
            rate: [a.top1 for a in each] for rate, each in zip(RATES, accuracies, strict=True)
        }
    best = {side: max(RATES, key=lambda r: sum(top1[side][r])) for side in top1}
    others = []
    for seed, encoder in list(zip(PRETRAINING_SEEDS, encoders, strict=True))[1:]:
        with timed(f"pretrained_seed_{seed}", f"Fine-tuning encoder {seed} at the best rate"):
            others.append(
                _finetune(
                    root, manifest, "pretrained", best["pretrained"], encoder, encoder_seed=seed
                )
            )
    with timed("evaluate_seeds", "Evaluating on held-out videos"):
        accuracies, _ = stages.evaluate(manifest, others)
    seeds = [
        top1["pretrained"][best["pretrained"]],
        *([a.top1 for a in each] for each in accuracies),
    ]
    _tell(folder, top1, best, seeds)


def _finetune(
    root: Path,
    manifest: Path,
    side: str,
    rate: float,
    encoder: stages.Trained | None,
    *,
    encoder_seed: int,
) -> stages.Trained:
    recipe = f"finetune_{side}.yaml"
    name = f"{side}_{encoder_seed}_x{rate:g}" if encoder else f"{side}_x{rate:g}"
    overrides = [
        f"run.name={name}",
        f"labels.draws={DRAWS}",
        f"optim.lr={stages.recipe_rate(recipe) * rate:g}",
    ]
    if encoder is not None:
        overrides.append(config.setting("head.init", encoder.run.uri))
    return stages.finetune_run(root, manifest, recipe, *overrides)


def _tell(
    folder: Path,
    top1: dict[str, dict[float, list[float]]],
    best: dict[str, float],
    seeds: Sequence[Sequence[float]],
) -> None:
    lines = []
    for side, by_rate in top1.items():
        for rate, values in by_rate.items():
            mean, error = stages.mean_and_error([100 * value for value in values])
            mark = "best" if rate == best[side] else ""
            lines.append((f"{side}, x {rate:g}", f"{mean:.1f}", f"{error:.1f}", mark))
    for seed, values in zip(PRETRAINING_SEEDS, seeds, strict=True):
        mean, error = stages.mean_and_error([100 * value for value in values])
        lines.append((f"pretrained, encoder {seed}", f"{mean:.1f}", f"{error:.1f}", ""))
    terminal.say("")
    terminal.table(("side and rate", "top-1 %", "standard error", ""), lines)
    gains = _gains(seeds, top1["scratch"][best["scratch"]])
    mean, error = stages.mean_and_error(gains)
    terminal.say(
        f"\ngain at each side's best rate: {mean:+.1f} points, standard error {error:.1f}"
        f" ({len(gains)} pairs: {DRAWS} draws of labels, {len(PRETRAINING_SEEDS)} pretraining seeds)"
    )
    content = {
        "top1": {side: {str(r): v for r, v in each.items()} for side, each in top1.items()},
        "best": best,
        "pretraining_seeds": [list(each) for each in seeds],
        "gains": gains,
        "gain": mean,
        "standard_error": error,
    }
    for name in ("study.json", "report.json"):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def _gains(pretrained: Sequence[Sequence[float]], scratch: Sequence[float]) -> list[float]:
    """Points gained, draw by draw: both sides saw the same labels."""
    return [100 * (p - s) for draws in pretrained for p, s in zip(draws, scratch, strict=True)]
