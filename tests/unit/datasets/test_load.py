from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clips import ClipConfig, DecodeError, Video, load_clips, load_views
from clips.augment.geometry import flip_draw, multi_scale_box, random_resized_box
from clips.augment.randaugment import augment, draw_steps, parse_policy
from clips.load import resize
from clips.sampling import dense_indices, segment_indices, window_indices
from clips.synthetic import Encoding, encode, numbered_frames, read_number

LENGTH, WIDTH, HEIGHT = 50, 80, 60
DATA = encode(numbered_frames(LENGTH, width=WIDTH, height=HEIGHT), Encoding(gop=25, bframes=2))
SEEDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("load") / "v.mp4"
    path.write_bytes(DATA)
    return record(path)


def record(path: Path, *, start_s: float | None = None, end_s: float | None = None) -> Video:
    return Video(
        uri=str(path),
        video_id=path.name,
        row=0,
        size=path.stat().st_size,
        label=None,
        labels=(),
        start_s=start_s,
        end_s=end_s,
        frames=None,
        fps=None,
        duration_s=None,
        width=None,
        height=None,
    )


def whole_frames() -> np.ndarray:
    from clips.decode import open_video

    with open_video(DATA) as reader:
        return reader.read([np.arange(LENGTH)])[0]


@pytest.mark.parametrize("flip", [False, True])
def test_a_clip_is_its_seeds_frames_cropped_resized_and_flipped(video: Video, flip: bool) -> None:
    frames = whole_frames()
    seeds = [3, 2**63, 5, 8]
    config = ClipConfig(stride=2, flip=flip)
    clips = load_clips(video, config, seeds=seeds, frames=8, size=32)
    assert clips.shape == (4, 8, 32, 32, 3)
    assert clips.dtype == np.uint8
    for clip, seed in zip(clips, seeds, strict=True):
        x, y, w, h = multi_scale_box(WIDTH, HEIGHT, size=32, seed=seed)
        indices = dense_indices(LENGTH, frames=8, stride=2, seed=seed)
        expected = resize(np.ascontiguousarray(frames[indices, y : y + h, x : x + w]), size=32)
        mirrored = flip and flip_draw(seed=seed)
        np.testing.assert_array_equal(clip, expected[:, :, ::-1] if mirrored else expected)


@settings(max_examples=15, deadline=None)
@given(seeds=SEEDS)
def test_a_clip_does_not_depend_on_the_others_in_its_visit(video: Video, seeds: list[int]) -> None:
    config = ClipConfig(stride=2, flip=True)
    together = load_clips(video, config, seeds=np.array(seeds, np.uint64), frames=4, size=24)
    alone = [load_clips(video, config, seeds=[s], frames=4, size=24)[0] for s in seeds]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_different_seeds_give_different_times_and_crops(video: Video) -> None:
    clips = load_clips(video, ClipConfig(stride=2), seeds=range(6), frames=4, size=24)
    assert len({clip.tobytes() for clip in clips}) == 6


def test_centre_clips_need_no_chance(video: Video) -> None:
    config = ClipConfig(stride=2, time="centre", crop="centre")
    clips = load_clips(video, config, seeds=[1, 2], frames=8, size=32)
    np.testing.assert_array_equal(clips[0], clips[1])
    np.testing.assert_array_equal(clips[:1], load_views(video, config, frames=8, size=32))
    frames = whole_frames()[17 : 17 + 16 : 2, :, 10:70]
    np.testing.assert_array_equal(clips[0], resize(np.ascontiguousarray(frames), size=32))


