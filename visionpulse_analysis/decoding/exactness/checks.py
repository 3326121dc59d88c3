"""The self-checks, each a few forward passes of the user's own model on a small picture."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import get_args

import numpy as np
import torch
from PIL import Image

from visionpulse_analysis._util.progress import over
from visionpulse_analysis.attention import Execution
from visionpulse_analysis.attention.routing import active_interceptors
from visionpulse_analysis.decoding import decode
from visionpulse_analysis.decoding.exactness.report import Finding, Report
from visionpulse_analysis.decoding.exactness.rounding import OneUnitOff, RowsTimesValues, forced
from visionpulse_analysis.decoding.exactness.vision import brighten, lit
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners import VisionPulse
from visionpulse_analysis.traces.frames import NO_MAP

SIDE, STEPS, QUESTION, SHORT = 112, 4, "What is in the picture, and where is it?", "What?"
CELL = 12  # pixels that a patch is to cover at least where single patches are lit
NOISES = 2  # draws of the noise floor
# Two ways of computing the same thing came out 0.2 to 2 noise floors apart on the tiny models of 24 families in
# float32, bfloat16 and float16, and 0.3 to 0.8 on 30 trained layers of width 576; a planted fault is hundreds away.
FLOORS = 4.0
# An attention kernel stays within one unit of the dtype and a fraction of one of the sum; two leave room for others.
UNITS = 2.0


@dataclass(frozen=True)
class _Floor:
    """How far one unit of rounding in every layer's attention moves this model's results: see `OneUnitOff`.

    logprob : of all words and steps, absolute; row : relative to the largest weight; mass : absolute.
    """

    logprob: float
    row: float
    mass: float


class _Subject:
    """The model under check, and its noise floor, measured when first asked for."""

    def __init__(self, vlm: VLM):
        self.vlm = vlm

    @cached_property
    def floor(self) -> _Floor:
        vlm, prompt, layers = self.vlm, self.vlm.prompt(_noise(), QUESTION), self.vlm.attention_layers
        plain = forced(vlm, prompt, _answer(vlm), layers=layers)
        said = torch.log_softmax(plain.logits, dim=1)
        noisy = [forced(vlm, prompt, _answer(vlm), layers=layers, watcher=OneUnitOff(seed)) for seed in range(NOISES)]
        worst = _Floor(
            max(float((torch.log_softmax(one.logits, dim=1) - said).abs().max()) for one in noisy),
            max(float((one.rows - plain.rows).abs().max() / plain.rows.max()) for one in noisy),
            max(float((one.mass - plain.mass).abs().max()) for one in noisy),
        )
        # What float32 and the stored rows (float16) can tell apart at all: no allowance is smaller.
        single = torch.finfo(torch.float32).eps
        return _Floor(worst.logprob + single * float(said.abs().max()), worst.row + 2**-12, worst.mass + single)


def check(vlm: VLM) -> Report:
    """Check on a loaded model that what is recorded and pruned is exact.

    A few short decodes of a small picture of noise: seconds on a small model, a minute or so on a large one without a
    GPU. The model is left as it was. Each finding states what was measured and what is allowed. What is computed in
    two ways may differ by a few times the noise floor of this very model: what one unit of rounding of its dtype, in
    the attention of every layer, does to its rows and log probabilities.

    Parameters
    ----------
    vlm : VLM

    Returns
    -------
    Report
        True when every check holds; prints as text, shows as a table in a notebook.
    """
    start, before = time.perf_counter(), _state(vlm)
    subject = _Subject(vlm)
    checks: dict[str, Callable[[_Subject], Finding]] = {
        "row times values is the kernel's output": _rows_times_values,
        "rows are those of eager attention": _rows_of_eager,
        "recording changes no logit": _recording,
        "masked equals gathered": _gathered,
        "keeping every patch equals dense": _keep_all,
        "a bright cell reaches its patch": _geometry,
        "left padding changes nothing": _padding,
    }
    if vlm.family.spoken and hasattr(vlm.processor, "apply_chat_template"):
        checks["prompts are the stock processor's"] = _stock
    findings = over(lambda name: _run(name, checks[name], subject), checks, "check", "check")
    findings.append(Finding("the model is as it was", _state(vlm) == before))
    about = (
        f"{type(vlm.model).__name__}, {str(vlm.model.dtype).removeprefix('torch.')} on {vlm.model.device}; "
        f"torch {version('torch')}, transformers {version('transformers')}, python {platform.python_version()}"
    )
    return Report(vlm.name, about, time.perf_counter() - start, tuple(findings))


def _run(name: str, one: Callable[[_Subject], Finding], subject: _Subject) -> Finding:
    try:
        found = one(subject)
    except Exception as error:  # a report with one failed line says more than no report
        return Finding(name, False, note=f"{type(error).__name__}: {error}")
    return Finding(name, found.passed, found.measured, found.allowed, found.note)


def _state(vlm: VLM) -> tuple:
    """What a check could leave behind."""
    config = vlm.model.config
    hung = (hook for m in vlm.model.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
    # The library hangs up hooks of its own at first use, which stay.
    hooks = sum(str(getattr(hook, "__module__", "")).startswith("visionpulse_analysis") for hook in hung)
    named = (getattr(config, name, None) for name in config.sub_configs)
    parts = [config, config.get_text_config(), *(part for part in named if part is not None)]
    return [part._attn_implementation for part in parts], hooks, active_interceptors(vlm.model), vlm.model.training


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _within(measured: float, allowed: float, note: str = "") -> Finding:
    return Finding("", bool(measured <= allowed), float(measured), allowed, note)


def _answer(vlm: VLM) -> list[int]:
    """Fixed next tokens, so that runs are compared on the same sequence; not the model's own, which may end."""
    return vlm.tokenizer(QUESTION, add_special_tokens=False).input_ids[:STEPS]


