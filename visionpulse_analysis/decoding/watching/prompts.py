"""What `generate` was given: prompts, their padding, and which of their tokens are image tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.locating import IMAGE_IDS, ids_of, line

VIDEOS = ("video_token_id", "video_token_index")
OTHERS = ("audio_token_id", "audio_token_index")  # whose features go into the sequence as those of pictures do

# Where the image tokens of each prompt lie in its pictures, or why there is no map; from the model and the inputs of
# `generate`.
Locate = Callable[[Any, Mapping[str, Any]], Sequence[PatchGrid | str]]


class Scatters(TorchFunctionMode):
    """Notes where features are put into a sequence, by `masked_scatter` or a mask as index.

    masks : bool [row, token] each, True where they go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("masked_scatter", "masked_scatter_") and args[0].ndim == 3:
            mask = args[1] if len(args) > 1 else given["mask"]
            self.masks.append(mask[..., 0].expand(args[0].shape[:2]) if mask.ndim == 3 else mask)
        elif name == "__setitem__" and args[0].ndim == 3 and _is_mask(args[1]):  # states[mask] = features
            self.masks.append(args[1])
        return func(*args, **given)

    def of(self, rows: int, length: int) -> torch.Tensor | None:
        """All of them together, bool [row, token]; None where nothing was put into a sequence of this size."""
        fitting = [mask for mask in self.masks if mask.shape == (rows, length)]
        return torch.stack([mask.to(fitting[0].device) for mask in fitting]).any(dim=0) if fitting else None


@dataclass
class Prompts:
    """The prompts of one call of `generate`.

    ids int64 [prompt, token], padded on the left; starts int64 [prompt], the column of the first real token; image bool
    [prompt, token]; video bool [prompt, token], those of them that show a video; by_ids : whether a token id says so;
    maps : one for each prompt, or in words why it has none, where they were asked for. crossed :
    whether image and starts are those of another sequence, which is read by cross-attention. encoded : how many ids an
    encoder was given.
    """

    ids: np.ndarray
    starts: np.ndarray
    image: np.ndarray
    video: np.ndarray
    by_ids: bool = True
    maps: list[PatchGrid | str] | None = None
    crossed: bool = False
    encoded: int = 0

    @classmethod
    def of(cls, model: Any, ids: torch.Tensor, inputs: Mapping[str, Any], locate: Locate | None) -> Prompts:
        """Read what `generate` was given: ``ids`` int64 [prompt, token], and its named ``inputs``."""
        numbers = ids.cpu().numpy()
        image, video = (np.isin(numbers, ids_of(model.config, names)) for names in (IMAGE_IDS, VIDEOS))
        known = bool(ids_of(model.config, (*IMAGE_IDS, *VIDEOS)))
        maps = None if locate is None else list(locate(model, inputs))
        if maps is not None and len(maps) != len(numbers):
            raise ValueError(f"locate must give one PatchGrid for each of {len(numbers)} prompts, gave {len(maps)}")
        return cls(numbers, np.zeros(len(numbers), np.int64), image | video, video, known, maps)

    @classmethod
    def of_encoder(cls, model: Any, count: int, inputs: Mapping[str, Any], locate: Locate | None) -> Prompts:
        """Those of an encoder-decoder model, whose decoder begins by itself: ids come with the first step.

        image : where image tokens are among the ids of the encoder, where it is given any.
        """
        ids = inputs.get("input_ids")
        numbers = np.zeros((count, 0), np.int64) if ids is None else ids.cpu().numpy()
        given = cls.of(model, torch.from_numpy(numbers), inputs, locate)
        given.ids, given.by_ids, given.encoded = np.zeros((count, 0), np.int64), False, numbers.shape[1]
        return given

    def cross(self, length: int, mask: torch.Tensor | None) -> None:
        """Pictures are read by cross-attention from another sequence of this length, of this attention mask or none."""
        count = len(self.ids)
        if self.crossed:
            return
        if self.image.shape != (count, length) or not self.image.any():
            # It is the picture, or, of an encoder that reads words as well, the words and the picture behind them.
            self.image, self.video = np.ones((count, length), bool), np.zeros((count, length), bool)
            self.image[:, : self.encoded] = False
        self.starts, self.crossed = np.zeros(count, np.int64), True
        if mask is not None and mask.shape == (count, length):
            self.starts = (mask.cpu().numpy() != 0).argmax(axis=1)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def pad(self, mask: torch.Tensor | None) -> None:
        """Take the attention mask, [row, token], of which each prompt may have several rows."""
        if mask is None or mask.ndim != 2 or self.crossed or mask.shape[1] < self.length:
            return
        real = mask[:: len(mask) // len(self.ids), : self.length].cpu().numpy() != 0
        if real.shape[1] == self.length and not real[:, -1].all():
            raise ValueError(
                "a prompt of this batch is padded on the right, so that its newest token is padding; set "
                "processor.tokenizer.padding_side = 'left' before making the inputs"
            )
        self.starts = real.argmax(axis=1)

    def compare(self, scattered: torch.Tensor | None, model: Any, first: int = 0) -> None:
        """Cross-check the image tokens with where features were put, bool [row, token] of the tokens from ``first`` on.

        Raises ValueError where both are known and differ; where no token id says which they are, takes the features.
        """
        if scattered is None:
            return
        # Tokens proposed by an assistant may stand behind the prompt already.
        stop = min(first + scattered.shape[1], self.length)
        rows = scattered[:: len(scattered) // len(self.ids), : stop - first].cpu().numpy()
        rows = rows & ~np.isin(self.ids[:, first:stop], ids_of(model.config, OTHERS))
        if not self.by_ids:
            self.image[:, first:stop] = rows
            return
        expected = self.image[:, first:stop]
        if not np.array_equal(rows, expected):
            where, elsewhere = (np.argwhere(part)[:4].tolist() for part in (expected & ~rows, rows & ~expected))
            names = [name for name in (*IMAGE_IDS, *VIDEOS) if ids_of(model.config, (name,))]
            raise ValueError(
                f"where the pictures are is told in two ways that differ: {int(expected.sum())} tokens by the ids "
                f"of {', '.join(names)}, {int(rows.sum())} by where the model put image features (masked_scatter); "
                f"only by ids, as [prompt, token]: {where}; only by features: {elsewhere}"
            )

    def check(self, model: Any) -> None:
        """Raise ValueError for prompts without an image token."""
        without = np.flatnonzero(~self.image.any(axis=1)).tolist()
        if without:
            raise ValueError(
                f"prompt {without[0]} of this batch has no image token of {type(model).__name__}; there is nothing "
                "to record: give it a picture (processor(images=..., text=...)), and the whole sequence where a cache "
                "holds a part of it, or generate outside of vpa.watch"
            )

    def grid(self, prompt: int) -> PatchGrid:
        """Where the patches of a prompt lie: as the map says, or all its image tokens on a line.

        Raises ValueError where the map names a position without an image token.
        """
        positions = np.flatnonzero(self.image[prompt]) - self.starts[prompt]
        found = None if self.maps is None else self.maps[prompt]
        if found is None or isinstance(found, str):
            return line(positions)
        wrong = np.setdiff1d(found.position, positions)
        if len(wrong):
            raise ValueError(
                f"the map of prompt {prompt} names positions {wrong[:4].tolist()}, which are no image tokens"
            )
        return found


def _is_mask(index: Any) -> bool:
    return torch.is_tensor(index) and index.dtype == torch.bool and index.ndim == 2
