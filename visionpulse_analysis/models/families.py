"""How a model of transformers is given pictures and text: one mechanism for all types, and a table of what is not.

The library's own processor turns pictures and text into the model's inputs. Where its image tokens lie is known for
some types (`layouts`), stated by the processor, or measured (`locating`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from visionpulse_analysis._util.checks import UnsupportedModelError, plain_text
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.media.videos import Clip, Video
from visionpulse_analysis.models.asking import Medium, PromptOptions, Turns, read_turns, written
from visionpulse_analysis.models.layouts import LAYOUTS, Cells, Made, grid_of, grids, said
from visionpulse_analysis.models.limits import for_size, limited, pan_and_scan
from visionpulse_analysis.models.locating import Located, NoMapError, ids_of, line
from visionpulse_analysis.models.locating.keeping import measured
from visionpulse_analysis.models.processors import completed
from visionpulse_analysis.models.prompts import ANSWER, IMAGE, TEXT, Prompt, in_columns, in_rows, stack
from visionpulse_analysis.models.videos import FilmInputs, film_of, mark_videos, placeholder, template_of, together
from visionpulse_analysis.traces.frames import NO_MAP

__all__ = [
    "Family",
    "Prompt",
    "PromptOptions",
    "UnsupportedModelError",
    "attention_of",
    "check_supported",
    "in_columns",
    "in_rows",
]

QUESTION = "?"  # of the prompts that are measured
FLOATS = ("pixel", "image", "patch")  # how the names of inputs begin that are pictures, in the model's dtype

CROSS_ATTENTION = "pictures are read by cross-attention and are no tokens of the prompt; vpa.watch records its rows"
ENCODER_DECODER = (
    "pictures are read by an encoder, and the decoder sees them by cross-attention; vpa.watch records its rows"
)
OWN_SOFTMAX = "the language part computes a softmax of its own, past the library's attention functions"
REFUSED = {
    "blip": OWN_SOFTMAX,
    "florence2": ENCODER_DECODER,
    "git": OWN_SOFTMAX,
    "idefics": CROSS_ATTENTION,
    "mllama": CROSS_ATTENTION,
    "pix2struct": ENCODER_DECODER,
    "vision-encoder-decoder": ENCODER_DECODER,
}
READS = "AutoModelForImageTextToText"
# Language models whose eager functions know more than scaled-dot-product attention, which leaves it out.
WITH_SINKS = {"gpt_oss"}

# Tokens of their own (of no word) that are written in the place of a picture though the model puts no feature there:
# breaks, numbers of tiles, begin and end. Which they are is in the code of each processor, and inside of somebody's own
# generate the processor is not asked.
MARKS = {
    "aya_vision": r"<\|(START|END)_OF_IMG\|>|TILE_(\d+|GLOBAL)",
    "gemma3": r"<(start|end)_of_image>",
    "idefics3": r"<fake_token_around_image>|<row_\d+_col_\d+>|<global-img>",
    "internvl": r"</?img>",
    "mistral3": r"\[IMG_(BREAK|END)\]",
    "llava with pixtral": r"\[IMG_(BREAK|END)\]",
    "smolvlm": r"<fake_token_around_image>|<row_\d+_col_\d+>|<global-img>",
}
# Inputs with one value per token, of the kinds of the tokens: of known types they are made here, as versions of the
# library differ in what their processors return unasked, and as an answer that is given with the prompt has its own.
OF_KINDS = {
    "gemma3": ("token_type_ids", lambda kinds: (kinds == IMAGE).int()),
    "paligemma": ("token_type_ids", lambda kinds: (kinds == ANSWER).long()),
    **dict.fromkeys(
        ("glm46v", "glm4v", "glm4v_moe", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"),
        ("mm_token_type_ids", lambda kinds: (kinds % 3).int()),
    ),
}
PREFIX_MODELS = {"paligemma"}  # no conversation: the question follows the pictures at once, and positions count from 1
TILES_IN_LINE = {"idefics3", "smolvlm"}  # pictures and tiles are flattened by the model: one tile per line of a batch


def check_supported(config: Any, name: str) -> None:
    """Raise :class:`UnsupportedModelError` unless a model of this configuration can be recorded exactly."""
    kind = config.model_type
    reason = REFUSED.get(kind)
    if reason is None and getattr(config, "is_encoder_decoder", False):
        reason = ENCODER_DECODER
    if reason is not None:
        raise UnsupportedModelError(f"{name!r} is of family {kind!r}, where {reason}; give a model whose pictures are "
                                    "tokens of its sequence")  # fmt: skip
    own = getattr(config, "auto_map", None) or {}
    registered = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING  # also what a user has registered
    if kind not in LAYOUTS and not registered and READS not in own:
        raise UnsupportedModelError(
            f"{name!r} is a {kind} model without a vision part; give a vision-language model, of a type that "
            f"{READS} of transformers knows"
        )


def attention_of(config: Any) -> str:
    """The attention under which a model computes what it was trained to: "eager" with capped logits or sinks."""
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return "eager" if capped or text.model_type in WITH_SINKS else "sdpa"


def marks_of(config: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that belong to pictures though the model puts no feature there: they are no text.

    So count them the library's processors (``image_token_ids``) and the authors of pruners, whose image runs from its
    first token to its last. Line feeds and words among them ("Frame 1:", times, Gemma 3's sentence about crops) are of
    the ordinary vocabulary and text; so is what a chat template writes around a picture, as ``<|vision_start|>`` of
    Qwen, which its models give a place in the text. None for types that `MARKS` does not name.
    """
    pattern = MARKS.get(_kind(config), r"(?!)")
    own = tokenizer.added_tokens_decoder.items()
    return [number for number, token in own if re.fullmatch(pattern, token.content)]


