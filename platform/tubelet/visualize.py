"""Pictures of what a model does: reconstructions, their video, loss curves, predictions.

Every function is pure: arrays in, the bytes of a PNG or MP4 file out.

What a reconstruction shows, and what it does not. VideoMAE predicts pixels normalised by the mean
and deviation of each hidden patch and channel. A picture therefore needs these two numbers, and
taking the true ones tells the picture each hidden patch's colour and contrast, which the model
never predicted. So two panels are drawn: the usual one with the true numbers, and one where every
hidden patch gets the mean and deviation of its clip's visible patches: all structure seen inside a
patch there is the model's own, and the steps in colour between patches are what it does not
predict. In both, visible patches are the input's own pixels. A token that was
neither visible nor reconstructed (VideoMAE V2 drops half of them) stays grey.

Cost: about 0.5 s for a grid of four clips on one core, and the same for the video.

Shapes: B clips, T frames, H x W pixels, C channels, N tokens, M reconstructed tokens, P numbers of
a token, X pixels of a token and channel, S steps, K classes.
"""

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

import videomae
from videomae import ModelConfig, Reconstruction

Frames = NDArray[np.uint8]

DPI = 100
SMALLEST_TILE, SMALLEST_VIDEO_TILE = 112, 176  # smaller frames are enlarged by a whole factor
GAP, CLIP_GAP = 4, 28
HIDDEN_LEVEL = 0.5  # grey, of values between 0 and 1
INK, QUIET, LINE = "#1f2328", "#6e7781", "#d0d7de"
BLUE, ORANGE, GREEN = "#0969da", "#d4580a", "#1a7f37"


class Panels(NamedTuple):
    """The same clips four times, uint8 RGB."""

    original_BTHWC: Frames
    masked_BTHWC: Frames
    """Hidden patches grey."""
    reconstructed_BTHWC: Frames
    """Predictions in hidden patches, with the true mean and deviation of each."""
    unaided_BTHWC: Frames
    """The same with the mean and deviation of the clip's visible patches."""


PANEL_TITLES = (
    "original",
    "masked",
    "reconstructed\n(true patch\nstatistics)",
    "reconstructed\n(statistics of\nvisible patches)",
)
LEGEND = (
    "Visible patches are the input's own pixels. Statistics: mean and deviation of a hidden "
    "patch, which the model does not predict."
)


def compose(
    frames_BTHWC: Tensor | Frames,
    mask_BN: Tensor,
    reconstruction: Reconstruction,
    config: ModelConfig,
) -> Panels:
    """Put predictions back into the frames they were made for.

    Args:
        frames_BTHWC: uint8 frames that the model saw.
        mask_BN: bool, True where a token was hidden from the encoder.
        reconstruction: what the model returned for them.
        config: the model's configuration.
    """
    original_BTHWC = torch.as_tensor(frames_BTHWC).cpu()
    mask_BN = mask_BN.cpu()
    size = {"tubelet_size": config.tubelet_size, "patch_size": config.patch}
    pixels_BCTHW = original_BTHWC.permute(0, 4, 1, 2, 3).float() / 255
    true_BNCX = videomae.patchify(pixels_BCTHW, **size)
    grey_BNCX = true_BNCX.masked_fill(mask_BN[:, :, None, None], HIDDEN_LEVEL)

    tokens_BM = reconstruction.tokens_BM.cpu()
    predictions_BMP = reconstruction.predictions_BMP.detach().cpu().float()
    means_BMC = reconstruction.means_BMC.cpu().float()
    seen_B11 = (~mask_BN).sum(1)[:, None, None]
    deviations_BNC = true_BNCX.std(-1) * ~mask_BN[:, :, None]
    levels_BNC = true_BNCX.mean(-1) * ~mask_BN[:, :, None]
    visible_means_BMC = (levels_BNC.sum(1, keepdim=True) / seen_B11).expand_as(means_BMC)
    visible_deviations_BMC = (deviations_BNC.sum(1, keepdim=True) / seen_B11).expand_as(means_BMC)

    def filled(means_BMC: Tensor, deviations_BMC: Tensor) -> Frames:
        patches_BMCX = videomae.restore_pixels(
            predictions_BMP, means_BMC=means_BMC, deviations_BMC=deviations_BMC
        )
        index_BMCX = tokens_BM[:, :, None, None].expand_as(patches_BMCX)
        whole_BNCX = grey_BNCX.scatter(1, index_BMCX, patches_BMCX)
        shown_BNCX = torch.where(mask_BN[:, :, None, None], whole_BNCX, true_BNCX)
        return frames(shown_BNCX)

    def frames(patches_BNCX: Tensor) -> Frames:
        whole_BCTHW = videomae.unpatchify(patches_BNCX, grid=config.grid, **size)
        return videomae.to_frames(whole_BCTHW).numpy()

    return Panels(
        original_BTHWC=original_BTHWC.numpy(),
        masked_BTHWC=frames(grey_BNCX),
        reconstructed_BTHWC=filled(means_BMC, reconstruction.deviations_BMC.cpu().float()),
        unaided_BTHWC=filled(visible_means_BMC, visible_deviations_BMC),
    )


