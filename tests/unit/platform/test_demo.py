"""The demo's decisions: its arguments, whether to go on or begin anew, and its figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from clips import Manifest
from tubelet.config import ConfigError, UserError, from_command_line
from tubelet.demo import run, stages, study
from tubelet.demo.run import Demo
from tubelet.evaluation.metrics import accuracy


def demo(*arguments: str) -> Demo:
    return from_command_line(Demo, arguments, needs_recipe=False)


def test_without_arguments_it_generates_its_videos() -> None:
    assert demo() == Demo(videos=None, labels="none", study=False, folder="build/demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["videos=v", "labels=x"], "command line: labels is 'x'; allowed: none, folders"),
        (
            ["labels=folders"],
            "labels=folders is about your own videos: name them with videos=FOLDER",
        ),
        (
            ["study=true", "videos=v"],
            "study=true compares on the generated videos: leave out videos=",
        ),
        (["video=v"], "command line: video: unknown key; did you mean 'videos'?"),
        (["study=maybe"], "command line: study: must be a valid boolean, got 'maybe'"),
    ],
)
def test_arguments_that_make_no_sense_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        demo(*arguments)
    assert message in str(caught.value)


# --- the folder ------------------------------------------------------------------------------------


def opened(folder: Path, demo: Demo) -> set[str]:
    run._open(folder, demo)
    return {path.name for path in folder.iterdir()}


def test_an_unfinished_demo_of_the_same_kind_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert opened(folder, Demo()) == {"demo.json"}
    (folder / "videos").mkdir()
    assert opened(folder, Demo()) == {"demo.json", "videos"}


def test_a_finished_demo_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    opened(folder, Demo())
    (folder / "videos").mkdir()
    (folder / "report.json").write_text("{}")
    assert opened(folder, Demo()) == {"demo.json"}


def test_another_demo_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    opened(folder, Demo())
    (folder / "videos").mkdir()
    assert opened(folder, Demo(videos="mine")) == {"demo.json"}
    (folder / "manifest.parquet").touch()
    assert opened(folder, Demo(videos="mine", labels="folders")) == {"demo.json"}
    assert opened(folder, Demo(study=True)) == {"demo.json"}
    assert json.loads((folder / "demo.json").read_text())["study"] is True


def test_a_folder_with_other_things_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError) as caught:
        run._open(tmp_path, Demo())
    assert str(caught.value) == (f"{tmp_path} holds thesis.tex and no demo: choose another folder=")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"slides": 12}'])
def test_somebody_elses_demo_json_does_not_make_a_folder_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(UserError, match=r"holds demo\.json and no demo"):
        run._open(tmp_path, Demo())
    assert (tmp_path / "demo.json").read_text() == content


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("precious")
    with pytest.raises(UserError, match="is a file: choose another folder="):
        run._open(tmp_path / "demo", Demo(folder="demo"))
    assert (tmp_path / "demo").read_text() == "precious"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert opened(tmp_path, Demo()) == {"demo.json"}


def test_users_videos_inside_the_demos_folder_are_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    opened(folder, Demo())
    (folder / "mine").mkdir()
    (folder / "mine" / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(UserError) as caught:
        run._open(folder, Demo(videos=str(folder / "mine")))
    assert "lies inside" in str(caught.value)
    assert (folder / "mine" / "holiday.mp4").read_bytes() == b"precious"


# --- few videos ------------------------------------------------------------------------------------


def videos(*splits: str | None) -> Manifest:
    rows = [{"video_id": f"{n}.mp4", "size": 1, "split": s} for n, s in enumerate(splits)]
    return Manifest.build(rows, root="/videos")


def test_videos_are_held_out_where_both_sides_get_some() -> None:
    assert stages.can_hold_out(videos(*[None] * 60))
    assert not stages.can_hold_out(videos(None))
    assert stages.can_hold_out(videos("train", "val"))
    assert not stages.can_hold_out(videos("train", "train"))


def test_the_demos_share_is_that_of_its_recipes() -> None:
    for name in ("own_videos", "own_labels"):
        text = Path(__file__).parents[3].joinpath(f"jobs/recipes/demo/{name}.yaml").read_text()
        assert f"held_out: {stages.HELD_OUT}\n" in text


# --- figures ---------------------------------------------------------------------------------------


def test_the_standard_error_is_that_of_the_mean() -> None:
    mean, error = stages.mean_and_error([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(((0.09 + 0.01 + 0.16) / 2 / 3) ** 0.5)
    assert stages.mean_and_error([0.25]) == (0.25, 0.0)


def test_gains_are_paired_by_draw() -> None:
    gains = study._gains([[0.5, 0.75], [0.25, 0.5]], [0.25, 0.5])
    assert gains == [25.0, 25.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        study._gains([[0.5]], [0.25, 0.5])


def test_a_single_draw_is_not_given_a_standard_error() -> None:
    assert run.certainty([0.0]) == "a single draw, which proves little"
    assert run.certainty([20.0, 30.0]) == "standard error of the mean gain 5.0 points"


def test_the_table_names_the_classes_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.arange(16)[:, None] % 4 == np.arange(4)
    scores = [np.where(np.arange(16)[:, None] < right, truth, ~truth) * 1.0 for right in (8, 4)]
    right, wrong = (accuracy(score, truth) for score in scores)
    run._tell(tmp_path, tmp_path, [right], [wrong], classes=4, labels="all their labels")
    said = capsys.readouterr().out
    assert "+25.0" in said
    assert "on 16 held-out videos of 4 classes (chance 25.0 %), all their labels; a single" in said


def test_stages_are_timed_by_name_and_told_by_title(capsys: pytest.CaptureFixture[str]) -> None:
    timed = run.Stages()
    with timed("manifest", "Building the manifest"):
        pass
    assert capsys.readouterr().out == "\nBuilding the manifest\n"
    assert list(timed.seconds) == ["manifest"]
    assert 0 <= timed.seconds["manifest"] < 60


def test_the_command_for_the_page_names_the_runs_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = run.mlflow_command(tmp_path / "runs")
    assert f"--backend-store-uri sqlite:///{tmp_path / 'runs' / 'mlflow.db'} --port 5000" in command
    assert command.endswith("(then open http://127.0.0.1:5000)")
