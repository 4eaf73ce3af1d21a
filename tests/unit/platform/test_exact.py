"""Sums that have the same bits however their terms are dealt out to ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tubelet import exact
from workers import run_group


def gradient() -> Tensor:
    """Elements over many orders of magnitude, as gradients have."""
    maker = torch.Generator().manual_seed(5)
    return torch.randn(3001, generator=maker) * 10.0 ** (torch.rand(3001, generator=maker) * 12 - 9)


def square_sum_of_my_part(scale: float) -> float:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = list((gradient() * scale).tensor_split(world_size)[rank].split(100))
    return exact.square_sum(parts or [torch.zeros(0)], elements=3001)


def square_sum_with_broken_elements_on_one_rank(value: float, count: int, rank: int) -> float:
    mine = torch.ones(64)
    if dist.get_rank() == rank:
        mine[:count] = value
    return exact.square_sum([mine], elements=64 * dist.get_world_size())


def slots_of_my_units(values: list[float]) -> float:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = {i: torch.tensor(values[i]) for i in range(rank, len(values), world_size)}
    filled = exact.slots(mine, count=len(values), device=torch.device("cpu"))
    dist.all_reduce(filled)
    return exact.sum_slots(filled.tolist())


def ordered_sum(first_rank: int, units: list[list[float]]) -> list[float]:
    """What the rounds of a step leave on all ranks together."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    total, place = exact.OrderedSum(), (rank - first_rank) % world_size
    group, out = dist.group.WORLD, torch.zeros(2)
    assert group is not None
    rounds = -(-len(units) // world_size)
    for number in range(rounds):
        total.first_rank, total.last = first_rank, number == rounds - 1
        unit = number * world_size + place
        mine = units[unit] if unit < len(units) else [0.0] * len(units[0])
        total(out, torch.tensor(mine), group, None)
        assert total.last or not out.any(), "FSDP adds up what it is handed"
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, out.tolist())
    return [element for part in gathered for element in part]


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e15])
def test_a_norm_has_the_same_bits_on_any_number_of_ranks_and_is_right(scale: float) -> None:
    found = {w: set(run_group(w, square_sum_of_my_part, scale)) for w in (1, 2, 3)}
    assert found[1] == found[2] == found[3]
    right = math.fsum(float(x) ** 2 for x in (gradient() * scale).double())
    assert found[1].pop() == pytest.approx(right, rel=1e-9)


def test_a_norm_of_nothing_is_zero_and_of_infinity_not_finite() -> None:
    assert run_group(1, exact.square_sum, [torch.zeros(3)], elements=3) == [0.0]
    for value in (math.inf, math.nan):
        (found,) = run_group(1, exact.square_sum, [torch.tensor([1.0, value])], elements=2)
        assert not math.isfinite(found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_norm_is_not_finite_whichever_rank_holds_what_is_not(
    world_size: int, value: float
) -> None:
    """A maximum over ranks loses a NaN that is not the first rank's; two of them made a sum that looked right."""
    for count in (1, 2, 64):
        for rank in range(world_size):
            found = run_group(
                world_size, square_sum_with_broken_elements_on_one_rank, value, count, rank
            )
            assert not any(map(math.isfinite, found)), (count, rank, found)


def test_losses_are_summed_with_one_rounding_on_any_number_of_ranks() -> None:
    values = [1e16, 1.0, -1e16, 0.1, 3.0, 1e-9, 7.0]
    right = math.fsum(torch.tensor(values).double().tolist())
    for world_size in (1, 2, 3):
        assert set(run_group(world_size, slots_of_my_units, values)) == {right}


def test_a_loss_that_is_not_finite_stays_so() -> None:
    assert math.isnan(exact.sum_slots([1.0, math.nan]))
    assert math.isnan(exact.sum_slots([math.inf, -math.inf]))


@pytest.mark.parametrize("first_rank", [0, 1, 2])
def test_gradients_are_added_in_the_order_of_units_whichever_rank_has_the_first(
    first_rank: int,
) -> None:
    """Five units on three ranks; in another order the small terms would be lost or not."""
    column = [1.0, 2.0**24, 1.0, -(2.0**24), 3.0]
    units = [[value * factor for factor in (1, 2, 4, 8, 16, 32)] for value in column]
    expected = torch.zeros(6)
    for unit in units:
        expected += torch.tensor(unit)
    assert expected.tolist() != torch.tensor(units).double().sum(0).tolist()
    for found in run_group(3, ordered_sum, first_rank, units):
        assert found == expected.tolist()
