from pathlib import Path

import numpy as np
import pytest

from clips import open_video, synthetic
from clips.synthetic import (
    CLASSES,
    MotionConfig,
    motion_frames,
    motion_label,
    numbered_frames,
    read_number,
    write_videos,
)

STEPS = {
    "right": (1, 0),
    "down_right": (1, 1),
    "down": (0, 1),
    "down_left": (-1, 1),
    "left": (-1, 0),
    "up_left": (-1, -1),
    "up": (0, -1),
    "up_right": (1, -1),
}


def luma(index: int, *, seed: int, config: MotionConfig) -> np.ndarray:
    return motion_frames(index, seed=seed, config=config)[:, : config.size].astype(float)


@pytest.mark.parametrize("index", range(16))
def test_the_texture_moves_in_the_direction_of_its_class(index: int) -> None:
    config = MotionConfig(speed=(3.0, 3.0))
    frames = luma(index, seed=5, config=config)
    step = np.array(STEPS[CLASSES[motion_label(index)]], float)
    step = np.rint(step / np.linalg.norm(step) * 12).astype(int)  # after four frames of 3 px

    def error(dx: int, dy: int) -> float:
        ahead = np.roll(frames[0], (dy, dx), (0, 1))[16:48, 16:48]
        return float(np.abs(ahead - frames[4][16:48, 16:48]).mean())

    errors = {
        s: error(*np.rint(np.array(STEPS[s]) / np.linalg.norm(STEPS[s]) * 12).astype(int))
        for s in STEPS
    }
    assert min(errors, key=lambda s: errors[s]) == CLASSES[motion_label(index)]
    assert error(*step) < 8


def test_a_single_frame_does_not_tell_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    videos = []
    for label in range(8):
        monkeypatch.setattr(synthetic, "motion_label", lambda index, label=label: label)
        videos.append(motion_frames(7, seed=1))
    assert len({video[0].tobytes() for video in videos}) == 1
    assert len({video[1].tobytes() for video in videos}) == 8


def test_videos_are_functions_of_seed_and_index(tmp_path: Path) -> None:
    paths = write_videos(tmp_path / "a", [3, 9], seed=1, class_folders=True)
    assert paths == ["down_left/000003.mp4", "down_right/000009.mp4"]
    write_videos(tmp_path / "b", [9], seed=1)
    write_videos(tmp_path / "c", [9], seed=2)
    files = [(tmp_path / p).read_bytes() for p in ("a/" + paths[1], "b/000009.mp4", "c/000009.mp4")]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_the_files_hold_the_frames_at_little_loss(tmp_path: Path) -> None:
    config = MotionConfig()
    (path,) = write_videos(tmp_path, [4], seed=1, config=config)
    with open_video(str(tmp_path / path)) as reader:
        assert (reader.frames, reader.fps) == (24, 24.0)
        (decoded,) = reader.read([np.arange(24)])
    made = 1.164 * (luma(4, seed=1, config=config) - 16)
    seen = decoded.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(made - seen).mean() < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 63}, "size is 63; it must be even and at least 16"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"speed": (3.0, 2.0)}, r"speed is \(3.0, 2.0\); it must be 0 < least <= largest"),
        ({"crf": 99}, r"crf is 99; allowed: 0 .. 51"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionConfig(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(16, 12), (64, 48), (97, 53)])
def test_frame_numbers_can_be_read_back(size: tuple[int, int]) -> None:
    frames = numbered_frames(300, width=size[0], height=size[1])
    assert [read_number(frame) for frame in frames] == list(range(300))
