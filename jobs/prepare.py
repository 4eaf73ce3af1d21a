"""Make a manifest of videos:  python jobs/prepare.py SOURCE manifest=FILE.parquet [key=value ...].

SOURCE is a folder, an s3:// prefix, or a list file. Keys: labels=folders, split=0.05, root=FOLDER
(of a list file's paths), decode.seconds=20; `--help` explains them all. Example:

    python jobs/prepare.py videos/train manifest=train.parquet labels=folders split=0.05
"""

import getpass
import tempfile
import time
from collections import Counter
from pathlib import Path

from clips import storage
from clips.pipeline import PrepareConfig, Progress, find, prepare
from tubelet import cluster, config, terminal

_MOST_SHOWN = 20
_USAGE = (
    "no SOURCE is named; usage: python jobs/prepare.py SOURCE manifest=FILE.parquet "
    "[labels=folders] [split=0.05] (--help lists all keys)"
)


def main(arguments: list[str]) -> int:
    """Find, probe, and list the videos that the command line names."""
    sources = [a for a in arguments if not a.startswith("-") and "=" not in a.split("/")[0]]
    if not sources and not any(a.startswith(("source=", "-")) for a in arguments):
        raise config.UserError(_USAGE)
    if len(sources) > 1:
        raise config.UserError(f"one SOURCE at a time, got {len(sources)}: {' '.join(sources)}")
    named = [config.setting("source", source) for source in sources]
    rest = [a for a in arguments if a not in sources]
    recipe = config.from_command_line(PrepareConfig, [*named, *rest], needs_recipe=False)
    log = Path(tempfile.gettempdir()) / f"tubelet-prepare-{getpass.getuser()}.log"
    with terminal.console_and_log(log):
        found = find(recipe)
        cluster.connect(trainer_cpus=0)
        started = time.monotonic()
        with terminal.progress("probe", len(found), unit="files") as bar:

            def show(state: Progress) -> None:
                rate = terminal.format_rate(state.done / (time.monotonic() - started), "files")
                bar.update(state.done, f"{state.kept} kept, {state.rejected} rejected  {rate}")

            prepared = prepare(recipe, found=found, progress=show)
        if prepared.rejected:
            terminal.table(
                ("rejected file", "reason", "details"),
                [(r.video_id, r.reason, r.message) for r in prepared.rejected[:_MOST_SHOWN]],
            )
            if len(prepared.rejected) > _MOST_SHOWN:
                terminal.say(f"and {len(prepared.rejected) - _MOST_SHOWN} more")
            counts = Counter(r.reason for r in prepared.rejected).most_common()
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
            terminal.say(f"all of them ({reasons}): {storage.redact(prepared.rejected_uri)}")
        manifest = prepared.manifest
        terminal.say(
            f"{len(manifest)} videos accepted, {len(prepared.rejected)} rejected, "
            f"{len(manifest.classes)} classes: {storage.redact(recipe.manifest)} "
            f"(hash {manifest.hash[:12]})"
        )
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
