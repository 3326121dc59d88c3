"""Training of the bundled model: seeded, resumable, on any number of cores or a GPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from tqdm import tqdm

from visionpulse_analysis.attention import route
from visionpulse_analysis.testbed.batches import ALL_TASKS, KINDS, Batch, make_batch, make_drill
from visionpulse_analysis.testbed.model import build_model
from visionpulse_analysis.testbed.optimizers import build_optimizers
from visionpulse_analysis.testbed.vision import pretrain_vision

FIRST_VISION_SEED = 900_000_000  # evaluation and study scenes use smaller seeds than either of these
FIRST_TRAINING_SEED = 1_000_000_000
VISION_STEPS = 900
DRILL_ROWS = 64
MIX = {"find": 0.25, "compare": 0.3, "count": 0.35, "describe": 0.1}


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    sizes : cells per side -> weight. tasks : task -> weight. A step draws ``images`` scenes of one size with
    ``questions`` questions each. ``rate`` : learning rate at the start and the end (cosine between). ``until`` :
    leave early once these kinds of token reach this teacher-forced accuracy (running mean). ``drills`` : share of
    the steps that are drills, without images.
    """

    name: str
    steps: int
    sizes: dict[int, float]
    tasks: dict[str, float]
    images: int
    questions: int
    rate: tuple[float, float]
    until: dict[str, float] = field(default_factory=dict)
    drills: float = 0.0


PLAN = (
    Stage("read", 3000, {4: 0.6, 6: 0.4}, {"describe": 1.0}, 16, 1, (1.5e-3, 1.5e-3), {"row": 0.9, "column": 0.9}),
    Stage("reason", 800, {4: 0.4, 6: 0.3, 8: 0.3}, MIX, 8, 4, (1.5e-3, 1.5e-3), drills=0.4),
    Stage("settle", 2000, {4: 0.1, 6: 0.15, 8: 0.75}, MIX, 8, 4, (1.5e-3, 2e-5), drills=0.1),
)


def hidden_states(model, batch: Batch) -> torch.Tensor:
    """Last hidden states [row, L, width] of a packed batch."""
    return model.model(
        input_ids=batch.ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        pixel_values=batch.pixels,
        image_grid_thw=batch.grid_thw,
        use_cache=False,
    ).last_hidden_state


def shared_prefix_attention(prefix: int):
    """Attention for packed rows that does not compute the prefix's masked half, nor prefix x conversations."""

    def attend(module, query, key, value, mask, *, scaling, **options):
        groups = module.num_key_value_groups
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        first = scaled_dot_product_attention(
            query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True, scale=scaling
        )
        rest = scaled_dot_product_attention(
            query[:, :, prefix:], key, value, attn_mask=mask[:, :, prefix:], scale=scaling
        )
        return torch.cat([first, rest], dim=2).transpose(1, 2).contiguous(), None

    return attend


def scores(model, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Loss (mean cross-entropy over supervised tokens, nats) and teacher-forced (right, total).

    By kind of token, and by task over its answer tokens.
    """
    with route(model, shared_prefix_attention(batch.prefix)):
        hidden = hidden_states(model, batch)
    chosen = batch.target != -100
    logits, target, kind = model.lm_head(hidden[chosen]), batch.target[chosen], batch.kind[chosen]
    right = logits.argmax(-1) == target
    answers, task = kind == KINDS.index("answer"), batch.task[chosen]
    groups = {name: kind == index for index, name in enumerate(KINDS)}
    groups |= {name: answers & (task == index) for index, name in enumerate(ALL_TASKS)}
    counts = {name: (int((right & members).sum()), int(members.sum())) for name, members in groups.items()}
    return cross_entropy(logits.float(), target), counts


class Trainer:
    """Runs a plan from where its folder left off.

    Every batch is a function of (seed, step), so a resumed run sees the data it would have seen. ``start`` names a
    published model to go on from where the folder is new; its vision tower is then not trained by itself again.
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
        self.folder, self.plan, self.seed, self.device = Path(folder), plan, seed, device
        self.threads = torch.get_num_threads()
        self.model: Any = build_model(seed)
        self.model.to(device)
        self.average: Any = build_model(seed).requires_grad_(False)
        self.average.to(device)
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
