"""What a dask worker does: load the model once, decode batches, put each trace into the store.

Heavy imports wait until the first batch: dask imports this module in the thread that answers the scheduler.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_turn = threading.Lock()  # one decode at a time: a model serves one thread
_ready: dict[str, Any] = {}  # what this process keeps between batches: the model, and which arms it was tried with


class SweepError(RuntimeError):
    """Not one sample's fault: going on would fail for every sample. What is finished is kept."""


def run_batch(task: dict[str, Any]) -> dict[str, Any]:
    """Decode one batch and store its traces.

    Parameters
    ----------
    task : dict
        ``folder``, ``token`` of the sweep; ``modules`` and their ``module_folder``; ``model``, ``pruner`` (dicts),
        ``decode`` (dict); ``weights`` expected, or None; ``run``: one word for all batches of one call of the command;
        ``jobs``: id, sample, picture, question, seed, wanted.

    Returns
    -------
    dict
        ``outcomes``, one per wanted job: id, and row or error with traceback; ``worker``: host and process; and
        ``memory_mb`` of that process.

    Raises
    ------
    SweepError
        The worker does not see the sweep's folder, cannot write there, or cannot run this model with this pruner.
    """
    with _turn:
        outcomes = _outcomes(_Batch(task))
        gc.collect()  # a decode leaves reference cycles that hold tensors, and Python would wait long to free them
    worker = f"{os.uname().nodename}, process {os.getpid()}"
    return {"outcomes": outcomes, "worker": worker, "memory_mb": memory_mb()}


def _outcomes(batch: _Batch) -> list[dict[str, Any]]:
    # A worker that died between storing and answering leaves traces behind: they are measured, not made again.
    stored = [batch.measured(id) for id in batch.wanted if id in batch.store]
    if len(stored) == len(batch.wanted):
        return stored
    return [outcome for outcome in batch.decoded() if outcome["id"] in batch.wanted]


def memory_mb() -> float:
    """Resident memory of this process in MB (Linux; NaN elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


class _Batch:
    def __init__(self, task: dict[str, Any]) -> None:
        from visionpulse_analysis.store import TraceStore
        from visionpulse_analysis.sweeps.config import import_modules
        from visionpulse_analysis.sweeps.folder import check_token

        folder = Path(task["folder"])
        check_token(folder, task["token"])
        import_modules(task["modules"], Path(task["module_folder"]), "sweep")
        self.store = TraceStore(folder / "traces", mode="a")
        self.task = task
        self.wanted = {job["id"] for job in task["jobs"] if job["wanted"]}
        self.vlm = _load(task["model"], task["weights"], task["run"])
        self.options = _options(task)
        _try_out(self.vlm, self.options, task)

    def decoded(self) -> Iterator[dict[str, Any]]:
        """One outcome per job: together those whose pictures can be read; one by one when that fails."""
        readable, pictures = [], []
        for job in self.task["jobs"]:
            try:
                pictures.append(_pictures(job))
                readable.append(job)
            except Exception as error:
                yield _failure(job, error)
        try:
            traces = self._decode(readable, pictures) if readable else []
        except Exception as error:
            _check_device(self.vlm)
            if len(readable) == 1:
                yield _failure(readable[0], error)
                return
            logger.warning("a batch of %d failed, one by one now: %s", len(readable), error)
        else:
            yield from map(self._store, readable, traces)
            return
        for job, picture in zip(readable, pictures, strict=True):
            try:
                [trace] = self._decode([job], [picture])
            except Exception as error:
                _check_device(self.vlm)
                yield _failure(job, error)
            else:
                yield self._store(job, trace)

    def _decode(self, jobs: Sequence[dict[str, Any]], pictures: list[Any]) -> list[Any]:
        from visionpulse_analysis.decoding import decode

        return decode(
            self.vlm,
            pictures,
            [job["question"] for job in jobs],
            seed=[job["seed"] for job in jobs],
            batch_size=len(jobs),
            **self.options,
        )

    def _store(self, job: dict[str, Any], trace: Any) -> dict[str, Any]:
        from visionpulse_analysis.sweeps.rows import row_of

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
        from visionpulse_analysis.sweeps.rows import row_of

        return {"id": id, "row": row_of(self.store[id])}


def _pictures(job: dict[str, Any]) -> list[Any]:
    """The pictures of one question: uint8 [row_px, col_px, 3] each."""
    from visionpulse_analysis.images import read_image
    from visionpulse_analysis.testbed.scenes import generate

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
    from visionpulse_analysis.models import load

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


def _options(task: dict[str, Any]) -> dict[str, Any]:
    from visionpulse_analysis.pruners import make_pruner
    from visionpulse_analysis.sampling import Sample

    options = {name: value for name, value in task["decode"].items() if name != "batch_size"}
    pruner, sample = task["pruner"], options["sample"]
    options["pruner"] = None if pruner is None else make_pruner(**pruner)
    options["sample"] = Sample(**sample) if isinstance(sample, dict) else sample
    return options


def _try_out(vlm: Any, options: dict[str, Any], task: dict[str, Any]) -> None:
    """Decode two tokens about any picture, once per pruner: what fails here would fail for every sample."""
    from visionpulse_analysis.decoding import decode
    from visionpulse_analysis.testbed.scenes import generate

    if task["pruner"] in _ready["tried"]:
        return
    try:
        decode(vlm, generate(0, 4).render(), "where is the red circle ?", **{**options, "max_new_tokens": 2})
    except Exception as error:
        name = "dense" if task["pruner"] is None else task["pruner"]["name"]
        raise SweepError(
            f"the model {vlm.name!r} cannot be decoded with {name!r} and these options: {type(error).__name__}: {error}"
        ) from error
    _ready["tried"].append(task["pruner"])


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
