"""Scores of the bundled model: accuracy by task and size, what its traces name, and the controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from visionpulse_analysis._util.files import data_folder
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.metrics.statistics import paired_difference, proportion_interval
from visionpulse_analysis.models.families import PromptOptions
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import Pruner, Random
from visionpulse_analysis.testbed.scenes.horizon import reading_horizon
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.scenes.scene import generate
from visionpulse_analysis.testbed.scenes.truth import answer_is_right, score_statements
from visionpulse_analysis.testbed.training.evaluation_set import (
    UNTRAINED_SEED,
    UNTRAINED_SIZES,
    Item,
    build_items,
    read_items,
)
from visionpulse_analysis.traces import Trace

NAMED = ("colour", "shape", "position", "presence")
OTHER_SEED = 40_000_000  # neither evaluation nor training nor study scenes
LIMIT = 160  # tokens; the longest trace of the training distribution at 256 patches is shorter


def evaluation_items() -> list[Item]:
    """The evaluation set that ships with the project."""
    return read_items(data_folder() / "evaluation" / "scenes.jsonl")


def ask_all(
    vlm: VLM,
    items: list[Item],
    task: str,
    *,
    image_of: Callable[[Item], np.ndarray] | None = None,
    **options: Any,
) -> list[Trace]:
    """Decode one task's question of every item (greedy unless ``sample`` is given); unrecorded unless asked for."""
    images = [item.scene.render() if image_of is None else image_of(item) for item in items]
    settings = {"layers": "none", "max_new_tokens": LIMIT, "sample": None, **options}
    return decode(vlm, images, [item.questions[task].text for item in items], **settings)


def right_answers(items: list[Item], task: str, traces: list[Trace]) -> np.ndarray:
    """Whether each trace ends in the exact answer: bool [item]."""
    pairs = zip(items, traces, strict=True)
    return np.array([answer_is_right(item.questions[task], trace.answer) for item, trace in pairs])


