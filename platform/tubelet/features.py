"""Write what a frozen encoder gives of a manifest's videos, and go on where that was interrupted.

``numbers of parts -> decode (CPU tasks) -> encode and write (actors that hold the encoder)``. Features never travel to
the driver: an actor writes a part as soon as it has it. Each part goes through the encoder by itself, in batches of the
same size, so that its bits do not depend on how many actors there are.

Cost: a kill loses the parts under way, each at most 32 videos or 96 MB of clips.

Shapes: B clips; for the others see ``feature_set``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clips import ClipConfig, Manifest, Rejected, storage
from clips.earlier import OF_THE_MOMENT
from tubelet import cluster, file_jobs, handover, models, origins, pace, rows, terminal
from tubelet.config import UserError
from tubelet.evaluation.inference import Decoder, Views
from tubelet.feature_set import FeatureFolder, stretches, token_bytes, told_in
from tubelet.parts import Part, keys_of
from tubelet.recipes import Features
from videomae import FrozenEncoder, ModelConfig, encoder_state, normalise, random_encoder

_MOST_ROWS, _PART_BYTES = 32, 96 << 20
_BATCH = 16


@dataclass(frozen=True)
class Origin:
    """An encoder that was found."""

    name: str
    config: ModelConfig
    state: Mapping[str, Tensor]
    stride: int | None
    """As it was trained; None: nothing says."""
    pace: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What came of it."""

    folder: str
    videos: int
    rejected: tuple[Rejected, ...]
    """Videos without features, with the reason."""

    def summary(self) -> str:
        """Where everything is, in a line for people."""
        text = f"features of {self.videos} videos in {storage.redact(self.folder)}/features"
        return f"{text}; {len(self.rejected)} could not be decoded" if self.rejected else text


def run(recipe: Features, manifest: Manifest) -> Made:
    """Make the features that are not there yet; connects to Ray if there are any to make.

    Raises:
        UserError: there is no such encoder, its sizes are not known, or the folder holds other features.
        Stopped: the storage has failed in the middle; the same call goes on from there.
    """
    files = FeatureFolder(storage.absolute(recipe.output))
    origin = find(recipe)
    views = Views(_clip(recipe, origin), recipe.views, recipe.crops)
    asked = _question(recipe, origin, views)
    if recipe.fresh:  # now that nothing can be refused any more
        files.clear()
    else:
        file_jobs.check_same(asked, told_in(files.folder), holds="features", by=origin.name)
    file_jobs.told(asked, told_in(files.folder), by=origin.name)
    videos = keys_of(manifest.table)
    parts = stretches(videos, rows=asked["rows"])
    todo = _todo(parts, files)
    done = len(videos) - sum(len(part.rows) for part in todo)
    if done:
        terminal.say(f"{done} of {len(videos)} videos have features from before")
    if recipe.tokens and todo:
        size = len(videos) * token_bytes(asked) / 1e6
        terminal.say(f"all tokens of all videos: {size:,.0f} MB (pool= keeps fewer)")
    if todo:
        _make(recipe, manifest, origin, views, todo, files=files, done=done)
    bad = files.undecodable({part.name for part in parts})
    found = [row for name in sorted(bad) for row in bad[name].to_pylist()]
    rejected = [Rejected(row["video_id"], row["reason"], row["message"]) for row in found]
    return Made(files.folder, len(videos) - len(found), tuple(rejected))


def _question(recipe: Features, origin: Origin, views: Views) -> dict[str, Any]:
    """What makes features those of one kind; the shapes that readers need among it."""
    return {
        "weights": models.digest_of(origin.state),
        "stride": views.clip.stride,
        "sampling": views.clip.sampling,
        "fps": views.clip.fps,
        "views": views.views,
        "crops": views.crops,
        "clips": views.views * views.crops,
        "tokens": recipe.tokens,
        "grid": list(_pooled(origin.config, recipe.pool)),
        "width": origin.config.encoder.width,
        "rows": _rows_of_part(origin.config, views.views * views.crops),
    }