def _rows_times_values(subject: _Subject) -> Finding:
    vlm, watcher = subject.vlm, RowsTimesValues()
    forced(vlm, vlm.prompt(_noise(), QUESTION), _answer(vlm), watcher=watcher)
    missing = set(vlm.attention_layers) - watcher.layers
    if missing:
        return Finding("", False, note=f"layers {sorted(missing)} never called the attention function")
    return _within(watcher.worst, UNITS, "units of rounding, worst head of all layers")


@torch.inference_mode()
def _rows_of_eager(subject: _Subject) -> Finding:
    vlm = subject.vlm
    prompt, answer = vlm.prompt(_noise(), QUESTION), _answer(vlm)
    recorded = forced(vlm, prompt, answer, layers=vlm.attention_layers).rows
    whole = vlm.to_device(vlm.family.batch([prompt.answered(torch.tensor(answer))], padding=0))
    position = vlm.family.positions(vlm.model, whole)
    before = vlm.model.config.get_text_config()._attn_implementation
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        out = vlm.model(**whole, position_ids=position, use_cache=False, output_attentions=True)
    finally:
        vlm.model.set_attn_implementation({"text_config": before})
    places = torch.from_numpy(prompt.grid.position.copy())
    given = [layer for layer in out.attentions if layer is not None]  # none of layers without attention
    rows = torch.stack([layer[0].float().cpu() for layer in given])  # [layer, head, query, key]
    eager = rows[:, :, len(prompt.ids) - 1 :][..., places].mean(dim=1).transpose(0, 1)  # [step, layer, patch]
    worst = float((recorded - eager).abs().max() / eager.max())
    return _within(worst, FLOORS * subject.floor.row, "relative to the largest weight, all layers and steps")


def _recording(subject: _Subject) -> Finding:
    vlm = subject.vlm
    prompt, answer = vlm.prompt(_noise(), QUESTION), _answer(vlm)
    plain, recorded = (forced(vlm, prompt, answer, layers=layers).logits for layers in ([], vlm.attention_layers))
    if not bool(torch.isfinite(plain).all()):
        return Finding("", False, note="the model's own logits are not finite")
    return _within(float((plain - recorded).abs().max()), 0)


def _gathered(subject: _Subject) -> Finding:
    vlm, pruner = subject.vlm, VisionPulse(budget=0.25)
    prompt, answer = vlm.prompt(_noise(), QUESTION), _answer(vlm)
    watcher = RowsTimesValues()
    masked, gathered = (
        torch.log_softmax(forced(vlm, prompt, answer, pruner=pruner, execution=way, watcher=watcher).logits, dim=1)
        for way in get_args(Execution)
    )
    # Through many layers in a half precision, rounding moves the words as far as a wrong key would; each layer's own
    # output tells them apart.
    apart, allowed = float((masked - gathered).abs().max()), FLOORS * subject.floor.logprob
    note = f"units of rounding, worst head of all layers; log probabilities {apart:.2g} (at most {allowed:.1g})"
    found = _within(watcher.worst, UNITS, note)
    return replace(found, passed=found.passed and apart <= allowed)


