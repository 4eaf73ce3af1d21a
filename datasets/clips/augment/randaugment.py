"""RandAugment on clips (Cubuk et al. 2020), with the operations of timm and one draw for all frames.

A policy is written as timm and the authors write it, `rand-m7-n4-mstd0.5-inc1`: magnitude 7 of 10, four layers, the
magnitude of each drawn with deviation 0.5, operations that grow with it. A layer picks one of fifteen operations, with
replacement, and applies it with probability 0.5. What is drawn depends on the clip's seed alone, and every frame of the
clip gets the same: operation, magnitude, sign. (AutoContrast and Equalize look at each frame's own histogram.)

The pixels of every operation are timm's (tested), which are Pillow's. They are written down here because timm
draws from Python's global generators, cannot hold one draw for a clip, and imports torch.

Cost: two operations a clip on average; with the authors' policy 25 ms a clip of 16 frames of 340 x 256, on one CPU.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from clips.draws import below, draw_words, fraction

if TYPE_CHECKING:
    from PIL.Image import Image

_LEVELS = 10.0
_FILL = (128, 128, 128)
_WORDS = 4  # of a layer: operation, whether, magnitude, sign
_SPELLED = re.compile(
    r"rand-m(?P<m>\d+(\.\d+)?)-n(?P<n>\d+)(-mstd(?P<mstd>\d+(\.\d+)?))?(?P<inc>-inc1)?"
)


@dataclass(frozen=True)
class Policy:
    """What a clip may be put through."""

    magnitude: float
    """Of 10."""
    layers: int
    deviation: float = 0.0
    """Of the magnitude; the result is cut to 0 .. 10."""
    increasing: bool = False
    """Operations whose effect grows with the magnitude."""
    probability: float = 0.5
    """Of each layer."""


@dataclass(frozen=True)
class Step:
    """One operation on all frames of a clip."""

    operation: str
    """timm's name."""
    value: float | None = None
    """Its argument, where it has one: degrees, a factor, a share of the side, bits, a threshold."""


def parse_policy(text: str) -> Policy:
    """Read a policy in timm's spelling.

    Raises:
        ValueError: it is none, or asks for nothing.
    """
    found = _SPELLED.fullmatch(text)
    if not found or int(found["n"]) < 1 or float(found["m"]) > _LEVELS:
        raise ValueError(
            f"{text!r} is no policy; write it as rand-m7-n4-mstd0.5-inc1: the magnitude (0 to 10), the number of "
            "layers (at least 1), and if wanted the magnitude's deviation and inc1, for operations that grow with it"
        )
    return Policy(
        magnitude=float(found["m"]),
        layers=int(found["n"]),
        deviation=float(found["mstd"] or 0.0),
        increasing=found["inc"] is not None,
    )


def draw_steps(policy: Policy, *, seed: int) -> tuple[Step, ...]:
    """Return what the clip of this seed is put through, in order; layers that are skipped are left out."""
    words = draw_words(seed, stream="augment", count=_WORDS * policy.layers)
    operations = INCREASING if policy.increasing else PLAIN
    steps: list[Step] = []
    for layer in range(policy.layers):
        which, whether, how_much, sign = words[_WORDS * layer : _WORDS * (layer + 1)]
        if fraction(whether) >= policy.probability:
            continue
        level = policy.magnitude
        if policy.deviation:
            level += policy.deviation * _normal(how_much)
        level = min(max(level, 0.0), _LEVELS)
        operation = operations[below(len(operations), word=which)]
        value = level_value(operation, level, negative=below(2, word=sign) == 1)
        steps.append(Step(operation, value))
    return tuple(steps)


