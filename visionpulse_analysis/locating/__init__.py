"""Where each image token lies in its picture, measured instead of known: for models of any family.

Light is put into parts of the picture, and what enters the decoder is compared. Stripes in a binary code find all
centres in a logarithmic number of forward passes of the vision tower; where they form no lattice, a half-plane is swept
over the picture. Which tokens lie where depends on the processor's settings and the picture's size alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visionpulse_analysis.families import UnsupportedModelError
from visionpulse_analysis.images import ImageLike, read_image
from visionpulse_analysis.locating.lattice import Frame, frames_of
from visionpulse_analysis.locating.light import Light, Spans, pictures_of, stripes, sweep
from visionpulse_analysis.locating.probing import Probe, inputs_of
from visionpulse_analysis.models import VLM
from visionpulse_analysis.patches import PatchGrid
from visionpulse_analysis.torch_settings import own_settings

__all__ = ["Located", "MeasuredMaps", "NoMapError", "locate"]

FINER = 1.5  # stripes per column of a lattice, at least
STEPS = 2.0  # positions of the half-plane per column
WIDE = 0.4  # of the picture, read by the median token: no patch, if a lattice would give it far less
KEEP = 64
IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id")
_kept: OrderedDict[Any, Located] = OrderedDict()


class NoMapError(UnsupportedModelError):
    """The image tokens have no places in the picture, or their places form no lattice; it was measured."""


@dataclass(frozen=True)
class Located:
    """Where the image tokens of a prompt lie.

    Attributes
    ----------
    grid : PatchGrid
        The tokens that react to light in the picture; its ``frame`` 0 is the finest reading (tiles), the next ones
        coarser (an overview). Positions are those in the prompt that was measured: see `on`.
    others : int64 [other]
        Positions of the other image tokens, which show nothing: line breaks, padding.
    ids : int64 [token]
        The prompt that was measured.
    way : str
        "stripes" or "sweep", by which the places were found.
    forwards : int
        How often the vision tower ran.
    share : float
        Of the picture, that the median token reads; NaN where stripes sufficed.
    """

    grid: PatchGrid
    others: np.ndarray
    ids: np.ndarray
    way: str
    forwards: int
    share: float

    def on(self, ids: np.ndarray) -> PatchGrid:
        """The same places for another prompt with pictures of the same sizes.

        Parameters
        ----------
        ids : int64 [token]
            The tokens of the other prompt, without padding, in which the same image tokens stand in the same order.

        Returns
        -------
        PatchGrid

        Raises
        ------
        ValueError
            The image tokens differ: the pictures have other sizes, or the processor had other settings.
        """
        mine = np.sort(np.concatenate([self.grid.position, self.others]))
        there = np.flatnonzero(np.isin(ids, self.ids[mine]))
        if not np.array_equal(np.asarray(ids)[there], self.ids[mine]):
            raise ValueError(
                f"the prompt has {len(there)} image tokens, the pictures given have {len(mine)} by this processor; "
                "give the pictures of this prompt, in their order, and the processor that made it, with its settings"
            )
        return replace(self.grid, position=there[np.searchsorted(mine, self.grid.position)])


@own_settings(interruptible=True)
def locate(model: Any, processor: Any = None, images: ImageLike | Sequence[ImageLike] = (), **options: Any) -> Located:
    """Measure where each image token of a prompt lies in the pictures.

    Self-attention in the vision tower is silenced meanwhile, so that a token shows its own pixels alone; positions are
    those at the decoder's input. A measured map is kept in memory for the same model, processor settings and sizes.

    Parameters
    ----------
    model : VLM, or a model of transformers in evaluation mode
    processor : optional
        Its processor, called with images, text and `options`; left out for a VLM, whose family builds the prompt.
    images : image or list of images
        As in :func:`visionpulse_analysis.decode`; only their sizes matter. All are measured in one prompt.
    **options
        What else the processor is called with, such as ``max_pixels``.

    Returns
    -------
    Located

    Raises
    ------
    NoMapError
        No image token reacts to the picture, every token reads most of it (learned queries), or the places form no
        lattice; the message tells what was measured.
    ValueError
        No image is given, the model is in training mode, or its processor is missing.

    Examples
    --------
    >>> import visionpulse_analysis as vpa
    >>> located = vpa.locate(vpa.load("scenes"), images=np.zeros((64, 64, 3), np.uint8))
    >>> located.grid.shape(), located.grid.box[0].tolist(), len(located.others)
    ((8, 8), [0.0, 0.0, 8.0, 8.0], 0)
    """
    vlm = model if isinstance(model, VLM) else VLM.of(model, processor)
    if not isinstance(model, VLM) or processor is not None:
        _check_processor(vlm, processor)
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if not listed:
        raise ValueError("no image given; pass the pictures of the prompt, locate(model, processor, images)")
    sizes = [read_image(image).shape[:2] for image in listed]
    key = _key(vlm, processor, sizes, options)
    if key not in _kept:
        _kept[key] = _measure(vlm, Probe(vlm.model, inputs_of(vlm, processor, len(sizes), options)), sizes)
        if len(_kept) > KEEP:
            _kept.popitem(last=False)
    return _kept[key]


class MeasuredMaps:
    """Where the image tokens of the prompts given to `generate` lie, measured for pictures of known sizes.

    Parameters
    ----------
    vlm : VLM
    processor
        Of the model, that made the inputs.
    images : image, or list
        The pictures of one prompt, or for a batch a list with those of each prompt.
    """

    told = "measured"

    def __init__(self, vlm: VLM, processor: Any, images: Any):
        self.vlm, self.processor, self.images = vlm, processor, images
        _check_processor(vlm, processor)

    def __call__(self, model: Any, inputs: Mapping[str, Any]) -> list[PatchGrid]:
        """One PatchGrid for each prompt, of the inputs of `generate`; raises as `locate` and `Located.on`."""
        ids, mask = inputs["input_ids"].cpu().numpy(), inputs.get("attention_mask")
        if len(ids) == 1:
            images = [self.images]
        elif isinstance(self.images, list | tuple) and len(self.images) == len(ids):
            images = self.images
        else:
            given = len(self.images) if isinstance(self.images, list | tuple) else 1
            raise ValueError(f"generate was given {len(ids)} prompts, and images has pictures of {given}; give a list "
                             "with the image, or the list of images, of each prompt")  # fmt: skip
        real = np.ones(ids.shape, bool) if mask is None else mask.cpu().numpy() != 0
        return [
            locate(self.vlm.model, self.processor, shown).on(row[there])
            for shown, row, there in zip(images, ids, real, strict=True)
        ]


def _check_processor(vlm: VLM, processor: Any) -> None:
    if getattr(processor, "image_processor", None) is None or not callable(processor):
        raise ValueError(
            f"to measure where image tokens lie, the processor of {type(vlm.model).__name__} with its image processor "
            f"is needed, got {processor!r}; give AutoProcessor.from_pretrained(...), or a model loaded with vpa.load"
        )


def _key(vlm: VLM, processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Any:
    """What a map depends on; the settings of processors may be changed in place."""
    pictures = getattr(processor, "image_processor", None) or vlm.image_processor
    plain = {} if processor is None else {
        name: repr(value) for name, value in vars(processor).items() if isinstance(value, int | str | float | list)
    }  # fmt: skip
    settings = (pictures.to_json_string(), repr(sorted(vlm.settings.items(), key=str)), repr(sorted(plain.items())))
    options = {**options, **vlm.prompt_options.limits} if processor is None else options
    return type(vlm.model), vlm.model.config.to_json_string(), settings, tuple(sizes), repr(sorted(options.items()))


def _measure(vlm: VLM, probe: Probe, sizes: Sequence[tuple[int, int]]) -> Located:
    name = type(vlm.model).__name__
    light = Light(probe, sizes)
    if not len(light.token):  # what reads the patches needs their attention, as in towers without a way around it
        probe.silent = False
        light = Light(probe, sizes)
    if not len(light.token):
        raise NoMapError(
            f"no token of {name} differs between a dark and a bright picture at the decoder's input; if its pictures "
            "come in elsewhere (cross-attention), there is no map to measure"
        )
    picture = pictures_of(light)
    counts = np.bincount(picture, minlength=len(sizes))
    if not counts.all() or len(counts) > len(sizes):
        raise NoMapError(f"image tokens of {name} mix {len(sizes)} pictures, which cannot be told apart: tokens by "
                         f"picture {counts.tolist()}; locate one picture at a time")  # fmt: skip
    known = list(zip(counts.tolist(), sizes, strict=True))
    across = max(_columns(count, width, height) for count, (height, width) in known)
    down = max(_columns(count, height, width) for count, (height, width) in known)
    digits = [max(1, int(np.ceil(np.log2(FINER * most)))) for most in (across, down)]
    centre = np.stack([stripes(light, axis, digits[axis]) for axis in (0, 1)], axis=1)
    way, share, resolution = "stripes", float("nan"), [2.0**-digit for digit in digits]
    found = _frames(centre, picture, sizes, resolution)
    if found is None or any(frame.filled < 1 for frames in found for frame in frames):
        steps = [int(np.ceil(STEPS * most)) for most in (across, down)]
        spans = [sweep(light, axis, steps[axis], picture) for axis in (0, 1)]
        way, share, resolution = "sweep", _share(spans), [1 / count for count in steps]
        if share > WIDE and share * counts.min() > 4:
            raise NoMapError(
                f"the {len(light.token)} image tokens of {name} are no patches: the median token reads {share:.0%} of "
                "the picture (learned queries, or a tower that mixes all of it), measured with self-attention of the "
                f"tower {'silenced' if probe.silent else 'on'}; record rows and mass without a map"
            )
        found = _frames(np.stack([one.centre for one in spans], axis=1), picture, sizes, resolution)
    if found is None:
        raise NoMapError(
            f"the places of the {len(light.token)} image tokens of {name} form no lattice (the median token reads "
            f"{share:.1%} of the picture); record rows and mass without a map, and report the model"
        )
    return Located(
        _grid(light.token, picture, found, sizes), _others(vlm, probe.ids, light.token), probe.ids, way,
        probe.forwards, share,
    )  # fmt: skip


def _columns(count: int, size: int, other: int) -> float:
    """How many columns, ``size`` pixels in all, so many tokens may have: in a square lattice, or as square cells."""
    return float(np.sqrt(count) * max(1.0, np.sqrt(size / other)))


def _share(spans: Sequence[Spans]) -> float:
    across, down = (span.end - span.begin for span in spans)
    return float(np.median(across * down))


def _frames(
    centre: np.ndarray, picture: np.ndarray, sizes: Sequence[tuple[int, int]], resolution: Sequence[float]
) -> list[list[Frame]] | None:  # fmt: skip
    """The lattices of each picture, of centres [lit, 2] that are shares of it; None where some form none."""
    found = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.array([width, height])
        frames = frames_of(centre[picture == number] * pixels, (resolution[0] * width, resolution[1] * height))
        if frames is None or len(frames) > 3 or any(frame.filled < 0.5 for frame in frames):
            return None
        found.append(frames)
    return found


def _grid(
    token: np.ndarray, picture: np.ndarray, found: Sequence[Sequence[Frame]], sizes: Sequence[tuple[int, int]]
) -> PatchGrid:
    parts = []
    for image, (frames, size) in enumerate(zip(found, sizes, strict=True)):
        here = token[picture == image]
        for number, frame in enumerate(frames):
            box = frame.boxes(size)
            same = np.zeros(len(box), np.int64)
            parts.append((here[frame.token], same + image, same + number, frame.row, frame.col, box))
    position, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(position)
    return PatchGrid(position[order], *(column[order] for column in rest), image_size=np.array(sizes))


def _others(vlm: VLM, ids: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Tokens of the picture that show nothing: those whose id says image, and those with the id of one that shows."""
    stated = [getattr(vlm.model.config, name, None) for name in IMAGE_IDS]
    image = np.isin(ids, [number for number in stated if isinstance(number, int)]) | np.isin(ids, np.unique(ids[token]))
    return np.setdiff1d(np.flatnonzero(image), token)
