"""Loading by the library: its stock processor, or where torchvision is missing the PIL half; errors, progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

# Where the library keeps the PIL half of each image processor: transformers 5.4 finds none of them without torchvision.
FOLDERS = {
    "CLIPImageProcessor": "clip",
    "DeepseekVLImageProcessor": "deepseek_vl",
    "Gemma3ImageProcessor": "gemma3",
    "Glm46VImageProcessor": "glm46v",
    "Glm4vImageProcessor": "glm4v",
    "GotOcr2ImageProcessor": "got_ocr2",
    "Idefics3ImageProcessor": "idefics3",
    "LlavaImageProcessor": "llava",
    "LlavaNextImageProcessor": "llava_next",
    "LlavaOnevisionImageProcessor": "llava_onevision",
    "PixtralImageProcessor": "pixtral",
    "Qwen2VLImageProcessor": "qwen2_vl",
    "SiglipImageProcessor": "siglip",
    "SmolVLMImageProcessor": "smolvlm",
}


def load_stock(source: str, revision: str, trust_remote_code: bool = False) -> Any | None:
    """The stock processor of a folder or a hub model, as ``AutoProcessor`` makes it; None where it cannot.

    It cannot without torchvision, where it has a video half, and without the files of the parts that it asks for. Own
    code that is not trusted is no reason for another processor: the error stands.
    """
    try:
        found = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # of many types, by model and version
        explain_own_code(source, error)
        return None
    whole = isinstance(found, ProcessorMixin) and all(
        getattr(found, part, None) is not None for part in ("image_processor", "tokenizer")
    )
    return found if whole else None


def load_image_processor(source: str, revision: str, trust_remote_code: bool = False) -> Any:
    """The image processor of a folder or a hub model.

    Raises
    ------
    OSError, ValueError
        If its files cannot be read, or this version of the library has it for torchvision only.
    """
    try:
        return AutoImageProcessor.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code, backend="pil"
        )
    except (ImportError, ValueError) as error:
        kind = _kind(source, revision)
        if kind not in FOLDERS:
            raise ValueError(f"the image processor {kind!r} cannot be loaded: {error}") from error
    return pil_class(kind).from_pretrained(source, revision=revision)


def load_stills(source: str, config: Any, revision: str, trust_remote_code: bool = False) -> Any:
    """The stock processor of a model of this configuration without its video half, which needs torchvision.

    Raises
    ------
    OSError, ValueError
        If its files cannot be read, or there is none of picture and text alone.
    """
    settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
    whole: Any = getattr(transformers, settings.get("processor_class") or "", None)
    whole = whole or (PROCESSOR_MAPPING[type(config)] if type(config) in PROCESSOR_MAPPING else None)
    parts = set() if whole is None else {*whole.get_attributes()} - {"video_processor"}
    if whole is None or parts != {"image_processor", "tokenizer"}:
        raise ValueError(
            f"AutoProcessor.from_pretrained loads no processor of pictures and text for {config.model_type!r}, "
            "whose family is not known here: install what it asks for (torchvision), or load((model, processor))"
        )
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded = {
        "image_processor": load_image_processor(source, **options),
        "tokenizer": AutoTokenizer.from_pretrained(source, **options),
    }
    args = [loaded.get(name) for name in whole.get_attributes()]
    return without_videos(whole).from_args_and_dict(args, settings)


def without_videos(whole: type) -> Any:
    """The class of a processor that takes None for its video half; it reads stills as ever."""

    def check(self: Any, name: str, given: Any) -> Any:
        return None if given is None else whole.check_argument_for_proper_class(self, name, given)

    return type(whole.__name__, (whole,), {"check_argument_for_proper_class": check})


def load_video_settings(source: str, revision: str) -> dict[str, Any]:
    """What the files of a folder or a hub model say about its video processor, {} where they say nothing.

    Read as the library reads them: older models have one file for pictures and videos.
    """
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return json.loads(Path(path).read_text("utf-8"))
    return {}


def pil_class(kind: str) -> Any:
    """The PIL half of an image processor named in `FOLDERS`; ValueError where this version has none."""
    try:
        module = import_module(f"transformers.models.{FOLDERS[kind]}.image_processing_pil_{FOLDERS[kind]}")
    except ImportError as error:
        raise ValueError(
            f"this transformers has {kind} for torchvision only: install torchvision, or a newer transformers"
        ) from error
    return getattr(module, f"{kind}Pil")


def _kind(source: str, revision: str) -> str:
    """Name of the image processor without the mark of a backend."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
    settings = settings.get("image_processor", settings)
    return str(settings.get("image_processor_type")).removesuffix("Fast").removesuffix("Pil")


def explain_own_code(name: str, error: Exception) -> None:
    """Raise ValueError with our own words where the library refused to run a model's code."""
    if "trust_remote_code" in str(error):
        raise ValueError(
            f"{name!r} brings Python code of its own, which is not run unless asked for: read it, and if you trust it, "
            "load(..., trust_remote_code=True), or --trust-remote-code on the command line"
        ) from error


@contextmanager
def quiet(small: bool) -> Iterator[None]:
    """No progress bar for a model that loads in a blink."""
    shown = hf_logging.is_progress_bar_enabled()
    if small:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
