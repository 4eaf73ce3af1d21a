"""Pictures of a run: what a worker keeps is what the driver draws."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib import image

from tubelet import pictures, visualize
from tubelet.run_directory import RunDirectory
from videomae import (
    MaskConfig,
    ModelConfig,
    Reconstruction,
    build_pretraining,
    make_decoder_masks,
    make_masks,
    normalise,
)

CONFIG = ModelConfig(preset="tiny", frames=4, image_size=16, depth=1, decoder_depth=1)
CLIPS = 6


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "runs" / "one"))


@pytest.fixture(params=["none", "running_cell"])
def kept(
    request: pytest.FixtureRequest, run: RunDirectory
) -> tuple[torch.Tensor, torch.Tensor, Reconstruction]:
    """Six clips that a worker has reconstructed and kept, with all or half of the hidden tokens."""
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (CLIPS, 4, 16, 16, 3), dtype=np.uint8))
    masking = MaskConfig(ratio=0.75, decoder=request.param)
    seeds = np.arange(CLIPS, dtype=np.uint64)
    mask = make_masks(masking, CONFIG.grid, seeds)
    made = build_pretraining(CONFIG)(
        normalise(frames), mask, make_decoder_masks(masking, CONFIG.grid, seeds)
    )
    assert made.predictions_BMP.requires_grad  # as in a worker
    pictures.keep(run, frames, mask, made, names=[f"clip{n}.mp4" for n in range(CLIPS)])
    return frames, mask, made


def draw(run: RunDirectory, folder: Path) -> list[Path]:
    return pictures.draw_reconstructions(run, folder, title="one", model=CONFIG, fps=8.0)


def test_the_drawing_is_of_the_clips_that_were_kept(
    run: RunDirectory,
    kept: tuple[torch.Tensor, torch.Tensor, Reconstruction],
    tmp_path: Path,
) -> None:
    frames, mask, made = kept
    grid, video = draw(run, tmp_path / "pictures")
    four = Reconstruction(*(value[:4].detach() for value in made))
    panels = visualize.compose(frames[:4], mask[:4], four, CONFIG)
    titles = [f"clip{n}.mp4, loss {float(four.loss_B[n]):.3f}" for n in range(4)]
    wanted = visualize.reconstruction_grid(panels, title="one", clip_titles=titles)
    assert np.array_equal(image.imread(grid), image.imread(io.BytesIO(wanted)))
    with av.open(str(video)) as container:
        shown = sum(1 for _ in container.decode(video=0))
    assert shown
    assert shown % CONFIG.frames == 0, "the clips are played whole"


def test_what_is_kept_holds_no_pickle(
    run: RunDirectory, kept: tuple[torch.Tensor, torch.Tensor, Reconstruction]
) -> None:
    with np.load(run.path("reconstructed", "held_out.npz"), allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == [f"clip{n}.mp4" for n in range(4)]
        assert np.array_equal(arrays["frames_BTHWC"], kept[0][:4])


def test_before_the_first_evaluation_nothing_is_drawn(run: RunDirectory, tmp_path: Path) -> None:
    assert draw(run, tmp_path / "pictures") == []
    assert not (tmp_path / "pictures").exists()


def points(spool: Path, *entries: dict[str, float]) -> None:
    spool.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"s": step, "m": entry}) for step, entry in enumerate(entries, start=1)]
    spool.write_text("\n".join(lines) + "\n")


def curve(spool: Path, folder: Path) -> Path | None:
    return pictures.draw_curve(spool, folder, title="one", loss_name="masked loss")


def test_a_curve_appears_with_the_second_point(tmp_path: Path) -> None:
    spool, folder = tmp_path / "spool" / "r.jsonl", tmp_path / "pictures"
    assert curve(spool, folder) is None
    points(spool, {"train/loss": 1.0, "train/lr": 0.1})
    assert curve(spool, folder) is None
    assert not folder.exists()
    points(spool, {"train/loss": 1.0}, {"train/loss": 0.5, "train/lr": 0.1}, {"eval/loss": 0.7})
    made = curve(spool, folder)
    assert made is not None
    assert made == folder / "loss.png"
    first = image.imread(made)
    points(spool, {"train/loss": 1.0}, {"train/loss": 0.9, "train/lr": 0.1}, {"eval/loss": 0.7})
    curve(spool, folder)
    assert not np.array_equal(first, image.imread(made)), "the curve shows its values"
