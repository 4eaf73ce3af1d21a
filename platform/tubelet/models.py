"""Where a job's ``model=`` leads: a registered model, a run's folder, or an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clips import storage
from tubelet import handover, registry, tracking
from tubelet.config import UserError
from videomae import Export


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

    @property
    def sampling(self) -> Literal["strided", "segments"]:
        """How clips are taken from a video: at the stride, or one frame of each segment, as it was trained."""
        return "segments" if self.export.extra.get("sampling") == "segments" else "strided"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the model's outputs."""
        assert self.export.num_classes is not None
        return self.export.class_names or tuple(map(str, range(self.export.num_classes)))


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
