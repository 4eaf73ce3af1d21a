"""The ``tubelet`` command.

    tubelet audit RUN      prove that a run consumed every sample once, or name what is missing

RUN is a run's folder, ``<run.storage>/<run.name>``, on a disk or in a bucket.
Exit codes: 0 done (the run is exact), 2 your mistake, 3 not exact.
"""

import sys

from clips import storage
from tubelet import config, proof, terminal
from tubelet.config import DONE, STOPPED, UserError
from tubelet.run_directory import RunDirectory


def main() -> None:
    """What the installed command calls."""
    config.run_main(_command)


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        terminal.say((__doc__ or "").strip())
        return DONE
    verb, *rest = arguments
    if verb != "audit":
        raise UserError(f"tubelet {verb}: unknown command; there is: audit")
    if len(rest) != 1:
        raise UserError(f"tubelet audit takes one run's folder, got {len(rest)}: tubelet audit RUN")
    exact, lines = proof.prove(RunDirectory(storage.absolute(rest[0])))
    terminal.say("\n".join(lines))
    return DONE if exact else STOPPED


if __name__ == "__main__":
    sys.exit(main())
