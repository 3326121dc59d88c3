"""Files: where ours lie, and writing them so that they are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = (
    _PACKAGE / "bundled"
)  # where setup.py puts data/ and notebooks/, which in the sources lie beside the package
_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"}
_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # how a file that macOS leaves beside another begins
_ADVICE = {
    errno.ENOENT: "make the folder first, or choose another",
    errno.ENOSPC: "free some space or choose a folder on another disk",
    errno.EDQUOT: "free some space in your quota or choose a folder on another disk",
    errno.EFBIG: "raise the file size limit or choose a folder on another disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
}


def bundled(name: str) -> Path:
    """The folder ``data`` or ``notebooks`` that comes with the package, from its sources or inside an installed one."""
    return (_IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent) / name


def data_folder() -> Path:
    """The project's ``data`` folder; ``VISIONPULSE_DATA`` names another."""
    return Path(os.environ.get("VISIONPULSE_DATA") or bundled("data"))


def own_data_folder() -> Path:
    """The data folder, to write into it: ValueError where it lies inside an installed package, which is pip's."""
    folder = data_folder()
    if folder.resolve().is_relative_to(_IN_WHEEL):
        raise ValueError(
            f"the data folder is that of the installed package, {folder}, and nothing is to be written there; "
            "set VISIONPULSE_DATA to a copy of it, or work in a clone of the project"
        )
    return folder


def working_folder() -> Path:
    """Where notebooks run and ``figures`` is made: the project, of a package that runs from its sources; else here."""
    return Path() if _IN_WHEEL.is_dir() or not bundled("notebooks").is_dir() else _PACKAGE.parent


def cache_folder() -> Path:
    """Where kept results lie: ``VISIONPULSE_CACHE``, or a folder in the user's own for caches (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("VISIONPULSE_CACHE") or user_cache_path("visionpulse_analysis", appauthor=False))


def disk_error(error: OSError, path: Path, kept: str) -> OSError:
    """The same kind of OSError with the path, the advice and what was kept, for the user."""
    advice = _ADVICE.get(error.errno or 0, "check the disk and the folder")
    return OSError(error.errno or errno.EIO, f"cannot write ({error.strerror or error}); {advice}; {kept}", str(path))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a draft to write to, and put it in place of `path` when the block ends well.

    Raises OSError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    if not path.parent.is_dir():
        missing = OSError(errno.ENOENT, f"there is no folder {path.parent}")
        raise disk_error(missing, path, "nothing was written")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise disk_error(error, path, "nothing was written") from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def all_or_none(paths: Collection[Path]) -> Iterator[None]:
    """Take away again, where the block fails or is interrupted, what it wrote of files that were not there before.

    Folders that were made for them go as well, where nothing else is in them. What was replaced stays, old or new.
    """
    new = [path for path in paths if not path.exists()]
    folders = {folder for path in new for folder in path.parents if not folder.exists()}
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        for folder in sorted(folders, key=lambda one: -len(one.parts)):
            with suppress(OSError):  # not made, or not empty
                folder.rmdir()
        raise


def is_foreign(name: str) -> bool:
    """Whether a file or folder of this name was left by another program (Finder, Explorer, an editor), or is hidden."""
    return name.startswith((".", "~$", "@eaDir")) or name.endswith("~") or name.lower() in _LEFT_BY_SYSTEMS


def is_apple_double(path: Path) -> bool:
    """Whether a file is what macOS leaves beside another one on a disk that is not its own: ``._name``."""
    if not path.name.startswith("._"):
        return False
    with path.open("rb") as file:
        return file.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE


def visible_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a folder that end in one of some suffixes (lower case), without those that are not the user's."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not is_foreign(path.name))
    return [path for path in found if path.is_file()]


def holds_more_than_drafts(folder: Path, name: str) -> bool:
    """Whether a folder holds more than drafts of the file ``name``, which a kill leaves, and what systems leave."""
    mine = (entry for entry in folder.iterdir() if not entry.name.startswith(f".{name}."))
    left = (*_LEFT_BY_SYSTEMS, ".ds_store", ".directory", "@eadir")
    return any(entry.name.lower() not in left and not is_apple_double(entry) for entry in mine)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of these bytes by way of `written_whole`."""
    with written_whole(path) as draft:
        draft.write_bytes(content)
