"""Probe features:  python jobs/probe.py features=FOLDER manifest=FILE.parquet [probes=[linear,knn]] [key=value ...].

Trains linear and attentive heads and lets nearest neighbours vote on features of jobs/features.py; several folders are
compared: features=[FOLDER1,FOLDER2]. Prints what each has right of the held-out videos; writes probes.json, probes.png
and the heads that were taken to output=FOLDER; logs to MLflow.
"""

from pathlib import Path

from tubelet import config, probes, rows, terminal
from tubelet.recipes import Probe


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    recipe = config.from_command_line(Probe, arguments, needs_recipe=False)
    manifest = rows.open_manifest(recipe.manifest)
    with terminal.console_and_log(Path(recipe.output) / "probe.log"):
        probes.probe(recipe, manifest)
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
