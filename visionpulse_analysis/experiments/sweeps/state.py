"""How far a sweep is: which jobs are finished, which failed for good, and which have failed before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from visionpulse_analysis.experiments.sweeps.folder import Outcomes, SweepFolder
from visionpulse_analysis.experiments.sweeps.plan import Job
from visionpulse_analysis.experiments.sweeps.rows import row_of
from visionpulse_analysis.experiments.sweeps.worker import SweepError


class State:
    """Read from the folder, kept up as outcomes come in.

    finished : ids of the planned jobs whose trace is stored. others : number of traces that no planned job asks for,
    made under other settings: kept, and not in the table. failed : id -> last error of jobs without attempts left.
    weights : model label -> hash of the weights its traces were made with.
    """

    def __init__(self, folder: SweepFolder, jobs: Sequence[Job], retries: int, retry_failed: bool) -> None:
        self.jobs, self.retries = {job.id: job for job in jobs}, retries
        self.outcomes = Outcomes(folder.path / "outcomes.jsonl")
        if retry_failed:
            self.outcomes.forget_failures()
        # The store decides what is finished: a kill can fall between a trace and its line in the outcomes.
        stored = folder.store.finished_ids
        self.finished = {id for id in stored if id in self.jobs}
        self.others = len(stored) - len(self.finished)
        self.failed: dict[str, str] = {}
        self.weights: dict[str, str] = {}
        self.outcomes.add(
            {"id": id, "row": row_of(folder.store[id])} for id in sorted(self.finished) if id not in self.outcomes.rows
        )
        self._note_weights(sorted(self.finished))
        self._count_failures(self.outcomes.failures)

    @property
    def closed(self) -> int:
        """Number of jobs with which nothing is left to be done."""
        return len(self.finished) + len(self.failed)

    def is_open(self, job: Job) -> bool:
        """Whether the job is neither finished nor failed for good."""
        return job.id not in self.finished and job.id not in self.failed

    def failed_before(self, job: Job) -> bool:
        """Whether the job has failed at least once."""
        return job.id in self.outcomes.failures

    def take(self, outcomes: Sequence[dict[str, Any]]) -> None:
        """Note what a batch came to, on disk first; raises SweepError where one model has two weights."""
        self.outcomes.add(outcomes)
        done = [outcome["id"] for outcome in outcomes if "row" in outcome]
        self.finished.update(done)
        self._note_weights(done)
        self._count_failures(outcome["id"] for outcome in outcomes if "error" in outcome)

    def _note_weights(self, ids: Iterable[str]) -> None:
        """Raise SweepError for traces of one model with other weights: workers that began together may load such."""
        for id in ids:
            label, found = self.jobs[id].model.label, self.outcomes.rows[id]["weights"]
            known = self.weights.setdefault(label, found)
            if found != known:
                raise SweepError(
                    f"{id} was made with other weights ({found}) than the traces before it ({known}): workers load "
                    f"different files as {label!r}; let them load the same, and sweep into another folder"
                )

    def _count_failures(self, ids: Iterable[str]) -> None:
        for id in ids:
            errors = self.outcomes.failures[id]
            spent = len(errors) > self.retries or id in self.outcomes.final
            if id in self.jobs and id not in self.finished and spent:
                self.failed[id] = errors[-1]
