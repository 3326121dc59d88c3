"""The loop that trains every head: AdamW, a cosine, clipped gradients; it goes on from where its folder left off."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from tqdm import tqdm

from visionpulse_analysis._util.files import write_whole

REPORT_EVERY = 50  # steps
STATE, TENSORS = "fit.json", "fit.safetensors"


def state_folder(folder: Path, vlm: Any, *given: Any) -> Path:
    """Where the state of a fit lies: under a name of its own for all that it depends on."""
    told = repr([vlm.weights_hash, *given])
    return folder / hashlib.sha256(told.encode()).hexdigest()[:16]


def fit(
    head: nn.Module,
    loss: Callable[[int], torch.Tensor],
    folder: Path,
    *,
    steps: int,
    rate: float,
    save_every: int = 100,
    until: int | None = None,
    report: Callable[[str], None] = print,
) -> dict:
    """Train a head in place, or go on training it.

    Parameters
    ----------
    head : Module
    loss : callable
        Of the number of a step, and of nothing else: a resumed run then takes the steps it would have taken.
    folder : Path
        For the state, which is written every `save_every` steps and at the end. A run is resumed bit for bit.
    steps, rate
        How many steps, and the learning rate, which rises over the first 3 % and falls by a cosine to a hundredth.
    until : int, optional
        Stop before this step, to go on another time.
    report : callable
        Gets a line every fifty steps.

    Returns
    -------
    dict
        ``step``, ``seconds`` of wall time in all, and ``loss``, the mean over each fifty steps.
    """
    optimizer = torch.optim.AdamW(head.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    state = {"step": 0, "seconds": 0.0, "loss": [], "recent": []}
    if (folder / STATE).exists():
        state = json.loads((folder / STATE).read_text())
        _restore(head, optimizer, folder)
    end, last = steps if until is None else min(until, steps), time.monotonic()
    head.train()
    for step in tqdm(range(state["step"], end), initial=state["step"], total=steps, disable=None, desc="fit"):
        warm = min(1.0, (step + 1) / max(1.0, 0.03 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        found = loss(step)
        if not torch.isfinite(found):
            raise FloatingPointError(f"loss is {found.item()} at step {step}; lower the learning rate")
        found.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        state["step"], state["seconds"], last = step + 1, state["seconds"] + now - last, now
        state["recent"].append(float(found.detach()))
        if len(state["recent"]) == REPORT_EVERY or step + 1 == steps:
            state["loss"].append(round(sum(state["recent"]) / len(state["recent"]), 5))
            state["recent"] = []
            report(f"{step + 1} {state['seconds']:.0f}s loss {state['loss'][-1]:.4f}")
        if (step + 1) % save_every == 0 or step + 1 == end:
            _keep(head, optimizer, folder, state)
    head.eval()
    return state


def _keep(head: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, state: dict) -> None:
    tensors = {f"head.{name}": value.detach().contiguous() for name, value in head.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TENSORS, save(tensors, metadata={"step": str(state["step"])}))
    write_whole(folder / STATE, json.dumps(state).encode())


def _restore(head: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    tensors, moments = load_file(folder / TENSORS), dict[int, dict[str, torch.Tensor]]()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = value
    head.load_state_dict({key[5:]: value for key, value in tensors.items() if key.startswith("head.")})
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
