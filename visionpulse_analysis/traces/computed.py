"""The quantities that come with the package and that ``record`` can name; a further one is one more function here.

Or in a notebook: see `quantity`. Listing them takes no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.traces.quantities import Quantity, quantity, registered

if TYPE_CHECKING:
    from visionpulse_analysis.attention import LayerAttention


def list_quantities() -> dict[str, Quantity]:
    """The table of recorded quantities by name, with axes, unit and how each is computed.

    Returns
    -------
    dict of str to Quantity
        Those that are recorded in any case or with a pruner, then those that ``record=[...]`` can name.
    """
    return registered()


@quantity(
    axes=("step", "layer", "head"), unit="nats", range=(0, None), undefined="where the head gives no patch any weight"
)
def head_entropy(call: LayerAttention) -> torch.Tensor:
    """Shannon entropy of each head over the patches, its row renormalised to sum to 1 over them: 0 to ln(patches)."""
    shares = call.patch_weights / call.patch_weights.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1)


@quantity(axes=("step", "layer", "head", "patch"), unit="norm in the residual stream", range=(0, None))
def value_norm_attention(call: LayerAttention) -> torch.Tensor:
    """Norm ||a f(x)|| of what each head adds to the residual stream from each patch: its weight a times the length of
    the patch's value vector times the head's slice of the output projection.

    Kobayashi et al., "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms", EMNLP 2020, section 3,
    for each head by itself: not the norm of the sum over heads. The bias of the output projection belongs to no patch
    and is left out, as are gates between a head and that projection.
    """
    # ||v W|| = ||v R^T|| where W^T = Q R: dim by dim numbers in place of dim by width.
    root = call.once("root", lambda: torch.linalg.qr(call.output_projection.transpose(1, 2), mode="r").R)
    lengths = torch.linalg.vector_norm(call.patch_values @ root.transpose(1, 2), dim=-1)
    return call.patch_weights * lengths
