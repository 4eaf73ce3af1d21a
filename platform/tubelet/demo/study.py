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
"""Multiples of each recipe's own rate; the best of them on the mean over draws (and seeds) is a side's own best."""


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
    pretrained: dict[float, list[stages.Trained]] = {}
    scratch: dict[float, list[stages.Trained]] = {}
    for rate in RATES:
        for seed, encoder in zip(PRETRAINING_SEEDS, encoders, strict=True):
            name = f"pretrained_{seed}_x{rate:g}"
            with timed(name, f"Fine-tuning encoder {seed} at {rate:g} times the recipe's rate"):
                pretrained.setdefault(rate, []).append(
                    _finetune(root, manifest, "finetune_pretrained.yaml", name, rate, encoder)
                )
        name = f"scratch_x{rate:g}"
        with timed(name, f"From random weights at {rate:g} times the recipe's rate"):
            scratch[rate] = [_finetune(root, manifest, "finetune_scratch.yaml", name, rate, None)]
    with timed("evaluate", "Evaluating all of them on held-out videos"):
        every = [t for side in (pretrained, scratch) for each in side.values() for t in each]
        accuracies, _ = stages.evaluate(manifest, every)
    top1 = iter([[a.top1 for a in each] for each in accuracies])
    results = {
        side: {rate: [next(top1) for _ in each] for rate, each in runs.items()}
        for side, runs in (("pretrained", pretrained), ("scratch", scratch))
    }
    _tell(folder, results)


def _finetune(
    root: Path, manifest: Path, recipe: str, name: str, rate: float, encoder: stages.Trained | None
) -> stages.Trained:
    lr = stages.recipe_rate(recipe) * rate
    overrides = [f"run.name={name}", f"labels.draws={DRAWS}", f"optim.lr={lr:g}"]
    if encoder is not None:
        overrides.append(config.setting("head.init", encoder.run.uri))
    return stages.finetune_run(root, manifest, recipe, *overrides)


def _tell(folder: Path, results: dict[str, dict[float, list[list[float]]]]) -> None:
    lines, best = [], {}
    for side, by_rate in results.items():
        means = {
            rate: stages.mean_and_error([v for draws in runs for v in draws])
            for rate, runs in by_rate.items()
        }
        best[side] = max(means, key=lambda rate: means[rate][0])
        for rate, (mean, error) in means.items():
            mark = "best" if rate == best[side] else ""
            lines.append((side, f"{rate:g}", f"{100 * mean:.1f}", f"{100 * error:.1f}", mark))
    terminal.say("")
    terminal.table(("side", "x rate", "top-1 %", "standard error", ""), lines)
    gains = _gains(
        results["pretrained"][best["pretrained"]], results["scratch"][best["scratch"]][0]
    )
    mean, error = stages.mean_and_error(gains)
    terminal.say(
        f"\ngain at each side's best rate: {mean:+.1f} points, standard error {error:.1f}"
        f" ({len(gains)} pairs: {DRAWS} draws of labels, {len(PRETRAINING_SEEDS)} pretraining seeds)"
    )
    content = {"results": {s: {str(r): v for r, v in each.items()} for s, each in results.items()}}
    content |= {"best": best, "gain": mean, "standard_error": error, "gains": gains}
    (folder / "study.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")


def _gains(pretrained: Sequence[Sequence[float]], scratch: Sequence[float]) -> list[float]:
    """Points gained, draw by draw: both sides saw the same labels."""
    return [100 * (p - s) for draws in pretrained for p, s in zip(draws, scratch, strict=True)]
