"""Made-up videos, encoded to real files: for the demo, tests, and benchmarks.

*Motion videos* are a smooth random texture that pans in one of eight directions. Only the motion
tells the class: texture, colours, speed, and phase are drawn alike for all. Measured
(prototypes/demo): a small model learns from them in two minutes, because the normalised target is
predictable; from sprites, posterised textures, and noise it does not.

*Numbered videos* carry each frame's number in its pixels, so that a decoder's frame numbers can be
read back.

Every video is a function of (seed, index) alone. Waves are summed directly in YUV at the
resolution of each plane, as one matrix product: 24 frames of 64 x 64 cost about 1 ms, and encoding
them 3 ms of one core.

Shapes: T frames, H W height and width, K waves, C = 3 (RGB).
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

CLASSES = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
"""Directions of the motion videos; the class of video `index` is `index % 8`."""

# Rec. 601, studio swing: rows Y, U, V; columns R, G, B.
_YUV_OF_RGB = np.array(
    [[0.257, 0.504, 0.098], [-0.148, -0.291, 0.439], [0.439, -0.368, -0.071]], np.float32
)
_YUV_OFFSET = np.array([16.0, 128.0, 128.0], np.float32)


@dataclass(frozen=True)
class MotionConfig:
    """What the motion videos look like."""

    size: int = 64
    """Height and width in pixels; even."""
    frames: int = 24
    fps: int = 24
    speed: tuple[float, float] = (2.4, 4.2)
    """Least and largest speed, in pixels per frame."""
    wave: tuple[float, float] = (20.0, 60.0)
    """Least and largest wavelength, in pixels: longer is smoother and easier."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Least and largest factor by which a video's wavelengths are stretched, drawn once per video: a
    set with coarse and fine textures is learned sooner than one of fine ones alone."""
    waves: int = 10
    contrast: tuple[float, float] = (40.0, 60.0)
    """Least and largest standard deviation of the brightness, of 255."""
    crf: int = 10
    """x264's quality: codec noise hides the motion from about 20 on."""
    preset: str = "superfast"
    gop: int = 24

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size is {self.size}; it must be even and at least 16")
        for name in ("frames", "fps", "waves", "gop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("speed", "wave", "contrast"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest:
                raise ValueError(f"{name} is {(least, largest)}; it must be 0 < least <= largest")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}; allowed: 0 .. 51")


def motion_label(index: int) -> int:
    """Return the class index of motion video `index`."""
    return index % len(CLASSES)


def motion_frames(index: int, *, seed: int, config: MotionConfig = MotionConfig()) -> np.ndarray:
    """Return the frames of one motion video as YUV 4:2:0: uint8 [T, 3 H / 2, W]."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    frames, size, waves = config.frames, config.size, config.waves
    angle = 2 * np.pi * motion_label(index) / len(CLASSES)
    velocity = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(*config.speed)
    turn = rng.uniform(0, 2 * np.pi, waves)
    k_K2 = np.stack([np.cos(turn), np.sin(turn)], 1)
    k_K2 *= (2 * np.pi / rng.uniform(*config.wave, waves))[:, None]
    k_K2 /= config.zoom[0] * (config.zoom[1] / config.zoom[0]) ** rng.random()
    amplitude_KC = rng.normal(size=(waves, 1)) + 0.35 * rng.normal(size=(waves, 3))
    phase_KC = rng.uniform(0, 2 * np.pi, (waves, 1)) + 0.6 * rng.normal(size=(waves, 3))
    spread = np.sqrt((amplitude_KC**2).sum(0) / 2).mean()
    amplitude_KC *= rng.uniform(*config.contrast) / spread
    base_C = rng.uniform(95, 160, 3)

    # cos(k.x + p - k.v t) = cos(k.x) cos(p - k.v t) - sin(k.x) sin(p - k.v t): space times time.
    phase_TKC = phase_KC - (k_K2 @ velocity)[:, None] * np.arange(frames)[:, None, None]
    waves_TKC = np.concatenate(
        [amplitude_KC * np.cos(phase_TKC), -amplitude_KC * np.sin(phase_TKC)], axis=1
    )
    weights_TKP = waves_TKC.astype(np.float32) @ _YUV_OF_RGB.T
    offset_P = _YUV_OFFSET + _YUV_OF_RGB @ base_C.astype(np.float32)

    out = np.empty((frames, 3 * size // 2, size), np.uint8)
    luma_TN = weights_TKP[:, :, 0] @ _texture(k_K2, size=size, step=1)
    out[:, :size] = _bytes(luma_TN + offset_P[0], 235).reshape(frames, size, size)
    half = _texture(k_K2, size=size, step=2)
    chroma_TN = np.concatenate([weights_TKP[:, :, p] @ half + offset_P[p] for p in (1, 2)], axis=1)
    out[:, size:] = _bytes(chroma_TN, 240).reshape(frames, size // 2, size)
    return out


def write_videos(
    folder: str | Path,
    indices: Iterable[int],
    *,
    seed: int,
    config: MotionConfig = MotionConfig(),
    class_folders: bool = False,
) -> list[str]:
    """Write motion videos as H.264 files and return their paths relative to `folder`.

    Files are named by their index; with `class_folders` they lie in one folder per direction,
    which is their label. The same (seed, index, config) gives the same bytes.
    """
    folder = Path(folder)
    paths: list[str] = []
    for index in indices:
        name = f"{index:06d}.mp4"
        path = f"{CLASSES[motion_label(index)]}/{name}" if class_folders else name
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(
            encode(
                motion_frames(index, seed=seed, config=config),
                Encoding(
                    fps=config.fps,
                    gop=config.gop,
                    options={"crf": str(config.crf), "preset": config.preset},
                ),
            )
        )
        paths.append(path)
    return paths


# --- any kind of file ------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """How to encode a video: codec, container, and the oddities that decoders stumble over."""

    codec: str = "libx264"
    container: str = "mp4"
    pixel_format: str = "yuv420p"
    fps: int = 24
    gop: int = 12
    bframes: int | None = None
    """Largest number of B-frames in a row; None leaves it to the codec."""
    rotation: int = 0
    """Degrees a player turns the picture, a multiple of 90."""
    times: Sequence[int] | None = None
    """Presentation time of each frame in 1/1000 s, for a variable rate."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of the codec."""


