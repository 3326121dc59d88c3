"""Videos: the library's own video processors, with torch in the place of torchvision, and where their tokens lie."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import isqrt
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import Medium
from visionpulse_analysis.models.layouts import Cells, patch_of
from visionpulse_analysis.models.limits import edges
from visionpulse_analysis.models.prompts import IMAGE, VIDEO, Prompt

if TYPE_CHECKING:
    from visionpulse_analysis.models.families import Family

# Types whose videos were seen to be read as here, and the folder of the library that holds their video processor.
VIDEOS = {
    **{name: name for name in ("glm46v", "glm4v", "internvl", "llava_onevision", "qwen2_vl", "qwen3_vl", "smolvlm")},
    **{"glm4v_moe": "glm4v", "qwen2_5_vl": "qwen2_vl", "qwen3_vl_moe": "qwen3_vl"},
}
FRAMES_ARE_IMAGES = {"glm46v", "glm4v", "glm4v_moe"}  # image tokens between marks of a video
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # as Pillow numbers its filters


@dataclass
class FilmInputs:
    """One video as the model reads it.

    text : what stands for it in the prompt; cells : what its image tokens are; inputs : tensors for the model, as in
    `Prompt`; merged : how many frames are one for the model.
    """

    text: str
    cells: Cells
    inputs: dict[str, torch.Tensor]
    merged: int = 1


def film_of(family: Family, clip: Clip) -> FilmInputs:
    """One video as the library's processor reads it.

    Raises
    ------
    ValueError
        The model reads none, reads times that the video has not, or its files ask for frames cut to their middle.
    """
    name = family.config.model_type
    if family.kind not in VIDEOS:
        raise ValueError(f"models of family {name!r} read no video here; give frames of it as a list of images")
    processor = with_videos(family.processor, VIDEOS[family.kind], family.settings.get("video_processor") or {})
    half = processor.video_processor
    if getattr(half, "do_center_crop", None):
        raise ValueError(f"the model's video processor says do_center_crop={half.do_center_crop}, which is not "
                         "supported here")  # fmt: skip

    shown: Any = np.stack(clip.frames)
    if family.kind == "smolvlm" and not replaces_alone(processor):
        shown = [shown]

    def at_rate(fps: float) -> dict[str, Any]:
        known = VideoMetadata(total_num_frames=clip.total, fps=fps, frames_indices=list(clip.numbers))
        with numbers_in_words():
            made = processor(
                text=family.video_placeholder, videos=[shown], video_metadata=[known],
                do_sample_frames=False, return_tensors="pt", add_special_tokens=False, **_limits(family, half, clip),
            )  # fmt: skip
        return {name: torch.as_tensor(value) for name, value in made.items() if name != "video_metadata"}

    made = at_rate(clip.fps or 1.0)
    if clip.fps is None:
        other = at_rate(1 / 60)
        if any(not torch.equal(value, other[name]) for name, value in made.items()):
            clip.rate(family.config.model_type)  # raises: without a rate the library would assume one
    ids = made["input_ids"][0]
    inputs = {one: value for one, value in made.items() if value.shape != (1, len(ids)) or value.is_floating_point()}
    grid, count = made.get("video_grid_thw"), int((family.kinds(ids) > 0).sum())
    if grid is not None:
        times, rows, cols = (grid[0] // torch.tensor([1, half.merge_size, half.merge_size])).tolist()
        share, merged = 1.0, half.temporal_patch_size
    else:  # every frame as a square still, of which the tower may leave out what fills no patch
        pixels, patch = next(value.shape[-1] for value in made.values() if value.ndim > 3), patch_of(family.config)
        times, rows = len(clip.frames), isqrt(count // len(clip.frames))
        cols, share, merged = rows, pixels // patch * patch / pixels, 1
    height, width = clip.frames[0].shape[:2]
    frames = [Cells.block(rows, cols, (0, 0, share * width, share * height), frame=frame) for frame in range(times)]
    cells = Cells.join(*frames, Cells.breaks(count - times * rows * cols))
    text = family.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return FilmInputs(text, cells, family.in_line(inputs), merged)


def _limits(family: Family, half: Any, clip: Clip) -> dict[str, Any]:
    """What the options say of pixels, as the video processor takes it: for each frame, or for all frames together."""
    options = family.options
    if options.min_pixels is None and options.max_pixels is None:
        return {}
    own: Any = dict(half.size)
    if "num_frames" not in signature(sys.modules[type(half).__module__].smart_resize).parameters:
        return {"size": edges(own, options)}
    size = edges(own, options, len(clip.frames))
    if options.max_pixels is not None:  # a long video stays within what the model takes in all
        size["longest_edge"] = min(size["longest_edge"], own["longest_edge"])
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
    return {"size": size}


def placeholder(family: Family) -> str | None:
    """What the chat template writes for one video, and the library replaces."""
    mark = getattr(family.processor, "video_token", None)
    if not isinstance(mark, str):
        mark = None if family.video_id is None else family.tokenizer.convert_ids_to_tokens(family.video_id)
    # transformers 5.4 replaces the marks around the token too, which Qwen3-VL writes around each frame.
    if family.kind.startswith("qwen3_vl") and not replaces_alone(family.processor):
        names = (getattr(family.config, f"vision_{name}_token_id") for name in ("start", "end"))
        mark = (mark or "").join(map(family.tokenizer.convert_ids_to_tokens, names))
    return mark


def replaces_alone(processor: Any) -> bool:
    """Whether a processor of the library replaces the token of a video alone, as after transformers 5.4."""
    return hasattr(type(processor), "replace_video_token")


def mark_videos(family: Family, ids: torch.Tensor, kinds: torch.Tensor) -> None:
    """Write in ``kinds`` int64 [token] which of the tokens ``ids`` show a video."""
    if family.kind not in VIDEOS:
        return
    if family.video_id is not None:
        kinds[ids == family.video_id] = VIDEO
    if family.kind in FRAMES_ARE_IMAGES:
        names = (family.tokenizer.convert_tokens_to_ids(f"<|{name}_of_video|>") for name in ("begin", "end"))
        begin, end = ((ids == name).cumsum(0) for name in names)
        kinds[(kinds == IMAGE) & (begin > end)] = VIDEO


def template_of(kind: str, media: Sequence[Medium]) -> str | None:
    """The chat template for these pictures and videos, None for the model's own."""
    films = any(isinstance(one, Clip) for one in media)
    return processing_smolvlm.DEFAULT_CHAT_TEMPLATE if kind == "smolvlm" and films else None


