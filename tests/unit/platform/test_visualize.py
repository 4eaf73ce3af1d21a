import io

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from torch import Tensor

from tubelet import visualize
from videomae import (
    MaskConfig,
    ModelConfig,
    Reconstruction,
    build_pretraining,
    make_decoder_masks,
    make_masks,
    normalise,
    patchify,
    unpatchify,
)
from videomae.masking import MaskKind

GREY = 128


def model(*, frames: int = 4, side: int = 16, patch: int = 8, tubelet: int = 2) -> ModelConfig:
    return ModelConfig(
        preset="tiny", frames=frames, image_size=side, patch_size=patch, tubelet_size=tubelet
    )


def random_frames(config: ModelConfig, *, clips: int = 2, seed: int = 0) -> Tensor:
    shape = (clips, config.frames, config.image_size, config.image_size, 3)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def perfect(
    config: ModelConfig, frames: Tensor, mask: Tensor, decoder_mask: Tensor | None = None
) -> Reconstruction:
    """What a model without error would return."""
    with torch.no_grad():
        answer = build_pretraining(config)(normalise(frames), mask, decoder_mask)
    return answer._replace(predictions_BMP=answer.targets_BMP)


def pixels(mask: Tensor, config: ModelConfig) -> np.ndarray:
    """The mask of tokens as a mask of pixels, [B, T, H, W]."""
    size = {"tubelet_size": config.tubelet_size, "patch_size": config.patch}
    values = config.token_values // 3
    wide = mask[:, :, None, None].expand(-1, -1, 1, values).float()
    return unpatchify(wide, grid=config.grid, **size)[:, 0].numpy() > 0.5


def picture(png: bytes) -> np.ndarray:
    return np.round(image.imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)


