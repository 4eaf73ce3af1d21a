"""At which pace a model is shown videos: as it was trained, wherever it is asked.

A run writes it into its export; evaluation, prediction and the registered model read it there. The stride stands beside
it, since it may be given anew.
"""

from collections.abc import Mapping
from typing import Any

from clips import ClipConfig


def written(clip: ClipConfig) -> dict[str, Any]:
    """What an export notes of how its clips were taken."""
    return {"stride": clip.stride, "sampling": clip.sampling, "fps": clip.fps}


def asked(notes: Mapping[str, Any]) -> dict[str, Any]:
    """From an export's notes to arguments of ``ClipConfig``, besides the stride.

    A window of training is a clip at the stride when the model is asked, as the authors test. Exports from before this
    was noted are strided.
    """
    sampling = "segments" if notes.get("sampling") == "segments" else "strided"
    return {"sampling": sampling, "fps": notes.get("fps")}
