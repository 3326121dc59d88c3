"""A prompt, ready for the model: its tokens, which of them are patches of which picture, and the other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.asking import PromptOptions

TEXT, IMAGE, VIDEO, ANSWER = range(4)


@dataclass
class Prompt:
    """One question about one picture or more, ready for the model.

    ids int64 [token]; kinds int64 [token], 0 text, 1 image, 2 video, 3 answer, as the model is told; grid : which
    tokens are image patches; inputs : what the model takes beside the tokens, by name: their first axis counts
    pictures, tiles or patches, so that those of several prompts are concatenated along it; images : the original
    pictures and frames, uint8; videos : for the images that are videos their number, and of what the frames are: rate
    and numbers in the source; others : int64 [other], positions of the other tokens of pictures, which are no patches;
    pieces : int64 [patch], which picture, tile or frame (what the vision tower reads by itself) each patch is of;
    turns : the messages where it was asked in several, JSON-ready; options : how the model was asked.
    of_tokens : inputs with one number per token, int64 [token] each; map : how it is known where the patches are, empty
    where the layout of the type is known.
    """

    question: str
    ids: torch.Tensor
    kinds: torch.Tensor
    grid: PatchGrid
    inputs: dict[str, torch.Tensor]
    images: list[np.ndarray] = field(repr=False)
    videos: list[dict[str, Any]] = field(default_factory=list)
    others: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pieces: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    turns: list[dict[str, Any]] = field(default_factory=list)
    options: PromptOptions = field(default_factory=PromptOptions)
    of_tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    map: str = ""

    @property
    def text_at(self) -> np.ndarray:
        """Positions of the tokens that belong to no picture, those of an answer among them: int64 [text token]."""
        return np.setdiff1d(np.arange(len(self.ids)), np.concatenate([self.grid.position, self.others]))

    def answered(self, ids: torch.Tensor) -> Prompt:
        """The prompt followed by the tokens ``ids`` int64 [token] of an answer."""
        kinds = torch.cat([self.kinds, torch.full_like(ids, ANSWER)])
        # An answer is told apart as the last word of the prompt is.
        of_tokens = {name: torch.cat([one, one[-1].expand(len(ids))]) for name, one in self.of_tokens.items()}
        return replace(self, ids=torch.cat([self.ids, ids]), kinds=kinds, of_tokens=of_tokens)


def in_columns(prompts: Sequence[Prompt], starts: Sequence[int]) -> dict[str, torch.Tensor]:
    """Where the tokens of pictures are in a padded batch whose rows begin in the columns ``starts``, as in `Layout`."""
    patches, places = in_rows([prompt.grid.position + start for prompt, start in zip(prompts, starts, strict=True)])
    others, other_places = in_rows([prompt.others + start for prompt, start in zip(prompts, starts, strict=True)])
    pieces = in_rows([prompt.pieces for prompt in prompts])[1]
    cells = in_rows([np.stack([prompt.grid.row, prompt.grid.col], axis=1) for prompt in prompts])[1]
    where = {"patches": patches, "places": places, "others": others, "other_places": other_places}
    return {**where, "pieces": pieces, "cells": cells, "starts": torch.tensor(starts)}


def in_rows(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of each row [n, ..] side by side: bool [row, n], False where a row has fewer, and int64 [row, n, ..]."""
    numbers = pad_sequence([torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True)
    counts = torch.tensor([len(row) for row in rows])
    return torch.arange(numbers.shape[1])[None] < counts[:, None], numbers


def stack(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate inputs along their first axis; shorter other axes are filled with zeros, as the library does."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        tensors = [part[name] for part in parts if name in part]
        sizes = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].ndim)]
        gaps = [[size - n for size, n in zip(sizes, tensor.shape[1:], strict=True)] for tensor in tensors]
        filled = [
            pad(tensor, [side for gap in reversed(row) for side in (0, gap)]) if any(row) else tensor
            for tensor, row in zip(tensors, gaps, strict=True)
        ]
        joined[name] = torch.cat(filled)
    return joined
