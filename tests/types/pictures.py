"""What the processor of a type would make of a picture, one small function for each way of handing pixels over.

The processors themselves need files of the hub, or torchvision. What stands here follows their code; a mistake in the
order of patches shows itself, since the places of image tokens are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from shrinking import PATCH, SIDE

Tensors = dict[str, torch.Tensor]


def pixels(picture: np.ndarray, size: tuple[int, int] | None = None) -> torch.Tensor:
    """float32 [1, channel, row, col] in -1 to 1, perhaps resized to (height, width)."""
    image = Image.fromarray(picture)
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1


def square(picture: np.ndarray, config: Any, side: int = SIDE) -> Tensors:
    return {"pixel_values": pixels(picture, (side, side))}


def patches(picture: np.ndarray, patch: int, merge: int) -> tuple[torch.Tensor, int, int]:
    """float32 [patch, channel, row, col] in reading order within blocks of merge x merge; rows and columns of them."""
    image = pixels(picture, tuple(max(1, side // (patch * merge)) * patch * merge for side in picture.shape[:2]))[0]
    rows, cols = image.shape[1] // patch, image.shape[2] // patch
    cut = image.reshape(3, rows // merge, merge, patch, cols // merge, merge, patch)
    return cut.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, patch, patch), rows, cols


def grid(
    picture: np.ndarray, config: Any, *, blocks: bool = True, times: int | None = None, flat: bool = True,
    merge: int | None = None, side: int | None = None, name: str = "image_grid_thw",
) -> Tensors:  # fmt: skip
    """Patches one after the other, and how many rows and columns they have."""
    tower = config.vision_config
    patch = side or getattr(tower, "patch_size", PATCH)
    patch = patch if isinstance(patch, int) else patch[0]
    for holder in (tower, config):
        for field in ("spatial_merge_size", "merge_size", "merge_kernel_size"):
            given = getattr(holder, field, None)
            merge = merge or (given if isinstance(given, int) or given is None else given[0])
    merge = merge or 2
    image = pixels(picture, tuple(max(1, side // (patch * merge)) * patch * merge for side in picture.shape[:2]))
    resized = ((image[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    cut, rows, cols = patches(resized, patch, merge if blocks else 1)
    times = getattr(tower, "temporal_patch_size", 1) if times is None else times
    if flat:
        cut = cut[:, :, None].expand(-1, -1, times, -1, -1).reshape(len(cut), -1)
    shape = [rows, cols] if name == "image_grid_hw" else [1, rows, cols]
    return {"pixel_values": cut.contiguous(), name: torch.tensor([shape])}


def sized(picture: np.ndarray, config: Any) -> Tensors:
    """A picture of its own size, in pixels that are whole patches."""
    step = PATCH * getattr(config, "spatial_merge_size", 1)
    size = tuple(max(1, side // step) * step for side in picture.shape[:2])
    return {"pixel_values": pixels(picture, size), "image_sizes": torch.tensor([size])}


def tiled(picture: np.ndarray, config: Any) -> Tensors:
    """An overview and tiles of one square each, as for pictures of any size."""
    size = picture.shape[:2]
    wide = pixels(picture, (SIDE, 2 * SIDE)) if size[1] >= size[0] else pixels(picture, (2 * SIDE, SIDE))
    tiles = wide.split(SIDE, dim=3 if size[1] >= size[0] else 2)
    return {
        "pixel_values": torch.stack([pixels(picture, (SIDE, SIDE))[0], *(tile[0] for tile in tiles)])[None],
        "image_sizes": torch.tensor([size]),
    }


def slots(picture: np.ndarray, config: Any) -> Tensors:
    """One picture in the first of the slots that a prompt has for pictures, and where it is not padding."""
    values = square(picture, config)["pixel_values"][None]
    return {"pixel_values": values, "pixel_attention_mask": torch.ones_like(values[:, :, 0], dtype=torch.long)}


def tiles(picture: np.ndarray, config: Any) -> Tensors:
    """The same, of which a whole picture is padding or not."""
    return {**slots(picture, config), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def tiles_alone(picture: np.ndarray, config: Any) -> Tensors:
    """The slots without a mask."""
    return {"pixel_values": slots(picture, config)["pixel_values"]}


def flattened(picture: np.ndarray, config: Any, merge: int = 2) -> Tensors:
    """Patches in reading order, how many rows and columns they have, and which are no padding."""
    made = grid(picture, config, blocks=False, times=1, merge=merge)
    values, (_, rows, cols) = made["pixel_values"][None], made["image_grid_thw"][0].tolist()
    ones = torch.ones(1, values.shape[1], dtype=torch.long)
    return {"pixel_values": values, "spatial_shapes": torch.tensor([[rows, cols]]), "pixel_attention_mask": ones}


def strip(picture: np.ndarray, config: Any) -> Tensors:
    """Patches side by side, one patch high."""
    made = grid(picture, config, blocks=False, flat=False, merge=4)
    values = made["pixel_values"].permute(1, 2, 0, 3).flatten(2)[None]
    return {"pixel_values": values, "target_sizes": made["image_grid_thw"][:, 1:]}


def placed(picture: np.ndarray, config: Any, merge: int = 2, side: int | None = None) -> Tensors:
    """Patches in reading order, and the column and row of each."""
    made = grid(picture, config, blocks=False, times=1, merge=merge, side=side)
    _, rows, cols = made["image_grid_thw"][0].tolist()
    place = torch.stack(torch.meshgrid(torch.arange(cols), torch.arange(rows), indexing="xy"), dim=-1)
    return {"pixel_values": (made["pixel_values"][None] + 1) / 2, "image_position_ids": place.reshape(1, -1, 2)}


def lines(picture: np.ndarray, config: Any) -> Tensors:
    """Patches in reading order, alone."""
    cut, *_ = patches(picture, PATCH, 1)
    return {"pixel_values": cut.reshape(1, len(cut), -1)}


def numbered(picture: np.ndarray, config: Any) -> Tensors:
    """Patches in reading order, each behind its row and column, counted from 1."""
    cut, rows, cols = patches(picture, PATCH, 1)
    row, col = torch.meshgrid(torch.arange(rows) + 1.0, torch.arange(cols) + 1.0, indexing="ij")
    return {"flattened_patches": torch.cat([row.reshape(-1, 1), col.reshape(-1, 1), cut.flatten(1)], dim=1)[None]}


def one_tile(picture: np.ndarray, config: Any) -> Tensors:
    """A picture of one tile, of the first aspect ratio."""
    values = square(picture, config)["pixel_values"][None, None]
    ones = torch.ones(1, 1, dtype=torch.long)
    return {"pixel_values": values, "aspect_ratio_ids": ones, "aspect_ratio_mask": ones[None]}


def two_sizes(picture: np.ndarray, config: Any) -> Tensors:
    return {**square(picture, config), "high_res_pixel_values": pixels(picture, (64, 64))}


def pooled(picture: np.ndarray, config: Any) -> Tensors:
    """One square of patches, and which of them become one token."""
    image = ((pixels(picture, (SIDE, SIDE))[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    cut, rows, cols = patches(image, PATCH, 1)
    number = torch.arange(rows * cols).reshape(rows // 2, 2, cols // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
    return {
        "pixel_values": cut.permute(0, 2, 3, 1).reshape(1, len(cut), -1),
        "image_token_pooling": number,
        "image_grids": torch.tensor([[rows // 2, cols // 2, 0, 0]]),
    }


def timed(picture: np.ndarray, config: Any) -> Tensors:
    """A patch is twice the same moment: float32 [patch, time, row, col, channel]."""
    cut, *_ = patches(picture, config.vision_config.patch_size, 1)
    return {"pixel_values": cut.permute(0, 2, 3, 1)[:, None].expand(-1, 2, -1, -1, -1).contiguous()}


def cells(picture: np.ndarray, config: Any) -> Tensors:
    """A token's pixels at once, float32 [token, row, col, channel], and how many rows and columns of tokens."""
    side = PATCH * config.vision_config.spatial_merge_size
    cut, rows, cols = patches(picture, side, 1)
    return {"pixel_values": cut.permute(0, 2, 3, 1).contiguous(), "image_grid_thw": torch.tensor([[1, rows, cols]])}


READERS: dict[str, Callable[..., Tensors]] = {}


def reader_of(forward: set[str]) -> Callable[..., Tensors]:
    """How pixels are handed to a model whose `forward` has these parameters."""
    if "image_grid_thw" in forward:
        return grid
    return square
