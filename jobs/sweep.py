"""Search over recipe keys:  python jobs/sweep.py SWEEP.yaml [more.yaml ...] [set.KEY=value ...] [key.path=value ...].

The same command goes on with a sweep that was stopped or killed.
"""

from tubelet import config, terminal
from tubelet.sweep import driver
from tubelet.sweep.recipe import Sweep


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    sweep = config.from_command_line(Sweep, arguments)
    result = driver.run(sweep)
    terminal.say(result.summary())
    return result.code


if __name__ == "__main__":
    config.run_main(main)