def augment(frames_THWC: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Return a clip after the steps, uint8 [T, H, W, 3]; the given one when there are none."""
    if not steps:
        return frames_THWC
    from PIL import Image  # here, because most users of this package augment nothing

    out = np.empty(frames_THWC.shape, np.uint8)
    for frame_HWC, changed_HWC in zip(frames_THWC, out, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame_HWC))
        for step in steps:
            image = apply_step(image, step)
        changed_HWC[:] = np.asarray(image)
    return out


def level_value(operation: str, level: float, *, negative: bool) -> float | None:
    """Return an operation's argument at a level of 0 to 10 (timm's `LEVEL_TO_ARG`); None if it has none."""
    share = level / _LEVELS
    sign = -1.0 if negative else 1.0
    match operation:
        case "AutoContrast" | "Equalize" | "Invert":
            return None
        case "Rotate":
            return sign * 30.0 * share
        case "ShearX" | "ShearY":
            return sign * 0.3 * share
        case "TranslateXRel" | "TranslateYRel":
            return sign * 0.45 * share
        case "Posterize":
            return int(share * 4)
        case "PosterizeIncreasing":
            return 4 - int(share * 4)
        case "Solarize":
            return min(256, int(share * 256))
        case "SolarizeIncreasing":
            return 256 - min(256, int(share * 256))
        case "SolarizeAdd":
            return min(128, int(share * 110))
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return share * 1.8 + 0.1
        case _:  # ColorIncreasing, ...
            return max(0.1, 1.0 + sign * 0.9 * share)


def apply_step(image: "Image", step: Step) -> "Image":
    """Return one RGB picture after a step."""
    return _APPLY[step.operation.removesuffix("Increasing")](image, step.value or 0.0)


# --- operations ------------------------------------------------------------------------------


def _moved(image: "Image", matrix: tuple[float, ...]) -> "Image":
    from PIL import Image

    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=_FILL,
    )


def _rotate(image: "Image", degrees: float) -> "Image":
    from PIL import Image

    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=_FILL)


def _posterize(image: "Image", bits: float) -> "Image":
    # Pillow's, for 1 to 8 bits. Of 0 bits, which the highest level keeps, newer ones make an error, older ones black.
    return image.point([i & ~(2 ** (8 - int(bits)) - 1) for i in range(256)] * 3)


def _solarize(image: "Image", threshold: float) -> "Image":
    from PIL import ImageOps

    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: "Image", add: float) -> "Image":
    return image.point([min(255, i + int(add)) if i < 128 else i for i in range(256)] * 3)


def _per_frame(name: str) -> Callable[["Image", float], "Image"]:
    def change(image: "Image", value: float) -> "Image":
        from PIL import ImageOps

        return getattr(ImageOps, name)(image)

    return change


def _enhanced(name: str) -> Callable[["Image", float], "Image"]:
    def change(image: "Image", value: float) -> "Image":
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(value)

    return change


_APPLY: dict[str, Callable[["Image", float], "Image"]] = {
    "AutoContrast": _per_frame("autocontrast"),
    "Equalize": _per_frame("equalize"),
    "Invert": _per_frame("invert"),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhanced("Color"),
    "Contrast": _enhanced("Contrast"),
    "Brightness": _enhanced("Brightness"),
    "Sharpness": _enhanced("Sharpness"),
    "ShearX": lambda image, x: _moved(image, (1, x, 0, 0, 1, 0)),
    "ShearY": lambda image, x: _moved(image, (1, 0, 0, x, 1, 0)),
    "TranslateXRel": lambda image, x: _moved(image, (1, 0, x * image.size[0], 0, 1, 0)),
    "TranslateYRel": lambda image, x: _moved(image, (1, 0, 0, 0, 1, x * image.size[1])),
}

PLAIN = tuple(_APPLY)
"""timm's fifteen operations, for policies without `inc1`."""
_GROWING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
INCREASING = tuple(f"{name}Increasing" if name in _GROWING else name for name in PLAIN)
"""The same for policies with it."""


def _normal(word: int) -> float:
    """A standard normal number from a word, by the inverse of the distribution."""
    return NormalDist().inv_cdf(fraction(word | 1 << 11))  # never 0, which has no inverse
