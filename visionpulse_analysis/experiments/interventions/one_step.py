"""Run single steps of a dense trace again with patches hidden, everything before them dense.

Attention says where a step looks, not what it uses. Here a decode step of a dense trace is repeated with
fewer visible patches, and the next-token distribution is compared with the dense one. Only the examined step
changes: the keys and values of all earlier positions are those of the dense run, as if a pruner had been
switched on for that one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from visionpulse_analysis.attention.cache import make_cache
from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.metrics.similarity import kl_divergence
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.logits import newest_logits
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.traces import Trace, media_of

ROWS = 256  # examined rows of one forward; more cost memory and are not faster

Choose = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Effect:
    """What hiding patches did to single steps.

    kl : float64 [row], nats, KL(dense || pruned) of the next-token distribution.
    changed : bool [row], the most probable token is another one.
    kept : bool [row, patch], the patches that were visible.
    """

    kl: np.ndarray
    changed: np.ndarray
    kept: np.ndarray


class Replay:
    """A dense trace held open: any of its steps can be run again with patches hidden, many at once.

    Step ``t`` >= 1 is the query that reads token ``t - 1`` and predicts token ``t``; step 0 is prefill, which
    pruners leave dense, and cannot be examined.

    Parameters
    ----------
    vlm : VLM
        The model that decoded the trace.
    trace : Trace
        Decoded without a pruner.

    Raises
    ------
    ValueError
        If the trace was pruned, comes from other weights, or has no step after prefill.
    """

    def __init__(self, vlm: VLM, trace: Trace):
        if trace.kept is not None:
            raise ValueError(
                "the trace was decoded with a pruner; replay compares with a dense trace: decode without one"
            )
        if trace.meta["model_hash"] != vlm.weights_hash:
            raise ValueError(
                f"the trace was decoded with weights {trace.meta['model_hash']}, the model has "
                f"{vlm.weights_hash}; decode again with this model"
            )
        if len(trace) < 2:
            raise ValueError("the trace has one token, and prefill is never pruned; decode at least two tokens")
        self.vlm, self.n_steps = vlm, len(trace)
        vlm = vlm.asking(trace.meta.get("prompt_options"))  # as the trace was made
        prompt = vlm.prompt(media_of(trace), trace.meta.get("turns", trace.question))
        device = vlm.model.device
        self.n_prompt = len(prompt.ids)
        self._tokens = torch.from_numpy(np.array(trace.token_ids[:-1])).to(device)
        self.places = torch.from_numpy(prompt.grid.position.copy()).to(device)
        self.others = torch.from_numpy(prompt.others).to(device)  # visible wherever a patch is
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        asked = vlm.to_device(vlm.family.batch([prompt], padding=0))
        whole = vlm.to_device(vlm.family.batch([prompt.answered(self._tokens.cpu())], padding=0))
        # Prompt and answer one after the other: an image token that the model wrote itself stands for no picture.
        answer = {"input_ids": self._tokens[None], "attention_mask": whole["attention_mask"]}
        with torch.inference_mode():
            position = vlm.family.positions(vlm.model, whole)
            self._position = position[..., self.n_prompt :]
            memory = {"past_key_values": make_cache(vlm.model), "use_cache": True}
            with intercept(vlm.model, self._remember):
                first = vlm.model(**asked, position_ids=position[..., : self.n_prompt], logits_to_keep=1, **memory)
                rest = vlm.model(**answer, position_ids=self._position, **memory)
        logits = torch.cat([first.logits, rest.logits], dim=1)[0]
        self.dense = torch.log_softmax(logits.float(), dim=-1)  # [step, word]

    @property
    def n_patches(self) -> int:
        return len(self.places)

    @property
    def steps(self) -> np.ndarray:
        """The steps that can be examined: int64 [step], 1 to the last."""
        return np.arange(1, self.n_steps)

    def run(self, steps: np.ndarray, layer: int, choose: Choose) -> Effect:
        """Run steps again with only the chosen patches visible, from ``layer`` on, in that step alone.

        Parameters
        ----------
        steps : int [row], 1 to the last step
            May name a step several times.
        layer : int
            Layers below it are dense.
        choose : callable
            Gets the head-mean logits float32 [row, patch] of the steps' own queries at ``layer``, the scores
            by which VisionPulse ranks, and which rows of ``steps`` these are; returns the visible patches
            bool [row, patch]. See :func:`keep_top` and :func:`keep_exactly`.

        Returns
        -------
        Effect

        Raises
        ------
        ValueError
            If a step or the layer does not exist.
        """
        steps = np.asarray(steps)
        if steps.ndim != 1 or not len(steps) or steps.min() < 1 or steps.max() >= self.n_steps:
            raise ValueError(f"steps must be a list of numbers from 1 to {self.n_steps - 1}, got {steps}")
        if not 0 <= layer < self.vlm.n_layers:
            raise ValueError(
                f"layer {layer}: {self.vlm.name} has layers 0 to {self.vlm.n_layers - 1}, give one of them"
            )
        effects = [
            self._forward(steps, np.arange(start, min(start + ROWS, len(steps))), layer, choose)
            for start in range(0, len(steps), ROWS)
        ]
        return Effect(
            *(np.concatenate([getattr(effect, name) for effect in effects]) for name in ("kl", "changed", "kept"))
        )

    @torch.inference_mode()
    def _forward(self, steps: np.ndarray, part: np.ndarray, layer: int, choose: Choose) -> Effect:
        rows = torch.from_numpy(steps[part] - 1).to(self._tokens.device)
        attend = _OneStep(self, layer, rows, lambda scores: choose(scores, part))
        with intercept(self.vlm.model, attend):
            out = self.vlm.model(
                input_ids=self._tokens[rows][None], position_ids=self._position[..., rows], use_cache=False
            )
        pruned = torch.log_softmax(out.logits[0].float(), dim=-1)
        dense = self.dense[rows + 1]
        changed = pruned.argmax(-1) != dense.argmax(-1)
        kl = kl_divergence(dense.cpu().numpy(), pruned.cpu().numpy())
        return Effect(kl, changed.cpu().numpy(), attend.kept.cpu().numpy())

    def _remember(self, call: Call):
        call.check_plain()
        if call.mask is not None and not bool(call.mask[..., -1, :].all()):
            raise ValueError(
                f"layer {call.layer} of {self.vlm.name} sees a sliding window, which is shorter than this trace, "
                "and replay lets every layer see the whole past; use a model without such layers, or a shorter trace"
            )
        self.keys[call.layer], self.values[call.layer] = call.key, call.value
        return call.run()


class _OneStep:
    """Attention of examined rows: each sees the dense past, its own key, and no other row."""

    def __init__(self, replay: Replay, layer: int, rows: torch.Tensor, choose: Callable):
        self.replay, self.layer, self.choose = replay, layer, choose
        length = replay.keys[0].shape[2]
        past = torch.arange(length, device=rows.device)[None] < (replay.n_prompt + rows)[:, None]
        own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        self.visible = torch.cat([past, own], dim=1)
        self.kept = torch.ones(len(rows), replay.n_patches, dtype=torch.bool, device=rows.device)

    def __call__(self, call: Call):
        replay, layer = self.replay, call.layer
        if layer == self.layer:
            one_by_one = call.query[0].transpose(0, 1)[:, :, None]  # [row, head, 1, dim]
            patch_keys = replay.keys[layer][:, :, replay.places]
            scores = newest_logits(one_by_one, patch_keys, None, call.scaling).mean(dim=1)
            self.kept = self.choose(scores)
            self.visible[:, replay.places] = self.kept
            self.visible[:, replay.others] = self.kept.any(dim=1, keepdim=True)
        key = torch.cat([replay.keys[layer], call.key], dim=2)
        value = torch.cat([replay.values[layer], call.value], dim=2)
        return replace(call, key=key, value=value, mask=self.visible[None, None]).run()


def keep_top(k: np.ndarray | int) -> Choose:
    """Keep the ``k`` patches with the highest scores, as the pruner does; one number or int [row]."""
    sizes = np.asarray(k)

    def choose(scores: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        of_rows = sizes[rows] if sizes.ndim else np.full(len(rows), int(sizes))
        return top_k(scores, torch.from_numpy(of_rows).to(scores.device))

    return choose


def keep_exactly(kept: np.ndarray) -> Choose:
    """Keep given sets, bool [row, patch], whatever the scores; a row may keep nothing."""
    return lambda scores, rows: torch.from_numpy(kept[rows]).to(scores.device)
