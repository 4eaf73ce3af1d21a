"""Evaluate classifiers:  python jobs/evaluate.py model=RUN manifest=FILE.parquet [views=5] [crops=3] [key=value].

Several models, or all draws of a run, are evaluated in one pass over the videos: model=[RUN1,RUN2].
Prints accuracies and the weakest classes; writes predictions.parquet and metrics.json to output=FOLDER; logs to MLflow.
"""

import tempfile
from pathlib import Path

from tubelet import config, models, rows, terminal
from tubelet.evaluation import report
from tubelet.recipes import Evaluate


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    recipe = config.from_command_line(Evaluate, arguments, needs_recipe=False)
    manifest = rows.open_manifest(recipe.manifest)
    with (
        tempfile.TemporaryDirectory() as folder,
        terminal.console_and_log(Path(recipe.output) / "evaluate.log"),
    ):
        sources = [
            source
            for name in recipe.names
            for source in models.find(name, storage_root=recipe.storage, folder=Path(folder))
        ]
        report.evaluate(recipe, manifest, sources)
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
