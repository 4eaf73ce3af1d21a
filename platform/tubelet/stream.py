"""The feed's transport: a window of Ray tasks that decode the items of one rank, ahead of it and in its order.

Each rank asks for its own items, number by number, and takes them in that order, so no one has to deal them out: the
order is exact by construction, ranks keep pace through the collectives of their steps, and a new worker group starts at
once. What is asked for ahead is a window: this rank's share of the CPUs that can decode, and ``data.prefetch`` items
beyond. It follows a cluster that grows, and doubles while the rank has to wait, so that pending tasks tell an
autoscaler that decoding wants more nodes; it never holds more than half of the cluster's object store.

Items cross the store once, as arrays that the worker maps. A task that dies with its process or node is run again by
Ray, as is one whose result was on a node that is lost. The plan travels once, by reference. Why not Ray Data: ADR 9.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from tubelet import cluster
from tubelet.items import Batch, DataPlan, decode_item

_LOOK_EVERY_S = 5.0
_STORE_SHARE = 0.5
_MOST = 8
"""Times as many tasks as there are CPUs for, at most."""


@dataclass(frozen=True)
class Supply:
    """What decoding may use (from the recipe and the size of the group)."""

    decode_cpus: float
    prefetch: int
    labelled: bool
    """Decode on labelled nodes only."""
    cpus_per_worker: float
    """Held by each rank."""


@dataclass(frozen=True)
class Room:
    """What the cluster offers at the moment."""

    cpus: float
    """Of nodes that may decode, those of the trainers included where they share nodes."""
    store_bytes: float
    """Of all nodes' object stores."""


def window_of(
    room: Room, supply: Supply, *, world_size: int, item_bytes: int, factor: int = 1
) -> int:
    """How many items a rank asks for ahead.

    Args:
        room: what the cluster offers.
        supply: what decoding may use.
        world_size: ranks that share it.
        item_bytes: size of an item.
        factor: by how much more CPUs are asked for than there are; grows while a rank waits.
    """
    spare = room.cpus if supply.labelled else room.cpus - world_size * supply.cpus_per_worker
    tasks = max(1, int(spare / supply.decode_cpus + 1e-9))
    wanted = -(-tasks // world_size) * factor + supply.prefetch
    allowed = int(room.store_bytes * _STORE_SHARE / (item_bytes * world_size))
    return max(1, min(wanted, allowed))


class Stream(Iterator[Batch]):
    """One rank's items from the attempt's first one to the end of the run.

    Args:
        plan: the run's.
        supply: what decoding may use.
        first_item: number of the first item of the whole group.
        rank: of ``world_size``.
        world_size: ranks that share the items.
        attempt: stamped on every clip.
        out: rows that are no longer tried, with the step from which on.
    """

    def __init__(
        self,
        plan: DataPlan,
        supply: Supply,
        *,
        first_item: int,
        rank: int,
        world_size: int,
        attempt: int,
        out: Mapping[int, int],
    ) -> None:
        self._supply, self._world_size = supply, world_size
        self._item_bytes = plan.unit_bytes
        self._numbers = iter(range(first_item + rank, plan.timetable.items, world_size))
        self._ahead: deque[Any] = deque()
        self._plan: Any = ray.put(plan)
        self._out: Any = ray.put(dict(out))
        self._attempt = attempt
        label, value = cluster.DATA_NODES
        task: Any = decode_item  # Ray's annotations know no keywords
        self._decode: Any = ray.remote(task).options(
            num_cpus=supply.decode_cpus,
            max_retries=-1,
            scheduling_strategy="DEFAULT",  # not inside the placement group of the trainers
            label_selector={label: value} if supply.labelled else None,
        )
        self._factor, self._looked_at, self._waited = 1, -_LOOK_EVERY_S, False
        self._window = 1

    def __next__(self) -> Batch:
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._look()
            self._fill()
        if not self._ahead:
            raise StopIteration
        item = self._ahead.popleft()
        self._waited |= not ray.wait([item], timeout=0)[0]
        batch: Any = ray.get(item)
        self._fill()
        return batch

    def _fill(self) -> None:
        while len(self._ahead) < self._window:
            number = next(self._numbers, None)
            if number is None:
                break
            self._ahead.append(
                self._decode.remote(number, plan=self._plan, attempt=self._attempt, out=self._out)
            )
        coming = list(self._ahead)[: 1 + self._supply.prefetch]
        if coming:  # fetches what is done on other nodes
            ray.wait(coming, num_returns=len(coming), timeout=0, fetch_local=True)

    def _look(self) -> None:
        """Follow the cluster's size, and ask for more while there is too little."""
        self._factor = min(2 * self._factor, _MOST) if self._waited else 1
        self._looked_at, self._waited = time.monotonic(), False
        self._window = window_of(
            _room(self._supply.labelled),
            self._supply,
            world_size=self._world_size,
            item_bytes=self._item_bytes,
            factor=self._factor,
        )


def _room(labelled: bool) -> Room:
    return Room(
        cpus=cluster.total("CPU", cluster.nodes(labelled=labelled)),
        store_bytes=cluster.total("object_store_memory", cluster.nodes()),
    )
