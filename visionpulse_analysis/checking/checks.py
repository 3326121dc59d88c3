"""The self-checks, each a few forward passes of the user's own model on a small picture."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import get_args

import numpy as np
import torch

from visionpulse_analysis.attending import Execution
from visionpulse_analysis.attention import active_routes
from visionpulse_analysis.checking.forward import RowsTimesValues, forced
from visionpulse_analysis.checking.report import Finding, Report
from visionpulse_analysis.checking.vision import brighten, changes
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners import VisionPulse

SIDE, STEPS, QUESTION, SHORT = 112, 4, "What is in the picture, and where is it?", "What?"


def check(vlm: VLM) -> Report:
    """Check on a loaded model that what is recorded and pruned is exact.

    A few short decodes of a small picture of noise: seconds on a small model, a minute or so on a large one without a
    GPU. The model is left as it was. Allowed deviations grow with the rounding of the model's dtype, and each finding
    states what was measured and what is allowed.

    Parameters
    ----------
    vlm : VLM

    Returns
    -------
    Report
        True when every check holds; prints as text, shows as a table in a notebook.
    """
    start, before = time.perf_counter(), _state(vlm)
    checks: dict[str, Callable[[VLM], Finding]] = {
        "row times values is the kernel's output": _rows_times_values,
        "rows are those of eager attention": _rows_of_eager,
        "recording changes no logit": _recording,
        "masked equals gathered": _gathered,
        "keeping every patch equals dense": _keep_all,
        "a bright cell reaches its patch": _geometry,
        "left padding changes nothing": _padding,
    }
    findings = [_run(name, one, vlm) for name, one in checks.items()]
    findings.append(Finding("the model is as it was", _state(vlm) == before))
    about = (
        f"{type(vlm.model).__name__}, {str(vlm.model.dtype).removeprefix('torch.')} on {vlm.model.device}; "
        f"torch {version('torch')}, transformers {version('transformers')}, python {platform.python_version()}"
    )
    return Report(vlm.name, about, time.perf_counter() - start, tuple(findings))


def _run(name: str, one: Callable[[VLM], Finding], vlm: VLM) -> Finding:
    try:
        found = one(vlm)
    except Exception as error:  # a report with one failed line says more than no report
        return Finding(name, False, note=f"{type(error).__name__}: {error}")
    return Finding(name, found.passed, found.measured, found.allowed, found.note)


def _state(vlm: VLM) -> tuple:
    """What a check could leave behind."""
    config = vlm.model.config
    hung = (hook for m in vlm.model.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
    # The library hangs up hooks of its own at first use, which stay.
    hooks = sum(str(getattr(hook, "__module__", "")).startswith("visionpulse_analysis") for hook in hung)
    parts = (config, config.get_text_config(), config.vision_config)
    return [part._attn_implementation for part in parts], hooks, active_routes(vlm.model), vlm.model.training


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _within(measured: float, allowed: float, note: str = "") -> Finding:
    return Finding("", bool(measured <= allowed), float(measured), allowed, note)


def _rounding(vlm: VLM, times: float) -> float:
    """Some units of rounding of the model's dtype; of float32 1e-6 each, for sums in another order.

    Measured on the tiny models of the tests: half a unit to one for one layer's output, up to 2.4 through all layers.
    """
    return times * max(torch.finfo(vlm.model.dtype).eps, 1e-6)


def _answer(vlm: VLM) -> list[int]:
    """Fixed next tokens, so that runs are compared on the same sequence; not the model's own, which may end."""
    return vlm.tokenizer(QUESTION, add_special_tokens=False).input_ids[:STEPS]


def _rows_times_values(vlm: VLM) -> Finding:
    witness = RowsTimesValues()
    forced(vlm, vlm.prompt(_noise(), QUESTION), _answer(vlm), witness=witness)
    missing = set(range(vlm.n_layers)) - witness.layers
    if missing:
        return Finding("", False, note=f"layers {sorted(missing)} never called the attention function")
    return _within(witness.worst, _rounding(vlm, 4), "relative, worst head of all layers")


