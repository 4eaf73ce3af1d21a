"""Pretrain VideoMAE:  python jobs/pretrain.py RECIPE.yaml [more.yaml ...] [key.path=value ...]."""

from tubelet import config, elastic, terminal
from tubelet.loops import pretrain
from tubelet.recipes import Pretrain


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    recipe = config.from_command_line(Pretrain, arguments)
    result = elastic.run(pretrain.job(recipe))
    terminal.say(result.summary())
    return result.code


if __name__ == "__main__":
    config.run_main(main)
