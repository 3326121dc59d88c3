"""Load a vision-language model and turn images and questions into prompts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as hf_logging

from visionpulse_analysis.patches import PatchGrid

BUNDLED = ("scenes",)
SUPPORTED_TYPES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
ImageLike = Any  # a path, a PIL image, or a uint8 array [row_px, col_px, 3]


class UnsupportedModelError(ValueError):
    """The model cannot be recorded exactly, and the message says why."""


@dataclass
class Prompt:
    """One question about one or more images, ready for the model.

    ids int64 [L]; grid : which of the L positions are image patches; pixels float32 [unmerged patch, values];
    grid_thw int64 [image, 3] (frames, rows, columns of unmerged patches); images : the originals, uint8.
    """

    question: str
    ids: torch.Tensor
    grid: PatchGrid
    pixels: torch.Tensor
    grid_thw: torch.Tensor
    images: list[np.ndarray] = field(repr=False)


@dataclass
class VLM:
    """A model with its tokenizer and image processor, as returned by :func:`load`."""

    name: str
    model: Any
    tokenizer: Any
    image_processor: Any
    revision: str | None = None

    @property
    def n_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def default_anchor(self) -> int:
        """Layer from which pruners act by default (zero-based).

        What the model's own configuration states (``visionpulse_anchor``), else ``n_layers // 2 - 1``, the rule of
        arXiv 2605.31457.
        """
        stated = getattr(self.model.config, "visionpulse_anchor", None)
        return max(0, self.n_layers // 2 - 1) if stated is None else int(stated)

    @cached_property
    def weights_hash(self) -> str:
        """First 16 hex digits of the sha256 over all parameters, in name order."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def prompt(self, images: ImageLike | Sequence[ImageLike], question: str) -> Prompt:
        """Build the prompt of one question about one image or several.

        Raises
        ------
        ValueError
            If the question is empty or holds the model's image placeholder, or an image cannot be read.
        FileNotFoundError
            If an image path does not exist.
        """
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"the question is empty (got {question!r}); ask something")
        placeholder = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        if placeholder in question:
            raise ValueError(f"the question contains the image placeholder {placeholder!r}; remove it")
        listed = list(images) if isinstance(images, list | tuple) else [images]
        if not listed:
            raise ValueError("no image given; pass at least one")
        pictures = [read_image(image) for image in listed]
        features = self.image_processor(images=pictures, return_tensors="pt")
        grid_thw = features["image_grid_thw"]
        merge = self.image_processor.merge_size
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self._expand(text, placeholder, [int(thw.prod()) // merge**2 for thw in grid_thw])
        sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
        cells = [(int(thw[1]) // merge, int(thw[2]) // merge) for thw in grid_thw]
        positions = np.flatnonzero(ids.numpy() == self.model.config.image_token_id)
        grid = PatchGrid.from_grid(positions, [c[0] for c in cells], [c[1] for c in cells], sizes)
        return Prompt(question, ids, grid, features["pixel_values"], grid_thw, pictures)

    def _expand(self, text: str, placeholder: str, counts: list[int]) -> torch.Tensor:
        parts = text.split(placeholder)
        if len(parts) - 1 != len(counts):
            raise ValueError(
                f"the chat template of {self.name} wrote {len(parts) - 1} image placeholders for {len(counts)} images"
            )
        ids: list[int] = []
        for part, count in zip(parts, [*counts, 0], strict=True):
            ids += self.tokenizer(part, add_special_tokens=False).input_ids
            ids += [self.model.config.image_token_id] * count
        return torch.tensor(ids)

    def _repr_html_(self) -> str:
        text = self.model.config.get_text_config()
        rows = {
            "model": self.name,
            "architecture": type(self.model).__name__,
            "layers": self.n_layers,
            "heads": f"{text.num_attention_heads} query, {text.num_key_value_heads} key",
            "width": text.hidden_size,
            "default anchor layer": self.default_anchor,
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "dtype and device": f"{self.model.dtype}, {self.model.device}".replace("torch.", ""),
        }
        cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"


def data_folder() -> Path:
    """The project's ``data`` folder; ``VISIONPULSE_DATA`` names another."""
    return Path(os.environ.get("VISIONPULSE_DATA", Path(__file__).parents[1] / "data"))


def load(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str = "main",
) -> VLM:
    """Load a vision-language model.

    Parameters
    ----------
    name : str
        "scenes" (bundled), a folder in Hugging Face format, or a hub id such as "Qwen/Qwen3-VL-4B-Thinking".
    dtype : str or torch.dtype
        "auto" keeps the checkpoint's own.
    device : optional
        Defaults to CUDA where there is one, else the CPU.
    revision : str
        Branch, tag or commit of a hub model.

    Raises
    ------
    ValueError
        If nothing of that name is found.
    UnsupportedModelError
        If the model is text-only or of a family that is not supported.
    """
    source = str(data_folder() / name) if name in BUNDLED else name
    if name in BUNDLED and not Path(source, "config.json").exists():
        raise ValueError(f"the bundled model {name!r} is not at {source}; set VISIONPULSE_DATA to the data folder")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model {name!r}: expected {', '.join(map(repr, BUNDLED))}, a folder with config.json, or a hub id "
            f"that can be reached or is in the local cache ({error})"
        ) from error
    check_supported(config, name)
    try:
        with _quiet(name in BUNDLED):
            model: Any = AutoModelForImageTextToText.from_pretrained(
                source, revision=revision, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
            )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        image_processor = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"the weights of {name!r} or its processor files cannot be read: {error}") from error
    target = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return VLM(
        name=name,
        model=model.eval().to(target),
        tokenizer=tokenizer,
        image_processor=image_processor,
        revision=getattr(config, "_commit_hash", None),
    )


@contextmanager
def _quiet(small: bool) -> Iterator[None]:
    """No progress bar for a model that loads in a blink."""
    shown = hf_logging.is_progress_bar_enabled()
    if small:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def check_supported(config: Any, name: str) -> None:
    """Raise :class:`UnsupportedModelError` unless the configuration is of a supported family."""
    if getattr(config, "vision_config", None) is None:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model without a vision part; give a vision-language model, "
            f"of a family in {', '.join(SUPPORTED_TYPES)}"
        )
    if config.model_type not in SUPPORTED_TYPES:
        raise UnsupportedModelError(
            f"{name!r} is of family {config.model_type!r}, whose image layout is not known here; "
            f"supported: {', '.join(SUPPORTED_TYPES)}"
        )


def read_image(image: ImageLike) -> np.ndarray:
    """Read an image as uint8 [row_px, col_px, 3], EXIF orientation applied, transparency on white.

    Raises FileNotFoundError for a missing file and ValueError for one that is no readable image.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"an image array must be uint8 [row_px, col_px, 3], got {image.dtype} {image.shape}")
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"no image at {path}")
        try:
            with Image.open(path) as opened:
                opened.load()
                picture = opened
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable image: {error}") from error
    elif isinstance(image, Image.Image):
        picture = image
    else:
        raise ValueError(f"an image is a path, a PIL image or a uint8 array, got {type(image).__name__}")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    if picture.mode.startswith("I"):  # 16-bit greys, which PIL would clip rather than scale
        grey = np.asarray(picture, dtype=np.float64) / 257
        return np.clip(grey.round(), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    return np.asarray(picture.convert("RGB"))
