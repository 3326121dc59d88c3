"""Training of the bundled model: seeded, resumable, on any number of cores or a GPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from visionpulse_analysis.models import usable_device
from visionpulse_analysis.testbed.batches import ALL_TASKS, make_batch, make_drill
from visionpulse_analysis.testbed.model import build_model
from visionpulse_analysis.testbed.optimizers import build_optimizers
from visionpulse_analysis.testbed.plan import FIRST_TRAINING_SEED, FIRST_VISION_SEED, PLAN, VISION_STEPS, Stage
from visionpulse_analysis.testbed.scoring import scores
from visionpulse_analysis.testbed.vision import pretrain_vision

DRILL_ROWS = 64


class Trainer:
    """Runs a plan from where its folder left off.

    Every batch is a function of (seed, step), so a resumed run sees the data it would have seen. ``start`` names a
    published model to go on from where the folder is new; its vision tower is then not trained by itself again.
    A device that is not there is refused with ValueError, before the folder is made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        plan: tuple[Stage, ...] = PLAN,
        seed: int = 0,
        device: str = "cpu",
        threads: int | None = None,
        start: str | Path | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.folder, self.plan, self.seed, self.device = Path(folder), plan, seed, str(usable_device(device))
        self.threads = torch.get_num_threads()
        self.folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused before training
        self.model: Any = build_model(seed)
        self.model.to(self.device)
        self.average: Any = build_model(seed).requires_grad_(False)
        self.average.to(self.device)
        self.optimizers = build_optimizers(self.model)
        self.state: dict = {
            "stage": 0,
            "step_in_stage": 0,
            "step": 0,
            "seconds": 0.0,
            "running": {},
            "log": [],
        }
        if (self.folder / "state.json").exists():
            self._restore()
        elif start is not None:
            for model in (self.model, self.average):
                model.load_state_dict(load_file(Path(start) / "model.safetensors"))
            self.state["vision"] = f"taken from {start}"

    def run(
        self, *, minutes: float | None = None, save_every: int = 200, report: Callable[[str], None] = print
    ) -> None:
        """Train until the plan ends or ``minutes`` of wall time have passed; saves every ``save_every`` steps."""
        started = last = time.monotonic()
        if "vision" not in self.state:
            self.state["vision"] = pretrain_vision(
                self.model, steps=VISION_STEPS, seed=self.seed, first_scene=FIRST_VISION_SEED, report=report
            )
            self.average.load_state_dict(self.model.state_dict())
            self.save()
        self.model.train()
        total = sum(stage.steps for stage in self.plan)
        with tqdm(total=total, initial=self.state["step"], disable=None, desc="train") as bar:
            while self.state["stage"] < len(self.plan):
                stage = self.plan[self.state["stage"]]
                loss = self._step(stage)
                now = time.monotonic()
                self.state["seconds"] += now - last
                last = now
                running = self.state["running"]
                bar.update()
                bar.set_postfix_str(f"{stage.name} loss {loss:.3f} " + _show(running))
                if self.state["step"] % 50 == 0:
                    report(
                        f"{self.state['step']} {self.state['seconds']:.0f}s {stage.name} {loss:.3f} {_show(running)}"
                    )
                reached = stage.until and all(running.get(k, 0.0) >= v for k, v in stage.until.items())
                if self.state["step_in_stage"] >= stage.steps or reached:
                    self.state["log"].append({"stage": stage.name, "step": self.state["step"], **running})
                    self.state["stage"] += 1
                    self.state["step_in_stage"] = 0
                    self.save()
                elif self.state["step"] % save_every == 0:
                    self.save()
                if minutes is not None and now - started > 60 * minutes:
                    break
        self.save()

    def _step(self, stage: Stage) -> float:
        state = self.state
        rng = np.random.default_rng([self.seed, state["step"]])
        sizes = list(stage.sizes)
        cells = int(rng.choice(sizes, p=np.array([stage.sizes[s] for s in sizes]) / sum(stage.sizes.values())))
        first = FIRST_TRAINING_SEED + 64 * state["step"]
        # Drawn only where there are drills: each draw is part of what makes a run repeatable.
        if stage.drills and rng.random() < stage.drills:
            batch = make_drill(rng, list(range(first, first + DRILL_ROWS)))
        else:
            batch = make_batch(rng, list(range(first, first + stage.images)), cells, stage.tasks, stage.questions)
        progress = state["step_in_stage"] / max(stage.steps, 1)
        rate = stage.rate[1] + (stage.rate[0] - stage.rate[1]) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (state["step"] + 1) / 100)
        loss, counts = scores(self.model, batch.to(self.device))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {state['step']}; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        decay = min(0.999, (state["step"] + 1) / (state["step"] + 10))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        for kind, (right, n) in counts.items():
            if n:
                old = state["running"].get(kind, right / n)
                state["running"][kind] = 0.98 * old + 0.02 * right / n
        state["step"] += 1
        state["step_in_stage"] += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write weights, averaged weights, optimiser and state; each file replaced atomically, the state last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        moments = {}
        for kind, optimizer in self.optimizers.items():
            for index, moment in optimizer.state_dict()["state"].items():
                moments |= {f"{kind}.{index}.{name}": value for name, value in moment.items()}
        tensors = {
            "model": _contiguous(self.model),
            "average": _contiguous(self.average),
            "optimizer": moments,
        }
        for name, content in tensors.items():
            temporary = self.folder / f"{name}.tmp"
            save_file(content, temporary, metadata={"step": str(self.state["step"])})
            temporary.replace(self.folder / f"{name}.safetensors")
        temporary = self.folder / "state.tmp"
        plan = [asdict(stage) for stage in self.plan]
        temporary.write_text(json.dumps({**self.state, "seed": self.seed, "plan": plan}, indent=1))
        temporary.replace(self.folder / "state.json")

    def _restore(self) -> None:
        stored = json.loads((self.folder / "state.json").read_text())
        if stored.pop("seed") != self.seed:
            raise ValueError(f"{self.folder} was trained with another seed; give that seed or another folder")
        stored.pop("plan")
        self.state = stored
        self.model.load_state_dict(load_file(self.folder / "model.safetensors"))
        self.average.load_state_dict(load_file(self.folder / "average.safetensors"))
        if (self.folder / "optimizer.safetensors").exists():
            moments: dict[str, dict[int, dict[str, torch.Tensor]]] = {kind: {} for kind in self.optimizers}
            for key, value in load_file(self.folder / "optimizer.safetensors").items():
                kind, index, name = key.split(".", 2)
                moments[kind].setdefault(int(index), {})[name] = value
            for kind, optimizer in self.optimizers.items():
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments[kind]})


def _contiguous(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.state_dict().items()}


def _show(running: dict[str, float]) -> str:
    shown = [*ALL_TASKS, "row", "column", "verdict"]
    return " ".join(f"{name} {running[name]:.3f}" for name in shown if name in running)
