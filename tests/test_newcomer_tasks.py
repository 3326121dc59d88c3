"""What a newcomer wants to add, done once on a copy: how many files it takes is what CONTRIBUTING says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import numpy as np
import pytest
from made_scene import random_traces, sample_of
from matplotlib.figure import Figure
from PIL import Image

import visionpulse_analysis as vpa
from visionpulse_analysis import figures, studies
from visionpulse_analysis.metrics.estimate import Estimate
from visionpulse_analysis.studies.shared import readme_table
from visionpulse_analysis.studies.step_dependence.measure import step_dependence
from visionpulse_analysis.studies.step_dependence.object_attention import object_attention

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "visionpulse_analysis"
QUANTITY = '''

@quantity(axes=("step", "layer", "head"), unit="share of the softmax row", range=(0, 1))
def strongest(call: LayerAttention) -> torch.Tensor:
    """The weight of the most attended patch."""
    return call.patch_weights.amax(dim=-1)
'''
WITH_A_BIAS = '''
"""Look more at the upper half of the image while the model is unsure."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.view import View


@dataclass(frozen=True)
class LookUp(Pruner):
    """Add ``strength`` times the surprise of the step before to the logits of the first half of the patches.

    An example, of no paper.

    Parameters
    ----------
    strength : float
        0 changes nothing; nats of attention per nat of surprise.
    """

    name: ClassVar[str] = "look_up"
    reweights: ClassVar[bool] = True
    strength: float = 1.0

    def visible(self, view: View, run: Selection) -> torch.Tensor | None:
        upper = torch.arange(run.layout.patches.shape[1]) < run.layout.counts[:, None] / 2
        return -self.strength * view.logprobs().amax(dim=1, keepdim=True) * upper
