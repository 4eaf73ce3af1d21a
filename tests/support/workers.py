"""Gloo groups of real processes, for tests of what happens between ranks.

Processes come from a fork server that has imported torch once, so that a group starts in tenths of a second. What they
run must lie in a module that they can import: in ``tests/support`` or in our packages, not in a test file.
"""

import contextlib
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver as server
from multiprocessing import popen_forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_PRELOAD = ["torch", "torch._dynamo", "torch.distributed.fsdp", "tubelet.loops.pretrain"]
"""Dynamo alone is two seconds that the first step of an optimizer would take in every process."""
_TIMEOUT_S = 240.0


def run_group(
    world_size: int, function: Callable[..., Any], *arguments: Any, **options: Any
) -> list[Any]:
    """Call ``function(*arguments, **options)`` on every rank of a new gloo group; returns the ranks' results.

    Raises:
        AssertionError: a rank failed (its traceback is the message), or the group is stuck.
    """
    context = forkserver()
    with tempfile.TemporaryDirectory(prefix="gloo") as folder:
        task = pickle.dumps((function, arguments, options))
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(
                target=_rank, args=(rank, world_size, folder, task, pipes[rank][1]), daemon=True
            )
            for rank in range(world_size)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        try:
            return _collect([ours for ours, _ in pipes])
        finally:
            for process, (ours, _) in zip(processes, pipes, strict=True):
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()
                ours.close()


def forkserver() -> ForkServerContext:
    """Where every test should get its processes from: a server of our own, beside that of the decoders.

    Python has one for all, and the first to start it decides what it has imported: nothing of torch, where videos were
    decoded first (3 s for every process of a group, measured).
    """
    return _Context()


_server: Any = server.ForkServer()
_server.set_forkserver_preload(_PRELOAD)


class _Popen(popen_forkserver.Popen):
    def _launch(self, process_obj: Any) -> None:
        module: Any = server
        usual = module.connect_to_new_process
        module.connect_to_new_process = _server.connect_to_new_process
        try:
            super()._launch(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            module.connect_to_new_process = usual


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        ready = wait([p for r, p in enumerate(pipes) if r not in results], timeout=_TIMEOUT_S)
        assert ready, f"ranks {sorted(set(range(len(pipes))) - set(results))} are stuck"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            with contextlib.suppress(EOFError):
                done, content = pickle.loads(pipe.recv_bytes())
                assert done, f"rank {rank} failed:\n{content}"
                results[rank] = content
                continue
            raise AssertionError(f"rank {rank} died without a word")
    return [results[rank] for rank in range(len(pipes))]


def _rank(rank: int, world_size: int, folder: str, task: bytes, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        function, arguments, options = pickle.loads(task)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(folder) / 'store'}",
            rank=rank,
            world_size=world_size,
        )
        answer = (True, function(*arguments, **options))
        dist.barrier()  # nobody leaves while another still needs it
        dist.destroy_process_group()
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()
