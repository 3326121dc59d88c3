"""The labelled dataset behind a trace: how it is checked and built, and how few arrays it becomes on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionpulse_analysis._util.checks import plain_text
from visionpulse_analysis._util.later import xr
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces.quantities import ALWAYS, BUILT_IN, Quantity

GRID_COLUMNS = ("position", "image", "frame", "row", "col")
# One number a step: joined into one array on disk. The order of both is that of stores and journals.
STEP_COLUMNS = tuple(row.name for row in BUILT_IN.values() if row.axes == ("step",))
LARGE = ("attention", "mass", "kept", "k_per_layer", "pixels", "similarity")
HASHED = (
    *(name for name in BUILT_IN if name != "similarity"),
    *("layer", "head", *GRID_COLUMNS, "box", "pixels", "similarity", "similarity_layer"),
)


def build_dataset(
    arrays: Mapping[str, Any],
    *,
    grid: PatchGrid,
    tokens: Sequence[str],
    prompt_tokens: Sequence[str],
    layers: Sequence[int],
    heads: Sequence[int] | None,
    image_shapes: Sequence[Sequence[int]],
    meta: Mapping[str, Any],
    similarity_layers: Sequence[int] | None = None,
    precision: Any = np.float16,
    quantities: Sequence[Quantity] = (),
) -> xr.Dataset:
    """Check every array against the axes that the table of quantities gives it, and label it.

    ``quantities`` are the rows of arrays beside the built-in ones.

    xarray variables stay as lazy as they are; anything else is converted to the stated dtype. Raises ValueError,
    TypeError: as in `create_trace`.
    """
    texts, layer = _texts("tokens", tokens), _indices("layers", layers)
    n_compared, counts = len(similarity_layers or ()), arrays.get("k_per_layer")
    sizes = {"step": len(texts), "layer": len(layer), "head": len(heads or ()), "patch": len(grid)}
    sizes |= {"model_layer": 0 if counts is None else (0, *np.shape(counts))[-1]}
    sizes |= {"similarity_layer": n_compared, "similarity_layer_2": n_compared}
    coords: dict[str, Any] = {name: ("patch", getattr(grid, name)) for name in GRID_COLUMNS}
    coords |= {
        "step": np.arange(len(texts)),
        "token": ("step", np.array(texts, dtype=object)),
        "layer": layer,
    }
    if heads is not None:
        coords["head"] = _indices("heads", heads)
    if similarity_layers is not None:
        coords["similarity_layer"] = _indices("similarity_layers", similarity_layers)
    variables = {}
    for row in (*BUILT_IN.values(), *quantities):
        if row.name in ALWAYS or arrays.get(row.name) is not None:
            axes = {axis: sizes[axis] for axis in row.recorded_axes(heads)}
            dtype = precision if row.name == "attention" else row.dtype
            variables[row.name] = _variable(row.name, arrays[row.name], np.dtype(dtype), axes, row.attrs)
    if arrays.get("pixels") is not None:
        count = int(sum(np.prod(shape) for shape in image_shapes))
        variables["pixels"] = _variable("pixels", arrays["pixels"], np.dtype(np.uint8), {"byte": count}, {})
    variables["box"] = xr.Variable(("patch", "side"), grid.box)
    attrs = {
        "meta": json_copy(dict(meta), "meta"),
        "prompt_tokens": _texts("prompt_tokens", prompt_tokens),
        "image_shapes": [[int(n) for n in shape] for shape in image_shapes],
        "image_size": grid.image_size.tolist(),
        "frames": np.asarray(grid.frames).tolist(),
        "pictures": np.asarray(grid.pictures).tolist(),
        **({"quantities": [row.to_dict() for row in quantities]} if quantities else {}),
    }
    return xr.Dataset(variables, coords, attrs)


def check_dataset(dataset: xr.Dataset) -> None:
    """Raise ValueError unless the dataset is that of a trace, and counts visible patches at every layer recorded."""
    missing = {"attention", "mass", "token", "token_id", "logprob", "box"} - set(dataset.variables)
    if missing or "meta" not in dataset.attrs:
        raise ValueError(f"not the dataset of a trace: {sorted(missing) or 'meta'} missing; use create_trace")
    counted, last = dataset.sizes.get("model_layer"), max(dataset["layer"].values, default=-1)
    if counted is not None and last >= counted:
        raise ValueError(
            f"k_per_layer has {counted} layers, but layer {last} was recorded; give every layer of the model"
        )


def quantities_in(dataset: xr.Dataset) -> list[Quantity]:
    """The rows of the quantities of a trace beside the built-in ones, as they were when it was recorded."""
    return [Quantity.from_dict(given) for given in dataset.attrs.get("quantities", ())]


def grid_of(dataset: xr.Dataset) -> PatchGrid:
    """The PatchGrid whose columns lie on the dataset's patch axis."""
    columns = {name: dataset[name].values for name in (*GRID_COLUMNS, "box")}
    about: Any = {name: dataset.attrs.get(name) for name in ("image_size", "frames", "pictures")}
    return PatchGrid(**columns, **about)


