"""MLflow's own page, in a real browser, over the store that real jobs left.

Everything the test looks for is read from that store, so `storage` can be any folder that `make demo`
or a training run left as `run.storage`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from matplotlib import image
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from mlflow_server import MlflowServer
from tubelet import tracking
from whole_path import WholePath

# MLflow's own use of SQLAlchemy and pandas.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "mlflow_page"
PATIENCE_MS = 60_000
VIEWPORT: ViewportSize = {"width": 1400, "height": 1000}
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def storage(whole_path: WholePath) -> Path:
    """The `run.storage` of a pretraining, a fine-tuning and an evaluation run, with a registered model."""
    return whole_path.folder / "runs"


class Store(NamedTuple):
    """What is in the store, and so must be on the page."""

    run: Run
    """A run with pictures."""
    experiment: str
    metrics: list[str]
    pictures: list[str]
    model: str
    version: str
    aliases: list[str]
    source_run: str


@pytest.fixture(scope="module")
def client(storage: Path) -> MlflowClient:
    return MlflowClient(tracking.resolve_uri(str(storage)))


@pytest.fixture(scope="module")
def store(client: MlflowClient) -> Store:
    experiments = [e for e in client.search_experiments() if e.name.startswith("tubelet/")]
    runs = client.search_runs([experiment.experiment_id for experiment in experiments])
    pictures = {
        run.info.run_id: [file.path for file in client.list_artifacts(run.info.run_id, "pictures")]
        for run in runs
    }
    run = next(run for run in runs if any(p.endswith(".mp4") for p in pictures[run.info.run_id]))
    (model,) = client.search_registered_models()
    alias, number = next(iter(model.aliases.items()))
    version = client.get_model_version_by_alias(model.name, alias)
    aliases = [name for name, each in model.aliases.items() if each == number]
    return Store(
        run=run,
        experiment=client.get_experiment(run.info.experiment_id).name,
        metrics=sorted(run.data.metrics),
        pictures=pictures[run.info.run_id],
        model=model.name,
        version=str(version.version),
        aliases=aliases,
        source_run=client.get_run(str(version.run_id)).info.run_name or "",
    )


@pytest.fixture(scope="module")
def address(storage: Path) -> Iterator[str]:
    server = MlflowServer(storage)
    server.start()
    server.wait()
    yield server.uri
    server.kill()


@pytest.fixture(scope="module")
def page(address: str, require: Callable[[str], str]) -> Iterator[Page]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require("chromium"), args=BROWSER_OPTIONS
        )
        page = browser.new_page(viewport=VIEWPORT, base_url=address)
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        news = page.get_by_role("dialog")
        page.add_locator_handler(news, lambda: news.get_by_label("Close").click())
        page.goto("/")
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        yield page
        browser.close()
    here = (address, "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(here)] == []


def open_run(page: Page, store: Store) -> None:
    page.goto(f"/#/experiments/{store.run.info.experiment_id}/runs/{store.run.info.run_id}")
    expect(page.get_by_role("heading", name=store.run.info.run_name)).to_be_visible()


def test_the_page_shows_the_run(page: Page, store: Store) -> None:
    open_run(page, store)
    expect(page.get_by_test_id("experiment-runs-link")).to_have_text(store.experiment)
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    for tag in ("tubelet.run", "tubelet.attempt", "tubelet.revision"):
        expect(page.get_by_text(f"{tag}: {store.run.data.tags[tag]}")).to_be_visible()
    for metric in store.metrics:
        expect(page.get_by_role("link", name=metric, exact=True)).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "run.png")


def test_the_page_draws_the_curves(page: Page, store: Store, client: MlflowClient) -> None:
    open_run(page, store)
    page.set_viewport_size({"width": 1400, "height": 3000})  # charts out of sight are not drawn
    page.get_by_role("tab", name="Model metrics").click()
    for metric in ("train/loss", "eval/loss"):
        legend = page.get_by_text(f"{store.run.info.run_name} ({metric})", exact=True)
        expect(legend).to_be_visible()
        steps = {point.step for point in client.get_metric_history(store.run.info.run_id, metric)}
        chart = page.locator("div").filter(has=legend).filter(has=page.locator("path.js-line")).last
        curve = chart.locator("path.js-line").first
        curve.wait_for()
        assert len((curve.get_attribute("d") or "").split("L")) == len(steps) > 1
    page.screenshot(path=SCREENSHOTS / "curves.png")
    page.set_viewport_size(VIEWPORT)


def test_the_page_shows_every_picture_and_plays_every_video(
    page: Page, store: Store, storage: Path
) -> None:
    folder = Path(str(store.run.info.artifact_uri).removeprefix("file://"))
    open_run(page, store)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("pictures", exact=True).click()
    kinds = {Path(path).suffix for path in store.pictures}
    assert {".png", ".mp4"} <= kinds
    for path in store.pictures:
        page.get_by_text(Path(path).name, exact=True).click()
        if path.endswith(".png"):
            shown = page.locator(f"img[alt='{path}']")
            shown.wait_for()
            width = image.imread(folder / path).shape[1]
            page.wait_for_function(
                "([i, w]) => i.naturalWidth == w", arg=[shown.element_handle(), width]
            )
        else:
            video = page.locator("video")
            video.evaluate("video => video.play()")
            page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
        page.screenshot(path=SCREENSHOTS / f"{Path(path).stem}_{path[-3:]}.png")


def test_the_page_shows_the_registered_version_and_its_alias(page: Page, store: Store) -> None:
    page.goto("/#/models")
    page.get_by_role("link", name=store.model, exact=True).click()
    row = page.get_by_role("row").filter(has_text=f"Version {store.version}")
    for alias in store.aliases:
        expect(row.get_by_text(f"@ {alias}")).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "model.png")
    row.get_by_role("link", name=f"Version {store.version}").click()
    expect(page.get_by_role("heading", name=f"Version {store.version}")).to_be_visible()
    expect(page.get_by_text(f"@ {store.aliases[0]}")).to_be_visible()
    expect(page.get_by_role("link", name=store.source_run)).to_be_visible()
    expect(page.get_by_text("held-out metric")).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "version.png")
