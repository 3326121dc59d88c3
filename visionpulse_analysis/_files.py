"""Writing files that are there whole or not at all."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADVICE = {
    errno.ENOENT: "make the folder first, or choose another",
    errno.ENOSPC: "free some space or choose a folder on another disk",
    errno.EDQUOT: "free some space in your quota or choose a folder on another disk",
    errno.EFBIG: "raise the file size limit or choose a folder on another disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
}


def disk_error(error: OSError, path: Path, kept: str) -> OSError:
    """The same kind of OSError with the path, the advice and what was kept, for the user."""
    advice = _ADVICE.get(error.errno or 0, "check the disk and the folder")
    return OSError(error.errno or errno.EIO, f"cannot write ({error.strerror or error}); {advice}; {kept}", str(path))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a draft to write to, and put it in place of `path` when the block ends well.

    Raises
    ------
    OSError
        The disk is full or the folder cannot be written; `path` is as it was before.
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


def holds_more_than_drafts(folder: Path, name: str) -> bool:
    """Whether a folder holds anything but drafts of the file ``name``, which a kill in `written_whole` leaves."""
    return any(not entry.name.startswith(f".{name}.") for entry in folder.iterdir())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of these bytes by way of `written_whole`."""
    with written_whole(path) as draft:
        draft.write_bytes(content)
