"""A model of any type, by its own processor and chat template; where its image tokens lie is stated or measured."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image

from visionpulse_analysis._util.checks import UnsupportedModelError
from visionpulse_analysis.media.images import ImageLike
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.media.videos import Clip, Video
from visionpulse_analysis.models.asking import PromptOptions, read_turns
from visionpulse_analysis.models.families.base import Family, said
from visionpulse_analysis.models.families.prompts import IMAGE, TEXT, Prompt
from visionpulse_analysis.models.locating import Located, NoMapError, ids_of, line
from visionpulse_analysis.models.locating.keeping import measured
from visionpulse_analysis.traces.frames import NO_MAP

QUESTION = "?"  # of the prompts that are measured
FLOATS = ("pixel", "image", "patch")  # how the names of inputs begin that are pictures, in the model's dtype


class Stock(Family):
    """Stills only. What `Family` knows of its kind is here asked of the library's processor, or measured.

    Parameters
    ----------
    model
        Of transformers, in evaluation mode.
    processor
        The library's own: pictures and text in, the model's inputs out.
    tokenizer, settings, options
        As in `Family`.
    called_with : dict, optional
        What else the processor is called with.
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
        super().__init__(model.config, tokenizer, processor.image_processor, settings, options)
        if self.image_processor is not processor.image_processor:  # within the limits of the options
            processor = copy.copy(processor)
            processor.image_processor = self.image_processor
        self.model, self.processor, self.called_with = model, processor, called_with or {}

    @property
    def mrope(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _rope_index(self.model) is not None

    @property
    def image_token(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        named = getattr(self.processor, "image_token", None)
        stated, written = ids_of(self.config), getattr(self.tokenizer, "convert_ids_to_tokens", None)
        if isinstance(named, str):
            return named
        return written(stated[0]) if stated and written is not None else None

    @property
    def spoken(self) -> bool:
        """Whether the model has a chat template."""
        return getattr(self.tokenizer, "chat_template", None) is not None

    def begun(self, text: str) -> bool:
        first = getattr(self.tokenizer, "bos_token", None)
        return isinstance(first, str) and text.startswith(first)

    def show(self, picture: np.ndarray) -> Any:
        raise NotImplementedError("the processor reads all pictures of a prompt at once")

    def prompt(self, images: ImageLike | Video | Sequence[ImageLike | Video] | None, question: Any) -> Prompt:
        turns = self.read(images, question)
        media = turns.media
        for one in media:
            if isinstance(one, Clip):
                self.show_video(one)
        sizes = [one.shape[:2] for one in media if isinstance(one, np.ndarray)]
        text = self.asked(turns)
        made = self.process_text(media, text)
        ids = made.pop("input_ids")[0]
        made.pop("attention_mask", None)  # of a prompt alone
        numbers = ids.numpy()
        image, told = np.isin(numbers, ids_of(self.config)), ""
        try:
            grid = self.stated(made, np.flatnonzero(image), sizes)
            if grid is None:
                located = self.locate(sizes)
                grid, told = located.on(numbers), f"measured by {located.way}"
                image |= np.isin(numbers, located.ids[located.grid.position])
        except NoMapError as error:
            image |= np.isin(numbers, error.ids)
            if not image.any():
                raise
            grid, told = line(np.flatnonzero(image)), f"{NO_MAP}: {error}"
        of_pictures = np.union1d(np.flatnonzero(image), self.written(text, numbers))
        return Prompt(
            turns.question,
            ids,
            torch.from_numpy(np.where(image, IMAGE, TEXT)),
            grid,
            {name: value for name, value in made.items() if not _of_tokens(name, value, ids)},
            [one for one in media if isinstance(one, np.ndarray)],
            others=np.setdiff1d(of_pictures, grid.position),
            pieces=np.unique(np.stack([grid.image, grid.frame]), axis=1, return_inverse=True)[1].reshape(-1),
            turns=turns.messages if turns.several else [],
            options=self.options,
            of_tokens={name: value[0] for name, value in made.items() if _of_tokens(name, value, ids)},
            map=told or "stated by the processor (image_grid_thw)",
        )

    def process_text(self, pictures: Sequence[Any], text: str) -> dict[str, torch.Tensor]:
        """What the processor makes of pictures, uint8 [row_px, col_px, 3] each, and the text that shows them."""
        images: list[Any] = [Image.fromarray(one) for one in pictures]
        # As the library's own chat template hands them over: some read several pictures of one prompt in another way.
        images = [images] if self.spoken else images
        options = {"return_tensors": "pt", **({"add_special_tokens": False} if self.begun(text) else {})}
        try:
            made: Any = self.processor(images=images, text=text, **options, **self.called_with)
        except (ValueError, ZeroDivisionError) as error:
            which = " and ".join(said(one) for one in pictures)
            raise ValueError(f"the processor of {self.config.model_type} cannot read {which}: {error}") from error
        odd = [name for name, value in made.items() if not torch.is_tensor(value)]
        if odd:
            raise UnsupportedModelError(
                f"the processor of {self.config.model_type} makes {', '.join(odd)} that are no tensors, so that "
                "prompts cannot be batched here; use vpa.watch(model, processor) around your own generate"
            )
        return {name: value for name, value in made.items() if name != "labels"}

    def stated(
        self, made: dict[str, torch.Tensor], positions: np.ndarray, sizes: Sequence[tuple[int, int]]
    ) -> PatchGrid | None:
        """The grids that the processor states by itself, rows and columns of patches that are merged in squares.

        None where it states none, or another number of tokens than the prompt has (breaks, padding).
        """
        grids, merge = made.get("image_grid_thw"), getattr(self.image_processor, "merge_size", None)
        if grids is None or not isinstance(merge, int) or grids.shape != (len(sizes), 3) or (grids[:, 0] != 1).any():
            return None
        rows, cols = (grids[:, axis] // merge for axis in (1, 2))
        if int((rows * cols).sum()) != len(positions) or (grids[:, 1:] % merge).any():
            return None
        return PatchGrid.from_grid(positions, rows.tolist(), cols.tolist(), sizes)

    def locate(self, sizes: Sequence[tuple[int, int]]) -> Located:
        """Where the image tokens of pictures of these sizes lie in a prompt, measured; NoMapError as `measure`."""
        mark = self.image_token or ""

        def inputs(pictures: Sequence[np.ndarray]) -> dict[str, Any]:
            turns = read_turns(list(pictures), QUESTION)
            text = self.text(turns) if self.spoken else mark * len(pictures) + QUESTION
            made, model = self.process_text(pictures, text), self.model
            return {name: value.to(model.device, self._dtype(name, value)) for name, value in made.items()}

        own = ((name, value) for name, value in vars(self.processor).items() if isinstance(value, int | str | list))
        settings = [
            self.image_processor.to_json_string(),
            repr(sorted(own)),
            repr(sorted(self.called_with.items(), key=str)),
            str(getattr(self.tokenizer, "chat_template", None)),
        ]
        return measured(self.model, inputs, sizes, settings)

    def _dtype(self, name: str, value: torch.Tensor) -> torch.dtype | None:
        return self.model.dtype if value.is_floating_point() and name.startswith(FLOATS) else None

    def written(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Positions of the tokens of their own that the processor wrote in the place of pictures, as `marks`.

        ids int64 [token]; none where what the processor made is not the text with something in the place of each
        placeholder.
        """
        added = self.tokenizer.added_tokens_decoder
        plain = self.tokenizer(text, add_special_tokens=not self.begun(text)).input_ids
        # What templates write for a picture: the image token, or the mark that its tokens begin with.
        marks = (self.image_token, getattr(self.processor, "boi_token", None))
        places = [self.tokenizer.convert_tokens_to_ids(mark) for mark in marks if isinstance(mark, str)]
        place = next((one for one in places if one in plain), None)
        if place is None:
            return np.zeros(0, np.int64)
        # As text of one letter for each id, so that it can be searched for.
        pattern = "".join("(.+?)" if number == place else re.escape(chr(number)) for number in plain)
        found = re.fullmatch(pattern, "".join(map(chr, ids.tolist())), re.DOTALL)
        spans = [] if found is None else [np.arange(*found.span(group)) for group in range(1, found.re.groups + 1)]
        within = np.concatenate([np.zeros(0, np.int64), *spans])
        return within[np.isin(ids[within], list(added))]

    def positions(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        index = _rope_index(model)
        if index is None:
            return super().positions(model, inputs)
        names = signature(index).parameters
        return index(**{name: value for name, value in inputs.items() if name in names})[0]


def _rope_index(model: Any) -> Any:
    """The model's function for positions with a time, a row and a column; None where it has none."""
    inner = getattr(model, "model", None)
    return getattr(model, "get_rope_index", None) or getattr(inner, "get_rope_index", None)


def _of_tokens(name: str, value: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether an input has one number for each token, int64 [1, token]."""
    return value.shape == (1, len(ids)) and not value.is_floating_point()
