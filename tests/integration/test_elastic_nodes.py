"""One run on a cluster whose nodes are drained and die while it trains; it makes what the plain loop makes.

The long form of this is ``make chaos``. Here the quick faults strike one after the other, in phases that differ.
The run does not grow when a node joins: whether that pays depends on how fast the machine is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from chaos_world import World, world
from clips import read_manifest
from reference import Point, assert_same_series, reference_series, visits_of
from tubelet import proof

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

EPOCHS = 60
FAULTS = (
    ("worker_sigterm", "reduce"),
    ("drain", "data"),
    ("torn_checkpoint", "forward"),
    ("driver_kill", "update"),  # one worker is left, and the next driver is told that this is all
    ("node_kill", "stage"),  # of two nodes, the second has just joined
)
GAP = 12
PATIENT = "elastic.hang_minutes=2"  # nothing freezes here: what is slow is not hung
ALONE = "elastic.max_workers=1"


@dataclass
class Story:
    there: World
    fired: dict[str, dict[str, Any]]
    """When and where each fault struck."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("nodes")
    with world(folder, epochs=EPOCHS, servers=False) as there:
        told = Story(there, {})
        there.more = (PATIENT,)
        there.begin("run")
        for kind, phase in FAULTS:
            there.prepare(kind)
            if kind == "driver_kill":
                there.more = (PATIENT, ALONE)
            earliest = there.step() + GAP
            fired = there.strike(kind, kind, phase, earliest=earliest, patience_s=120)
            there.outside(kind, fired)
            there.wait_for_step(fired["step"] + 1, since=fired["unix_s"], patience_s=120)
            told.fired[kind] = fired
        there.finish()
        there.more = (PATIENT,)
        yield told


def test_every_position_is_consumed_once(story: Story) -> None:
    exact, lines = proof.prove(story.there.run)
    assert exact, "\n".join(lines)


def test_every_loss_and_norm_is_the_plain_loops(story: Story) -> None:
    there = story.there
    recipe = there.recipe("run")
    manifest = read_manifest(there.manifest)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = reference_series(recipe, manifest, visits_of(recipe, manifest))
    torch.set_num_threads(threads)
    curves = there.curves("run")
    steps = sorted(curves["train/loss"])
    assert steps == list(range(1, len(expected) + 1)), "a hole in the curve"
    ours = [
        Point(*(curves[n].get(s) for n in ("train/loss", "train/grad_norm", "eval/loss")))  # pyright: ignore[reportArgumentType]
        for s in steps
    ]
    assert_same_series(ours, expected)


def test_a_node_that_is_drained_costs_no_step(story: Story) -> None:
    resized = [e for e in _events(story, "resize") if e["unix_s"] > story.fired["drain"]["unix_s"]]
    assert resized[0]["held_s"] is not None, "the workers did not hold"
    after = [a for a in story.there.run.attempts() if a.number == resized[0]["attempt"] + 1]
    assert after[0].step == resized[0]["step"], "steps were repeated"
    assert after[0].world_size == resized[0]["workers"]


def test_a_drained_node_is_left_before_it_is_taken_away(story: Story) -> None:
    (notice,) = _events(story, "notice")
    resized = next(e for e in _events(story, "resize") if e["unix_s"] >= notice["unix_s"])
    assert resized["unix_s"] < notice["leaves_at_s"] - 10


def test_a_node_that_dies_is_no_failure_of_the_run(story: Story) -> None:
    struck = story.fired["node_kill"]["unix_s"]
    lost = next(e for e in _events(story, "failure") if e["unix_s"] > struck)
    assert lost["lost_nodes"]
    assert not lost["charged"]
    assert "is gone" in lost["message"]
    assert lost["unix_s"] - struck < 15, "it waited for Ray to notice"


def test_a_worker_that_dies_is_one(story: Story) -> None:
    struck = story.fired["worker_sigterm"]["unix_s"]
    failure = next(e for e in _events(story, "failure") if e["unix_s"] > struck)
    assert failure["charged"]
    assert not failure["lost_nodes"]


def test_the_terminal_told_what_happened_and_nothing_else(story: Story) -> None:
    said = (story.there.folder / "run.log").read_text()
    for text in (
        " will be taken away in ",
        "going from ",
        " is gone; starting again",
        "set aside",
    ):
        assert text in said
    for word in ("ray::", "(pid=", "Traceback", "TrainController"):
        assert word not in said


def test_a_run_that_starts_before_its_nodes_do_waits_and_then_trains(story: Story) -> None:
    there = story.there
    begun = time.time()
    there.begin("early", workers=len(there.cluster.raylets()) + 1)
    log, deadline = there.folder / "early.log", begun + 120
    while "waiting: the cluster has room for" not in log.read_text():
        assert time.time() < deadline, log.read_text()
        time.sleep(0.2)
    there.cluster.add()
    there.wait_for_step(1, since=begun, patience_s=120)
    there.stop()
    assert [e["event"] for e in there.run.events()][:1] == ["waiting"]
    assert there.run.attempts()[0].world_size == len(there.cluster.raylets())


def _events(story: Story, kind: str) -> list[dict[str, Any]]:
    return [event for event in story.there.run.events() if event["event"] == kind]
