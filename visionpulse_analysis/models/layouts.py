"""Where the image tokens of types with a known layout lie in their picture, computed from its size alone.

A table and not a rule: which token shows what is decided in the code of each model, and no file states it. What is not
in the table is measured (`locating`), within half of a patch and at the cost of some passes of the vision tower for
each new size of picture; what is here is exact and free. ``tests/families`` holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import isqrt, sqrt
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image

from visionpulse_analysis.media.patch_grid import PatchGrid

Region = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original picture
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Cells:
    """The image tokens of one picture or video, in the order in which the model reads them.

    frame, row, col : int [token], row -1 for a token that is no patch (a line break, a class token);
    box : float [token, 4], left, top, right, bottom in pixels of the original picture;
    piece : int [token], which of the pieces that the vision tower reads one by one: tiles, an overview, frames.
    """

    frame: np.ndarray
    row: np.ndarray
    col: np.ndarray
    box: np.ndarray
    piece: np.ndarray

    @classmethod
    def block(cls, rows: int, cols: int, region: Region, frame: int = 0, at: tuple[int, int] = (0, 0)) -> Cells:
        """A regular grid over ``region``, in reading order, its first cell at row and column ``at`` of the frame."""
        row, col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
        left, top, right, bottom = region
        width, height = (right - left) / cols, (bottom - top) / rows
        box = np.stack([col * width, row * height, (col + 1) * width, (row + 1) * height], axis=1)
        box = box + np.array([left, top, left, top])
        return cls(np.full(rows * cols, frame), row + at[0], col + at[1], box, np.zeros(rows * cols, int))

    @classmethod
    def breaks(cls, count: int = 1) -> Cells:
        """Image tokens that are no patches."""
        nowhere = np.full(count, -1)
        return cls(np.zeros(count, int), nowhere, nowhere, np.zeros((count, 4)), nowhere)

    @classmethod
    def join(cls, *parts: Cells) -> Cells:
        """One after the other; the pieces of each are counted on from those before it."""
        first = np.cumsum([0, *(part.piece.max(initial=-1) + 1 for part in parts[:-1])])
        piece = [np.where(part.piece < 0, -1, part.piece + at) for part, at in zip(parts, first, strict=True)]
        names = ("frame", "row", "col", "box")
        frame, row, col, box = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(frame, row, col, box, np.concatenate(piece))

    def take(self, chosen: np.ndarray) -> Cells:
        """Some of the tokens, in the order given; -1 stands for one that is no patch."""
        found = (getattr(self, column.name)[chosen] for column in fields(self))
        frame, row, col, box, piece = (
            np.where(chosen.reshape(-1, *[1] * (values.ndim - 1)) < 0, nothing, values)
            for values, nothing in zip(found, (0, -1, -1, 0, -1), strict=True)
        )
        return Cells(frame, row, col, box, piece)

    def __len__(self) -> int:
        return len(self.row)


def grid_of(positions: np.ndarray, cells: Sequence[Cells], shown: Sequence[tuple[Size, int, int]]) -> PatchGrid:
    """Where the patches of one prompt are.

    positions : int [token], of its image tokens; shown : of each picture or video the size, the number of frames (1 for
    a picture), and how many of these are one for the model. Raises ValueError where there are more or fewer positions
    than the pictures give.
    """
    whole = Cells.join(*cells)
    if len(positions) != len(whole):
        raise ValueError(f"the prompt holds {len(positions)} image tokens, but the pictures give {len(whole)}")
    first, lines, pictures = 0, [], []
    for image, (one, (_, length, merged)) in enumerate(zip(cells, shown, strict=True)):
        for frame in np.unique(one.frame[one.row >= 0]).tolist():
            here = (one.row >= 0) & (one.frame == frame)
            lines.append([image, frame, int(one.row[here].max()) + 1, int(one.col[here].max()) + 1])
            begin = frame * merged if length > 1 or merged > 1 else 0  # frames of a picture are readings of it
            pictures.append([first + begin, first + min(begin + merged, length)])
        first += length
    patch = whole.row >= 0
    return PatchGrid(
        positions[patch],
        np.repeat(np.arange(len(cells)), [len(part) for part in cells])[patch],
        whole.frame[patch],
        whole.row[patch],
        whole.col[patch],
        box=whole.box[patch],
        image_size=np.array([size for size, _, _ in shown]),
        frames=np.array(lines),
        pictures=np.array(pictures),
    )


def patch_of(config: Any) -> int:
    """Pixels along one side of a patch of the vision tower."""
    size = config.vision_config.patch_size
    return size if isinstance(size, int) else size[0]


@dataclass(frozen=True)
class Made:
    """What a layout depends on: configuration, image processor (within the limits of the options), what it made of all
    pictures of the prompt, how many these are, and what it was told beside the pictures.
    """

    config: Any
    processor: Any
    inputs: dict[str, torch.Tensor]
    count: int
    called_with: dict[str, Any]

    @property
    def tile_px(self) -> tuple[int, int]:
        """Rows and columns of pixels that the tower reads at a time."""
        return tuple(self.inputs["pixel_values"].shape[-2:])  # pyright: ignore[reportReturnType]

    @property
    def patch(self) -> int:
        return patch_of(self.config)

    def read(self, pixels: int) -> int:
        """How many pixels of a side are read: where patches do not fill it, those at its right and bottom are not."""
        return pixels // self.patch * self.patch


def grids(made: dict[str, torch.Tensor], merge: Any, sizes: Sequence[Size], tokens: int) -> list[Cells] | None:
    """The grids that a processor states by itself, of patches that are merged in squares (Qwen, GLM and many others).

    None where it states none, or another number of tokens than the prompt has (breaks, padding).
    """
    stated = made.get("image_grid_thw")
    if stated is None or not isinstance(merge, int) or stated.shape != (len(sizes), 3) or (stated[:, 0] != 1).any():
        return None
    shapes = (stated[:, 1:] // merge).tolist()
    if sum(rows * cols for rows, cols in shapes) != tokens or (stated[:, 1:] % merge).any():
        return None
    return [
        Cells.block(rows, cols, (0, 0, width, height))
        for (rows, cols), (height, width) in zip(shapes, sizes, strict=True)
    ]


def cropped(made: Made, size: Size, number: int) -> Cells:
    """LLaVA-1.5: the shorter side is scaled to the tower's size and the middle square is read; or it is padded.

    PaliGemma: the picture squeezed into a square.
    """
    config, processor, rows_px, cols_px = made.config, made.processor, *made.tile_px
    height, width = size
    left, top = 0.0, 0.0
    if getattr(processor, "do_pad", False):  # to a square, around the middle
        side = max(height, width)
        left, top = -((side - width) // 2), -((side - height) // 2)
        height, width = side, side
    if not processor.do_resize:
        scaled = (height, width)
    elif processor.size.get("shortest_edge"):
        blank = np.broadcast_to(np.uint8(0), (height, width, 3))
        scaled = get_resize_output_image_size(
            blank, processor.size["shortest_edge"], default_to_square=False, input_data_format="channels_last"
        )
    else:
        scaled = (processor.size["height"], processor.size["width"])
    down, across = height / scaled[0], width / scaled[1]  # pixels of the picture per pixel of the tower
    top += (scaled[0] - rows_px) // 2 * down
    left += (scaled[1] - cols_px) // 2 * across
    region = (left, top, left + made.read(cols_px) * across, top + made.read(rows_px) * down)
    cells = Cells.block(rows_px // made.patch, cols_px // made.patch, region)
    # The class token of CLIP is read with the patches, where the configuration asks for all that the tower gives.
    full = getattr(config, "vision_feature_select_strategy", "default") == "full"
    return (
        Cells.join(Cells.breaks(), cells) if full and config.vision_config.model_type == "clip_vision_model" else cells
    )


def padded(made: Made, size: Size, number: int) -> Cells:
    """DeepSeek-VL: the longer side is scaled to the tower's size, and the picture padded to a square around it."""
    square, side = made.tile_px[0], made.tile_px[0] // made.patch
    scale = made.processor.size["height"] / max(size)
    scaled = [max(round(length * scale), made.processor.min_size) for length in size]
    down, across = size[0] / scaled[0], size[1] / scaled[1]  # pixels of the picture per pixel of the tower
    top, left = (-((square - length) // 2) for length in scaled)
    read = made.read(square)
    return Cells.block(side, side, (left * across, top * down, (left + read) * across, (top + read) * down))


def strips(made: Made, size: Size, number: int) -> Cells:
    """Gemma 3: squeezed into a square; with pan and scan, crops along the longer edge follow the whole.

    Each crop but the last is of the same whole number of pixels; together they are one frame, the whole another.
    """
    height, width = size
    side = isqrt(made.config.mm_tokens_per_image)
    crops = 0
    if made.called_with.get("do_pan_and_scan"):
        blank = np.zeros((*size, 3), np.uint8)
        options = {"input_data_format": "channels_last", "return_tensors": "pt", **made.called_with}
        crops = int(made.processor(images=[blank], **options)["num_crops"][0])
    whole = Cells.block(side, side, (0, 0, width, height), frame=1 if crops else 0)
    long, parts = max(size), [whole]
    step = -(-long // crops) if crops else 0
    for start in range(0, crops * step, step or 1):
        end, node = min(start + step, long), start // step * side
        across = width >= height
        region = (start, 0, end, height) if across else (0, start, width, end)
        parts.append(Cells.block(side, side, region, at=(0, node) if across else (node, 0)))
    return Cells.join(*parts)


def tiled(rows: int, cols: int, side: int, size: Size) -> Cells:
    """The picture cut into square tiles of ``side`` patches, frame 0, and the whole of it once more, frame 1.

    No tiles, or one, are the whole alone.
    """
    height, width = size
    tiles = [] if rows * cols < 2 else [
        Cells.block(side, side,
                    (col * width / cols, row * height / rows, (col + 1) * width / cols, (row + 1) * height / rows),
                    at=(row * side, col * side))
        for row in range(rows) for col in range(cols)
    ]  # fmt: skip
    return Cells.join(*tiles, Cells.block(side, side, (0, 0, width, height), frame=1 if tiles else 0))


def internvl(made: Made, size: Size, number: int) -> Cells:
    """InternVL and Aya Vision."""
    processor, config = made.processor, made.config
    factor = getattr(config, "downsample_ratio", None) or 1 / config.downsample_factor
    image = config.vision_config.image_size
    side = int((image if isinstance(image, int) else image[0]) // made.patch * factor)
    limits = processor.min_patches, processor.max_patches
    canvas = (processor.size["height"], processor.size["width"])
    cols, rows = get_optimal_tiled_canvas(size, canvas, *limits) if limits[1] > 1 else (1, 1)
    return tiled(rows, cols, side, size)


def idefics3(made: Made, size: Size, number: int) -> Cells:
    """Idefics3 and SmolVLM."""
    vision = made.config.vision_config
    side = vision.image_size // vision.patch_size // made.config.scale_factor
    _, rows, cols = made.processor.get_number_of_image_patches(*size, dict(made.called_with))
    return tiled(rows, cols, side, size)


def pixtral(made: Made, size: Size, number: int) -> Cells:
    """Pixtral and Mistral 3: one grid of the picture's own size; the breaks are of their own, no image tokens."""
    side = made.patch * getattr(made.config, "spatial_merge_size", 1)
    rows, cols = (int(pixels) // side for pixels in made.inputs["image_sizes"][number])
    return Cells.block(rows, cols, (0, 0, size[1], size[0]))


def anyres(made: Made, size: Size, number: int) -> Cells:
    """LLaVA-NeXT: an overview, frame 1, then all tiles row by row as one grid, with a break after each row.

    Rows or columns of it that show padding alone are left out. Raises ValueError for a picture so narrow that none is
    left.
    """
    height, width = size
    side, read = made.tile_px[0] // made.patch, made.read(made.tile_px[0])
    share = read / made.tile_px[0]
    overview = Cells.block(side, side, (0, 0, share * width, share * height), frame=1)
    tiles = _tiles(made, size)
    ends = np.flatnonzero(np.diff(tiles.row, append=-1)) + 1
    return Cells.join(overview, tiles.take(np.insert(np.arange(len(tiles)), ends, -1)))


def onevision(made: Made, size: Size, number: int) -> Cells:
    """LLaVA-OneVision: as LLaVA-NeXT; several pictures are read as overviews alone, each padded to a square."""
    if made.count == 1:
        return anyres(made, size, number)
    height, width = size
    square, side = max(size), made.tile_px[0] // made.patch
    left, top = -((square - width) // 2), -((square - height) // 2)
    read = side * made.patch / made.tile_px[0] * square
    return Cells.join(Cells.block(side, side, (left, top, left + read, top + read)), Cells.breaks())


def _tiles(made: Made, size: Size) -> Cells:
    height, width = size
    tile, side, read = made.tile_px[0], made.tile_px[0] // made.patch, made.read(made.tile_px[0])
    canvas = select_best_resolution(size, made.config.image_grid_pinpoints)
    inner = get_patch_output_size(np.broadcast_to(np.uint8(0), (*size, 3)), canvas, input_data_format="channels_last")
    top, left = ((outer - part) // 2 for outer, part in zip(canvas, inner, strict=True))
    down, across = height / inner[0], width / inner[1]  # pixels of the picture per pixel of the canvas
    tiles = Cells.join(*(
        Cells.block(side, side,
                    ((x - left) * across, (y - top) * down, (x - left + read) * across, (y - top + read) * down),
                    at=(y // tile * side, x // tile * side))
        for y in range(0, canvas[0], tile) for x in range(0, canvas[1], tile)
    ))  # fmt: skip
    rows, cols = (pixels // tile * side for pixels in canvas)
    kept = unpad_image(torch.arange(rows * cols).view(1, rows, cols), size)[0].flatten().numpy()
    if not len(kept):  # the tiles would show less than one row or column of it
        raise ValueError(f"{said(size)} is too narrow for {made.config.model_type}; pad it")
    tiles = tiles.take(np.lexsort([tiles.col, tiles.row])[kept])
    rows, cols = tiles.row.max() + 1 - tiles.row.min(), tiles.col.max() + 1 - tiles.col.min()
    cells = Cells(tiles.frame, tiles.row - tiles.row.min(), tiles.col - tiles.col.min(), tiles.box, tiles.piece)
    most = getattr(made.config, "vision_aspect_ratio", None)  # of LLaVA-OneVision, which shrinks large grids
    ratio = sqrt(rows * cols / (int(most.removeprefix("anyres_max_")) * side**2)) if most else 0
    if ratio <= 1.1:
        return cells
    left, top, right, bottom = *cells.box[:, :2].min(axis=0), *cells.box[:, 2:].max(axis=0)
    return Cells.block(int(rows // ratio), int(cols // ratio), (left, top, right, bottom))


def said(size: Size) -> str:
    """A still by its size, for errors."""
    return f"a picture {size[0]} pixels high and {size[1]} wide"


# By the type in a model's configuration; None where the processor states the grids itself.
LAYOUTS: dict[str, Callable[[Made, Size, int], Cells] | None] = {
    **dict.fromkeys(("llava", "paligemma", "vipllava"), cropped),
    **dict.fromkeys(("aya_vision", "internvl"), internvl),
    **dict.fromkeys(("idefics3", "smolvlm"), idefics3),
    **dict.fromkeys(("llava with pixtral", "mistral3"), pixtral),
    "deepseek_vl": padded,
    "gemma3": strips,
    "llava_next": anyres,
    "llava_onevision": onevision,
    **dict.fromkeys(("glm46v", "glm4v", "glm4v_moe", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")),
}
