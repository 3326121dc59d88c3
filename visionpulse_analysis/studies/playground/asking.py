"""What the playground asks of a model, as values: decoded, and written as the code that repeats it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from visionpulse_analysis.decoding import decode_each
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.models.loading import BUNDLED, VLM
from visionpulse_analysis.pruners import Pruner, as_text
from visionpulse_analysis.traces import Trace


@dataclass(frozen=True, eq=False)
class Ask:
    """One question, and how it is decoded: dense, and under a pruner if there is one.

    Parameters
    ----------
    pictures : tuple of uint8 [row_px, col_px, 3]
    question : str
    pruner : Pruner or None
    sample : Sample, None for greedy, or "model" for what the model's generation configuration says
    seed : int
    heads : "mean" or "all"
    max_new_tokens : int
    """

    pictures: tuple[np.ndarray, ...]
    question: str
    pruner: Pruner | None
    sample: Sample | Literal["model"] | None
    seed: int
    heads: Literal["mean", "all"]
    max_new_tokens: int

    def key(self, vlm: VLM) -> str:
        """Equal where a dense decode would be: of all but the pruner, and of the model's weights as they are now."""
        asked = (self.question, self.sample, self.seed, self.heads, self.max_new_tokens, vlm.weights_hash)
        digest = hashlib.sha256(repr((asked, vlm.prompt_options, [one.shape for one in self.pictures])).encode())
        for picture in self.pictures:
            digest.update(picture.tobytes())
        return digest.hexdigest()

    def decode(self, vlm: VLM, *, dense: bool) -> Iterator[Trace]:
        """The traces one after the other, each decoded when it is asked for; without the first if not `dense`."""
        first, *more = self.pictures
        pictures = [first, *more] if more else first
        arms = [None] * dense + ([] if self.pruner is None else [self.pruner])
        return decode_each(
            vlm, pictures, self.question, layers="all", heads=self.heads, pruner=arms, execution="masked",
            seed=self.seed, sample=self.sample, max_new_tokens=self.max_new_tokens, batch_size=1,
            ids=["dense", "pruned"][not dense :][: len(arms)], progress=False,  # the form has its own bar
        )  # fmt: skip

    def code(self, vlm: VLM, own_model: bool, paths: Sequence[Path], view: str) -> str:
        """The cell that does the same again, with the pictures that were kept at these paths."""
        images = [str(path) for path in paths]
        pruners = ["None"] + ([] if self.pruner is None else [f"vpa.make_pruner({as_text(self.pruner)!r})"])
        names = ["dense", "pruned"][: len(pruners)]
        sample = f"vpa.{self.sample!r}" if isinstance(self.sample, Sample) else repr(self.sample)
        return f"""import visionpulse_analysis as vpa

vlm = {_loading(vlm, own_model)}
{", ".join(names)}{"," * (len(names) == 1)} = vpa.decode(
    vlm,
    {images if len(images) > 1 else images[0]!r},
    {self.question!r},
    pruner=[{", ".join(pruners)}],
    heads={self.heads!r},
    seed={self.seed},
    sample={sample},
    max_new_tokens={self.max_new_tokens},
    ids={names},
)
vpa.explore({", ".join(names)}, view={view!r})
"""

    def picture_paths(self, folder: Path, name: str) -> list[Path]:
        """Where the pictures are kept in a folder."""
        numbers = [f"_{n}" for n in range(len(self.pictures))] if len(self.pictures) > 1 else [""]
        return [folder / f"{name}_image{number}.png" for number in numbers]


def _loading(vlm: VLM, own_model: bool) -> str:
    """How the model was loaded, as code."""
    options = vlm.prompt_options.to_dict()
    asked = f", prompt_options={options!r}" if options else ""
    if own_model:
        return f"vpa.load((model, processor){asked})  # your own objects, as the playground was given them"
    given = "" if vlm.name in BUNDLED else f", dtype={str(vlm.model.dtype).removeprefix('torch.')!r}"
    given += f", revision={vlm.revision!r}" if vlm.revision else ""
    given += ", trust_remote_code=True" if type(vlm.model).__module__.startswith("transformers_modules") else ""
    return f"vpa.load({vlm.name!r}{given}{asked})"
