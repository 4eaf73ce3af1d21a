"""Fine-tune a classifier:  python jobs/finetune.py RECIPE.yaml [more.yaml ...] [head.init=RUN] [key.path=value ...]."""

from tubelet import config, elastic, terminal
from tubelet.loops import finetune
from tubelet.recipes import Finetune


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    recipe = config.from_command_line(Finetune, arguments)
    result = elastic.run(finetune.job(recipe))
    terminal.say(result.summary())
    return result.code


if __name__ == "__main__":
    config.run_main(main)
