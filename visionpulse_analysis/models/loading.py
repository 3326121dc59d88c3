"""Load a vision-language model and turn images and questions into prompts."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    PreTrainedModel,
    ProcessorMixin,
)

from visionpulse_analysis._util.fingerprints.objects import bytes_of, every_byte
from visionpulse_analysis._util.html import facts_table
from visionpulse_analysis._util.ledger import note, note_object
from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.media.videos import Video
from visionpulse_analysis.models.checkpoint import check_arrived
from visionpulse_analysis.models.families import (
    FLOATS,
    Family,
    Prompt,
    PromptOptions,
    attention_of,
    check_supported,
)
from visionpulse_analysis.models.finding import BUNDLED, no_device, no_dtype, no_model, place_of
from visionpulse_analysis.models.generation_config import Generation
from visionpulse_analysis.models.picture_kind import unlike_training
from visionpulse_analysis.models.processors import (
    explain_own_code,
    load_stills,
    load_stock,
    load_video_settings,
    quiet,
    stills_of,
)
from visionpulse_analysis.models.token_text import Decoder
from visionpulse_analysis.models.twins import become_twin, origin_of
from visionpulse_analysis.pruners.pattern import ORDINARY, Pattern

CACHE_LINE = 64  # bytes: torch puts every tensor of its own at a multiple
WITHOUT_ROWS = {"conv", "linear_attention", "mamba", "mlp", "moe", "recurrent"}  # kinds of layers without a softmax


@dataclass
class VLM:
    """A model with its tokenizer and image processor, as returned by :func:`load`.

    Parameters
    ----------
    name : str, as it was asked for
    model, tokenizer, image_processor
        Those of transformers; `settings` is what the model's processor file says beside them.
    revision : str, optional, the commit of a hub model
    settings : dict
    processor : the stock one (``AutoProcessor``, or without torchvision its half for stills), whose parts the two above
        are; it builds the prompts. None for a model of the user's that is given without.
    prompt_options : PromptOptions, how the model is asked unless a decode says otherwise; see :meth:`asking`
    """

    name: str
    model: Any
    tokenizer: Any
    image_processor: Any
    revision: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    processor: Any = None
    prompt_options: PromptOptions = field(default_factory=PromptOptions)
    _hashed: list[str] = field(default_factory=lambda: ["", ""], init=False, repr=False, compare=False)

    @property
    def family(self) -> Family:
        """How this kind of model reads pictures."""
        processor = self.processor
        if processor is None and self.image_processor is not None:
            processor = stills_of(self.model.config, self.image_processor, self.tokenizer, self.settings)
        return Family(self.model, self.tokenizer, processor, self.settings, self.prompt_options)

    def asking(self, options: PromptOptions | Mapping[str, Any] | None) -> VLM:
        """The same model, with the same weights, asked with exactly these options.

        Parameters
        ----------
        options : PromptOptions, or a dict with some of its fields; None for the model's own files alone

        Returns
        -------
        VLM

        Raises
        ------
        ValueError
            An option is unknown, of another type or out of range, or limits pictures in a way that the model does not
            know. What its chat template does not know is told by :meth:`prompt`.
        """
        asked = copy.copy(self)
        asked.prompt_options = PromptOptions.of(options)
        if asked.prompt_options.limits:
            _ = asked.family
        if asked.prompt_options.to_dict():
            note("prompt_options", json.dumps(asked.prompt_options.to_dict(), sort_keys=True), Path(self.name).name)
        return asked

    @property
    def generation(self) -> Generation:
        """What the model's own generation configuration asks of decoding."""
        return Generation(self.model, self.tokenizer)

    @property
    def n_layers(self) -> int:
        """Number of layers of the language model."""
        return self.model.config.get_text_config(decoder=True).num_hidden_layers

    @property
    def n_heads(self) -> int:
        """Number of query heads of a layer; ValueError where layers differ."""
        text = self.model.config.get_text_config(decoder=True)
        try:
            return text.num_attention_heads
        except RuntimeError as error:  # of the library, where layers have values of their own
            counts = {text.per_layer_config[layer].num_attention_heads for layer in range(self.n_layers)}
            if len(counts) > 1:
                raise ValueError(
                    f"layers of {self.name} have different numbers of heads, {sorted(counts)}: their heads have no "
                    "number in common; say heads='mean'"
                ) from error
            return counts.pop()

    @property
    def default_anchor(self) -> int:
        """Layer from which pruners act by default (zero-based).

        What the model's own configuration states (``visionpulse_anchor``), else ``n_layers // 2 - 1``, the rule of
        arXiv 2605.31457; where layers of two kinds alternate, the nearest that sees the whole prompt.
        """
        stated = getattr(self.model.config, "visionpulse_anchor", None)
        if stated is not None:
            return int(stated)
        rule = max(0, self.n_layers // 2 - 1)
        seeing_all = set(self.attention_layers) - self.windowed_layers
        return min(seeing_all or {rule}, key=lambda layer: (abs(layer - rule), layer))

    @property
    def pattern(self) -> Pattern:
        """Which computation pictures take part in, as its own configuration states it (``visionpulse_pattern``).

        A model that was tuned under one runs under it in this package, in `decode`, `watch` and whatever else reads
        prompts; its own ``model.generate`` outside of `watch` does not know of it. Others have none.
        """
        return Pattern.of(getattr(self.model.config, "visionpulse_pattern", None))

    def check_ordinary(self, why: str) -> None:
        """Raise ValueError for a model that was tuned under a `pattern`, which `why` tells to be left out here."""
        if self.pattern != ORDINARY:
            raise ValueError(
                f"{self.name} was tuned under a pattern of computation, {self.pattern.to_dict()}, and that is not "
                f"followed here: {why}; use a model without one"
            )

    @property
    def attention_layers(self) -> list[int]:
        """Layers with softmax attention: all but those that the configuration calls linear, or convolutions."""
        kinds = getattr(self.model.config.get_text_config(decoder=True), "layer_types", None) or ()
        without = {layer for layer, kind in enumerate(kinds) if kind in WITHOUT_ROWS}
        return [layer for layer in range(self.n_layers) if layer not in without]

    def chosen_layer(self, layer: int) -> int:
        """The default anchor for -1, else ``layer`` itself, zero-based; ValueError where there is none such."""
        if not -1 <= layer < self.n_layers:
            raise ValueError(
                f"layer {layer}: {self.name} has layers 0 to {self.n_layers - 1}, and -1 stands for its default anchor"
            )
        return self.default_anchor if layer == -1 else layer

    @property
    def windowed_layers(self) -> set[int]:
        """Layers that see only the newest tokens of the sequence, a sliding window."""
        # A configuration names the kinds of its layers, or only states a window: the library's cache knows both.
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        return {number for number, sliding in enumerate(cache.is_sliding) if sliding}

    @property
    def sees_everything(self) -> bool:
        """Whether every layer sees the whole past, because the model states no window of any kind."""
        # Some models (Mistral) look at the window alone, whatever kinds of layers are named beside it.
        stated = getattr(self.model.config.get_text_config(decoder=True), "sliding_window", None)
        return stated is None and not self.windowed_layers

    @cached_property
    def decoder(self) -> Decoder:
        """Turns tokens into the pieces of a text."""
        return Decoder(self.tokenizer)

    def unlike_training(self, images: Sequence[np.ndarray]) -> str | None:
        """Say that such pictures are not what the model was trained on.

        Parameters
        ----------
        images : sequence of uint8 [row_px, col_px, 3]

        Returns
        -------
        str or None
            One sentence; None where the pictures may be of that kind, or the model does not state it, as most.
        """
        return unlike_training(getattr(self.model.config, "visionpulse_pictures", None), images)

    @property
    def weights_hash(self) -> str:
        """First 16 hex digits of the sha256 over all parameters, in name order, as they are now.

        Weights are edited in place, also behind torch's back: every byte is read at each use, and the sha256, which
        takes longer, is taken again where they differ.
        """
        named = [pair for pair in sorted(self.model.state_dict().items()) if isinstance(pair[1], torch.Tensor)]
        quick = f"{[name for name, _ in named]} {every_byte(value for _, value in named)}"
        if self._hashed[0] != quick:
            digest = hashlib.sha256()
            for name, value in named:
                digest.update(name.encode())
                digest.update(bytes_of(value))
            self._hashed[:] = quick, digest.hexdigest()[:16]  # shared with what `asking` gives
        return self._hashed[1]

    @own_settings()
    def prompt(
        self,
        images: ImageLike | Video | Sequence[ImageLike | Video] | None,
        question: str | Sequence[Mapping[str, Any]],
    ) -> Prompt:
        """Build the prompt of one question about one image or video or several; raises as :meth:`Family.prompt`.

        Parameters
        ----------
        images : image (a path, a PIL image or uint8 [row_px, col_px, 3]), Video, or list of these; as in :func:`decode`
        question : str, or turns as in :func:`decode`

        Returns
        -------
        Prompt
        """
        return self.family.prompt(images, question)

    def to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Model `inputs` by name, axes as given [...], on the model's device, pictures in its dtype, not times."""
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() and name.startswith(FLOATS) else None)
            for name, value in inputs.items()
        }

    @classmethod
    def of(cls, model: Any, processor: Any = None) -> VLM:
        """The user's own `model` of transformers, with its `processor` or tokenizer.

        A model compiled as a whole, or one with adapters, stands for the model inside. Raises ValueError for anything
        else, and for a model in training mode.
        """
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft
        if not isinstance(model, PreTrainedModel) or not hasattr(model, "generate"):
            raise ValueError(
                f"model must be a model of transformers that can generate, got {type(model).__name__}; load one with "
                "AutoModelForImageTextToText.from_pretrained(...)"
            )
        if model.training:
            raise ValueError(
                f"{type(model).__name__} is in training mode, where dropout changes what is recorded; call model.eval()"
            )
        tokenizer: Any = getattr(processor, "tokenizer", processor)
        if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
            raise ValueError(f"processor must be the model's processor or tokenizer, got {processor!r}")
        settings = processor.to_dict() if isinstance(processor, ProcessorMixin) else {}
        template = settings.get("chat_template") or getattr(processor, "chat_template", None)
        if template is not None and tokenizer not in (None, processor):
            tokenizer = copy.copy(tokenizer)  # the user's own stays without
            tokenizer.chat_template = template
        video = getattr(processor, "video_processor", None)
        settings["video_processor"] = None if video is None else video.to_dict()
        name, revision = model.config._name_or_path or type(model).__name__, getattr(model.config, "_commit_hash", None)
        tokenizer = _Numbers() if tokenizer is None else tokenizer
        pictures = getattr(processor, "image_processor", None)
        whole = processor if pictures is not None and callable(processor) else None
        return cls(name, model, tokenizer, pictures, revision, settings, whole)

    def _repr_html_(self) -> str:
        text = self.model.config.get_text_config()
        rows = {
            "model": self.name,
            "architecture": type(self.model).__name__,
            "layers": self.n_layers,
            "heads": f"{self.n_heads} query, {text.num_key_value_heads} key",
            "width": text.hidden_size,
            "default anchor layer": self.default_anchor,
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "dtype and device": f"{self.model.dtype}, {self.model.device}".replace("torch.", ""),
        }
        if self.pattern != ORDINARY:
            rows["tuned under a pattern"] = f"{', '.join(self.pattern.to_dict())}: not followed by model.generate alone"
        return facts_table(rows)