'''


def copied(to: Path) -> Path:
    """A copy of the package, to be edited."""
    unread = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "visionpulse_analysis", to / "tree/visionpulse_analysis", ignore=unread)
    return to / "tree"


def run(tree: Path, folder: Path, *asked: str) -> str:
    """What a command of the copy prints, run in a folder."""
    code = "import sys; from visionpulse_analysis.cli import app; app(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_quantity_is_one_function_in_one_file(tmp_path, scenes_folder, pictures):
    tree = copied(tmp_path)
    with (tree / "visionpulse_analysis/traces/computed.py").open("a") as file:
        file.write(QUANTITY)
    Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
    asked = ["decode", "scene.png", "where ?", "--model", str(scenes_folder), "--max-new-tokens", "2", "--heads", "all"]
    asked += ["--record", "strongest", "--store", "store", "--id", "one", "--explore", "page.html"]
    run(tree, tmp_path, *asked)
    found = vpa.TraceStore(tmp_path / "store")["one"].data["strongest"]  # where nobody has the function
    assert found.dims == ("step", "layer", "head") and found.attrs["how"] == "The weight of the most attended patch."
    [payload] = re.findall(r'id="payload">(.*?)</script>', (tmp_path / "page.html").read_text(), re.S)
    assert {row["name"] for row in json.loads(payload)["quantities"]} == {"attention", "mass", "strongest"}


def test_a_quantity_of_a_notebook_is_one_cell(vlm, pictures, monkeypatch):
    from visionpulse_analysis.traces import quantities

    monkeypatch.setattr(quantities, "_registered", dict(quantities._registered))
    blocks = re.findall(r"```py\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    [cell] = [block for block in blocks if "@vpa.quantity" in block]
    assert len([line for line in cell.splitlines() if line.strip()]) <= 15
    names = {"vpa": vpa, "vlm": vlm, "image": pictures[0], "question": "where is the red circle ?"}
    exec(cell, names)
    trace = names["trace"]
    assert np.abs(trace.data["strongest"] - trace.attention.astype(float).max("patch")).max() < 1e-3
    [shown] = [row for row in vpa.explore(trace).packed["quantities"] if row["name"] == "strongest"]
    assert shown["how"] == "The weight of the most attended patch." and not shown["map"]


def test_a_pruner_with_a_bias_is_one_file(tmp_path, vlm, scenes_folder, pictures):
    tree = copied(tmp_path)
    (tree / "visionpulse_analysis/pruners/look_up.py").write_text(WITH_A_BIAS)
    Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
    asked = ["decode", "scene.png", "where ?", "--model", str(scenes_folder), "--max-new-tokens", "2", "--json"]
    made = json.loads(run(tree, tmp_path, *asked, "--pruner", "look_up(strength=30.0)"))
    dense = vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=2, sample=None)
    assert made["kept"] == [64, 64]  # nothing is hidden
    mass = np.array(made["mass"])
    assert np.abs(mass[0] - dense.mass.values[0]).max() < 1e-5  # prefill is dense
    assert mass[1, 0] > dense.mass.values[1, 0] + 0.01  # the first layer reads the same token, and looks more


PANEL = """

def draw_mass_by_step(ax: Axes, found: Findings) -> None:
    figures.draw_curve(ax, found.study.steps, found.study.mass, "all samples")
    ax.set(xlabel="step", ylabel="mean image mass")


ANSWERS.append(draw_mass_by_step)
"""


def test_a_panel_of_figure_01_takes_one_file(rng, tmp_path, monkeypatch):
    traces, samples = random_traces(rng, 3), [sample_of(str(i)) for i in range(3)]
    study, truth = step_dependence(traces, 2), object_attention(traces, samples, 2)
    shown = {}
    for name, added in (("as_it_is", ""), ("with_a_panel", PANEL)):
        copy = tmp_path / f"{name}.py"
        copy.write_text((PACKAGE / "studies" / "step_dependence" / "figures.py").read_text() + added)
        spec = spec_from_file_location(name, copy)
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks its module up
        spec.loader.exec_module(module)
        page = module.headline(traces[0], samples[0], study, truth)
        shown[name] = [ax.get_xlabel() for ax in page.axes if ax.axison]
    assert sorted(shown["with_a_panel"]) == sorted([*shown["as_it_is"], "step"])


REPORT = """
from visionpulse_analysis.metrics.claims import from_json
from visionpulse_analysis.studies.shared.sentences import Finding


def finding(numbers):
    moved = from_json(numbers)["moved"]
    return Finding(f"It moves {moved:.2g nats}.", f"It moves {moved:.3g nats} {numbers['often']} times.")
"""


def test_a_notebook_with_a_new_question_is_the_notebook_and_one_folder(tmp_path, monkeypatch):
    folder, notebook = tmp_path / "moving", tmp_path / "77_moving.ipynb"
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    cells = [nbformat.v4.new_markdown_cell("# Does it move?\nYes or no.")]
    cells.append(nbformat.v4.new_code_cell("from visionpulse_analysis.studies.moving import report"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    figure, numbers = Figure(), {"moved": Estimate(0.5, 0.25, 1, 9, 9, 0.95, "Wilson").to_json(), "often": 3}
    figures.save(figure, notebook.stem, folder=tmp_path, seed=0, parameters={}, data_hash="0", numbers=numbers)
    with pytest.raises(ModuleNotFoundError, match="moving"):
        readme_table.headlines(tmp_path, tmp_path)
    folder.mkdir()
    (folder / "report.py").write_text(REPORT.replace("def finding", "def no_finding"))
    with pytest.raises(ValueError, match=r"moving.report has no finding\(numbers\), which tells what 77_moving.ipynb"):
        readme_table.headlines(tmp_path, tmp_path)
    monkeypatch.delitem(sys.modules, "visionpulse_analysis.studies.moving.report")
    (folder / "report.py").write_text(REPORT)
    row, section = readme_table.headlines(tmp_path, tmp_path), readme_table.sections(tmp_path, tmp_path)
    assert "| **Does it move?** It moves 0.5 nats [0.25, 1]. ([more](docs/findings.md#77_moving), " in row
    assert "## 77_moving\n\n**Does it move?** It moves 0.5 nats [0.25, 1] 3 times." in section
    cells.append(nbformat.v4.new_code_cell("from visionpulse_analysis.studies.heads import report"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    with pytest.raises(ValueError, match=r"2 folders of studies \(.*heads, .*moving\); expected one"):
        readme_table.headlines(tmp_path, tmp_path)