@torch.inference_mode()
def _rows_of_eager(vlm: VLM) -> Finding:
    prompt, answer = vlm.prompt(_noise(), QUESTION), _answer(vlm)
    _, recorded = forced(vlm, prompt, answer, layers=range(vlm.n_layers))
    whole = vlm.to_device(vlm.family.batch([prompt.answered(torch.tensor(answer))], padding=0))
    position = vlm.family.positions(vlm.model, whole)
    before = vlm.model.config.get_text_config()._attn_implementation
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        out = vlm.model(**whole, position_ids=position, use_cache=False, output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": before})
    places = torch.from_numpy(prompt.grid.position.copy())
    rows = torch.stack([layer[0].float().cpu() for layer in out.attentions])  # [layer, head, query, key]
    eager = rows[:, :, len(prompt.ids) - 1 :][..., places].mean(dim=1).transpose(0, 1)  # [step, layer, patch]
    # Recorded rows are stored as float16, so half a unit of its last place comes on top.
    worst = float((recorded - eager).abs().max() / eager.max())
    return _within(worst, _rounding(vlm, 10) + 2**-11, "relative to the largest weight, all layers and steps")


def _recording(vlm: VLM) -> Finding:
    prompt, answer = vlm.prompt(_noise(), QUESTION), _answer(vlm)
    plain, recorded = (forced(vlm, prompt, answer, layers=range(n))[0] for n in (0, vlm.n_layers))
    if not bool(torch.isfinite(plain).all()):
        return Finding("", False, note="the model's own logits are not finite")
    return _within(float((plain - recorded).abs().max()), 0)


def _gathered(vlm: VLM) -> Finding:
    prompt, answer, pruner = vlm.prompt(_noise(), QUESTION), _answer(vlm), VisionPulse(budget=0.25)
    ways = (forced(vlm, prompt, answer, pruner=pruner, execution=way)[0] for way in get_args(Execution))
    masked, gathered = (torch.log_softmax(logits, dim=1) for logits in ways)
    return _within(float((masked - gathered).abs().max()), _rounding(vlm, 10), "log probabilities, all words and steps")


def _keep_all(vlm: VLM) -> Finding:
    dense = decode(vlm, _noise(), QUESTION, max_new_tokens=STEPS)
    kept = decode(vlm, _noise(), QUESTION, max_new_tokens=STEPS, pruner=VisionPulse(budget=1.0))
    if dense.tokens != kept.tokens:
        return Finding("", False, note=f"tokens {dense.tokens} and {kept.tokens}")
    return _within(float(np.abs(dense.logprobs - kept.logprobs).max()), 0)


def _geometry(vlm: VLM) -> Finding:
    grey = np.full((SIDE, 2 * SIDE, 3), 60, np.uint8)
    before = vlm.prompt(grey, SHORT)
    grid = before.grid
    tried = 0
    for image, frame, *_ in np.asarray(grid.frames).tolist():
        here = np.flatnonzero((grid.image == image) & (grid.frame == frame))
        inside = (grid.box[here, :2] >= 0).all(1) & (grid.box[here, 2:] <= [grey.shape[1], grey.shape[0]]).all(1)
        for patch in np.random.default_rng(0).choice(here[inside], size=min(4, inside.sum()), replace=False):
            change = changes(vlm, before, vlm.prompt(brighten(grey, grid.box[patch]), SHORT))
            brightest = here[change[grid.position[here]].argmax()]
            tried += 1
            if brightest != patch:
                cells = [(int(grid.row[i]), int(grid.col[i])) for i in (patch, brightest)]
                return Finding("", False, note=f"cell {cells[0]} of frame {frame} changed cell {cells[1]} most")
    return Finding("", tried > 0, note=f"{tried} cells tried")


def _padding(vlm: VLM) -> Finding:
    pictures, questions = [_noise(), _noise()], [QUESTION, SHORT]
    batch = decode(vlm, pictures, questions, max_new_tokens=1)
    alone = [decode(vlm, *one, max_new_tokens=1) for one in zip(pictures, questions, strict=True)]
    pairs = zip(batch, alone, strict=True)
    gap = max(float(np.abs(a.mass.values - b.mass.values).max()) for a, b in pairs)
    return _within(gap, _rounding(vlm, 10), "image mass, all layers")
