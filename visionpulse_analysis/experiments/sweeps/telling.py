"""What a sweep tells while it runs: a bar for the terminal, and ``sweep.log``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from visionpulse_analysis.experiments.sweeps.folder import SweepFolder

logger = logging.getLogger("visionpulse_analysis.experiments.sweeps")


def log_outcome(outcome: dict[str, Any], where: str) -> None:
    """One line per sample, with its id and the worker."""
    if "row" in outcome:
        logger.info("%s: %d tokens (%s)", outcome["id"], outcome["row"]["tokens"], where)
    else:
        logger.warning("%s failed: %s (%s)\n%s", outcome["id"], outcome["error"], where, outcome.get("traceback", ""))


def progress_bar(total: int, done: int, shown: bool) -> tqdm:
    """Traces done, rate and remaining time."""
    seconds = 0.5 if sys.stderr.isatty() else 30.0  # between two lines of a log file
    return tqdm(total=total, initial=done, unit="trace", disable=not shown, mininterval=seconds, smoothing=0.05)


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
