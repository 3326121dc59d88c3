"""A trace: making, reading, selecting, saving and showing what one decode produced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visionpulse_analysis._util.later import xr
from visionpulse_analysis.media.images import read_image
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.metrics.attention import layer_cosines, mean_over_steps
from visionpulse_analysis.traces.data import (
    build_dataset,
    check_dataset,
    data_hash,
    from_parts,
    grid_of,
    json_copy,
    quantities_in,
    to_parts,
)
from visionpulse_analysis.traces.frames import pruner_text, trace_html, without_map
from visionpulse_analysis.traces.quantities import ALWAYS, BUILT_IN, Quantity
from visionpulse_analysis.traces.text import split_text
from visionpulse_analysis.traces.zarr_group import FORMAT_VERSION, read_group, write_group

if TYPE_CHECKING:
    from visionpulse_analysis.models.locating import Located


def _recorded(name: str) -> Any:
    """A property of the quantity with this name: None where it was not recorded."""
    row = BUILT_IN[name]
    about = f"{row.dtype} [{', '.join(row.axes)}]: {row.how}{row.unit and f' ({row.unit})'}"
    optional = "" if name in ALWAYS else "; None where dense"
    return property(lambda self: self.dataset.get(name), doc=f"{about}{optional}.")


class Trace:
    """What one decode produced. Make one with `create_trace`, or `Trace.open` a stored one.

    Parameters
    ----------
    dataset : xarray.Dataset
        Dims step, layer, (head), patch; the one source of truth, which every property reads.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        check_dataset(dataset)
        self.dataset = dataset

    def __len__(self) -> int:
        return self.dataset.sizes["step"]

    attention: xr.DataArray = _recorded("attention")
    mass: xr.DataArray = _recorded("mass")
    kept: xr.DataArray | None = _recorded("kept")
    budget: xr.DataArray | None = _recorded("budget")
    k: xr.DataArray | None = _recorded("k")
    pruner_mass: xr.DataArray | None = _recorded("pruner_mass")
    k_per_layer: xr.DataArray | None = _recorded("k_per_layer")

    @property
    def quantities(self) -> dict[str, Quantity]:
        """The rows of the table of quantities that this trace holds, by name, as they were when it was recorded."""
        rows = [*BUILT_IN.values(), *quantities_in(self.dataset)]
        return {row.name: row for row in rows if row.name in self.dataset}

    @property
    def data(self) -> xr.Dataset:
        """Every quantity recorded, by name: arrays with named axes, whose ``attrs`` hold ``unit`` and ``how``."""
        return self.dataset[list(self.quantities)]

    @property
    def tokens(self) -> list[str]:
        """What each generated token adds to the text, spaces included: joined, `text`.

        Empty for a token that leaves a character unfinished; the one that finishes it adds the character.
        """
        return self.dataset["token"].values.tolist()

    @property
    def token_ids(self) -> np.ndarray:
        """int64 [step]."""
        return self.dataset["token_id"].values

    @property
    def logprobs(self) -> np.ndarray:
        """float32 [step]: natural log probability of each chosen token."""
        return self.dataset["logprob"].values

    @property
    def layers(self) -> list[int]:
        """Model indices of the recorded layers."""
        return self.dataset["layer"].values.tolist()

    @property
    def heads(self) -> list[int] | None:
        """Model indices of the recorded heads; None when the head mean was recorded."""
        return self.dataset["head"].values.tolist() if "head" in self.dataset.coords else None

    @cached_property
    def grid(self) -> PatchGrid:
        """Where the patches are."""
        return grid_of(self.dataset)

    @property
    def images(self) -> list[np.ndarray]:
        """uint8 [row_px, col_px, 3], each: the original images."""
        shapes = self.dataset.attrs["image_shapes"]
        if not shapes:
            return []
        ends = np.cumsum([np.prod(shape) for shape in shapes])
        parts = np.split(self.dataset["pixels"].values, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def meta(self) -> dict[str, Any]:
        """Provenance: id, question, model, seed, pruner, versions, finished, complete, ..."""
        return self.dataset.attrs["meta"]

    @property
    def prompt_tokens(self) -> list[str]:
        """The prompt, image placeholders collapsed."""
        return self.dataset.attrs["prompt_tokens"]

    @property
    def question(self) -> str:
        """The question asked; empty when not recorded."""
        return self.meta.get("question", "")

    @property
    def text(self) -> str:
        """The full generated text: `meta["text"]`, else the tokens joined."""
        return self.meta.get("text", "".join(self.tokens))

    @property
    def thinking(self) -> str:
        """What the model thought, as `split_text` finds it; empty when it did not think."""
        return self._split[0]

    @property
    def answer(self) -> str:
        """What the model answered, without marks and special tokens; empty while it still thinks."""
        return self._split[1]

    @property
    def _split(self) -> tuple[str, str]:
        marks = [*self.meta.get("end_tokens", ()), *self.meta.get("special_tokens", ())]
        return split_text(self.text, self.prompt_tokens, [str(mark) for mark in marks])

    def at(self, step: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """Attention of one step over the patches.

        Parameters
        ----------
        step : int, 0..n_steps-1
        layer : int, optional
            Model index of a recorded layer; may be left out when only one was recorded.
        head : int, optional, model index of a recorded head; left out, the mean over the recorded heads

        Returns
        -------
        float32 [patch], not renormalised; sums to at most 1

        Raises
        ------
        IndexError
            The step, layer or head was not recorded; the message lists what was.
        """
        if not isinstance(step, int | np.integer) or isinstance(step, bool) or not 0 <= step < len(self):
            raise IndexError(f"step {step!r} is out of range: this trace has steps 0..{len(self) - 1}")
        if layer is None and len(self.layers) != 1:
            raise IndexError(f"several layers were recorded, {self.layers}: choose one (layer=, or --layer)")
        layer = self.layers[0] if layer is None else layer
        if layer not in self.layers:
            raise IndexError(f"layer {layer} was not recorded; recorded layers: {self.layers}")
        rows, heads = self.attention[step, self.layers.index(layer)].values.astype(np.float32), self.heads
        if head is None:
            return rows if heads is None else rows.mean(axis=0)
        if heads is None:
            raise IndexError(f"head {head} was not recorded: this trace holds the mean over heads")
        if head not in heads:
            raise IndexError(f"head {head} was not recorded; recorded heads: {heads}")
        return rows[heads.index(head)]

    def layer_similarity(self) -> xr.DataArray:
        """How alike the layers' attention is: the cosine between head means, averaged over the steps.

        From the recorded rows, or from the cosines that an imported trace keeps in their place; see
        `measures.layer_similarity`.

        Returns
        -------
        DataArray, float64 [layer, other_layer], 0 to 1
            With the model indices of the layers. Steps at which a layer has no mass are left out; NaN if none is left.

        Raises
        ------
        ValueError
            Fewer than two layers were recorded, or the trace has no step.
        """
        if "similarity" in self.dataset:
            layers = self.dataset["similarity_layer"].values.tolist()
            cosines = self.dataset["similarity"].values
            seen = np.einsum("sll->sl", cosines) > 0  # a layer without mass is not even like itself
            cosines = np.where(seen[:, :, None] & seen[:, None], cosines, np.nan)
        else:
            layers = self.layers
            if len(layers) < 2 or not len(self):
                raise ValueError(
                    f"similarity compares layers, but this trace of {len(self)} steps has recorded {layers}; decode "
                    "with layers='all', or import a file that was collected with all layers"
                )
            # Some steps at a time: all heads of all layers as float64 would be gigabytes.
            parts = (self.attention[start : start + 32].values.astype(np.float64) for start in range(0, len(self), 32))
            cosines = np.concatenate([layer_cosines(p if self.heads is None else p.mean(axis=2)) for p in parts])
        places = {"layer": layers, "other_layer": layers}
        return xr.DataArray(mean_over_steps(cosines), places, tuple(places), "layer_similarity")

    @property
    def data_hash(self) -> str:
        """sha256 (hex) over the arrays and texts, not over `meta`: equal data, equal hash, stored or not."""
        return data_hash(self.dataset)

    def with_meta(self, meta: Mapping[str, Any]) -> Trace:
        """The same data with other `meta` (`complete` and `format_version` are kept unless given).

        Raises TypeError or ValueError for a value that is not JSON, naming its key.
        """
        kept = {name: self.meta[name] for name in ("complete", "format_version") if name in self.meta}
        return Trace(self.dataset.assign_attrs(meta=json_copy({**kept, **meta}, "meta")))

    def locate(self, images: Any, located: Located) -> Trace:
        """The same trace with the places of its image tokens, which was recorded without a map.

        Parameters
        ----------
        images : image or list of images
            Those of its prompt, in their order: paths, PIL images or uint8 [row_px, col_px, 3]. The trace keeps them.
        located : Located
            What ``vpa.locate(model, processor, images)`` measured.

        Returns
        -------
        Trace
            Its patches are the tokens that show a part of a picture. The attention to others (line breaks, padding) is
            left out, and taken from the ``mass``, as it was rounded.

        Raises
        ------
        ValueError
            The trace has a map, its prompt had other image tokens, the images have other sizes, or a pruner hid tokens
            that are no patches, so that its counts cannot be told apart.
        """
        return _placed(self, images, located)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the trace as one zarr group; a reader sees all of it or nothing.

        Parameters
        ----------
        path : str or Path, the folder to be
        overwrite : bool, whether to replace a trace that is there

        Raises
        ------
        FileExistsError
            `path` exists and `overwrite` is False, or is not a trace.
        OSError
            The disk is full or the folder cannot be written; nothing is left behind.
        """
        write_group(Path(path), *to_parts(self.dataset), overwrite=overwrite)

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Open a saved trace; attention, kept sets and pixels are read when used.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        Trace

        Raises
        ------
        FileNotFoundError
            Nothing is there.
        ValueError
            It is not a trace, half-written, or damaged; the message names the file.
        StoreVersionError
            It was written in another format version.
        """
        variables, attributes = read_group(Path(path))
        try:
            return cls(from_parts(variables, attributes))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}; restore it, or delete it and record it again") from error

    def _repr_html_(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.attention.sizes.items())
        facts = {
            "recorded": f"{sizes}; layers {self.layers}",
            "model": str(self.meta.get("model", "unknown")),
            "pruner": pruner_text(self.meta.get("pruner")),
            **{name: str(self.meta.get(name, "unknown")) for name in ("finished", "complete")},
            **{name: str(self.meta[name]) for name in ("map", "unlike_training") if name in self.meta},
        }
        image = self.images[0] if self.images else None
        mass = self.mass.mean([dim for dim in self.mass.dims if dim != "step"]).values.tolist()
        return trace_html(image=image, question=self.question, tokens=self.tokens, mass=mass, facts=facts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.attention.sizes.items())
        return f"<Trace {self.meta.get('id', '')!r} ({sizes}) {self.text[:60]!r}>"


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
    recorded: Mapping[Quantity, Any] = MappingProxyType({}),
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
    recorded : mapping of Quantity to array
        What was recorded besides, with the axes that each quantity has.

    Returns
    -------
    Trace

    Raises
    ------
    ValueError
        An array does not fit the others, or a quantity has values that it cannot have; the message names them.
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
    for row, values in recorded.items():
        row.check(np.asarray(values))
    arrays = {
        **{"attention": attention, "mass": mass, "token_id": token_ids, "logprob": logprobs},
        **{"kept": kept, "budget": budget, "k": k, "pruner_mass": pruner_mass, "k_per_layer": k_per_layer},
        **{"similarity": similarity, **{row.name: values for row, values in recorded.items()}},
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
        quantities=list(recorded),
        meta={"complete": True, **meta, "format_version": FORMAT_VERSION},
    )
    return Trace(dataset)


def _image(index: int, image: np.ndarray) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"images[{index}] must be uint8 [row_px, col_px, 3], got {array.dtype} of shape {array.shape}")
    return array


