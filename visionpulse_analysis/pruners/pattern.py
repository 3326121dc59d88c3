"""Which computation pictures take part in, layer by layer: nothing is chosen, so it is the same for every picture.

ShortV, ViCA and YOPO are values of it, and a model that was tuned under one states it in its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from visionpulse_analysis._util.checks import Interval, check_fields

Layers = tuple[Annotated[int, Interval(ge=0, what="a zero-based layer index,")], ...]


@dataclass(frozen=True)
class Pattern:
    """What the tokens of pictures compute, and who reads them; by default what the model does.

    Parameters
    ----------
    frozen : tuple of int
        Layers that leave the states of pictures as they were, without query, attention output or MLP; their keys and
        values are still read there.
    blind : tuple of int
        Layers in which text does not see pictures, in prefill and at all steps: weights are those of a softmax over
        the rest.
    window : int, odd, optional
        Patches see only the patches within ``(window - 1) / 2`` rows and columns of their own picture, later ones as
        well as earlier ones, and the text before them.
    heads : tuple of tuples of bool [layer][head]
        False where a head is inactive: the attention of text that goes to pictures is lost after the softmax, as those
        weights were, and the head puts out nothing for pictures. () for all heads active.
    mlp_share : float, in (0, 1]
        Pictures use only the first so many of the neurons of each MLP, rounded.

    Raises
    ------
    ValueError
        A value is out of range, or heads differ in number between layers.
    """

    frozen: Layers = ()
    blind: Layers = ()
    window: Annotated[int, Interval(ge=1)] | None = None
    heads: tuple[tuple[bool, ...], ...] = ()
    mlp_share: Annotated[float, Interval(gt=0, le=1, what="a share of the neurons")] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("frozen", "blind"):
            object.__setattr__(self, name, tuple(sorted({int(layer) for layer in getattr(self, name)})))
        object.__setattr__(self, "heads", tuple(tuple(bool(head) for head in layer) for layer in self.heads))
        if self.window is not None and self.window % 2 == 0:
            raise ValueError(f"window must be odd, so that it has a middle, got {self.window}")
        if len({len(layer) for layer in self.heads}) > 1:
            raise ValueError(f"heads must list as many heads in each layer, got {[len(layer) for layer in self.heads]}")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Pattern:
        """The pattern of a `given` dict, as `to_dict` makes it; that of an ordinary model for None."""
        return cls(**(given or {}))

    def to_dict(self) -> dict[str, Any]:
        """What differs from an ordinary model, JSON-ready."""
        told = {name: value for name, value in asdict(self).items() if value != getattr(ORDINARY, name)}
        return {name: [list(one) if isinstance(one, tuple) else one for one in value] if isinstance(value, tuple)
                else value for name, value in told.items()}  # fmt: skip

    def __or__(self, other: Pattern) -> Pattern:
        """Both at once: a layer is frozen or blind where either says so, and of the rest the narrower counts."""
        windows = [one.window for one in (self, other) if one.window is not None]
        heads = [one.heads for one in (self, other) if one.heads]
        both = heads[0] if heads else ()
        if len(heads) == 2:
            both = tuple(
                tuple(a and b for a, b in zip(*layers, strict=True)) for layers in zip(*heads, strict=True)
            )  # fmt: skip
        return Pattern(
            self.frozen + other.frozen, self.blind + other.blind, min(windows, default=None), both,
            min(self.mlp_share, other.mlp_share),
        )  # fmt: skip

    def check(self, n_layers: int) -> None:
        """Raise ValueError unless a model with so many layers can run under it."""
        for name, layers in (("frozen", self.frozen), ("blind", self.blind)):
            if layers and layers[-1] >= n_layers:
                raise ValueError(f"{name} layer {layers[-1]} is out of range: the model has layers 0 to {n_layers - 1}")
        if self.heads and len(self.heads) != n_layers:
            raise ValueError(f"heads are given for {len(self.heads)} layers, and the model has {n_layers}")

    def inactive(self, layer: int) -> list[int]:
        """The heads of a `layer` that are inactive."""
        return [head for head, active in enumerate(self.heads[layer]) if not active] if self.heads else []


ORDINARY = Pattern()
