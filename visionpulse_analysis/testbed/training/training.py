"""Training of a model on its world: seeded, resumable, on any number of cores or a GPU."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from visionpulse_analysis.models.loading import usable_device
from visionpulse_analysis.testbed.training.optimizers import build_optimizers
from visionpulse_analysis.testbed.worlds import SCENES, World

REPORT_EVERY = 50  # steps
CURVES = "curves.csv"
STATE, PUBLISHED = "state.json", "training.json"  # a run goes on from a copy of either


class Trainer:
    """Runs a plan, by default that of its world, from where its folder left off.

    Every batch is a function of (seed, step), so a resumed run sees the data it would have seen. ``start`` names a
    published model to go on from where the folder is new; its vision tower is then not trained by itself again.
    A device that is not there is refused with ValueError, before the folder is made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        world: World = SCENES,
        plan: Sequence[Any] | None = None,
        seed: int = 0,
        device: str = "cpu",
        threads: int | None = None,
        start: str | Path | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.folder, self.world, self.seed, self.device = Path(folder), world, seed, str(usable_device(device))
        self.plan: Sequence[Any] = world.plan if plan is None else plan
        self.threads = torch.get_num_threads()
        self.folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused before training
        self.model: Any = world.build(seed)
        self.model.to(self.device)
        self.average: Any = world.build(seed).requires_grad_(False)
        self.average.to(self.device)
        self.beside = world.beside(self.model, seed).to(self.device)
        self.optimizers = build_optimizers(self.model)
        if parameters := list(self.beside.parameters()):
            self.optimizers["beside"] = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
        self.state: dict = {
            "stage": 0,
            "step_in_stage": 0,
            "step": 0,
            "seconds": 0.0,
            "running": {},
            "log": [],
        }
        if stored := [self.folder / name for name in (STATE, PUBLISHED) if (self.folder / name).exists()]:
            self._restore(stored[0])
        elif start is not None:
            for model in (self.model, self.average):
                model.load_state_dict(load_file(Path(start) / "model.safetensors"))
            self.state["vision"] = f"taken from {Path(start).resolve().name}"

    def run(
        self,
        *,
        minutes: float | None = None,
        save_every: int = 100,
        keep: str | Path | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        """Train until the plan ends or ``minutes`` of wall time have passed, not at all for 0.

        Saves every ``save_every`` steps. Where it saves, it also writes what :meth:`keep` does to the folder ``keep``.
        """
        started = last = time.monotonic()
        if "vision" not in self.state:
            self.state["vision"] = self.world.prepare(self.model, seed=self.seed, report=report)
            self.average.load_state_dict(self.model.state_dict())
            self.save()
        self.model.train()
        total = sum(stage.steps for stage in self.plan)
        with tqdm(total=total, initial=self.state["step"], disable=None, desc="train") as bar:
            while self.state["stage"] < len(self.plan) and minutes != 0:
                stage = self.plan[self.state["stage"]]
                loss = self._step(stage)
                now = time.monotonic()
                self.state["seconds"] += now - last
                last = now
                running = self.state["running"]
                bar.update()
                shown = " ".join(f"{name} {running[name]:.3f}" for name in self.world.shown if name in running)
                bar.set_postfix_str(f"{stage.name} loss {loss:.3f} {shown}")
                if self.state["step"] % REPORT_EVERY == 0:
                    report(f"{self.state['step']} {self.state['seconds']:.0f}s {stage.name} {loss:.3f} {shown}")
                    self._note(stage, loss)
                reached = stage.until and all(running.get(k, 0.0) >= v for k, v in stage.until.items())
                if self.state["step_in_stage"] >= stage.steps or reached:
                    self.state["log"].append({"stage": stage.name, "step": self.state["step"], **running})
                    self.state["stage"] += 1
                    self.state["step_in_stage"] = 0
                if self.state["step_in_stage"] == 0 or self.state["step"] % save_every == 0:
                    self.save()
                    if keep is not None:
                        self.keep(keep)
                if minutes is not None and now - started > 60 * minutes:
                    break
        self.save()
        if keep is not None:
            self.keep(keep)

    def _step(self, stage: Any) -> float:
        state = self.state
        progress = state["step_in_stage"] / max(stage.steps, 1)
        rate = stage.rate[1] + (stage.rate[0] - stage.rate[1]) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (state["step"] + 1) / 100)
        loss, counts = self.world.loss(self.model, self.beside, stage, self.seed, state["step"])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {state['step']}; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.beside.zero_grad(set_to_none=True)
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
            "beside": _contiguous(self.beside),
            "optimizer": moments,
        }
        for name, content in tensors.items():
            temporary = self.folder / f"{name}.tmp"
            save_file(content, temporary, metadata={"step": str(self.state["step"])})
            temporary.replace(self.folder / f"{name}.safetensors")
        temporary = self.folder / "state.tmp"
        temporary.write_text(json.dumps(self.told(), indent=1) + "\n")
        temporary.replace(self.folder / STATE)

    def keep(self, folder: str | Path) -> None:
        """Write what a later run needs to go on, small enough for a repository: weights in bfloat16, state, curves.

        A run whose folder is a copy of this one starts its optimisers and its averages anew.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _save_small(self.model, folder / "model.safetensors")
        self.keep_beside(folder)
        (folder / STATE).write_text(json.dumps(self.told(), indent=1) + "\n")

    def keep_beside(self, folder: Path) -> None:
        """Write what was trained beside the model, and the curves, where there are any."""
        if self.beside.state_dict():
            _save_small(self.beside, folder / "beside.safetensors")
        if (self.folder / CURVES).exists():
            (folder / CURVES).write_text((self.folder / CURVES).read_text())

    def told(self) -> dict[str, Any]:
        """The state of the run, with its seed and plan, JSON-ready."""
        return {**self.state, "seed": self.seed, "plan": [asdict(stage) for stage in self.plan]}

    def _note(self, stage: Any, loss: float) -> None:
        """Add a row to the curves: step, seconds, stage, loss, and the running mean of every score in long form."""
        path, new = self.folder / CURVES, not (self.folder / CURVES).exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "seconds", "stage", "score", "value"])
            known = {"loss": loss, **self.state["running"]}
            at = (self.state["step"], round(self.state["seconds"]), stage.name)
            writer.writerows([*at, name, f"{value:.4f}"] for name, value in known.items())

    def _forget_after(self, step: int) -> None:
        """Drop rows of the curves that a run noted after its last checkpoint: it will come by there again."""
        path = self.folder / CURVES
        if path.exists():
            head, *rows = path.read_text().splitlines(keepends=True)
            path.write_text("".join([head, *(row for row in rows if int(row.split(",")[0]) <= step)]))

    def _restore(self, path: Path) -> None:
        stored = {k: v for k, v in json.loads(path.read_text()).items() if k in {*self.state, "vision", "seed"}}
        if stored.pop("seed") != self.seed:
            raise ValueError(f"{self.folder} was trained with another seed; give that seed or another folder")
        self.state = stored
        self._forget_after(stored["step"])
        weights = load_file(self.folder / "model.safetensors")
        self.model.load_state_dict(weights)
        average = self.folder / "average.safetensors"
        self.average.load_state_dict(load_file(average) if average.exists() else weights)
        if (self.folder / "beside.safetensors").exists():
            self.beside.load_state_dict(load_file(self.folder / "beside.safetensors"))
        if (self.folder / "optimizer.safetensors").exists():
            moments: dict[str, dict[int, dict[str, torch.Tensor]]] = {kind: {} for kind in self.optimizers}
            for key, value in load_file(self.folder / "optimizer.safetensors").items():
                kind, index, name = key.split(".", 2)
                moments[kind].setdefault(int(index), {})[name] = value
            for kind, optimizer in self.optimizers.items():
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments[kind]})


def _save_small(module: torch.nn.Module, path: Path) -> None:
    save_file({name: value.bfloat16() for name, value in _contiguous(module).items()}, path)


def _contiguous(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.state_dict().items()}
