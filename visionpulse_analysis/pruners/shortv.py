"""ShortV: layers that read the image and do not think about it any further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from visionpulse_analysis._util.later import torch
from visionpulse_analysis._util.progress import over
from visionpulse_analysis.pruners.base import FirstTokens, Pruner, Selection
from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.pruners.top_k import kl

# In the authors' order, the layer that contributes least first.
PUBLISHED = {
    "llava-1.5-7b": (31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19),
    "llava-1.5-13b": (39, 32, 28, 36, 27, 37, 29, 30, 1, 38, 25, 31, 2, 26, 23, 34, 0, 33, 35, 22, 24, 21, 20, 17),
    "llava-next-7b": (31, 29, 30, 28, 26, 27, 22, 24, 21, 23, 25, 20, 19, 17, 18, 15, 12, 0, 2),
    "llava-next-13b": (39, 32, 29, 36, 27, 30, 37, 23, 25, 31, 26, 2, 28, 22, 33, 35, 34, 24, 38, 21, 20, 18, 1, 17),
}


@dataclass(frozen=True)
class ShortV(Pruner):
    """Freeze the hidden states of the patches through some layers of prefill; their keys and values are still read.

    ShortV, arXiv 2504.00502, section 3. In a frozen layer the patches have no query, no attention output and no MLP:
    what enters the layer leaves it. Decode steps are dense. Features that a model adds between layers (DeepStack) are
    added as usual.

    Parameters
    ----------
    layers : tuple of int, optional
        Zero-based frozen layers; () freezes none. Left out, the last 19 of 32 layers: the authors' orders begin with
        the deepest layers, but their choice is calibrated, and ``calibrate`` finds one that is. `published` knows the
        authors' own lists, for LLaVA-1.5-7B 0, 2, 3, 12 and 17 to 31.
    """

    name: ClassVar[str] = "shortv"

    layers: tuple[int, ...] | None = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        model: {"layers": found} for model, found in PUBLISHED.items()
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    @classmethod
    def published(cls, model: str = "llava-1.5-7b") -> ShortV:
        """The layers that the authors freeze in a model (README of their code).

        Parameters
        ----------
        model : "llava-1.5-7b", "llava-1.5-13b", "llava-next-7b" or "llava-next-13b"

        Returns
        -------
        ShortV

        Raises
        ------
        ValueError
            The authors give no list for that model.
        """
        if model not in PUBLISHED:
            raise ValueError(f"the authors give lists for {', '.join(PUBLISHED)}, got {model!r}; calibrate others")
        return cls(**cls.presets[model])

    @classmethod
    def calibrated(
        cls,
        first_tokens: FirstTokens,
        n_layers: int,
        *,
        frozen: int | None = None,
        direction: Literal["frozen||dense", "dense||frozen"] = "frozen||dense",
    ) -> ShortV:
        """Freeze the layers that contribute least.

        Parameters
        ----------
        first_tokens, n_layers
            As in `Pruner.calibrated`.
        frozen : int, 0 to n_layers, optional
            How many; 19 of 32 if left out.
        direction : "frozen||dense" or "dense||frozen"
            Of the divergence: the authors' code has KL(frozen || dense), their paper the other.

        Raises
        ------
        ValueError
            An option is out of range.
        """
        count = round(19 / 32 * n_layers) if frozen is None else frozen
        if not 0 <= count <= n_layers:
            raise ValueError(f"frozen must be 0 to {n_layers} layers, got {frozen}")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        contribution = layer_contribution(first_tokens, n_layers)[:, DIRECTIONS.index(direction)]
        return cls(tuple(torch.argsort(contribution, stable=True)[:count].tolist()))

    def begin(self, run: Selection) -> None:
        n = run.layout.n_layers
        run.pattern |= Pattern(frozen=tuple(range(n - round(19 / 32 * n), n)) if self.layers is None else self.layers)


DIRECTIONS = ("frozen||dense", "dense||frozen")


def layer_contribution(first_tokens: FirstTokens, n_layers: int) -> torch.Tensor:
    """Layer Contribution of the visual tokens in nats, in both directions: float64 [layer, direction].

    The divergence between the first token's distribution with one layer frozen and dense, mean over samples: in the
    order of ``DIRECTIONS``.

    Parameters
    ----------
    first_tokens, n_layers
        As in `Pruner.calibrated`.
    """
    dense = first_tokens(None)
    frozen = over(lambda layer: first_tokens(ShortV((layer,))), range(n_layers), "calibrate", "layer")
    return torch.stack([torch.stack([kl(one, dense), kl(dense, one)]) for one in frozen])