# --- the encoder -----------------------------------------------------------------------------


def find(recipe: Features) -> Origin:
    """The encoder that ``encoder`` names, with fresh weights if ``random`` asks for them.

    Raises:
        UserError: there is none, or its sizes are not known.
    """
    name = recipe.encoder
    root = storage.absolute(recipe.storage)
    try:
        settled = origins.settle(name, root=root)
        place = origins.place_of(settled, root=root)
        export = None if place.endswith(handover.WEIGHT_SUFFIXES) else handover.read_there(place)
        if export is not None:
            if recipe.model is not None:
                raise UserError(
                    "model gives the sizes of a weight file, but an export says its own: leave it out"
                )
            stride = export.extra.get("stride")
            origin = Origin(
                settled, export.config, export.state_dict, stride, pace.asked(export.extra)
            )
        else:
            state = origins.read(settled, root=root)
            if recipe.model is None:
                raise UserError(
                    "a weight file does not say the sizes of its model: give them, such as model.preset=vit_b "
                    "model.frames=16 model.image_size=224"
                )
            origin = Origin(settled, recipe.model, state, None, {})
        if recipe.random is not None:
            fresh = random_encoder(origin.config, seed=recipe.random)
            name = f"fresh weights (seed {recipe.random}) in place of {name}"
            origin = Origin(name, origin.config, fresh, origin.stride, origin.pace)
        encoder_state(origin.config, origin.state)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"encoder: {recipe.encoder}: {error}") from error
    return origin


def _clip(recipe: Features, origin: Origin) -> ClipConfig:
    stride = recipe.stride or origin.stride
    if stride is None:
        raise UserError(
            f"encoder: {recipe.encoder} does not say the stride that it was trained with: give it, such as stride=4"
        )
    return ClipConfig(stride=stride, **origin.pace)


def _pooled(config: ModelConfig, pool: int) -> tuple[int, int, int]:
    """Tokens that are kept, along time, height and width."""
    time, height, width = config.grid
    if height % pool or width % pool:
        allowed = [n for n in range(1, height + 1) if not (height % n or width % n)]
        raise UserError(
            f"pool={pool} does not divide the {height} x {width} tokens of a picture; allowed: "
            + ", ".join(map(str, allowed))
        )
    return time, height // pool, width // pool