def reconstruction_grid(
    panels: Panels, *, title: str, clip_titles: Sequence[str], columns: int = 8
) -> bytes:
    """A PNG with the clips below each other: a row per panel, a column per frame.

    Args:
        panels: as `compose` gives them.
        title: first line of the picture, for example run, step and loss.
        clip_titles: a line above each clip.
        columns: at most so many frames, evenly spaced over the clip.
    """
    clips, count = panels.original_BTHWC.shape[:2]
    chosen = _spaced(count, columns)
    canvas = _Canvas(title, LEGEND, left=116, top=104)
    scale = _scale(panels.original_BTHWC, SMALLEST_TILE)
    height, width = (side * scale for side in panels.original_BTHWC.shape[2:4])
    for column, frame in enumerate(chosen):
        canvas.text(column * (width + GAP) + width / 2, -30, f"frame {frame + 1}", ha="center")
    y = 0
    for clip in range(clips):
        canvas.text(0, y - 8, clip_titles[clip], color=INK)
        for panel, name in zip(panels, PANEL_TITLES, strict=True):
            canvas.text(-10, y + height / 2, name, ha="right", va="center")
            for column, frame in enumerate(chosen):
                canvas.paste(_enlarged(panel[clip, frame], scale), column * (width + GAP), y)
            y += height + GAP
        y += CLIP_GAP
    return canvas.png()


def reconstruction_video(
    panels: Panels, *, title: str, clip_titles: Sequence[str], fps: float, repeats: int = 4
) -> bytes:
    """An H.264 MP4 that browsers play: the four panels beside each other, the clips below.

    Args:
        panels: as `compose` gives them.
        title: line at the top.
        clip_titles: a line above each clip.
        fps: frames a second; for true speed, the source's rate over the sampling stride.
        repeats: how often the clip is shown, since players do not loop.
    """
    clips, count, height, width = panels.original_BTHWC.shape[:4]
    scale = _scale(panels.original_BTHWC, SMALLEST_VIDEO_TILE)
    step_x, step_y = width * scale + GAP, height * scale + CLIP_GAP
    canvas = _Canvas(title, LEGEND, left=0, top=130)
    for column, name in enumerate(PANEL_TITLES):
        canvas.text(column * step_x + width * scale / 2, -24, name, ha="center", va="bottom")
    for clip in range(clips):
        canvas.text(0, clip * step_y - 8, clip_titles[clip], color=INK)
        for column in range(len(panels)):
            blank = np.full((height * scale, width * scale, 3), 255, np.uint8)
            canvas.paste(blank, column * step_x, clip * step_y)
    template = canvas.image()
    pictures = []
    for frame in range(count):
        picture = template.copy()
        for clip in range(clips):
            for column, panel in enumerate(panels):
                tile = _enlarged(panel[clip, frame], scale)
                x, y = canvas.place(column * step_x, clip * step_y)
                picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        pictures.append(picture)
    return _encode(pictures * repeats, fps=fps)


