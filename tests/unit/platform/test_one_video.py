"""``tubelet predict``: one video, without Ray."""

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

import models_made
from jobs import environment
from motion import one_motion_video
from tubelet import cli, registry, tracking
from tubelet.config import DONE, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    run_id = models_made.start_run(root)
    models_made.register(root, run_id, says="right", alias="champion", views=2)
    return root


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_motion_video(tmp_path_factory.mktemp("videos"))


def test_the_only_champion_names_a_video_as_it_does_when_it_is_loaded_and_shows_its_frames(
    root: Path,
    video: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli._command(["predict", str(video), f"storage={root}"]) == DONE
    *said, last = capfd.readouterr().out.splitlines()
    uri = tracking.resolve_uri(str(root))
    (answer,) = registry.load("models:/motion@champion", uri=uri).predict(
        [{"video_path": str(video)}]
    )
    pairs = zip(answer["labels"], answer["probabilities"], strict=True)
    assert said == [f"{share:7.1%}  {label}" for label, share in pairs]
    assert said[0].endswith("  right")
    assert last == "by models:/motion@champion; its frames: 000003.prediction.png"
    shown = image.imread(tmp_path / "000003.prediction.png")
    assert shown.shape[0] > 2 * 112  # two clips of the views, one below the other
    assert shown.std() > 0.01


def test_keys_choose_model_labels_views_and_picture(
    root: Path, video: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [f"model={root}/export-right", "top_k=2", "views=1", "crops=3"]
    picture = tmp_path / "deep" / "it.png"
    assert cli._command(["predict", str(video), *keys, f"picture={picture}"]) == DONE
    assert len(capfd.readouterr().out.splitlines()) == 3
    assert np.asarray(image.imread(io.BytesIO(picture.read_bytes()))).ndim == 3


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        cli._command(["predict", *arguments])
    return str(refused.value)


def test_mistakes_are_told(root: Path, video: Path, tmp_path: Path) -> None:
    assert "no VIDEO is named; usage: tubelet predict VIDEO" in error_of()
    text = error_of(str(video), "model=models:/motion@best", f"storage={root}")
    assert text == "model 'motion' has no alias 'best'; there is champion"
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(base64.b64decode("bm8gdmlkZW8="))
    assert error_of(str(bad), f"storage={root}").startswith(f"{bad}: corrupt: ")
    missing = error_of(str(tmp_path / "none.mp4"), f"storage={root}")
    assert missing.startswith(f"{tmp_path}/none.mp4: io: there is nothing at")


@pytest.fixture
def two(root: Path) -> Iterator[Path]:
    uri = tracking.resolve_uri(str(root))
    client = tracking.connect(uri)
    models_made.register(root, models_made.start_run(root), says="up", alias="champion", name="b")
    yield root
    client.delete_registered_model("b")


def test_several_champions_are_listed(two: Path, video: Path) -> None:
    assert error_of(str(video), f"storage={two}").endswith(
        "has 2 champions: name one, model=models:/b@champion, models:/motion@champion"
    )


def test_it_needs_no_ray() -> None:
    """A video is named in seconds: importing Ray alone would double them."""
    code = "import sys, tubelet.cli, tubelet.one_video; print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.stdout == "False\n", done.stderr
