"""Prefill under a selection: patches are hidden by masks, so every shape stays as it is and the result is exact.

A dropped patch is hidden from every other query, from its layer on and at all later steps. Its own row still runs,
seeing itself (a row that sees nothing would be NaN), but nothing ever reads it.

Positions can be counted anew without what was dropped, as in code that takes tokens out of the sequence. A rotary
position goes into queries and keys before the attention, and into the cache. So a layer is told the new positions when
it is entered; where a pruner chooses by looking at a layer with the old ones, that layer runs once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from visionpulse_analysis.attention.cache import GrowingLayer
from visionpulse_analysis.attention.patterns import Carried, by_heads
from visionpulse_analysis.pruners.base import Selection
from visionpulse_analysis.pruners.view import Layout, View, marked

Positions = Callable[[int], torch.Tensor | None]


class Prefill:
    """Carries out what a selection decides in prefill.

    ``kept`` bool [row, patch] or None for all, per layer: what prefill leaves to every later step.
    ``renumbers`` : whether what is left is counted anew, see `renumbering`.
    ``redirects`` : per layer, which patch each patch's weight goes to for the newest query; -1 loses it.
    """

    def __init__(self, layout: Layout, selection: Selection, renumbers: bool = False):
        self.layout, self.selection, self.renumbers = layout, selection, renumbers
        self.entered: torch.Tensor | None = None  # what was shown when the layer now running was entered
        self.runs_again = False
        self.kept: list[torch.Tensor | None] = [None] * layout.n_layers
        self.redirects: dict[int, torch.Tensor] = {}
        self.read: dict[int, list[torch.Tensor]] = {}
        self.shown: torch.Tensor | None = None
        self.states: torch.Tensor | None = None
        self.block: Any = None
        self.pattern = Carried(selection.pattern, layout)

    def enter(self, layer: int, block: Any, states: torch.Tensor) -> torch.Tensor | None:
        """Take the states [row, token, width] that enter a layer; rewritten ones are given back."""
        new = None if layer else self._rewritten(-1, states)
        self.states, self.block = states if new is None else new, block
        if self.renumbers:
            known = self.selection.left_before(layer)
            if known is not None:
                self._narrow(known)
            self.entered = self.shown
        return new

    def positions(self, layer: int) -> torch.Tensor | None:
        """Where the tokens of the prompt stand in a layer: int64 [row, token], None for where the model has them."""
        if self.shown is None or self.states is None:
            return None
        return positions_of(self.layout, self.shown, self.selection.moved, self.states.shape[1])

    def ran_with_old(self, layer: int) -> bool:
        """Whether a layer has chosen while it ran, so that it has to run again without what it dropped."""
        self.runs_again = self.shown is not self.entered
        return self.runs_again

    def leave(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """Freeze pictures, or rewrite patches, among the states that leave a layer."""
        before, self.states, self.block, self.runs_again = self.states, None, None, False
        if layer not in self.pattern.pattern.frozen or before is None:
            return self._rewritten(layer, states)
        is_image = self.layout.on(states.device).image_keys(states.shape[1])[..., None]
        frozen = torch.where(is_image, before.to(states.device), states)
        new = self._rewritten(layer, frozen)
        return frozen if new is None else new

    def _rewritten(self, layer: int, states: torch.Tensor) -> torch.Tensor | None:
        """The states [row, token, width] behind a layer with what the selection makes of patches, or None."""
        layout = self.layout.on(states.device)
        new = self.selection.rewrite(layer, self.layout.at_patches(states.to(self.layout.device)))
        if new is None:
            return None
        new = new.to(states.device, states.dtype)
        rows, patches = layout.patches.nonzero(as_tuple=True)
        changed = states.clone()
        changed[rows, layout.places[rows, patches]] = new[rows, patches]
        return changed

    def choose(self, view: View) -> torch.Tensor | None:
        """The patches that this layer and all later ones see: bool [row, patch], None for all."""
        if not self.runs_again:
            self.selection.observe_prefill(view)
            new = self.selection.visible_prefill(view)
            if new is not None:
                if new.dtype != torch.bool:
                    raise ValueError(
                        f"{type(self.selection).__name__} gave {new.dtype} for prefill's layer {view.layer}; expected "
                        "the patches that stay, bool [row, patch]: a bias can be given to decode steps only (`visible`)"
                    )
                self._narrow(new)
        self.kept[view.layer] = self.shown
        return self.shown

    def _narrow(self, new: torch.Tensor) -> None:
        """Show only what is in ``new`` as well, bool [row, patch]."""
        new = new & self.layout.patches if self.shown is None else new & self.shown
        # Equal choices are one object: layers that share it share the work.
        if not torch.equal(new, self.layout.patches if self.shown is None else self.shown):
            self.shown = new

    def mask(self, view: View) -> torch.Tensor | None:
        """The model's mask under the pattern, without what ``choose`` has dropped: bool [row, 1, q, key].

        The model's own, None or a mask, where neither changes anything.
        """
        n_keys, device = view.key.shape[2], view.key.device
        mask = self.pattern.mask(view.layer, view.mask, n_keys, device)
        if self.shown is None:
            return mask
        mask = prefill_mask(mask, self.layout.hidden_keys(self.shown, n_keys).to(device))
        if self.renumbers and self.selection.moved is not None:
            mask = in_order(mask, ranks(self.layout, self.selection.moved, n_keys).to(device))
        return mask

    def attend(self, view: View, attend: Callable[[torch.Tensor], tuple[torch.Tensor, Any]]) -> tuple[Any, ...]:
        """Attention of one layer of prefill, after ``choose``; ``attend`` is the kernel under `mask`, given values."""
        output, pattern = self._redirected(view, attend), self.pattern.pattern
        if not pattern.inactive(view.layer):
            return output
        images = self.layout.image_keys(view.query.shape[2])
        return by_heads(pattern, view.layer, output, view.value, attend, images, images)

    def _redirected(self, view: View, attend: Callable[[torch.Tensor], tuple[torch.Tensor, Any]]) -> tuple[Any, ...]:
        query, value = view.query, view.value
        redirect = self.selection.redirect(view)
        output = attend(value)
        if redirect is None:
            return output
        if redirect.text is not None:
            self.redirects[view.layer] = redirect.text
        shown = self.layout.patches if self.shown is None else self.shown
        self.read[view.layer] = [sources(*given, shown, self.layout) for given in redirect.readers()]
        layout = self.layout.on(query.device)
        is_image = layout.image_keys(query.shape[2])
        mixed = output[0]
        for (source, others), rows in zip(redirect.readers(), (~is_image, is_image), strict=True):
            if source is not None:
                other = attend(redirected(value, source.to(query.device), others, layout))[0]
                mixed = torch.where(rows[..., None, None], other, mixed)
        return mixed, *output[1:]

    def readers(self, row: int) -> dict[str, list[int]]:
        """How many tokens of pictures text and pictures read at each layer of a row, where any layer was redirected."""
        if not self.read:
            return {}
        everything = [self.layout.patches if kept is None else kept for kept in self.kept]
        per_layer = [
            self.read.get(layer, [sources(None, None, kept, self.layout)] * 2) for layer, kept in enumerate(everything)
        ]
        names = ("read_by_text", "read_by_patches")
        return {name: [int(counts[i][row]) for counts in per_layer] for i, name in enumerate(names)}

    def drop_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self.layout = self.layout.take(rows)
        self.pattern = Carried(self.pattern.pattern, self.layout)
        remaining = {id(kept): kept[rows] for kept in self.kept if kept is not None}
        self.kept = [None if kept is None else remaining[id(kept)] for kept in self.kept]


def prefill_mask(mask: torch.Tensor | None, dropped: torch.Tensor) -> torch.Tensor:
    """The causal mask without the dropped keys, bool [row, key], which only their own queries still see.

    Returns bool [row, 1, q, key]. Raises ValueError for a mask that is not boolean.
    """
    n = dropped.shape[1]
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            f"pruning needs a boolean attention mask, this model passes {mask.dtype}; decode it without a pruner"
        )
    eye = torch.eye(n, dtype=torch.bool, device=dropped.device)
    allowed = eye.new_ones(n, n).tril() if mask is None else mask
    return allowed & (~dropped[:, None, None] | eye)


def in_order(mask: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The mask, bool [row, 1, q, key], where tokens that stand elsewhere by ``order`` int64 [row, token] see as there.

    Whatever passed them in the order sees them no more, and they see what they have passed.
    """
    places = torch.arange(order.shape[1], device=order.device)
    later, was_later = order[:, :, None] > order[:, None], places[:, None] > places
    there = mask[:, :, -1:]  # the last token sees whatever exists
    return (mask & ~(was_later & ~later)[:, None]) | ((later & ~was_later)[:, None] & there)


