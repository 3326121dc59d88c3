"""What an intervention does to a forward pass: to what attention sees, to what it puts out, or to hidden states.

Each is told which tokens the pass reads, so the same object acts on a whole sequence at once, on a prefill and the
steps after it, and on single steps that are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from visionpulse_analysis._util.checks import whole_number
from visionpulse_analysis.attention import Group
from visionpulse_analysis.attention.patterns import sliced_mlps
from visionpulse_analysis.attention.prefill import Prefill
from visionpulse_analysis.attention.routing import Call, intercept, watch_layers
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.view import Layout, View, newest_logits

Output = tuple[torch.Tensor, torch.Tensor | None]
Run = Callable[[Call], Output]


@dataclass(eq=False)
class Tokens:
    """The tokens that one forward pass reads, its queries.

    layout : where patches are among the keys, one row per row of the batch.
    position : int64 [row, query], place of each in its own sequence without padding; negative in padding.
    step : int64 [row, query], the step of the answer whose token it predicts: 0 for the last token of the prompt, -1
    for those before it.
    column : int64 [query], the key that is its own. width : number of keys of the sequence, and of ``layout``.
    groups : the rows that a pruner acts on.
    """

    layout: Layout
    position: torch.Tensor
    step: torch.Tensor
    column: torch.Tensor
    width: int
    groups: Sequence[Group] = ()
    # What an intervention has worked out for this pass, by itself: layers share it.
    known: dict[Any, Any] = field(default_factory=dict)


class Intervention:
    """Acts on a forward pass, or looks on; this one does nothing, and a subclass overrides what it needs."""

    def check(self, vlm: VLM) -> None:
        """Raise ValueError where this cannot be done to the model `vlm`."""

    def for_rows(self, rows: slice, patches: Sequence[int]) -> Intervention:
        """The same for some `rows` of those that have so many `patches`; ValueError where its values do not fit."""
        return self

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        """Attention of the `call` of one layer, [row, query, head, dim], while the model reads `tokens`.

        `run` does to a call what else acts on it, and the kernel. Raises ValueError where it cannot be done to it.
        """
        return run(call)

    def enter(self, layer: int, block: Any, states: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        """Other `states` [row, query, width] of the `tokens` to enter the decoder `layer`, a `block`, or None.

        Number ``n_layers`` stands for what leaves the last one; its `block` is None. Raises ValueError where it cannot
        be done to them.
        """
        return None

    def leave(self, layer: int, states: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        """Other `states` [row, query, width] of the `tokens` to leave a `layer` with, or None."""
        return None

    @property
    def sees_states(self) -> bool:
        """Whether it looks at hidden states, which takes hooks on the decoder layers."""
        return type(self).enter is not Intervention.enter or type(self).leave is not Intervention.leave


@dataclass(frozen=True, eq=False)
class Chosen(Intervention):
    """What acts in some layers, on some steps; see the kinds.

    Attributes
    ----------
    layers : int or sequence of int, optional
        Zero-based; all without it, none where it is empty.
    steps : sequence of int, optional
        Step ``t`` is the query that predicts token ``t`` of the answer, 0 being the last token of the prompt; -1 stands
        for all tokens before it. Without it every token that is read, the prompt's too.

    Raises
    ------
    ValueError
        A number cannot be a layer or a step.
    """

    layers: int | Sequence[int] | None = field(default=None, kw_only=True)
    steps: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in (("layers", 0), ("steps", -1)):
            given = getattr(self, name)
            if given is not None:
                listed = [given] if isinstance(given, int | np.integer) else list(given)
                numbers = tuple(whole_number(one, f"every entry of {name}", least=least) for one in listed)
                object.__setattr__(self, name, numbers)

    def check(self, vlm: VLM) -> None:
        layers: Any = range(vlm.n_layers) if self.layers is None else self.layers
        if max(layers, default=0) >= vlm.n_layers:
            raise ValueError(f"layers {[*layers]}: {vlm.name} has layers 0 to {vlm.n_layers - 1}")
        without = sorted({*layers} - {*vlm.attention_layers})
        if without:
            raise ValueError(
                f"{type(self).__name__}: layers {without} of {vlm.name} have no softmax attention (linear attention, "
                f"convolutions), and what they read cannot be changed here; give layers among {vlm.attention_layers}"
            )

    def acts_in(self, layer: int) -> bool:
        """Whether it acts in this `layer`."""
        layers: Any = self.layers
        return layers is None or layer in layers

    def acting(self, tokens: Tokens) -> torch.Tensor:
        """Which of the `tokens` are acted on: bool [row, query]."""
        if self.steps is None:
            return torch.ones_like(tokens.step, dtype=torch.bool)
        return torch.isin(tokens.step, torch.tensor(self.steps, device=tokens.step.device))


@dataclass(frozen=True, eq=False)
class HidePatches(Chosen):
    """Hide patches from attention, as if they were not in the sequence for these layers and steps.

    Weights are renormalised over what is left. A hidden patch still sees itself, and the other tokens of a picture
    (line breaks, marks of tiles) go with its last patch. Attention knockout (Geva et al. 2023, arXiv 2304.14767,
    section 5) of the edges from patches.

    Parameters
    ----------
    keep : bool array [patch], [row, patch] or [row, step, patch], or callable, optional
        Patches that stay visible; none without it. A callable gets the head-mean scaled dot products of each query with
        the patches, float32 [row, query, patch] (-inf where a row has no such patch), in the lowest of the layers, and
        returns bool of that shape, which holds in all of them: so ranks VisionPulse.
    layers : int or sequence of int, optional
    steps : sequence of int, optional
        As in :class:`Chosen`.

    Raises
    ------
    ValueError
        ``keep`` has another type or number of axes, or a layer or step cannot be one.
    """

    keep: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None and not callable(self.keep):
            keep = torch.as_tensor(np.asarray(self.keep))
            if keep.dtype != torch.bool or not 1 <= keep.ndim <= 3:
                raise ValueError(
                    f"keep must be bool of shape [patch], [row, patch] or [row, step, patch], or a function of scores; "
                    f"got {keep.dtype} {[*keep.shape]}"
                )
            object.__setattr__(self, "keep", keep)

    def for_rows(self, rows: slice, patches: Sequence[int]) -> HidePatches:
        if not isinstance(self.keep, torch.Tensor):
            return self
        return replace(self, keep=_of_rows(self.keep, rows, patches, self.keep.shape[-1], "keep"))

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        return run(without(call, self._hidden(call, tokens))) if self.acts_in(call.layer) else run(call)

    def _hidden(self, call: Call, tokens: Tokens) -> torch.Tensor:
        """bool [row, query, key], worked out in the first of the layers that run."""
        if self not in tokens.known:
            acting, layout, device = self.acting(tokens), tokens.layout, tokens.layout.device
            shown = self._shown(call, tokens)
            hidden = torch.zeros(*acting.shape, tokens.width, dtype=torch.bool, device=device)
            rows, queries = acting.to(device).nonzero(as_tuple=True)
            # Each query has a set of its own, so it is a row to the layout.
            hidden[rows, queries] = layout.take(rows).hidden_keys(shown[rows, queries], tokens.width)
            own = tokens.column.to(device)
            hidden[:, torch.arange(len(own), device=device), own] = False
            tokens.known[self] = hidden
        return tokens.known[self]

    def _shown(self, call: Call, tokens: Tokens) -> torch.Tensor:
        """bool [row, query, patch]"""
        patches, keep = tokens.layout.patches, self.keep
        shape = *tokens.step.shape, patches.shape[1]
        if keep is None:
            return patches.new_zeros(1).expand(shape)
        if callable(keep):
            return torch.as_tensor(keep(patch_scores(call, tokens.layout))).to(patches.device)
        keep = keep.to(patches.device)
        rows = len(keep) if keep.ndim > 1 else 1
        keep = keep[..., : shape[-1]]  # a row read by itself may have fewer patches than the widest
        if keep.ndim < 3:
            return keep.reshape(rows, 1, shape[-1]).expand(shape)
        acting = self.acting(tokens)
        if (acting & ((tokens.step < 0) | (tokens.step >= keep.shape[1]))).any():
            raise ValueError(
                f"keep has sets for {keep.shape[1]} steps, and is asked for others; name the steps, as in "
                f"steps=range({keep.shape[1]})"
            )
        index = tokens.step.clamp(0, keep.shape[1] - 1)[..., None].to(keep.device)
        return keep.expand(shape[0], -1, -1).gather(1, index.expand(shape))


def _of_rows(values: torch.Tensor, rows: slice, patches: Sequence[int], of_patches: int | None, name: str) -> Any:
    """The values of some rows, of an axis of rows in front if there is one; ``of_patches`` is their size by patch."""
    shared = len(values) == 1 or values.ndim == (1 if name == "keep" else 2)
    if not shared and len(values) != len(patches):
        raise ValueError(f"{name} is of shape {[*values.shape]}, for {len(values)} rows; there are {len(patches)}")
    if of_patches is not None and (of_patches != max(patches) or (shared and len(set(patches)) > 1)):
        raise ValueError(
            f"{name} is of shape {[*values.shape]}, for {of_patches} patches; the rows have {sorted(set(patches))}; "
            "where they differ, give an axis of rows in front, as wide as the widest"
        )
    return values if shared else values[rows]


def patch_scores(call: Call, layout: Layout) -> torch.Tensor:
    """Head-mean scaled dot products of each query with the patches: float32 [row, query, patch], -inf where absent."""
    call.check_plain()
    scores = []
    for row, places in enumerate(layout.places.to(call.key.device)):
        one_by_one = call.query[row].transpose(0, 1)[:, :, None]  # [query, head, 1, dim]
        keys = call.key[row : row + 1][:, :, places]
        scores.append(newest_logits(one_by_one, keys, None, call.scaling).mean(dim=1))
    found = torch.stack(scores).to(layout.device)
    return found.masked_fill(~layout.patches[:, None], -torch.inf)


def without(call: Call, hidden: torch.Tensor) -> Call:
    """The same call in which queries do not see some keys: bool [row, query, key]."""
    columns, length = call.key.shape[2], call.query.shape[2]
    hidden, mask = hidden[..., -columns:][:, None].to(call.query.device), call.mask  # a window holds the last columns
    if mask is None:
        seen = torch.ones(length, columns, dtype=torch.bool, device=hidden.device)
        mask = (seen.tril(columns - length) if call.causal else seen)[None, None]
        if call.kernel is call.eager:  # eager functions add their masks
            lowest = torch.finfo(call.query.dtype).min
            mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill(~mask, lowest)
    mask = mask[..., :columns]
    if mask.dtype == torch.bool:
        return call.under(mask & ~hidden)
    return call.under(mask.masked_fill(hidden, torch.finfo(mask.dtype).min))


@dataclass(frozen=True, eq=False)
class SkipImage(Chosen):
    """Text gets nothing from pictures; what it attends to beside them stays as it is.

    The weights are not renormalised, so the part of the attention that went to the image is lost, as in VisiPruner
    (arXiv 2510.17205, section 3, as its released code does it).

    Parameters
    ----------
    layers : int or sequence of int, optional
    steps : sequence of int, optional
        As in :class:`Chosen`.
    """

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        output, weights = run(call)
        if not self.acts_in(call.layer):
            return output, weights
        image = tokens.layout.image_keys(tokens.width).to(call.value.device)
        lost = run(replace(call, value=call.value.masked_fill(image[:, -call.key.shape[2] :][:, None, :, None], 0)))[0]
        changed = self.acting(tokens).to(image.device) & ~image[:, tokens.column.to(image.device)]
        return torch.where(changed[..., None, None], lost, output), weights


@dataclass(frozen=True, eq=False)
class AblateHeads(Chosen):
    """Scale what attention heads put out before the output projection, by default to nothing.

    Parameters
    ----------
    heads : int or sequence of int
        Zero-based query heads, the same in each of the layers.
    scale : float
        What their output is multiplied by: 0 takes them away.
    layers : int or sequence of int, optional
    steps : sequence of int, optional
        As in :class:`Chosen`.

    Raises
    ------
    ValueError
        There is no head, a head or layer cannot be one, or the scale is not finite.
    """

    heads: int | Sequence[int]
    scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = [self.heads] if isinstance(self.heads, int | np.integer) else list(self.heads)
        object.__setattr__(self, "heads", tuple(whole_number(one, "every entry of heads", least=0) for one in listed))
        if not listed or not np.isfinite(self.scale):
            raise ValueError(f"expected a head or more and a finite scale, got heads {listed} and scale {self.scale}")

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        output, weights = run(call)
        if not self.acts_in(call.layer):
            return output, weights
        heads: Any = self.heads
        if max(heads) >= output.shape[2]:
            raise ValueError(f"heads {[*heads]}: layer {call.layer} has heads 0 to {output.shape[2] - 1}")
        chosen = torch.zeros(output.shape[2], dtype=torch.bool, device=output.device)
        chosen[list(heads)] = True
        ablated = self.acting(tokens).to(output.device)[..., None, None] & chosen[:, None]
        return torch.where(ablated, output * self.scale, output), weights


@dataclass(frozen=True, eq=False)
class PatchActivations(Chosen):
    """Put other hidden states in the place of those of some tokens, or add to them, where they enter a layer.

    Activation patching with those of another run, steering with a direction (Meng et al. 2022, arXiv 2202.05262,
    section 2, under the name of causal tracing).

    Parameters
    ----------
    states : float array [width], [token, width] or [row, token, width]
        The tokens are those of ``tokens``, or else the ``steps``; without these axes all get the same. The variable
        ``states`` of :func:`intervene` at one layer has these axes.
    layer : int
        0 for the embeddings, the number of layers for what leaves the last one.
    tokens : "patches" or sequence of int, optional
        Positions in the sequence of prompt and answer without padding, or all patches in their order.
    how : "replace" or "add"
    steps : sequence of int, optional
        As in :class:`Chosen`, where ``tokens`` are not given.
    layers : None
        Not taken: there is one ``layer``.

    Raises
    ------
    ValueError
        The states do not fit the tokens or steps, are not finite, or another value is not one of those above.
    """

    states: Any
    layer: int
    tokens: Literal["patches"] | Sequence[int] | None = None
    how: Literal["replace", "add"] = "replace"

    def __post_init__(self) -> None:
        super().__post_init__()
        states = torch.as_tensor(np.asarray(self.states, dtype=np.float32))
        if self.layers is not None or (self.tokens is not None and self.steps is not None):
            raise ValueError("give one layer, and tokens or steps, not both: each says where the states go")
        if isinstance(self.tokens, str) and self.tokens != "patches":
            raise ValueError(f"tokens must be 'patches' or a list of positions, got {self.tokens!r}")
        if self.how not in ("replace", "add"):
            raise ValueError(f"how must be 'replace' or 'add', got {self.how!r}")
        places = self.tokens if self.tokens is not None else self.steps
        if places is not None and not isinstance(places, str):
            places = tuple(whole_number(one, "every entry of tokens", least=-1) for one in places)
            if self.tokens is not None:
                object.__setattr__(self, "tokens", places)
        listed = places if isinstance(places, tuple) else ()
        axes_fit = states.ndim == 1 or (states.ndim <= 3 and places is not None)
        if not axes_fit or (states.ndim > 1 and listed and states.shape[-2] != len(listed)):
            raise ValueError(
                f"states are of shape {[*states.shape]}, and go to {places or 'every token'}: expected [width], or "
                "[token, width] or [row, token, width] with one entry for each of the tokens or steps"
            )
        if len(set(listed)) != len(listed) or (states.ndim > 1 and self.tokens is None and -1 in listed):
            raise ValueError(f"tokens and steps that get states of their own must be different single ones: {listed}")
        if not torch.isfinite(states).all():
            raise ValueError("states hold NaN or infinite numbers, as those of a token beyond the end of its row do")
        object.__setattr__(self, "states", states)

    def check(self, vlm: VLM) -> None:
        if not 0 <= whole_number(self.layer, "layer") <= vlm.n_layers:
            raise ValueError(
                f"layer {self.layer}: states enter layers 0 to {vlm.n_layers - 1} of {vlm.name}, and {vlm.n_layers} "
                "stands for what leaves the last one"
            )

    def for_rows(self, rows: slice, patches: Sequence[int]) -> PatchActivations:
        if self.states.ndim == 1:
            return self
        of_patches = self.states.shape[-2] if self.tokens == "patches" else None
        return replace(self, states=_of_rows(self.states, rows, patches, of_patches, "states"))

    def enter(self, layer: int, block: Any, states: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        if layer != self.layer:
            return None
        if states.shape[-1] != self.states.shape[-1]:
            raise ValueError(f"states have width {self.states.shape[-1]}, those of the model {states.shape[-1]}")
        at, index = self._places(tokens)
        at, index = at.to(states.device), index.to(states.device)
        source = self.states.to(states.device, states.dtype)
        if source.ndim == 1:
            new = source.expand(states.shape)
        else:
            source = source.expand(len(states), *source.shape[-2:])
            new = source.gather(1, index[..., None].expand(-1, -1, source.shape[-1]))
        return torch.where(at[..., None], new if self.how == "replace" else states + new, states)

    def _places(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are changed, bool [row, query], and which entry of the states each gets, int64 [row, query]."""
        if self.tokens is None:
            listed, values, acting = self.steps, tokens.step, self.acting(tokens)
            if listed is None or self.states.ndim == 1:
                return acting, torch.zeros_like(tokens.step)
        else:
            listed, values, acting = self.tokens, tokens.position, tokens.position >= 0
        if isinstance(listed, str):
            layout = tokens.layout
            table = (layout.places - layout.starts[:, None]).masked_fill(~layout.patches, -1).to(values.device)
        else:
            table = torch.tensor([listed], device=values.device)
        found = values[..., None] == table[:, None]
        return acting & found.any(dim=2), found.int().argmax(dim=2)


