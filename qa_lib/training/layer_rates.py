r"""Layer-wise learning rates: the lower a block, the smaller its rate.

ELECTRA's code gives layer k of an encoder with n blocks the rate $\eta\,\gamma^{\,n+2-k}$. The
embeddings are layer 0, the blocks layers 1 to n, and the heads layer n + 2 (Clark et al. 2020,
google-research/electra). So heads have η, and the top block already η γ². With `top` 1 the top
block has η γ, as in Howard and Ruder 2018 and most later code.

ALBERT has one block at all depths. It counts as the top one, n is 1, and the embeddings with their
projection are the layer below: γ to the power of `top` and of `top` + 1. The 24 powers of its 24
depths would mean that one weight has 24 rates.
"""

from torch import nn

from qa_lib.models import encoders
from qa_lib.settings.parameters import LayerDecay


def find_powers(model: nn.Module, top: int) -> dict[int, int]:
    """Return the power of γ of every parameter, by the parameter's `id`.

    model: has an encoder; what is not of the encoder is a head. top: the power of the top block.
    """
    blocks = encoders.blocks_of(model.encoder)
    powers = {id(parameter): 0 for parameter in model.parameters()}
    for parameter in model.encoder.parameters():
        powers[id(parameter)] = top + len(blocks)  # embeddings, one below the first block
    for number, block in enumerate(blocks):
        for parameter in block.parameters():
            powers[id(parameter)] = top + len(blocks) - 1 - number
    return powers


def group_parameters(
    model: nn.Module, rate: float, weight_decay: float, decayed: list[str], layers: LayerDecay
) -> list[dict]:
    """Return the groups of an optimizer: parameters that have one rate and one weight decay.

    rate: η, of the heads; decayed: the names of the parameters that weight decay is for.
    """
    powers = find_powers(model, layers.top)
    names = set(decayed)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        power = powers[id(parameter)]
        key = (power, name in names)
        if key not in groups:
            # $\eta\,\gamma^p$
            groups[key] = {
                "params": [],
                "lr": rate * layers.rate**power,
                "weight_decay": weight_decay if name in names else 0.0,
            }
        groups[key]["params"].append(parameter)
    return list(groups.values())
