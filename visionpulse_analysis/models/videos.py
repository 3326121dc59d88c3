"""Videos: what stands for one in the prompt, and its frames as tensors, type by type.

The library's video processors need torchvision. Here is their arithmetic without it, the same numbers bit for bit;
types that are not in the table read stills alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate
from transformers import Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from visionpulse_analysis.media.videos import Clip
from visionpulse_analysis.models.asking import Medium
from visionpulse_analysis.models.layouts import Cells
from visionpulse_analysis.models.limits import edges
from visionpulse_analysis.models.prompts import IMAGE, VIDEO, Prompt

if TYPE_CHECKING:
    from visionpulse_analysis.models.families import Family

CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
SQUARE = {**CLIP, "size": {"height": 384, "width": 384}}
LANCZOS, BICUBIC = 1, 3  # as Pillow numbers its filters
COMMON = {"resample": BICUBIC, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
LARGEST = 4096  # pixels along the longer side of a frame of SmolVLM


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


@dataclass(frozen=True)
class VideoType:
    """How a type of model reads videos.

    read : makes the inputs of one; placeholder : what the chat template writes for one, where that is not the token
    that features replace; template : another chat template than the model's own; frames_are_images : whether frames are
    image tokens between marks of a video.
    """

    read: Callable[[Family, Clip], FilmInputs]
    placeholder: Callable[[Family], str] | None = None
    template: str | None = None
    frames_are_images: bool = False

    def mark(self, family: Family, ids: torch.Tensor, kinds: torch.Tensor) -> None:
        """Write in ``kinds`` int64 [token] which of the tokens ``ids`` show a video."""
        if family.video_id is not None:
            kinds[ids == family.video_id] = VIDEO
        if self.frames_are_images:
            begin, end = (
                (ids == family.tokenizer.convert_tokens_to_ids(f"<|{name}_of_video|>")).cumsum(0)
                for name in ("begin", "end")
            )
            kinds[(kinds == IMAGE) & (begin > end)] = VIDEO


def template_of(kind: str, media: Sequence[Medium]) -> str | None:
    """The chat template for these pictures and videos, None for the model's own."""
    film = VIDEOS.get(kind)
    return film.template if film is not None and any(isinstance(one, Clip) for one in media) else None


