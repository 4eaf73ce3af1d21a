"""The hand-over between jobs: an export folder (safetensors and JSON) in a run's storage, local or remote."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clips import storage
from videomae import Export, ModelConfig, load_export, read_state_dict, save_export
from videomae.weights.export import CONFIG_FILE, WEIGHTS_FILE

FILES = (WEIGHTS_FILE, CONFIG_FILE)
"""Of an export's folder; the second is written last and makes it complete."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pyth")


def write(
    uri: str,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    extra: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    several: bool = False,
) -> None:
    """Write a model to the folder ``uri``; see ``videomae.save_export``."""
    with tempfile.TemporaryDirectory() as local:
        save_export(local, state, config, extra, class_names=class_names, several=several)
        copy(local, uri)


def copy(export: str | Path, uri: str) -> None:
    """Copy a local export to the folder ``uri``."""
    for name in FILES:
        storage.write_bytes(storage.join(uri, name), (Path(export) / name).read_bytes())


def fetch(uri: str, folder: str | Path) -> Path:
    """Copy the export at ``uri`` to a local folder (nothing to do when it is local already)."""
    if storage.is_local(uri):
        return Path(storage.local_path(uri))
    for name in FILES:
        storage.write_bytes(str(Path(folder) / name), storage.read_bytes(storage.join(uri, name)))
    return Path(folder)


def read_weights(uri: str) -> dict[str, Tensor]:
    """Weights to start from: an export folder, a run's folder, a safetensors file, or an authors' checkpoint.

    Raises:
        ValueError: none of these is there.
    """
    if uri.endswith(WEIGHT_SUFFIXES):
        with tempfile.TemporaryDirectory() as local:
            path = Path(local) / uri.rsplit("/", 1)[-1]
            if storage.is_local(uri):
                path = Path(storage.local_path(uri))
            else:
                path.write_bytes(storage.read_bytes(uri))
            return read_state_dict(path)
    export = read_there(uri)
    if export is not None:
        return export.state_dict
    raise ValueError(
        "neither an export folder (model.safetensors and config.json), nor a finished run's folder, "
        "nor a .safetensors or .pth file"
    )


def read_there(uri: str) -> Export | None:
    """Read the export that a folder is, or that a finished run's folder holds; None: it is neither."""
    folder = _folder_there(uri)
    return None if folder is None else read(folder)


def class_names(uri: str) -> tuple[str, ...] | None:
    """What the model in an export's or a run's folder calls its classes; None where nothing says."""
    folder = None if uri.endswith(FILES[0]) else _folder_there(uri)
    if folder is None:
        return None
    names = json.loads(storage.read_bytes(storage.join(folder, FILES[1]))).get("class_names")
    return tuple(names) if names else None


def _folder_there(uri: str) -> str | None:
    folders = (uri, storage.join(uri, "export"))
    return next((f for f in folders if storage.exists(storage.join(f, FILES[1]))), None)


def read(uri: str) -> Export:
    """Read the model at ``uri``."""
    with tempfile.TemporaryDirectory() as local:
        return load_export(fetch(uri, local))
