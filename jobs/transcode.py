"""Make copies that decode fast:  python jobs/transcode.py MANIFEST target=FOLDER manifest=FILE.parquet [key=value ...].

MANIFEST lists the videos (jobs/prepare.py); target is a folder or an s3:// prefix. Keys: encoder.short_side=256,
encoder.crf=22, encoder.preset=medium, shard_mb=512 (tar shards); `--help` explains them all. The same command goes on
where it stopped. Examples:

    python jobs/transcode.py train.parquet target=s3://bucket/train256 manifest=train256.parquet
    python jobs/transcode.py train.parquet target=s3://bucket/shards manifest=shards.parquet shard_mb=512
"""

from clips import read_manifest, storage
from clips.pipeline import TranscodeConfig, transcode
from tubelet import cluster, config, file_jobs, terminal

_USAGE = (
    "no MANIFEST is named; usage: python jobs/transcode.py MANIFEST target=FOLDER "
    "manifest=FILE.parquet (--help lists all keys)"
)


def main(arguments: list[str]) -> int:
    """Copy the videos that the command line names."""
    named = file_jobs.name_source(arguments, what="MANIFEST", usage=_USAGE)
    recipe = config.from_command_line(TranscodeConfig, named, needs_recipe=False)
    with terminal.console_and_log(file_jobs.log_file("transcode")):
        source = read_manifest(recipe.source)
        cluster.connect(trainer_cpus=0)
        total = len(set(source.table["video_id"].to_pylist()))
        with file_jobs.progress("transcode", total, unit="videos", kept="copied") as show:
            made = transcode(recipe, source=source, progress=show)
        file_jobs.show_rejected(made.rejected, made.rejected_uri)
        terminal.say(made.summary())
        terminal.say(
            f"{len(made.quality)} videos copied, {len(made.rejected)} rejected: "
            f"{storage.redact(recipe.manifest)} (hash {made.manifest.hash[:12]})"
        )
    return config.DONE


if __name__ == "__main__":
    config.run_main(main)