def _keep_all(subject: _Subject) -> Finding:
    vlm = subject.vlm
    dense = decode(vlm, _noise(), QUESTION, max_new_tokens=STEPS, sample=None)
    kept = decode(vlm, _noise(), QUESTION, max_new_tokens=STEPS, sample=None, pruner=VisionPulse(budget=1.0))
    if dense.tokens != kept.tokens:
        return Finding("", False, note=f"tokens {dense.tokens} and {kept.tokens}")
    return _within(float(np.abs(dense.logprobs - kept.logprobs).max()), 0)


def _geometry(subject: _Subject) -> Finding:
    vlm = subject.vlm
    grey, before = _grey(vlm)
    if before.map.startswith(NO_MAP):
        return Finding("", True, note=before.map)
    grid, bright = before.grid, vlm.prompt(np.full_like(grey, 255), SHORT)
    tried = 0
    for image, frame, *_ in np.asarray(grid.frames).tolist():
        here = np.flatnonzero((grid.image == image) & (grid.frame == frame))
        inside = (grid.box[here, :2] >= 0).all(1) & (grid.box[here, 2:] <= [grey.shape[1], grey.shape[0]]).all(1)
        for patch in np.random.default_rng(0).choice(here[inside], size=min(4, inside.sum()), replace=False):
            way = lit(vlm, before, vlm.prompt(brighten(grey, grid.box[patch]), SHORT), bright)
            brightest = here[way[grid.position[here]].argmax()]
            tried += 1
            if brightest != patch:
                cells = [(int(grid.row[i]), int(grid.col[i])) for i in (patch, brightest)]
                return Finding("", False, note=f"cell {cells[0]} of frame {frame} changed cell {cells[1]} most")
    return Finding("", tried > 0, note=f"{tried} cells tried")


def _grey(vlm: VLM) -> tuple[np.ndarray, Prompt]:
    """A dark picture of which every patch covers some pixels, and its prompt.

    Where a small tower cuts a small picture into many tiles, a patch is no larger than the blur of the resizing: the
    light of one cell would reach its neighbours.
    """
    for doublings in range(4):
        grey = np.full((SIDE << doublings, 2 * SIDE << doublings, 3), 60, np.uint8)
        prompt = vlm.prompt(grey, SHORT)
        if (prompt.grid.box[:, 2:] - prompt.grid.box[:, :2]).min() >= CELL:
            break
    return grey, prompt


def _stock(subject: _Subject) -> Finding:
    """The library's own way from messages to inputs, by the model's own chat template."""
    vlm, family, options, picture = subject.vlm, subject.vlm.family, subject.vlm.prompt_options, _noise()
    prompt = vlm.prompt(picture, QUESTION)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    system = [{"role": "system", "content": [{"type": "text", "text": options.system}]}] if options.system else []
    text = vlm.tokenizer.apply_chat_template(
        [*system, *asked], add_generation_prompt=True, tokenize=False, **options.template
    ) + (options.prefix or "")
    made = family.processor(
        images=[[Image.fromarray(picture)]], text=text, return_tensors="pt",
        add_special_tokens=not text.startswith(vlm.tokenizer.bos_token or text),
        **family.called_for([picture.shape[:2]]),
    )  # fmt: skip
    ids, pixels = made["input_ids"][0], torch.as_tensor(made["pixel_values"])
    if not torch.equal(ids, prompt.ids):
        return Finding("", False, note=f"{len(prompt.ids)} tokens, the processor writes {len(ids)} or others")
    mine = prompt.inputs["pixel_values"]
    if mine.numel() != pixels.numel():
        return Finding("", False, note=f"pixels {[*mine.shape]}, the processor gives {[*pixels.shape]}")
    gap = float((mine.flatten() - pixels.flatten()).abs().max())
    return _within(gap, 0, f"pixels; all {len(ids)} tokens are the same")


def _padding(subject: _Subject) -> Finding:
    vlm = subject.vlm
    pictures, questions = [_noise(), _noise()], [QUESTION, SHORT]
    batch = decode(vlm, pictures, questions, max_new_tokens=1)
    alone = [decode(vlm, *one, max_new_tokens=1) for one in zip(pictures, questions, strict=True)]
    pairs = zip(batch, alone, strict=True)
    gap = max(float(np.abs(a.mass.values - b.mass.values).max()) for a, b in pairs)
    return _within(gap, FLOORS * subject.floor.mass, "image mass, all layers")
