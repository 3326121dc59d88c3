"""What a pruner sees at one layer of one step. Everything is computed when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any

from visionpulse_analysis._util.later import torch
from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern


@dataclass(frozen=True)
class Layout:
    """What a pruner knows of a left-padded batch before decoding.

    A prompt has three kinds of position: text; patches; and the other tokens of a picture, which are neither: line
    breaks, class tokens, marks of tiles, begin and end (`families.Family.marks` says which). A method chooses among
    patches, and where it speaks of text, the others are none. They are visible wherever any patch of their row is, and
    go with the last one.

    Parameters
    ----------
    patches : bool [row, patch], False where a row has fewer patches than the widest one.
    places : int64 [row, patch], the key position of each patch in the padded batch; any position where ``patches`` is
        False.
    starts : int64 [row], the key position of the first token that is not padding.
    n_layers, default_anchor : int, of the model
    seeds : one per row, for pruners that draw.
    question : bool [row, token] over the padded prompt, True at the words of the question itself (no image, no chat
        template).
    others : bool [row, other], the other tokens of pictures, False where a row has fewer than the widest one; none if
        left out.
    other_places : int64 [row, other], their key positions.
    pieces : int64 [row, patch], which picture, tile or frame (what the vision tower reads by itself) each patch is of,
        counted within its row; one for all if left out.
    cells : int64 [row, patch, 2], row and column of each patch within its piece; side by side on a line if left out.
    relevance : given a number of tokens, how much the first so many of the model's own dense greedy answer depend on
        each patch, float32 [row, patch]; decodes that answer first. For the oracle, before the run begins.
    hindsight : given a layer, its head-mean attention to each patch, mean over the steps after prefill of the row's own
        dense trace with the same seed and sampling, float32 [row, patch]; decodes that trace first, as for `relevance`.
    model : gives `VLM.weights_hash`, for what belongs to one model alone.
    pattern : which computation pictures take part in, whatever is chosen among them: that of the model.
    """

    patches: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    n_layers: int
    default_anchor: int
    seeds: list[int]
    question: torch.Tensor
    relevance: Callable[[int], torch.Tensor] | None = None
    hindsight: Callable[[int], torch.Tensor] | None = None
    others: torch.Tensor = None  # pyright: ignore[reportAssignmentType]
    other_places: torch.Tensor = None  # pyright: ignore[reportAssignmentType]
    pieces: torch.Tensor = None  # pyright: ignore[reportAssignmentType]
    cells: torch.Tensor = None  # pyright: ignore[reportAssignmentType]
    model: Callable[[], str] | None = None
    pattern: Pattern = ORDINARY

    def __post_init__(self) -> None:
        if self.others is None:
            object.__setattr__(self, "others", self.patches[:, :0])
            object.__setattr__(self, "other_places", self.places[:, :0])
        if self.pieces is None:
            object.__setattr__(self, "pieces", torch.zeros_like(self.places))
        if self.cells is None:
            line = torch.arange(self.places.shape[1], device=self.places.device).expand_as(self.places)
            object.__setattr__(self, "cells", torch.stack([torch.zeros_like(line), line], dim=2))

    @property
    def counts(self) -> torch.Tensor:
        """Number of patches: int64 [row]."""
        return self.patches.sum(dim=1)

    @cached_property
    def span(self) -> tuple[int, int] | None:
        """First and end key position of the patches, where they lie in one stretch that is the same in all rows."""
        first, count = int(self.places[0, 0]), self.places.shape[1]
        alone = self.places == torch.arange(first, first + count, device=self.places.device)
        return (first, first + count) if bool((alone & self.patches).all()) else None

    @property
    def text(self) -> torch.Tensor:
        """Prompt tokens that belong to no picture and are no padding: bool [row, token]."""
        width = self.question.shape[1]
        return self.real(width) & ~self.image_keys(width)

    def real(self, n_keys: int) -> torch.Tensor:
        """Key positions that are no padding: bool [row, `n_keys`]."""
        return torch.arange(n_keys, device=self.starts.device)[None] >= self.starts[:, None]

    def keys_of(self, patches: torch.Tensor, n_keys: int) -> torch.Tensor:
        """Mark the key positions of some `patches`: bool [row, patch] -> bool [row, `n_keys`]."""
        return marked(self.places, self.patches & patches, n_keys)

    def image_keys(self, n_keys: int) -> torch.Tensor:
        """Mark the key positions of whole pictures, patches and others: bool [row, `n_keys`]."""
        return self.keys_of(self.patches, n_keys) | marked(self.other_places, self.others, n_keys)

    def others_with(self, shown: torch.Tensor) -> torch.Tensor:
        """The other tokens of pictures that are visible with the patches `shown`, bool [row, patch]: bool [row, other].

        All of them, or none where no patch is.
        """
        return self.others & (self.patches & shown).any(dim=1, keepdim=True)

    def hidden_keys(self, shown: torch.Tensor, n_keys: int) -> torch.Tensor:
        """Mark what pictures hide where the patches `shown`, bool [row, patch], are visible: bool [row, `n_keys`]."""
        hidden = self.keys_of(~shown, n_keys)
        if self.others.shape[1] == 0:
            return hidden
        return hidden | marked(self.other_places, self.others & ~self.others_with(shown), n_keys)

    @cached_property
    def patch_before(self) -> torch.Tensor:
        """The patch before each other token of a picture, or the first one: int64 [row, other]."""
        earlier = self.patches[:, None] & (self.places[:, None] < self.other_places[..., None])
        return (earlier.sum(dim=2) - 1).clamp(min=0)

    def at_patches(self, states: torch.Tensor) -> torch.Tensor:
        """Pick the patches out of `states` [row, token, width]: [row, patch, width], zero where there is no patch."""
        index = self.places[..., None].expand(-1, -1, states.shape[-1])
        return states.gather(1, index) * self.patches[..., None]

    @property
    def device(self) -> torch.device:
        """Where pruners compute; layers of a model that is split over devices may lie elsewhere."""
        return self.patches.device

    def at_keys(self, bias: torch.Tensor, n_keys: int) -> torch.Tensor:
        """Put a `bias` of patches, float [row, head or 1, patch], at their keys, 0 at others: [..., `n_keys`]."""
        index = self.places[:, None].expand_as(bias)
        given = bias.masked_fill(~self.patches[:, None], 0.0)
        return given.new_zeros(*given.shape[:2], n_keys).scatter_add_(2, index, given)

    def on(self, device: torch.device) -> Layout:
        """The same on another `device`."""
        moved = {name: getattr(self, name).to(device) for name in _PER_ROW}
        return self if device == self.device else replace(self, **moved)

    def take(self, rows: torch.Tensor) -> Layout:
        """Only these `rows`, int64 [remaining]."""
        per_row = {name: getattr(self, name)[rows] for name in _PER_ROW}
        return replace(self, **per_row, seeds=[self.seeds[i] for i in rows.tolist()])


_PER_ROW = ("patches", "places", "starts", "question", "others", "other_places", "pieces", "cells")


def marked(places: torch.Tensor, present: torch.Tensor, n_keys: int) -> torch.Tensor:
    """Mark the key positions `places`, int64 [row, n], of those `present`, bool [row, n]: bool [row, n_keys]."""
    # What is absent shares places with real tokens, so the marks are counted rather than scattered.
    marks = torch.zeros(len(places), n_keys, dtype=torch.int32, device=places.device)
    return marks.scatter_add_(1, places, present.int()) > 0


def as_bias(choice: torch.Tensor) -> torch.Tensor:
    """What `Selection.visible` gives, as a bias: float [row, head or 1, patch], -inf where hidden."""
    if choice.dtype == torch.bool:
        choice = torch.zeros(choice.shape, device=choice.device).masked_fill(~choice, -torch.inf)
    return choice if choice.ndim == 3 else choice[:, None]


def kept_by(choice: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The patches that `Selection.visible` leaves visible to any head: bool [row, patch]."""
    if choice.dtype == torch.bool:
        return choice
    # NaN is left visible, so that it is noticed.
    return layout.patches & (as_bias(choice) != -torch.inf).any(dim=1)


