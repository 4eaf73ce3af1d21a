"""Label videos:  python jobs/predict.py SOURCE model=models:/NAME@ALIAS [top_k=5] [key=value ...].

SOURCE is a video, a folder, an s3:// prefix, or a list file. Writes predictions/ (Parquet), a list of files that are
no usable videos, and a picture of the first video's frames to output=FOLDER, which may be an s3:// prefix, and prints
the first predictions. The same command goes on where it stopped, and later predicts only what is new or has changed.
"""

import tempfile
from pathlib import Path

from clips import storage
from tubelet import config, file_jobs, models, predict, terminal
from tubelet.recipes import Predict

_USAGE = (
    "no SOURCE is named; usage: python jobs/predict.py SOURCE model=models:/NAME@ALIAS "
    "[output=FOLDER] (--help lists all keys)"
)


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    named = file_jobs.name_source(arguments, what="SOURCE", usage=_USAGE)
    recipe = config.from_command_line(Predict, named, needs_recipe=False)
    local = storage.is_local(recipe.output)
    log = Path(recipe.output) / "predict.log" if local else file_jobs.log_file("predict")
    with tempfile.TemporaryDirectory() as folder, terminal.console_and_log(log):
        found = models.find_one(recipe.model, storage_root=recipe.storage, folder=Path(folder))
        try:
            made = predict.run(recipe, found)
        except file_jobs.Stopped as error:
            terminal.complain(f"error: {error}")
            return config.STOPPED
        for row in made.first:
            terminal.say(f"{row['video_id']}: {models.shown(row['labels'], row['probabilities'])}")
        file_jobs.show_rejected(made.rejected, made.rejected_uri, reasons=made.reasons)
        terminal.say(made.summary())
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
