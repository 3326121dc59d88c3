"""The one way to make a trace from arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces.data import build_dataset
from visionpulse_analysis.traces.trace import Trace
from visionpulse_analysis.traces.zarr_group import FORMAT_VERSION


def create_trace(
    *,
    attention: Any,
    mass: Any,
    tokens: Sequence[str],
    token_ids: Any,
    logprobs: Any,
    grid: PatchGrid,
    layers: Sequence[int],
    heads: Sequence[int] | None = None,
    kept: Any = None,
    budget: Any = None,
    k: Any = None,
    pruner_mass: Any = None,
    k_per_layer: Any = None,
    similarity: Any = None,
    similarity_layers: Sequence[int] | None = None,
    images: Iterable[np.ndarray] = (),
    prompt_tokens: Sequence[str] = (),
    meta: Mapping[str, Any],
    precision: Literal["float16", "float32"] = "float16",
) -> Trace:
    """Check everything one decode produced and put it into one labelled dataset.

    Parameters
    ----------
    attention : float16 [step, layer, patch] or, with `heads`, [step, layer, head, patch]
        Softmax row of the newest query over the image patches, not renormalised; rounded to `precision` here.
    mass : float32 [step, layer] or, with `heads`, [step, layer, head]
        Sum of each row over all patches, taken before rounding; 0..1.
    tokens, token_ids, logprobs : str, int64, float32 [step]
        The generated tokens (step 0 comes from prefill); natural logarithms.
    grid : PatchGrid
    layers, heads : int [layer], int [head]
        Model indices of what was recorded; `heads` None means the head mean.
    kept : bool [step, patch], optional
        True = visible at the last layer; None when dense.
    budget, k, pruner_mass : float32, int32, float32 [step], optional
        Budget ratio used, number of patches kept, image mass the pruner saw; NaN (-1 in `k`) for none.
    k_per_layer : int32 [step, model_layer], optional
        Number of patches visible at each layer of the model, recorded or not.
    similarity : float32 [step, similarity_layer, similarity_layer], optional
        Cosines between layers, for layers whose attention is not there; ``dataset["similarity"]`` of the trace.
    similarity_layers : int [similarity_layer], optional
        Model indices of those layers.
    images : uint8 [row_px, col_px, 3], each
        The original images.
    prompt_tokens : list of str
        The prompt, image placeholders collapsed.
    meta : dict
        Provenance, JSON values only; `text` is the full generated text, `complete` defaults to True.
    precision : "float16" or "float32"
        How attention is kept.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError
        An array does not fit the others; the message names the array and the axis.
    TypeError
        An array has the wrong kind of numbers, or a value of `meta` is not JSON; the message names it.

    Examples
    --------
    >>> grid = PatchGrid.from_grid(range(4), rows=2, cols=2, image_sizes=[(16, 16)])
    >>> rows = np.full((2, 1, 4), 0.1)
    >>> trace = create_trace(attention=rows, mass=rows.sum(-1), tokens=["red", " one"], token_ids=[7, 8],
    ...                      logprobs=[-0.1, -0.2], grid=grid, layers=[5], meta={"question": "what ?"})
    >>> len(trace), trace.at(step=1, layer=5).shape, trace.text
    (2, (4,), 'red one')
    """
    stills = [_image(i, image) for i, image in enumerate(images)]
    arrays = {
        **{"attention": attention, "mass": mass, "token_id": token_ids, "logprob": logprobs},
        **{"kept": kept, "budget": budget, "k": k, "pruner_mass": pruner_mass, "k_per_layer": k_per_layer},
        "similarity": similarity,
        "pixels": np.concatenate([image.reshape(-1) for image in stills]) if stills else None,
    }
    dataset = build_dataset(
        arrays,
        grid=grid,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        layers=layers,
        heads=heads,
        image_shapes=[image.shape for image in stills],
        similarity_layers=similarity_layers,
        precision=np.dtype(precision),
        meta={"complete": True, **meta, "format_version": FORMAT_VERSION},
    )
    return Trace(dataset)


def _image(index: int, image: np.ndarray) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"images[{index}] must be uint8 [row_px, col_px, 3], got {array.dtype} of shape {array.shape}")
    return array
