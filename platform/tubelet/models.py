"""Where a job's ``model=`` leads: a registered model, a run's folder, or an export."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clips import ClipConfig, storage
from tubelet import handover, pace, registry, tracking
from tubelet.config import UserError
from videomae import Export, VideoClassifier, build_classifier


@dataclass(frozen=True)
class Source:
    """A classifier that was found."""

    name: str
    """As the user named it."""
    folder: str
    """Its export."""
    export: Export
    stride: int
    views: int
    crops: int

    def clip(self, *, stride: int | None = None) -> ClipConfig:
        """How clips are taken from a video: as the model was trained, but for the stride if one is given."""
        return ClipConfig(stride=stride or self.stride, **pace.asked(self.export.extra))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the model's outputs."""
        assert self.export.num_classes is not None
        return self.export.class_names or tuple(map(str, range(self.export.num_classes)))

    @property
    def digest(self) -> str:
        """Hash of its weights and classes: the same wherever it lies, another for every other model."""
        return digest_of(self.export.state_dict, self.classes)


def digest_of(state: Mapping[str, Tensor], classes: Sequence[str] = ()) -> str:
    """Hash of weights, and of the classes that they tell apart."""
    digest = hashlib.blake2b(json.dumps(classes).encode(), digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def network(export: Export) -> VideoClassifier:
    """An exported classifier, ready to be asked, on the CPU."""
    assert export.num_classes is not None
    assert export.pooling is not None
    model = build_classifier(export.config, num_classes=export.num_classes, pooling=export.pooling)
    model.load_state_dict(export.state_dict)
    return model.eval()


def find(name: str, *, storage_root: str, folder: Path) -> list[Source]:
    """The classifiers that ``name`` stands for: one, or all draws of a run.

    Args:
        name: ``models:/NAME@ALIAS``, a run's folder, or an export's.
        storage_root: where MLflow's file is when there is no server.
        folder: local folder for what must be copied.

    Raises:
        UserError: there is none.
    """
    if name.startswith("models:/"):
        uri = tracking.resolve_uri(storage.absolute(storage_root))
        local, views = registry.fetch(name, folder, uri=uri)
        return [_source(name, str(local), views)]
    root = storage.absolute(name)
    found = [place for place in (root, storage.join(root, "export")) if _complete(place)]
    if not found:
        exports = storage.join(root, "export")
        draws = [n for n in storage.list_names(exports) if _complete(storage.join(exports, n))]
        found = [storage.join(exports, draw) for draw in sorted(draws, key=_number)]
    if not found:
        raise UserError(
            f"{storage.redact(name)} holds no model: name a finished fine-tuning run, its export folder, "
            f"or models:/NAME@ALIAS"
        )
    return [_source(name if len(found) == 1 else place, place, {}) for place in found]


def find_one(name: str, *, storage_root: str, folder: Path) -> Source:
    """The one classifier that ``name`` stands for; see ``find``.

    Raises:
        UserError: there is none, or there are several.
    """
    found = find(name, storage_root=storage_root, folder=folder)
    if len(found) > 1:
        names = ", ".join(source.name for source in found)
        raise UserError(f"model={name} holds several models: name one of {names}")
    return found[0]


def shown(labels: Sequence[str], probabilities: Sequence[float]) -> str:
    """Labels for people, likeliest first."""
    return ", ".join(f"{n} {p:.1%}" for n, p in zip(labels, probabilities, strict=True))


def _number(draw: str) -> tuple[int, str]:
    """Order of draws: draw_2 before draw_10, as accuracies and exports go by the same number."""
    digits = draw.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else 0), draw


def _complete(place: str) -> bool:
    return storage.exists(storage.join(place, "config.json"))


def _source(name: str, folder: str, views: dict[str, int]) -> Source:
    export = handover.read(folder)
    if export.kind != "classifier":
        raise UserError(
            f"{name} is a {export.kind} model, which has no classes: fine-tune it first (jobs/finetune.py)"
        )
    stride = views.get("stride") or export.extra.get("stride") or 1
    return Source(name, folder, export, int(stride), views.get("views", 1), views.get("crops", 1))
