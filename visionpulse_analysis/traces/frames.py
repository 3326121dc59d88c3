"""The images and the frames of videos that a trace is about: what each is called, which picture it shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from visionpulse_analysis.media.videos import Clip

NO_MAP = "no map"  # how `meta["map"]` begins where it is not known where the image tokens lie


def without_map(trace) -> str | None:
    """Why it is not known where the image tokens of a trace lie in its pictures, in words; None where it is known.

    Its ``grid`` has them side by side, in their order in the sequence, and nothing can be drawn over a picture.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    str or None
    """
    told = str(trace.meta.get("map", ""))
    return told if told.startswith(NO_MAP) else None


def frame_labels(trace) -> list[str]:
    """Name every line of ``trace.grid.frames``.

    "Image 2", "Frame 3", "Frames 3-4, 1-1.5 s" where the model merges frames and their rate is known, or both
    "Video 2, frame 3" where there are several. Frames are counted from 1, among those that the model was shown.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    list of str [line]
    """
    grid, known = trace.grid, {video["image"]: video for video in trace.meta.get("videos", ())}
    if without_map(trace):
        return ["No map: image tokens in their order"] * len(grid.frames)
    images = grid.frames[:, 0].tolist()
    spans = {image: _span(grid, image) for image in set(images)}
    labels = []
    for (image, frame, *_), (begin, end) in zip(grid.frames.tolist(), grid.pictures.tolist(), strict=True):
        first, last = spans[image]
        film = image in known or last - first > 1
        parts = [f"{'video' if film else 'image'} {image + 1}"] if grid.n_images > 1 else []
        if film:
            shown = [begin - first, end - 1 - first]
            parts.append(f"frame{'s' if end - begin > 1 else ''} {_range([n + 1 for n in shown], '')}")
            parts += _times(known.get(image), shown)
        elif images.count(image) > 1:
            parts.append(f"frame {frame + 1}")
        label = ", ".join(parts or ["image 1"])
        labels.append(label[0].upper() + label[1:])
    return labels


def _span(grid, image: int) -> tuple[int, int]:
    """First of the pictures of an image or video, and one past the last."""
    mine = grid.pictures[grid.frames[:, 0] == image]
    return int(mine[:, 0].min()), int(mine[:, 1].max())


def _times(video: dict[str, Any] | None, shown: list[int]) -> list[str]:
    if video is None or video["fps"] is None:
        return []
    return [_range([round(video["frames"][n] / video["fps"], 2) for n in shown], "g") + " s"]


def _range(ends: list, form: str) -> str:
    return "-".join(dict.fromkeys(format(end, form) for end in ends))


def frame_pictures(trace) -> tuple[list[np.ndarray | None], str | None]:
    """Picture of every line of ``trace.grid.frames``; of merged frames the first.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    pictures : list of uint8 [row_px, col_px, 3] or None
        Lines that show parts of one picture share the array.
    note : str or None
        Why pictures are missing, in words.
    """
    images, grid, why = trace.images, trace.grid, without_map(trace)
    if why is not None:
        note = f"No pictures are shown, for it is not known where the image tokens lie in them: {why}."
        return [None] * len(grid.frames), note
    expected = int(grid.pictures[:, 1].max(initial=0))
    if len(images) == expected:
        return [images[first] for first in grid.pictures[:, 0].tolist()], None
    note = f"No pictures are shown: the trace holds {len(images)} of {expected}."
    return [None] * len(grid.frames), note


def media_of(trace) -> list[np.ndarray | Clip]:
    """The images and videos that the model was shown.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    list of uint8 [row_px, col_px, 3] or Clip
        As ``vlm.prompt`` takes them.
    """
    known = {video["image"]: video for video in trace.meta.get("videos", ())}
    if without_map(trace):
        return list(trace.images)
    media: list[np.ndarray | Clip] = []
    for image in range(trace.grid.n_images):
        first, last = _span(trace.grid, image)
        pictures = trace.images[first:last]
        video = known.get(image)
        media.append(pictures[0] if video is None else Clip(pictures, video["frames"], video["total"], video["fps"]))
    return media