def _rows_of_part(config: ModelConfig, clips: int) -> int:
    video = clips * config.frames * config.image_size**2 * 3
    return max(1, min(_MOST_ROWS, _PART_BYTES // video))


# --- making them -----------------------------------------------------------------------------


def _todo(parts: list[Part], files: FeatureFolder) -> list[Part]:
    """Parts that are missing, or have videos that could not be read for a moment only."""
    there = files.names()
    bad = files.undecodable({part.name for part in parts} & there)
    again = {
        name for name, table in bad.items() if {*table["reason"].to_pylist()} & {*OF_THE_MOMENT}
    }
    return [part for part in parts if part.name not in there or part.name in again]


def _make(
    recipe: Features,
    manifest: Manifest,
    origin: Origin,
    views: Views,
    todo: list[Part],
    *,
    files: FeatureFolder,
    done: int,
) -> None:
    found = cluster.connect(trainer_cpus=1)
    import ray
    import ray.data

    config = origin.config
    table = manifest.local_table(rows.cache_folder())
    every = np.array([row for part in todo for row in part.rows], np.int64)
    decoder = Decoder(table, every, (config.frames, config.image_size), views, recipe.decode)
    starts = np.cumsum([0, *(len(part.rows) for part in todo)])
    decode: Any = _Decode(decoder, starts)
    dataset = (
        ray.data.range(len(todo), override_num_blocks=len(todo))
        .map_batches(decode, batch_size=1, num_cpus=1)
        .map_batches(
            _Encode,
            fn_constructor_args=(
                [ray.put((config, encoder_state(config, origin.state)))],
                [part.name for part in todo],
                files,
                recipe.tokens,
                recipe.pool,
            ),
            batch_size=None,
            **found.holders(),
        )
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    total = done + len(every)
    with (
        file_jobs.stopping(lambda: f"features of {done} of {total} videos are kept"),
        terminal.progress("features", total, unit="videos", done=done) as bar,
    ):
        batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            done += sum(batch["videos"].to_pylist())
            bar.update(done)


@dataclass(frozen=True)
class _Decode:
    """From the number of a part to all clips of its videos."""

    decoder: Decoder
    starts: NDArray[np.int64]

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        (number,) = batch["id"]
        places = np.arange(int(self.starts[number]), int(self.starts[number + 1]))
        found = self.decoder({"id": places})
        return {
            "part": np.full(len(places), number),
            "video_id": found["video_id"],
            "start_s": found["start_s"],
            "reason": found["reason"],
            "clips": found["clips"],
        }


class _Encode:
    """The encoder, loaded once by the actor that runs it; writes each part."""

    def __init__(
        self, weights: list[Any], names: list[str], files: FeatureFolder, tokens: bool, pool: int
    ) -> None:
        import ray

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = FrozenEncoder(*ray.get(weights[0])).to(self._device)
        self._names, self._files, self._tokens, self._pool = names, files, tokens, pool

    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        """Ray Data's map function; a block holds whole parts."""
        numbers = np.unique(batch["part"])
        videos = [
            self._write(self._names[n], {k: v[batch["part"] == n] for k, v in batch.items()})
            for n in numbers
        ]
        return pa.table({"videos": videos})

    def _write(self, name: str, part: dict[str, NDArray[Any]]) -> int:
        features: list[dict[str, Any]] = []
        undecodable: list[dict[str, Any]] = []
        mean_RVD, tokens_RVM = self._encode(part["clips"])
        for i, reason in enumerate(part["reason"]):
            start = float(part["start_s"][i])
            row = {"video_id": part["video_id"][i], "start_s": None if np.isnan(start) else start}
            if reason:
                kind, _, message = reason.partition(": ")
                undecodable.append({**row, "reason": kind, "message": message})
            else:
                tokens = tokens_RVM[i].ravel() if self._tokens else None
                features.append({**row, "mean": mean_RVD[i].ravel(), "tokens": tokens})
        self._files.write(name, features, undecodable)
        return len(part["reason"])

    def _encode(
        self, clips_RVTHWC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Mean tokens [R, V, D], and kept tokens, [R, V, T * H * W * D]."""
        videos, views, *shape = clips_RVTHWC.shape
        flat = clips_RVTHWC.reshape(-1, *shape)
        means: list[Tensor] = []
        kept: list[Tensor] = []
        for start in range(0, len(flat), _BATCH):
            few = flat[start : start + _BATCH]
            full = np.zeros((_BATCH, *shape), np.uint8)  # sums depend on the size of a batch
            full[: len(few)] = few
            tokens_BND = self._model(normalise(torch.from_numpy(full).to(self._device)))
            tokens_BND = tokens_BND[: len(few)].float()
            means.append(tokens_BND.mean(1).cpu())
            if self._tokens:
                kept.append(self._pooled(tokens_BND).half().flatten(1).cpu())
        tokens = torch.cat(kept).view(videos, views, -1) if kept else torch.empty(videos, 0)
        return torch.cat(means).view(videos, views, -1).numpy(), tokens.half().numpy()

    def _pooled(self, tokens_BND: Tensor) -> Tensor:
        """Means over neighbours in the picture, [B, fewer N, D]."""
        if self._pool == 1:
            return tokens_BND
        _, height, width = self._model.config.grid
        maps = tokens_BND.view(-1, height, width, tokens_BND.shape[-1]).permute(0, 3, 1, 2)
        fewer = F.avg_pool2d(maps, self._pool).permute(0, 2, 3, 1)
        return fewer.reshape(len(tokens_BND), -1, tokens_BND.shape[-1])
