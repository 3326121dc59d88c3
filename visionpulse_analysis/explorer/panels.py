"""The panels of a trace, one per image or per frame of a video, and the picture behind each."""

from __future__ import annotations

import numpy as np


def panel_labels(grid) -> list[str]:
    """ "Image 2", "Frame 3", or both where there are several images with several frames."""
    images = grid.frames[:, 0].tolist()
    labels = []
    for image, frame in grid.frames[:, :2].tolist():
        parts = [f"image {image + 1}"] if grid.n_images > 1 or len(images) == 1 else []
        parts += [f"frame {frame + 1}"] if images.count(image) > 1 else []
        labels.append(", ".join(parts).capitalize())
    return labels


def panel_pictures(trace) -> tuple[list[np.ndarray | None], str | None]:
    """Picture of each panel: stills lend theirs to all of their frames, a video brings one per frame.

    Returns
    -------
    pictures : list of uint8 [row_px, col_px, 3] or None
        One per line of ``trace.grid.frames``.
    note : str or None
        Why pictures are missing, in words.
    """
    images, frames = trace.images, trace.grid.frames[:, 0].tolist()
    if len(images) == trace.grid.n_images:
        return [images[image] for image in frames], None
    if len(images) == len(frames):
        return list(images), None
    expected = f"{trace.grid.n_images} images with {len(frames)} frames"
    return [None] * len(frames), f"No pictures are shown: the trace holds {len(images)} for {expected}."
