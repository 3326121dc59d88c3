"""The frames of a video as tensors for the model: the arithmetic of the library's video processors, which need
torchvision; the same numbers bit for bit without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import interpolate

from visionpulse_analysis.media.videos import Clip

CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
PATCHES = {"temporal_patch_size": 2, "merge_size": 2}
SQUARE = {"size": {"height": 384, "width": 384}}
LANCZOS, BICUBIC = 1, 3  # as Pillow numbers its filters
COMMON = {"resample": BICUBIC, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}


def _has_lanczos() -> bool:
    try:
        interpolate(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (2, 2), mode="lanczos", antialias=True)
    except NotImplementedError:
        return False
    return True


LANCZOS_IN_TORCH = _has_lanczos()  # where not, the library takes the bicubic filter as well


def settings_of(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """What a model's files say about videos, over what the library assumes.

    Raises
    ------
    ValueError
        They ask for something that is not done here; it would not be the model's own input.
    """
    settings = {**COMMON, **defaults, **{name: value for name, value in given.items() if value is not None}}
    size = dict(settings["size"])
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if settings.get(name) is not None:
            size[edge] = settings[name]
    asked = {
        "do_resize": settings["do_resize"] is True,
        "do_rescale": settings["do_rescale"] is True,
        "do_normalize": settings["do_normalize"] is True,
        "resample": settings["resample"] in (LANCZOS, BICUBIC),
        "do_center_crop": not settings.get("do_center_crop"),
        "cap_pixels_per_frame": not settings.get("cap_pixels_per_frame"),
    }
    for name, done in asked.items():
        if not done:
            raise ValueError(f"the model's video processor says {name}={settings[name]!r}, which is not supported here")
    return {**settings, "size": size}


def pixels(clip: Clip, height: int, width: int, settings: dict[str, Any]) -> torch.Tensor:
    """All frames in one size, rescaled and normalised: float32 [frame, 3, row_px, col_px]."""
    return normalised(resized(tensor(clip), height, width, settings), settings)


def tensor(clip: Clip) -> torch.Tensor:
    """uint8 [frame, 3, row_px, col_px]."""
    return torch.stack([torch.from_numpy(frame.copy()) for frame in clip.frames]).permute(0, 3, 1, 2).contiguous()


def resized(frames: torch.Tensor, height: int, width: int, settings: dict[str, Any]) -> torch.Tensor:
    if frames.shape[2:] == (height, width):
        return frames
    mode = "lanczos" if settings["resample"] == LANCZOS and LANCZOS_IN_TORCH else "bicubic"
    return interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=True)


def normalised(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    scale = 1.0 / settings["rescale_factor"]
    mean, std = (torch.tensor(settings[name]) * scale for name in ("image_mean", "image_std"))
    return (frames.float() - mean[:, None, None]) / std[:, None, None]


def patches(frames: torch.Tensor, settings: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
    """Pixels of the vision tower's patches: float32 [patch, pixel], and how many in time, down and across.

    Frames are merged in time; the last one is repeated to fill up. Patches that become one token stand together.
    """
    patch, merge, group = (settings[name] for name in ("patch_size", "merge_size", "temporal_patch_size"))
    missing = -len(frames) % group
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    grid = [len(frames) // group, frames.shape[2] // patch, frames.shape[3] // patch]
    times, down, across = grid
    parts = frames.reshape(times, group, 3, down // merge, merge, patch, across // merge, merge, patch)
    parts = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # time, place, place inside a token, colour, frame, pixel
    return parts.reshape(times * down * across, -1), grid
