"""The authors' initialisations, written so that they can be repeated on an existing model.

Why: a model built on the meta device has to be initialised in place, after construction.
Guarantees: draws come from torch's global generator, in the order of `modules()`, so a seed gives
one model. Initialise before sharding: what random numbers sharded tensors get depends on the
number of shards.

The authors give linear layers Xavier-uniform weights in pretraining and truncated normal ones in
fine-tuning, biases zero, norms one and zero; the tubelet embedding keeps PyTorch's default of a
convolution (and is not treated as a linear layer). `ModelConfig.init="xavier"` departs from that.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from videomae.layers import Attention


def xavier(model: nn.Module) -> None:
    """Initialise for pretraining: Xavier-uniform linear layers."""
    _initialise(model, nn.init.xavier_uniform_)


def xavier_embedding(projection: nn.Conv3d) -> None:
    """Initialise a tubelet embedding as the linear map it is: Xavier-uniform, bias zero."""
    nn.init.xavier_uniform_(projection.weight.flatten(1))  # a view: fills the parameter
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def truncated_normal(model: nn.Module) -> None:
    """Initialise for fine-tuning: linear layers normal with deviation 0.02."""
    _initialise(model, lambda weight: nn.init.trunc_normal_(weight, std=0.02))


@torch.no_grad()
def _initialise(model: nn.Module, fill_linear: Callable[[Tensor], object]) -> None:
    for module in model.modules():
        match module:
            case nn.Linear():
                fill_linear(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.LayerNorm() | nn.Conv3d():
                module.reset_parameters()
            case Attention():
                nn.init.zeros_(module.q_bias)
                nn.init.zeros_(module.v_bias)
