"""Files that studies keep between runs: found again only whole and as they were written, else made anew."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis._util.fingerprints import Unknown, fingerprint, settings
from visionpulse_analysis._util.fingerprints.objects import global_hooks, replaced_parts
from visionpulse_analysis.models.loading import VLM

FORMAT = 4  # of the kept files and of their keys
SEAL = ".kept.json"
CHANGED = "results are not kept: what they depend on changed while they were made"
logger = logging.getLogger(__name__)


def state_of(vlm: VLM, *ran: Any) -> str | None:
    """Fingerprint of all that a result depends on beside its samples and options; None where that cannot be told.

    The model with its weights as they are now, hooks and patched methods, its tokenizer, image processor and
    configurations; the process's settings; and the loaded code of `ran` with all that it reaches.

    Parameters
    ----------
    vlm : VLM
    *ran : functions, classes and objects
        What is called to make the result.
    """
    made = {name for name in vars(vlm) if isinstance(getattr(type(vlm), name, None), cached_property)}
    parts = {name: value for name, value in vars(vlm).items() if not name.startswith("_") and name not in made}
    hashed = list(vlm.model.state_dict(keep_vars=True).values())
    known = [FORMAT, type(vlm), vlm.weights_hash, parts, global_hooks(), settings(), ran]
    return _or_none(known, hashed)


def part_of_key(value: Any) -> str | None:
    """Fingerprint of one argument, such as a pruner, beside a `state_of`; None where that cannot be told."""
    return _or_none([value], installed=False)


def replaced_in_libraries(*values: Any) -> str | None:
    """What somebody replaced in the libraries that arguments such as pruners use; None where that cannot be told."""
    return _or_none_of(lambda: replaced_parts(*values))


def generators() -> str:
    """Fingerprint of the generators that the whole process shares; a run that moved one depends on where it stood.

    Not part of a key: what draws from none of them is found again wherever they stand.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [torch.get_rng_state(), *cuda, list(np.random.get_state()), random.getstate()]  # noqa: NPY002
    return fingerprint(*states, installed=False)


def _or_none(values: list[Any], hashed: Any = (), installed: bool = True) -> str | None:
    known = [one for one in hashed if hasattr(one, "data_ptr")]
    return _or_none_of(lambda: fingerprint(*values, hashed=known, installed=installed))


def _or_none_of(told: Callable[[], str]) -> str | None:
    try:
        return told()
    except Unknown as error:
        say_once(f"results are not kept, for what they depend on cannot be told: {error}")
        return None


@cache
def say_once(text: str) -> None:
    """Warn, once in a process."""
    logger.warning(text)


def keep(path: Path, content: Any) -> None:
    """Write a file of JSON that `recall` knows again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(content)
    sealed = {"format": FORMAT, "sha256": hashlib.sha256(body.encode()).hexdigest(), "content": content}
    write_whole(path, json.dumps(sealed).encode())


def recall(path: Path) -> Any | None:
    """What `keep` wrote; None where there is nothing, or something else by now, which is then removed."""
    try:
        sealed = json.loads(path.read_bytes())
        content = sealed["content"]
        if sealed["format"] == FORMAT and sealed["sha256"] == hashlib.sha256(json.dumps(content).encode()).hexdigest():
            return content
        why = "it does not hold what was written"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = str(error)
    _remove(path, why)
    return None


def seal(folder: Path) -> None:
    """Note in a folder what is in it, so that `is_whole` can tell."""
    write_whole(folder / SEAL, json.dumps({"format": FORMAT, "files": _contents(folder)}).encode())


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder is there with the very files it was sealed with; one that is not is removed."""
    if not folder.exists():
        return False
    try:
        stated = json.loads((folder / SEAL).read_bytes())
        if stated == {"format": FORMAT, "files": _contents(folder)}:
            return True
        why = "files in it are missing, new, or not as they were written"
    except FileNotFoundError:
        why = "it was never finished"
    except (OSError, ValueError) as error:
        why = str(error)
    _remove(folder, why)
    return False


def is_sealed(folder: Path) -> bool:
    """Whether a folder was finished, whatever has become of it."""
    return (folder / SEAL).exists()


def _contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _remove(path: Path, why: str) -> None:
    logger.warning("%s is damaged (%s) and is made anew", path, why)
    # Under another name first: others see it whole or not at all.
    aside = path.with_name(f".damaged-{path.name}-{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def folder_of_this_process() -> Path:
    """A new folder for what is not kept; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="visionpulse-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