def encode(frames: np.ndarray, encoding: Encoding = Encoding()) -> bytes:
    """Return the encoded file.

    Args:
        frames: uint8, RGB [T, H, W, 3], or YUV 4:2:0 [T, 3 H / 2, W].
        encoding: Codec and container.
    """
    import av  # here, because reading a manifest needs no FFmpeg
    from av.video.stream import VideoStream

    planar = frames.ndim == 3
    height = frames.shape[1] * 2 // 3 if planar else frames.shape[1]
    file = io.BytesIO()
    with av.open(file, "w", format=encoding.container) as container:
        stream = container.add_stream(encoding.codec, rate=encoding.fps)
        assert isinstance(stream, VideoStream), encoding.codec
        stream.width, stream.height = frames.shape[2], height
        stream.pix_fmt = encoding.pixel_format
        context = stream.codec_context
        context.thread_count = 1
        context.gop_size = encoding.gop
        if encoding.bframes is not None:
            context.max_b_frames = encoding.bframes
        if encoding.times is not None:
            context.time_base = Fraction(1, 1000)
        if encoding.rotation:
            stream.set_display_rotation(encoding.rotation)
        context.options = dict(encoding.options)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p" if planar else "rgb24")
            frame.pts = i if encoding.times is None else encoding.times[i]
            frame.time_base = (
                Fraction(1, encoding.fps) if encoding.times is None else Fraction(1, 1000)
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


_BITS = 12


def numbered_frames(count: int, *, width: int, height: int) -> np.ndarray:
    """Return moving stripes, uint8 RGB [count, H, W, 3], each frame with its number in it.

    The number is 12 bits: a grid of 4 x 3 black or white cells that fill the picture's upper half.
    """
    assert count <= 1 << _BITS, count
    assert width >= 16, width
    assert height >= 12, height
    column = np.arange(width)
    frames = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        stripes = 128 + 60 * np.sin(2 * np.pi * (column + 3 * number) / 32)
        frames[number] = stripes.astype(np.uint8)[None, :, None]
        for bit, (rows, columns) in enumerate(_cells(width, height)):
            frames[number, rows, columns] = 235 if number >> bit & 1 else 20
    return frames


def read_number(frame_HWC: np.ndarray) -> int:
    """Return the number in a whole frame of a numbered video."""
    height, width = frame_HWC.shape[:2]
    cells = [frame_HWC[rows, columns] for rows, columns in _cells(width, height)]
    middles = [cell[cell.shape[0] // 4 : -1, cell.shape[1] // 4 : -1].mean() for cell in cells]
    return sum(1 << bit for bit, mean in enumerate(middles) if mean > 128)


def _cells(width: int, height: int) -> list[tuple[slice, slice]]:
    w, h = width // 4, height // 6
    return [
        (slice(row * h, (row + 1) * h), slice(column * w, (column + 1) * w))
        for row in range(3)
        for column in range(4)
    ]


def _texture(k_K2: np.ndarray, *, size: int, step: int) -> np.ndarray:
    """Return cosines, then sines of all waves at the pixels' centres: float32 [2 K, N]."""
    at = (np.arange(0, size, step) + (step - 1) / 2).astype(np.float32)
    x_KW = k_K2[:, 0, None].astype(np.float32) * at
    y_KH = k_K2[:, 1, None].astype(np.float32) * at
    # cos(x + y) and sin(x + y) from the sides: 2 n instead of n * n trigonometric functions.
    cx, sx, cy, sy = np.cos(x_KW), np.sin(x_KW), np.cos(y_KH), np.sin(y_KH)
    cx, sx, cy, sy = cx[:, None], sx[:, None], cy[:, :, None], sy[:, :, None]
    waves = len(k_K2)
    return np.concatenate(
        [(cx * cy - sx * sy).reshape(waves, -1), (sx * cy + cx * sy).reshape(waves, -1)]
    )


def _bytes(plane: np.ndarray, largest: int) -> np.ndarray:
    return np.clip(plane + 0.5, 16, largest).astype(np.uint8)
