"""Answers that a language model must judge: exported from a sweep, and its verdicts read back in."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from fake_batches import made_trace
from PIL import Image
from typer.testing import CliRunner

from visionpulse_analysis.cli import app
from visionpulse_analysis.experiments.sweeps.config import SweepConfig
from visionpulse_analysis.experiments.sweeps.results import Sweep
from visionpulse_analysis.experiments.sweeps.samples import plan
from visionpulse_analysis.experiments.sweeps.tables import SweepFolder
from visionpulse_analysis.experiments.sweeps.verdicts import export_unjudged, read_verdicts
from visionpulse_analysis.experiments.sweeps.worker import SweepError
from visionpulse_analysis.metrics.estimate import as_json
from visionpulse_analysis.studies.sweep import measure, report

QUESTIONS = ["what is 東 ?", "how many\nlines ?", "why ?"]


@pytest.fixture
def config(tmp_path):
    """A sweep over three rows of CharXiv."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    rows = {"index": [0, 1, 2], "image": base64.b64encode(buffer.getvalue()).decode(), "question": QUESTIONS}
    rows |= {"answer": ["x", None, "z"], "grading_query": ["rate {PREDICTION} !", None, "a {b}"]}
    pd.DataFrame(rows).to_csv(tmp_path / "CharXiv_reasoning_val.tsv", sep="\t", index=False)
    given = {"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv"}}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(given))
    return SweepConfig.from_plain(given, folder=tmp_path)


@pytest.fixture
def ids(config, sweep, tmp_path):
    """Its traces, made without a model; the table is written by the sweep itself."""
    folder = SweepFolder(config.out)
    jobs = plan(config)
    for job in jobs:
        folder.store.add(made_trace(job.id, job.seed))
    sweep({"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv"}}})
    return [job.id for job in jobs]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def verdicts(path, found):
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return path


def test_what_is_exported(config, ids, tmp_path):
    assert Sweep(config.out).table["judge"].tolist() == ["language model"] * 3
    assert Sweep(config.out).table[["score", "right"]].isna().all(axis=None)
    assert export_unjudged(config, tmp_path / "ask.jsonl") == 3
    answer = Sweep(config.out).table["answer"].iloc[0]
    prompts, answers = [f"rate {answer} !", None, "a {b}"], [["x"], [], ["z"]]
    assert lines(tmp_path / "ask.jsonl") == [
        {
            "id": ids[n],
            "sample": f"charxiv_reasoning-{n}",
            "question": QUESTIONS[n],
            "reference": answers[n],
            "prediction": answer,
            "prompt": prompts[n],
        }
        for n in range(3)
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_verdicts_are_in_the_table_and_stay_there(config, ids, sweep, tmp_path, kind):
    given = {"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv"}}, "table": kind}
    sweep(given)
    before = Sweep(config.out).table
    export_unjudged(config, tmp_path / "ask.jsonl")
    judged = [line | {"score": 1 - 0.6 * n, "judge": "gpt"} for n, line in enumerate(lines(tmp_path / "ask.jsonl")[:2])]
    assert read_verdicts(config.out, verdicts(tmp_path / "v.jsonl", judged)) == 2
    after = Sweep(config.out).table
    assert after["score"].tolist()[:2] == [1, 0.4] and after["score"].isna().tolist() == [False, False, True]
    assert after["right"].tolist() == [True, False, pd.NA]
    assert after["judge"].tolist() == ["language model: gpt"] * 2 + ["language model"]
    told = ["right", "score", "judge"]
    pd.testing.assert_frame_equal(after.drop(columns=told), before.drop(columns=told))
    sweep(given)
    pd.testing.assert_frame_equal(Sweep(config.out).table, after)
    assert export_unjudged(config, tmp_path / "ask.jsonl") == 1
    again = [{"id": ids[0], "score": 0, "judge": "other"}, {"id": ids[2], "score": 1, "judge": "other"}]
    assert read_verdicts(config.out, verdicts(tmp_path / "v.jsonl", again)) == 2
    assert Sweep(config.out).table["score"].tolist() == [0, 0.4, 1]
    sweep(given)
    assert Sweep(config.out).table["score"].tolist() == [0, 0.4, 1]
    assert export_unjudged(config, tmp_path / "ask.jsonl") == 0


