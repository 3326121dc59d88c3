"""Whether a model of a name can be there at all; torch is not needed to tell that it cannot."""

from __future__ import annotations

from pathlib import Path

from visionpulse_analysis._util.files import data_folder

BUNDLED = ("scenes", "charts")


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
