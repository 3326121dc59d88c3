"""What several tests together allow to say; all is importable from `visionpulse_analysis.metrics.statistics`.

An effect is called found only where its exact test survives Holm's adjustment within a family that is named. Intervals
tell how large an effect may be; each covers for itself, so none of them decides.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from visionpulse_analysis.metrics.bootstrap import Interval

Decision = Literal["rises", "falls", "not shown"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Verdict:
    """One effect among the tests of a family.

    Attributes
    ----------
    effect : Interval
        The change, with an interval that covers for itself.
    p, adjusted : float, 0 to 1
        Of its test alone, and by Holm among all tests of the family; NaN where no test is possible.
    family, size : str, int
        Which tests were adjusted together, and how many there are.
    alpha : float
        The chance, at most, that any true null of the family is called an effect.
    """

    effect: Interval
    p: float
    adjusted: float
    family: str
    size: int
    alpha: float = 0.05

    @property
    def decision(self) -> Decision:
        """ "rises" or "falls" where the adjusted test says so, else "not shown", which is no proof of no effect."""
        if not self.adjusted <= self.alpha or self.effect.estimate == 0:
            return "not shown"
        return "rises" if self.effect.estimate > 0 else "falls"

    def loses_at_most(self, margin: float) -> bool:
        """Whether the interval excludes a fall by `margin` or more, in the unit of the effect, > 0."""
        return bool(self.effect.low > -margin)

    def gains_at_most(self, margin: float) -> bool:
        """Whether the interval excludes a rise by `margin` or more, in the unit of the effect, > 0."""
        return bool(self.effect.high < margin)

    def __str__(self) -> str:
        p = "no test" if np.isnan(self.p) else f"p = {self.p:.2g}, {self.adjusted:.2g} among {self.size}"
        return f"{self.decision}: {self.effect} ({p}: {self.family})"

    def numbers(self) -> dict[str, Any]:
        """All fields and the decision, JSON-ready."""
        p, adjusted = (None if np.isnan(value) else value for value in (self.p, self.adjusted))
        return {
            "effect": self.effect.to_dict(),
            "p": p,
            "adjusted": adjusted,
            "family": self.family,
            "size": self.size,
            "decision": self.decision,
        }


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values so that one rule, adjusted <= alpha, errs in a whole family with a chance of alpha at most.

    Parameters
    ----------
    p : sequence of float [test], 0 to 1
        NaN where a test was not possible; it counts as one of the family, and stays NaN.

    Returns
    -------
    list of float [test]
        In the given order, each at least its p (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Raises
    ------
    ValueError
        If a p is outside 0 to 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, dtype=float)
    if given.ndim != 1 or ((given < 0) | (given > 1)).any():
        raise ValueError(f"p must be a list of numbers from 0 to 1; got {p!r}")
    order = np.argsort(given)  # NaN last
    steps = np.minimum(1.0, given[order] * (len(given) - np.arange(len(given))))
    adjusted = np.empty_like(given)
    adjusted[order] = np.fmax.accumulate(steps)
    return [float("nan") if np.isnan(before) else float(after) for before, after in zip(given, adjusted, strict=True)]


def judge(tests: Mapping[Key, tuple[Interval, float]], family: str, *, alpha: float = 0.05) -> dict[Key, Verdict]:
    """Judge effects together: each is found only if its test survives the adjustment for all of them.

    Parameters
    ----------
    tests : mapping of anything to (effect, p)
        Every test that was looked at to say this kind of thing, not only those that came out.
    family : str
        What they have in common, for the reader: "accuracy of 5 arms against dense, greedy and sampled".
    alpha : float in (0, 1)
        The chance, at most, that any true null of the family is called an effect.

    Returns
    -------
    dict
        The same keys, each with its `Verdict`.

    Raises
    ------
    ValueError
        If a p is outside 0 to 1, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1); got {alpha}")
    adjusted = holm([p for _, p in tests.values()])
    return {
        key: Verdict(effect, p, after, family, len(tests), alpha)
        for (key, (effect, p)), after in zip(tests.items(), adjusted, strict=True)
    }
