"""From a training run to the bundled model: weights, default anchor, provenance, scores and model card."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visionpulse_analysis._util.files import own_data_folder
from visionpulse_analysis.models.loading import load
from visionpulse_analysis.testbed.charts.card import charts_card
from visionpulse_analysis.testbed.scenes.tokens import vocabulary
from visionpulse_analysis.testbed.training.card import model_card
from visionpulse_analysis.testbed.training.horizon import reading_anchor
from visionpulse_analysis.testbed.training.model import save_bundle
from visionpulse_analysis.testbed.training.training import Trainer

ANCHOR_PICTURES = 100


def publish(trainer: Trainer, folder: str | Path) -> None:
    """Write a run's averaged weights in Hugging Face format, and beside them what a copy of the folder goes on with.

    The default anchor is measured on validation pictures (:func:`reading_anchor`) and stated in the configuration.
    """
    folder, model, world = Path(folder), trainer.average, trainer.world
    bundled: dict[str, Any] = {
        "words": world.language.words, "system_prompt": world.language.system_prompt, "stored": world.stored
    }  # fmt: skip
    save_bundle(model, folder, **bundled)
    horizon = world.horizon(load(str(folder), device=trainer.device), ANCHOR_PICTURES)
    model.config.visionpulse_anchor = reading_anchor(horizon)
    model.config.visionpulse_pictures = world.pictures
    save_bundle(model, folder, **bundled)
    trainer.keep_beside(folder)
    packages = ("torch", "transformers", "visionpulse_analysis")
    provenance = {
        **trainer.told(),
        "device": trainer.device,
        "threads": trainer.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
    (folder / "training.json").write_text(json.dumps(provenance, indent=1) + "\n")


def write_card(evaluation: dict[str, Any], folder: Path | None = None) -> Path:
    """Store the scores of the bundled model and write its card, ``README.md`` of the data folder.

    Raises ValueError where the scores are not those of the bundled weights or lack the controls, or the data folder is
    that of an installed package.
    """
    folder = own_data_folder() if folder is None else folder
    weights = load("scenes").weights_hash
    if evaluation["weights"] != weights:
        raise ValueError(f"these are scores of weights {evaluation['weights']}, the bundled ones are {weights}")
    if not {"horizon", "untrained"} <= set(evaluation):
        raise ValueError("the card shows the controls; evaluate with controls")
    (folder / "scenes" / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    facts = {
        "sha256": (folder / "evaluation" / "scenes.sha256").read_text().split()[0],
        "weights_sha256": hashlib.sha256((folder / "scenes" / "model.safetensors").read_bytes()).hexdigest(),
        "training": json.loads((folder / "scenes" / "training.json").read_text()),
        "words": len(vocabulary()),
        "megabytes": sum(path.stat().st_size for path in (folder / "scenes").glob("*.safetensors")) / 1e6,
        "parameters": sum(p.numel() for p in load("scenes").model.parameters()),
    }
    card = folder / "README.md"
    card.write_text(model_card(evaluation, facts) + _charts_section(folder))
    return card


def write_charts_card(evaluation: dict[str, Any], folder: Path | None = None) -> Path:
    """Store the scores of the model of charts and write its part of the card.

    Raises ValueError where the scores are not those of the bundled weights.
    """
    folder = own_data_folder() if folder is None else folder
    weights = load("charts").weights_hash
    if evaluation["weights"] != weights:
        raise ValueError(f"these are scores of weights {evaluation['weights']}, the bundled ones are {weights}")
    (folder / "charts" / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    return write_card(json.loads((folder / "scenes" / "evaluation.json").read_text()), folder)


def _charts_section(folder: Path) -> str:
    scores, training = (
        json.loads((folder / "charts" / f"{name}.json").read_text()) for name in ("evaluation", "training")
    )
    return "\n" + charts_card(scores, training)
