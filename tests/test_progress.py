"""Bars: seen by people, never by files; one at a time; and what makes them changes no result."""

import io
import os
import re
import subprocess
import sys
from time import sleep

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import visionpulse_analysis as vpa
from visionpulse_analysis._util import progress
from visionpulse_analysis.cli.base import told
from visionpulse_analysis.cli.notebooks.run import run, run_all
from visionpulse_analysis.experiments.bench.batch import bench_sharing
from visionpulse_analysis.experiments.bench.endurance import bench_endurance
from visionpulse_analysis.experiments.bench.store import bench_store
from visionpulse_analysis.experiments.conditions import first_choices
from visionpulse_analysis.experiments.samples import one_sample


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Shown:
    """What standard error was given since it was asked last."""

    def __init__(self, capsys):
        self.capsys = capsys

    def getvalue(self) -> str:
        return self.capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch, capsys):
    monkeypatch.setenv(progress.SWITCH, "1")
    return Shown(capsys)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "IN_A_FILE", 0)


@pytest.mark.parametrize(("said", "asked", "looked_at", "expected"), [
    ("", None, True, True), ("", None, False, False), ("0", None, True, False), ("1", None, False, True),
    ("off", None, True, False), ("1", False, True, False), ("0", True, False, True),
    ("", True, False, True), ("", False, True, False),
])  # fmt: skip
def test_who_sees_a_bar(monkeypatch, said, asked, looked_at, expected):
    monkeypatch.setattr(sys, "stderr", Terminal() if looked_at else io.StringIO())
    monkeypatch.setenv(progress.SWITCH, said)
    assert progress.shown(asked) is expected


def test_a_bar_tells_rate_and_time_left_and_is_gone_afterwards(terminal, at_once):
    assert progress.over(lambda x: sleep(0.15) or 2 * x, [1, 2, 3], "doubling", "number") == [2, 4, 6]
    shown = terminal.getvalue()
    assert "doubling" in shown and "3/3" in shown and "number/s" in shown and "<" in shown
    assert shown.rsplit("\r", 1)[-1].strip() == ""


def test_what_is_over_at_once_shows_none(terminal):
    progress.over(str, range(100), "naming", "number")
    assert terminal.getvalue() == ""


def test_one_bar_at_a_time_and_the_next_one_after_a_failure(terminal, at_once):
    with progress.bar(2, "outer", "trace"):
        progress.over(str, range(2), "inner", "number")
        progress.advance("trace")
    shown = terminal.getvalue()
    assert "outer" in shown and "inner" not in shown
    with pytest.raises(ZeroDivisionError) as kept:  # with its traceback, as a notebook keeps it
        progress.over(lambda x: 1 / x, [0], "dividing", "number")
    progress.over(str, range(2), "next", "number")
    assert kept and "next" in terminal.getvalue()


class TestDecode:
    QUESTIONS = ["where ?", "what ?", "why ?"]

    def decode(self, vlm, pictures, **options):
        return vpa.decode(vlm, [pictures[0]] * 3, self.QUESTIONS, max_new_tokens=3, batch_size=2, **options)

    def test_it_counts_traces(self, vlm, pictures, terminal, at_once):
        self.decode(vlm, pictures)
        shown = terminal.getvalue()
        assert "3/3" in shown and "trace/s" in shown

    def test_several_pruners_count_together(self, vlm, pictures, terminal, at_once):
        self.decode(vlm, pictures, pruner=[None, vpa.VisionPulse(budget=0.5)])
        assert "6/6" in terminal.getvalue()

    def test_not_where_it_is_refused_or_nobody_looks(self, vlm, pictures, terminal, at_once, monkeypatch):
        self.decode(vlm, pictures, progress=False)
        assert terminal.getvalue() == ""
        monkeypatch.delenv(progress.SWITCH)
        self.decode(vlm, pictures)
        assert terminal.getvalue() == ""

    def test_it_changes_no_trace(self, vlm, pictures, terminal, at_once):
        drawn = {"sample": vpa.Sample(1.0), "seed": 3}
        seen, unseen = (self.decode(vlm, pictures, progress=shown, **drawn) for shown in (True, False))
        assert [one.data_hash for one in seen] == [one.data_hash for one in unseen]


