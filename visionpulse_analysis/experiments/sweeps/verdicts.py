"""Answers that only a language model can judge: out of a sweep as JSON lines, and its verdicts back in.

The suite asks no judge itself. ``verdicts.jsonl`` in the sweep's folder keeps what was read in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from visionpulse_analysis._util.files import write_whole
from visionpulse_analysis.experiments.judging import LANGUAGE_MODEL
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import read_samples
from visionpulse_analysis.experiments.sweeps.tables import VERDICTS, SweepFolder, read_kept, verdict_on, write_table


def export_unjudged(config: SweepConfig, path: str | Path) -> int:
    """Write the answers of a sweep that wait for a language model's verdict, one JSON object a line.

    Raises FileNotFoundError: the sweep has no table yet; ValueError: a row of the table is of a sample that the sweep's
    file no longer asks for; OSError: the file cannot be written.

    Parameters
    ----------
    config : the sweep's; it may be going on, then its table as of the last minute is read
    path : str or Path
        The file to write. Each line: ``id`` of the trace, ``sample``, ``question`` as the model was asked it,
        ``reference`` (the right answers; none where the table of the benchmark has none), ``prediction``, and
        ``prompt``: what the benchmark asks a judge, the prediction filled in; null where it states nothing.

    Returns
    -------
    int
        Number of answers written.
    """
    samples = {sample.name: sample for sample in read_samples(config)}
    lines = []
    finished: Any = Sweep(config.out).finished
    for row in finished[finished["judge"] == LANGUAGE_MODEL].to_dict("records"):
        sample = samples.get(row["sample"])
        if sample is None or sample.question != row["question"]:
            raise ValueError(
                f"the table of {config.out} has {row['sample']!r}, which the sweep's file no longer asks as it did; "
                "run the sweep again, then its table holds what the file asks for"
            )
        prompt = None if sample.grading is None else sample.grading.replace("{PREDICTION}", row["answer"])
        answers = [] if sample.reference is None else list(sample.reference.answers)
        line = {"id": row["id"], "sample": sample.name, "question": sample.question, "reference": answers}
        lines.append(json.dumps({**line, "prediction": row["answer"], "prompt": prompt}, ensure_ascii=False))
    write_whole(Path(path), "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def read_verdicts(folder: str | Path, path: str | Path) -> int:
    """Take a language model's verdicts into a sweep: its table has their scores from then on, also when it goes on.

    Raises FileNotFoundError: no such file, or no sweep with a table; ValueError: a line is no verdict, is about no
    trace of the table or one that needs none, or judges another answer; two lines are about one trace. Nothing has been
    changed then; SweepError: the sweep is running.

    Parameters
    ----------
    folder : of the sweep, which must not be running
    path : str or Path
        JSON lines, each with ``id`` as exported, ``score`` (0..1) and ``judge`` (the name of the model that judged).
        Where ``prediction`` is there it must be the answer of that trace; other keys are passed over. Not all answers
        need a verdict; one given before is replaced.

    Returns
    -------
    int
        Number of verdicts taken.
    """
    path, sweep = Path(path), Sweep(folder)
    if not path.is_file():
        raise FileNotFoundError(f"no file of verdicts at {path}")
    table = sweep.table
    kept = SweepFolder(sweep.folder)
    with kept.locked():
        rows = {row["id"]: row for row in sweep.finished.to_dict("records")}
        found: dict[str, dict[str, Any]] = {}
        for where, line in _lines(path):
            verdict = _verdict(line, rows, where)
            if verdict["id"] in found:
                raise ValueError(f"{where}: a second verdict on {verdict['id']!r}; keep one")
            found[verdict["id"]] = verdict
        verdicts = read_kept(kept.path) | found
        text = "".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts.values())
        write_whole(kept.path / VERDICTS, text.encode())
        told = [_with_verdict(row, verdicts) for row in table.to_dict("records")]
        write_table(kept.path, "parquet" if sweep.reads_parquet else "csv", told)
    return len(found)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not in UTF-8 ({error}); save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path.name}, line {number}"
        if line.strip():
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: no valid JSON ({error})") from error


def _verdict(line: Any, rows: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """The checked verdict, and the answer it is about."""
    if not isinstance(line, dict) or not {"id", "score", "judge"} <= set(line):
        raise ValueError(f"{where}: expected an object with id, score and judge, got {line!r}")
    id, score, judge = line["id"], line["score"], line["judge"]
    if not isinstance(id, str) or id not in rows:
        raise ValueError(f"{where}: no finished trace {id!r} in the table of this sweep")
    row = rows[id]
    if pd.isna(row["judge"]) or not row["judge"].startswith(LANGUAGE_MODEL):
        raise ValueError(f"{where}: {id!r} needs no verdict; its judge is {row['judge']}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"{where}: score must be a number from 0 to 1, got {score!r}")
    if not isinstance(judge, str) or not judge.strip():
        raise ValueError(f"{where}: judge must name the model that judged, got {judge!r}")
    if line.get("prediction", row["answer"]) != row["answer"]:
        raise ValueError(f"{where}: judges {line['prediction']!r}, but the answer of {id!r} is {row['answer']!r}")
    return {"id": id, "score": float(score), "judge": judge.strip(), "answer": row["answer"]}


def _with_verdict(row: dict[str, Any], verdicts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    plain = {name: None if pd.isna(value) else value for name, value in row.items()}
    return plain | (verdict_on(verdicts.get(row["id"]), row["answer"]) if row["status"] == "done" else {})
