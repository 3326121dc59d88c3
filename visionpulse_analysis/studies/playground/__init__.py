"""Ask and change on screen: picture, question and pruner as a form; dense beside pruned, and code that repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import Pruner
from visionpulse_analysis.studies.playground.widget import Playground

__all__ = ["Playground", "playground"]


def playground(
    vlm: Any = "scenes",
    image: Any = None,
    question: str = "",
    *,
    processor: Any = None,
    pruner: str | Pruner | None = "visionpulse",
    layer: int | None = None,
    heads: Literal["mean", "all"] = "mean",
    temperature: float | None = None,
    seed: int = 0,
    max_new_tokens: int = 128,
    out: str | Path = "playground",
    run: bool = False,
) -> Playground:
    """Ask a model about a picture, dense and pruned, and change it all on screen.

    Put it last in a cell of JupyterLab or VS Code. *Run* decodes, *Stop* ends that (the kernel stays free meanwhile,
    and what was shown stays), *Keep* writes traces, page, figure and the code that repeats them. Whatever is asked can
    be given here; the form begins with it.

    Parameters
    ----------
    vlm : VLM, str, or a model of transformers
        As `vpa.load` gives or names it, or your own model.
    image : optional
        A path, a PIL image, uint8 [row_px, col_px, 3], or a list of these. Without it a generated scene.
    question : str
        Empty: one about the scene.
    processor : optional
        That of your own model.
    pruner : str or Pruner, optional
        As `vpa.make_pruner` reads it; None for dense alone.
    layer : int, optional
        Layer shown first, zero-based; all are recorded. Default: the model's default anchor.
    heads : "mean" or "all"
        Record the mean over heads, or each.
    temperature : float, optional
        0 is greedy; None draws as the model's generation configuration says.
    seed : int
        Of the draws, and of the first scene.
    max_new_tokens : int
        At least 1.
    out : str or Path
        Where *Keep* makes a folder at each use.
    run : bool
        Decode at once, and wait for it.

    Returns
    -------
    Playground
        Its ``traces`` and ``explorer`` are those of the last run.

    Raises
    ------
    ValueError, FileNotFoundError
        Something given is not as described. With ``run``, what decoding raises, too; on screen it is one sentence.
    """
    if processor is not None:
        vlm = (vlm, processor)
    own_model = not isinstance(vlm, VLM | str | Path)
    if not isinstance(vlm, VLM):
        given: Any = (vlm, None) if own_model and not isinstance(vlm, tuple) else vlm
        vlm = load(given)
    made = Playground(
        vlm, image, question, own_model=own_model, pruner=pruner, layer=layer, heads=heads, temperature=temperature,
        seed=seed, max_new_tokens=max_new_tokens, out=out,
    )  # fmt: skip
    if run:
        made.run(wait=True)
    return made
