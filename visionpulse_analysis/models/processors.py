"""Loading by the library: its stock processor, or where torchvision is missing the PIL half; errors, progress bar."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from visionpulse_analysis.models.videos import numbers_in_words

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
    """As `stills_of`, of the files of a folder or a hub model; raises OSError as well if these cannot be read."""
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return stills_of(config, load_image_processor(source, **options), tokenizer, settings)


def stills_of(config: Any, image_processor: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """The stock processor of a model of this configuration without its video half, which needs torchvision.

    Raises
    ------
    ValueError
        There is none of picture and text alone.
    """
    name, tower = settings.get("processor_class"), getattr(config, "vision_config", None)
    if "pixtral" in (str(name).lower().removesuffix("processor"), getattr(tower, "model_type", None)):
        return PixtralStills(image_processor, tokenizer, config)
    whole: Any = getattr(transformers, name or "", None)
    whole = whole or (PROCESSOR_MAPPING[type(config)] if type(config) in PROCESSOR_MAPPING else None)
    parts = set() if whole is None else {*whole.get_attributes()} - {"video_processor"}
    if whole is None or parts != {"image_processor", "tokenizer"}:
        raise ValueError(
            f"AutoProcessor.from_pretrained loads no processor of pictures and text for {config.model_type!r}: install "
            "what it asks for (torchvision), or load((model, processor))"
        )
    given = {"image_processor": image_processor, "tokenizer": tokenizer}
    args = [given.get(part) for part in whole.get_attributes()]
    with numbers_in_words():
        made = without_videos(whole).from_args_and_dict(args, settings)
    made.__class__ = whole  # so that it can be told apart, kept and pickled as the library's own
    return made


def completed(processor: Any, config: Any) -> Any:
    """The processor, or a copy with what older checkpoints state in the model's configuration alone."""
    vision: Any = getattr(config, "vision_config", None)
    if getattr(processor, "patch_size", 0) is not None or getattr(vision, "patch_size", None) is None:
        return processor
    processor = copy.copy(processor)
    processor.patch_size = vision.patch_size
    if hasattr(processor, "num_additional_image_tokens"):  # a class token, before some are left out by the strategy
        processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")
    strategy = getattr(config, "vision_feature_select_strategy", None)
    processor.vision_feature_select_strategy = strategy
    return processor


class PixtralStills:
    """Stands in for ``PixtralProcessor``, which without torchvision cannot even be imported, for stills and text."""

    image_token = "[IMG]"

    def __init__(self, image_processor: Any, tokenizer: Any, config: Any):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)  # pixels of a token

    def __call__(self, images: Any, text: str, **options: Any) -> dict[str, Any]:
        """Pixel values and tokens: a break after each row of a picture but the last, and an end after that."""
        listed = images[0] if isinstance(images[0], list) else images
        side = {"height": self.side, "width": self.side}
        features = self.image_processor(images=listed, patch_size=side, return_tensors="pt")
        sizes = torch.as_tensor(features["image_sizes"])
        first, *rest = text.split(self.image_token)
        for (rows, cols), words in zip((sizes // self.side).tolist(), rest, strict=True):
            first += "[IMG_BREAK]".join([self.image_token * cols] * rows) + "[IMG_END]" + words
        return {**self.tokenizer(first, **options), "pixel_values": features["pixel_values"], "image_sizes": sizes}


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
