"""Small data sets of generated motion videos, some of them broken, with their manifests."""

from collections.abc import Sequence
from pathlib import Path

from clips import Manifest, synthetic, write_manifest

TINY_VIDEO = synthetic.MotionConfig(size=16, frames=8, fps=8, gop=8, wave=(8.0, 24.0))


def motion_manifest(
    folder: Path,
    *,
    training: int,
    held_out: int = 0,
    broken: Sequence[int] = (),
    config: synthetic.MotionConfig = TINY_VIDEO,
) -> Manifest:
    """Write videos below ``folder`` and their manifest beside them, to ``folder``.parquet.

    Args:
        folder: made when missing.
        training: how many videos have the split ``train``.
        held_out: how many have the split ``val``; they come after the others.
        broken: numbers of training videos that are cut off after the manifest was made.
        config: what the videos look like.
    """
    paths = synthetic.write_videos(folder, range(training + held_out), seed=11, config=config)
    rows = [
        {
            "video_id": path,
            "size": (folder / path).stat().st_size,
            "label": synthetic.CLASSES[synthetic.motion_label(number)],
            "split": "train" if number < training else "val",
        }
        for number, path in enumerate(paths)
    ]
    manifest = Manifest.build(rows, root=str(folder))
    for number in broken:
        whole = (folder / paths[number]).read_bytes()
        (folder / paths[number]).write_bytes(whole[: len(whole) // 3])
    return write_manifest(manifest, f"{folder}.parquet")


def one_motion_video(folder: Path) -> Path:
    """Write a single motion video of 16 frames below ``folder``; its path."""
    config = synthetic.MotionConfig(size=32, frames=16, fps=16, gop=16)
    (name,) = synthetic.write_videos(folder, [3], seed=1, config=config)
    return folder / name
