"""The feed's transport: one Ray Data pipeline from item numbers to decoded blocks, in order.

``range -> repartition(1 row a block) -> map_batches(decode)``, split over the workers with order preserved and without
equalising, which would drop rows and cut units. Few read blocks: the first batch waits for each of them. The dataset is
made anew by the controller at every start of a worker group, from the attempt that it has just written down.
"""

import functools
from collections.abc import Callable
from typing import Any

import ray.data
import ray.train

from tubelet import cluster, membership, quarantine
from tubelet.items import DataPlan, decode_item
from tubelet.run_directory import RunDirectory

_READ_BLOCKS = 2


def dataset_of(
    run: RunDirectory, plan: DataPlan, *, decode_cpus: float
) -> Callable[[], ray.data.Dataset]:
    """What Ray Train's controller calls for the rest of the run at every start of a worker group."""

    def make() -> ray.data.Dataset:
        attempt = run.newest_attempt()
        assert attempt is not None, "the controller writes an attempt before it makes the dataset"
        context = (
            ray.data.DataContext.get_current()
        )  # the controller's own; the driver's does not reach it
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.custom_execution_callback_classes = [membership.Rest]
        first = plan.timetable.first_item(attempt.step)
        items = max(1, plan.timetable.items - first)
        out = quarantine.known_out(quarantine.read(run, attempt.parent))
        decode_one: Any = functools.partial(
            decode_item, plan=plan, first_item=first, attempt=attempt.number, out=out
        )
        return (
            ray.data.range(items, override_num_blocks=min(_READ_BLOCKS, items))
            .repartition(target_num_rows_per_block=1, strict=True)
            .map_batches(decode_one, batch_size=1, num_cpus=decode_cpus)
        )

    return make


class OrderedDataConfig(ray.train.DataConfig):
    """Deals blocks out in turn, all of them, in order.

    Args:
        labelled: decode on nodes with the label of ``cluster.DATA_NODES`` only.
    """

    def __init__(self, *, labelled: bool = False) -> None:
        label, value = cluster.DATA_NODES
        selector: dict[str, str] | None = {label: value} if labelled else None
        super().__init__(execution_options=ray.data.ExecutionOptions(label_selector=selector))

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: list[Any] | None = None,
        worker_node_ids: list[Any] | None = None,
        **unused: Any,
    ) -> list[dict[str, Any]]:
        """Split every dataset over ``world_size`` workers."""
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, original in datasets.items():
            dataset = original.copy(original)
            options = self._resolve_execution_options(name)
            options.preserve_order = True
            dataset.context.execution_options = options
            for rank, iterator in enumerate(dataset.streaming_split(world_size, equal=False)):
                shards[rank][name] = iterator
        return shards
