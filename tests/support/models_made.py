"""Tiny classifiers that always say the same, and a registry that knows them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tubelet import handover, registry, tracking
from videomae import ModelConfig, build_classifier

CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)
CLASSES = ("down", "left", "right", "up")


def stubborn(says: str, classes: Sequence[str] = CLASSES) -> dict[str, torch.Tensor]:
    """Weights of a classifier whose likeliest class is always the same."""
    torch.manual_seed(0)
    state = build_classifier(CONFIG, num_classes=len(classes)).state_dict()
    state["head.bias"][list(classes).index(says)] = 3.0
    return state


def start_run(root: Path, *, name: str = "tiny", **metrics: float) -> str:
    """An MLflow run in the store below ``root``; its id."""
    uri = tracking.resolve_uri(str(root))
    run_id = tracking.start_run(
        uri,
        storage=str(root),
        job="finetune",
        name=name,
        parameters={},
        recipe="",
        manifest="m",
        revision="r",
    )
    for key, value in metrics.items():
        tracking.connect(uri).log_metric(run_id, key.replace("_", "/", 1), value)
    return run_id


def register(
    root: Path, run_id: str, *, says: str, alias: str, name: str = "motion", views: int = 1
) -> str:
    """Register a stubborn classifier."""
    export = root / f"export-{says}"
    handover.write(str(export), stubborn(says), CONFIG, extra={"stride": 1}, class_names=CLASSES)
    return registry.register(
        export,
        uri=tracking.resolve_uri(str(root)),
        name=name,
        alias=alias,
        run_id=run_id,
        card=registry.Card(metrics={}, manifest="m", recipe="", lineage="random weights"),
        stride=1,
        views=views,
    )


def leave_run(
    root: Path, name: str, *, draws: int = 1, init: str | None = None, **record: Any
) -> Path:
    """A finished fine-tuning run's folder, as the runner leaves it."""
    run = root / name
    for draw in range(draws):
        place = run / "export" / (f"draw_{draw + 1}" if draws > 1 else "")
        extra = {"stride": 1, "draw": draw + 1}
        state = stubborn(CLASSES[draw])
        handover.write(str(place), state, CONFIG, extra=extra, class_names=CLASSES)
    told = {
        "job": "finetune",
        "name": name,
        "manifest": "a" * 64,
        "revision": "abc123",
        "recipe": {"head": {"init": init}},
        **record,
    }
    (run / "run.json").write_text(json.dumps(told))
    (run / "recipe.yaml").write_text("optim:\n  lr: 0.001\n")
    (run / "finished.json").write_text("{}")
    return run
