"""What estimates allow to say, one at a time or many together.

An effect is called found only where its exact test survives Holm's adjustment within a family that is named, or, where
no test is at hand, where an interval wide enough for the whole family lies beyond the level. The estimate that is shown
covers for itself alone, so it does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from visionpulse_analysis.metrics.estimate import Estimate

Decision = Literal["rises", "falls", "equivalent", "not shown"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Claim:
    """What one estimate shows about a level, among the claims of a family.

    Attributes
    ----------
    estimate : Estimate
        The number, with an interval that covers for itself.
    level : float
        What it is compared with, in its unit: 0 for a change, chance for a share.
    family, size : str, int
        Which claims are made together, and how many there are.
    p, adjusted : float, 0 to 1
        Of its test alone, and by Holm among all tests of the family; NaN where no test is possible.
    joint : Estimate, optional
        In place of a test, the same number with an interval that holds for all claims of the family together: then
        this decides.
    margin : float, optional
        How far from the level makes no difference, > 0; without one nothing is called equivalent.
    alpha : float
        The chance, at most, that anything untrue is claimed in the family.
    """

    estimate: Estimate
    level: float
    family: str
    size: int = 1
    p: float = np.nan
    adjusted: float = np.nan
    joint: Estimate | None = None
    margin: float | None = None
    alpha: float = 0.05

    @property
    def above(self) -> bool:
        """Whether it is shown to be above the level."""
        if self.joint is not None:
            return bool(self.joint.low > self.level)
        return bool(self.adjusted <= self.alpha and self.estimate.value > self.level)

    @property
    def below(self) -> bool:
        """Whether it is shown to be below the level."""
        if self.joint is not None:
            return bool(self.joint.high < self.level)
        return bool(self.adjusted <= self.alpha and self.estimate.value < self.level)

    @property
    def equivalent(self) -> bool:
        """Whether it is shown to lie within the margin of the level, by an interval wide enough for the family.

        Where a test decides and the family has several claims, give `joint` or an estimate of that confidence.
        """
        interval = self.joint or self.estimate
        if self.margin is None or interval.confidence < 1 - self.alpha / self.size - 1e-12:
            return False
        return bool(interval.low > self.level - self.margin and interval.high < self.level + self.margin)

    @property
    def decision(self) -> Decision:
        """ "rises" (is above the level) or "falls" where that is shown, else "equivalent" or "not shown".

        "not shown" is no proof of no effect.
        """
        if self.above or self.below:
            return "rises" if self.above else "falls"
        return "equivalent" if self.equivalent else "not shown"

    def sentence(
        self,
        subject: str,
        *,
        above: str,
        below: str,
        equivalent: str = "",
        otherwise: str = "cannot be decided with these samples",
    ) -> str:
        """The `subject`, and how the sentence ends by what is shown: `above`, `below`, `equivalent` or `otherwise`.

        Where `equivalent` is empty, so is what it stands for: then too the sentence ends with `otherwise`.
        """
        ends = {"rises": above, "falls": below, "equivalent": equivalent or otherwise, "not shown": otherwise}
        return f"{subject} {ends[self.decision]}."

    def __str__(self) -> str:
        p = "no test" if np.isnan(self.p) else f"p = {self.p:.2g}, {self.adjusted:.2g} among {self.size}"
        if self.joint is not None:
            p = f"by an interval of {100 * self.joint.confidence:g} %, {self.size} together"
        against = "" if self.level == 0 else f" against {self.level:g}"
        return f"{self.decision}: {self.estimate}{against} ({p}: {self.family})"

    def to_json(self) -> dict[str, Any]:
        """The decision and what it rests on, as JSON takes it."""
        p, adjusted = (None if np.isnan(value) else value for value in (self.p, self.adjusted))
        found = {
            "effect": self.estimate.to_json(),
            "p": p,
            "adjusted": adjusted,
            "family": self.family,
            "size": self.size,
            "decision": self.decision,
        }
        stated = {"level": self.level or None, "joint": self.joint and self.joint.to_json(), "margin": self.margin}
        stated |= {"alpha": None if self.alpha == 0.05 else self.alpha}
        return {**found, **{key: value for key, value in stated.items() if value is not None}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Claim:
        """Read back the `fields` that `to_json` gave."""
        given: dict[str, Any] = {key: np.nan if value is None else value for key, value in fields.items()}
        estimates = {name: Estimate.from_json(given.pop(name)) for name in ("effect", "joint") if name in given}
        del given["decision"]
        return cls(estimates["effect"], given.pop("level", 0.0), joint=estimates.get("joint"), **given)


def from_json(value: Any) -> Any:
    """What `estimate.as_json` wrote, with estimates and claims in place of their fields."""
    if isinstance(value, Mapping):
        if {"estimate", "n_clusters"} <= set(value):
            return Estimate.from_json(value)
        if {"effect", "adjusted"} <= set(value):
            return Claim.from_json(value)
        return {key: from_json(inner) for key, inner in value.items()}
    return [from_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def judge(tests: Mapping[Key, tuple[Estimate, float]], family: str, *, alpha: float = 0.05) -> dict[Key, Claim]:
    """Judge changes together: each is found only if its test survives the adjustment for all of them.

    Parameters
    ----------
    tests : mapping of anything to (change, p)
        Every test that was looked at to say this kind of thing, not only those that came out.
    family : str
        What they have in common, for the reader: "accuracy of 5 arms against dense, greedy and sampled".
    alpha : float in (0, 1)
        The chance, at most, that any true null of the family is called an effect.

    Returns
    -------
    dict
        The same keys, each with its `Claim` about the level 0.

    Raises
    ------
    ValueError
        If a p is outside 0 to 1, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1); got {alpha}")
    adjusted = holm([p for _, p in tests.values()])
    return {
        key: Claim(estimate, 0.0, family, len(tests), p, after, alpha=alpha)
        for (key, (estimate, p)), after in zip(tests.items(), adjusted, strict=True)
    }


def judge_jointly(
    tests: Mapping[Key, tuple[Callable[[float], Estimate], float]], family: str, *, alpha: float = 0.05
) -> dict[Key, Claim]:
    """Judge numbers together by intervals that are wide enough for all of them (Bonferroni), where there is no test.

    Parameters
    ----------
    tests : mapping of anything to (function, level)
        The function takes a confidence and returns the estimate with such an interval.
    family, alpha
        As in `judge`.

    Returns
    -------
    dict
        The same keys, each with its `Claim`: the estimate at ``1 - alpha``, decided at ``1 - alpha / n``.
    """
    return {
        key: Claim(
            make(1 - alpha), level, family, len(tests), joint=make(joint_confidence(len(tests), alpha)), alpha=alpha
        )
        for key, (make, level) in tests.items()
    }  # fmt: skip


def joint_confidence(n: int, alpha: float = 0.05) -> float:
    """The confidence at which several intervals hold together (Bonferroni).

    Parameters
    ----------
    n : int, >= 1
        How many.
    alpha : float in (0, 1)
        The chance, at most, that any of them misses.

    Returns
    -------
    float, ``1 - alpha / n``
    """
    return 1 - alpha / n


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
