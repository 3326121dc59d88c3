"""Driving a sweep: what is not finished goes to the workers, what comes back is noted, told and logged."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpulse_analysis._util.progress import SWITCH, above, advance, bar
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.samples import Job, batches, plan
from visionpulse_analysis.experiments.sweeps.tables import LiveTable, State, SweepFolder, check_table
from visionpulse_analysis.experiments.sweeps.worker import SweepError, run_batch
from visionpulse_analysis.models.finding import place_of

if TYPE_CHECKING:
    from distributed import Future

logger = logging.getLogger("visionpulse_analysis.experiments.sweeps")


def log_outcome(outcome: dict[str, Any], where: str) -> None:
    """One line per sample, with its id and the worker."""
    if "row" in outcome:
        logger.info("%s: %d tokens (%s)", outcome["id"], outcome["row"]["tokens"], where)
    else:
        logger.warning("%s failed: %s (%s)\n%s", outcome["id"], outcome["error"], where, outcome.get("traceback", ""))


@contextmanager
def logging_to(folder: SweepFolder) -> Iterator[None]:
    """Append to ``sweep.log`` in the folder."""
    handler = logging.FileHandler(folder.path / "sweep.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        logger.error("stopped: %s", str(error) or type(error).__name__)
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


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
    progress: bool | None = None,
) -> Summary:
    """Run a sweep, or go on with one: finished samples are not touched, the rest is done.

    Raises ValueError, FileNotFoundError: of the configuration, the samples or the folder. Nothing has been decoded
    then; SweepError: another process runs this sweep, the scheduler was lost, or no sample could be decoded at all.
    Finished traces are kept; the same call goes on from there.

    Parameters
    ----------
    config : SweepConfig
    scheduler, workers
        As `cluster.connect`.
    retry_failed : give samples that failed for good their attempts back
    report : callable, str -> None
        Told the dashboard's address, what is done and, from another thread, whether there are workers.
    progress : bool, optional
        As in `decode`. ``sweep.log`` in the folder has a line per sample in any case.

    Returns
    -------
    Summary
    """
    started = time.perf_counter()
    check_table(config.table)
    jobs = plan(config)
    folder = SweepFolder(config.out)
    with folder.locked(), logging_to(folder):
        state = State(folder, jobs, config.retries, retry_failed)
        before = len(state.finished)
        table = LiveTable(folder.path, config.table, jobs, state)
        report(f"{len(jobs)} traces planned, {before} finished, {len(state.failed)} failed; into {folder.path}")
        if state.others:
            report(f"{state.others} traces made with other settings stay in the store, and are not in the table")
        try:
            if state.closed < len(jobs):
                _find_models(config, {job.model.label for job in jobs if state.is_open(job)}, scheduler)
                from visionpulse_analysis.experiments.sweeps.cluster import connect, watched  # imports torch and dask

                with connect(scheduler, workers) as client:
                    report(f"dask dashboard: {'none' if workers == 0 else client.dashboard_link}")
                    going = _Run(client, config, folder, state, table, report)
                    # Batches are of unequal length: the rate is that of the whole sweep rather than of the last ones.
                    about = {"initial": state.closed, "smoothing": 0.05, "delay": 0, "leave": True}
                    # Sweeps run for hours where nobody looks: their logs tell how far they are, unless that is refused.
                    asked = True if progress is None and not os.environ.get(SWITCH) else progress
                    with bar(len(jobs), "sweep", "trace", asked, **about), watched(client, going.tell):
                        for model in config.models:  # one after the other: a worker loads each once
                            going.finish([job for job in jobs if job.model is model])
        except KeyboardInterrupt:
            report("interrupted; finished traces are kept, and the same command goes on")
            raise
        finally:
            path = table.write()
    counts = {"planned": len(jobs), "finished": len(state.finished), "before": before, "failed": len(state.failed)}
    return Summary(str(folder.path), str(path), **counts, seconds=time.perf_counter() - started)


def _find_models(config: SweepConfig, labels: Collection[str], scheduler: str | None) -> None:
    """Raise SweepError for a model that is not there, before any worker starts and looks for it.

    What is not a folder here may be known to the workers of an existing cluster alone.
    """
    for model in config.models:
        source = config.source(model)
        if model.label in labels and (scheduler is None or Path(source).is_dir()):
            try:
                place_of(source, model.revision)
                from visionpulse_analysis.models.loading import find_model  # imports torch

                find_model(source, model.revision, model.trust_remote_code)
            except ValueError as error:
                raise SweepError(f"the model {source!r} cannot be loaded: {type(error).__name__}: {error}") from error


@dataclass
class _Run:
    """One call of the command, on the cluster."""

    client: Any  # distributed.Client; its methods are typed as if they were coroutines
    config: SweepConfig
    folder: SweepFolder
    state: State
    table: LiveTable
    report: Callable[[str], object]
    word: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells the workers this call from any other

    def tell(self, line: str) -> None:
        """Say something in the middle of the sweep, above the bar; what cannot be said is in the log."""
        logger.info(line)
        with suppress(OSError), above():
            self.report(line)

    def threads(self) -> int:
        """How many batches the workers that are there now can take at once."""
        with self._in_touch():
            return sum(self.client.nthreads().values())

    def finish(self, jobs: list[Job]) -> None:
        """Do what is left of one model: first many tasks at a time, then alone what may have killed its worker.

        dask suspects every task that waited at a worker when it died; alone, only the guilty one is hit again.
        """
        from distributed import KilledWorker, as_completed

        suspects: list[Job] = []
        waiting, again = self._tasks(jobs), deque[list[Job]]()
        running: dict[Future, list[list[Job]]] = {}
        completed = as_completed(loop=self.client.loop)
        while True:
            # A few tasks at a time: neither the scheduler nor this process ever holds the whole sweep.
            for _ in range(2 * self.threads() + 2 - len(running)):
                arms = next(waiting, None) or ([again.popleft()] if again else None)
                if arms is None:
                    break
                future = self._submit(arms)
                running[future] = arms
                completed.add(future)
            if not running:
                break
            future = next(completed)
            tried = [job for batch in running.pop(future) for job in batch]
            try:
                self._take(future)
            except KilledWorker as killed:
                logger.warning("%s: %s; tried alone later", ", ".join(job.id for job in tried), killed)
                suspects += [job for job in tried if self.state.is_open(job)]
            else:
                again.extend([job] for job in tried if self.state.is_open(job))
        for job in suspects:
            while self.state.is_open(job):
                self._alone(job)

    def _alone(self, job: Job) -> None:
        from distributed import KilledWorker

        try:
            self._take(self._submit([[job]]))
        except KilledWorker as killed:
            error = f"KilledWorker: {killed.allowed_failures + 1} workers died over it (out of memory, or a crash)"
            self._note({"outcomes": [{"id": job.id, "error": error, "final": True}], "worker": "dask", "memory_mb": 0})

    def _tasks(self, jobs: list[Job]) -> Iterator[list[list[Job]]]:
        """What is left to do: batches of the same samples together, which share their prefill.

        No trace depends on what it is made together with; as many go together as leave every worker something to do.
        """
        size = self.config.decode.batch_size
        samples = {job.sample.name for job in jobs}
        together = len(jobs) * -(-len(samples) // size) // (len(samples) * max(1, self.threads()))
        for _, same in groupby(self._batches(jobs), key=lambda batch: [job.sample.name for job in batch]):
            listed = list(same)
            for start in range(0, len(listed), max(1, together)):
                yield listed[start : start + max(1, together)]

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """The batches that are left; a job that has failed goes alone, now as when it is retried."""
        for batch in batches(jobs, self.config.decode.batch_size):
            left = [job for job in batch if self.state.is_open(job)]
            if any(map(self.state.failed_before, batch)):
                yield from ([job] for job in left)
            elif left:
                yield batch

    def _submit(self, arms: list[list[Job]]) -> Future:
        key = f"{arms[0][0].id}-{uuid.uuid4().hex[:8]}"  # the dashboard and dask's own logs name the sample
        with self._in_touch():
            return self.client.submit(run_batch, self._task(arms), key=key, pure=False)

    def _task(self, arms: list[list[Job]]) -> dict[str, Any]:
        """Plain data: a worker reads it with nothing but its own installation."""
        model = arms[0][0].model
        return {
            "folder": str(self.folder.path),
            "token": self.folder.token,
            "modules": self.config.modules,
            "module_folder": str(self.config.folder),
            "model": {**asdict(model), "name": self.config.source(model)},
            "weights": self.state.weights.get(model.label),
            "run": self.word,
            "decode": asdict(self.config.decode),
            "arms": [self._arm(batch) for batch in arms],
        }

    def _arm(self, batch: list[Job]) -> dict[str, Any]:
        arm = batch[0].arm
        return {
            "pruner": arm.pruner and arm.pruner.to_dict(),
            "jobs": [
                {
                    "id": job.id,
                    "wanted": self.state.is_open(job),
                    "names": {"sample": job.sample.name, "model": job.model.label, "pruner": arm.label,
                              "seed": job.seed},
                    "question": job.sample.asked,
                    "images": job.sample.images,
                    "scene": job.sample.scene,
                    "seed": job.row_seed,
                }
                for job in batch
            ],
        }  # fmt: skip

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
            log_outcome(outcome, f"{result['worker']}, {result['memory_mb']:.0f} MB")
        advance("trace", self.state.closed - closed, failed=len(self.state.failed))
        self.table.write_if_due()