class View:
    """One layer of one step: prefill at step 0, afterwards the step that reads the newest token.

    Patches that prefill dropped in an earlier layer (at a later step: in this layer) are masked; what this layer and
    step is about to hide is not. Rotary embedding is applied, and keys and values are those of the cache. What the
    methods return is on the layout's device.

    Parameters
    ----------
    step, layer : int
    layout : Layout
    query : [row, head, q, dim]
    key, value : [row, kv_head, key, dim]
    mask : bool or additive [row, 1, q, key], or None for causal
    scaling : float
    shown : bool [row, patch], or None for all: the patches that prefill has not dropped so far.
    states : [row, token, width] entering this layer: of the prompt in prefill, of the newest token at a decode step.
    block : the decoder layer; in prefill only.
    logprobs : float32 [row, word] of the step before; at decode steps only.
    """

    def __init__(
        self,
        step: int,
        layer: int,
        layout: Layout,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        shown: torch.Tensor | None = None,
        states: torch.Tensor | None = None,
        block: Any = None,
        logprobs: torch.Tensor | None = None,
    ):
        self.step, self.layer, self.layout, self.shown = step, layer, layout, shown
        self.query, self.key, self.value, self.mask, self.scaling = query, key, value, mask, scaling
        self._states, self._block, self._logprobs = states, block, logprobs
        self._logits: torch.Tensor | None = None
        self._whole: View | None = None  # the view that this one is a part of
        self._bias: torch.Tensor | None = None

    def only(self, choice: torch.Tensor) -> View:
        """The same view under a ``choice`` (see `Selection.visible`): what it hides is as if prefill had dropped it."""
        kept = kept_by(choice, self.layout)
        shown = kept if self.shown is None else kept & self.shown
        inputs = (self.layout, self.query, self.key, self.value, self.mask, self.scaling)
        view = View(self.step, self.layer, *inputs, shown, self._states, self._block)
        view._whole = self
        view._bias = None if choice.dtype == torch.bool else as_bias(choice).masked_fill(~shown[:, None], -torch.inf)
        return view

    def logits(self) -> torch.Tensor:
        """Attention logits of the newest query (prefill: of the last prompt token) over all cached positions.

        float32 [row, head, key], -inf where masked.
        """
        if self._logits is None:
            whole = self._whole
            given = newest_logits(self.query, self.key, self.mask, self.scaling) if whole is None else whole.logits()
            self._logits = self._hide(given.to(self.layout.device))
            if self._bias is not None:
                self._logits = self._logits + self.layout.at_keys(self._bias, self._logits.shape[2])
        return self._logits

    @property
    def scored(self) -> bool:
        """Whether anyone has asked for the logits."""
        return self._logits is not None

    def patch_logits(self) -> torch.Tensor:
        """The logits of the patches: float32 [row, head, patch], -inf where masked or absent."""
        return self.at_patches(self.logits())

    def patch_weights(self, rope: bool = True) -> torch.Tensor:
        """Softmax over all keys, at the patches: float32 [row, head, patch], 0 where masked or absent.

        With ``rope`` False, of ``logits_without_rope``.
        """
        logits = self.logits() if rope else self.logits_without_rope()
        return torch.exp(self.at_patches(logits) - torch.logsumexp(logits, dim=-1, keepdim=True))

    def contributions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each patch adds to the newest query's attention output before the output projection, and the output.

        Weight times value, heads side by side: float32 [row, patch, head * dim], 0 where masked or absent, and their
        sum over all keys, float32 [row, head * dim].
        """
        group = self.query.shape[1] // self.value.shape[1]
        values = self.value.to(self.layout.device).float().repeat_interleave(group, dim=1)
        weights = torch.softmax(self.logits(), dim=-1)
        output = torch.einsum("rhk,rhkd->rhd", weights, values).flatten(1)
        parts = self.patch_values().repeat_interleave(group, dim=1) * self.patch_weights()[..., None]
        return parts.transpose(1, 2).flatten(2), output

    def patch_values(self) -> torch.Tensor:
        """Value vectors of the patches in the cache: float32 [row, kv_head, patch, dim], 0 where there is no patch."""
        index = self.layout.places[:, None, :, None].expand(-1, self.value.shape[1], -1, self.value.shape[3])
        values = self.value.to(self.layout.device).gather(2, index).float()
        return values * self.layout.patches[:, None, :, None]

    def states(self) -> torch.Tensor:
        """Hidden states that enter this layer, at layer 0 the embeddings: [row, token, width].

        Of every token of the prompt in prefill, of the newest token alone at a decode step. Raises RuntimeError where
        the model does not show them.
        """
        if self._whole is not None:
            return self._whole.states()
        if self._states is None:
            raise RuntimeError(f"the hidden states that enter layer {self.layer} cannot be seen at step {self.step}")
        return self._states.to(self.layout.device)

    def newest_state(self) -> torch.Tensor:
        """Hidden state of the newest token (prefill: the last of the prompt) entering this layer: float32 [row, width].

        Raises RuntimeError as `states`.
        """
        return self.states()[:, -1].float()

    def logprobs(self) -> torch.Tensor:
        """Natural log probabilities of the step before, which the newest token was chosen by: float32 [row, word].

        Those of the model's own logits. Raises RuntimeError in prefill, which no step comes before, and inside a
        `generate` whose model does not return its logits.
        """
        if self._whole is not None:
            return self._whole.logprobs()
        if self._logprobs is None:
            raise RuntimeError(f"the log probabilities of the step before step {self.step} are not known")
        return self._logprobs.to(self.layout.device)

    def patch_states(self) -> torch.Tensor:
        """Hidden states of the patches entering this layer of prefill: float32 [row, patch, width].

        Raises RuntimeError at decode steps, which read the newest token only.
        """
        if self.step:
            raise RuntimeError(f"hidden states of patches can be seen in prefill only, not at step {self.step}")
        return self.layout.at_patches(self.states()).float()

    def query_logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Logits of some prompt tokens, `queries` int64 [row, q]: float32 [row, head, q, key], -inf where masked.

        Raises RuntimeError at decode steps.
        """
        if self.step:
            raise RuntimeError(f"queries of the prompt can be seen in prefill only, not at step {self.step}")
        rows, heads, _, dim = self.query.shape
        queries = queries.to(self.query.device)
        chosen = self.query.gather(2, queries[:, None, :, None].expand(-1, heads, -1, dim))
        grouped = chosen.view(rows, self.key.shape[1], -1, queries.shape[1], dim)
        logits = torch.matmul(grouped, self.key[:, :, None].transpose(3, 4)).float() * self.scaling
        logits = logits.view(rows, heads, queries.shape[1], -1)
        if self.mask is None:
            allowed = torch.arange(logits.shape[-1], device=queries.device) <= queries[..., None]
        else:
            allowed = self.mask[:, 0].gather(1, queries[..., None].expand(-1, -1, self.mask.shape[-1]))
            allowed = allowed if allowed.dtype == torch.bool else allowed > -1e4
        return self._hide(logits.masked_fill(~allowed[:, None], -torch.inf).to(self.layout.device))

    def logits_without_rope(self) -> torch.Tensor:
        """As ``logits``, float32 [row, head, key], before rotary embedding; prefill only.

        Raises ValueError for a model that does not compute queries and keys by ``q_proj`` and ``k_proj``.
        """
        attention = getattr(self._block, "self_attn", None)
        norm = getattr(self._block, "input_layernorm", None)
        if norm is None or not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
            raise ValueError("this model does not show its queries and keys without rotary embedding; score with it")
        entering, dim = norm(self.states().to(self.query.device)), self.key.shape[3]
        query = project(attention, "q", entering[:, -1:], dim)
        key = project(attention, "k", entering, dim)
        return self._hide(newest_logits(query, key, self.mask, self.scaling).to(self.layout.device))

    def at_patches(self, found: torch.Tensor, absent: float = -inf) -> torch.Tensor:
        """Pick the patches out of `found` [row, head, key]: [row, head, patch], `absent` where there is no patch."""
        if self.layout.span is not None:
            first, end = self.layout.span
            return found[:, :, first:end]
        index = self.layout.places[:, None].expand(-1, found.shape[1], -1)
        return found.gather(2, index).masked_fill(~self.layout.patches[:, None], absent)

    def _hide(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask what prefill dropped: float32 [row, head, (q,) key]."""
        if self.shown is None:
            return logits
        dropped = self.layout.hidden_keys(self.shown, logits.shape[-1])
        return logits.masked_fill(dropped[:, None] if logits.ndim == 3 else dropped[:, None, None], -torch.inf)


def newest_logits(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Attention logits of the newest query over all keys: float32 [row, head, key], -inf where masked.

    query [row, head, q, dim]; key [row, kv_head, key, dim], not expanded; mask bool or additive [row, 1, q, key].
    """
    rows, heads, _, dim = query.shape
    grouped = query[:, :, -1].view(rows, key.shape[1], heads // key.shape[1], dim)
    logits = torch.matmul(grouped, key.transpose(2, 3)).float().mul_(scaling).view(rows, heads, -1)
    if mask is None:
        return logits
    newest = mask[:, :, -1, : logits.shape[-1]]
    return logits.masked_fill(~newest, -torch.inf) if newest.dtype == torch.bool else logits + newest.float()


def project(attention: Any, letter: str, states: torch.Tensor, dim: int) -> torch.Tensor:
    """Queries or keys [row, head, token, dim] of normalised states, normalised per head where the model does so."""
    made = getattr(attention, f"{letter}_proj")(states)
    norm = getattr(attention, f"{letter}_norm", None)
    per_head = made.view(*made.shape[:2], -1, dim)
    if norm is not None:
        whole = norm.weight.shape[-1] == made.shape[-1]
        per_head = norm(made).view(per_head.shape) if whole else norm(per_head)
    return per_head.transpose(1, 2)
