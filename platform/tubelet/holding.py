"""A worker's side of what the controller may ask of it: save and hold, show your stacks.

Ray answers the controller's calls in a thread of the worker's process beside the one that trains. Functions are sent by
name, so what they set here is what the training thread sees.

Holding is how a group is replaced without repeating a step: all ranks save after the step they are in, and then wait to
be ended instead of training on past the checkpoint that their successors will start from.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable

from tubelet import pulse

_asked = threading.Event()
_POLL_S = 0.5
_LONGEST_S = 900.0


class HeldTooLongError(RuntimeError):
    """Nobody came to replace a worker that held; it starts again where it saved."""


def ask_to_hold() -> None:
    """Have this worker save and hold after its present step."""
    _asked.set()


def asked_to_hold() -> bool:
    """Whether the controller has asked for it."""
    return _asked.is_set()


def hold(step: int, *, until: Callable[[], bool]) -> None:
    """Wait to be ended; returns when ``until`` holds.

    Args:
        step: steps done and saved.
        until: somebody wants the run to stop for good.

    Raises:
        HeldTooLongError: neither came.
    """
    begun = time.monotonic()
    pulse.beat(step, "hold")
    while not until():
        if time.monotonic() - begun > _LONGEST_S:
            raise HeldTooLongError(f"saved at step {step} and held for {_LONGEST_S:.0f} s in vain")
        time.sleep(_POLL_S)


def stacks() -> str:
    """What every thread of this process is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(number, number)}\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    )
