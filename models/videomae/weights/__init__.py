"""Weights from files: checkpoints of the authors, and the step to fine-tuning.

What: `read_state_dict` reads a file whose tensors carry the authors' names; `load_pretrained` puts
them into a classifier the way the authors do.
Guarantees: nothing in a file is executed: safetensors, or torch's weights-only unpickler with a
short list of plain classes (the authors store their command line and numpy numbers beside the
weights). Nothing is dropped in silence: what was not used is in the `LoadReport`, and what has no
known reason to be unused is an error.
Cost: one copy of the weights in memory.

Facts of the authors' files: the weights are under `model`, or under `module` if DeepSpeed wrote
them, or at the top; names may carry `_orig_mod.` (torch.compile), `module.` (DDP), `backbone.` or
`encoder.`.
"""

import argparse
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videomae.classifier import VideoClassifier

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pyth")
_WRAPPERS = ("_orig_mod.", "module.", "backbone.")
_PRETRAINING_ONLY = ("decoder.", "encoder_to_decoder.", "mask_token")
_LAST_NORMS = ("norm.", "fc_norm.")

Match = Literal["all", "body", "any"]
"""How much of what can match must: all of it; all but the head, of other classes; or anything."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a local file, on the CPU, with wrappers' prefixes removed.

    Args:
        path: `.safetensors`, or a torch file (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pyth`).

    Returns:
        Tensors by the authors' names; `encoder.` is kept, since it tells a pretraining model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown suffix, damaged file, a file that asks to run code, or no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    elif path.suffix in _TORCH_SUFFIXES:
        found = _read_torch(path)
    else:
        allowed = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise ValueError(f"{path}: unknown kind of weight file; expected one of {allowed}")
    for key in ("model", "module"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: holds no weights, but {type(found).__name__}")
    strange = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{path}: expected tensors by name, at the top or under 'model' or 'module', but "
            f"{_few(strange)} are something else"
        )
    tensors = {_unwrap(name): value for name, value in found.items()}
    if len(tensors) != len(found):
        raise ValueError(f"{path}: some tensors are there twice, with and without a prefix")
    return tensors


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did."""

    matched: tuple[str, ...]
    """Parameters of the classifier that were loaded."""
    skipped: tuple[str, ...]
    """Parameters that the file has, or should have, but not in a form that fits; they keep their fresh values."""
    missing: tuple[str, ...]
    """Parameters of the classifier that keep their fresh values: the head, and the norm after
    pooling."""
    unexpected: tuple[str, ...]
    """Tensors of the file that were not used, under the file's names: the decoder, a head of other
    classes, the encoder's last norm."""

    def __str__(self) -> str:
        """One line for the log."""
        possible = len(self.matched) + len(self.skipped)
        return (
            f"loaded {len(self.matched)} of {possible} tensors that can match, "
            f"{len(self.matched) / possible:.0%}; fresh: {_few(self.missing)}; "
            f"not used: {_few(self.unexpected)}"
        )


@torch.no_grad()
def load_pretrained(
    classifier: VideoClassifier, state_dict: Mapping[str, Tensor], *, match: Match = "all"
) -> LoadReport:
    """Start a classifier from pretrained or fine-tuned weights, as the authors do.

    The encoder is loaded without its `encoder.` prefix, and the head if the file has one. The
    encoder's last norm becomes `norm`: a classifier with mean pooling has none, so there the
    pretrained norm is thrown away and `fc_norm` starts fresh; that is the authors' behaviour and
    part of their published numbers. With token-0 pooling it is loaded.

    Args:
        classifier: the model to fill, in place, before it is sharded.
        state_dict: `read_state_dict` of a file.
        match: how much of it must fit.

    Raises:
        ValueError: less fits than must: something is missing, of another shape, or more than the
            classifier has. The classifier is then unchanged.
    """
    assert match in get_args(Match), match
    given = {name.removeprefix("encoder."): name for name in state_dict}
    if len(given) != len(state_dict):
        raise ValueError("some weights are there twice, with and without the prefix 'encoder.'")
    wanted = classifier.state_dict()
    fits = {
        name: state_dict[given[name]]
        for name, parameter in wanted.items()
        if name in given and state_dict[given[name]].shape == parameter.shape
    }
    missing = tuple(name for name in wanted if name not in fits)
    unexpected = tuple(given[name] for name in given if name not in fits)
    # What a pretraining file does not have, the head and the norm after pooling, starts fresh.
    fine_tuned = any(name.startswith("head.") for name in given)
    fresh = ("head.",) if fine_tuned else ("head.", *_LAST_NORMS)
    skipped = tuple(n for n in missing if n in given or not n.startswith(fresh))
    allowed = ("head.",) if match == "body" else ()
    problems = [
        f"missing {name}, {list(wanted[name].shape)}"
        if name not in given
        else f"{given[name]} is {list(state_dict[given[name]].shape)}, "
        f"the model has {list(wanted[name].shape)}"
        for name in skipped
        if not name.startswith(allowed)
    ]
    known = ("head.", *_LAST_NORMS, *_PRETRAINING_ONLY)
    problems += [
        f"unknown {given[name]}, {list(state_dict[given[name]].shape)}"
        for name in given
        if name not in wanted and not name.startswith(known)
    ]
    if fits and match == "any":
        problems = []
    if problems:
        raise ValueError(
            f"the weights do not fit the model of preset {classifier.config.preset}:"
            + list_problems(problems)
        )
    for name, value in fits.items():
        wanted[name].copy_(value)
    return LoadReport(matched=tuple(fits), skipped=skipped, missing=missing, unexpected=unexpected)


def differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say where weights have other names or shapes than a model: missing ones, unknown ones, other shapes."""
    shapes = {name: list(value.shape) for name, value in wanted.items()}
    theirs = {name: list(value.shape) for name, value in given.items()}
    problems = [f"missing {name}, {shape}" for name, shape in shapes.items() if name not in theirs]
    problems += [f"unknown {name}, {shape}" for name, shape in theirs.items() if name not in shapes]
    problems += [
        f"{name} is {theirs[name]}, the model has {shape}"
        for name, shape in shapes.items()
        if name in theirs and theirs[name] != shape
    ]
    return problems


def list_problems(problems: Sequence[str]) -> str:
    """Return problems one a line, the first twenty of them, to end an error message with."""
    more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
    return "".join(f"\n  {problem}" for problem in problems[:20]) + more


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_plain_classes()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: refused, because it holds more than weights and plain values, and loading it "
            f"could run code ({reason})"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a readable torch file ({error})") from error


def _plain_classes() -> list[Any]:
    """Return what the authors' files hold beside tensors: arguments, paths, numpy numbers."""
    scalar = np.float64(0).__reduce__()[
        0
    ]  # numpy's constructor of scalars; private, and moved in 2.0
    return [
        argparse.Namespace,
        (pathlib.Path, "pathlib.PosixPath"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?")),
    ]


def _unwrap(name: str) -> str:
    while (shorter := _without_wrapper(name)) != name:
        name = shorter
    return name


def _without_wrapper(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _few(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
