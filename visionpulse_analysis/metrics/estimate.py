"""A number that was estimated, with its confidence interval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np

UNKNOWN = "not known"  # how a missing estimate reads in a table or a sentence


@dataclass(frozen=True)
class Estimate:
    """An estimated number with its confidence interval, which prints, calculates and serialises itself.

    ``str()`` gives "0.71 [0.64, 0.78], 200 samples". In an f-string it takes a format: ``{r:.2f}`` or ``{kl:.2g nats}``
    as a number, with a unit or without, ``{share:.1%}`` in per cent, ``{change:+.1p}`` in percentage points with its
    sign. ``100 * e``, ``1 - e`` and ``e + 1`` are estimates too. `figures.draw_estimates` and `draw_curve` draw it.

    Attributes
    ----------
    value, low, high : float
        The estimate and the ends of its interval, in the unit of the statistic.
    n_clusters, n_values : int
        How many clusters were resampled, and how many values they hold.
    confidence : float in (0, 1)
        Nominal coverage.
    method : str
        How the interval was made.
    unit : str
        What one cluster is, in the singular: "sample" (one question about one image), "scene" where all samples are
        generated scenes, or whatever else was resampled.
    refused : str
        Why there is no interval; empty where there is one. Bounds are NaN then: no interval is better than one that
        misses the truth far more often than it says.

    Examples
    --------
    >>> share = Estimate(0.213, 0.206, 0.22, 48, 900, 0.95, "Wilson")
    >>> f"{share:.1%}, {share - 1:+.1p}, {share:.2f}"
    '21.3 % [20.6, 22.0], -78.7 points [-79.4, -78.0], 0.21 [0.21, 0.22]'
    >>> Estimate.from_json(share.to_json()) == share
    True
    """

    value: float
    low: float
    high: float
    n_clusters: int
    n_values: int
    confidence: float
    method: str
    unit: str = "sample"
    refused: str = ""

    @classmethod
    def missing(cls, why: str, unit: str = "sample") -> Estimate:
        """An estimate of nothing, `why` that is, and the `unit` of its clusters."""
        return cls(np.nan, np.nan, np.nan, 0, 0, 0.95, "none", unit, why)

    def __str__(self) -> str:
        width = self.high - self.low
        digits = int(np.clip(-np.floor(np.log10(width / 4)), 0, 6)) if width > 0 else 3
        low, high = (f"{bound:.{digits}f}" for bound in (self.low, self.high))
        bounds = f"no interval: {self.refused}" if self.refused else f"{low}, {high}"
        units = self.unit if self.n_clusters == 1 else f"{self.unit}s"
        return f"{self.value:.{digits}f} [{bounds}], {self.n_clusters} {units}"

    def __format__(self, spec: str) -> str:
        """Format as ``[+].<digits>f|g[ unit]``, ``[+].<digits>%`` or ``[+].<digits>p``; without a spec as ``str()``."""
        if not spec:
            return str(self)
        parts = re.fullmatch(r"(\+?)(\.\d+)([fg%p])(| .+)", spec)
        if parts is None:
            raise ValueError(f"{spec!r} is no format of an Estimate; expected such as .2f, .2g nats, +.1% or +.1p")
        if np.isnan(self.value):
            return UNKNOWN
        sign, digits, kind, unit = parts.groups()
        scale, form, unit = {"%": (100, f"{digits}f", " %"), "p": (100, f"{digits}f", " points")}.get(
            kind, (1, f"{digits}{kind}", unit)
        )
        first = f"{scale * self.value:{sign}{form}}{unit}"
        if np.isnan(self.low):
            return f"{first} (no interval)" if self.refused else first
        return f"{first} [{scale * self.low:{form}}, {scale * self.high:{form}}]"

    def __mul__(self, factor: float) -> Estimate:
        ends = sorted((factor * self.low, factor * self.high))
        return replace(self, value=factor * self.value, low=ends[0], high=ends[1])

    __rmul__ = __mul__

    def __add__(self, shift: float) -> Estimate:
        return replace(self, value=self.value + shift, low=self.low + shift, high=self.high + shift)

    def __sub__(self, shift: float) -> Estimate:
        return self + -shift

    def __rsub__(self, whole: float) -> Estimate:
        return replace(self, value=whole - self.value, low=whole - self.high, high=whole - self.low)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON takes them, the value under "estimate"; NaN becomes None."""
        fields = {"estimate" if key == "value" else key: value for key, value in asdict(self).items()}
        return {key: None if value != value else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Estimate:
        """Read back the `fields` that `to_json` gave."""
        given: dict[str, Any] = {key: np.nan if value is None else value for key, value in fields.items()}
        return cls(value=given.pop("estimate"), **given)


def as_json(value: Any) -> Any:
    """Results as JSON takes them, dataclasses, mappings and lists alike: estimates by `to_json`; NaN becomes None."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return as_json(vars(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if value != value else value