def together(kind: str, name: str, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError where transformers cannot read these prompts in one batch."""
    film = VIDEOS.get(kind)
    names = {one for prompt in prompts for one in prompt.inputs}
    if film is not None and film.frames_are_images and {"pixel_values", "pixel_values_videos"} <= names:
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


# Frames as tensors.


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


def resized(frames: torch.Tensor, height: int, width: int, settings: dict[str, Any]) -> torch.Tensor:
    """Frames uint8 [frame, 3, row_px, col_px] in another size."""
    if frames.shape[2:] == (height, width):
        return frames
    mode = "lanczos" if settings["resample"] == LANCZOS and LANCZOS_IN_TORCH else "bicubic"
    return interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=True)


def pixels_of(clip: Clip, sizes: Sequence[tuple[int, int]], settings: dict[str, Any]) -> torch.Tensor:
    """All frames scaled to one size after the other, then normalised: float32 [frame, 3, row_px, col_px]."""
    frames = torch.stack([torch.from_numpy(frame.copy()) for frame in clip.frames]).permute(0, 3, 1, 2).contiguous()
    for height, width in sizes:
        frames = resized(frames, height, width, settings)
    scale = 1.0 / settings["rescale_factor"]
    mean, std = (torch.tensor(settings[name]) * scale for name in ("image_mean", "image_std"))
    return (frames.float() - mean[:, None, None]) / std[:, None, None]


def _patches(frames: torch.Tensor, settings: dict[str, Any]) -> tuple[torch.Tensor, list[int]]:
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


def _blocks(count: int, rows: int, cols: int, clip: Clip, share: float = 1.0) -> Cells:
    """The same grid in each of so many frames, over this share of their sides."""
    height, width = clip.frames[0].shape[:2]
    return Cells.join(
        *(Cells.block(rows, cols, (0, 0, share * width, share * height), frame=frame) for frame in range(count))
    )


def _files(family: Family, **defaults: Any) -> dict[str, Any]:
    return settings_of(family.settings.get("video_processor") or {}, **defaults)


# Qwen and GLM: one grid per frame, and frames next to each other merged.


@dataclass(frozen=True)
class OfGrids:
    """Qwen2-VL and what came of it. One frame of the grid is as many frames as the model's temporal patch is long.

    module : that of the library whose ``smart_resize`` scales all frames together; None where each frame may have so
    many pixels. seconds : whether the model is told the time between frames. framed : how the text of a video is made
    of the tokens of one frame of the grid; None where these just follow each other.
    """

    patch: int
    fewest: int
    most: int
    colours: dict[str, Any] = field(default_factory=lambda: CLIP)
    module: str | None = None
    seconds: bool = False
    framed: Callable[[Family, Clip, int, int, int], str] | None = None

    def __call__(self, family: Family, clip: Clip) -> FilmInputs:
        size = {"shortest_edge": self.fewest, "longest_edge": self.most}
        shape = {"patch_size": self.patch, "temporal_patch_size": 2, "merge_size": 2}
        settings = _files(family, **self.colours, **shape, size=size)
        group = settings["temporal_patch_size"]
        values, grid = _patches(pixels_of(clip, [self._size(family, clip, settings)], settings), settings)
        times, rows, cols = grid[0], *(n // settings["merge_size"] for n in grid[1:])
        inputs = {"pixel_values_videos": values, "video_grid_thw": torch.tensor([grid])}
        name = family.config.model_type
        if self.seconds:
            shown = len(clip.numbers) / clip.total * clip.rate(name)
            inputs["second_per_grid_ts"] = torch.tensor([group / shown])
        if self.framed is None:
            text = family.tokenizer.convert_ids_to_tokens(family.video_id) * (times * rows * cols)
        else:
            text = self.framed(family, clip, times, rows * cols, group)
        return FilmInputs(text, _blocks(times, rows, cols, clip), inputs, group)

    def _size(self, family: Family, clip: Clip, settings: dict[str, Any]) -> tuple[int, int]:
        """Height and width in pixels at which the model reads the frames."""
        height, width = clip.frames[0].shape[:2]
        own, options, factor = settings["size"], family.options, settings["patch_size"] * settings["merge_size"]
        if self.module is None:
            size = edges(own, options)
            return smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])
        size = edges(own, options, len(clip.frames))
        if options.max_pixels is not None:  # a long video stays within what the model takes in all
            size["longest_edge"] = min(size["longest_edge"], own["longest_edge"])
            size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        # Imported late: with a torchvision that does not fit torch this fails, and stills need none of it.
        module = import_module(f"transformers.models.{self.module}.video_processing_{self.module}")
        return module.smart_resize(
            num_frames=len(clip.frames), height=height, width=width, temporal_factor=settings["temporal_patch_size"],
            factor=factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"],
        )  # fmt: skip


def _in_marks(family: Family, marks: str) -> str:
    names = (getattr(family.config, f"vision_{name}_token_id") for name in ("start", "end"))
    start, end = map(family.tokenizer.convert_ids_to_tokens, names)
    return f"{start}{marks}{end}"


def _qwen3_framed(family: Family, clip: Clip, times: int, tokens: int, group: int) -> str:
    """The time of every frame of the grid is written before it, the mean of the frames that are merged."""
    seconds = clip.seconds(family.config.model_type)
    seconds += seconds[-1:] * (times * group - len(seconds))
    mark = family.tokenizer.convert_ids_to_tokens(family.video_id)
    means = [(seconds[first] + seconds[first + group - 1]) / 2 for first in range(0, times * group, group)]
    return "".join(f"<{mean:.1f} seconds>{_in_marks(family, mark * tokens)}" for mean in means)


def _qwen3_placeholder(family: Family) -> str:
    """The marks that the template writes around a video stay since the library replaces the token alone."""
    mark = family.tokenizer.convert_ids_to_tokens(family.video_id)
    return mark if hasattr(Qwen3VLProcessor, "replace_video_token") else _in_marks(family, mark)


def _glm_framed(time: str) -> Callable[[Family, Clip, int, int, int], str]:
    """Frames are image tokens between marks, and the second of each is written behind it."""

    def framed(family: Family, clip: Clip, times: int, tokens: int, group: int) -> str:
        seconds = clip.seconds(family.config.model_type)[::2]
        seconds += seconds[-1:] * (times - len(seconds))
        line = f"<|begin_of_image|>{(family.image_token or '') * tokens}<|end_of_image|>"
        written = (time.format(int(second) if time == "{}" else second) for second in seconds[:times])
        return "".join(line + second for second in written)

    return framed


# Frame after frame, as a still each.


def _internvl(family: Family, clip: Clip) -> FilmInputs:
    """InternVL: every frame is one tile, behind its number."""
    settings = _files(family, **SQUARE)
    values = pixels_of(clip, [(settings["size"]["height"], settings["size"]["width"])], settings)
    config, vision = family.config, family.config.vision_config
    image, patch = (size if isinstance(size, int) else size[0] for size in (vision.image_size, vision.patch_size))
    side = int(image // patch * config.downsample_ratio)
    start, end = family.tokenizer.start_image_token, family.tokenizer.end_image_token
    one = f"{start}{(family.image_token or '') * side**2}{end}"
    text = "\n".join(f"Frame{number + 1}: {one}" for number in range(len(values)))
    return FilmInputs(text, _blocks(len(values), side, side, clip), {"pixel_values": values})


def _onevision(family: Family, clip: Clip) -> FilmInputs:
    """LLaVA-OneVision: frames squeezed into the overview's square; four patches of the tower become one token."""
    settings = _files(family, **SQUARE)
    values = pixels_of(clip, [(settings["size"]["height"], settings["size"]["width"])], settings)
    vision = family.config.vision_config
    patches = vision.image_size // vision.patch_size
    side, share = -(-patches // 2), patches * vision.patch_size / vision.image_size
    cells = Cells.join(_blocks(len(values), side, side, clip, share), Cells.breaks())  # one break after the whole video
    token = family.tokenizer.convert_ids_to_tokens(family.video_id)
    return FilmInputs(token * len(cells), cells, {"pixel_values_videos": values[None]})


def _smolvlm(family: Family, clip: Clip) -> FilmInputs:
    """SmolVLM: every frame is an overview alone, behind its time.

    Frames are scaled twice, as the library does: to the longer side of its files, then to the tower's square.
    """
    given = (family.settings.get("video_processor") or {}).get("video_sampling") or {}
    size = given.get("video_size", {"longest_edge": 4 * 364})
    settings = _files(family, **HALVES, size=size, resample=LANCZOS, max_image_size={"longest_edge": 364})
    height, width = clip.frames[0].shape[:2]
    longest, ratio = min(LARGEST, settings["size"]["longest_edge"]), width / height
    shorter = int(longest / ratio) if width >= height else int(longest * ratio)
    shorter = max(shorter + shorter % 2, 1)  # an even number
    edge = settings["max_image_size"]["longest_edge"]
    first = (shorter, longest) if width >= height else (longest, shorter)
    values = pixels_of(clip, [first, (edge, edge)], settings)[:, None]
    inputs = {"pixel_values": values, "pixel_attention_mask": torch.ones_like(values[:, :, 0], dtype=torch.int64)}
    vision = family.config.vision_config
    side = vision.image_size // vision.patch_size // family.config.scale_factor
    seconds = [int(second) for second in clip.seconds(family.config.model_type)]
    tokens = (family.image_token or "") * side**2
    one = f"<fake_token_around_image><global-img>{tokens}<fake_token_around_image>"
    length = str(timedelta(seconds=seconds[-1]))
    text = (
        DEFAULT_VIDEO_INTRO.format(frame_count=in_words(len(seconds)), video_duration=length)
        + "".join(FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{s // 60:02d}:{s % 60:02d}") + one for s in seconds)
        + DEFAULT_MEDIA_OUTTRO
    )
    return FilmInputs(text, _blocks(len(values), side, side, clip), inputs)


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number from 0 to 999 in English, which the library takes from the package num2words.

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


_QWEN2 = OfGrids(14, 128 * 28**2, 768 * 28**2)
_QWEN3 = VideoType(OfGrids(16, 128 * 32**2, 768 * 32**2, HALVES, "qwen3_vl", framed=_qwen3_framed), _qwen3_placeholder)


def _glm(time: str) -> VideoType:
    grids = OfGrids(14, 112**2, 28**2 * 2 * 30000, module="glm4v", framed=_glm_framed(time))
    return VideoType(grids, frames_are_images=True)


VIDEOS: dict[str, VideoType] = {
    "glm46v": _glm("{:.1f} seconds"),
    "glm4v": _glm("{}"),
    "glm4v_moe": _glm("{}"),
    "internvl": VideoType(_internvl, lambda family: family.tokenizer.video_token),
    "llava_onevision": VideoType(_onevision),
    "qwen2_5_vl": VideoType(OfGrids(14, 128 * 28**2, 768 * 28**2, seconds=True)),
    "qwen2_vl": VideoType(_QWEN2),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "smolvlm": VideoType(
        _smolvlm, lambda family: getattr(family.tokenizer, "video_token", "<video>"), DEFAULT_CHAT_TEMPLATE
    ),
}