class _Numbers:
    """What stands for a tokenizer where none is given: tokens are written as their ids."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    eos_token_id = pad_token_id = None

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(f"<{int(one)}>" for one in ids)


@own_settings(interruptible=True)
def load(
    name: str | tuple[Any, Any],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    prompt_options: PromptOptions | Mapping[str, Any] | None = None,
) -> VLM:
    """Load a vision-language model.

    Parameters
    ----------
    name : str, or (model, processor)
        "scenes", "charts" or a twin, "vica" or "yopo" (bundled), a folder in Hugging Face format, or a hub id such as
        "Qwen/Qwen3-VL-4B-Thinking". Or your own objects, which are used as they are: they have a dtype and a device,
        and the other options are for names. "vica" and "yopo" were tuned under a `VLM.pattern`, which `decode` and
        `watch` follow; ``vlm.model.generate`` alone does not, and answers as another model.
    dtype : str or torch.dtype
        "auto" keeps the checkpoint's own.
    device : optional
        Defaults to CUDA where there is one, else the CPU.
    device_map : optional
        Split the model over several devices instead: "auto", or which part goes where, as accelerate takes it. All of
        it must fit; nothing is offloaded.
    revision : str
        Branch, tag or commit of a hub model.
    trust_remote_code : bool
        Run the Python code that the model brings along. Read it before. Weights are read from safetensors files only,
        never unpickled, in either case.
    prompt_options : PromptOptions or dict, optional
        How the model is asked wherever nothing else is said: limits of pictures, system prompt, prefix of the answer,
        arguments of the chat template.

    Returns
    -------
    VLM, in evaluation mode

    Raises
    ------
    ValueError
        If nothing of that name is found, its files cannot be read, tensors of its layers are missing in its checkpoint,
        left over or of another shape (the message names them), it needs code of its own to run, a dtype or device is
        not there, or ``device_map`` comes with ``device``, without accelerate, or does not hold all of the model.
    UnsupportedModelError
        If the model is text-only, or its pictures are no tokens of the sequence.
    """
    if isinstance(name, tuple) and len(name) == 2:
        if (dtype, device, device_map, revision, trust_remote_code) != ("auto", None, None, "main", False):
            raise ValueError(
                "dtype, device and the like are for models by name; load((model, processor)) takes no other"
            )
        vlm = VLM.of(*name)
        check_supported(vlm.model.config, vlm.name)
        _ = vlm.family  # raises where what builds its prompts is missing
        return vlm.asking(prompt_options)
    prompt_options = PromptOptions.of(prompt_options)
    if not isinstance(name, str | os.PathLike):
        raise ValueError(
            "a model is named by a text ('scenes', a folder or a hub id), or given with its processor as "
            f"load((model, processor)); got {name!r}"
        )
    name, dtype = str(os.fspath(name)), _dtype(dtype)
    device = usable_device(device) if device_map is None else _check_split(device)
    # Left out, the library would ask at the terminal whether to run a model's own code, and wait for an answer.
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    source, config = find_model(name, **options)
    folder, origin = Path(source), origin_of(config)
    source = source if origin is None else place_of(origin["name"])
    try:
        with quiet(name in BUNDLED):
            # Shapes that differ are told with everything else that does not fit.
            found: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            how = {"dtype": dtype, "device_map": device_map, "use_safetensors": True}
            how["attn_implementation"] = attention_of(config)
            how |= {} if origin is None else {"config": config}
            loaded: Any = AutoModelForImageTextToText.from_pretrained(source, **options, **how, **found)
        model: Any = loaded[0]
        processor = load_stock(source, **options)
        processor = load_stills(source, config, **options) if processor is None else processor
        tokenizer: Any = processor.tokenizer
        settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
        settings.setdefault("video_processor", load_video_settings(source, revision))
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        explain_own_code(name, error)
        raise ValueError(f"the weights of {name!r} or its processor files cannot be read: {error}") from error
    check_arrived(name, model, loaded[1])
    become_twin(model, folder, config, lambda model: VLM(name, model, None, None).weights_hash)
    # Models for text and pictures keep their chat template with the processor.
    template = getattr(processor, "chat_template", None) or settings.get("chat_template")
    tokenizer.chat_template = template or tokenizer.chat_template
    if device_map is None:
        model.to(device)
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"{name!r} does not fit on its devices ({model.hf_device_map}): use more, or another dtype")
    _lay_out(model)
    parts = {
        "model": model.eval(),
        "tokenizer": tokenizer,
        "image_processor": processor.image_processor,
        "settings": settings,
    }
    vlm = VLM(name, **parts, revision=getattr(config, "_commit_hash", None), processor=processor)
    vlm = vlm.asking(prompt_options)
    note_object("models", vlm, _facts)
    return vlm


def _lay_out(model: Any) -> None:
    """Put weights on a CPU where torch puts tensors of its own, not where they happen to lie in a mapped file.

    Matrix products differ in their last digits with the place: so a loaded model computes what a copy of it does, one
    that was on another device, or one read from another file.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % CACHE_LINE:
            tensor.data = tensor.data.clone()


