"""The whole path on this machine:  python jobs/demo.py [videos=FOLDER] [labels=folders] [study=true].

Usually started by ``make demo``, ``make demo VIDEOS=folder LABELS=folders``, or ``make demo-study``.
"""

from tubelet import config, elastic, terminal
from tubelet.demo import run, stages


def main(arguments: list[str]) -> int:
    """Run the demo that the command line describes."""
    demo = config.from_command_line(run.Demo, arguments, needs_recipe=False)
    try:
        run.run(demo)
    except stages.Interrupted as stopped:
        terminal.say(str(stopped))
        return config.INTERRUPTED
    except elastic.TrainingStopped as stopped:
        terminal.complain(f"error: {stopped}")
        return config.STOPPED
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
