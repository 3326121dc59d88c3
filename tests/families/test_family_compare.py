"""`visionpulse compare` with models of other families, and an image that is not square."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny_models import build
from typer.testing import CliRunner

from visionpulse_analysis.cli import app

pytestmark = pytest.mark.alike
PRUNERS = "fastv(layer=1, budget=0.5), visionpulse"


@pytest.mark.parametrize("name", ["gemma3", "llava_next"])
def test_compare_runs_on_other_families(name, photos, tmp_path):
    Image.fromarray(photos[1]).save(tmp_path / "wide.png")
    tiny = build(name)
    tiny.model.generation_config.eos_token_id = 10_000  # no trace ends early
    tiny.save(tmp_path / "model")
    words = ["compare", tmp_path / "wide.png", "what is this ?", "--model", tmp_path / "model"]
    words += ["--max-new-tokens", 3, "--pruners", PRUNERS, "--budget", 0.5, "--out", tmp_path / "out", "--json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    kept = [row["retention"] for row in json.loads(result.stdout)["rows"]]
    assert kept[0] == 1.0 and 0.4 < kept[1] < 0.6 and 0.4 < kept[2] < 0.6
    assert (tmp_path / "out" / "kept.png").exists() and (tmp_path / "out" / "explorer.html").exists()
