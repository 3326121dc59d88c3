"""The bundled model's card, written from its evaluation and its training state: no number in it is typed by hand."""

from __future__ import annotations

from typing import Any

_TEXT = """# Data

| path | what | origin | licence |
|---|---|---|---|
| `scenes/` | the bundled model, Hugging Face format | trained by `visionpulse train` on generated scenes | Apache-2.0 |
| `scenes/evaluation.json` | its scores | `visionpulse evaluate --json` | Apache-2.0 |
| `evaluation/scenes.jsonl` | the fixed evaluation set, sha256 `{sha256}` | generated; seeds disjoint from training | Apache-2.0 |

# Model card: scenes

A small vision-language reasoner of the genuine `Qwen3VLForConditionalGeneration` architecture, trained from nothing on generated
scenes. It is a microscope slide, not a substitute for a large model: it exists so that every notebook runs live on two cores, and so
that for each token of a trace it is known which object it is about.

## Task

Scenes are square grids of 4 x 4 to 8 x 8 cells (64 to 256 visual tokens; the generator goes to 16 x 16) with coloured shapes, {objects}.
Three questions: *find* ("where is the red circle ?"), *compare* ("is the red circle left of the blue star ?"), *count* ("how many blue
shapes ?"). The model thinks aloud, inspecting objects by similarity to what it looks for, and then answers.

## Training

{training}

## Scores

Greedy decoding, exact answer, 95 % Wilson intervals, on the shipped evaluation set.

| visual tokens | task | accuracy | interval | scenes | mean tokens of a trace |
|---|---|---|---|---|---|
{scores}

What the traces name at {main} visual tokens, where the scene determines it:

| named | right | places |
|---|---|---|
{named}

## Controls

| image replaced by noise | accuracy | interval | best constant guess |
|---|---|---|---|
{noise}

Keeping a random 5 % of the patches from the default anchor (layer {anchor}) on costs {cost:.1f} points of *find* accuracy
[{low:.1f}, {high:.1f}]: {dense:.3f} dense, {random:.3f} random. So evidence is still read above the anchor.

Where the model reads the image: accuracy of the words it reads off the image when text is cut off from it from layer *a* on
(true traces fed in; the last column is uncut). The curve is drawn in notebook 05.

| word | {layers} |
|---|{rules}|
{horizon}

## Limits

Its verdicts are its weak spot: in a comparison it finds both objects and says which way they lie, but whether that is what was asked
(the last yes or no) it has hardly begun to learn, as the scores show. It knows {words} words, eight colours, six shapes and one kind of background, and nothing else; a photograph means nothing to it. Word
order outside the three questions is out of its range. Weights: {size:.1f} MB, {parameters:,} parameters, hash `{weights}`.
"""


def model_card(evaluation: dict[str, Any], facts: dict[str, Any]) -> str:
    """Write ``data/README.md``.

    Parameters
    ----------
    evaluation : the result of ``evaluate`` with controls
    facts : sha256, objects, training (prose), words, size (MB), parameters
    """
    scores = [
        f"| {patches} | {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['n']} | {s['mean_tokens']:.1f} |"
        for patches, tasks in evaluation["sizes"].items()
        for task, s in tasks.items()
    ]
    noise = [
        f"| {task} | {s['accuracy']:.3f} | [{s['low']:.3f}, {s['high']:.3f}] | {s['best_constant_guess']:.3f} |"
        for task, s in evaluation["control_noise"].items()
    ]
    horizon = evaluation["horizon"]
    depth = len(next(iter(horizon.values())))
    control = evaluation["control_random_5"]
    return _TEXT.format(
        **facts,
        scores="\n".join(scores),
        named="\n".join(f"| {k} | {v['share']:.3f} | {v['n']} |" for k, v in evaluation["named"].items()),
        noise="\n".join(noise),
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
