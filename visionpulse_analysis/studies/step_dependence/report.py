"""The answers of step dependence in sentences, every number computed."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.studies.shared.sentences import Finding
from visionpulse_analysis.studies.step_dependence.fixed_set_report import about_sets, conclusions
from visionpulse_analysis.studies.step_dependence.fixed_sets import OWN, PREFILL, FixedSets
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


def finding(numbers: dict[str, Any]) -> Finding:
    n = from_json(numbers)
    fixed, share = n["fixed"], f"{100 * n['fraction']:g} %"
    short = (
        f"The {share} of the patches that prefill attends to most hold {n['later_coverage']:.1%} of a later step's "
        f"image attention; those that the step itself attends to most, {n['later_own']:.1%}."
    )
    if fixed and "unharmed" in fixed["worse"]:
        once, own = (fixed["sets"][name]["unharmed"] for name in (PREFILL, OWN))
        short = (
            f"Of the {fixed['n_needing']:,} steps that need the image, {once:.1%} say the same (within "
            f"{fixed['level']:g} nats) with only the patches that prefill attends to most, {own:.1%} with as many "
            "that the step itself attends to most."
        )
    lines = [
        f"The top {share} of one step and of the next overlap by {n['consecutive_overlap']:.2f} (Jaccard; random sets "
        f"{n['null_overlap']:.3f}); prefill's holds {n['later_coverage']:.1%} of a later step's image mass, the step's "
        f"own {n['later_own']:.1%}."
    ]
    if fixed:
        lines.append(f"Would one set do for a whole trace? {conclusions(numbers['fixed'])}")
    if objects := n["objects"]:
        hits = sorted(objects["hit_by_kind"].items(), key=lambda item: -item[1].value)
        lines.append(
            f"The strongest patch lies on the object that a step names in {objects['hit_named']:.1%} of the steps "
            f"(chance {100 * objects['chance']:.1f} %): {', '.join(f'{kind} {hit:.1%}' for kind, hit in hits)}."
        )
    return Finding(short, " ".join(lines))