def test_a_verdict_on_another_answer_does_not_count(config, ids, sweep):
    SweepFolder(config.out)
    kept = {"id": ids[0], "score": 1.0, "judge": "gpt", "answer": "another answer"}
    verdicts(config.out / "verdicts.jsonl", [kept])
    sweep({"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv"}}})
    assert bool(Sweep(config.out).table["score"].isna().all())
    (config.out / "verdicts.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(ValueError, match=r"verdicts\.jsonl is damaged .*delete it and read the verdicts in again"):
        sweep({"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv"}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "no"}, "line 2: no finished trace 'no' in the table"),
        ({"id": 3}, "line 2: no finished trace 3"),
        ({"score": "1"}, "line 2: score must be a number from 0 to 1, got '1'"),
        ({"score": True}, "line 2: score must be a number from 0 to 1, got True"),
        ({"score": float("nan")}, "line 2: score must be a number from 0 to 1, got nan"),
        ({"score": 1.5}, "line 2: score must be a number"),
        ({"judge": " "}, "line 2: judge must name the model"),
        ({"prediction": "another"}, "line 2: judges 'another', but the answer of"),
    ],
)
def test_what_is_no_verdict_is_refused_and_changes_nothing(config, ids, tmp_path, change, message):
    before = (config.out / "table.csv").read_bytes()
    given = [{"id": ids[n], "score": 1, "judge": "gpt"} for n in range(2)]
    given[1] |= change
    with pytest.raises(ValueError, match=message):
        read_verdicts(config.out, verdicts(tmp_path / "v.jsonl", given))
    assert (config.out / "table.csv").read_bytes() == before and not (config.out / "verdicts.jsonl").exists()


def test_files_that_are_no_verdicts(config, ids, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of verdicts at"):
        read_verdicts(config.out, tmp_path / "none.jsonl")
    twice = verdicts(tmp_path / "v.jsonl", [{"id": ids[0], "score": 1, "judge": "gpt"}] * 2)
    with pytest.raises(ValueError, match="line 2: a second verdict on"):
        read_verdicts(config.out, twice)
    for text, message in (("[1]", "expected an object with id, score and judge"), ("{", "line 1: no valid JSON")):
        (tmp_path / "v.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_verdicts(config.out, tmp_path / "v.jsonl")
    with SweepFolder(config.out).locked(), pytest.raises(SweepError, match="a sweep is running"):
        read_verdicts(config.out, twice)


def test_a_table_of_other_questions_is_refused(config, ids, tmp_path):
    given = {"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv", "prompt": "{question} ?"}}}
    with pytest.raises(ValueError, match="no longer asks as it did; run the sweep again"):
        export_unjudged(SweepConfig.from_plain(given, folder=tmp_path), tmp_path / "ask.jsonl")


def test_an_answer_judged_by_a_rule_needs_no_verdict(tmp_path, config, ids, sweep):
    sweep({"out": "out", "samples": {"benchmark": {"path": "CharXiv_reasoning_val.tsv", "n": 1, "judge": "exact"}}})
    assert Sweep(config.out).table["judge"].tolist() == ["exact"]
    with pytest.raises(ValueError, match="needs no verdict; its judge is exact"):
        read_verdicts(config.out, verdicts(tmp_path / "v.jsonl", [{"id": ids[0], "score": 1, "judge": "gpt"}]))


def test_the_command_exports_and_reads(config, ids, tmp_path):
    def run(*options):
        return CliRunner().invoke(app, ["sweep", str(tmp_path / "sweep.yaml"), *map(str, options)])

    assert "3 answers wait for a judge" in run("--export-unjudged", tmp_path / "ask.jsonl").output
    given = [{"id": id, "score": 1, "judge": "gpt"} for id in ids]
    assert "3 verdicts read in" in run("--verdicts", verdicts(tmp_path / "v.jsonl", given)).output
    assert Sweep(config.out).table["right"].tolist() == [True] * 3
    both = run("--verdicts", tmp_path / "v.jsonl", "--export-unjudged", tmp_path / "x.jsonl")
    assert both.exit_code == 2 and "one at a time" in both.output


def test_the_report_names_judges_and_shows_graded_scores():
    base = {"model": "m", "seed": 0, "status": "done", "kept": 1.0, "finished": True, "tokens": 5, "pruner": "dense"}
    scores = [0.0, 0.5, 0.8, 1.0]
    rows = [{**base, "sample": f"s{n}", "score": s, "right": s >= 0.5, "judge": "anls"} for n, s in enumerate(scores)]
    table = pd.DataFrame(rows).astype({"right": "boolean"})
    results = measure.compare_pruners(table)
    assert results["dense"].score.value == pytest.approx(np.mean(scores)) and results["dense"].judges == ("anls",)
    shown = report.results_table(results).loc["dense"]
    assert shown["judge"] == "anls" and shown["score"].startswith("57.5 %") and shown["accuracy"].startswith("75.0 %")
    json.dumps(as_json(results["dense"]))
    plainly = report.results_table(measure.compare_pruners(table.drop(columns=["score", "judge"])))
    assert not {"score", "judge"} & set(plainly.columns)
