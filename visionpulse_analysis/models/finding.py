"""Whether a model, a device or a dtype of a name can be there at all; torch is not needed to tell that it cannot."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from visionpulse_analysis._util.files import data_folder

TWINS = ("vica", "yopo")  # of scenes, see `models.twins`
BUNDLED = ("scenes", "charts", *TWINS, "diffusion")  # the last is a twin that is denoised
# What torch calls its devices and its types of floating-point numbers; short floats are many, and left to it.
DEVICES = (
    "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia", "xla", "lazy",
    "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone",
)  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64", "float", "half", "double")


def is_path(name: str) -> bool:
    """Whether a model's name can only be meant as a folder; a hub id is ``owner/name`` or ``name``."""
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name


def no_model(name: str, why: object) -> ValueError:
    """The error of a name under which there is no model, and why not."""
    return ValueError(
        f"no model {name!r}: expected {', '.join(map(repr, BUNDLED))}, a folder with config.json, or a hub id that can "
        f"be reached or is in the local cache ({why})"
    )


def place_of(name: str, revision: str = "main") -> str:
    """Where the library looks for a model; what it would find there is not looked at, nor is the hub asked.

    Parameters
    ----------
    name : str
        As :func:`load` takes it.
    revision : str
        Of a hub model.

    Raises
    ------
    ValueError
        There is nothing: no folder of that path, no config.json in it, or, where the hub may not be asked
        (``HF_HUB_OFFLINE``), no such model in the local cache.
    """
    if name in BUNDLED:
        source = data_folder() / name
        if not (source / "config.json").exists():
            raise ValueError(f"the bundled model {name!r} is not at {source}; set VISIONPULSE_DATA to the data folder")
        return str(source)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise no_model(name, "the folder has no config.json")
        return name
    if Path(name).exists() or is_path(name):
        raise no_model(name, "it is a file" if Path(name).exists() else "there is no such folder")
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise no_model(name, error) from error
    if not isinstance(cached, str) and constants.HF_HUB_OFFLINE:
        raise no_model(
            name, "it is not in the cache, and HF_HUB_OFFLINE=1 keeps from asking the hub: say HF_HUB_OFFLINE=0"
        )
    return name


def no_device(device: object) -> ValueError:
    """The error of a device on which nothing can be computed."""
    expected = "expected cpu, or cuda or mps where there is one; left out, one that is there is taken"
    return ValueError(f"device {device!r} cannot be used on this machine: {expected}")


def no_dtype(dtype: object) -> ValueError:
    """The error of a dtype in which no model computes."""
    return ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}")


def check_names(dtype: str = "auto", device: str | None = None) -> None:
    """Raise the ValueError of a dtype or a device that no torch knows, before it is imported."""
    if dtype not in DTYPES and not dtype.startswith(("float8", "float4")):
        raise no_dtype(dtype)
    kind, colon, number = (device or "cpu").partition(":")
    # A library for devices of another kind gives them a name of its own.
    known = kind in DEVICES or bool(entry_points(group="torch.backends"))
    if not known or (colon and not number.isdecimal()):
        raise no_device(device)
