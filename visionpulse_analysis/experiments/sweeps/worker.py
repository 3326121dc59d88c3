"""What a dask worker does: load the model once, decode samples under some pruners, put each trace into the store.

Heavy imports wait until the first batch: dask imports this module in the thread that answers the scheduler.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_turn = threading.Lock()  # one decode at a time: a model serves one thread
_ready: dict[str, Any] = {}  # what this process keeps between batches: the model, and which arms it was tried with


class SweepError(RuntimeError):
    """Not one sample's fault: going on would fail for every sample. What is finished is kept."""


def run_batch(task: dict[str, Any]) -> dict[str, Any]:
    """Decode some samples under one pruner or several, and store their traces.

    Raises SweepError: the worker does not see the sweep's folder, cannot write there, or cannot run this model with
    this pruner.

    Parameters
    ----------
    task : dict
        ``folder``, ``token`` of the sweep; ``modules`` and their ``module_folder``; ``model``, ``decode`` (dicts);
        ``weights`` expected, or None; ``run``: one word for all tasks of one call of the command; ``arms``: ``pruner``
        (dict or None) and ``jobs`` each: id, sample, picture, question, seed, wanted. All have the same samples.

    Returns
    -------
    dict
        ``outcomes``, one per wanted job: id, and row or error with traceback; ``worker``: host and process; and
        ``memory_mb`` of that process.
    """
    with _turn:
        outcomes = _outcomes(_Task(task))
        gc.collect()  # a decode leaves reference cycles that hold tensors, and Python would wait long to free them
    worker = f"{os.uname().nodename}, process {os.getpid()}"
    return {"outcomes": outcomes, "worker": worker, "memory_mb": memory_mb()}


def _outcomes(task: _Task) -> list[dict[str, Any]]:
    # A worker that died between storing and answering leaves traces behind: they are measured, not made again.
    stored, left = [], []
    for arm in task.arms:
        wanted = [job["id"] for job in arm.jobs if job["wanted"]]
        if all(id in task.store for id in wanted):
            stored += [task.measured(id) for id in wanted]
        else:
            left.append(arm)
    return stored + [outcome for outcome in task.decoded(left) if outcome["id"] in task.wanted]


