"""The self-checks hold on every family, and each of them fails when what it guards is broken."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build
from transformers import ProcessorMixin
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import Recorder
from visionpulse_analysis.attention.gathered import Gathered
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding import Batch
from visionpulse_analysis.decoding.exactness import checks, rounding, vision
from visionpulse_analysis.models.families import Family
from visionpulse_analysis.models.layouts import Cells


@pytest.mark.shows("still", "recorded", "pruned")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_checks_hold(family, dtype):
    vlm = family.vlm if dtype == "float32" else replace(family.vlm, model=deepcopy(family.vlm.model))
    vlm.model.to(getattr(torch, dtype))
    report = vpa.check(vlm)
    stock = isinstance(vlm.processor, ProcessorMixin) and vlm.tokenizer.chat_template is not None
    assert report.passed and len(report.findings) == 8 + stock and f"{dtype} on cpu" in str(report), str(report)


@pytest.mark.parametrize("family", ["llava"], indirect=True)
def test_a_prompt_that_is_not_the_stock_processors(family, monkeypatch):
    right = Family.asked
    monkeypatch.setattr(Family, "asked", lambda self, turns: right(self, turns) + " ")
    assert failed(family.vlm) == ["prompts are the stock processor's"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The architecture of the bundled model, in a tenth of its time."""
    folder = tmp_path_factory.mktemp("small")
    build("qwen3_vl").save(folder)
    return vpa.load(str(folder))


def failed(vlm) -> list[str]:
    return [finding.name for finding in vpa.check(vlm).findings if not finding.passed]


@pytest.mark.alike
def test_a_wrong_row(small, monkeypatch):
    right = rounding.newest_logits
    monkeypatch.setattr(
        rounding, "newest_logits", lambda query, key, mask, scaling: right(query, key, mask, 1.01 * scaling)
    )
    assert failed(small) == ["row times values is the kernel's output", "masked equals gathered"]


@pytest.mark.alike
def test_a_recorder_that_mixes_up_layers(small, monkeypatch):
    right = Recorder.take
    monkeypatch.setattr(
        Recorder, "take", lambda self: {name: part.roll(1, dims=1) for name, part in right(self).items()}
    )
    assert failed(small) == ["rows are those of eager attention"]


@pytest.mark.alike
def test_a_recorder_that_touches_the_model(small, monkeypatch):
    right, weights = Recorder.put, small.model.lm_head.weight.data
    before = weights.clone()

    def meddling(self, layer, logits, redirect=None):
        weights[0] += 1e-3
        right(self, layer, logits, redirect)

    monkeypatch.setattr(Recorder, "put", meddling)
    try:
        assert "recording changes no logit" in failed(small)
    finally:
        weights.copy_(before)


@pytest.mark.alike
def test_a_gathering_that_reads_the_wrong_keys(small, monkeypatch):
    right = Gathered._copied
    monkeypatch.setattr(Gathered, "_copied", lambda self, states: right(self, states.roll(1, dims=2)))
    assert failed(small) == ["masked equals gathered"]


@pytest.mark.alike
@pytest.mark.parametrize(
    ("dtype", "units", "passes"),
    [("float32", 1, True), ("float32", 500, False), ("bfloat16", 1, True), ("bfloat16", 8, False)],
)
def test_bounds_follow_from_the_noise_of_the_model(vlm, monkeypatch, dtype, units, passes):
    """A gathering that is off by one unit of rounding a layer passes; in float32, where a sum is less exact than one
    unit of its result, one that is off by 0.006 % does not."""
    right, random = Gathered.attend, torch.Generator().manual_seed(7)

    def off(self, *given, **options):
        output, weights = right(self, *given, **options)
        unit = torch.finfo(output.dtype).eps * output.float().abs().amax(dim=-1, keepdim=True)
        noise = units * unit * (2 * torch.rand(output.shape, generator=random) - 1)
        return (output.float() + noise).to(output.dtype), weights

    monkeypatch.setattr(Gathered, "attend", off)
    model = deepcopy(vlm.model).to(getattr(torch, dtype))
    assert checks._gathered(checks._Subject(replace(vlm, model=model))).passed is passes


@pytest.mark.alike
def test_light_is_measured_by_the_way_gone_not_by_its_length(vlm):
    """Half the light must never outshine all of it, whatever the tower does with either."""
    pictures = [np.full((64, 64, 3), value, np.uint8) for value in (60, 158, 255)]
    dark, half, bright = (vlm.prompt(picture, "What?") for picture in pictures)
    patches = dark.grid.position
    ways = [vision.lit(vlm, dark, after, bright)[patches] for after in (dark, half, bright)]
    assert (ways[0] == 0).all() and (ways[2] == 1).all() and ((ways[1] > 0) & (ways[1] < 1)).all()


@pytest.mark.alike
def test_a_budget_that_drops_a_patch(small, monkeypatch):
    monkeypatch.setattr(checks, "VisionPulse", lambda budget: vpa.VisionPulse(budget=min(budget, 0.9)))
    assert failed(small) == ["keeping every patch equals dense"]


@pytest.mark.alike
def test_rows_and_columns_swapped(small, monkeypatch):
    right = Cells.block.__func__

    def swapped(cls, rows, cols, region, frame=0, at=(0, 0)):
        block = right(cls, rows, cols, region, frame, at)
        return block.take(np.lexsort([block.row, block.col]))

    monkeypatch.setattr(Cells, "block", classmethod(swapped))
    (name,) = failed(small)
    assert name == "a bright cell reaches its patch"


@pytest.mark.alike
def test_a_geometry_of_which_no_cell_was_tried(small, monkeypatch):
    monkeypatch.setattr(checks, "np", SimpleNamespace(**{**vars(np), "flatnonzero": lambda chosen: np.empty(0, int)}))
    assert checks._geometry(checks._Subject(small)).passed is False


@pytest.mark.alike
def test_a_padding_mask_that_gets_lost(small, monkeypatch):
    right = Batch.forward
    monkeypatch.setattr(
        Batch, "forward", lambda self, ids, mask, *given, **inputs: right(self, ids, None, *given, **inputs)
    )
    assert failed(small) == ["left padding changes nothing"]


@pytest.mark.alike
def test_a_model_that_is_left_changed(small, monkeypatch):
    def meddling(subject):
        subject.vlm.model.train()
        return checks.Finding("", True)

    monkeypatch.setattr(checks, "_padding", meddling)
    try:
        assert failed(small) == ["the model is as it was"]
    finally:
        small.model.eval()


@pytest.mark.alike
def test_an_exception_is_one_failed_line(small, monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("no such <kernel>")

    monkeypatch.setattr(checks, "_padding", broken)
    report = vpa.check(small)
    assert not report and "RuntimeError: no such <kernel>" in str(report)
    assert "1 of 9 checks fail" in str(report) and "do not trust" in str(report)
    html = report._repr_html_()
    assert "no such &lt;kernel&gt;" in html and html.count("✗") == 1


@pytest.mark.alike
def test_the_command(scenes_folder, monkeypatch):
    run = CliRunner().invoke(app, ["check", str(scenes_folder)])
    assert run.exit_code == 0 and "All 9 checks hold" in run.stdout
    monkeypatch.setattr(checks, "_padding", lambda vlm: checks.Finding("", False, 0.5, 0.1))
    run = CliRunner().invoke(app, ["check", str(scenes_folder), "--json"])
    report = json.loads(run.stdout)
    assert run.exit_code == 1 and not report["passed"] and report["findings"][6]["measured"] == 0.5
