"""From a single-device model to one spread over the workers: FSDP2, mixed precision, deferred gradient reduction.

Gradients are *summed* over ranks and units (divide factor 1): the loop divides by the number of valid clips of the
step, so that padding, bad samples and the world size do not show (``exact`` has the sum whose very bits do not depend
on it). Gloo has no pre-multiplied sum, hence the forced plain sum, which is set on every wrapped module because the
setters are not recursive.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

_WRAP_BLOCKS_FROM = 10_000_000
"""Parameters from which every block is a group of its own: below, the calls cost more than the memory is worth."""


def shard(
    model: nn.Module, *, blocks: Sequence[nn.Module], mesh: DeviceMesh, bfloat16: bool
) -> nn.Module:
    """Shard ``model`` over ``mesh`` in place and return it.

    Args:
        model: on its device, initialised alike on every rank.
        blocks: modules that are gathered one at a time when the model is large.
        mesh: one-dimensional.
        bfloat16: gather weights in bfloat16 (sums and the optimizer stay in float32).
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None,
        reduce_dtype=torch.float32 if bfloat16 else None,
        cast_forward_inputs=False,  # pixels stay float32: the loss's target is made of them
    )
    if sum(p.numel() for p in model.parameters()) >= _WRAP_BLOCKS_FROM:
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


class DeferredReduction:
    """Gradients are added up locally and reduced over ranks in the last round of a step.

    Args:
        model: sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, FSDPModule)
        self._model = model

    def begin_round(self, *, first_rank: int, last: bool) -> None:
        """Before a unit's backward pass (see ``exact.OrderedReduction``)."""
        self._model.set_requires_gradient_sync(last)


def full_state_dict(model: nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    """The whole model's parameters, gathered one by one to host memory (a collective).

    Args:
        model: sharded.
        keep: whether this rank wants them; the others return an empty dictionary.
    """
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in model.state_dict().items():
        tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        if keep:
            whole[name] = tensor.detach().cpu().clone()
    return whole
