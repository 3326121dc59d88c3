"""Videos: frames given one by one, a folder of them, an animation, or a film; and which of them are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from visionpulse_analysis._util.files import visible_files
from visionpulse_analysis.media.images import FORMATS, ImageLike, pixels_of, read_image, refuse_huge

MOST_FRAMES = 768  # the most that the processors of the Qwen family take
MOST_PIXELS = 1_000_000_000  # of all frames of one file together
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass
class Clip:
    """A video as it was read.

    Attributes
    ----------
    frames : list of uint8 [row_px, col_px, 3], all of one size
    numbers : list of int, which frames of the source they are, 0..total-1
    total : int, frames of the source
    fps : float, frames of the source per second; None where nobody knows
    """

    frames: list[np.ndarray]
    numbers: list[int]
    total: int
    fps: float | None

    def about(self, image: int, merged: int) -> dict[str, Any]:
        """What a trace keeps of it beside the frames: as which `image` it was shown, how many frames are `merged`."""
        return {"image": image, "fps": self.fps, "total": self.total, "frames": self.numbers, "merged": merged}

    def rate(self, model: str) -> float:
        """Frames of the source per second; ValueError where it is not known and `model` (a name) needs it."""
        if self.fps is None:
            raise ValueError(f"{model} reads the times of frames, and these have none: say Video(frames, fps=...)")
        return self.fps


@dataclass(frozen=True, eq=False)
class Video:
    """A video, to be given wherever an image may be given.

    Parameters
    ----------
    frames : list of images, path, or uint8 [frame, row_px, col_px, 3]
        Frames in order: paths, PIL images or uint8 arrays of one size. Or a folder of image files, in the order of
        their names (numbers as numbers). Or an animated GIF, PNG or WebP file. Or a film (MP4 and others), which needs
        PyAV.
    fps : float, optional
        Frames per second of what is given, above 0. Left out, the file's own mean rate; a list or a folder has none.
        Needed by models that read times.
    sample_fps : float, optional
        Show so many frames per second only, above 0: evenly spread from the first to the last, at least 4, the rule of
        Qwen3-VL's own processor. Left out, every frame is shown, at most 768.

    Raises
    ------
    ValueError
        A rate is not above 0; or, when it is read: fewer than two frames, frames of several sizes, a file that is no
        video or cannot be read, or more frames than can be shown.
    FileNotFoundError
        When it is read: there is no such file or folder.

    Examples
    --------
    >>> clip = Video(np.zeros((9, 16, 24, 3), np.uint8), fps=4, sample_fps=2).read()
    >>> clip.numbers, clip.rate("a model")
    ([0, 3, 5, 8], 4.0)
    """

    frames: Sequence[ImageLike] | np.ndarray | str | Path
    fps: float | None = None
    sample_fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("fps", "sample_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Video: {name} must be above 0, got {value!r}")

    def read(self) -> Clip:
        """Read the frames that are shown.

        Returns
        -------
        Clip
            Their pictures, and which of the source's frames they are.

        Raises
        ------
        ValueError, FileNotFoundError
            As the class says.
        """
        total, fps, take = _source(self.frames)
        fps = self.fps if self.fps is not None else fps
        if total < 2:
            raise ValueError(f"a video needs at least two frames, got {total}; give one picture as an image")
        numbers = list(range(total))
        if self.sample_fps is not None:
            if fps is None:
                raise ValueError("sample_fps needs the rate of the frames: say Video(frames, fps=..., sample_fps=...)")
            count = min(max(int(total / fps * self.sample_fps), 4), total)
            numbers = np.linspace(0, total - 1, count).round().astype(int).tolist()
        if len(numbers) > MOST_FRAMES:
            raise ValueError(
                f"the video shows {len(numbers)} frames, and at most {MOST_FRAMES} can be; say Video(..., sample_fps=1)"
            )
        frames = take(numbers)
        for number, frame in zip(numbers, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise ValueError(f"frames must have one size: frame {number} is {_size(frame)}, not {_size(frames[0])}")
        return Clip(frames, numbers, total, None if fps is None else float(fps))


Source = tuple[int, float | None, Callable[[list[int]], list[np.ndarray]]]  # how many frames, their rate, and some


def _source(frames: Any) -> Source:
    if isinstance(frames, str | Path):
        path = Path(frames)
        if path.is_dir():
            files = sorted(visible_files(path, SUFFIXES), key=_natural)
            return len(files), None, lambda numbers: [read_image(files[n]) for n in numbers]
        if not path.is_file():
            raise FileNotFoundError(f"no video at {path}")
        return _animation(path) or _film(path)
    if isinstance(frames, list | tuple | np.ndarray):
        return len(frames), None, lambda numbers: [read_image(frames[n]) for n in numbers]
    raise ValueError(f"a video is a list of frames or a path, got {type(frames).__name__}")


def _natural(path: Path) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name.lower())]


def _animation(path: Path) -> Source | None:
    """A file that Pillow reads; None for any other."""
    Image.init()
    try:
        with Image.open(path, formats=FORMATS) as opened:
            count, size = getattr(opened, "n_frames", 1), opened.size
            refuse_huge(opened, path)
            waits = [_wait(frame) for frame in ImageSequence.Iterator(opened)] if count > 1 else []
    except Image.UnidentifiedImageError:
        return None
    except Exception as error:  # readers of broken files raise nearly anything
        raise ValueError(f"{path} cannot be read as an animation: {error}") from error

    def take(numbers: list[int]) -> list[np.ndarray]:
        _refuse_huge(path, len(numbers), size)
        with Image.open(path, formats=FORMATS) as picture:
            return [_frame(picture, number, path) for number in numbers]

    return count, 1000 * count / sum(waits) if sum(waits) else None, take


def _wait(frame: Image.Image) -> float:
    """Milliseconds for which a frame is shown, 0 where its file does not say."""
    frame.load()  # some formats say so only then
    return frame.info.get("duration", 0)


def _frame(picture: Image.Image, number: int, path: Path) -> np.ndarray:
    try:
        picture.seek(number)
        one = picture.copy()
    except Exception as error:  # as above
        raise ValueError(f"frame {number} of {path} cannot be read: {error}") from error
    return pixels_of(one, f"frame {number} of {path}")


def _film(path: Path) -> Source:
    try:
        av = import_module("av")
    except ImportError:
        raise ValueError(
            f"{path} is no animation that Pillow reads; films need PyAV (pip install av), or give a folder of frames"
        ) from None

    def walk() -> Iterator[Any]:
        try:
            with av.open(str(path)) as opened:
                yield from opened.decode(video=0)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is not a readable film: {error}") from error

    try:
        with av.open(str(path)) as opened:
            rate = opened.streams.video[0].average_rate
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not a readable film: {error}") from error

    def take(numbers: list[int]) -> list[np.ndarray]:
        wanted, found = set(numbers), []
        for number, frame in enumerate(walk()):
            if number in wanted:
                if getattr(frame, "rotation", 0):
                    raise ValueError(f"{path} is to be turned by {frame.rotation} degrees; turn its frames beforehand")
                _refuse_huge(path, len(numbers), (frame.width, frame.height))
                found.append(frame.to_ndarray(format="rgb24"))
        return found

    return sum(1 for _ in walk()), float(rate) if rate else None, take


def _refuse_huge(path: Path, count: int, size: tuple[int, int]) -> None:
    if count * size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"{path} shows {count} frames of {size[0]} x {size[1]} pixels, above the limit of {MOST_PIXELS:,} pixels; "
            "say Video(..., sample_fps=1), or make it smaller"
        )


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]} x {frame.shape[0]}"
