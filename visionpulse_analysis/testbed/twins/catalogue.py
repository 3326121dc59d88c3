"""The twins that can be trained by name: copies of the bundled model of scenes, tuned in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from transformers import AutoConfig

from visionpulse_analysis._util.files import data_folder, write_whole
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.models.twins import LANGUAGE_MODEL, language_of
from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.testbed.diffusion.world import DIFFUSION
from visionpulse_analysis.testbed.heads.catalogue import machine
from visionpulse_analysis.testbed.scenes.questions import TASKS
from visionpulse_analysis.testbed.training.horizon import reading_anchor
from visionpulse_analysis.testbed.training.training import CURVES, Trainer
from visionpulse_analysis.testbed.twins.patterned import Patterned, tune
from visionpulse_analysis.testbed.worlds import TwinScenes

LAYERS = 8  # of the bundled model
# Of all pairs, that under which the untuned model named most rows and columns right; notebook 16 shows them all.
READING = (4, 7)
WORST_READING = (2, 5)  # of those that are no neighbours, the one of the highest loss: a control
# The heads of the bundled model that `active_heads` finds on scenes for validation, three quarters of all.
HEADS = tuple(tuple(bool(int(head)) for head in layer) for layer in "1111 1101 0101 1111 1111 0101 1101 0110".split())
ANCHOR_PICTURES = 8
SAVE_EVERY = 20  # steps


def reading_at(layers: tuple[int, ...]) -> Pattern:
    """ViCA's pattern on the bundled model: frozen throughout, read in these layers."""
    return Pattern(tuple(range(LAYERS)), tuple(layer for layer in range(LAYERS) if layer not in layers))


TWINS: dict[str, TwinScenes] = {
    "diffusion": DIFFUSION,
    "vica": Patterned(reading_at(READING)),
    "vica-worst-layers": Patterned(reading_at(WORST_READING)),
    "yopo": Patterned(Pattern(blind=(6, 7), window=5, heads=HEADS, mlp_share=0.5), tune(60)),
}


def train_twin(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    minutes: float | None = None,
    device: str = "cpu",
    threads: int | None = None,
    report: Callable[[str], None] = print,
) -> Trainer:
    """Train a twin from the bundled model's weights, or go on with what is in ``folder``, bit for bit.

    Parameters
    ----------
    name : str
        One of `TWINS`.
    folder, seed, device, threads
        As of `Trainer`.
    minutes : float, optional
        Stop after so much time.
    report : callable
        Gets a line now and then.

    Returns
    -------
    Trainer

    Raises
    ------
    ValueError
        There is no twin of that name.
    """
    if name not in TWINS:
        raise ValueError(f"unknown twin {name!r}; known: {', '.join(TWINS)}")
    origin = data_folder() / "scenes"
    trainer = Trainer(folder, world=TWINS[name], seed=seed, device=device, threads=threads, start=origin)
    trainer.run(minutes=minutes, save_every=SAVE_EVERY, report=report)
    return trainer


def publish_twin(trainer: Trainer, folder: Path) -> None:
    """Write a twin's language model in bfloat16, its configuration, and how it was trained, with its scores."""
    world: Any = trainer.world
    origin = load("scenes", device="cpu").weights_hash
    folder.mkdir(parents=True, exist_ok=True)
    kept = {part: value.detach().bfloat16().contiguous() for part, value in language_of(trainer.average).items()}
    write_whole(folder / LANGUAGE_MODEL, save(kept))
    config = AutoConfig.from_pretrained(data_folder() / "scenes")
    for name, fact in {"visionpulse_twin": {"name": "scenes", "weights": origin}, **world.facts()}.items():
        setattr(config, name, fact)
    config.save_pretrained(folder)
    if world.anchored:
        config.visionpulse_anchor = reading_anchor(world.horizon(load(str(folder), device="cpu"), ANCHOR_PICTURES))
        config.save_pretrained(folder)
    vlm = load(str(folder), device="cpu")
    curves = (trainer.folder / CURVES).read_text().splitlines() if (trainer.folder / CURVES).exists() else []
    facts = {name.removeprefix("visionpulse_"): fact for name, fact in world.facts().items()}
    told = {**trainer.told(), **machine(), "model": origin, "weights": vlm.weights_hash, **facts}
    told |= {"curve": [row.split(",") for row in curves if row.split(",")[3] in TASKS], "scores": world.score(vlm)}
    write_whole(folder / "training.json", f"{json.dumps(told, indent=1)}\n".encode())
