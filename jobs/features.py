"""Features of videos:  python jobs/features.py encoder=RUN manifest=FILE.parquet [tokens=true] [key=value].

Sends every video of a manifest through a frozen encoder and writes what it gives, as Parquet, to output=FOLDER, which
may be an s3:// prefix: the mean token of each clip, and with tokens=true all of them. random=SEED takes fresh weights
instead, which a probe's result must beat. The same command goes on where it stopped.
"""

from pathlib import Path

from clips import storage
from tubelet import config, features, file_jobs, rows, terminal
from tubelet.recipes import Features


def main(arguments: list[str]) -> int:
    """Run the job that the command line describes."""
    recipe = config.from_command_line(Features, arguments, needs_recipe=False)
    manifest = rows.open_manifest(recipe.manifest)
    local = storage.is_local(recipe.output)
    log = Path(recipe.output) / "features.log" if local else file_jobs.log_file("features")
    with terminal.console_and_log(log):
        try:
            made = features.run(recipe, manifest)
        except file_jobs.Stopped as error:
            terminal.complain(f"error: {error}")
            return config.STOPPED
        file_jobs.show_rejected(made.rejected, storage.join(made.folder, "undecodable"))
        terminal.say(made.summary())
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