def to_parts(dataset: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Take a dataset apart into few arrays (eight, and one for each quantity asked for) and JSON attributes.

    Every array costs files and time in a large store, so the columns of steps and of patches are joined into
    two tables of float64, which holds every int32, float32 and token id exactly.
    """
    columns = [name for name in STEP_COLUMNS if name in dataset]
    large = [*LARGE, *(row.name for row in quantities_in(dataset))]
    arrays = {name: dataset[name].values for name in large if name in dataset}
    arrays["steps"] = np.stack([dataset[name].values.astype(np.float64) for name in columns], axis=1)
    patches = [dataset[name].values for name in GRID_COLUMNS]
    arrays["patches"] = np.column_stack([*patches, dataset["box"].values]).astype(np.float64)
    attributes = {
        **dataset.attrs,
        "step_columns": columns,
        "patch_columns": [*GRID_COLUMNS, "left", "top", "right", "bottom"],
        "tokens": dataset["token"].values.tolist(),
        "layers": dataset["layer"].values.tolist(),
        "heads": dataset["head"].values.tolist() if "head" in dataset.coords else None,
        "similarity_layers": dataset["similarity_layer"].values.tolist() if "similarity" in dataset else None,
    }
    return arrays, attributes


def from_parts(arrays: Mapping[str, Any], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Undo `to_parts`; the large arrays may be lazy.

    Raises ValueError, TypeError, KeyError: the parts do not fit each other.
    """
    parts = dict(arrays)
    steps, patches = np.asarray(parts.pop("steps")), np.asarray(parts.pop("patches"))
    grid = PatchGrid(
        *patches[:, :5].T,
        box=patches[:, 5:],
        image_size=attributes["image_size"],
        frames=attributes["frames"],
        pictures=attributes.get("pictures"),  # stores of before videos could be read have none
    )
    parts |= dict(zip(attributes["step_columns"], steps.T, strict=True))
    names = ("tokens", "prompt_tokens", "layers", "heads", "image_shapes", "meta")
    return build_dataset(
        parts,
        grid=grid,
        **{name: attributes[name] for name in names},
        similarity_layers=attributes.get("similarity_layers"),
        quantities=[Quantity.from_dict(given) for given in attributes.get("quantities", ())],
        precision=np.float32 if parts["attention"].dtype == np.float32 else np.float16,
    )


def data_hash(dataset: xr.Dataset) -> str:
    """sha256 (hex) over texts and arrays in a fixed order, each with name, dtype and shape; not over meta."""
    names = ("prompt_tokens", "image_shapes", "image_size", "frames")
    texts = [dataset["token"].values.tolist(), *(dataset.attrs[name] for name in names)]
    pictures = dataset.attrs["pictures"]
    if pictures != [[image, image + 1] for image, *_ in dataset.attrs["frames"]]:  # stills keep the hash they had
        texts.append(pictures)
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name in (*HASHED, *sorted(row.name for row in quantities_in(dataset))):
        if name in dataset.variables:
            array = np.ascontiguousarray(dataset[name].values)
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _variable(
    name: str, value: Any, dtype: np.dtype, sizes: Mapping[str, int], attrs: Mapping[str, Any]
) -> xr.Variable:
    array = value if isinstance(value, xr.Variable) else np.asarray(value)
    axes = ", ".join(sizes)
    if array.ndim != len(sizes):
        raise ValueError(f"{name} must be [{axes}] with {len(sizes)} axes, got shape {tuple(array.shape)}")
    for (axis, size), found in zip(sizes.items(), array.shape, strict=True):
        if found != size:
            raise ValueError(f"{name} [{axes}]: axis {axis} has {found}, expected {size}")
    if isinstance(array, xr.Variable):
        if array.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
        return xr.Variable(tuple(sizes), array._data, attrs)
    kinds = {"f": "fiu", "i": "iu", "b": "b", "u": "u"}[dtype.kind]
    whole = kinds == "iu" and array.dtype.kind == "f" and bool((array == np.floor(array)).all())
    if array.size and array.dtype.kind not in kinds and not whole:
        raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
    return xr.Variable(tuple(sizes), array.astype(dtype), attrs)


def _indices(name: str, values: Sequence[int]) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be a list of whole numbers, got {values!r}")
    if array.size and (array.min() < 0 or len(np.unique(array)) != array.size):
        raise ValueError(f"{name} must be model indices >= 0, each once, got {array.tolist()}")
    return array.astype(np.int64)


def _texts(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str):
        raise TypeError(f"{name} must be a list of str, got one str")
    return [json_copy(value, f"{name}[{i}]", only=str) for i, value in enumerate(values)]


def json_copy(value: Any, name: str, only: type | None = None) -> Any:
    """A deep copy in plain JSON types; TypeError or ValueError naming the first key that is not JSON."""
    if only and not isinstance(value, only):
        raise TypeError(f"{name} must be {only.__name__}, got {type(value).__name__} {value!r}")
    value = plain_text(value)
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{name}: keys must be str, got {wrong[0]!r}")
        return {json_copy(key, f"{name} key"): json_copy(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_copy(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if type(value) is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not valid Unicode text: {value!r}") from None
        return value
    if type(value) is float and not np.isfinite(value):
        raise ValueError(f"{name} is {value}, which JSON cannot hold; use None")
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(
        f"{name} must be a JSON value (str, int, float, bool, None, list, dict), got {type(value).__name__}"
    )
