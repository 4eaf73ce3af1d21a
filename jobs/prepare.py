"""Make a manifest of videos:  python jobs/prepare.py SOURCE manifest=FILE.parquet [key=value ...].

SOURCE is a folder, an s3:// prefix, or a list file. Keys: labels=folders, split=0.05, root=FOLDER
(of a list file's paths), decode.seconds=20; `--help` explains them all. Example:

    python jobs/prepare.py videos/train manifest=train.parquet labels=folders split=0.05
"""

from clips import storage
from clips.pipeline import PrepareConfig, find, prepare
from tubelet import cluster, config, file_jobs, terminal

_USAGE = (
    "no SOURCE is named; usage: python jobs/prepare.py SOURCE manifest=FILE.parquet "
    "[labels=folders] [split=0.05] (--help lists all keys)"
)


def main(arguments: list[str]) -> int:
    """Find, probe, and list the videos that the command line names."""
    named = file_jobs.name_source(arguments, what="SOURCE", usage=_USAGE)
    recipe = config.from_command_line(PrepareConfig, named, needs_recipe=False)
    with terminal.console_and_log(file_jobs.log_file("prepare")):
        found = find(recipe)
        cluster.connect(trainer_cpus=0)
        with file_jobs.progress("probe", len(found), unit="files", kept="kept") as show:
            prepared = prepare(recipe, found=found, progress=show)
        file_jobs.show_rejected(prepared.rejected, prepared.rejected_uri)
        manifest = prepared.manifest
        terminal.say(
            f"{len(manifest)} videos accepted, {len(prepared.rejected)} rejected, "
            f"{len(manifest.classes)} classes: {storage.redact(recipe.manifest)} "
            f"(hash {manifest.hash[:12]})"
        )
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