def redirected(value: torch.Tensor, source: torch.Tensor, others: torch.Tensor | None, layout: Layout) -> torch.Tensor:
    """Values [row, kv_head, key, dim] in which each patch has that of ``source`` int64 [row, patch], or 0 for -1.

    Of the other tokens of pictures only ``others``, bool [row, other], keep theirs, or none.
    """
    rows, patches = layout.patches.nonzero(as_tuple=True)
    read = source[rows, patches]
    new = value[rows, :, layout.places[rows, read.clamp(min=0)]] * (read >= 0)[:, None, None]
    changed = value.clone()
    changed[rows, :, layout.places[rows, patches]] = new
    lost = layout.others if others is None else layout.others & ~others.to(layout.device)
    return changed.masked_fill(marked(layout.other_places, lost, value.shape[2])[:, None, :, None], 0)


def sources(
    source: torch.Tensor | None, others: torch.Tensor | None, shown: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """How many tokens of pictures are read, int64 [row], when ``shown`` bool [row, patch] are, as in `redirected`.

    All that are visible, where ``source`` is None.
    """
    there = layout.others_with(shown)
    if source is None:
        return shown.sum(dim=1) + there.sum(dim=1)
    reads = shown & (source >= 0)
    patches = torch.zeros_like(source).scatter_add_(1, source.clamp(min=0), reads.long()).gt(0).sum(dim=1)
    return patches if others is None else patches + (there & others).sum(dim=1)


def redirected_weights(weights: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The part of the attention that each patch's value gets: float [row, head, patch] for the same."""
    index = source.clamp(min=0)[:, None].expand_as(weights)
    return torch.zeros_like(weights).scatter_add_(2, index, weights * (source >= 0)[:, None])


def check_one_dimensional(name: str, model: Any, mrope: bool, windows: Any) -> None:
    """Raise ValueError for a model in which positions cannot be counted anew.

    Parameters
    ----------
    name : of the model, for the error
    model : PreTrainedModel
    mrope : whether its positions have a time, a row and a column
    windows : layers that see a sliding window; empty if none does
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    kind = str(getattr(rotary, "rope_type", "default"))
    if mrope:
        why = "its positions have a time, a row and a column (M-RoPE), and a patch left out has no place to close up"
    elif windows:
        why = f"layers {sorted(windows)} see a sliding window, which is counted over tokens that are there"
    elif rotary is None or kind in ("dynamic", "longrope"):
        why = f"its rotary embedding ({kind if rotary is not None else 'none'}) is not a function of the position alone"
    else:
        return
    raise ValueError(f"positions of {name} cannot be counted anew: {why}; say renumber=False")


def ranks(layout: Layout, moved: torch.Tensor | None, n_tokens: int) -> torch.Tensor:
    """The order of the tokens of a prompt: int64 [row, token], larger is later.

    moved : int64 [row, patch], 0 for patches in their places, or 1, 2 .. for those that stand behind the whole image,
        in that order.
    """
    places = torch.arange(n_tokens, device=layout.device).expand(len(layout.patches), -1)
    if moved is None or not moved.any():
        return places
    apart = int(moved.max()) + 1
    images = layout.image_keys(n_tokens)
    last = torch.where(images, places, -1).amax(dim=1, keepdim=True)
    order = places * apart
    rows, patches = ((moved > 0) & layout.patches).nonzero(as_tuple=True)
    order[rows, layout.places[rows, patches]] = last[rows, 0] * apart + moved[rows, patches]
    return order


def positions_of(layout: Layout, shown: torch.Tensor, moved: torch.Tensor | None, n_tokens: int) -> torch.Tensor:
    """Positions of a prompt's tokens when only the patches ``shown``, bool [row, patch], exist: int64 [row, token].

    What does not exist has the position of the token before it.
    """
    there = layout.real(n_tokens) & ~layout.hidden_keys(shown, n_tokens)
    by_rank = ranks(layout, moved, n_tokens).argsort(dim=1)
    counted = there.gather(1, by_rank).cumsum(dim=1) - 1
    return torch.empty_like(counted).scatter_(1, by_rank, counted).clamp(min=0)


@contextmanager
def renumbered(model: Any, positions: Positions, ran_with_old: Callable[[int], bool] = lambda layer: False) -> Iterator:
    """Tell each decoder layer where its tokens stand, for as long as the block lasts.

    Parameters
    ----------
    model : PreTrainedModel
    positions : layer -> int64 [row, token], added to the first position of the prompt, or None for those of the model
    ran_with_old : layer -> whether, after it has run, its tokens stand elsewhere than when it was entered; it then
        forgets what it has cached and runs again.
    """
    decoder = model.get_decoder()

    def moved(number: int, args: tuple, options: dict[str, Any]) -> dict[str, Any] | None:
        new = positions(number)
        if new is None:
            return None
        states = args[0] if args else options["hidden_states"]
        new = new.to(states.device)
        given = {"position_ids": new} if options.get("position_ids") is not None else {}
        return {**options, **given, "position_embeddings": decoder.rotary_emb(states, new)}

    def entering(number: int):
        def hook(block: Any, args: tuple, options: dict[str, Any]):
            new = moved(number, args, options)
            return None if new is None else (args, new)

        return hook

    def leaving(number: int):
        def hook(block: Any, args: tuple, options: dict[str, Any], output: Any) -> Any:
            if not ran_with_old(number):
                return None
            options["past_key_values"].layers[number] = GrowingLayer()
            return block.forward(*args, **(moved(number, args, options) or options))

        return hook

    handles = []
    try:
        for number, block in enumerate(decoder.layers):
            handles.append(block.register_forward_pre_hook(entering(number), with_kwargs=True))
            # Before whoever else looks at what leaves the layer.
            handles.append(block.register_forward_hook(leaving(number), with_kwargs=True, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