def loss_curve(
    *,
    title: str,
    loss_name: str,
    train: Sequence[tuple[int, float]],
    held_out: Sequence[tuple[int, float]] = (),
    learning_rate: Sequence[tuple[int, float]] = (),
) -> bytes:
    """A PNG of a run's loss over optimizer steps, the learning rate in a strip below.

    Args:
        title: first line of the picture.
        loss_name: label of the axis, with the unit: "masked loss (MSE of normalised pixels)".
        train: (step, loss) of the training steps; drawn raw and as a running mean.
        held_out: (step, loss) on held-out data.
        learning_rate: (step, rate).
    """
    figure = Figure(figsize=(9, 5.4), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if learning_rate:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    else:
        upper = lower = figure.subplots()
    points_S2 = np.array(train, dtype=np.float64).reshape(-1, 2)
    finite_S2 = points_S2[np.isfinite(points_S2).all(1)]
    upper.plot(*finite_S2.T, color=BLUE, alpha=0.25, linewidth=0.8, label="train, each step")
    window = max(1, len(finite_S2) // 40)
    if window > 1:
        mean_S2 = np.stack(
            [np.convolve(column, np.full(window, 1 / window), "valid") for column in finite_S2.T], 1
        )
        upper.plot(*mean_S2.T, color=BLUE, linewidth=1.8, label=f"train, mean of {window} points")
    if held_out:
        upper.plot(
            *zip(*held_out, strict=True),
            color=ORANGE,
            marker="o",
            markersize=4.5,
            linewidth=1.4,
            label="held-out",
        )
        upper.annotate(
            f"{held_out[-1][1]:.3f}",
            held_out[-1],
            xytext=(6, 6),
            textcoords="offset points",
            color=ORANGE,
            fontsize=9,
        )
    upper.set_ylabel(loss_name, color=INK)
    upper.legend(frameon=False, fontsize=9, loc="upper right")
    if learning_rate:
        lower.plot(*zip(*learning_rate, strict=True), color=GREEN, linewidth=1.8)
        lower.set_ylabel("learning\nrate", color=INK)
        lower.set_ylim(bottom=0)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.set_xlabel("optimizer step", color=INK)
    for axes in {upper, lower}:
        axes.grid(color=LINE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=QUIET, labelsize=9)
    upper.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    lost = len(points_S2) - len(finite_S2)
    if lost:
        upper.set_title(f"{lost} non-finite not drawn", loc="right", fontsize=9, color=ORANGE)
    figure.tight_layout()
    return _png(figure)


def prediction_picture(
    frames_VTHWC: Frames,
    *,
    title: str,
    labels: Sequence[str],
    probabilities: Sequence[float],
    crops: int = 1,
) -> bytes:
    """A PNG of the frames a prediction was made from, with its likeliest labels.

    Args:
        frames_VTHWC: uint8 frames of each clip, in the order the model saw them.
        title: first line of the picture, for example the video's name.
        labels: likeliest first.
        probabilities: of the labels, between 0 and 1.
        crops: squares that each clip was cut into; of several the middle one is given.
    """
    clips, frames = frames_VTHWC.shape[:2]
    scale = _scale(frames_VTHWC, SMALLEST_TILE)
    columns = min(8, frames)
    rows = -(-frames // columns)
    height, width = (side * scale for side in frames_VTHWC.shape[2:4])
    bar, grid_width = 26, max(columns * (width + GAP) - GAP, 480)
    legend = f"The {frames} frames the model saw, in order."
    if clips > 1:
        legend = f"The {clips} clips of {frames} frames that the model saw, in order."
    if crops > 1:
        legend += f" Of each clip the middle one of its {crops} squares."
    canvas = _Canvas(title, legend, left=0, top=64)
    clip_height = rows * (height + GAP) + CLIP_GAP - GAP
    for clip, frames_THWC in enumerate(frames_VTHWC):
        for index, frame in enumerate(frames_THWC):
            canvas.paste(
                _enlarged(frame, scale),
                index % columns * (width + GAP),
                clip * clip_height + index // columns * (height + GAP),
            )
    below = clips * clip_height - CLIP_GAP + GAP + 16
    name_width, number_width = 0.34 * grid_width, 56
    for index, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        y = below + index * bar
        length = max(1, round((grid_width - name_width - number_width) * probability))
        colour = (9, 105, 218) if index == 0 else (160, 190, 226)
        canvas.paste(np.full((bar - 8, length, 3), colour, np.uint8), round(name_width), y)
        shown = label if len(label) <= 34 else label[:33] + "\N{HORIZONTAL ELLIPSIS}"
        canvas.text(name_width - 10, y + bar / 2 - 4, shown, color=INK, ha="right", va="center")
        canvas.text(
            name_width + length + 8, y + bar / 2 - 4, f"{100 * probability:.1f} %", va="center"
        )
    return canvas.png()


class _Canvas:
    """Tiles and text placed by pixel, drawn at exactly that size: frames are never resampled."""

    def __init__(self, title: str, legend: str, *, left: int, top: int) -> None:
        self._title, self._legend, self._left, self._top = title, legend, left + 16, top
        self._tiles: list[tuple[Frames, int, int]] = []
        self._texts: list[tuple[float, float, str, dict[str, str]]] = []

    def place(self, x: int, y: int) -> tuple[int, int]:
        return x + self._left, y + self._top

    def paste(self, tile: Frames, x: int, y: int) -> None:
        self._tiles.append((tile, *self.place(x, y)))

    def text(self, x: float, y: float, text: str, *, color: str = QUIET, **align: str) -> None:
        self._texts.append((x + self._left, y + self._top, text, {"color": color, **align}))

    def image(self) -> Frames:
        """The picture as uint8 RGB with even sides, as H.264 wants them."""
        width = max(x + tile.shape[1] for tile, x, _ in self._tiles) + 16
        width = max(width, 32 + 9 * len(self._title), 32 + 7 * len(self._legend))
        for x, _, text, style in self._texts:
            if "ha" not in style:  # these start at x; the others lie over or beside a tile
                width = max(width, round(x) + 7 * len(text) + 16)
        height = max(y + tile.shape[0] for tile, _, y in self._tiles) + 16
        width, height = width + width % 2, height + height % 2
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for x, y, text, style in self._texts:
            figure.text(x / width, 1 - y / height, text, {"fontsize": 9} | style)
        figure.text(16 / width, 1 - 24 / height, self._title, color=INK, weight="bold", size=11)
        figure.text(16 / width, 1 - 46 / height, self._legend, color=QUIET, size=9)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        for tile, x, y in self._tiles:
            picture[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        return picture

    def png(self) -> bytes:
        picture = self.image()
        figure = Figure(figsize=(picture.shape[1] / DPI, picture.shape[0] / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.figimage(picture)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _spaced(count: int, wanted: int) -> list[int]:
    return [round(index) for index in np.linspace(0, count - 1, min(count, wanted))]


def _scale(frames: Frames, smallest: int) -> int:
    return max(1, -(-smallest // frames.shape[-3]))


def _enlarged(frame_HWC: Frames, scale: int) -> Frames:
    return frame_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def _encode(pictures: Sequence[Frames], *, fps: float) -> bytes:
    """H.264 with 4:2:0 colour and the index first, which browsers need to start at once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1000)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()
