"""Published data sets by their official files, here generated in small: what is listed, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from clips.catalog import DATA_SETS, Name, catalogue
from clips.lists import read_list
from clips.preparation import PrepareConfig, find, listed


def write(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return str(folder)


UCF101 = {
    "classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
    "trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nArchery/v_Archery_g08_c01.avi 2\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\n",
    "trainlist02.txt": "Archery/v_Archery_g01_c01.avi 2\n",
    "testlist02.txt": "Archery/v_Archery_g08_c01.avi\n",
}
HMDB51 = {
    "brush_hair_test_split1.txt": "April_09_brush_hair_u.avi 1 \nAtheism_brush_hair_f.avi 2 \nother_brush.avi 0 \n",
    "wave_test_split1.txt": "50_FIRST_DATES_wave_f.avi 1 \n",
}
KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split\nabseiling,abc-_1,10,20,train\n"
    '"riding, bare",d4,0,10,train\n',
    "validate.csv": "label,youtube_id,time_start,time_end,split\nabseiling,zz9,5.0,15.0,validate\n",
    "test.csv": "youtube_id,time_start,time_end,split\nttt,1,11,test\n",
}
TRAIN = KINETICS["train.csv"]
K710 = {
    "label_map_k710.txt": "abseiling\nair drumming\n",
    "train.csv": "k400/a b/x_000001_000011.mp4 1\n",
    "val.csv": "k600/y_000002_000012.mp4 0\n",
}
SSV2 = {
    "labels.json": json.dumps({"Moving something up": "0", "Pushing something": "1"}),
    "train.json": json.dumps(
        [{"id": "1", "template": "Moving [something] up", "label": "moving a pen up"}]
    ),
    "validation.json": json.dumps([{"id": "2", "template": "Pushing [something]"}]),
    "test.json": json.dumps([{"id": "3"}]),
}
CASES: dict[Name, tuple[dict[str, str], dict[str, str], list[tuple[str, str | None, str]]]] = {
    # annotations, where the videos lie (by name: somewhere else than officially), the list
    "ucf101": (
        UCF101,
        {
            "v_ApplyEyeMakeup_g08_c01.avi": "a/v_ApplyEyeMakeup_g08_c01.avi",
            "v_Archery_g08_c01.avi": "v_Archery_g08_c01.mp4",
            "v_Archery_g01_c01.avi": "Archery/v_Archery_g01_c01.avi",
        },
        [
            ("a/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup", "train"),
            ("v_Archery_g08_c01.mp4", "Archery", "train"),
            ("Archery/v_Archery_g01_c01.avi", "Archery", "val"),
        ],
    ),
    "hmdb51": (
        HMDB51,
        {
            "a": "x/April_09_brush_hair_u.avi",
            "b": "x/Atheism_brush_hair_f.avi",
            "c": "x/other_brush.avi",
        },
        [
            ("x/April_09_brush_hair_u.avi", "brush_hair", "train"),
            ("x/Atheism_brush_hair_f.avi", "brush_hair", "val"),
            ("wave/50_FIRST_DATES_wave_f.avi", "wave", "train"),
        ],
    ),
    "kinetics400": (
        KINETICS,
        {
            "a": "train/abseiling/abc-_1_000010_000020.mp4",
            "b": "flat/d4_000000_000010.mkv",
            "c": "ttt_000001_000011.mp4",
        },
        [
            ("train/abseiling/abc-_1_000010_000020.mp4", "abseiling", "train"),
            ("flat/d4_000000_000010.mkv", "riding, bare", "train"),
            ("val/abseiling/zz9_000005_000015.mp4", "abseiling", "val"),
            ("ttt_000001_000011.mp4", None, "test"),
        ],
    ),
    "kinetics710": (
        K710,
        {"a": "x_000001_000011.mp4"},
        [
            ("x_000001_000011.mp4", "air drumming", "train"),
            ("k600/y_000002_000012.mp4", "abseiling", "val"),
        ],
    ),
    "ssv2": (
        {f"something-something-v2-{name}": text for name, text in SSV2.items()},
        {"a": "20bn/1.webm", "b": "20bn/2.mp4"},
        [
            ("20bn/1.webm", "Moving something up", "train"),
            ("20bn/2.mp4", "Pushing something", "val"),
            ("3.webm", None, "test"),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_annotations_and_folder_become_a_list_that_prepare_reads(
    name: Name, tmp_path: Path
) -> None:
    annotations, videos, expected = CASES[name]
    write(tmp_path / "videos", dict.fromkeys([*videos.values(), "readme.txt", "extra.mp4"], "x"))
    made = catalogue(
        name,
        annotations=write(tmp_path / "annotations", annotations),
        videos=str(tmp_path / "videos"),
    )
    (tmp_path / "list.csv").write_bytes(made.listing)
    rows = [(row.path, row.label, row.split) for row in read_list(str(tmp_path / "list.csv"))]
    assert rows == expected
    missing = [path for path, _, _ in expected if not (tmp_path / "videos" / path).exists()]
    last = made.notes[-1]
    assert (
        (f"{len(missing)} are not there ({missing[0]}" in last) if missing else "published" in last
    )


def test_every_data_set_is_tried_here_or_shares_its_reader() -> None:
    readers = {DATA_SETS[name].read for name in CASES}
    assert {each.read for each in DATA_SETS.values()} == readers


def test_counts_stand_beside_the_published_ones(tmp_path: Path) -> None:
    annotations = write(tmp_path / "annotations", UCF101)
    videos = write(
        tmp_path / "videos", {"v_Archery_g01_c01.avi": "x", "v_Archery_g08_c01.avi": "x"}
    )
    notes = catalogue("ucf101", annotations=annotations, videos=videos, fold=1).notes
    assert notes[0] == "UCF101: for research; videos belong to those who put them online"
    assert notes[1:] == [
        "train: 2 videos annotated, 1 there, 9537 published",
        "val: 1 videos annotated, 1 there, 3783 published",
        "1 are not there (ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi, ...): all are listed as rejected",
    ]
    (row, other) = catalogue(
        "ucf101", annotations=annotations, videos=videos, fold=2
    ).listing.split()[1:]
    assert (row, other) == (
        b"v_Archery_g01_c01.avi,Archery,train",
        b"v_Archery_g08_c01.avi,Archery,val",
    )


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("ucf101", {"classInd.txt": None}, r"no classInd\.txt, which UCF101 ships as annotations; it has test"),
        ("ucf101", {"testlist01.txt": UCF101["trainlist01.txt"]}, r"2 videos of UCF101 are in more than one split"),
        ("ucf101", {"testlist01.txt": "Bowling/x.avi"}, r"testlist01\.txt:1: 'Bowling' is none of the 2 classes"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3"}, r"wave_test_split1\.txt:1: 'a\.avi 3' is not a file and 0, 1"),
        ("hmdb51", dict.fromkeys(HMDB51), r"no CLASS_test_split1\.txt, which HMDB51 ships .* it has nothing"),
        ("kinetics400", {"train.csv": "id,start\na,b"}, r"train\.csv:1: no column youtube_id, time_start, time_e"),
        ("kinetics400", {"train.csv": TRAIN.replace("10,20", "ten,20")}, r"train\.csv:2: time_start 'ten'"),
        ("kinetics400", {"train.csv": TRAIN.replace("abseiling,abc", ",abc")}, r"train\.csv:2: no label"),
        ("kinetics710", {"val.csv": "y.mp4 7"}, r"val\.csv:1: 'y\.mp4 7' is not `path label` with a label of 0 to 1"),
        ("ssv2", {"labels.json": "{"}, r"labels\.json:1: not JSON"),
        ("ssv2", {"train.json": '[{"id": 1, "template": "Eating"}]'}, r"entry 0: its template 'Eating' is none of"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_annotations_names_its_place(
    name: Name, changed: dict[str, str | None], said: str, tmp_path: Path
) -> None:
    files = {**CASES[name][0], **SSV2} if name == "ssv2" else CASES[name][0]
    kept = {n: t for n, t in {**files, **changed}.items() if t is not None}
    (tmp_path / "annotations").mkdir()
    videos = write(tmp_path / "videos", dict.fromkeys(CASES[name][1].values(), "x"))
    with pytest.raises(ValueError, match=said):
        catalogue(name, annotations=write(tmp_path / "annotations", kept), videos=videos)


def test_a_folder_with_none_or_two_of_a_video_is_refused(tmp_path: Path) -> None:
    annotations = write(tmp_path / "annotations", UCF101)
    videos = write(tmp_path / "videos", {"else.avi": "x"})
    with pytest.raises(
        ValueError, match="holds none of the 3 videos that the annotations of UCF101 name"
    ):
        catalogue("ucf101", annotations=annotations, videos=videos)
    write(tmp_path / "videos", {"v_Archery_g01_c01.avi": "x", "more/v_Archery_g01_c01.mp4": "x"})
    with pytest.raises(
        ValueError, match=r"has a video twice, more/v_Archery_g01_c01\.mp4 and v_Arch"
    ):
        catalogue("ucf101", annotations=annotations, videos=videos)
    with pytest.raises(ValueError, match="fold is 4; UCF101 has 1 to 3"):
        catalogue("ucf101", annotations=annotations, videos=videos, fold=4)


def test_prepare_takes_the_list_for_its_source_and_reports_what_is_missing(tmp_path: Path) -> None:
    annotations = write(tmp_path / "annotations", UCF101)
    videos = write(tmp_path / "videos", {"v_Archery_g01_c01.avi": "x"})
    config = PrepareConfig(
        videos, f"{tmp_path}/ucf.parquet", dataset="ucf101", annotations=annotations
    )
    seen: list[int] = []
    made, notes = listed(config, progress=seen.append)
    assert (made.source, made.root) == (f"{tmp_path}/ucf.list.csv", videos)
    assert len(notes) == 4
    assert seen == [1]
    found = find(made)
    assert [(e.video_id, e.label, e.split) for e in found.entries] == [
        ("v_Archery_g01_c01.avi", "Archery", "val")
    ]
    assert [r.video_id for r in found.missing] == [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "Archery/v_Archery_g08_c01.avi",
    ]
    plain = PrepareConfig(videos, f"{tmp_path}/plain.parquet")
    assert listed(plain) == (plain, [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dataset": "ucf101"}, "each needs the other"),
        ({"annotations": "a"}, "each needs the other"),
        (
            {"dataset": "ucf101", "annotations": "a", "split": 0.1},
            "brings its own labels and splits",
        ),
        ({"dataset": "ucf101", "annotations": "a", "labels": "folders"}, "brings its own labels"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrepareConfig("videos", "m.parquet", **keys)
