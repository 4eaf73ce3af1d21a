"""The ``tubelet`` command.

    tubelet audit RUN                            prove that a run consumed every sample once, or name what is missing
    tubelet register RUN [name=NAME]             make a finished fine-tuning run's model a version in the registry
    tubelet promote NAME manifest=FILE.parquet   make the challenger champion, unless it is worse on these videos
    tubelet predict VIDEO [model=models:/N@A]    the likeliest labels of one video, and a picture of the frames used

RUN is a run's folder, ``<run.storage>/<run.name>``, on a disk or in a bucket. ``tubelet COMMAND --help`` lists keys.
Exit codes: 0 done (exact, promoted), 2 your mistake, 3 not exact, not promoted.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from clips import storage
from tubelet import config, file_jobs, proof, terminal
from tubelet.config import DONE, STOPPED, UserError
from tubelet.run_directory import RunDirectory

T = TypeVar("T")


def main() -> None:
    """What the installed command calls."""
    config.run_main(_command)


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        terminal.say((__doc__ or "").strip())
        return DONE
    verb, *rest = arguments
    if verb not in _VERBS:
        raise UserError(f"tubelet {verb}: unknown command; there is: {', '.join(_VERBS)}")
    return _VERBS[verb](rest)


def _audit(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise UserError(
            f"tubelet audit takes one run's folder, got {len(arguments)}: tubelet audit RUN"
        )
    exact, lines = proof.prove(RunDirectory(storage.absolute(arguments[0])))
    terminal.say("\n".join(lines))
    return DONE if exact else STOPPED


def _register(arguments: list[str]) -> int:
    from tubelet import registration

    asked = _asked(registration.Register, arguments, verb="register RUN", key="run")
    with terminal.console_and_log(file_jobs.log_file("register")):
        made = registration.register(asked)
        terminal.say(f"{made.model_uri} is version {made.version} now")
    return DONE


def _promote(arguments: list[str]) -> int:
    from tubelet import promotion

    asked = _asked(promotion.Promote, arguments, verb="promote NAME", key="name")
    with terminal.console_and_log(file_jobs.log_file("promote")):
        return DONE if promotion.run(asked) else STOPPED


def _predict(arguments: list[str]) -> int:
    from tubelet import one_video

    asked = _asked(one_video.PredictOne, arguments, verb="predict VIDEO", key="video")
    with (
        tempfile.TemporaryDirectory() as folder,
        terminal.console_and_log(file_jobs.log_file("predict")),
    ):
        answer = one_video.predict(asked, scratch=Path(folder))
        for label, probability in zip(answer.labels, answer.probabilities, strict=True):
            terminal.say(f"{probability:7.1%}  {label}")
        terminal.say(f"by {storage.redact(answer.model)}; its frames: {answer.picture}")
    return DONE


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "audit": _audit,
    "register": _register,
    "promote": _promote,
    "predict": _predict,
}


def _asked(schema: type[T], arguments: Sequence[str], *, verb: str, key: str) -> T:
    """A command's arguments; the one that needs no key is ``key``'s."""
    what = verb.split()[-1]
    usage = f"no {what} is named; usage: tubelet {verb} [key=value ...] (tubelet {verb.split()[0]} --help lists keys)"
    named = file_jobs.name_source(arguments, what=what, usage=usage, key=key)
    return config.from_command_line(schema, named, needs_recipe=False)


if __name__ == "__main__":
    sys.exit(main())
