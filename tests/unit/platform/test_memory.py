"""The demo's peak of memory: asked for seldom, and never missed."""

import os
import random
import subprocess
import sys
import time

import pytest

from tubelet.demo import memory

MIB = 1 << 20


def test_no_growth_asks_for_nothing_and_growth_past_the_peak_does() -> None:
    before = {1: 100 * MIB, 2: 50 * MIB}
    assert not memory.may_exceed(120 * MIB, told=120 * MIB, before=before, now=before)
    grown = {1: 110 * MIB, 2: 40 * MIB}
    assert memory.may_exceed(120 * MIB, told=120 * MIB, before=before, now=grown)
    assert memory.may_exceed(0, told=0, before={}, now={1: MIB}), "the first look"


def test_a_peak_is_found_to_within_its_slack_whatever_processes_map_and_share() -> None:
    """Pages shared at random between processes: the true sum is that of distinct pages."""
    draw = random.Random(5)
    maps: list[set[int]] = [set() for _ in range(5)]
    told, before, peak, true_peak, asked = 0, dict[int, int](), 0, 0, 0
    for _ in range(3000):
        mine = draw.choice(maps)
        mine ^= {draw.randrange(400) for _ in range(draw.randrange(12))}
        if draw.random() < 0.02:
            mine.clear()
        total = len(set().union(*maps))
        true_peak = max(true_peak, total)
        now = {pid: len(pages) for pid, pages in enumerate(maps)}
        if memory.may_exceed(peak, told=told, before=before, now=now):
            told, before, peak, asked = total, now, max(peak, total), asked + 1
    assert true_peak * (1 - 2 * memory._SLACK) <= peak <= true_peak
    assert asked < 3000


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no such figure here")
def test_memory_of_a_child_counts() -> None:
    watch = memory.PeakMemory()
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(300 << 20); input()"], stdin=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 30
        while watch.peak_bytes < 300 * MIB and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        child.communicate(b"\n")
    assert watch.peak_bytes > 300 * MIB
