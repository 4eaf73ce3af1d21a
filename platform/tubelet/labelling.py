"""Labels of very many videos with Ray Data: decode on all CPUs, classify where the model is.

``range -> decode (CPU tasks) -> label (actors that hold the model)``. The weights travel through Ray's object store, so
that a model that was fetched from the registry needs no place that all nodes can reach.

Shapes: N videos, V clips of each, T frames, H W C of a frame, K classes; B = N x V.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tubelet import cluster, models
from tubelet.evaluation.inference import Decoder, Views
from videomae import Export, class_probabilities, normalise

_CLIPS_PER_BATCH, _MOST_BLOCKS = 16, 2000


def labelled(
    decoder: Decoder,
    source: models.Source,
    views: Views,
    *,
    top_k: int,
    found: cluster.Cluster,
    count: int,
) -> Iterator[dict[int, dict[str, Any]]]:
    """Yield answers by manifest row, in any order, as they are made."""
    import ray
    import ray.data

    batch = max(1, _CLIPS_PER_BATCH // (views.views * views.crops))
    decode: Any = decoder
    dataset = (
        ray.data.range(count, override_num_blocks=min(_MOST_BLOCKS, -(-count // batch)))
        .map_batches(decode, batch_size=batch, num_cpus=1)
        .map_batches(
            Labeller,
            fn_constructor_args=([ray.put(source.export)], source.classes, top_k),
            batch_size=batch,
            **found.holders(),
        )
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in batches:
        yield {answer.pop("row"): answer for answer in table.to_pylist()}


class Labeller:
    """The model, loaded once by the actor that runs it."""

    def __init__(self, export: list[Any], classes: tuple[str, ...], top_k: int) -> None:
        import ray
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        made: Export = ray.get(export[0])
        self._model, self._several = models.network(made).to(self._device), made.several
        self._classes, self._top_k = classes, top_k

    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        """Ray Data's map function: from clips to labels."""
        import torch

        clips_NVTHWC = batch["clips"]
        count, views = clips_NVTHWC.shape[:2]
        flat = torch.from_numpy(clips_NVTHWC.reshape(-1, *clips_NVTHWC.shape[2:]).copy())
        with torch.inference_mode():
            logits_BK = self._model(normalise(flat.to(self._device)))
            shares_BK = class_probabilities(logits_BK, several=self._several)
            mean_NK = shares_BK.view(count, views, -1).mean(1).cpu().numpy()
        reasons = [str(reason) for reason in batch["reason"]]
        return likeliest(batch["row"], reasons, mean_NK, self._classes, top_k=self._top_k)


def likeliest(
    row_N: NDArray[np.int64],
    reasons: Sequence[str],
    probabilities_NK: NDArray[np.floating],
    classes: tuple[str, ...],
    *,
    top_k: int,
) -> pa.Table:
    """From probabilities of all classes to the likeliest ``top_k``, by name; none for videos with a reason."""
    labels: list[list[str]] = []
    shares: list[list[float]] = []
    for reason, own_K in zip(reasons, probabilities_NK, strict=True):
        order = [] if reason else np.argsort(-own_K, kind="stable")[:top_k].tolist()
        labels.append([classes[i] for i in order])
        shares.append([float(own_K[i]) for i in order])
    return pa.table(
        {
            "row": pa.array(row_N, pa.int64()),
            "reason": pa.array(reasons, pa.string()),
            "labels": pa.array(labels, pa.list_(pa.string())),
            "probabilities": pa.array(shares, pa.list_(pa.float32())),
        }
    )
