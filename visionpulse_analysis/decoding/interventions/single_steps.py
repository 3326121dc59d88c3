"""Single steps of an answer read again under interventions, everything before them dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.attention.cache import make_cache
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding.batch import newest_logits_only
from visionpulse_analysis.decoding.interventions.kinds import Acting, HidePatches, Intervention, Output, Run, Tokens
from visionpulse_analysis.decoding.interventions.passes import layout_of, prompt_of
from visionpulse_analysis.metrics.attention import kl_divergence
from visionpulse_analysis.models.families import Prompt
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.top_k import top_k
from visionpulse_analysis.traces import Trace

ROWS = 256  # steps of one pass; more cost memory and are not faster

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


class SingleSteps:
    """An answer held open: any of its steps can be read again under interventions, each as if it alone had them.

    Attention says where a step looks, not what it uses. The keys and values of all other tokens are those of the dense
    run, as if a pruner had been switched on for that one step. Many steps go through the model side by side, and do
    not see one another.

    Step ``t`` >= 1 is the query that reads token ``t - 1`` and predicts token ``t``; step 0 is prefill, which pruners
    leave dense, and cannot be examined.

    Parameters
    ----------
    vlm : VLM
    prompt : Prompt
    answer : int64 [token]
        Its tokens but the last, at least one.

    Raises
    ------
    ValueError
        The model has layers without softmax attention, or with a sliding window shorter than the answer.
    """

    @own_settings()
    def __init__(self, vlm: VLM, prompt: Prompt, answer: np.ndarray):
        vlm.check_ordinary("its steps are read again without a prefill")
        if len(vlm.attention_layers) < vlm.n_layers:
            raise ValueError(
                f"{vlm.name} has layers without softmax attention, whose state after a step cannot be gone back to, so "
                "its steps cannot be read alone; read the answer as a whole (alone=False)"
            )
        self.vlm, self.n_steps, self.n_prompt = vlm, len(answer) + 1, len(prompt.ids)
        device = vlm.model.device
        self.layout = layout_of(vlm, [prompt], [0], self.n_prompt)
        self._tokens = torch.from_numpy(np.array(answer)).to(device)
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        asked = vlm.to_device(vlm.family.batch([prompt], padding=0))
        whole = vlm.to_device(vlm.family.batch([prompt.answered(self._tokens.cpu())], padding=0))
        # Prompt and answer one after the other: an image token that the model wrote itself stands for no picture.
        rest = {"input_ids": self._tokens[None], "attention_mask": whole["attention_mask"]}
        with torch.inference_mode():
            position = vlm.family.positions(vlm.model, whole)
            self._position = position[..., self.n_prompt :]
            memory = {"past_key_values": make_cache(vlm.model), "use_cache": True}
            asked |= newest_logits_only(vlm.model, 1)
            with Acting(vlm, (), self._remember).on():
                first = vlm.model(**asked, position_ids=position[..., : self.n_prompt], **memory)
                after = vlm.model(**rest, position_ids=self._position, **memory)
        logits = torch.cat([first.logits[:, -1:], after.logits], dim=1)[0]
        self.dense = torch.log_softmax(logits.float(), dim=-1)  # [step, word]

    @classmethod
    def of(cls, vlm: VLM, trace: Trace) -> SingleSteps:
        """Those of a dense `trace` by the model that decoded it.

        Raises
        ------
        ValueError
            If the trace was pruned, comes from other weights, or has no step after prefill; else as the class.
        """
        if trace.kept is not None:
            raise ValueError(
                "the trace was decoded with a pruner; replay compares with a dense trace: decode without one"
            )
        prompt = prompt_of(vlm, trace)
        if len(trace) < 2:
            raise ValueError("the trace has one token, and prefill is never pruned; decode at least two tokens")
        return cls(vlm, prompt, trace.token_ids[:-1])

    @property
    def length(self) -> int:
        """Tokens of prompt and answer whose keys are held."""
        return self.n_prompt + len(self._tokens)

    @property
    def n_patches(self) -> int:
        return self.layout.places.shape[1]

    @property
    def steps(self) -> np.ndarray:
        """The steps that can be examined: int64 [step], 1 to the last."""
        return np.arange(1, self.n_steps)

    def check(self, steps: np.ndarray) -> None:
        """Raise ValueError unless `steps`, int [row], can be examined."""
        if steps.ndim != 1 or not len(steps) or steps.min() < 1 or steps.max() >= self.n_steps:
            raise ValueError(f"steps must be a list of numbers from 1 to {self.n_steps - 1}, got {steps}")

    def run(self, steps: np.ndarray, layer: int, choose: Choose) -> Effect:
        """Read steps again with only the chosen patches visible, from ``layer`` on, in that step alone.

        Parameters
        ----------
        steps : int [row], 1 to the last step
            May name a step several times.
        layer : int
            Layers below it are dense.
        choose : callable
            Gets the head-mean logits float32 [row, patch] of the steps' own queries at ``layer``, the scores by which
            VisionPulse ranks, and which rows of ``steps`` these are; returns the visible patches bool [row, patch]. See
            :func:`keep_top` and :func:`keep_exactly`.

        Returns
        -------
        Effect

        Raises
        ------
        ValueError
            If a step or the layer does not exist.
        """
        steps = np.asarray(steps)
        self.check(steps)
        if not 0 <= layer < self.vlm.n_layers:
            raise ValueError(
                f"layer {layer}: {self.vlm.name} has layers 0 to {self.vlm.n_layers - 1}, give one of them"
            )
        found = []
        for start in range(0, len(steps), ROWS):
            part = np.arange(start, min(start + ROWS, len(steps)))
            kept: list[torch.Tensor] = []

            def keep(scores: torch.Tensor, part: np.ndarray = part, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                kept.append(choose(scores[0], part))
                return kept[-1][None]

            pruned = self.read(steps[part], HidePatches(keep, layers=range(layer, self.vlm.n_layers)))
            dense = self.dense[torch.from_numpy(steps[part]).to(pruned.device)]
            changed = pruned.argmax(-1) != dense.argmax(-1)
            kl = kl_divergence(dense.cpu().numpy(), pruned.cpu().numpy())
            found.append((kl, changed.cpu().numpy(), kept[0].cpu().numpy()))
        return Effect(*(np.concatenate(column) for column in zip(*found, strict=True)))

    @torch.inference_mode()
    def read(self, steps: np.ndarray, *interventions: Intervention, run: Run = Call.run) -> torch.Tensor:
        """Log probabilities of the next tokens of some steps, int [row], each read alone: float32 [row, word]."""
        rows = torch.from_numpy(np.asarray(steps) - 1).to(self._tokens.device)
        length = self.length
        past = torch.arange(length, device=rows.device)[None] < (self.n_prompt + rows)[:, None]
        own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        alone = _BehindThePast(self, torch.cat([past, own], dim=1)[None, None])
        column = length + torch.arange(len(rows), device=rows.device)
        tokens = Tokens(self.layout, (self.n_prompt + rows)[None], rows[None] + 1, column, length + len(rows))
        with Acting(self.vlm, [alone, *interventions], run).on(tokens):
            out = self.vlm.model(
                input_ids=self._tokens[rows][None], position_ids=self._position[..., rows], use_cache=False
            )
        return torch.log_softmax(out.logits[0].float(), dim=-1)

    def _remember(self, call: Call) -> Output:
        call.check_plain()
        if call.mask is not None and not bool(call.mask[..., -1, :].all()):
            raise ValueError(
                f"layer {call.layer} of {self.vlm.name} sees a sliding window, which is shorter than this trace, "
                "and replay lets every layer see the whole past; use a model without such layers, or a shorter trace"
            )
        self.keys[call.layer], self.values[call.layer] = call.key, call.value
        return call.run()


class _BehindThePast(Intervention):
    """Puts the keys and values of the dense run before those of the steps that are read again."""

    def __init__(self, answer: SingleSteps, visible: torch.Tensor):
        self.answer, self.visible = answer, visible

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        key = torch.cat([self.answer.keys[call.layer], call.key], dim=2)
        value = torch.cat([self.answer.values[call.layer], call.value], dim=2)
        return run(replace(call, key=key, value=value, mask=self.visible))


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