def test_what_results_depend_on_is_the_same_under_a_bar(vlm, terminal, at_once, monkeypatch):
    from visionpulse_analysis.experiments.cache import state_of

    state = state_of(vlm, vpa.decode)
    monkeypatch.setenv(progress.SWITCH, "yes")
    with progress.bar(2, "outer", "trace"):
        assert state is not None and state_of(vlm, vpa.decode) == state


@pytest.fixture
def folder(tmp_path):
    for number, said in enumerate(("a", "b")):
        cells = [
            new_code_cell("seed = 0\nout = 'figures'", metadata={"tags": ["parameters"]}),
            new_code_cell(
                f"import os\nprint({said!r}, os.environ[{progress.SWITCH!r}], get_ipython().kernel.parent.log_level)"
            ),
        ]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"0{number}_{said}.ipynb")
    return tmp_path


def test_notebooks_show_a_line_each_and_none_in_what_is_kept(folder, terminal, at_once):
    lines = []
    done = run_all(folder=folder, out=folder / "out", cwd=folder, jobs=2, report=lines.append)
    shown = terminal.getvalue()
    assert "00_a" in shown and "01_b" in shown and "3/3" in shown and len(lines) == 3
    said = [cell.outputs[0].text for one in done for cell in nbformat.read(one.path, 4).cells[2:3]]
    assert said == ["a 0 50\n", "b 0 50\n"]  # what kernels log when they are interrupted stays away, too
    assert os.environ[progress.SWITCH] == "1"


def test_a_notebook_alone_shows_nothing_in_a_file(folder, capfd, monkeypatch):
    monkeypatch.delenv(progress.SWITCH, raising=False)
    run("00", folder=folder, out=folder / "out", cwd=folder)
    assert capfd.readouterr().err == ""


def test_importing_the_package_to_log_into_a_file_brings_no_tqdm(tmp_path):
    code = "import sys, visionpulse_analysis.traces.store as s; print('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def drawn_counts(shown: str, what: str) -> list[str]:
    """The counts of the bars that stood there under this name, each once, in their order."""
    return list(dict.fromkeys(re.findall(rf"{what}[^\r]*?(\d+/\d+)", shown)))


class TestWhereItTakesLong:
    def test_choices_of_pruners(self, vlm, terminal, at_once):
        samples = one_sample(seed=0), one_sample(seed=1)
        first_choices(vlm, samples, {"divprune": vpa.make_pruner("divprune")}, max_new_tokens=2, batch_size=1)
        assert drawn_counts(terminal.getvalue(), "choose") == ["0/4", "1/4", "2/4", "3/4", "4/4"]

    @pytest.mark.parametrize("kind", ["vtw", "shortv"])
    def test_calibration(self, vlm, pictures, terminal, at_once, kind):
        threshold = {"threshold": np.inf} if kind == "vtw" else {}
        vpa.calibrate(vlm, kind, [(pictures[0], "where ?")], **threshold)
        n = vlm.n_layers
        assert drawn_counts(terminal.getvalue(), "calibrate") == [f"{k}/{n}" for k in range(n + 1)]

    def test_benches(self, vlm, tmp_path, terminal, at_once):
        bench_store(3, reads=2, folder=tmp_path / "store")
        shown = terminal.getvalue()
        assert drawn_counts(shown, "fill")[-1] == "3/3" and drawn_counts(shown, "read")[-1] == "2/2"
        said = []
        bench_sharing([2], pruners=["uniform"], samples=1, cells=2, rounds=1, vlm=vlm, report=said.append)
        assert drawn_counts(terminal.getvalue(), "bench")[-1] == "4/4" and len(said) == 1
        bench_endurance(5, vlm=vlm, warm=1, report=said.append)
        assert drawn_counts(terminal.getvalue(), "bench")[-1] == "6/6"


def test_what_a_command_says_meanwhile_stands_above_the_bar(terminal, at_once):
    with progress.bar(2, "outer", "trace"):
        told("half")
        progress.advance("trace", failed=1)
    told("done")
    before, after = terminal.getvalue().split("half\n")
    assert before.rsplit("\r", 1)[-1].strip() == "" and "failed=1" in after and after.endswith("done\n")


def test_a_log_gets_a_line_each_half_minute(terminal, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0)
    progress.over(lambda _: sleep(0.02), range(10), "waiting", "number")
    assert drawn_counts(terminal.getvalue(), "waiting") in (["0/10"], ["0/10", "10/10"])
