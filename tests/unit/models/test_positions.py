"""The position table: the authors' numbers, other sizes, and models from the meta device."""

import math

import pytest
import torch

from videomae import ModelConfig, build_pretraining
from videomae.positions import Positions, interpolate_table, sinusoid_table


def test_table_has_the_authors_numbers() -> None:
    table_ND = sinusoid_table(1568, 768)
    assert table_ND.sum().item() == pytest.approx(245744.98957, abs=1e-4)
    first, last = (
        [0.841471, 0.540302, 0.828431, 0.560091],
        [0.608948, -0.793210, 0.093232, -0.995644],
    )
    assert table_ND[1, :4].tolist() == pytest.approx(first, abs=1e-6)
    assert table_ND[1567, :4].tolist() == pytest.approx(last, abs=1e-6)
    assert sinusoid_table(1568, 384).sum().item() == pytest.approx(122425.85787, abs=1e-4)


def test_table_follows_the_formula_entry_by_entry() -> None:
    table_ND = sinusoid_table(7, 5)
    assert table_ND.dtype == torch.float64
    for i in range(7):
        for j in range(5):
            angle = i / 10000 ** (2 * (j // 2) / 5)
            assert table_ND[i, j].item() == pytest.approx((math.sin, math.cos)[j % 2](angle))


def test_model_holds_the_table_in_float32_and_does_not_save_it() -> None:
    model = build_pretraining(ModelConfig("tiny", frames=4, image_size=32))
    assert torch.equal(model.encoder.positions.table_ND, sinusoid_table(32, 96).float())
    assert torch.equal(model.decoder.positions.table_ND, sinusoid_table(32, 64).float())
    assert not [name for name in model.state_dict() if "positions" in name]


@pytest.mark.parametrize("rule", ["recomputed", "interpolated"])
def test_both_rules_give_the_published_table_at_the_published_size(rule: str) -> None:
    positions = Positions(ModelConfig("vit_s", positions=rule), 24)  # pyright: ignore[reportArgumentType]
    assert torch.equal(positions.table_ND, sinusoid_table(1568, 24).float())


def test_interpolated_table_keeps_the_code_of_a_place() -> None:
    """Twice the frames: the mean of tokens 2t and 2t + 1 sits where token t sat."""
    published = sinusoid_table(1568, 48).unflatten(0, (8, 14, 14))
    config = ModelConfig("vit_s", frames=32, positions="interpolated")
    longer = Positions(config, 48).table_ND.double().unflatten(0, (16, 14, 14))
    middle = (longer[2:-2:2] + longer[3:-2:2]) / 2  # ends are clamped
    wanted = 0.125 * published[:-2] + 0.75 * published[1:-1] + 0.125 * published[2:]
    torch.testing.assert_close(middle, wanted, atol=1e-6, rtol=0)
    fresh = Positions(ModelConfig("vit_s", frames=32), 48).table_ND.double()
    assert (fresh.unflatten(0, (16, 14, 14)) - longer).abs().max() > 0.5


def test_interpolation_keeps_every_axis_where_it_was() -> None:
    source, target = (4, 8, 8), (8, 16, 16)

    def plane(grid: tuple[int, int, int]) -> torch.Tensor:
        """Centre of every token, in units of the whole clip, as three features."""
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    found = interpolate_table(plane(source).flatten(0, 2), source, target).unflatten(0, target)
    error = (found - plane(target)).abs()[1:-1, 4:-4, 4:-4].amax((0, 1, 2))
    assert error[0] < 1e-9  # time, linear
    assert error[1:].max() < 0.05 / 8  # PyTorch's bicubic kernel is up to 5 % of a source step off


def test_model_from_the_meta_device_gets_its_tables_back() -> None:
    config = ModelConfig("tiny", frames=4, image_size=32, positions="interpolated")
    wanted = build_pretraining(config)
    with torch.device("meta"):
        model = build_pretraining(config)
    assert model.encoder.positions.table_ND.is_meta
    model.to_empty(device="cpu")
    for half in (model.encoder, model.decoder):
        half.positions.table_ND.fill_(float("nan"))
    model.reset_positions()
    assert torch.equal(model.encoder.positions.table_ND, wanted.encoder.positions.table_ND)
    assert torch.equal(model.decoder.positions.table_ND, wanted.decoder.positions.table_ND)