class UnderSelection(Intervention):
    """What a selection of a pruner does in prefill, done to all tokens of the pass, those of an answer too."""

    def __init__(self, selection: Selection):
        self.selection, self.prefill = selection, Prefill(selection.layout, selection)

    def attend(self, call: Call, run: Run, tokens: Tokens) -> Output:
        call.check_plain()
        prefill = self.prefill
        given = (tokens.layout, call.query, call.key, call.value, call.mask, call.scaling)
        view = View(0, call.layer, *given, prefill.shown, prefill.states, prefill.block)
        prefill.choose(view)
        shown = prefill.mask(view)
        return prefill.attend(view, lambda values: run(replace(call, value=values, mask=shown)))

    def enter(self, layer: int, block: Any, states: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        return None if block is None else self.prefill.enter(layer, block, states)

    def leave(self, layer: int, states: torch.Tensor, tokens: Tokens) -> torch.Tensor | None:
        return self.prefill.leave(layer, states)


class KeepStates(Intervention):
    """Notes hidden states that enter some layers, after what acts before it in the list.

    found : per layer, of every pass one [row, query, width].
    """

    def __init__(self, layers: Sequence[int]):
        self.found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def enter(self, layer: int, block: Any, states: torch.Tensor, tokens: Tokens) -> None:
        if layer in self.found:
            self.found[layer].append(states.float().cpu())


class Acting:
    """Interventions in force on a model, the first of them outermost.

    tokens : of the pass that runs next; must be set before each.

    Parameters
    ----------
    vlm : VLM
    interventions : sequence of Intervention
    run : callable
        What becomes of an attention call once all have had it; the kernel by default.
    """

    tokens: Tokens

    def __init__(self, vlm: VLM, interventions: Sequence[Intervention], run: Run = Call.run):
        self.vlm, self.interventions, self.run, self.reached = vlm, list(interventions), run, set[int]()
        for one in self.interventions:
            one.check(vlm)

    @contextmanager
    def on(self, tokens: Tokens | None = None) -> Iterator[Acting]:
        """In force inside the ``with`` block, on passes that read ``tokens``."""
        if tokens is not None:
            self.tokens = tokens
        with ExitStack() as stack:
            stack.enter_context(intercept(self.vlm.model, self._attend))
            if any(one.sees_states for one in self.interventions):
                stack.enter_context(watch_layers(self.vlm.model, self))
            for one in self.interventions:
                if isinstance(one, UnderSelection):
                    selection = one.selection
                    stack.enter_context(sliced_mlps(self.vlm.model, selection.pattern, selection.layout))
            yield self
        missing = set(self.vlm.attention_layers) - self.reached
        if missing and any(isinstance(one, Chosen) for one in self.interventions):
            raise RuntimeError(
                f"layers {sorted(missing)} of {self.vlm.name} do not ask transformers for their attention, so nothing "
                "can act on it"
            )

    def _attend(self, call: Call) -> Output:
        self.reached.add(call.layer)
        return self._through(0, call)

    def _through(self, number: int, call: Call) -> Output:
        if number == len(self.interventions):
            return self.run(call)
        return self.interventions[number].attend(call, lambda inner: self._through(number + 1, inner), self.tokens)

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> torch.Tensor | None:
        changed = None
        for one in self.interventions:
            new = one.enter(layer, block, states if changed is None else changed, self.tokens)
            changed = changed if new is None else new
        return changed

    def leave(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        changed = None
        for one in self.interventions:
            new = one.leave(layer, states if changed is None else changed, self.tokens)
            changed = changed if new is None else new
        if layer == self.vlm.n_layers - 1:
            last = self.enter(layer + 1, None, states if changed is None else changed)
            changed = changed if last is None else last
        return changed
