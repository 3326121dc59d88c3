"""Where the image tokens of a prompt lie: the public `locate`, and the same inside `watch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.media.images import ImageLike, read_image
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.families import Family
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.models.locating import Located, NoMapError
from visionpulse_analysis.traces.frames import NO_MAP

__all__ = ["Located", "MeasuredMaps", "NoMapError", "locate"]


@own_settings(interruptible=True)
def locate(model: Any, processor: Any = None, images: ImageLike | Sequence[ImageLike] = (), **options: Any) -> Located:
    """Measure where each image token of a prompt lies in the pictures.

    Self-attention in the vision tower is silenced meanwhile, so that a token shows its own pixels alone; positions are
    those at the decoder's input. A measured map is kept, in memory and in the folder of the caches
    (``VISIONPULSE_CACHE``), for the same kind of model, processor settings and sizes.

    Parameters
    ----------
    model : VLM, or a model of transformers in evaluation mode
    processor : optional
        Its processor, called with images, text and `options`; left out for a VLM, which builds the prompt itself.
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
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if not listed:
        raise ValueError("no image given; pass the pictures of the prompt, locate(model, processor, images)")
    sizes = [read_image(image).shape[:2] for image in listed]
    if isinstance(model, VLM) and processor is None:
        return vlm.family.locate(sizes)
    own = Family(vlm.model, VLM.of(vlm.model, processor).tokenizer, processor, vlm.settings, called_with=options)
    return own.locate(sizes)


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
        Family(vlm.model, vlm.tokenizer, processor, {})  # raises where it cannot be measured

    def __call__(self, model: Any, inputs: Mapping[str, Any]) -> list[PatchGrid | str]:
        """One PatchGrid for each prompt of the inputs of `generate`, or why it has none; raises as `Located.on`."""
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
        return [self._map(shown, row[there]) for shown, row, there in zip(images, ids, real, strict=True)]

    def _map(self, images: Any, ids: np.ndarray) -> PatchGrid | str:
        try:
            return locate(self.vlm.model, self.processor, images).on(ids)
        except NoMapError as error:
            return f"{NO_MAP}: {error}"
