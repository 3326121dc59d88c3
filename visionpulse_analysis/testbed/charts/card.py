"""The card of the model of charts, from its stored scores and training."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.testbed.training.evaluation import length_told

_TEXT = """# Model card: charts

A reasoner of the same architecture as that of scenes, over pictures that are read, thought about and got wrong: charts
of bars, lines and points, {sizes} visual tokens in training, with nine kinds of questions. Trained for {steps:,} steps
and {hours:.1f} hours of the wall (seed {seed}, {threads} CPU thread beside other work), stages {stages}; {finished}
Default anchor: layer {anchor}.

Greedy decoding, exact answer, 95 % Wilson intervals, on charts that no training saw.

| visual tokens | task | accuracy | interval | charts | mean tokens of a trace |
|---|---|---|---|---|---|
{scores}

Where the picture makes a question hard (by its truth; a question may have several reasons), all tasks together:

| visual tokens | reason | accuracy | interval | questions |
|---|---|---|---|---|
{reasons}

The first word of wrong answers that the picture contradicts, by its kind:

| visual tokens | wrong answers |
|---|---|
{misread}
"""


def charts_card(evaluation: dict[str, Any], training: dict[str, Any]) -> str:
    """The part of ``data/README.md`` about charts.

    Parameters
    ----------
    evaluation : the result of `charts.evaluation.evaluate`
    training : ``training.json``
    """
    plan = training["plan"]
    sides = sorted({int(side) for stage in plan for side in stage["sizes"]})

    def row(*cells: Any) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    def scored(by_size: dict[str, Any], ending: Any) -> str:
        return "\n".join(
            row(patches, name, f"{s['accuracy']:.3f}", f"[{s['low']:.3f}, {s['high']:.3f}]", s["n"], *ending(s))
            for patches, scores in by_size.items()
            for name, s in scores.items()
        )

    return _TEXT.format(
        sizes=", ".join(str(side**2) for side in sides),
        steps=training["step"],
        hours=training["seconds"] / 3600,
        seed=training["seed"],
        threads=training["threads"],
        stages=", ".join(f"*{stage['name']}*" for stage in plan),
        finished="its plan ended."
        if training["stage"] >= len(plan)
        else f"it stands {training['step_in_stage']:,} of {plan[training['stage']]['steps']:,} steps into "
        f"*{plan[training['stage']]['name']}*.",
        anchor=evaluation["anchor"],
        scores=scored(evaluation["sizes"], lambda s: [length_told(s)]),
        reasons=scored(evaluation["reasons"], lambda s: []),
        misread="\n".join(
            row(patches, ", ".join(f"{kind} {count}" for kind, count in kinds.items()) or "none")
            for patches, kinds in evaluation["first_misread"].items()
        ),
    )
