"""Where the batches run: processes of this machine, or an existing dask cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker
from distributed.utils import silence_logging_cmgr

from visionpulse_analysis._util.later import torch

# dask keeps the latest 1,000 messages, events and profiles of every process, with the rows that came back: 30 MB a
# thousand samples, for longer than most sweeps last.
SHORT_LOGS = {"distributed.admin.low-level-log-length": 20}
# Ctrl-C reaches every process of a terminal: the sweep answers it and ends its workers, which shall not fall over it.
# dask takes the text of a module for a module.
NO_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
WATCH = "visionpulse: workers"  # the name of the thread that looks
NONE_YET = "no worker has joined the scheduler yet; waiting for the first one"
NONE_LEFT = "no worker is left at the scheduler; waiting for one (Ctrl-C ends this, and the same command goes on later)"


@contextmanager
def connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """A client of the cluster at address ``scheduler``, or of a local one that ends with the block.

    Raises ValueError: ``workers`` is below 0, or given for an existing cluster; OSError: nothing answers at the
    address.

    Parameters
    ----------
    scheduler : such as "tcp://node1:8786"
    workers : int, optional
        Local worker processes: by default one per GPU, or per CPU where there is none. 0: no other process, everything
        in a thread of this one.
    """
    if workers is not None and (workers < 0 or scheduler is not None):
        raise ValueError(f"workers must be at least 0 and is for a local cluster only, got {workers} and {scheduler!r}")
    if scheduler is not None:
        # A lost connection is told in one sentence by the sweep, not in tracebacks by dask.
        with silence_logging_cmgr(logging.CRITICAL), silence_logging_cmgr(logging.CRITICAL, "distributed.client"):
            try:
                client = Client(scheduler, set_as_default=False)
            except (OSError, ValueError) as error:
                raise OSError(f"no dask scheduler answers at {scheduler!r}: {error}") from error
            with client:
                yield client
        return
    with dask.config.set(SHORT_LOGS):
        cluster = local_cluster(workers)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def watched(client: Any, tell: Callable[[str], object], seconds: float = 5.0) -> Iterator[None]:
    """Say, while the block runs, that there is no worker, and that there is one again: dask itself waits silently.

    A worker that died and is back at the next look is no news.

    Parameters
    ----------
    client : distributed.Client
        Only ``nthreads()`` is asked, from a thread of its own; its error ends the watch.
    tell : callable, str -> None
        Called in that thread, never after the block.
    seconds : between two looks
    """
    over = Event()

    def watch() -> None:
        missing, patience = 0, 1  # looks in a row that found no worker; how many make news
        while True:
            try:
                count = len(client.nthreads())
            except Exception:  # no scheduler: whoever waits for a batch says so
                return
            if over.is_set():
                return
            if count:
                if missing >= patience:
                    tell(f"workers at the scheduler: {count}; going on")
                missing, patience = 0, 2
            else:
                missing += 1
                if missing == patience:
                    tell(NONE_YET if patience == 1 else NONE_LEFT)
            if over.wait(seconds):
                return

    thread = Thread(target=watch, name=WATCH, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)


def local_cluster(workers: int | None) -> Any:
    """One process and one thread per worker; with GPUs, each worker sees one of them.

    A worker does whatever it is told: all listen to this machine only, unlike dask's own.
    """
    silent: Any = logging.CRITICAL  # how a batch or a worker ended is told by the sweep
    each: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "silence_logs": silent}
    if workers == 0:
        here = {"protocol": "inproc", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
        return SpecCluster(
            workers={0: {"cls": Worker, "options": {**each, **here}}},
            scheduler={"cls": Scheduler, "options": here},
            silence_logs=silent,
        )
    gpus = visible_gpus()
    cpus = len(os.sched_getaffinity(0))
    count = workers or len(gpus) or cpus
    # Read when a worker imports its numeric libraries: together they use every core once.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cpus // count)))
    nannies = {}
    for number in range(count):
        env = {"OMP_NUM_THREADS": threads, **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})}
        # No memory limit: what a worker holds is the model, which dask could neither spill nor spare.
        options = {**each, "host": "127.0.0.1", "env": env, "preload": [NO_INTERRUPT]}
        nannies[number] = {"cls": Nanny, "options": options}
    served = {"host": "127.0.0.1", "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:8787"}
    quiet: Any = logging.WARNING
    return SpecCluster(workers=nannies, scheduler={"cls": Scheduler, "options": served}, silence_logs=quiet)


def visible_gpus() -> list[str]:
    """What to write into CUDA_VISIBLE_DEVICES for each GPU that this process may use."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]
