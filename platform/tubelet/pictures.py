"""Pictures of a run: what the workers left in ``reconstructed/`` and the curve, drawn by the driver into a folder."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clips import storage
from tubelet.run_directory import RunDirectory
from videomae import ModelConfig, Reconstruction

PICTURED_CLIPS = 4
_KEPT = ("reconstructed", "held_out.npz")  # not in pictures/, all of which MLflow shows


def keep(
    run: RunDirectory,
    frames_BTHWC: Tensor,
    mask_BN: Tensor,
    made: Reconstruction,
    *,
    names: Sequence[str],
) -> None:
    """Leave a few reconstructed clips in the run's folder (called by the worker that has them)."""
    some = slice(0, PICTURED_CLIPS)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        frames_BTHWC=frames_BTHWC[some].cpu().numpy(),
        mask_BN=mask_BN[some].cpu().numpy(),
        names=np.array(list(names)[some]),
        **{f"made_{n}": t[some].detach().cpu().numpy() for n, t in made._asdict().items()},
    )
    storage.write_bytes(run.path(*_KEPT), buffer.getvalue())


def draw_reconstructions(
    run: RunDirectory, folder: Path, *, title: str, model: ModelConfig, fps: float
) -> list[Path]:
    """Draw the newest clips as a grid and a video; returns the files (none before the first evaluation)."""
    uri = run.path(*_KEPT)
    if not storage.exists(uri):
        return []
    from tubelet import (
        visualize,  # here, since workers keep clips and never draw: matplotlib takes a second
    )

    with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as kept:
        made = Reconstruction(
            *(torch.from_numpy(kept[f"made_{name}"]) for name in Reconstruction._fields)
        )
        panels = visualize.compose(
            kept["frames_BTHWC"], torch.from_numpy(kept["mask_BN"]), made, model
        )
        names = [
            f"{name}, loss {loss:.3f}"
            for name, loss in zip(kept["names"].tolist(), made.loss_B.tolist(), strict=True)
        ]
    return [
        _write(
            folder / "reconstructions.png",
            visualize.reconstruction_grid(panels, title=title, clip_titles=names),
        ),
        _write(
            folder / "reconstructions.mp4",
            visualize.reconstruction_video(panels, title=title, clip_titles=names, fps=fps),
        ),
    ]


def draw_curve(spool: Path, folder: Path, *, title: str, loss_name: str) -> Path | None:
    """Draw the loss from the points that are on their way to MLflow; None before there are two."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in spool.read_text().splitlines() if spool.exists() else []:
        entry = json.loads(line)
        for name, value in entry["m"].items():
            series.setdefault(name, []).append((entry["s"], value))
    if len(series.get("train/loss", ())) < 2:
        return None
    from tubelet import visualize

    picture = visualize.loss_curve(
        title=title,
        loss_name=loss_name,
        train=series["train/loss"],
        held_out=series.get("eval/loss", ()),
        learning_rate=series.get("train/lr", ()),
    )
    return _write(folder / "loss.png", picture)


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
