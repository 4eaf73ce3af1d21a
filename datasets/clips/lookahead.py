"""Many requests under way, their answers in order: what listing needs where each place is asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")

_AT_ONCE = 32


def in_turn(
    look: Callable[[T], V], items: Iterable[T], is_slow: Callable[[T], bool]
) -> Iterator[V]:
    """Yield what `look` gives for each, in order: at once, or with many requests under way for those that are slow."""
    waiting: deque[Future[V] | tuple[V]] = deque()
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        for item in items:
            waiting.append(pool.submit(look, item) if is_slow(item) else (look(item),))
            if len(waiting) > 4 * _AT_ONCE:
                yield _value(waiting.popleft())
        while waiting:
            yield _value(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _value(found: "Future[V] | tuple[V]") -> V:
    return found.result() if isinstance(found, Future) else found[0]
