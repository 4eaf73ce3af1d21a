"""A registered model where nothing of this repository is: a venv of its own requirements, and MLflow's server there."""

import base64
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from clips.synthetic import CLASSES, write_videos
from tubelet import registry, tracking
from videomae import ModelConfig, build_classifier, save_export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]
CONFIG = ModelConfig(preset="tiny", frames=8, image_size=32, patch_size=8)
INSTALL_S, START_S = 1200, 240

STRANGER = """
import importlib.util, json, sys
for name in ("tubelet", "videomae", "clips", "ray"):
    assert importlib.util.find_spec(name) is None, name
import mlflow
model = mlflow.pyfunc.load_model("models:/motion@champion")
answers = []
for video in sys.argv[1:]:
    with open(video, "rb") as file:
        rows = [{"video_path": video}, {"video": file.read()}]
    answers.append([model.predict([row], params={"top_k": 8})[0] for row in rows])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Elsewhere:
    """A place that knows the registry's address and nothing else."""

    python: Path
    folder: Path
    uri: str

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return kept | own

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.environment,
            timeout=INSTALL_S,
        )


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("registry")
    uri = tracking.resolve_uri(str(folder))
    run_id = tracking.start_run(
        uri,
        storage=str(folder),
        job="finetune",
        name="tiny",
        parameters={},
        recipe="",
        manifest="m",
        revision="r",
    )
    torch.manual_seed(0)
    network = build_classifier(CONFIG, num_classes=8, init_scale=1.0)
    save_export(folder / "export", network.state_dict(), CONFIG, class_names=CLASSES)
    card = registry.Card(metrics={"top1": 0.5}, manifest="m", recipe="", lineage="nowhere")
    registry.register(
        folder / "export",
        uri=uri,
        name="motion",
        alias="champion",
        run_id=run_id,
        card=card,
        stride=2,
        views=2,
    )
    return uri


@pytest.fixture(scope="module")
def elsewhere(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """A new venv that holds what the model asks for, installed by uv from whatever index pip would use."""
    folder = tmp_path_factory.mktemp("elsewhere")
    place = Elsewhere(folder / "venv" / "bin" / "python", folder, uri)
    source = str(MlflowClient(uri).get_model_version_by_alias("motion", "champion").source)
    asked = Path(source.removeprefix("file://")) / "requirements.txt"
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "--quiet", "--system-certs", "--python", str(place.python)]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(folder / "venv")],
        [*install, "-r", str(asked)],
    ):
        done = place.run(*command)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, [3], seed=1)
    (path,) = folder.rglob("*.mp4")
    return path


def answer_here(uri: str, video: Path) -> dict[str, Any]:
    (answer,) = registry.load("models:/motion@champion", uri=uri).predict(
        [{"video_path": str(video)}], params={"top_k": 8}
    )
    return answer


def test_it_loads_and_predicts_where_only_its_requirements_are(
    uri: str, elsewhere: Elsewhere, video: Path, request: pytest.FixtureRequest
) -> None:
    data = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos" / "real"
    videos = [video, *sorted(data.glob("*.mp4"))[:2]]  # real ones where they are
    done = elsewhere.run(str(elsewhere.python), "-I", "-c", STRANGER, *map(str, videos))
    assert done.returncode == 0, done.stderr
    for path, (from_path, from_bytes) in zip(videos, json.loads(done.stdout), strict=True):
        assert from_path == from_bytes
        here = answer_here(uri, path)
        assert from_path["labels"] == here["labels"]
        assert from_path["probabilities"] == pytest.approx(here["probabilities"], abs=1e-6)


# --- served ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    address: str

    def ask(self, *rows: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer to a request with these rows."""
        body = json.dumps({"dataframe_records": list(rows), "params": {"top_k": 8}}).encode()
        request = urllib.request.Request(
            f"{self.address}/invocations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(elsewhere: Elsewhere) -> Iterator[Server]:
    """`mlflow models serve`, as its manual has it, in the other place."""
    port, log = free_port(), elsewhere.folder / "serve.log"
    command = [str(elsewhere.python), "-m", "mlflow", "models", "serve", "--host", "127.0.0.1"]
    command += ["--model-uri", "models:/motion@champion", "--env-manager", "local"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=file,
            stderr=file,
            cwd=elsewhere.folder,
            env=elsewhere.environment,
            start_new_session=True,
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=1):
                    break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
        yield Server(address)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_served_it_answers_bytes_with_the_same_labels(
    uri: str, server: Server, video: Path
) -> None:
    data = base64.b64encode(video.read_bytes()).decode()
    status, answer = server.ask({"video": data}, {"video": data})
    assert status == 200, answer
    here = answer_here(uri, video)
    for each in answer["predictions"]:
        assert each["labels"] == here["labels"]
        assert each["probabilities"] == pytest.approx(here["probabilities"], abs=1e-6)


def test_served_it_takes_its_own_input_example(uri: str, server: Server) -> None:
    source = str(MlflowClient(uri).get_model_version_by_alias("motion", "champion").source)
    example = json.loads(
        Path(source.removeprefix("file://"), "serving_input_example.json").read_text()
    )
    names, ((video,),) = (example["dataframe_split"][part] for part in ("columns", "data"))
    assert names == ["video"]
    status, answer = server.ask({"video": video})
    assert (status, len(answer["predictions"][0]["labels"])) == (200, 8), answer


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A web server's address, and the paths that anybody asked it for."""
    paths: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_address[1]}", paths
        finally:
            web.shutdown()
            thread.join()


def test_served_it_refuses_paths_and_urls_and_asks_nobody(
    server: Server, video: Path, asked: tuple[str, list[str]]
) -> None:
    address, paths = asked
    data = base64.b64encode(video.read_bytes()).decode()
    for path in (str(video), f"{address}/one.mp4"):
        status, answer = server.ask({"video_path": path})
        assert status == 400
        assert "this server opens no paths or URLs for its callers" in answer["message"]
        status, answer = server.ask({"video": data, "video_path": path})
        assert status == 400
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/a.ts\n#EXT-X-ENDLIST\n"
    status, answer = server.ask({"video": base64.b64encode(playlist.encode()).decode()})
    assert status == 400
    assert paths == []