def evaluate(
    vlm: VLM,
    items: list[Item] | None = None,
    *,
    cells: int = 8,
    controls: bool = True,
    batch_size: int = 32,
    prompt_options: PromptOptions | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a model on the evaluation set.

    Parameters
    ----------
    items : list of Item, optional
        The shipped set by default.
    cells : int
        The scene size on which the headline numbers and the controls are measured.
    controls : bool
        Also measure noise images, other scenes' images, random 5 % of the patches, the reading horizon, and scenes of
        sizes that were not trained (at most as many of each as there are scenes of the headline size).
    prompt_options : PromptOptions or dict, optional
        Over those that the model was loaded with, as in :func:`decode`.

    Returns
    -------
    dict
        ``tasks``: task -> accuracy, low, high (95 % Wilson), n, mean_tokens (of the traces that
        ended, None without one), and cut_off, how many reached the limit instead. ``sizes``: the same by number of
        patches, and ``untrained`` for sizes that no training scene had. ``named``: share right of the n places where
        traces name colours, shapes, positions and presences, and the Wilson interval (low, high) of the share of the
        scenes whose places are all right. ``control_noise``, ``control_other_scene``: see :func:`image_control`.
        ``control_random_5``: find accuracy dense and with a random 5 % of the patches from the anchor layer on, and
        their paired difference. ``horizon``: see :func:`reading_horizon`.
    """
    items = evaluation_items() if items is None else items
    vlm = vlm.asking(PromptOptions.of(prompt_options).over(vlm.prompt_options))
    main = [item for item in items if item.scene.cells == cells]
    if not main:
        raise ValueError(f"no scene of {cells} x {cells} cells in the evaluation set")
    result: dict[str, Any] = {"model": vlm.name, "weights": vlm.weights_hash, "sizes": {}, "tasks": {}}
    if vlm.prompt_options.to_dict():
        result["prompt_options"] = vlm.prompt_options.to_dict()
    result["main_patches"] = (2 * cells) ** 2
    statements: dict[str, dict[int, list[bool]]] = {name: {} for name in NAMED}
    find_right = np.zeros(0)
    for size in sorted({item.scene.cells for item in items}):
        chosen = [item for item in items if item.scene.cells == size]
        scores = {}
        for task in TASKS:
            traces = ask_all(vlm, chosen, task, batch_size=batch_size)
            right = right_answers(chosen, task, traces)
            scores[task] = _score(right, traces)
            if size == cells:
                find_right = right if task == "find" else find_right
                for item, trace in zip(chosen, traces, strict=True):
                    said = score_statements(item.scene, trace.tokens)
                    for name, by_scene in statements.items():
                        by_scene.setdefault(item.scene.seed, []).extend(getattr(said, name))
        result["sizes"][str((2 * size) ** 2)] = scores
        if size == cells:
            result["tasks"] = scores
    result["named"] = {name: _share_right(by_scene) for name, by_scene in statements.items() if any(by_scene.values())}
    if controls:
        result["control_noise"] = image_control(vlm, main[:200], noise, batch_size=batch_size)
        result["control_other_scene"] = image_control(vlm, main[:200], other_scene, batch_size=batch_size)
        result["control_random_5"] = random_control(vlm, main, find_right, Random(0.05), batch_size=batch_size)
        result["anchor"] = vlm.default_anchor
        result["horizon"] = reading_horizon(vlm, main[:100])
        fewer = {size: min(count, len(main)) for size, count in UNTRAINED_SIZES.items()}
        result["untrained"] = untrained_scores(vlm, fewer, batch_size=batch_size)
    return result


def untrained_scores(vlm: VLM, sizes: dict[int, int], **options: Any) -> dict[str, Any]:
    """Scores on scenes of other sizes (cells per side -> scenes): patches -> task -> as in ``sizes`` of `evaluate`."""
    found: dict[str, Any] = {}
    items = build_items(sizes, UNTRAINED_SEED)
    for size in sizes:
        chosen = [item for item in items if item.scene.cells == size]
        asked = {task: ask_all(vlm, chosen, task, **options) for task in TASKS}
        found[str((2 * size) ** 2)] = {t: _score(right_answers(chosen, t, said), said) for t, said in asked.items()}
    return found


def _score(right: np.ndarray, traces: list[Trace]) -> dict[str, Any]:
    ended = [len(trace.tokens) for trace in traces if trace.meta["finished"]]
    mean = float(np.mean(ended)) if ended else None
    return {**_interval(right), "mean_tokens": mean, "cut_off": len(traces) - len(ended)}


def _interval(right: np.ndarray) -> dict[str, float]:
    interval = proportion_interval(right, unit="scene")
    return {"accuracy": interval.value, "low": interval.low, "high": interval.high, "n": interval.n_values}


def _share_right(by_scene: dict[int, list[bool]]) -> dict[str, float]:
    said = [places for places in by_scene.values() if places]
    whole = proportion_interval(np.array([all(places) for places in said]), unit="scene")
    return {
        "share": float(np.mean(np.concatenate(said))),
        "n": sum(map(len, said)),
        "scenes": len(said),
        "low": whole.low,
        "high": whole.high,
    }


def noise(item: Item) -> np.ndarray:
    """Uniform noise, uint8 [row_px, col_px, 3], of the size of the item's picture."""
    rng = np.random.default_rng([item.scene.seed, 3])
    return rng.integers(0, 256, size=item.scene.render().shape, dtype=np.uint8)


def other_scene(item: Item) -> np.ndarray:
    """The picture of a scene that no question of the set is about, uint8 [row_px, col_px, 3]."""
    return generate(OTHER_SEED + item.scene.seed, item.scene.cells).render()


def image_control(
    vlm: VLM, items: list[Item], image_of: Callable[[Item], np.ndarray], **options: Any
) -> dict[str, Any]:
    """Score every task on pictures that do not show what is asked about.

    Returns
    -------
    dict
        task -> accuracy, low, high, n, ``best_constant_guess`` (accuracy of the best constant answer) and
        ``answered``, the share of traces that end in an answer of the task's form at all.
    """
    result = {}
    for task in TASKS:
        traces = ask_all(vlm, items, task, image_of=image_of, **options)
        answers = [item.questions[task].answer for item in items]
        forms = {tuple(map(len, answer.split())) for answer in answers}
        result[task] = {
            **_interval(right_answers(items, task, traces)),
            "best_constant_guess": max(answers.count(answer) for answer in set(answers)) / len(answers),
            "answered": float(np.mean([tuple(map(len, trace.answer.split())) in forms for trace in traces])),
        }
    return result


def random_control(
    vlm: VLM, items: list[Item], dense_right: np.ndarray, pruner: Pruner, **options: Any
) -> dict[str, Any]:
    """Find accuracy with randomly selected patches from the anchor layer on, paired with dense decoding."""
    right = right_answers(items, "find", ask_all(vlm, items, "find", pruner=pruner, **options))
    change = paired_difference(dense_right.astype(float), right.astype(float))
    return {
        "dense": float(dense_right.mean()),
        "random": float(right.mean()),
        "cost_points": -100 * change.value,
        "low": -100 * change.high,
        "high": -100 * change.low,
        "n": len(items),
    }


def length_told(score: dict[str, Any]) -> str:
    """The mean length of a task's traces that ended, in tokens, and how many were cut off, where one was."""
    mean, cut = score["mean_tokens"], score.get("cut_off", 0)
    return ("none ended" if mean is None else f"{mean:.1f}") + (f" ({cut} cut off)" if cut else "")


def format_report(result: dict[str, Any]) -> str:
    """The result of :func:`evaluate` as text for a terminal."""
    lines = [f"model {result['model']} (weights {result['weights']})", ""]
    for patches, scores in result["sizes"].items():
        for task, s in scores.items():
            lines.append(
                f"{patches:>5} patches  {task:8} {s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}]  n {s['n']}"
                f"  tokens {length_told(s)}"
            )
    for patches, scores in result.get("untrained", {}).items():
        lines += [
            f"{patches:>5} patches, a size that was not trained: {task} {s['accuracy']:.3f} [{s['low']:.3f}, "
            f"{s['high']:.3f}]  n {s['n']}"
            for task, s in scores.items()
        ]
    lines += [f"named right: {k} {v['share']:.3f} of {v['n']}" for k, v in result["named"].items()]
    if "control_noise" in result:
        for shown in ("noise", "other_scene"):
            lines += [
                f"image of {shown.replace('_', ' ')}: {task} {s['accuracy']:.3f} [{s['low']:.3f}, {s['high']:.3f}], "
                f"best constant guess {s['best_constant_guess']:.3f}, answered {s['answered']:.3f}"
                for task, s in result[f"control_{shown}"].items()
            ]
        c = result["control_random_5"]
        lines.append(
            f"control_random_5 (from layer {result['anchor']}): find {c['dense']:.3f} dense, {c['random']:.3f} random; "
            f"costs {c['cost_points']:.1f} points [{c['low']:.1f}, {c['high']:.1f}]"
        )
        lines += [f"horizon, {k:6} " + " ".join(f"{v:.2f}" for v in values) for k, values in result["horizon"].items()]
    return "\n".join(lines)