def together(kind: str, name: str, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError where transformers cannot read these prompts in one batch."""
    names = {one for prompt in prompts for one in prompt.inputs}
    if kind in FRAMES_ARE_IMAGES and {"pixel_values", "pixel_values_videos"} <= names:
        raise ValueError(
            f"{name} marks pictures and frames of videos by one token, and transformers cannot read both in one batch: "
            "give either, or say batch_size=1"
        )
    lengths = sorted({len(video["frames"]) for prompt in prompts for video in prompt.videos})
    if kind == "llava_onevision" and len(lengths) > 1:
        raise ValueError(
            f"{name} reads videos of one length together, these show {lengths} frames: give each as many, or in "
            "questions of their own with batch_size=1"
        )


# The library's video processors without torchvision.


def _has_lanczos() -> bool:
    try:
        interpolate(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (2, 2), mode="lanczos", antialias=True)
    except NotImplementedError:
        return False
    return True


LANCZOS_IN_TORCH = _has_lanczos()  # where not, the library takes the bicubic filter as well
MODES = {BILINEAR: "bilinear", BICUBIC: "bicubic", LANCZOS: "lanczos" if LANCZOS_IN_TORCH else "bicubic"}


NAMED = {"BILINEAR": "bilinear", "BICUBIC": "bicubic", "LANCZOS": "lanczos"}
TORCHVISION = [".".join("torchvision transforms v2 functional".split()[:depth]) for depth in range(1, 5)]


def resize(frames: torch.Tensor, size: Sequence[int], interpolation: str = "bilinear", **_: Any) -> torch.Tensor:
    """Frames uint8 [..., 3, row_px, col_px] in another size."""
    if frames.shape[-2:] == tuple(size):
        return frames
    options: Any = {"mode": interpolation, "align_corners": False, "antialias": True}
    return interpolate(frames.flatten(0, -4), tuple(size), **options).unflatten(0, frames.shape[:-3])


class TorchHalf(BaseVideoProcessor):
    """What the library's video processors ask of torchvision, asked of torch: the same numbers bit for bit."""

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Frames are read in three colours, see `Video`."""
        return video

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **_: Any) -> torch.Tensor:
        """As `resize`, by one of Pillow's filters; ValueError for one that is not here."""
        if resample not in MODES:
            raise ValueError(f"the model's video processor says resample={resample!r}, which is not supported here")
        return resize(image, (size.height, size.width), MODES[resample])

    def normalize(self, image: torch.Tensor, mean: Any, std: Any, **_: Any) -> torch.Tensor:
        """Frames float32 [..., 3, row_px, col_px], mean and deviation of each colour as given."""
        mean, std = (torch.as_tensor(one)[:, None, None] for one in (mean, std))
        return (image - mean) / std


def with_videos(processor: Any, folder: str, settings: dict[str, Any]) -> Any:
    """The processor, or a copy with the library's video half of that folder, made by these settings of its files."""
    if getattr(processor, "video_processor", None) is not None:
        return processor
    whole = copy.copy(processor)
    whole.video_processor = video_class(folder)(**{one: value for one, value in settings.items() if value is not None})
    return whole


def video_class(folder: str) -> Any:
    """The library's video processor of that folder, on torch alone."""
    name = f"transformers.models.{folder}.video_processing_{folder}"
    # Some modules import torchvision though only annotations name it: they find empty ones for as long as that takes.
    empty = {} if find_spec("torchvision") else {one: ModuleType(one) for one in TORCHVISION}
    sys.modules.update(empty)
    try:
        module = import_module(name)
    finally:
        for one in empty:
            del sys.modules[one]
    named = SimpleNamespace(resize=resize, InterpolationMode=SimpleNamespace(**NAMED))
    vars(module).setdefault("tvF", named)  # what transformers 5.4 asks by itself
    own = getattr(module, module.__all__[0])
    return type(own.__name__, (own, TorchHalf), {"__module__": name})


@contextmanager
def numbers_in_words() -> Iterator[None]:
    """SmolVLM's processor writes how many frames there are with a package that may be missing."""
    module: Any = processing_smolvlm
    own, module.num2words = module.num2words, module.num2words or in_words
    try:
        yield
    finally:
        module.num2words = own


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number from 0 to 999 in English, as the package num2words writes it.

    Examples
    --------
    >>> in_words(16), in_words(64), in_words(768)
    ('sixteen', 'sixty-four', 'seven hundred and sixty-eight')
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return f"{ONES[number // 100]} hundred" + (f" and {in_words(number % 100)}" if number % 100 else "")
