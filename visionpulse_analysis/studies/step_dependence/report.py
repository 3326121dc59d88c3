"""The answers of step dependence in sentences, every number computed."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.studies.step_dependence.fixed_set_report import about_sets
from visionpulse_analysis.studies.step_dependence.fixed_sets import FixedSets
from visionpulse_analysis.studies.step_dependence.measure import StepDependence
from visionpulse_analysis.studies.step_dependence.object_attention import ObjectAttention


def step_findings(study: StepDependence, truth: ObjectAttention | None, fixed: FixedSets | None = None) -> str:
    """Say what was found, as Markdown.

    Without ``truth`` the sentences about named objects are left out, and say so; without ``fixed`` those on fixed sets.
    """
    words = list(study.words)
    top = f"{100 * study.fraction:g} %"
    lines = [
        f"Over {study.n_samples} samples and {study.n_steps:,} steps, at layer {study.layer}:",
        f"- On average {study.mean_mass:.1%} of the attention goes to the image. {study.text_share:.1%} of the "
        f"steps are text-dominated (image mass below {study.text_below:g}); half of a trace's image mass lies in "
        f"{study.half_mass_share:.1%} of its steps (50 % if all steps were alike).",
    ]
    if words:
        lines.append(
            f"- Most visual: {_words(words[:4])}. Most text-bound: {_words(words[-4:][::-1])} (mean image mass of the "
            "steps that produce the word)."
        )
    lines += [
        f"- The critical sets (top {top}) of neighbouring steps overlap by {study.lag_overlap[0]:.3f}, of "
        f"prefill and later steps by {study.later_overlap:.3f} (Jaccard index; random sets: "
        f"{study.null_overlap:.3f}).",
        f"- The prefill's top {top} holds {study.later_coverage:.1%} of a later step's image mass, the step's own "
        f"top {top} {study.later_own:.1%}, random sets {study.null_coverage:.1%}.",
    ]
    if truth is None:
        lines.append("- What these traces name is not known, so nothing can be said about named objects.")
    else:
        other = f"{truth.other_named:.1%} on another one, mean; " if truth.other_named else ""
        lines.append(
            f"- Where a step names an object of the scene, {truth.share_named:.1%} of its image mass lies on that "
            f"object ({other}{truth.chance:.1%} if spread evenly), and the "
            f"patch with the most attention is on it in {truth.hit_named:.1%} of the steps. {truth.unknown:.0%} "
            "of the naming steps name something that is not in the scene and are left out."
        )
        lines += _by_kind(truth)
    if fixed is not None:
        lines.append(
            "- The step's own set holds the most mass by construction, so mass cannot tell whether one set would do. "
            + about_sets(fixed.numbers())
        )
    return "\n".join(lines)


def _by_kind(truth: ObjectAttention) -> list[str]:
    """At which kinds of token the named object is shown to draw more than another one: intervals that lie apart."""
    more = [kind for kind, (named, other) in truth.together.items() if named.low > other.high]
    rest = [kind for kind in truth.together if kind not in more]
    if not truth.together:
        return []
    shown = f"more than another object does at {_words(more)}" if more else "at no kind more than another object does"
    left = f"; at {_words(rest)} that is not shown" if rest and more else ""
    how = "by intervals that lie apart and hold for all kinds together"
    return [f"- By kind of token, and {how}, the named object draws {shown}{left}."]


def step_numbers(
    study: StepDependence, truth: ObjectAttention | None, fixed: FixedSets | None = None
) -> dict[str, Any]:
    """All headline numbers in one mapping, JSON-ready."""
    parts = {"objects": truth, "fixed": fixed}
    return {**study.numbers(), **{name: None if part is None else part.numbers() for name, part in parts.items()}}


def _words(words: list[str]) -> str:
    return ", ".join(f"`{word.strip() or repr(word)}`" for word in words)
