"""The hand-over format: a folder with `model.safetensors` and `config.json`.

What: `save_export` writes a pretraining model or a classifier under the authors' names, with
everything needed to build it again; `load_export` reads it.
Guarantees: what can be saved can be loaded: names and shapes are compared with the model that the
configuration describes, on saving and on loading. `config.json` is written last, so that a folder
that has it is complete. No pickle.
Cost: a copy of tensors that are not contiguous, share memory or are not on the CPU; the comparison
builds the model on the meta device (no memory).

config.json:
    format          1
    kind            "pretrain" or "classifier"
    model           the fields of ModelConfig
    pooling         "mean" or "token0" (classifier)
    num_classes     (classifier)
    class_names     list or null (classifier)
    several         whether a video may have several of them (classifier; absent: false)
    normalisation   {"mean": [r, g, b], "std": [r, g, b]} of input between 0 and 1
    extra           whatever the caller wants to keep (run, step ...)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from videomae.classifier import Pooling, build_classifier
from videomae.patches import IMAGENET_MEAN, IMAGENET_STD
from videomae.presets import ModelConfig
from videomae.pretraining import build_pretraining
from videomae.weights import differences, list_problems, read_state_dict

FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Export:
    """A model read by `load_export`."""

    kind: Literal["pretrain", "classifier"]
    state_dict: dict[str, Tensor]
    """Weights on the CPU, complete for the model of `config`."""
    config: ModelConfig
    pooling: Pooling | None
    """Pooling of a classifier."""
    num_classes: int | None
    """Classes of a classifier."""
    class_names: tuple[str, ...] | None
    """Names of the classes, in the order of the logits."""
    several: bool
    """Whether a video may have several classes; see `class_probabilities`."""
    mean: tuple[float, ...]
    """Colour mean of the input (of values between 0 and 1)."""
    std: tuple[float, ...]
    """Colour deviation of the input."""
    extra: dict[str, Any]
    """What the writer added."""


def save_export(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    extra: Mapping[str, Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    several: bool = False,
) -> None:
    """Write a model to a local folder, which is made if need be.

    Kind, pooling and number of classes are read off the names and shapes.

    Args:
        folder: where to; files of an earlier export are replaced.
        state_dict: full (unsharded) weights of a `VideoMAE` or a `VideoClassifier`.
        config: the configuration they were made with.
        extra: JSON values to keep beside them.
        class_names: of a classifier, in the order of the logits.
        several: whether a video may have several of them.

    Raises:
        ValueError: the weights are not those of the configuration, or the names do not match the
            classes.
    """
    folder = Path(folder)
    kind, pooling, num_classes = _recognise(state_dict)
    _check_weights(state_dict, config, pooling, num_classes, where="cannot export")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"cannot export: {len(class_names)} class names for {num_classes or 'no'} classes"
        )
    text = json.dumps(
        {
            "format": FORMAT,
            "kind": kind,
            "model": asdict(config),
            "pooling": pooling,
            "num_classes": num_classes,
            "class_names": None if class_names is None else list(class_names),
            "several": several,
            "normalisation": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            "extra": dict(extra or {}),
        },
        indent=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    tensors = {name: _alone(value) for name, value in state_dict.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(text + "\n")


def load_export(folder: str | Path) -> Export:
    """Read a model that `save_export` wrote.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, of another format, or does not fit the other.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so {folder} is no complete export")
    try:
        described = json.loads(path.read_text())
        version = described["format"]
        if version != FORMAT:
            raise ValueError(f"format {version}, but this version reads format {FORMAT}")
        config = _read_config(described["model"])
        export = Export(
            kind=described["kind"],
            state_dict=read_state_dict(folder / WEIGHTS_FILE),
            config=config,
            pooling=described["pooling"],
            num_classes=described["num_classes"],
            class_names=None
            if described["class_names"] is None
            else tuple(described["class_names"]),
            several=described.get("several", False),
            mean=tuple(described["normalisation"]["mean"]),
            std=tuple(described["normalisation"]["std"]),
            extra=described["extra"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a tubelet export ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_weights(export.state_dict, config, export.pooling, export.num_classes, where=str(folder))
    return export


def _alone(value: Tensor) -> Tensor:
    """Return a contiguous tensor on the CPU that shares its memory with no other."""
    value = value.detach().cpu().contiguous()
    whole = value.untyped_storage().nbytes() == value.nbytes
    return value if whole else value.clone()


def _recognise(
    state_dict: Mapping[str, Tensor],
) -> tuple[Literal["pretrain", "classifier"], Pooling | None, int | None]:
    if "mask_token" in state_dict:
        return "pretrain", None, None
    if "head.weight" in state_dict:
        pooling: Pooling = "mean" if "fc_norm.weight" in state_dict else "token0"
        return "classifier", pooling, state_dict["head.weight"].shape[0]
    raise ValueError(
        "cannot export: these weights are neither a VideoMAE's (mask_token) nor a "
        "VideoClassifier's (head.weight)"
    )


def _check_weights(
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    pooling: Pooling | None,
    num_classes: int | None,
    *,
    where: str,
) -> None:
    """Compare names and shapes with the model of the configuration."""
    with torch.device("meta"):
        if pooling is None or num_classes is None:
            model = build_pretraining(config)
        else:
            model = build_classifier(config, num_classes=num_classes, pooling=pooling)
    problems = differences(state_dict, model.state_dict())
    if problems:
        raise ValueError(
            f"{where}: the weights are not those of the configuration:" + list_problems(problems)
        )


def _read_config(described: Mapping[str, Any]) -> ModelConfig:
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(set(described) - known)
    if unknown:
        raise ValueError(f"unknown model fields {unknown}; the export comes from a newer version")
    return ModelConfig(**described)
