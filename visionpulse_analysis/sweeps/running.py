"""Driving a sweep: what is not finished goes to the workers, what comes back is noted."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from distributed import Future, KilledWorker, as_completed
from tqdm.auto import tqdm

from visionpulse_analysis.sweeps.cluster import connect
from visionpulse_analysis.sweeps.config import SweepConfig
from visionpulse_analysis.sweeps.folder import SweepFolder
from visionpulse_analysis.sweeps.plan import Job, batches, plan
from visionpulse_analysis.sweeps.state import State
from visionpulse_analysis.sweeps.tables import check_table, rows, write_table
from visionpulse_analysis.sweeps.worker import SweepError, run_batch

logger = logging.getLogger("visionpulse_analysis.sweeps")


@dataclass(frozen=True)
class Summary:
    """How a sweep went: jobs planned, finished in all, of these finished before, and failed for good."""

    folder: str
    table: str
    planned: int
    finished: int
    before: int
    failed: int
    seconds: float


def run(
    config: SweepConfig,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    report: Callable[[str], object] = print,
    progress: bool = True,
) -> Summary:
    """Run a sweep, or go on with one: finished samples are not touched, the rest is done.

    Parameters
    ----------
    config : SweepConfig
    scheduler, workers
        As `cluster.connect`.
    retry_failed : bool
        Give samples that failed for good their attempts back.
    report : callable, str -> None
        Told the dashboard's address and what is done.
    progress : bool
        Show a bar with rate and remaining time on standard error.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError, FileNotFoundError
        Of the configuration, the samples or the folder. Nothing has been decoded then.
    SweepError
        Another process runs this sweep, the scheduler was lost, or no sample could be decoded at all. Finished
        traces are kept; the same call goes on from there.
    """
    started = time.perf_counter()
    check_table(config.table)
    jobs = plan(config)
    folder = SweepFolder(config.out)
    with folder.locked(), _logging_to(folder):
        state = State(folder, jobs, config.retries, retry_failed)
        before = len(state.finished)
        report(f"{len(jobs)} traces planned, {before} finished, {len(state.failed)} failed; into {folder.path}")
        try:
            if state.closed < len(jobs):
                with connect(scheduler, workers) as client:
                    report(f"dask dashboard: {client.dashboard_link or 'none'}")
                    with _bar(len(jobs), state.closed, progress) as bar:
                        for model in config.models:  # one after the other: a worker loads each once
                            of_model = [job for job in jobs if job.model is model]
                            _Run(client, config, folder, state, bar).finish(of_model)
        finally:
            table = write_table(folder.path, config.table, rows(jobs, state))
    counts = {"planned": len(jobs), "finished": len(state.finished), "before": before, "failed": len(state.failed)}
    return Summary(str(folder.path), str(table), **counts, seconds=time.perf_counter() - started)


@dataclass
class _Run:
    """The jobs of one model on the cluster."""

    client: Any  # distributed.Client; its methods are typed as if they were coroutines
    config: SweepConfig
    folder: SweepFolder
    state: State
    bar: tqdm

    def finish(self, jobs: list[Job]) -> None:
        """Do what is left: first many batches at a time, then alone what may have killed its worker.

        dask suspects every batch that waited at a worker when it died; alone, only the guilty one is hit again.
        """
        suspects: list[Job] = []
        waiting, again = self._batches(jobs), deque[list[Job]]()
        running: dict[Future, list[Job]] = {}
        completed = as_completed(loop=self.client.loop)
        while True:
            # A few batches at a time: neither the scheduler nor this process ever holds the whole sweep.
            with self._in_touch():
                room = 2 * sum(self.client.nthreads().values()) + 2 - len(running)
            for _ in range(room):
                batch = next(waiting, None) or (again.popleft() if again else None)
                if batch is None:
                    break
                future = self._submit(batch)
                running[future] = batch
                completed.add(future)
            if not running:
                break
            future = next(completed)
            batch = running.pop(future)
            try:
                self._take(future)
            except KilledWorker as killed:
                logger.warning("%s: %s; tried alone later", ", ".join(job.id for job in batch), killed)
                suspects += [job for job in batch if self.state.is_open(job)]
            else:
                again.extend([job] for job in batch if self.state.is_open(job))
        for job in suspects:
            while self.state.is_open(job):
                self._alone(job)

    def _alone(self, job: Job) -> None:
        try:
            self._take(self._submit([job]))
        except KilledWorker as killed:
            error = f"KilledWorker: {killed.allowed_failures + 1} workers died over it (out of memory, or a crash)"
            self._note({"outcomes": [{"id": job.id, "error": error, "final": True}], "worker": "dask", "memory_mb": 0})

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """What is left to do; a job that has failed goes alone, now as when it is retried."""
        for batch in batches(jobs, self.config.decode.batch_size):
            left = [job for job in batch if self.state.is_open(job)]
            if any(map(self.state.failed_before, batch)):
                yield from ([job] for job in left)
            elif left:
                yield batch

    def _submit(self, batch: list[Job]) -> Future:
        key = f"{batch[0].id}-{uuid.uuid4().hex[:8]}"  # the dashboard and dask's own logs name the sample
        with self._in_touch():
            return self.client.submit(run_batch, self._task(batch), key=key, pure=False)

    def _task(self, batch: list[Job]) -> dict[str, Any]:
        """Plain data: a worker reads it with nothing but its own installation."""
        model, arm = batch[0].model, batch[0].arm
        return {
            "folder": str(self.folder.path),
            "token": self.folder.token,
            "modules": self.config.modules,
            "module_folder": str(self.config.folder),
            "model": asdict(model),
            "weights": self.state.weights.get(model.label),
            "pruner": arm.pruner and arm.pruner.to_dict(),
            "decode": asdict(self.config.decode),
            "jobs": [
                {
                    "id": job.id,
                    "wanted": self.state.is_open(job),
                    "names": {"sample": job.sample.name, "model": model.label, "pruner": arm.label, "seed": job.seed},
                    "question": job.sample.question,
                    "images": job.sample.images,
                    "scene": job.sample.scene,
                    "seed": job.row_seed,
                }
                for job in batch
            ],
        }

    def _take(self, future: Future) -> None:
        """Note what came back; raises KilledWorker where the workers died, SweepError where the scheduler did."""
        with self._in_touch():
            result = future.result()
        self._note(result)

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Whatever is asked of the scheduler may be what finds it gone."""
        try:
            yield
        except (CancelledError, TimeoutError, OSError) as error:
            raise SweepError(
                f"the dask scheduler was lost ({type(error).__name__}); {len(self.state.finished)} traces are finished "
                "and kept: start the scheduler and its workers again and run the same command"
            ) from error

    def _note(self, result: dict[str, Any]) -> None:
        closed = self.state.closed
        self.state.take(result["outcomes"])
        for outcome in result["outcomes"]:
            _log(outcome, f"{result['worker']}, {result['memory_mb']:.0f} MB")
        self.bar.set_postfix(failed=len(self.state.failed), refresh=False)
        self.bar.update(self.state.closed - closed)


def _log(outcome: dict[str, Any], where: str) -> None:
    if "row" in outcome:
        logger.info("%s: %d tokens (%s)", outcome["id"], outcome["row"]["tokens"], where)
    else:
        logger.warning("%s failed: %s (%s)\n%s", outcome["id"], outcome["error"], where, outcome.get("traceback", ""))


def _bar(total: int, done: int, shown: bool) -> tqdm:
    seconds = 0.5 if sys.stderr.isatty() else 30.0  # between two lines of a log file
    return tqdm(total=total, initial=done, unit="trace", disable=not shown, mininterval=seconds, smoothing=0.05)


@contextmanager
def _logging_to(folder: SweepFolder) -> Iterator[None]:
    """Append to ``sweep.log`` in the folder."""
    handler = logging.FileHandler(folder.path / "sweep.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        logger.error("stopped: %s", error)
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
