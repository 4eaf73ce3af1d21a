"""What a registered model says of itself: where it comes from, how good it is, how it is used.

The text is the version's description in MLflow and `README.md` inside the model. Secrets in
addresses are left out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tubelet.refusals import redact
from videomae import Export


@dataclass(frozen=True)
class Card:
    """What the model card says beside what the export says itself."""

    metrics: Mapping[str, float]
    """Held-out results, by metric name."""
    manifest: str
    """Hash of the data manifest the model was fine-tuned on."""
    recipe: str
    """The resolved recipe, as YAML."""
    lineage: str
    """Where the encoder came from, for example the pretraining run."""
    licence: str = "code Apache-2.0; the weights are bound by the terms of the training videos"
    revision: str = "unknown"
    """Of the code that trained it."""


def card_text(export: Export, card: Card, *, model_uri: str, run_id: str, weights: str) -> str:
    """The card as Markdown, without a title.

    Args:
        export: what is registered.
        card: what its makers say.
        model_uri: address by alias.
        run_id: MLflow run that made the weights.
        weights: their hash.
    """
    config = export.config
    names = export.class_names or ()
    shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    rows = "\n".join(f"| {metric} | {value:.4g} |" for metric, value in card.metrics.items())
    return f"""Video classifier: VideoMAE ({config.preset}), {config.frames} frames of {config.image_size} x \
{config.image_size} pixels, {export.num_classes} classes{": " + shown if shown else ""}.

| held-out metric | value |
|---|---|
{rows}

| | |
|---|---|
| encoder from | {redact(card.lineage)} |
| MLflow run | {run_id} |
| data manifest | {card.manifest} |
| weights (SHA-256) | {weights} |
| code revision | {card.revision} |
| licence | {card.licence} |

## Use

    model = mlflow.pyfunc.load_model("{model_uri}")
    model.predict([{{"video_path": "one.mp4"}}], params={{"top_k": 5}})

A row has `video_path` (a path, `https://` or `s3://`) or `video` (the file's bytes). The answer has
`labels`, likeliest first, and their `probabilities`. Behind `mlflow models serve` a row has `video`
(base64 in JSON); paths are refused there unless the server runs with `TUBELET_SERVE_PATHS=true`.

## Recipe

```yaml
{redact(card.recipe).rstrip()}
```
"""


def sha256(file: str | Path) -> str:
    """Hash of a local file, by which the same weights are known wherever they lie."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