def contains(whole: np.ndarray, part: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], part.shape[:2])
    places = np.argwhere(
        (windows[:, :, 0, 0] == part[0, 0, 0]) & (windows[:, :, -1, -1] == part[-1, -1, 0])
    )
    height, width = part.shape[:2]
    return any((whole[y : y + height, x : x + width] == part).all() for y, x in places)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.sampled_from([2, 4, 8]),
    tubelet=st.sampled_from([1, 2]),
    grid=st.sampled_from([2, 4]),
    patch=st.sampled_from([2, 4, 8]),
    ratio=st.sampled_from([0.25, 0.5, 0.75]),
    kind=st.sampled_from(["tube", "random"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_perfect_predictions_give_back_the_frames(
    frames: int, tubelet: int, grid: int, patch: int, ratio: float, kind: MaskKind, seed: int
) -> None:
    config = model(frames=frames, side=grid * patch, patch=patch, tubelet=tubelet)
    clips = random_frames(config, seed=seed)
    mask = make_masks(MaskConfig(kind=kind, ratio=ratio), config.grid, [seed, seed + 1])
    panels = visualize.compose(clips, mask, perfect(config, clips, mask), config)
    difference = panels.reconstructed_BTHWC.astype(int) - clips.numpy()
    assert np.abs(difference).max() <= 1
    assert (panels.original_BTHWC == clips.numpy()).all()


def test_visible_patches_are_the_inputs_and_hidden_ones_grey() -> None:
    config = model()
    clips = random_frames(config)
    mask = make_masks(MaskConfig(ratio=0.5), config.grid, [1, 2])
    panels = visualize.compose(clips, mask, perfect(config, clips, mask), config)
    hidden = pixels(mask, config)
    assert (panels.masked_BTHWC[hidden] == GREY).all()
    for panel in panels:
        assert (panel[~hidden] == clips.numpy()[~hidden]).all()


def test_tokens_that_the_decoder_left_out_stay_grey() -> None:
    config = model(side=32)
    clips = random_frames(config)
    masks = MaskConfig(ratio=0.75, decoder="running_cell", decoder_ratio=0.5)
    mask = make_masks(masks, config.grid, [1, 2])
    wanted = make_decoder_masks(masks, config.grid, [1, 2])
    assert wanted is not None
    panels = visualize.compose(clips, mask, perfect(config, clips, mask, wanted), config)
    left_out = pixels(mask & ~wanted, config)
    assert left_out.any()
    for panel in (panels.reconstructed_BTHWC, panels.unaided_BTHWC):
        assert (panel[left_out] == GREY).all()
    rebuilt = panels.reconstructed_BTHWC[~left_out].astype(int)
    assert np.abs(rebuilt - clips.numpy()[~left_out]).max() <= 1


def test_the_unaided_panel_knows_nothing_of_the_hidden_patches_colours() -> None:
    config = model()
    clips = random_frames(config)
    mask = make_masks(MaskConfig(ratio=0.5), config.grid, [1, 2])
    answer = perfect(config, clips, mask)
    told = visualize.compose(clips, mask, answer, config)
    lied = answer._replace(
        means_BMC=torch.rand_like(answer.means_BMC), deviations_BMC=answer.deviations_BMC * 3
    )
    other = visualize.compose(clips, mask, lied, config)
    assert (told.unaided_BTHWC == other.unaided_BTHWC).all()
    assert (told.reconstructed_BTHWC != other.reconstructed_BTHWC).any()


def test_the_unaided_panel_uses_mean_and_deviation_of_the_visible_patches() -> None:
    config = model()
    clips = random_frames(config)
    mask = make_masks(MaskConfig(ratio=0.5), config.grid, [1, 2])
    answer = perfect(config, clips, mask)
    hidden = pixels(mask, config)
    means, deviations = [], []
    for clip in range(2):
        values = patchify(
            clips[clip : clip + 1].permute(0, 4, 1, 2, 3).float() / 255,
            tubelet_size=2,
            patch_size=8,
        )[0][~mask[clip]]
        means.append(values.mean((0, 2)).numpy())
        deviations.append(values.std(-1).mean(0).numpy())
    for value in (0.0, 0.5):
        flat = answer._replace(predictions_BMP=torch.full_like(answer.predictions_BMP, value))
        panels = visualize.compose(clips, mask, flat, config)
        for clip in range(2):
            expected = 255 * (means[clip] + value * deviations[clip])
            shown = panels.unaided_BTHWC[clip][hidden[clip]]
            assert np.abs(shown - expected).max() <= 1


@pytest.fixture(scope="module")
def panels() -> visualize.Panels:
    config = model(frames=8, side=16)
    clips = random_frames(config).float()
    smooth = torch.nn.functional.interpolate(  # noise would not survive a video codec
        clips[:, :, ::8, ::8].permute(0, 4, 1, 2, 3), size=(8, 16, 16), mode="trilinear"
    )
    frames = smooth.permute(0, 2, 3, 4, 1).to(torch.uint8)
    mask = make_masks(MaskConfig(ratio=0.5), config.grid, [1, 2])
    return visualize.compose(frames, mask, perfect(config, frames, mask), config)


def test_a_grid_shows_every_panel_of_every_clip_at_whole_pixels(panels: visualize.Panels) -> None:
    png = visualize.reconstruction_grid(
        panels, title="tiny   step 10   loss 0.5", clip_titles=["a.mp4", "b.mp4"], columns=4
    )
    shown = picture(png)
    for panel in panels:
        for clip in (0, 1):
            for frame, there in ((0, True), (7, True), (1, False)):
                tile = panel[clip, frame].repeat(7, axis=0).repeat(7, axis=1)
                assert tile.shape[0] == 112
                if panel is not panels.masked_BTHWC or there:
                    assert contains(shown, tile) == there


def test_a_video_is_one_that_browsers_play(panels: visualize.Panels) -> None:
    data = visualize.reconstruction_video(
        panels, title="tiny", clip_titles=["a.mp4", "b.mp4"], fps=7.5, repeats=2
    )
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == 7.5
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 16
    assert shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0
    for frame in (0, 5, 8, 13):
        row = shown[frame][130:306, 16 : 16 + 4 * 180].astype(int)
        for column, panel in enumerate(panels):
            tile = panel[0, frame % 8].repeat(11, axis=0).repeat(11, axis=1)
            there = row[:, column * 180 : column * 180 + 176]
            assert np.abs(there - tile).mean() < 4


def test_a_loss_curve_draws_each_series() -> None:
    steps = range(1, 200)
    everything = picture(
        visualize.loss_curve(
            title="tiny",
            loss_name="loss",
            train=[(step, 1 / step) for step in steps],
            held_out=[(50, 0.5), (100, 0.4)],
            learning_rate=[(step, 1e-5 * step) for step in steps],
        )
    )
    bare = picture(visualize.loss_curve(title="tiny", loss_name="loss", train=[(1, 1.0), (2, 0.5)]))
    assert pixel_count(everything, visualize.BLUE) > 200
    assert pixel_count(everything, visualize.ORANGE) > 100
    assert pixel_count(everything, visualize.GREEN) > 50
    assert pixel_count(bare, visualize.ORANGE) == pixel_count(bare, visualize.GREEN) == 0


def test_a_loss_curve_tells_of_points_it_cannot_draw() -> None:
    losses = [(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 0.5)]
    drawn = picture(visualize.loss_curve(title="tiny", loss_name="loss", train=losses))
    assert pixel_count(drawn, visualize.ORANGE) > 20


def test_a_prediction_shows_every_frame_and_a_bar_for_each_label() -> None:
    frames = random_frames(model(frames=10, side=16), clips=2).numpy()
    png = visualize.prediction_picture(
        frames, title="a.mp4", labels=["left", "x" * 200], probabilities=[0.75, 0.25], crops=3
    )
    shown = picture(png)
    for frame in frames.reshape(-1, *frames.shape[2:]):
        assert contains(shown, frame.repeat(7, axis=0).repeat(7, axis=1))
    first, second = pixel_count(shown, "#0969da"), pixel_count(shown, "#a0bee2")
    assert first == pytest.approx(3 * second, rel=0.02)


def pixel_count(shown: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(shown.astype(int) - wanted).max(-1) <= 2).sum())
