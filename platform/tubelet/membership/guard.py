"""An exception out of a hook of Ray Train's controller ends the run (and in two hooks leaks CPUs): none gets out."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

_log = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")


def harmless(hook: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Log what a hook raises."""

    @functools.wraps(hook)
    def guarded(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> None:
        try:
            hook(*arguments, **named)
        except Exception:
            _log.exception("in %s", hook.__qualname__)

    return guarded
