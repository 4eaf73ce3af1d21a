"""The window of decoding tasks: how many items are asked for, and that they come in order whatever dies."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import ClipConfig, DecodeConfig
from motion import motion_manifest
from tubelet.items import DataPlan, decode_item
from tubelet.ledger import Ledger
from tubelet.stream import Room, Stream, Supply, window_of
from tubelet.timetable import Timetable

SUPPLY = Supply(decode_cpus=1.0, prefetch=2, labelled=False, cpus_per_worker=1.0)


def test_a_rank_asks_for_its_share_of_the_free_cpus_and_the_prefetch() -> None:
    room = Room(cpus=10, store_bytes=1e12)
    assert window_of(room, SUPPLY, world_size=2, item_bytes=1) == 4 + 2
    assert window_of(room, SUPPLY, world_size=3, item_bytes=1) == 3 + 2  # 7 CPUs for 3
    assert window_of(room, replace(SUPPLY, decode_cpus=0.5), world_size=2, item_bytes=1) == 8 + 2
    assert window_of(room, replace(SUPPLY, labelled=True), world_size=2, item_bytes=1) == 5 + 2
    assert window_of(room, SUPPLY, world_size=2, item_bytes=1, factor=4) == 16 + 2


@given(
    cpus=st.floats(0, 1000),
    store=st.integers(0, 10**10),
    item=st.integers(1, 10**8),
    world_size=st.integers(1, 64),
    factor=st.sampled_from([1, 2, 4, 8]),
)
def test_all_windows_together_fit_half_of_the_store_but_every_rank_gets_an_item(
    cpus: float, store: int, item: int, world_size: int, factor: int
) -> None:
    room = Room(cpus=cpus, store_bytes=store)
    window = window_of(room, SUPPLY, world_size=world_size, item_bytes=item, factor=factor)
    assert window >= 1
    assert window == 1 or window * world_size * item <= store / 2


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    folder = tmp_path_factory.mktemp("stream")
    manifest = motion_manifest(folder / "videos", training=8)
    ledger = Ledger(rows=8, epochs=6, batch=4, micro_batch=2, seed=3)
    return DataPlan(
        ledger=ledger,
        timetable=Timetable(ledger.steps, ledger.units_per_step),
        table=manifest.local_table(str(folder / "tables")),
        rows=(np.arange(8),),
        held_out_rows=np.arange(0),
        copies=1,
        clip=ClipConfig(stride=1),
        decode=DecodeConfig(),
        frames=4,
        size=16,
    )


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    from tubelet import cluster

    cluster.connect(trainer_cpus=0, store_bytes=256 << 20)
    import ray

    yield ray
    ray.shutdown()


def stream_of(plan: DataPlan, *, first: int = 0, rank: int = 0, world_size: int = 1) -> Stream:
    return Stream(
        plan, SUPPLY, first_item=first, rank=rank, world_size=world_size, attempt=4, out={}
    )


def decoding_workers() -> list[psutil.Process]:
    """Ray's processes that run a task of ours at the moment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if " ".join(process.cmdline()).startswith("ray::decode_item"):
                found.append(process)
    return found


@pytest.mark.cluster
def test_ranks_get_their_items_in_order_and_the_same_clips_as_without_ray(
    plan: DataPlan, ray: Any
) -> None:
    streams = [stream_of(plan, first=3, rank=rank, world_size=2) for rank in range(2)]
    for number in range(3, plan.timetable.items):
        batch = next(streams[(number - 3) % 2])
        expected = decode_item(number, plan=plan, attempt=4, out={})
        assert set(batch["item"]) == {number}
        for name in ("frames", "row", "position", "valid", "attempt"):
            assert np.array_equal(batch[name], expected[name])
    for stream in streams:
        with pytest.raises(StopIteration):
            next(stream)


@pytest.mark.cluster
def test_a_decoding_worker_that_is_killed_costs_no_item(plan: DataPlan, ray: Any) -> None:
    stream, killed = stream_of(plan), 0
    for number in range(plan.timetable.items):
        if killed < 2:
            for process in decoding_workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
        assert set(next(stream)["item"]) == {number}
    assert killed, "no task was running when the test looked"


@pytest.mark.cluster
def test_an_error_of_the_storage_reaches_the_trainer(
    plan: DataPlan, ray: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Gone:
        def video(self, row: int) -> Any:
            raise ValueError("the storage of these videos is gone")

    broken = replace(plan, table=Gone())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the storage of these videos is gone"):
        next(stream_of(broken))
