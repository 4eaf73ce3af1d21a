"""Ways of making the same clips of the same videos, to be timed side by side.

A way gets a task and makes all its clips: the frames that each seed draws, cut by the crop that it draws.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clips import ClipConfig, DecodeConfig, Video, load_clips, open_video, sampling
from clips.augment.geometry import Box, multi_scale_box

FRAMES, SIZE = 16, 224
LIMITS = DecodeConfig(seconds=120.0)


@dataclass(frozen=True)
class Task:
    """Clips of one video: the same frames and crops for every way."""

    path: str
    stride: int
    seeds: tuple[int, ...]
    frames: int
    """Of the video."""
    width: int
    height: int

    @property
    def indices(self) -> list[np.ndarray]:
        """The frames of each clip."""
        return [
            sampling.dense_indices(self.frames, frames=FRAMES, stride=self.stride, seed=seed)
            for seed in self.seeds
        ]

    @property
    def boxes(self) -> list[Box]:
        """The crop of each clip."""
        return [multi_scale_box(self.width, self.height, size=SIZE, seed=s) for s in self.seeds]


Way = Callable[[Task], Any]


def ours(task: Task) -> np.ndarray:
    """What a data worker runs: uint8 [R, T, S, S, 3]."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("label", "start_s", "end_s", "frames", "fps", "duration_s", "width", "height")
    )
    video = Video(uri=task.path, video_id=task.path, row=0, size=0, labels=(), **nothing)
    config = ClipConfig(stride=task.stride)
    return load_clips(
        video, config, seeds=list(task.seeds), frames=FRAMES, size=SIZE, decode=LIMITS
    )


def authors(task: Task) -> list[torch.Tensor]:
    """How the authors' loader does it, clip by clip: float32 [C, T, S, S] each.

    decord opens the file with one thread and delivers whole frames; every step then runs over all frames: pictures of
    PIL, copied by a conversion to RGB, cut, resized, put side by side as channels; these become one tensor, channels
    first, as floats divided by 255, and each channel is normalised in place.
    """
    import decord
    from PIL import Image

    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    clips: list[torch.Tensor] = []
    for indices, (x, y, width, height) in zip(task.indices, task.boxes, strict=True):
        reader: Any = decord.VideoReader(task.path, num_threads=1, ctx=decord.cpu(0))
        whole_THWC = reader.get_batch(indices.tolist()).asnumpy()
        pictures = [Image.fromarray(frame).convert("RGB") for frame in whole_THWC]
        pictures = [picture.crop((x, y, x + width, y + height)) for picture in pictures]
        pictures = [p.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in pictures]
        stacked = torch.from_numpy(np.concatenate([np.asarray(p) for p in pictures], axis=2))
        channels = stacked.permute(2, 0, 1).contiguous().float().div(255.0)
        for channel, m, d in zip(channels, mean * FRAMES, deviation * FRAMES, strict=True):
            channel.sub_(m).div_(d)
        clips.append(channels.view(FRAMES, 3, SIZE, SIZE).transpose(0, 1))
    return clips


def backend(name: str) -> Way:
    """One of our backends raw: whole frames, neither cut nor resized."""

    def read(task: Task) -> list[np.ndarray]:
        with open_video(task.path, config=DecodeConfig(backend=name, seconds=120.0)) as reader:
            return reader.read(task.indices)

    return read


def limit(folder: Path) -> Way | None:
    """The C program, built into ``folder``; None where there is no compiler or the headers are missing."""
    source, library = Path(__file__).with_name("decode_limit.c"), folder / "decode_limit.so"
    parts = ("libavformat", "libavcodec", "libswscale", "libavutil")
    if not (shutil.which("cc") and shutil.which("pkg-config")):
        return None
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *parts], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        return None
    command = ["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run([*command, *flags.stdout.split()], check=True)
    program = ctypes.CDLL(str(library)).decode_clips

    def decode(task: Task) -> np.ndarray:
        wanted, uses = np.unique(np.concatenate(task.indices), return_inverse=True)
        count, clips = len(wanted), len(task.seeds)
        out = np.empty((clips, FRAMES, SIZE, SIZE, 3), np.uint8)
        integers = [a.astype(np.int32) for a in (wanted, uses, np.array(task.boxes).ravel())]
        places, uses_at, boxes = (ctypes.c_void_p(a.ctypes.data) for a in integers)
        target = ctypes.c_void_p(out.ctypes.data)
        done = program(
            task.path.encode(), places, count, uses_at, boxes, clips, FRAMES, SIZE, target
        )
        if done != count:
            raise RuntimeError(f"the C program gave {done} of {count} frames")
        return out

    return decode
