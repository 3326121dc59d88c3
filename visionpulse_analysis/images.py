"""Reading pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = Any  # a path, a PIL image, or a uint8 array [row_px, col_px, 3]


def read_image(image: ImageLike) -> np.ndarray:
    """Read an image as uint8 [row_px, col_px, 3], EXIF orientation applied, transparency on white.

    Raises FileNotFoundError for a missing file and ValueError for one that is no readable image.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"an image array must be uint8 [row_px, col_px, 3], got {image.dtype} {image.shape}")
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"no image at {path}")
        try:
            with Image.open(path) as opened:
                opened.load()
                picture = opened
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable image: {error}") from error
    elif isinstance(image, Image.Image):
        picture = image
    else:
        raise ValueError(f"an image is a path, a PIL image or a uint8 array, got {type(image).__name__}")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if picture.mode.startswith("I"):  # 16-bit greys, which PIL would clip rather than scale
        grey = np.asarray(picture, dtype=np.float64) / 257
        return np.clip(grey.round(), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    return np.asarray(picture.convert("RGB"))