def _placed(trace: Trace, images: Any, located: Any) -> Trace:
    """A trace that was recorded without a map, with the places of its image tokens; raises as `Trace.locate`."""
    if without_map(trace) is None:
        raise ValueError("this trace has a map already: trace.grid says where its patches lie")
    pictures = [read_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
    sizes = [list(picture.shape[:2]) for picture in pictures]
    if sizes != located.grid.image_size.tolist():
        raise ValueError(f"the images have {sizes} rows and columns of pixels, but what was measured was of "
                         f"{located.grid.image_size.tolist()}; give the images that vpa.locate was given")  # fmt: skip
    tokens = np.sort(np.concatenate([located.grid.position, located.others]))
    if len(tokens) != len(trace.grid):
        raise ValueError(
            f"the prompt of the trace had {len(trace.grid)} image tokens, the images given have {len(tokens)} by the "
            "processor that measured; give the images of this prompt, and its processor with its settings"
        )
    chosen = np.searchsorted(tokens, located.grid.position)
    others = np.setdiff1d(np.arange(len(tokens)), chosen)
    if len(others) and trace.kept is not None:
        raise ValueError(
            f"a pruner hid image tokens of this trace, of which {len(others)} are no patches, and how many of them at "
            "each layer is not known; record it with the images: vpa.watch(model, processor, images=...)"
        )
    more = quantities_in(trace.dataset)
    summed = [row.name for row in more if "patch" not in row.axes]
    if len(others) and summed:
        raise ValueError(
            f"{', '.join(summed)} of this trace are over all image tokens, of which {len(others)} are no patches; "
            "record it with the images: vpa.watch(model, processor, images=...)"
        )
    arrays: dict[str, Any] = {}
    for name, row in trace.quantities.items():
        values = trace.dataset[name].values
        arrays[name] = values[..., chosen] if row.axes[-1] == "patch" else values
    attention = trace.attention.values
    arrays["mass"] = trace.mass.values - attention[..., others].sum(axis=-1, dtype=np.float32)
    arrays["pixels"] = np.concatenate([picture.reshape(-1) for picture in pictures])
    dataset = build_dataset(
        arrays,
        grid=replace(located.grid, position=trace.grid.position[chosen]),
        tokens=trace.tokens,
        prompt_tokens=trace.prompt_tokens,
        layers=trace.layers,
        heads=trace.heads,
        image_shapes=[picture.shape for picture in pictures],
        meta={**trace.meta, "map": "measured"},
        precision=attention.dtype,
        quantities=more,
    )
    return Trace(dataset)


def traces_hash(traces: Sequence[Trace]) -> str:
    """sha256 (hex) over the data of several traces, for the provenance of a figure.

    Parameters
    ----------
    traces : sequence of Trace
        All that the figure shows, in its order.

    Returns
    -------
    str
    """
    return hashlib.sha256("".join(trace.data_hash for trace in traces).encode()).hexdigest()
