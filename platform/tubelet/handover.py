"""The hand-over between jobs: an export folder (safetensors and JSON) in a run's storage, local or remote."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clips import storage
from videomae import Export, ModelConfig, load_export, save_export

_FILES = ("model.safetensors", "config.json")  # the second last: it makes the folder complete


def write(
    uri: str,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    extra: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a model to the folder ``uri``."""
    with tempfile.TemporaryDirectory() as local:
        save_export(local, state, config, extra, class_names=class_names)
        for name in _FILES:
            storage.write_bytes(storage.join(uri, name), (Path(local) / name).read_bytes())


def fetch(uri: str, folder: str | Path) -> Path:
    """Copy the export at ``uri`` to a local folder (nothing to do when it is local already)."""
    if storage.is_local(uri):
        return Path(storage.local_path(uri))
    for name in _FILES:
        storage.write_bytes(str(Path(folder) / name), storage.read_bytes(storage.join(uri, name)))
    return Path(folder)


def read(uri: str) -> Export:
    """Read the model at ``uri``."""
    with tempfile.TemporaryDirectory() as local:
        return load_export(fetch(uri, local))
