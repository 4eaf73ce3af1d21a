"""Label videos:  python jobs/predict.py SOURCE model=models:/NAME@ALIAS [top_k=5] [key=value ...].

SOURCE is a video, a folder, an s3:// prefix, or a list file. Writes predictions.parquet and a picture of the first
video's frames to output=FOLDER, and prints the first predictions.
"""

import tempfile
from pathlib import Path

from tubelet import config, file_jobs, models, predict, terminal
from tubelet.recipes import Predict

_MOST_SHOWN = 10


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    named = file_jobs.name_source(arguments, what="SOURCE")
    recipe = config.from_command_line(Predict, named, needs_recipe=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        terminal.console_and_log(Path(recipe.output) / "predict.log"),
    ):
        found = models.find(recipe.model, storage_root=recipe.storage, folder=Path(folder))
        if len(found) > 1:
            names = ", ".join(source.name for source in found)
            raise config.UserError(
                f"model={recipe.model} holds several models: name one of {names}"
            )
        made = predict.run(recipe, found[0])
        for row in made.table.slice(0, _MOST_SHOWN).to_pylist():
            shown = [
                f"{n} {p:.1%}" for n, p in zip(row["labels"], row["probabilities"], strict=True)
            ]
            terminal.say(f"{row['video_id']}: {', '.join(shown) or row['reason']}")
        for bad in made.rejected[:_MOST_SHOWN]:
            terminal.say(f"{bad.video_id}: not usable ({bad.reason}: {bad.message})")
        terminal.say(
            f"{len(made.table)} videos, {len(made.rejected)} files rejected: {recipe.output}/predictions.parquet"
            + (f"; frames of the first in {made.picture}" if made.picture else "")
        )
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
