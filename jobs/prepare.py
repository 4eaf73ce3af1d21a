"""Make a manifest of videos:  python jobs/prepare.py SOURCE manifest=FILE.parquet [key=value ...].

SOURCE is a folder, an s3:// or gs:// prefix, or a list file, which may also name https:// videos. Keys: labels=folders,
split=0.05, root=FOLDER (of a list file's paths), clips_per_minute=6, decode.seconds=20; `--help` explains them all. The
same command goes on where it stopped, and later looks only at what is new or has changed. Example:

    python jobs/prepare.py videos/train manifest=train.parquet labels=folders split=0.05
    python jobs/prepare.py UCF-101 manifest=ucf101.parquet dataset=ucf101 annotations=ucfTrainTestlist fold=1
"""

from clips.pipeline import PrepareConfig, ScanStopped, compare, find, listed, look_inside, settle
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
        with file_jobs.counting("list", None, unit="files") as show:
            recipe, notes = listed(recipe, progress=show)
            found = find(recipe, progress=show)
        for note in notes:
            terminal.say(note)
        with file_jobs.counting("compare", len(found), unit="videos") as show:
            plan = compare(recipe, found, progress=show)
        if plan.known or plan.resumed:
            terminal.say(plan.summary())
        total = len(plan.todo)
        if total:
            cluster.connect(trainer_cpus=0)
            try:
                with file_jobs.progress("probe", total, unit="files", kept="kept") as show:
                    look_inside(recipe, plan, progress=show)
            except ScanStopped as error:
                terminal.complain(f"error: {error}")
                return config.STOPPED
        with file_jobs.counting("write", len(found), unit="videos") as show:
            prepared = settle(recipe, plan, progress=show)
        file_jobs.show_rejected(
            prepared.first_rejected, prepared.rejected_uri, reasons=prepared.reasons
        )
        terminal.say(prepared.summary())
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