def test_views_are_times_by_crops(video: Video) -> None:
    views = load_views(video, ClipConfig(stride=2), frames=8, size=30, views=3, crops=2)
    assert views.shape == (6, 8, 30, 30, 3)
    frames = whole_frames()
    starts = [0, 2 * (17 // 2), 2 * 17]
    for view, start in enumerate(starts):
        for crop, x in enumerate((0, WIDTH - HEIGHT)):
            part = frames[start : start + 16 : 2, :, x : x + HEIGHT]
            np.testing.assert_array_equal(
                views[2 * view + crop], resize(np.ascontiguousarray(part), size=30)
            )


def test_views_of_bytes_equal_those_of_the_file(video: Video) -> None:
    config = ClipConfig(stride=2)
    np.testing.assert_array_equal(
        load_views(video, config, frames=4, size=16),
        load_views(video, config, frames=4, size=16, source=DATA),
    )


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_short_videos_hold_their_last_frame(tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.mp4"
    path.write_bytes(encode(numbered_frames(length, width=64, height=48)))
    clips = load_clips(record(path), ClipConfig(stride=4), seeds=[1, 2], frames=16, size=16)
    last = -(-length // 4) - 1
    assert all((clip[last:] == clip[last]).all() for clip in clips)
    assert (
        load_views(record(path), ClipConfig(), frames=16, size=16, views=5, crops=3).shape[0] == 15
    )


@pytest.mark.parametrize(("width", "height"), [(17, 13), (13, 90), (300, 12)])
def test_odd_sizes_become_square_clips(tmp_path: Path, width: int, height: int) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (9, height, width, 3), np.uint8)
    path = tmp_path / "odd.mp4"
    path.write_bytes(encode(frames, Encoding(pixel_format="yuv444p")))
    clips = load_clips(record(path), ClipConfig(stride=1), seeds=range(8), frames=4, size=32)
    assert clips.shape == (8, 4, 32, 32, 3)


def test_spans_are_the_only_part_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(DATA)
    frames = whole_frames()
    span = record(path, start_s=1.0, end_s=1.5)  # at 24 frames a second: frames 24 to 35
    config = ClipConfig(stride=1, crop="centre")
    square = resize(np.ascontiguousarray(frames[24:36, :, 10:70]), size=16)
    for seed in range(10):
        (clip,) = load_clips(span, config, seeds=[seed], frames=4, size=16)
        start = dense_indices(12, frames=4, stride=1, seed=seed)[0]
        np.testing.assert_array_equal(clip, square[start : start + 4])
    with pytest.raises(
        DecodeError, match=r"no frame between 9.0 s and None s; the video lasts 2.1 s"
    ):
        load_clips(record(path, start_s=9.0), config, seeds=[0], frames=4, size=16)


def numbers(clip: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in clip]


def test_a_stride_counts_frames_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(numbered_frames(96, width=64, height=64), Encoding(gop=25)))
    config = ClipConfig(stride=2, fps=8.0, time="centre", crop="centre")
    clips = load_clips(record(path), config, seeds=[0], frames=4, size=64)
    # 96 frames at 24 a second are 32 at 8; 12 before the clip of 4 x 2, then every 2 x 24 / 8 frames.
    assert numbers(clips[0]) == [36, 42, 48, 54]
    views = load_views(record(path), config, frames=4, size=64, views=3)
    assert [numbers(view)[0] for view in views] == [0, 36, 72]
    starts = {
        numbers(load_clips(record(path), ClipConfig(stride=2, fps=8.0, crop="centre"), **drawn)[0])[
            0
        ]
        for drawn in ({"seeds": [seed], "frames": 4, "size": 64} for seed in range(30))
    }
    assert starts <= set(range(0, 75, 3))
    assert len(starts) > 10


def test_a_variable_rate_becomes_an_even_one_also_in_a_span_and_a_short_video(
    tmp_path: Path,
) -> None:
    times = [0, 10, 20, 500, 520, 1500, 2000, 2010, 2900]  # milliseconds
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(numbered_frames(9, width=64, height=64), Encoding(times=times)))

    def clip(frames: int, **span: float) -> list[int]:
        config = ClipConfig(stride=1, fps=2.0, time="centre", crop="centre")
        (clip,) = load_clips(record(path, **span), config, seeds=[0], frames=frames, size=64)
        return numbers(clip)

    assert clip(7) == [0, 3, 4, 5, 6, 7, 8]
    assert clip(9) == [0, 3, 4, 5, 6, 7, 8, 8, 8]
    assert clip(3, start_s=0.5, end_s=2.0) == [3, 4, 5]


def test_resizing_is_close_to_pil() -> None:
    y, x = np.mgrid[0:120, 0:90]
    frames = np.stack(
        [
            128 + 60 * np.sin(x / (9 + c)) + 60 * np.cos(y / (7 + t))
            for t in range(2)
            for c in range(3)
        ]
    )
    frames = frames.reshape(2, 3, 120, 90).transpose(0, 2, 3, 1).astype(np.uint8)
    ours = resize(np.ascontiguousarray(frames), size=48).astype(int)
    theirs = np.stack(
        [
            np.array(
                Image.fromarray(np.ascontiguousarray(f)).resize((48, 48), Image.Resampling.BILINEAR)
            )
            for f in frames
        ]
    )
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - theirs).mean() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, r"data\.stride is 0; it must be at least 1"),
        ({"fps": 0.0}, r"data\.fps is 0\.0; it must be above 0 and at most 1000, or null"),
        ({"time": "start"}, r"data\.time is 'start'; allowed: random, centre"),
        (
            {"crop": "random"},
            r"data\.crop is 'random'; allowed: multi_scale, random_resized, centre",
        ),
        ({"scales": ()}, r"data\.scales is \[\]; it needs at least one number"),
        ({"scales": (1.5,)}, r"each above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_name_their_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipConfig(**options)  # pyright: ignore[reportArgumentType]


def test_no_views_are_refused(video: Video) -> None:
    with pytest.raises(ValueError, match="views is 0 and crops is 1; both must be at least 1"):
        load_views(video, ClipConfig(), frames=4, size=16, views=0)


# --- fine-tuning's ways ----------------------------------------------------------------------

POLICY = "rand-m7-n4-mstd0.5-inc1"


@pytest.mark.parametrize("sampling", ["window", "segments"])
@pytest.mark.parametrize("time", ["random", "centre"])
def test_a_clip_shows_the_frames_of_its_sampling(video: Video, sampling: str, time: str) -> None:
    config = ClipConfig(stride=3, sampling=sampling, time=time, crop="centre")  # type: ignore[arg-type]
    clips = load_clips(video, config, seeds=[4, 5], frames=8, size=60)
    for clip, seed in zip(clips, (4, 5), strict=True):
        chance = seed if time == "random" else None
        wanted = (
            window_indices(LENGTH, frames=8, stride=3, seed=chance)
            if sampling == "window"
            else segment_indices(LENGTH, frames=8, seed=chance)
        )
        assert [read_number(frame) for frame in clip] == wanted.tolist()


@pytest.mark.parametrize("same_frames", [False, True])
def test_randaugment_works_on_whole_frames_before_the_crop(video: Video, same_frames: bool) -> None:
    frames = whole_frames()
    seeds = [3, 2**63, 5, 8, 13]
    config = ClipConfig(
        stride=2,
        flip=True,
        crop="random_resized",
        rand_augment=POLICY,
        same_frames=same_frames,
    )
    clips = load_clips(video, config, seeds=seeds, frames=8, size=32)
    for clip, seed in zip(clips, seeds, strict=True):
        shown = seeds[0] if same_frames else seed
        here = frames[dense_indices(LENGTH, frames=8, stride=2, seed=shown)]
        changed = augment(here, draw_steps(parse_policy(POLICY), seed=seed))
        box = random_resized_box(WIDTH, HEIGHT, seed=seed)
        cut = changed[:, box.y : box.y + box.height, box.x : box.x + box.width]
        wanted = resize(cut, size=32)
        np.testing.assert_array_equal(clip, wanted[:, :, ::-1] if flip_draw(seed=seed) else wanted)


def test_randaugment_on_the_crop_works_on_what_the_model_sees(video: Video) -> None:
    plain = ClipConfig(stride=2, crop="random_resized")
    seeds = list(range(12))
    before = load_clips(video, plain, seeds=seeds, frames=4, size=32)
    config = ClipConfig(
        stride=2, crop="random_resized", rand_augment=POLICY, rand_augment_on="crop"
    )
    after = load_clips(video, config, seeds=seeds, frames=4, size=32)
    for clip, unchanged, seed in zip(after, before, seeds, strict=True):
        steps = draw_steps(parse_policy(POLICY), seed=seed)
        np.testing.assert_array_equal(clip, augment(unchanged, steps))
    assert not (after == before).all()


def test_a_clip_is_the_same_alone_and_among_others_unless_it_shares_their_frames(
    video: Video,
) -> None:
    config = ClipConfig(stride=2, crop="random_resized", rand_augment=POLICY, flip=True)
    together = load_clips(video, config, seeds=[1, 2, 3], frames=4, size=32)
    for clip, seed in zip(together, (1, 2, 3), strict=True):
        np.testing.assert_array_equal(
            clip, load_clips(video, config, seeds=[seed], frames=4, size=32)[0]
        )


def test_evaluations_augment_nothing(video: Video) -> None:
    plain = load_views(video, ClipConfig(), frames=4, size=32, views=2, crops=2)
    config = ClipConfig(rand_augment=POLICY, crop="random_resized", flip=True, same_frames=True)
    np.testing.assert_array_equal(
        load_views(video, config, frames=4, size=32, views=2, crops=2), plain
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"sampling": "dense"},
            "data.clip.sampling is 'dense'; allowed: strided, window, segments",
        ),
        (
            {"area": (0.5, 0.2)},
            "data.clip.area is [0.5, 0.2]; it must rise, above 0 and at most to 1",
        ),
        ({"aspect": (0.0, 2.0)}, "data.clip.aspect is [0.0, 2.0]; it must rise, above 0"),
        (
            {"rand_augment_on": "video"},
            "data.clip.rand_augment_on is 'video'; allowed: frame, crop",
        ),
        (
            {"rand_augment": "rand-m11-n2"},
            "data.clip.rand_augment: 'rand-m11-n2' is no policy; write",
        ),
        (
            {"rand_augment": "augmix-m3"},
            "data.clip.rand_augment: 'augmix-m3' is no policy; write it as",
        ),
        ({"rand_augment": "rand-m7-n0"}, "data.clip.rand_augment: 'rand-m7-n0' is no policy"),
    ],
)
def test_impossible_ways_are_refused_and_say_what_is_allowed(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ClipConfig(**wrong)
    assert said in str(caught.value)
