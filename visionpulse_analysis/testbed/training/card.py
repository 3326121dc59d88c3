"""The bundled model's card: every number of its training and its scores is one that is stored or set in code."""

from __future__ import annotations

from typing import Any

from visionpulse_analysis.metrics.statistics import wilson
from visionpulse_analysis.testbed.scenes.scene import MAX_CELLS
from visionpulse_analysis.testbed.training.evaluation import length_told
from visionpulse_analysis.testbed.training.evaluation_set import SIZES, VALIDATION_SEED
from visionpulse_analysis.testbed.training.plan import (
    FIRST_TRAINING_SEED,
    FIRST_VISION_SEED,
    TRAINED_CELLS,
    VISION_STEPS,
)

_TEXT = """# Data

| path | what | origin | licence |
|---|---|---|---|
| `scenes/` | the bundled model, Hugging Face format; sha256 of its weights `{weights_sha256}` | trained by `visionpulse train` on generated scenes | Apache-2.0 |
| `scenes/training.json` | how it was trained | `visionpulse train --publish data/scenes` | Apache-2.0 |
| `scenes/evaluation.json` | its scores | `visionpulse evaluate --card`, which also writes this page | Apache-2.0 |
| `evaluation/scenes.jsonl` | the fixed evaluation set, sha256 `{sha256}` | generated; seeds disjoint from training | Apache-2.0 |
| `charts/` | the bundled model of charts, `training.json`, the curves of its training, `evaluation.json` (`visionpulse evaluate --model charts --card`) and what a copy is trained on with; what was learned by trying is in its `README.md` | trained by `visionpulse train --world charts` on generated charts | Apache-2.0 |
| `heads/` | small modules trained beside `scenes/`, each with its losses, seed, seconds and scores in `training.json` | `visionpulse train --head NAME`, on generated scenes of seeds of their own | Apache-2.0 |
| `vica/`, `yopo/` | the language models of two twins of `scenes/`, tuned under the patterns of ViCA and YOPO, in bfloat16, with their steps, seed, seconds and scores in `training.json` | `visionpulse train --twin NAME --publish DIR`, on generated scenes | Apache-2.0 |
| `diffusion/` | a masked-diffusion twin of `scenes/`: its language model, and in `training.json` how it was adapted and its scores | `visionpulse train --twin diffusion --publish data/diffusion`, on generated scenes of seeds of their own | Apache-2.0 |
| `example.png` | a scene for the README's examples | generated: that of notebook 00 | Apache-2.0 |
| `benchmarks/` | results of `visionpulse bench ... --save`, each with command, machine, versions and date | measured | Apache-2.0 |

# Model card: scenes

A small vision-language reasoner of the genuine `Qwen3VLForConditionalGeneration` architecture, trained from nothing on generated
scenes. It is a microscope slide, not a substitute for a large model: it exists so that every notebook runs live on two cores, and so
that for each token of a trace it is known which object it is about.

## Task

Scenes are square grids of cells with coloured shapes, no two of them alike. It was trained on {trained} cells, and on no
other size (the generator goes to {most} x {most}): see the scores.
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

Sizes that no training scene had:

| visual tokens | task | accuracy | interval | scenes | mean tokens of a trace |
|---|---|---|---|---|---|
{untrained}

{about_sizes}

What the traces name at {main} visual tokens, where the scene determines it:

| named | right | places | scenes | all places of a scene right |
|---|---|---|---|---|
{named}

## Controls

| image replaced by | task | accuracy | interval | best constant guess | gave an answer |
|---|---|---|---|---|---|
{replaced}

{from_image} A trace that does not find what it is asked about may end without an answer (last column).

Keeping a random 5 % of the patches from the default anchor (layer {anchor}) on costs {cost:.1f} points of *find* accuracy
[{low:.1f}, {high:.1f}]: {dense:.3f} dense, {random:.3f} random. {above_anchor}

Where the model reads the image: accuracy of the words it reads off the image when text is cut off from it from layer *a* on
(true traces fed in; the last column is uncut). The curve is drawn in notebook 05.

| word | {layers} |
|---|{rules}|
{horizon}

## Limits

It knows {words} words, eight colours, six shapes and one kind of background, and nothing else; a photograph means nothing to it. Word
order outside the three questions is out of its range. Weights: {megabytes:.1f} MB, {parameters:,} parameters, hash `{weights}`.
"""

_WIDER = "by intervals that hold for all scores of this page together"
RANDOM = "control_random_5"
CONTROLS = {"noise": "control_noise", "another scene": "control_other_scene"}  # shown in place of the image -> scores


