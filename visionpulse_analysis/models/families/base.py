"""What every family shares: how a prompt is built, how several are batched, and where tokens stand."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from visionpulse_analysis._util.checks import plain_text
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.media.videos import Clip, Video
from visionpulse_analysis.models.asking import Medium, PromptOptions, Turns, read_turns, written
from visionpulse_analysis.models.families.cells import Cells, grid_of
from visionpulse_analysis.models.families.limits import limited
from visionpulse_analysis.models.families.prompts import ANSWER, IMAGE, TEXT, VIDEO, Prompt, Shown, stack

__all__ = ["ANSWER", "IMAGE", "TEXT", "VIDEO", "Family", "Prompt", "Shown", "said"]


class Family(ABC):
    """How one kind of model reads pictures.

    Parameters
    ----------
    config, tokenizer, image_processor
        The library's own, of one model.
    settings : dict
        What the model's processor file says beside its image processor; may be empty.
    options : PromptOptions
        How the model is asked. Raises ValueError for limits that it does not have.
    """

    mrope = False  # positions with a time, a row and a column
    written_marks = r"(?!)"  # pattern of the tokens that `marks` explains; here none

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        image_processor: Any,
        settings: dict[str, Any],
        options: PromptOptions | None = None,
    ):
        self.config, self.tokenizer, self.settings = config, tokenizer, settings
        self.options = PromptOptions() if options is None else options
        self.image_processor = self.limited(image_processor) if self.options.limits else image_processor

    def limited(self, image_processor: Any) -> Any:
        """The image processor within the limits of the options; ValueError where the model does not have them."""
        return limited(image_processor, self.options, self.config.model_type)

    @abstractmethod
    def show(self, picture: np.ndarray) -> Shown:
        """Prepare one still, uint8 [row_px, col_px, 3]."""

    def show_video(self, clip: Clip) -> Shown:
        """Prepare one video; ValueError where the model reads none."""
        raise ValueError(
            f"models of family {self.config.model_type!r} read no video here; give frames of it as a list of images"
        )

    def for_size(self, height: int, width: int) -> dict[str, Any]:
        """What the image processor is told of limits that depend on the shape of a picture, in pixels."""
        return {}

    def process(self, picture: np.ndarray, *, twice: bool = False, **options: Any) -> Any:
        """What the library's image processor makes of a still, as tensors; ``twice``, of a prompt that shows it twice.

        The processor is told which axis holds the colours: it would take a still of three rows for one of three
        columns. ValueError where the still does not suit it.
        """
        images: list[Any] = [[picture, picture]] if twice else [picture]
        options |= {"return_tensors": "pt", "input_data_format": "channels_last"}
        try:
            return self.image_processor(images=images, **options)
        except ValueError as error:
            raise ValueError(f"{self.config.model_type} cannot read {said(picture)}: {error}") from error

    def shows(self, media: Sequence[Medium]) -> list[Shown]:
        """Prepare the stills and videos of one prompt."""
        return [self.show_video(one) if isinstance(one, Clip) else self.show(one) for one in media]

    def check_together(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027
        """Raise ValueError where the model cannot read these prompts in one batch."""

    @property
    def image_id(self) -> int:
        """The token that image features replace."""
        return self.config.image_token_id

    @property
    def video_id(self) -> int | None:
        """The token that features of a video replace, where it has its own."""
        return getattr(self.config, "video_token_id", None)

    @property
    def image_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.image_id)

    @property
    def placeholder(self) -> str:
        """What the chat template writes for one picture."""
        return self.image_token

    @property
    def video_settings(self) -> dict[str, Any]:
        """What the model's files say about its video processor."""
        return self.settings.get("video_processor") or {}

    @property
    def video_placeholder(self) -> str | None:
        """What the chat template writes for one video."""
        return None if self.video_id is None else self.tokenizer.convert_ids_to_tokens(self.video_id)

    def kinds(self, ids: torch.Tensor) -> torch.Tensor:
        """What the tokens of a prompt are, text, image or video: int64 [token]."""
        kinds = torch.where(ids == self.image_id, IMAGE, TEXT)
        if self.video_id is not None:
            kinds[ids == self.video_id] = VIDEO
        return kinds

    @property
    def marks(self) -> list[int]:
        """Ids of the tokens that belong to pictures though the model puts no feature there: they are no text.

        The tokens of their own (of no word) that are written in the place of a picture: breaks, numbers of tiles, begin
        and end. So count them the library's processors (``image_token_ids``) and the authors of pruners, whose image
        runs from its first token to its last. Line feeds and words among them ("Frame 1:", times, Gemma 3's sentence
        about crops) are of the ordinary vocabulary and text; so is what a chat template writes around a picture, as
        ``<|vision_start|>`` of Qwen, which its models give a place in the text.
        """
        own = self.tokenizer.added_tokens_decoder.items()
        return [number for number, token in own if re.fullmatch(self.written_marks, token.content)]

    def token_inputs(self, kinds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs with one value per token that the model takes at prefill; kinds int64 [row, token]."""
        return {}

    def template(self, media: Sequence[Medium]) -> str | None:  # noqa: B027
        """The chat template, None for the model's own."""

    def text(self, turns: Turns) -> str:
        """The turns as text, with one placeholder per picture or video, up to where the answer begins.

        Raises ValueError for what the chat template does not know.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the model has no chat template; set vlm.tokenizer.chat_template to the one it was tuned with"
            )
        messages = turns.messages
        if self.options.system:
            if turns.has_system:
                raise ValueError("the turns have a system's turn, and the option system is given too; give one of them")
            messages = [{"role": "system", "content": [{"type": "text", "text": self.options.system}]}, *messages]
        several = turns.several or bool(self.options.system)
        return written(self.tokenizer, messages, self.template(turns.media), self.options.template, probe=several)

    def asked(self, turns: Turns) -> str:
        """All that is written before the answer goes on, its prefix too, as the stock processor takes it."""
        return self.text(turns) + (self.options.prefix or "")

    def prompt(self, images: ImageLike | Video | Sequence[ImageLike | Video] | None, question: Any) -> Prompt:
        """Build the prompt of one question, or of several turns, about one image or video or several.

        Raises
        ------
        ValueError
            If the question is empty, no Unicode text, or holds a special token of the model, an image or video cannot
            be read, the model reads no videos, or its chat template does not know what the options or turns ask for.
        FileNotFoundError
            If the path of an image or video does not exist.
        """
        turns = self.read(images, question)
        media = turns.media
        shown = self.shows(media)
        ids = self._ids(self.text(turns) + (self.options.prefix or ""), media, [one.text for one in shown])
        kinds = self.kinds(ids)
        features, whole = kinds.numpy() > 0, Cells.join(*(one.cells for one in shown))
        grid = grid_of(np.flatnonzero(features), shown, media)
        of_pictures = np.flatnonzero(features | np.isin(ids.numpy(), self.marks))
        prompt = Prompt(
            turns.question,
            ids,
            kinds,
            grid,
            stack([one.inputs for one in shown]),
            [picture for one in media for picture in (one.frames if isinstance(one, Clip) else [one])],
            [one.about(i, shown[i].merged) for i, one in enumerate(media) if isinstance(one, Clip)],
            np.setdiff1d(of_pictures, grid.position),
            whole.piece[whole.row >= 0].astype(np.int64),
            turns.messages if turns.several else [],
            self.options,
        )
        self.check_together([prompt])
        return prompt

    def read(self, images: Any, question: Any) -> Turns:
        """What is asked, with its pictures and videos; raises as `prompt`."""
        turns = read_turns(plain_text(images), plain_text(question))
        for text in turns.texts():
            self._check(text, "turn" if turns.several else "question")
        self._check(self.options.system or "", "system prompt")
        self._check_prefix()
        return turns

    def _check(self, text: str, name: str) -> None:
        """Raise ValueError for a text that the model would not read as plain text."""
        self._check_pictures(text, name)
        # Turns, ends and pictures: typed by the user, they would change the conversation and not be part of it.
        marks = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for mark in (*marks, self.video_placeholder):
            if mark and mark in text:
                raise ValueError(f"the {name} contains {mark!r}, a mark with a meaning of its own; leave it out")

    def _check_pictures(self, text: str, name: str) -> None:
        for mark in (self.placeholder, self.image_token, self.video_placeholder):
            if mark and mark in text:
                raise ValueError(f"the {name} contains the image placeholder {mark!r}; remove it")

    def _check_prefix(self) -> None:
        """A prefix may hold marks, such as those of reasoning, but neither a picture nor the end of the answer."""
        prefix = self.options.prefix or ""
        self._check_pictures(prefix, "prefix")
        if self.tokenizer.eos_token and self.tokenizer.eos_token in prefix:
            raise ValueError(f"the prefix contains {self.tokenizer.eos_token!r}, which ends an answer; leave it out")

    def _ids(self, text: str, media: Sequence[Medium], shown: list[str]) -> torch.Tensor:
        """Put what stands for each picture in the place of its placeholder, and cut the whole into tokens."""
        marks = {"video": self.video_placeholder, "image": self.placeholder}
        pattern = "|".join(f"(?P<{name}>{re.escape(mark)})" for name, mark in marks.items() if mark)
        written = [found.lastgroup for found in re.finditer(pattern, text)]
        wanted = ["video" if isinstance(one, Clip) else "image" for one in media]
        if written != wanted:
            counts = [f"{written.count(name)} {name} placeholders for {wanted.count(name)} {name}s" for name in marks]
            raise ValueError(f"the chat template wrote {' and '.join(reversed(counts))}, or in another order")
        replacements = iter(shown)
        whole = re.sub(pattern, lambda _: next(replacements), text)
        return torch.tensor(self.tokenizer(whole, add_special_tokens=not self.begun(whole)).input_ids)

    def begun(self, text: str) -> bool:
        """Whether the template wrote the first token itself; as in the library, it gets no second one then."""
        return self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)

    def batch(self, prompts: Sequence[Prompt], padding: int) -> dict[str, torch.Tensor]:
        """Model inputs of several prompts, short rows padded on the left with the token ``padding``."""
        width = max(len(prompt.ids) for prompt in prompts)

        def padded(values: torch.Tensor, filler: int) -> torch.Tensor:
            return pad(values, (width - len(values), 0), value=filler)

        kinds = torch.stack([padded(prompt.kinds, TEXT) for prompt in prompts])
        return {
            "input_ids": torch.stack([padded(prompt.ids, padding) for prompt in prompts]),
            "attention_mask": torch.stack([padded(torch.ones_like(prompt.ids), 0) for prompt in prompts]),
            **self.token_inputs(kinds),
            **{
                name: torch.stack([padded(prompt.of_tokens[name], 0) for prompt in prompts])
                for name in prompts[0].of_tokens
            },
            **stack([prompt.inputs for prompt in prompts]),
        }

    def positions(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Where the tokens of a batch stand: int64 [row, token], or [3, row, token] with time, row and column."""
        mask = inputs["attention_mask"]
        if not self.mrope:
            return (mask.cumsum(dim=1) - 1).clamp(min=0)
        names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: inputs[name] for name in names if name in inputs}
        return model.model.get_rope_index(inputs["input_ids"], attention_mask=mask, **given)[0]


def said(picture: np.ndarray) -> str:
    """A still by its size, for errors."""
    return f"a picture {picture.shape[0]} pixels high and {picture.shape[1]} wide"