def _kind(config: Any) -> str:
    """The type of a model; Pixtral itself comes as a LLaVA model with another tower."""
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    return "llava with pixtral" if config.model_type == "llava" and tower == "pixtral" else config.model_type


class Family:
    """How one model reads pictures.

    Parameters
    ----------
    model
        Of transformers, in evaluation mode.
    tokenizer
        Its own, with the chat template.
    processor
        The library's own: pictures and text in, the model's inputs out.
    settings : dict
        What the model's processor file says beside its image processor; may be empty.
    options : PromptOptions, optional
        How the model is asked.
    called_with : dict, optional
        What else the processor is called with.

    Raises
    ------
    ValueError
        The processor is missing, or the options limit pictures in a way that it does not know.
    """

    def __init__(
        self, model: Any, tokenizer: Any, processor: Any, settings: dict[str, Any],
        options: PromptOptions | None = None, called_with: dict[str, Any] | None = None,
    ):  # fmt: skip
        if getattr(processor, "image_processor", None) is None or not callable(processor):
            raise ValueError(
                f"to build prompts of {type(model).__name__}, and to measure where its image tokens lie, its processor "
                f"with its image processor is needed, got {processor!r}; give AutoProcessor.from_pretrained(...), or a "
                "model loaded with vpa.load"
            )
        self.model, self.config, self.tokenizer, self.settings = model, model.config, tokenizer, settings
        self.kind = _kind(self.config)
        self.options = PromptOptions() if options is None else options
        self.image_processor = limited(processor.image_processor, self.options, self.config.model_type)
        self.processor = completed(processor, self.config)
        if self.image_processor is not processor.image_processor:
            self.processor = copy.copy(self.processor)
            self.processor.image_processor = self.image_processor
        self.called_with = {**pan_and_scan(self.image_processor), **(called_with or {})}

    # What is known of the model.

    @property
    def known(self) -> bool:
        """Whether the layout of its image tokens is known, and need not be measured."""
        return self.kind in LAYOUTS

    @property
    def mrope(self) -> bool:
        """Whether positions have a time, a row and a column."""
        return _rope_index(self.model) is not None

    @property
    def image_id(self) -> int:
        """The token that image features replace."""
        return ids_of(self.config)[0]

    @property
    def image_token(self) -> str | None:
        """The same as text; what the processor calls so where the configuration states none."""
        stated, written = ids_of(self.config), getattr(self.tokenizer, "convert_ids_to_tokens", None)
        named = getattr(self.processor, "image_token", None)
        return written(stated[0]) if stated and written is not None else named if isinstance(named, str) else None

    @property
    def placeholder(self) -> str | None:
        """What the chat template writes for one picture."""
        named = getattr(self.processor, "image_token", None)
        return named if isinstance(named, str) else self.image_token

    @property
    def video_id(self) -> int | None:
        """The token that features of a video replace, where it has its own."""
        return getattr(self.config, "video_token_id", None)

    @property
    def video_placeholder(self) -> str | None:
        """What the chat template writes for one video."""
        return placeholder(self)

    @property
    def marks(self) -> list[int]:
        """As `marks_of`."""
        return marks_of(self.config, self.tokenizer)

    @property
    def spoken(self) -> bool:
        """Whether the model has a chat template."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    # From what is asked to a prompt.

    def prompt(self, images: ImageLike | Video | Sequence[ImageLike | Video] | None, question: Any) -> Prompt:
        """Build the prompt of one question, or of several turns, about one image or video or several.

        Raises
        ------
        ValueError
            If the question is empty, no Unicode text, or holds a special token of the model, an image or video cannot
            be read, the model reads no videos, or its chat template does not know what the options or turns ask for.
        FileNotFoundError
            If the path of an image or video does not exist.
        NoMapError
            If nothing tells which tokens are those of pictures.
        """
        turns = self.read(images, question)
        media = turns.media
        films = [film_of(self, one) for one in media if isinstance(one, Clip)]
        text, sizes = self.asked(turns), [one.shape[:2] for one in media if isinstance(one, np.ndarray)]
        # Where pictures of one prompt are read within limits of their own, each is given to the processor by itself.
        apart = films or (len(media) > 1 and for_size(self.image_processor, self.options, sizes[0]))
        ids, made, cells = self._apart(media, text, films) if apart else self._stills(media, text)
        numbers, told, pieces = ids.numpy(), "", None
        kinds = self.kinds(ids)
        image = kinds.numpy() > 0
        merged = iter([film.merged for film in films])
        shown = [
            (one.frames[0].shape[:2], len(one.frames), next(merged)) if isinstance(one, Clip) else (one.shape[:2], 1, 1)
            for one in media
        ]
        try:
            if cells is None:
                located = self.locate([size for size, _, _ in shown])
                grid, told = located.on(numbers), f"measured by {located.way}"
                image |= np.isin(numbers, located.ids[located.grid.position])
            else:
                grid, whole = grid_of(np.flatnonzero(image), cells, shown), Cells.join(*cells)
                pieces = whole.piece[whole.row >= 0].astype(np.int64)
                told = "" if self.known else "stated by the processor (image_grid_thw)"
        except NoMapError as error:
            image |= np.isin(numbers, error.ids)
            if not image.any():
                raise
            grid, told = line(np.flatnonzero(image)), f"{NO_MAP}: {error}"
        if pieces is None:
            pieces = np.unique(np.stack([grid.image, grid.frame]), axis=1, return_inverse=True)[1].reshape(-1)
        own = np.flatnonzero(np.isin(numbers, self.marks)) if self.known else self.written(text, numbers)
        prompt = Prompt(
            turns.question,
            ids,
            kinds if self.known else torch.from_numpy(np.where(image, IMAGE, TEXT)),
            grid,
            {name: value for name, value in made.items() if not _of_tokens(value, ids)},
            [picture for one in media for picture in (one.frames if isinstance(one, Clip) else [one])],
            [one.about(i, shown[i][2]) for i, one in enumerate(media) if isinstance(one, Clip)],
            np.setdiff1d(np.union1d(np.flatnonzero(image), own), grid.position),
            pieces,
            turns.messages if turns.several else [],
            self.options,
            {} if self.known else {name: value[0] for name, value in made.items() if _of_tokens(value, ids)},
            told,
        )
        self.check_together([prompt])
        return prompt

    def read(self, images: Any, question: Any) -> Turns:
        """What is asked, with its pictures and videos; raises as `prompt`."""
        turns = read_turns(plain_text(images), plain_text(question))
        texts = [(text, "turn" if turns.several else "question") for text in turns.texts()]
        # Turns, ends and pictures: typed by the user, they would change the conversation and not be part of it.
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for text, name in [*texts, (self.options.system or "", "system prompt")]:
            self._check_pictures(text, name)
            for mark in (*special, self.video_placeholder):
                if mark and mark in text:
                    raise ValueError(f"the {name} contains {mark!r}, a mark with a meaning of its own; leave it out")
        # A prefix may hold marks, such as those of reasoning, but neither a picture nor the end of the answer.
        prefix, end = self.options.prefix or "", getattr(self.tokenizer, "eos_token", None)
        self._check_pictures(prefix, "prefix")
        if end and end in prefix:
            raise ValueError(f"the prefix contains {end!r}, which ends an answer; leave it out")
        return turns

    def _check_pictures(self, text: str, name: str) -> None:
        for mark in (self.placeholder, self.image_token, self.video_placeholder):
            if mark and mark in text:
                raise ValueError(f"the {name} contains the image placeholder {mark!r}; remove it")

    def text(self, turns: Turns) -> str:
        """The turns as text, with one placeholder per picture or video, up to where the answer begins.

        Raises ValueError for what the chat template does not know.
        """
        if self.kind in PREFIX_MODELS:
            for name in ("system", "prefix", "template"):
                if getattr(self.options, name):
                    raise ValueError(
                        f"{self.config.model_type} has no conversation, and so no {name}; leave {name} out"
                    )
            if turns.several:
                raise ValueError(
                    f"{self.config.model_type} has no conversation, and so no turns; give a question as text"
                )
            return f"{(self.placeholder or '') * len(turns.media)}{turns.question}"  # its processor writes the rest
        if not self.spoken:
            raise ValueError(
                "the model has no chat template; set vlm.tokenizer.chat_template to the one it was tuned with"
            )
        messages = turns.messages
        if self.options.system:
            if turns.has_system:
                raise ValueError("the turns have a system's turn, and the option system is given too; give one of them")
            messages = [{"role": "system", "content": [{"type": "text", "text": self.options.system}]}, *messages]
        several, template = turns.several or bool(self.options.system), template_of(self.kind, turns.media)
        return written(self.tokenizer, messages, template, self.options.template, probe=several)

    def asked(self, turns: Turns) -> str:
        """All that is written before the answer goes on, its prefix too, as the stock processor takes it."""
        return self.text(turns) + (self.options.prefix or "")

    def begun(self, text: str) -> bool:
        """Whether the template wrote the first token itself; as in the library, it gets no second one then."""
        first = getattr(self.tokenizer, "bos_token", None)
        return isinstance(first, str) and text.startswith(first)

    def kinds(self, ids: torch.Tensor) -> torch.Tensor:
        """What the tokens of a prompt are, text, image or video: int64 [token]."""
        kinds = torch.from_numpy(np.where(np.isin(ids.numpy(), ids_of(self.config)), IMAGE, TEXT))
        mark_videos(self, ids, kinds)
        return kinds

    # Pictures.

    def process_text(self, pictures: Sequence[np.ndarray], text: str) -> dict[str, torch.Tensor]:
        """What the processor makes of pictures, uint8 [row_px, col_px, 3] each, and the text that shows them.

        Raises ValueError for pictures that it cannot read.
        """
        sizes = [picture.shape[:2] for picture in pictures]
        images: list[Any] = [Image.fromarray(one) for one in pictures]
        # As the library's own chat template hands them over: some read several pictures of one prompt in another way.
        images = [images] if self.spoken else images
        options = {"return_tensors": "pt", **({"add_special_tokens": False} if self.begun(text) else {})}
        longest = (getattr(self.image_processor, "size", None) or {}).get("longest_edge")
        if self.kind in ("mistral3", "llava with pixtral") and longest:
            for size in sizes:
                if min(size) * longest < max(size):  # shrunk to that, it would be less than a pixel wide
                    raise ValueError(f"{said(size)} is too narrow for {self.config.model_type}; pad it")
        try:
            made: Any = self.processor(images=images, text=text, **options, **self.called_for(sizes))
        except (ValueError, ZeroDivisionError) as error:
            which = " and ".join(map(said, sizes))
            raise ValueError(f"the processor of {self.config.model_type} cannot read {which}: {error}") from error
        odd = [name for name, value in made.items() if not torch.is_tensor(value)]
        if odd:
            raise UnsupportedModelError(
                f"the processor of {self.config.model_type} makes {', '.join(odd)} that are no tensors, so that "
                "prompts cannot be batched here; use vpa.watch(model, processor) around your own generate"
            )
        return {name: value for name, value in made.items() if name != "labels"}

    def called_for(self, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """What the processor is called with beside text and pictures of these sizes, (height, width) in pixels."""
        return {**self.called_with, **for_size(self.image_processor, self.options, *sizes)}

    def _stills(
        self, pictures: Sequence[Any], text: str
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[Cells] | None]:
        """Ids, other inputs, and the layout of each picture where it is known or stated."""
        made = self.process_text(pictures, text)
        ids = made.pop("input_ids")[0]
        made.pop("attention_mask", None)  # of a prompt alone
        sizes = [one.shape[:2] for one in pictures]
        tokens = int(np.isin(ids.numpy(), ids_of(self.config)).sum())
        cells = grids(made, getattr(self.image_processor, "merge_size", None), sizes, tokens)
        layout = LAYOUTS.get(self.kind)
        if layout is not None:
            called = self.called_for(sizes)
            what = Made(self.config, self.image_processor, made, len(sizes), called)
            cells = [layout(what, size, number) for number, size in enumerate(sizes)]
        return ids, self.in_line(made), cells

    def in_line(self, made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs as `Prompt` has them: where all tiles and frames of a prompt are in one row, one per row."""
        names = ("pixel_values", "pixel_attention_mask") if self.kind in TILES_IN_LINE else ()
        return {name: value.flatten(0, 1)[:, None] if name in names else value for name, value in made.items()}

    def _apart(
        self, media: Sequence[Medium], text: str, films: Sequence[FilmInputs]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[Cells]]:
        """As `_stills`, of pictures and videos read one by one, in their order.

        The library reads videos only with torchvision. So what stands for each picture and video is put in the place of
        its placeholder here: for a picture, what the library's processor writes for it.
        """
        stills = [one for one in media if isinstance(one, np.ndarray)]
        # LLaVA-OneVision reads several pictures in another way than each alone.
        groups = [stills] if self.kind == "llava_onevision" else [[one] for one in stills]
        read = {Clip: [(film.text, film.inputs, film.cells) for film in films], np.ndarray: []}
        for group in filter(None, groups):
            alone = "\n".join([self.placeholder or ""] * len(group))
            ids, made, cells = self._stills(group, alone)
            spans = self._spans(alone, ids.numpy())
            if cells is None or len(spans) != len(group):
                raise ValueError(f"{self.config.model_type} reads no pictures beside videos here; give either")
            inputs = {name: value for name, value in made.items() if not _of_tokens(value, ids)}
            for number, (span, one) in enumerate(zip(spans, cells, strict=True)):
                said = self.tokenizer.decode(ids[span], clean_up_tokenization_spaces=False)
                read[np.ndarray].append((said, {} if number else inputs, one))
        waiting = {kind: iter(found) for kind, found in read.items()}
        shown = [next(waiting[type(one)]) for one in media]
        marks = {"video": self.video_placeholder, "image": self.placeholder}
        pattern = "|".join(f"(?P<{name}>{re.escape(mark)})" for name, mark in marks.items() if mark)
        found = [one.lastgroup for one in re.finditer(pattern, text)]
        wanted = ["video" if isinstance(one, Clip) else "image" for one in media]
        if found != wanted:
            counts = [f"{found.count(name)} {name} placeholders for {wanted.count(name)} {name}s" for name in marks]
            raise ValueError(f"the chat template wrote {' and '.join(reversed(counts))}, or in another order")
        texts, inputs, cells = zip(*shown, strict=True)
        replacements = iter(texts)
        whole = re.sub(pattern, lambda _: next(replacements), text)
        ids = torch.tensor(self.tokenizer(whole, add_special_tokens=not self.begun(whole)).input_ids)
        return ids, stack(inputs), list(cells)

    def locate(self, sizes: Sequence[tuple[int, int]]) -> Located:
        """Where the image tokens of pictures of these sizes lie in a prompt, measured; NoMapError as `measure`."""

        def inputs(pictures: Sequence[np.ndarray]) -> dict[str, Any]:
            turns = read_turns(list(pictures), QUESTION)
            text = self.text(turns) if self.spoken else (self.placeholder or "") * len(pictures) + QUESTION
            made, model = self.process_text(pictures, text), self.model
            return {name: value.to(model.device, self._dtype(name, value)) for name, value in made.items()}

        own = ((name, value) for name, value in vars(self.processor).items() if isinstance(value, int | str | list))
        settings = [
            self.image_processor.to_json_string(),
            repr(sorted(own)),
            repr(sorted(self.called_for(sizes).items(), key=str)),
            str(getattr(self.tokenizer, "chat_template", None)),
        ]
        return measured(self.model, inputs, sizes, settings)

    def _dtype(self, name: str, value: torch.Tensor) -> torch.dtype | None:
        return self.model.dtype if value.is_floating_point() and name.startswith(FLOATS) else None

    def written(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Positions of the tokens of their own that the processor wrote in the place of pictures; ids int64 [token]."""
        within = np.concatenate([np.zeros(0, np.int64), *self._spans(text, ids)])
        return within[np.isin(ids[within], list(self.tokenizer.added_tokens_decoder))]

    def _spans(self, text: str, ids: np.ndarray) -> list[np.ndarray]:
        """Positions of the tokens that the processor wrote in the place of each placeholder of a text.

        None where what the processor made is not the text with something in the place of each placeholder.
        """
        plain = self.tokenizer(text, add_special_tokens=not self.begun(text)).input_ids
        # What templates write for a picture: the image token, or the mark that its tokens begin with.
        marks = (self.placeholder, getattr(self.processor, "boi_token", None))
        places = [self.tokenizer.convert_tokens_to_ids(mark) for mark in marks if isinstance(mark, str)]
        place = next((one for one in places if one in plain), None)
        if place is None:
            return []
        # As text of one letter for each id, so that it can be searched for.
        pattern = "".join("(.+?)" if number == place else re.escape(chr(number)) for number in plain)
        found = re.fullmatch(pattern, "".join(map(chr, ids.tolist())), re.DOTALL)
        return [] if found is None else [np.arange(*found.span(group)) for group in range(1, found.re.groups + 1)]

    # From prompts to what the model is given.

    def check_together(self, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError where the model cannot read these prompts in one batch."""
        # transformers loses an axis where merging leaves one patch in all.
        if self.kind == "mistral3" and sum(len(prompt.grid) for prompt in prompts) == 1:
            raise ValueError(
                f"{said(prompts[0].images[0].shape[:2])} is too small for {self.config.model_type}, which would see "
                "one patch of it; make it larger"
            )
        together(self.kind, self.config.model_type, prompts)

    def batch(self, prompts: Sequence[Prompt], padding: int) -> dict[str, torch.Tensor]:
        """Model inputs of several prompts, short rows padded on the left with the token ``padding``."""
        width = max(len(prompt.ids) for prompt in prompts)

        def padded(rows: list[torch.Tensor], filler: int) -> torch.Tensor:
            return torch.stack([pad(row, (width - len(row), 0), value=filler) for row in rows])

        made = {
            "input_ids": padded([prompt.ids for prompt in prompts], padding),
            "attention_mask": padded([torch.ones_like(prompt.ids) for prompt in prompts], 0),
            **{name: padded([prompt.of_tokens[name] for prompt in prompts], 0) for name in prompts[0].of_tokens},
        }
        if self.kind in OF_KINDS:
            name, of_kinds = OF_KINDS[self.kind]
            made[name] = of_kinds(padded([prompt.kinds for prompt in prompts], TEXT))
        return {**made, **stack([prompt.inputs for prompt in prompts])}

    def positions(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Where the tokens of a batch stand: int64 [row, token], or [3, row, token] with time, row and column."""
        index = _rope_index(model)
        if index is None:
            line = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            return line + 1 if self.kind in PREFIX_MODELS else line
        names = signature(index).parameters
        try:
            return index(**{name: value for name, value in inputs.items() if name in names})[0]
        except StopIteration:  # transformers 5.4 wants a time for every picture as well
            raise ValueError(
                f"this transformers cannot place pictures beside videos in {self.config.model_type}: take a newer one, "
                "or give either"
            ) from None


def _rope_index(model: Any) -> Any:
    """The model's function for positions with a time, a row and a column; None where it has none."""
    inner = getattr(model, "model", None)
    return getattr(model, "get_rope_index", None) or getattr(inner, "get_rope_index", None)


def _of_tokens(value: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether an input has one number for each token, int64 [1, token]."""
    return value.shape == (1, len(ids)) and not value.is_floating_point()