def _stage_row(stage: dict[str, Any]) -> str:
    reached = [
        f"{stage[k]:.3f}" if k in stage else "" for k in ("row", "column", "verdict", "find", "compare", "count")
    ]
    return f"| {stage['stage']} | {stage['step']:,} | " + " | ".join(reached) + " |"


def _scores(by_patches: dict[str, Any]) -> list[str]:
    return [
        f"| {patches} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['n']} | {length_told(s)} |"
        for patches, tasks in by_patches.items()
        for task, s in tasks.items()
    ]


def together(evaluation: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Intervals of every score that a sentence compares, wide enough that all of them hold in 95 % of cases.

    Each has its share of the 5 % (Bonferroni): two that lie apart are then apart, however many are compared.

    Returns
    -------
    dict
        Number of visual tokens, "tasks" or a control -> task -> lower and upper end, 0 to 1.
    """
    blind = {name: evaluation[name] for name in CONTROLS.values()}
    random = evaluation[RANDOM]
    random = {shown: {"accuracy": random[shown], "n": random["n"]} for shown in ("dense", "random")}
    scored = {
        **evaluation["sizes"], **evaluation["untrained"], "tasks": evaluation["tasks"], **blind, RANDOM: random
    }  # fmt: skip
    confidence = 1 - 0.05 / sum(map(len, scored.values()))
    return {
        where: {task: wilson(s["accuracy"], s["n"], confidence) for task, s in tasks.items()}
        for where, tasks in scored.items()
    }


def about_sizes(evaluation: dict[str, Any]) -> str:
    """On which tasks and untrained sizes it is less accurate than on every trained size, by intervals of `together`."""
    ends = together(evaluation)
    lowest = {task: min(ends[patches][task][0] for patches in evaluation["sizes"]) for task in evaluation["tasks"]}
    worse = [
        f"*{task}* at {patches}"
        for patches, tasks in evaluation["untrained"].items()
        for task in tasks
        if ends[patches][task][1] < lowest[task]
    ]
    if not worse:
        return f"On none of them is it shown to be less accurate than on the sizes that it was trained on ({_WIDER})."
    found = ", ".join(worse)
    return f"Less accurate than on every size that it was trained on ({_WIDER}): {found} visual tokens."


def from_image(evaluation: dict[str, Any]) -> str:
    """In which tasks the right image is needed, and whether a wrong one is worth more than a constant guess."""
    ends = together(evaluation)
    needed = [
        f"*{task}*"
        for task in evaluation["tasks"]
        if ends["tasks"][task][0] > max(ends[name][task][1] for name in CONTROLS.values())
    ]
    above = [
        f"*{task}* with {shown}"
        for shown, name in CONTROLS.items()
        for task, s in evaluation[name].items()
        if ends[name][task][0] > s["best_constant_guess"]
    ]
    own = f"its own image is shown to be worth more than either of these in {', '.join(needed) or 'no task'}"
    guessed = (
        f"in {', '.join(above)} more is right than the best constant guess would have got"
        if above
        else "in no task it is shown to be right more often without it than the best constant guess"
    )
    return f"By intervals that hold for all scores of this page together, {own}; {guessed}."


def above_anchor(evaluation: dict[str, Any]) -> str:
    """Whether evidence is read above the anchor: random patches are right less often, by intervals of `together`."""
    ends = together(evaluation)[RANDOM]
    if ends["random"][1] < ends["dense"][0]:
        return f"So evidence is still read above the anchor ({_WIDER})."
    return f"That evidence is still read above the anchor is not shown by this ({_WIDER})."


def model_card(evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """Write ``data/README.md``.

    Parameters
    ----------
    evaluation : the result of ``evaluate`` with controls
    facts : sha256 of the evaluation set and of the weights, training (``training.json``), words, megabytes, parameters
    """
    replaced = [
        f"| {shown} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['best_constant_guess']:.3f} | {s['answered']:.3f} |"
        for shown, control in CONTROLS.items()
        for task, s in evaluation[control].items()
    ]
    named = [
        f"| {name} | {s['share']:.3f} | {s['n']} | {s['scenes']} | [{s['low']:.3f}, {s['high']:.3f}] |"
        for name, s in evaluation["named"].items()
    ]
    horizon = evaluation["horizon"]
    depth = len(next(iter(horizon.values())))
    control = evaluation[RANDOM]
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
        trained=", ".join(f"{cells} x {cells}" for cells in TRAINED_CELLS),
        most=MAX_CELLS,
        scores="\n".join(_scores(evaluation["sizes"])),
        untrained="\n".join(_scores(evaluation["untrained"])),
        about_sizes=about_sizes(evaluation),
        from_image=from_image(evaluation),
        above_anchor=above_anchor(evaluation),
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
