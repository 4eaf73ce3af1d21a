import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from mlflow import MlflowClient

import clips
import videomae
from clips import load, sampling
from clips.synthetic import CLASSES, write_videos
from tubelet import registry, tracking
from videomae import ModelConfig, build_classifier, build_pretraining, save_export

# MLflow's own use of SQLAlchemy and pandas.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ModelConfig(preset="tiny", frames=8, image_size=32, patch_size=8)
CARD = registry.Card(
    metrics={"eval/top1": 0.875},
    manifest="m" * 64,
    recipe="run: {storage: 's3://key:secret@bucket'}\n",
    lineage="run 0123 (demo-pretrain), s3://key:secret@bucket/init.pth",
    revision="abc123",
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking.resolve_uri(str(tmp_path_factory.mktemp("storage")))


@pytest.fixture(scope="module")
def run_id(uri: str) -> str:
    return tracking.start_run(
        uri,
        storage=str(Path(uri.removeprefix("sqlite:///")).parent),
        job="finetune",
        name="tiny",
        parameters={},
        recipe="",
        manifest="m",
        revision="r",
    )


@pytest.fixture(scope="module")
def network() -> videomae.VideoClassifier:
    torch.manual_seed(0)
    return build_classifier(CONFIG, num_classes=8, init_scale=1.0).eval()


@pytest.fixture(scope="module")
def export(network: videomae.VideoClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_export(folder, network.state_dict(), CONFIG, class_names=CLASSES)
    return folder


@pytest.fixture(scope="module")
def model_uri(uri: str, run_id: str, export: Path) -> str:
    return registry.register(
        export,
        uri=uri,
        name="motion",
        alias="champion",
        run_id=run_id,
        card=CARD,
        stride=2,
        views=2,
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, [3], seed=1)
    (path,) = folder.rglob("*.mp4")
    return path


def expected(network: videomae.VideoClassifier, video: Path) -> list[tuple[str, float]]:
    """What evaluation computes, from the file and the network alone."""
    with clips.open_video(str(video)) as reader:
        views = sampling.view_indices(reader.frames, frames=8, stride=2, views=2)
        frames = np.stack(reader.read(list(views)))
    small = np.stack([load.resize(clip, size=32) for clip in frames])
    with torch.no_grad():
        probabilities = network(videomae.normalise(torch.from_numpy(small))).softmax(-1).mean(0)
    return sorted(zip(CLASSES, probabilities.tolist(), strict=True), key=lambda each: -each[1])


def pairs(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return list(zip(answer["labels"], answer["probabilities"], strict=True))


def test_a_registered_model_answers_as_evaluation_does(
    uri: str, model_uri: str, network: videomae.VideoClassifier, video: Path
) -> None:
    assert model_uri == "models:/motion@champion"
    model = registry.load(model_uri, uri=uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    wanted = expected(network, video)
    table = pandas.DataFrame({"video_path": [str(video), str(video)]})
    first, second = model.predict(table, params={"top_k": 8})
    for answer in (first, second):
        assert [label for label, _ in pairs(answer)] == [label for label, _ in wanted]
        assert np.allclose(answer["probabilities"], [each for _, each in wanted], atol=1e-6)
    (from_records,) = model.predict([{"video_path": str(video)}], params={"top_k": 8})
    (from_bytes,) = model.predict([{"video": video.read_bytes()}], params={"top_k": 8})
    assert pairs(from_records) == pairs(from_bytes) == pairs(first)
    (default,) = model.predict(table[:1])
    assert pairs(default) == pairs(first)[:5]


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([{"video_path": "/nowhere.mp4"}], {}, r"row 0, /nowhere.mp4: "),
        ([{"video": b"not a video"}], {}, r"row 0, the 11 bytes: "),
        ([{"video_path": None}], {}, r"row 0 has neither `video_path`"),
        ([{"video": b""}], {"top_k": 0}, r"top_k=0 must be at least 1"),
        (
            [{"video": b"x", "video_path": "one.mp4"}],
            {},
            r"row 0 has both `video` and `video_path`: give one of them",
        ),
    ],
)
def test_a_bad_request_is_told_by_row(
    uri: str, model_uri: str, rows: list[dict], params: dict, message: str
) -> None:
    model = registry.load(model_uri, uri=uri)
    with pytest.raises(ValueError, match=message):
        model.predict(pandas.DataFrame(rows), params=params)


@pytest.fixture(params=["MLflow's", "another"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were a server."""
    if request.param == "another":
        monkeypatch.setitem(sys.modules, "mlserver", ModuleType("mlserver"))
    else:
        monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def test_behind_a_server_a_model_opens_no_paths_and_none_of_a_request_that_has_one(
    uri: str, model_uri: str, video: Path, served: None
) -> None:
    model = registry.load(model_uri, uri=uri)
    data = video.read_bytes()
    (answer,) = model.predict([{"video": data}])
    assert len(answer["labels"]) == 5
    for path in (str(video), "https://example.com/one.mp4", "/etc/passwd"):
        rows = pandas.DataFrame([{"video": data}, {"video_path": path}])
        with pytest.raises(ValueError, match="row 1 has a `video_path`, and this server opens no"):
            model.predict(rows)


def test_who_runs_the_server_may_allow_paths(
    uri: str, model_uri: str, video: Path, served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = registry.load(model_uri, uri=uri)
    monkeypatch.setenv("TUBELET_SERVE_PATHS", "no")
    with pytest.raises(ValueError, match="TUBELET_SERVE_PATHS=true in its environment"):
        model.predict([{"video_path": str(video)}])
    monkeypatch.setenv("TUBELET_SERVE_PATHS", "true")
    (answer,) = model.predict([{"video_path": str(video)}])
    assert len(answer["labels"]) == 5


def test_a_path_with_a_password_is_not_repeated(uri: str, model_uri: str) -> None:
    model = registry.load(model_uri, uri=uri)
    with pytest.raises(ValueError, match="row 0, ") as caught:
        model.predict([{"video_path": "nowhere://user:secret@host/one.mp4"}])
    assert "secret" not in str(caught.value)


def test_a_version_says_where_it_comes_from(uri: str, model_uri: str, run_id: str) -> None:
    version = MlflowClient(uri).get_model_version_by_alias("motion", "champion")
    assert version.run_id == run_id
    assert version.tags["eval/top1"] == "0.875"
    card = version.description or ""
    for part in (
        "| eval/top1 | 0.875 |",
        run_id,
        "m" * 64,
        "run 0123 (demo-pretrain)",
        "up_right",
        f'"{model_uri}"',
        "TUBELET_SERVE_PATHS=true",
        "| code revision | abc123 |",
    ):
        assert part in card
    (file,) = model_folder(uri).rglob("model.safetensors")
    weights = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"| weights (SHA-256) | {weights} |" in card
    assert {name: value for name, value in version.tags.items() if name.startswith("tubelet.")} == {
        "tubelet.manifest": "m" * 64,
        "tubelet.weights": weights,
        "tubelet.lineage": "run 0123 (demo-pretrain), s3://***@bucket/init.pth",
        "tubelet.licence": CARD.licence,
        "tubelet.revision": "abc123",
    }
    assert "secret" not in card
    outputs = MlflowClient(uri).get_run(run_id).outputs
    assert outputs is not None
    assert any(output.model_id in str(version.source) for output in outputs.model_outputs)


def test_a_model_holds_what_it_needs_and_no_pickle(uri: str, model_uri: str) -> None:
    folder = model_folder(uri)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "MLmodel",
        "served_model.py",
        "artifacts/README.md",
        "artifacts/" + export_name(files) + "/model.safetensors",
        "artifacts/" + export_name(files) + "/config.json",
        "code/videomae/pretraining.py",
        "code/clips/load.py",
        "input_example.json",
    } <= files
    assert not [path for path in files if path.endswith((".pkl", ".pyc", ".pt", ".pth"))]
    pinned = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in pinned] == list(registry.REQUIREMENTS)


def test_the_input_example_is_a_video_and_can_be_sent_as_it_is(uri: str, model_uri: str) -> None:
    from mlflow.models import Model

    folder = model_folder(uri)
    assert (folder / "serving_input_example.json").stat().st_size < 20_000
    model = registry.load(model_uri, uri=uri)
    example = Model.load(str(folder)).load_input_example(str(folder))
    (answer,) = model.predict(example)
    assert sorted(answer["labels"])[:5] == sorted(answer["labels"])
    assert sum(answer["probabilities"]) <= 1 + 1e-6


def model_folder(uri: str) -> Path:
    version = MlflowClient(uri).get_model_version_by_alias("motion", "champion")
    return Path(str(version.source).removeprefix("file://"))


def export_name(files: set[str]) -> str:
    (config,) = [path for path in files if path.endswith("/config.json")]
    return Path(config).parent.name


def test_the_alias_moves_to_a_new_version_and_the_old_one_stays(
    uri: str, run_id: str, export: Path, video: Path
) -> None:
    for _ in range(2):
        registry.register(
            export, uri=uri, name="twice", alias="champion", run_id=run_id, card=CARD, stride=2
        )
    client = MlflowClient(uri)
    assert client.get_registered_model("twice").aliases == {"champion": 2}
    (answer,) = registry.load("models:/twice/1", uri=uri).predict([{"video_path": str(video)}])
    assert len(answer["labels"]) == 5


def test_names_that_do_not_exist_are_answered_with_those_that_do(uri: str, model_uri: str) -> None:
    for wrong, message in (
        (
            "models:/motoin@champion",
            r"no model 'motoin' is registered at sqlite.*there is .*motion",
        ),
        ("models:/motion@chamption", r"no alias 'chamption'; there is champion"),
        ("models:/motion/7", r"no version 7; there is 1"),
        ("motion", r"'motion' is no registered model: write models:/NAME@ALIAS"),
    ):
        with pytest.raises(registry.RegistryError, match=message):
            registry.load(wrong, uri=uri)


def test_an_export_is_fetched_with_the_views_it_was_registered_with(
    uri: str, model_uri: str, export: Path, tmp_path: Path
) -> None:
    fetched, views = registry.fetch(model_uri, tmp_path, uri=uri)
    assert views == {"stride": 2, "sampling": "strided", "fps": None, "views": 2, "crops": 1}
    assert fetched.is_relative_to(tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (fetched / name).read_bytes() == (export / name).read_bytes()


def test_a_model_without_an_alias_says_so(uri: str) -> None:
    MlflowClient(uri).create_registered_model("bare")
    with pytest.raises(registry.RegistryError, match="no alias 'champion'; there is none"):
        registry.load("models:/bare@champion", uri=uri)


def test_a_pretraining_model_is_not_registered(uri: str, run_id: str, tmp_path: Path) -> None:
    save_export(tmp_path, build_pretraining(CONFIG).state_dict(), CONFIG)
    with pytest.raises(ValueError, match="holds a pretrain model: only a fine-tuned classifier"):
        registry.register(
            tmp_path, uri=uri, name="no", alias="champion", run_id=run_id, card=CARD, stride=2
        )


STRANGER = """
import json, sys
root, uri, video = sys.argv[1:]
sys.path[:] = [entry for entry in sys.path if not entry.startswith(root) or ".venv" in entry]
assert not any(name in sys.modules for name in ("tubelet", "videomae", "clips"))
for name in ("tubelet", "ray"):
    sys.modules[name] = None  # an import of it raises
import mlflow
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/motion@champion")
with open(video, "rb") as file:
    rows = [{"video_path": video}, {"video": file.read()}]
answers = [model.predict([row], params={"top_k": 8})[0] for row in rows]
import clips, videomae
assert "/code/" in clips.__file__ and not clips.__file__.startswith(root), clips.__file__
assert "/code/" in videomae.__file__ and not videomae.__file__.startswith(root)
print(json.dumps(answers))
"""


def test_a_model_loads_without_this_repository_and_without_pickle(
    uri: str, model_uri: str, network: videomae.VideoClassifier, video: Path, tmp_path: Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(ROOT), uri, str(video)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert process.returncode == 0, process.stderr
    for answer in json.loads(process.stdout):
        for (label, probability), (wanted, value) in zip(
            pairs(answer), expected(network, video), strict=True
        ):
            assert label == wanted
            assert probability == pytest.approx(value, abs=1e-6)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def test_the_requirements_are_what_the_model_imports() -> None:
    files = [ROOT / "platform/tubelet/served_model.py"]
    files += [p for p in (ROOT / "models/videomae").rglob("*.py") if p.name != "probes.py"]
    elsewhere = {"pipeline.py", "disposable.py", "shards.py", "shard_copies.py"}  # on clusters
    elsewhere |= {"randaugment.py"}  # when training
    files += [p for p in (ROOT / "datasets/clips").rglob("*.py") if p.name not in elsewhere]
    needed = set().union(*map(imports, files)) - {"videomae", "clips"}
    optional = {"decord", "torchcodec", "botocore", "aiohttp"}  # extras; come with boto3 and s3fs
    implied = {"s3fs"}  # fsspec loads it by name
    assert needed - optional == set(registry.REQUIREMENTS) - implied
    probes = ast.parse((ROOT / "models/videomae/probes.py").read_text())
    at_import = {n.module for n in probes.body if isinstance(n, ast.ImportFrom)}
    assert at_import <= {"torch", "torch.nn"}  # timm, where a probe is made


def test_the_models_code_imports_nothing_of_the_platform() -> None:
    assert imports(ROOT / "platform/tubelet/served_model.py") == {
        "clips",
        "mlflow",
        "pandas",
        "torch",
        "videomae",
    }
