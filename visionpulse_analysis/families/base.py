"""What every family shares: how a prompt is built, how several are batched, and where tokens stand."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from visionpulse_analysis._checks import plain_text
from visionpulse_analysis.families.cells import Cells, Medium, grid_of, read_medium
from visionpulse_analysis.families.prompts import ANSWER, IMAGE, TEXT, VIDEO, Prompt, Shown, stack
from visionpulse_analysis.images import ImageLike
from visionpulse_analysis.videos import Clip, Video

__all__ = ["ANSWER", "IMAGE", "TEXT", "VIDEO", "Family", "Prompt", "Shown", "said"]


class Family(ABC):
    """How one kind of model reads pictures.

    Parameters
    ----------
    config, tokenizer, image_processor
        The library's own, of one model.
    settings : dict
        What the model's processor file says beside its image processor; may be empty.
    """

    mrope = False  # positions with a time, a row and a column
    written_marks = r"(?!)"  # pattern of the tokens that `marks` explains; here none

    def __init__(self, config: Any, tokenizer: Any, image_processor: Any, settings: dict[str, Any]):
        self.config, self.tokenizer, self.image_processor, self.settings = config, tokenizer, image_processor, settings

    @abstractmethod
    def show(self, picture: np.ndarray) -> Shown:
        """Prepare one still, uint8 [row_px, col_px, 3]."""

    def show_video(self, clip: Clip) -> Shown:
        """Prepare one video; ValueError where the model reads none."""
        raise ValueError(
            f"models of family {self.config.model_type!r} read no video here; give frames of it as a list of images"
        )

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

    def text(self, media: Sequence[Medium], question: str) -> str:
        """The conversation as text, with one placeholder per picture or video."""
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the model has no chat template; set vlm.tokenizer.chat_template to the one it was tuned with"
            )
        content = [{"type": "video" if isinstance(one, Clip) else "image"} for one in media]
        content.append({"type": "text", "text": question})
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template(media),
            tokenize=False,
            add_generation_prompt=True,
        )

    def prompt(self, images: ImageLike | Video | Sequence[ImageLike | Video], question: str) -> Prompt:
        """Build the prompt of one question about one image or video or several.

        Raises
        ------
        ValueError
            If the question is empty, no Unicode text, or holds a special token of the model, an image or video cannot
            be read, or the model reads no videos.
        FileNotFoundError
            If the path of an image or video does not exist.
        """
        images, question = plain_text(images), plain_text(question)
        self._check(question)
        listed = list(images) if isinstance(images, list | tuple) else [images]
        if not listed:
            raise ValueError("no image given; pass at least one")
        media = [read_medium(one) for one in listed]
        shown = self.shows(media)
        ids = self._ids(self.text(media, question), media, [one.text for one in shown])
        kinds = self.kinds(ids)
        features, whole = kinds.numpy() > 0, Cells.join(*(one.cells for one in shown))
        grid = grid_of(np.flatnonzero(features), shown, media)
        of_pictures = np.flatnonzero(features | np.isin(ids.numpy(), self.marks))
        prompt = Prompt(
            question,
            ids,
            kinds,
            grid,
            stack([one.inputs for one in shown]),
            [picture for one in media for picture in (one.frames if isinstance(one, Clip) else [one])],
            [one.about(i, shown[i].merged) for i, one in enumerate(media) if isinstance(one, Clip)],
            np.setdiff1d(of_pictures, grid.position),
            whole.piece[whole.row >= 0].astype(np.int64),
        )
        self.check_together([prompt])
        return prompt

    def _check(self, question: Any) -> None:
        """Raise ValueError for a question that says nothing, or that the model would not read as plain text."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"the question is empty (got {question!r}); ask something")
        try:
            question.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"the question is not valid Unicode text: {question!r}") from None
        for mark in (self.placeholder, self.image_token):
            if mark in question:
                raise ValueError(f"the question contains the image placeholder {mark!r}; remove it")
        # Turns, ends and pictures: typed by the user, they would change the conversation and not be part of it.
        marks = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        for mark in (*marks, self.video_placeholder):
            if mark and mark in question:
                raise ValueError(f"the question contains {mark!r}, a mark with a meaning of its own; leave it out")

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
