"""A cache whose keys and values grow in place.

The library's own cache makes a new tensor at every layer and step: at 8,000 cached tokens the copying takes longer than
the attention. Here new keys and values are written into spare room behind the old ones, and the model gets views.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from transformers import Cache, DynamicCache, QuantizedCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

logger = logging.getLogger(__name__)

SPARE = 256  # tokens of spare room at least; an eighth of the length where that is more


class GrowingLayer(DynamicLayer):
    """The library's cache layer, growing in place.

    ``keys`` and ``values`` [row, kv_head, key, dim] are views of the filled part of two larger tensors, the rooms. They
    hold what the library's layer would hold, bit for bit. A method of the library that puts other tensors in their
    place (choosing, repeating or reordering rows) is noticed at the next update, which then makes new rooms.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.rooms, self.first = (self.keys, self.values), 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.keys.shape[2] + key_states.shape[2]
        if not (_begins(self.keys, self.rooms[0], self.first) and self.first + end <= self.rooms[0].shape[2]):
            self.rooms, self.first = (_room(self.keys, key_states, end), _room(self.values, value_states, end)), 0
        last = self.first + end
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, last - new.shape[2] : last] = new
        self.keys, self.values = (room[:, :, self.first : last] for room in self.rooms)
        return self.keys, self.values

    def shift(self, columns: int) -> None:
        """Put so many columns of zeros before the first one; where negative, forget as many."""
        if columns > 0:
            self.keys, self.values = (
                torch.cat([held.new_zeros(*held.shape[:2], columns, held.shape[3]), held], dim=2)
                for held in (self.keys, self.values)
            )
        else:
            self.first -= columns
            self.keys, self.values = self.keys[:, :, -columns:], self.values[:, :, -columns:]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            super().batch_select_indices(indices.to(self.device))

    def put_rows(self, rows: torch.Tensor, other: DynamicLayer) -> None:
        """Overwrite the last columns of ``rows`` int64 [row] with all that ``other`` holds; it must not hold more."""
        for mine, new in ((self.keys, other.keys), (self.values, other.values)):
            if new is not None:
                mine[rows.to(mine.device), :, mine.shape[2] - new.shape[2] :] = new


def _begins(held: torch.Tensor, room: torch.Tensor, first: int) -> bool:
    """Whether ``held`` is the part of ``room`` [row, kv_head, key, dim] from column ``first`` on."""
    same = held.shape[:2] == room.shape[:2] and held.stride() == room.stride()
    return same and held.data_ptr() == room.data_ptr() + first * room.stride(2) * room.element_size()


def _room(held: torch.Tensor, new: torch.Tensor, end: int) -> torch.Tensor:
    """A larger tensor that begins with ``held``, has space for ``end`` columns and some to spare."""
    room = new.new_empty(*new.shape[:2], end + max(SPARE, end // 8), new.shape[3])
    room[:, :, : held.shape[2]] = held
    return room


def make_cache(model: Any) -> Cache:
    """An empty cache for a model: growing in place, or the library's own where the model needs another kind.

    Every layer of a growing cache keeps every key, also where the model looks at a window only, so that keys have the
    same index in all. A model needs another kind where a layer holds states instead of keys, and where its generation
    configuration asks for quantised keys. The log says so once (level WARNING).
    """
    text = model.config.get_text_config(decoder=True)
    generation = getattr(model, "generation_config", None)
    if getattr(generation, "cache_implementation", None) == "quantized":
        options = {"backend": "quanto", "config": text, **(getattr(generation, "cache_config", None) or {})}
        _explain("generation_config asks for a quantised cache")
        return QuantizedCache(**options)
    cache = DynamicCache(config=text)
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in kinds})
    if others:
        _explain(f"{type(model).__name__} needs cache layers of type {', '.join(others)}")
        return cache
    return Cache(layers=[GrowingLayer() for _ in cache.layers])


@functools.cache
def _explain(reason: str) -> None:
    logger.warning(
        "%s: decoding with the library's own cache. Results are the same; a step is slower, since it copies the cache, "
        "and rows of a batch that have finished are decoded on until all have",
        reason,
    )


def grows_in_place(cache: Cache) -> bool:
    """Whether rows of this cache can be chosen and replaced, as those of a growing one can."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)
