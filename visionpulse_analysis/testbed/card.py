"""The bundled model's card: every number of its training and its scores is one that is stored or set in code."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.testbed.evaluation_set import SIZES, VALIDATION_SEED
from visionpulse_analysis.testbed.plan import FIRST_TRAINING_SEED, FIRST_VISION_SEED, VISION_STEPS

_TEXT = """# Data

| path | what | origin | licence |
|---|---|---|---|
| `scenes/` | the bundled model, Hugging Face format; sha256 of its weights `{weights_sha256}` | trained by `visionpulse train` on generated scenes | Apache-2.0 |
| `scenes/training.json` | how it was trained | `visionpulse train --publish data/scenes` | Apache-2.0 |
| `scenes/evaluation.json` | its scores | `visionpulse evaluate --card`, which also writes this page | Apache-2.0 |
| `evaluation/scenes.jsonl` | the fixed evaluation set, sha256 `{sha256}` | generated; seeds disjoint from training | Apache-2.0 |
| `example.png` | a scene for the README's examples | generated: that of notebook 00 | Apache-2.0 |
| `benchmarks/` | results of `visionpulse bench ... --save`, each with command, machine, versions and date | measured | Apache-2.0 |

# Model card: scenes

A small vision-language reasoner of the genuine `Qwen3VLForConditionalGeneration` architecture, trained from nothing on generated
scenes. It is a microscope slide, not a substitute for a large model: it exists so that every notebook runs live on two cores, and so
that for each token of a trace it is known which object it is about.

## Task

Scenes are square grids of 4 x 4 to 8 x 8 cells (64 to 256 visual tokens; the generator goes to 16 x 16) with coloured shapes, no two of them alike.
Three questions: *find* ("where is the red circle ?"), *compare* ("is the red circle left of the blue star ?"), *count* ("how many blue
shapes ?"). The model thinks aloud and then answers. To find an object it inspects one after another, those like it first; to count it
checks one by one what could be there: "check blue circle r0 c3 , 1 . check blue star none ."

## Training

`visionpulse train` (Muon and AdamW, averaged weights, seed {seed}): {vision_steps} steps in which the vision tower alone learns to
label patches, then {steps:,} steps of the whole model, {minutes:.0f} minutes in all on {device} ({threads}; {machine}).

| stage | until step | row | column | verdict | find | compare | count |
|---|---|---|---|---|---|---|---|
{stages}

Teacher-forced accuracy at the end of each stage, running mean over training batches. The model first learns to describe scenes, then to
answer on growing scenes. Some batches are drills: conversations without their image, with a loss only on the words that the text determines,
meant for the verdicts (is what was seen what was asked?).
Training scenes have seeds from {first_training:,}, evaluation scenes below {evaluated:,}, validation scenes from {first_validation:,}.

The default anchor, layer {anchor}, is the last layer before most of the reading: at most half of the accuracy of rows and columns is reached when
the layers from there on do not see the image (measured on validation scenes; the rule of the paper, the middle of the depth, would give layer {middle}).

## Scores

Greedy decoding, exact answer, 95 % Wilson intervals, on the shipped evaluation set.

| visual tokens | task | accuracy | interval | scenes | mean tokens of a trace |
|---|---|---|---|---|---|
{scores}

What the traces name at {main} visual tokens, where the scene determines it:

| named | right | places | scenes | all places of a scene right |
|---|---|---|---|---|
{named}

## Controls

| image replaced by | task | accuracy | interval | best constant guess | gave an answer |
|---|---|---|---|---|---|
{replaced}

So the answers come from the image. A wrong one leaves no task above a constant guess, and mostly below it, because a trace that
does not find what it is asked about may end without an answer (last column).

Keeping a random 5 % of the patches from the default anchor (layer {anchor}) on costs {cost:.1f} points of *find* accuracy
[{low:.1f}, {high:.1f}]: {dense:.3f} dense, {random:.3f} random. So evidence is still read above the anchor.

Where the model reads the image: accuracy of the words it reads off the image when text is cut off from it from layer *a* on
(true traces fed in; the last column is uncut). The curve is drawn in notebook 05.

| word | {layers} |
|---|{rules}|
{horizon}

## Limits

It knows {words} words, eight colours, six shapes and one kind of background, and nothing else; a photograph means nothing to it. Word
order outside the three questions is out of its range. Weights: {megabytes:.1f} MB, {parameters:,} parameters, hash `{weights}`.
"""


def _stage_row(stage: dict[str, Any]) -> str:
    reached = [
        f"{stage[k]:.3f}" if k in stage else "" for k in ("row", "column", "verdict", "find", "compare", "count")
    ]
    return f"| {stage['stage']} | {stage['step']:,} | " + " | ".join(reached) + " |"


def model_card(evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """Write ``data/README.md``.

    Parameters
    ----------
    evaluation : the result of ``evaluate`` with controls
    facts : sha256 of the evaluation set and of the weights, training (``training.json``), words, megabytes, parameters
    """
    scores = [
        f"| {patches} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['n']} | {s['mean_tokens']:.1f} |"
        for patches, tasks in evaluation["sizes"].items()
        for task, s in tasks.items()
    ]
    replaced = [
        f"| {shown} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['best_constant_guess']:.3f} | {s['answered']:.3f} |"
        for shown, control in (("noise", "control_noise"), ("another scene", "control_other_scene"))
        for task, s in evaluation[control].items()
    ]
    named = [
        f"| {name} | {s['share']:.3f} | {s['n']} | {s['scenes']} | [{s['low']:.3f}, {s['high']:.3f}] |"
        for name, s in evaluation["named"].items()
    ]
    horizon = evaluation["horizon"]
    depth = len(next(iter(horizon.values())))
    control = evaluation["control_random_5"]
    training = facts["training"]
    return _TEXT.format(
        **{name: facts[name] for name in ("sha256", "weights_sha256", "words", "megabytes", "parameters")},
        **{name: training[name] for name in ("seed", "machine")},
        vision_steps=VISION_STEPS,
        first_training=min(FIRST_VISION_SEED, FIRST_TRAINING_SEED),
        evaluated=sum(SIZES.values()),
        first_validation=VALIDATION_SEED,
        steps=training["step"],
        minutes=training["seconds"] / 60,
        device="a CPU" if training["device"] == "cpu" else training["device"],
        threads=f"{training['threads']} thread" + "s" * (training["threads"] != 1),
        stages="\n".join(_stage_row(stage) for stage in training["log"]),
        middle=(depth - 1) // 2 - 1,
        scores="\n".join(scores),
        named="\n".join(named),
        replaced="\n".join(replaced),
        main=evaluation["main_patches"],
        anchor=evaluation["anchor"],
        cost=control["cost_points"],
        low=control["low"],
        high=control["high"],
        dense=control["dense"],
        random=control["random"],
        layers=" | ".join([*(f"a = {layer}" for layer in range(depth - 1)), "uncut"]),
        rules="|".join(["---"] * depth),
        horizon="\n".join(f"| {kind} | " + " | ".join(f"{v:.2f}" for v in row) + " |" for kind, row in horizon.items()),
        weights=evaluation["weights"],
    )
