"""The same bits at any world size: sums over units whose result does not depend on who computed what.

A unit (a micro-batch of fixed size) is the atom: its gradient has the same bits on whatever rank computes it. What
depends on the number of ranks is then only the order of three sums, and floating-point sums depend on order:

    gradients   ``OrderedSum``: every round, each rank sends the parts of its unit's gradient to their owners (an
                all-to-all, the bytes of a reduce-scatter), which add them in the order of the units. That is, bit for
                bit, what one rank alone does by training on unit after unit.
    norm        ``square_sum``: squares as integers on a grid set by the largest element; integer sums have no order.
    losses      ``sum_slots``: each unit's value travels in a place of its own, and all are summed with one rounding.

Costs, measured by the prototype at two workers: 0.93 to 1.03 of the time of an ordinary step, no memory. It needs a
reduction in every round: no gradients are added up locally. Part of the bits are also the size of units, the number of
threads, and the CPU's vector width; on GPUs, the model of GPU and deterministic kernels (``ask_for_determinism``).
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllocMixin

_log = logging.getLogger(__name__)

_INT64_BITS = 62


class OrderedSum(DefaultAllocMixin, ReduceScatter):
    """FSDP's reduce-scatter of one module, adding in the order of units and holding the sum until a step's last round.

    Earlier rounds hand zeros to FSDP, which adds up what it is handed. (On one rank FSDP never calls it.)
    """

    def __init__(self) -> None:
        self.first_rank, self.last = 0, True
        self._sum: Tensor | None = None

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """Take a round's gradient; called by FSDP."""
        world_size = group.size()
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        parts = received.chunk(world_size)
        if self._sum is None:
            self._sum = torch.zeros_like(parts[0])
        for place in range(world_size):
            self._sum += parts[(self.first_rank + place) % world_size]
        if self.last:
            output_tensor.copy_(self._sum)
            self._sum = None
        else:
            output_tensor.zero_()


class OrderedReduction:
    """All of a model's sums.

    Args:
        model: sharded; its gradients are from now on summed in order.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: list[OrderedSum] = []
        for module in model.modules():
            if isinstance(module, FSDPModule):
                self._sums.append(OrderedSum())
                module.set_custom_reduce_scatter(self._sums[-1])

    def begin_round(self, *, first_rank: int, last: bool) -> None:
        """Before a unit's backward pass.

        Args:
            first_rank: which rank has the earliest unit of the round; the next unit is on the next rank.
            last: the step's sum is wanted after this round.
        """
        for each in self._sums:
            each.first_rank, each.last = first_rank, last


@torch.no_grad()
def square_sum(gradients: Sequence[Tensor], *, elements: int) -> float:
    """Sum of squares of a gradient of which every rank has a part; the same bits however it is parted (a collective).

    A float32 squared is exact in float64. Scaled by the largest element of all and split into two digits, squares are
    summed as 64-bit integers; the relative error is below 1e-9.

    Args:
        gradients: this rank's parts, float32.
        elements: of all ranks together.
    """
    parts = [g for g in gradients if g.numel()]
    device = gradients[0].device
    largest = torch.zeros((), dtype=torch.float64, device=device)
    if parts:
        largest = torch.stack([g.abs().amax() for g in parts]).amax().double()
    largest.nan_to_num_(nan=math.inf, posinf=math.inf)  # a maximum over ranks may lose a NaN
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    bound = largest.item()
    if bound == 0.0 or not math.isfinite(bound):
        return bound * bound
    exponent = math.frexp(bound)[1]
    bits = _INT64_BITS - math.ceil(math.log2(elements)) if elements > 1 else _INT64_BITS - 1
    digits = torch.zeros(2, dtype=torch.int64, device=device)
    for part in parts:
        square = part.double().mul_(2.0**-exponent).square_().mul_(2.0**bits)
        high = square.floor()
        low = square.sub_(high).mul_(2.0**bits).round_()
        digits += torch.stack([high.to(torch.int64).sum(), low.to(torch.int64).sum()])
    dist.all_reduce(digits)
    first, second = (int(digit) for digit in digits.tolist())
    return ((first << bits) + second) / (1 << 2 * bits) * 2.0 ** (2 * exponent)


def slots(values: Mapping[int, Tensor], *, count: int, device: torch.device) -> Tensor:
    """Values of this rank's units at their places among all units, float64 [count]; zero elsewhere.

    Adding the slots of all ranks is exact, since no place is filled twice.
    """
    filled = torch.zeros(count, dtype=torch.float64, device=device)
    if values:
        places = torch.tensor(list(values), device=device)
        filled[places] = torch.stack([v.detach().double() for v in values.values()])
    return filled


def sum_slots(filled: Sequence[float]) -> float:
    """The sum of all units' values with one rounding, whatever their order."""
    return math.fsum(filled) if all(map(math.isfinite, filled)) else sum(filled)


def ask_for_determinism(device: torch.device) -> None:
    """Have CUDA use kernels that give the same bits each time; says what that does not cover."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    _log.warning(
        "elastic.exact on %s: the same bits on GPUs of this model with this version of PyTorch and CUDA only; "
        "kernels without a deterministic form are named as warnings in this log",
        torch.cuda.get_device_name(device),
    )
