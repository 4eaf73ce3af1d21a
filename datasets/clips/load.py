"""R clips of one video, ready for the model: the step that a data worker runs.

Order of work: open the video, choose the frames and the crop of every clip from its seed, decode
the frames of all clips in one pass, cut each crop, resize it once. Output is uint8; normalising is
the model's affair, on its device (a quarter of the bytes). A clip depends on the video, the
configuration, and its own seed (with `same_frames` also its first copy's): not on the worker, or the order of visits.

RandAugment works on whole frames, before the crop, as the authors have it: then whole frames are read, and the crop is
cut by `finish`, in the caller's process: not in the one that decodes, whose limits of time and memory are for what
files do. `rand_augment_on="crop"` is the cheaper way that the authors do not go.

Cost: decoding is 93 % (decode.md). R clips of one pass cost about 1 + 0.23 (R - 1) times one clip
on Kinetics-like files, with frames and crops all different. RandAugment: see there.

Shapes: R clips, V views, T frames, S input size, H W of a crop, C = 3 (RGB).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clips import sampling
from clips.augment.geometry import (
    MULTI_SCALES,
    Box,
    centre_box,
    even_boxes,
    flip_draw,
    multi_scale_box,
    random_resized_box,
)
from clips.augment.randaugment import augment, draw_steps, parse_policy
from clips.decode import DEFAULT_DECODE, DecodeConfig, DecodeError, Reader, open_video
from clips.local_table import Video


@dataclass(frozen=True)
class ClipConfig:
    """How clips are cut from videos (recipe section `data`, its sampling part)."""

    stride: int = 4
    """Distance between two frames of a clip, in frames of the video."""
    fps: float | None = None
    """If set, `stride` counts frames of the video at this rate: videos of all rates then run at one pace."""
    sampling: Literal["strided", "window", "segments"] = "strided"
    """Which frames: at the stride exactly (pretraining); spread over a window of frames * stride (the authors' way of
    fine-tuning); or one of each of equal segments of the whole video (Something-Something; the stride says nothing)."""
    time: Literal["random", "centre"] = "random"
    """Where a clip starts: anywhere, or so that it lies in the middle (of each segment)."""
    same_frames: bool = False
    """All copies of a visit show the frames of its first one (the authors' repeated augmentation)."""
    crop: Literal["multi_scale", "random_resized", "centre"] = "multi_scale"
    """The authors' random crop of pretraining, that of fine-tuning, or the largest square in the middle."""
    scales: tuple[float, ...] = MULTI_SCALES
    """Scales of the short side that `multi_scale` chooses from."""
    area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the frame that `random_resized` takes."""
    aspect: tuple[float, float] = (0.75, 1.3333)
    """Least and largest width over height of what it takes."""
    rand_augment: str | None = None
    """A policy of RandAugment, spelled as `rand-m7-n4-mstd0.5-inc1`; null for none."""
    rand_augment_on: Literal["frame", "crop"] = "frame"
    """Whole frames, before the crop, as the authors have it; or what the model sees, which costs less."""
    flip: bool = False
    """Mirror half of the clips. Not where left and right matter."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"data.stride is {self.stride}; it must be at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(
                f"data.fps is {self.fps}; it must be above 0 and at most 1000, or null"
            )
        if self.time not in ("random", "centre"):
            raise ValueError(f"data.time is {self.time!r}; allowed: random, centre")
        if self.crop not in ("multi_scale", "random_resized", "centre"):
            raise ValueError(
                f"data.crop is {self.crop!r}; allowed: multi_scale, random_resized, centre"
            )
        if self.sampling not in ("strided", "window", "segments"):
            raise ValueError(
                f"data.clip.sampling is {self.sampling!r}; allowed: strided, window, segments"
            )
        if self.rand_augment_on not in ("frame", "crop"):
            raise ValueError(
                f"data.clip.rand_augment_on is {self.rand_augment_on!r}; allowed: frame, crop"
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"data.clip.area is {list(self.area)}; it must rise, above 0 and at most to 1"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"data.clip.aspect is {list(self.aspect)}; it must rise, above 0")
        if self.rand_augment is not None:
            try:
                parse_policy(self.rand_augment)
            except ValueError as error:
                raise ValueError(f"data.clip.rand_augment: {error}") from error
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(
                f"data.scales is {list(self.scales)}; "
                "it needs at least one number, each above 0 and at most 1"
            )


@dataclass(frozen=True)
class Take:
    """The clips wanted of one video: all that `read_crops` needs beside its bytes, and small enough to travel."""

    video: Video
    config: ClipConfig
    frames: int
    """T, frames per clip."""
    size: int
    """S, height and width of the clips."""
    decode: DecodeConfig = DEFAULT_DECODE
    seeds: tuple[int, ...] = ()
    """Training: one clip per seed. Without any: the clips of an evaluation, `views` times `crops`."""
    views: int = 1
    crops: int = 1


def load_clips(
    video: Video,
    config: ClipConfig,
    *,
    seeds: Sequence[int] | np.ndarray,
    frames: int,
    size: int,
    decode: DecodeConfig = DEFAULT_DECODE,
) -> np.ndarray:
    """Return one clip per seed: uint8 [R, T, S, S, 3].

    Args:
        video: The row to read.
        config: How to cut clips.
        seeds: One uint64 per clip.
        frames: T, frames per clip.
        size: S, height and width of the result.
        decode: Backend and limits.

    Raises:
        DecodeError: The video, or a wanted frame, cannot be decoded.
    """
    take = Take(video, config, frames, size, decode, seeds=tuple(int(seed) for seed in seeds))
    return finish(take, read_crops(take))


def load_views(
    video: Video,
    config: ClipConfig,
    *,
    frames: int,
    size: int,
    views: int = 1,
    crops: int = 1,
    decode: DecodeConfig = DEFAULT_DECODE,
    source: bytes | None = None,
) -> np.ndarray:
    """Return the clips of an evaluation: uint8 [V, T, S, S, 3], V = views x crops, without chance.

    `views` clips lie evenly over the video (one: in the middle; with `sampling="segments"` each spans all of it), and
    each is cut into `crops` squares of the short side along the long one (one: in the middle). Crops of one view are
    neighbours in the result.

    Raises:
        DecodeError: The video, or a wanted frame, cannot be decoded.
    """
    if views < 1 or crops < 1:
        raise ValueError(f"views is {views} and crops is {crops}; both must be at least 1")
    take = Take(video, config, frames, size, decode, views=views, crops=crops)
    return finish(take, read_crops(take, source))


def read_crops(take: Take, source: str | bytes | None = None) -> list[np.ndarray]:
    """Return the crop of every clip at its own size, uint8 [T, height, width, 3] each; needs no torch.

    Args:
        take: Which clips.
        source: Where the video's bytes are, if not at its own address.

    Raises:
        DecodeError: The video, or a wanted frame, cannot be decoded.
    """

    def boxes(width: int, height: int) -> list[Box]:
        if _whole_frames(take):
            return [Box(0, 0, width, height)] * (1 if _shared(take) else len(take.seeds))
        return _boxes(take, width, height)

    with _opened(take, source) as reader:
        try:
            wanted = _indices(take, reader)
            return reader.read(wanted[:1] if _shared(take) else wanted, boxes=boxes)
        except DecodeError as error:
            error.stage = "decoding"
            raise


def _opened(take: Take, source: str | bytes | None) -> Reader:
    video = take.video
    if video.container == "frames":
        from clips.decode.frames import FramesReader  # here, because loading needs no FFmpeg before

        return FramesReader(video.uri, config=take.decode)
    own = source is None or source == video.uri  # else it is a copy: of the video alone
    return open_video(
        video.uri if source is None else source,
        config=take.decode,
        size=video.size or None,
        offset=video.offset if own else None,
    )


def finish(take: Take, crops_THWC: list[np.ndarray]) -> np.ndarray:
    """Return the clips of a take from what `read_crops` gave, uint8 [R or V, T, S, S, 3].

    Augmented, cropped where whole frames were needed for that, resized, mirrored.
    """
    if _whole_frames(take):
        crops_THWC = _augmented_crops(take, crops_THWC)
    clips_RTSSC = _resized(crops_THWC, size=take.size)
    if take.config.rand_augment and take.config.rand_augment_on == "crop":
        policy = parse_policy(take.config.rand_augment)
        for clip, seed in enumerate(take.seeds):
            steps = draw_steps(policy, seed=seed)
            clips_RTSSC[clip] = augment(clips_RTSSC[clip], steps)
    if take.config.flip:
        for clip, seed in enumerate(take.seeds):
            if flip_draw(seed=seed):
                clips_RTSSC[clip] = clips_RTSSC[clip, :, :, ::-1].copy()
    return clips_RTSSC


def _whole_frames(take: Take) -> bool:
    """Whether the clips' crops are cut after they were augmented."""
    config = take.config
    return (
        bool(take.seeds) and config.rand_augment is not None and config.rand_augment_on == "frame"
    )


def _shared(take: Take) -> bool:
    """Whether whole frames are read once for all copies."""
    return _whole_frames(take) and take.config.same_frames


def _augmented_crops(take: Take, frames_THWC: list[np.ndarray]) -> list[np.ndarray]:
    """Each clip's crop of its augmented frames."""
    assert take.config.rand_augment is not None
    policy = parse_policy(take.config.rand_augment)
    height, width = frames_THWC[0].shape[1:3]
    crops: list[np.ndarray] = []
    for clip, (seed, box) in enumerate(zip(take.seeds, _boxes(take, width, height), strict=True)):
        whole = frames_THWC[min(clip, len(frames_THWC) - 1)]
        changed = augment(whole, draw_steps(policy, seed=seed))
        crops.append(changed[:, box.y : box.y + box.height, box.x : box.x + box.width])
    return crops


def _boxes(take: Take, width: int, height: int) -> list[Box]:
    """Crop of each clip, in a frame of this size."""
    if not take.seeds:
        return even_boxes(width, height, crops=take.crops) * take.views
    if take.config.crop == "centre":
        return [centre_box(width, height)] * len(take.seeds)
    if take.config.crop == "random_resized":
        limits = {"area": take.config.area, "aspect": take.config.aspect}
        return [random_resized_box(width, height, seed=seed, **limits) for seed in take.seeds]
    return [
        multi_scale_box(width, height, size=take.size, seed=seed, scales=take.config.scales)
        for seed in take.seeds
    ]


def _indices(take: Take, reader: Reader) -> list[np.ndarray]:
    """Frames of each clip, in the opened video."""
    first, length = span(reader, take.video)
    fps = take.config.fps
    if fps is None:
        return [first + clip for clip in _times(take, length)]
    shown = first + sampling.resampled(reader.times_s[first : first + length], fps=fps)
    return [shown[clip] for clip in _times(take, len(shown))]


def _times(take: Take, length: int) -> list[np.ndarray]:
    """Frame indices of each clip, in a span of this length."""
    if take.seeds:
        seeds = take.seeds[:1] * len(take.seeds) if take.config.same_frames else take.seeds
        return [_time(take, length, seed) for seed in seeds]
    frames, stride = take.frames, take.config.stride
    if take.config.sampling == "segments":
        views = sampling.segment_view_indices(length, frames=frames, views=take.views)
    elif take.views == 1:
        views = sampling.centre_indices(length, frames=frames, stride=stride)[None]
    else:
        views = sampling.view_indices(length, frames=frames, stride=stride, views=take.views)
    return [view for view in views for _ in range(take.crops)]


def _time(take: Take, length: int, seed: int) -> np.ndarray:
    """Frame indices of the training clip of a seed."""
    config, frames = take.config, take.frames
    chance = None if config.time == "centre" else seed
    if config.sampling == "segments":
        return sampling.segment_indices(length, frames=frames, seed=chance)
    if config.sampling == "window":
        return sampling.window_indices(length, frames=frames, stride=config.stride, seed=chance)
    if chance is None:
        return sampling.centre_indices(length, frames=frames, stride=config.stride)
    return sampling.dense_indices(length, frames=frames, stride=config.stride, seed=chance)


def resize(frames_THWC: np.ndarray, *, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Return frames at `size` x `size`, uint8: bilinear, antialiased, within 2 of PIL's values.

    Args:
        frames_THWC: uint8.
        size: S, of the result.
        out: Where to write it, uint8 [T, S, S, 3]; None makes an array.
    """
    if frames_THWC.shape[1:3] == (size, size):
        if out is None:
            return frames_THWC
        out[:] = frames_THWC
        return out
    import torch  # here, because probing and listing videos need no torch

    if out is None:
        out = np.empty((len(frames_THWC), size, size, 3), np.uint8)
    x_TCHW, y_TCSS = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (frames_THWC, out))
    # What F.interpolate(mode="bilinear", antialias=True) calls, which takes no `out`.
    torch.ops.aten._upsample_bilinear2d_aa.out(x_TCHW, [size, size], False, out=y_TCSS)
    return out


def _resized(crops_THWC: list[np.ndarray], *, size: int) -> np.ndarray:
    """Return the clips as one array; a single one is not copied (2 ms of page faults)."""
    if len(crops_THWC) == 1:
        return resize(crops_THWC[0], size=size)[None]
    clips_RTSSC = np.empty((len(crops_THWC), len(crops_THWC[0]), size, size, 3), np.uint8)
    for crop_THWC, clip_TSSC in zip(crops_THWC, clips_RTSSC, strict=True):
        resize(crop_THWC, size=size, out=clip_TSSC)
    return clips_RTSSC


def span(reader: Reader, video: Video) -> tuple[int, int]:
    """Return (first frame, number of frames) of the row's span in an opened video.

    Raises:
        DecodeError: The span lies behind the video's end.
    """
    if video.start_s is None and video.end_s is None:
        return 0, reader.frames
    times_s = reader.times_s
    first = int(np.searchsorted(times_s, video.start_s or 0.0, side="left"))
    last = reader.frames if video.end_s is None else int(np.searchsorted(times_s, video.end_s))
    if first >= reader.frames or last <= first:
        raise DecodeError(
            "missing_frames",
            f"no frame between {video.start_s} s and {video.end_s} s; the video lasts "
            f"{reader.frames / reader.fps:.1f} s ({video.video_id})",
        )
    return first, last - first