def memory_mb() -> float:
    """Resident memory of this process in MB (Linux; NaN elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


@dataclass
class _Arm:
    """A pruner, or none, and its jobs, which are decoded together."""

    described: dict[str, Any] | None
    pruner: Any
    jobs: list[dict[str, Any]]


class _Task:
    def __init__(self, task: dict[str, Any]) -> None:
        from visionpulse_analysis.experiments.sweeps.config import import_modules
        from visionpulse_analysis.experiments.sweeps.tables import check_token
        from visionpulse_analysis.pruners import make_pruner
        from visionpulse_analysis.traces.store import TraceStore

        folder = Path(task["folder"])
        check_token(folder, task["token"])
        import_modules(task["modules"], Path(task["module_folder"]), "sweep")
        self.store = TraceStore(folder / "traces", mode="a")
        self.wanted = {job["id"] for arm in task["arms"] for job in arm["jobs"] if job["wanted"]}
        self.vlm = _load(task["model"], task["weights"], task["run"])
        self.options = _options(task["decode"])
        self.arms = []
        for arm in task["arms"]:
            described = arm["pruner"]
            pruner = None if described is None else make_pruner(**described)
            self.arms.append(_Arm(described, pruner, arm["jobs"]))
            _try_out(self.vlm, self.options, self.arms[-1])

    def decoded(self, arms: Sequence[_Arm]) -> Iterator[dict[str, Any]]:
        """One outcome per job: all arms from one prefill; each by itself, then each job by itself, when that fails."""
        readable, pictures = [], []
        for row, job in enumerate(arms[0].jobs if arms else []):
            try:
                pictures.append(_pictures(job))
                readable.append(row)
            except Exception as error:
                yield from (_failure(arm.jobs[row], error) for arm in arms)
        if not readable:
            return
        left = deque(arms)
        if len(arms) > 1:
            given = self._decode(arms, readable, pictures)
            while left:
                try:
                    traces = next(given)
                except Exception as error:
                    _check_device(self.vlm)
                    logger.warning("%d pruners together failed, each by itself now: %s", len(arms), error)
                    break
                yield from map(self._store, [left[0].jobs[row] for row in readable], traces)
                left.popleft()
        for arm in left:
            yield from self._alone(arm, readable, pictures)

    def _alone(self, arm: _Arm, rows: Sequence[int], pictures: list[Any]) -> Iterator[dict[str, Any]]:
        """The outcomes of one arm: its jobs together; one by one when that fails."""
        jobs = [arm.jobs[row] for row in rows]
        try:
            [traces] = self._decode([arm], rows, pictures)
        except Exception as error:
            _check_device(self.vlm)
            if len(jobs) == 1:
                yield _failure(jobs[0], error)
                return
            logger.warning("a batch of %d failed, one by one now: %s", len(jobs), error)
        else:
            yield from map(self._store, jobs, traces)
            return
        for row, picture in zip(rows, pictures, strict=True):
            yield from self._alone(arm, [row], [picture])

    def _decode(self, arms: Sequence[_Arm], rows: Sequence[int], pictures: list[Any]) -> Iterator[list[Any]]:
        """The traces of one arm after the other."""
        from visionpulse_analysis.decoding import decode_each

        return decode_each(
            self.vlm,
            pictures,
            [arms[0].jobs[row]["question"] for row in rows],
            pruner=[arm.pruner for arm in arms],
            seed=[[arm.jobs[row]["seed"] for row in rows] for arm in arms],
            batch_size=len(rows),
            **self.options,
        )

    def _store(self, job: dict[str, Any], trace: Any) -> dict[str, Any]:
        from visionpulse_analysis.experiments.sweeps.tables import row_of

        if job["id"] not in self.wanted:
            return {"id": job["id"]}
        try:
            self.store.add(trace.with_meta({**trace.meta, "id": job["id"], "sweep": job["names"]}))
        except FileExistsError:
            return self.measured(job["id"])  # a worker that had been given up wrote it after all
        except OSError as error:
            raise SweepError(str(error)) from error
        return {"id": job["id"], "row": row_of(trace)}

    def measured(self, id: str) -> dict[str, Any]:
        """The outcome of a trace that is stored already."""
        from visionpulse_analysis.experiments.sweeps.tables import row_of

        return {"id": id, "row": row_of(self.store[id])}


def _pictures(job: dict[str, Any]) -> list[Any]:
    """The pictures of one question: uint8 [row_px, col_px, 3] each."""
    from visionpulse_analysis.media.images import read_image
    from visionpulse_analysis.testbed.scenes.scene import generate

    if job["scene"] is not None:
        return [generate(*job["scene"]).render()]
    return [read_image(one) if isinstance(one, str) else one.read() for one in job["images"]]


def _failure(job: dict[str, Any], error: Exception) -> dict[str, Any]:
    text = f"{type(error).__name__}: {error}"
    logger.warning("sample %s failed: %s", job["id"], text)
    return {"id": job["id"], "error": text, "traceback": "".join(traceback.format_exception(error))}


def _load(model: dict[str, Any], weights: str | None, run: str) -> Any:
    """The model, kept from one batch to the next of the same run; another model takes its place.

    Between two runs its files may have changed, and so may the options that it was tried with.
    """
    from visionpulse_analysis.models.loading import load

    if (_ready.get("run"), _ready.get("model")) != (run, model):
        _ready.clear()
        gc.collect()
        name = model["name"]
        try:
            vlm = load(name, **{key: value for key, value in model.items() if key not in ("name", "label")})
        except Exception as error:
            raise SweepError(f"the model {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
        logger.info("loaded %s in process %d", name, os.getpid())
        _ready.update(run=run, model=model, vlm=vlm, tried=[])
    vlm = _ready["vlm"]
    if weights is not None and vlm.weights_hash != weights:
        raise SweepError(
            f"the model {model['name']!r} has other weights ({vlm.weights_hash}) than when this sweep began "
            f"({weights}); sweep into another folder, or restore the model"
        )
    return vlm


def _options(decode: dict[str, Any]) -> dict[str, Any]:
    from visionpulse_analysis.decoding.sampling import Sample

    options = {name: value for name, value in decode.items() if name != "batch_size"}
    sample = options["sample"]
    options["sample"] = Sample(**sample) if isinstance(sample, dict) else sample
    return options


def _try_out(vlm: Any, options: dict[str, Any], arm: _Arm) -> None:
    """Decode two tokens about any picture, once per pruner: what fails here would fail for every sample."""
    from visionpulse_analysis.decoding import decode
    from visionpulse_analysis.testbed.scenes.scene import generate

    if arm.described in _ready["tried"]:
        return
    try:
        picture, asked = generate(0, 4).render(), "where is the red circle ?"
        decode(vlm, picture, asked, pruner=arm.pruner, **{**options, "max_new_tokens": 2})
    except Exception as error:
        name = "dense" if arm.described is None else arm.described["name"]
        raise SweepError(
            f"the model {vlm.name!r} cannot be decoded with {name!r} and these options: {type(error).__name__}: {error}"
        ) from error
    _ready["tried"].append(arm.described)


def _check_device(vlm: Any) -> None:
    """After some errors a GPU answers nothing any more until its process ends.

    A worker process ends then: its nanny starts another, and dask counts over whom. Without a nanny, the sweep ends.
    """
    if vlm.model.device.type == "cuda":
        try:
            next(vlm.model.parameters()).sum().item()
        except Exception as error:
            if multiprocessing.parent_process() is not None:
                logger.error("the GPU of this worker stopped working, a new process takes its place: %s", error)
                os._exit(1)
            raise SweepError(f"the GPU of this worker stopped working: {error}") from error
