"""A worker's task without a model: it stores small traces, slowly, and a cursed sample kills its process."""

import os
import time
from pathlib import Path

import numpy as np

from visionpulse_analysis.experiments.sweeps.tables import row_of
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import create_trace
from visionpulse_analysis.traces.store import TraceStore

GRID = PatchGrid.from_grid(range(4), rows=2, cols=2, image_sizes=[(16, 16)])


def made_trace(id: str, seed: int, steps: int = 2):
    """A trace whose content follows from ``seed``."""
    rows = np.random.default_rng(seed).random((steps, 1, 4)) / 4
    return create_trace(
        attention=rows,
        mass=rows.sum(-1),
        tokens=["a"] * steps,
        token_ids=range(steps),
        logprobs=[-0.5] * steps,
        grid=GRID,
        layers=[3],
        meta={"id": id, "question": "what ?", "model_hash": "none", "finished": True},
    )


def run_batch(task):
    """Like `sweeps.worker.run_batch`; notes every process and every attempt at a cursed sample in the folder."""
    folder = Path(task["folder"])
    (folder / f"process-{os.getpid()}").touch()
    store, outcomes = TraceStore(folder / "traces", mode="a"), []
    jobs = [job for arm in task["arms"] for job in arm["jobs"]]
    for job in jobs:
        if job["names"]["sample"] in os.environ.get("CURSED", "").split():
            with (folder / "attempts").open("a") as file:
                file.write(f"{len(jobs)} ")
            os._exit(9)
        time.sleep(0.02)
        if job["wanted"]:
            trace = made_trace(job["id"], job["seed"])
            if job["id"] not in store:
                store.add(trace)
            outcomes.append({"id": job["id"], "row": row_of(trace)})
    return {"outcomes": outcomes, "worker": "fake", "memory_mb": 1.0}