def _facts(vlm: VLM) -> dict[str, Any]:
    """What a figure says of a model beside the hash of its weights: what is chosen when it is loaded."""
    return {
        "name": Path(vlm.name).name,
        "revision": vlm.revision,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "device": str(vlm.model.device.type),
        **({"prompt_options": vlm.prompt_options.to_dict()} if vlm.prompt_options.to_dict() else {}),
        "image_processor": hashlib.sha256(vlm.image_processor.to_json_string().encode()).hexdigest()[:16],
    }


def find_model(name: str, revision: str = "main", trust_remote_code: bool = False) -> tuple[str, Any]:
    """Where a model is, and its configuration, without its weights; parameters and errors as of :func:`load`."""
    source = place_of(name, revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        explain_own_code(name, error)
        raise no_model(name, error) from error
    check_supported(config, name)
    return source, config


def usable_device(device: Any = None) -> Any:
    """The `device`, or the default; ValueError where nothing can be computed on it."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # of many types, by device and version
        raise no_device(device) from error
    return device


def _dtype(dtype: Any) -> Any:
    """The dtype, or ValueError."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise no_dtype(dtype)


def _check_split(device: Any) -> None:
    if device is not None:
        raise ValueError(f"device ({device}) and device_map exclude each other; give one of them")
    if find_spec("accelerate") is None:
        raise ValueError("device_map needs accelerate: pip install 'visionpulse-analysis[split]', or give device")
