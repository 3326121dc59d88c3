"""The pruner that docs/add-a-pruner.md writes out is one short file, and works everywhere without another edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVERYWHERE = """
import json, sys
import pytest
from typer.testing import CliRunner
import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app

assert vpa.__file__.startswith(sys.argv[1]), vpa.__file__
assert vpa.make_pruner("longest_embedding", budget=0.2) in [vpa.list_pruners()["longest_embedding"](0.2)]
listed = CliRunner().invoke(app, ["pruners", "--json"])
assert json.loads(listed.stdout)["longest_embedding"]["parameters"]["budget"] == 0.1, listed.stdout
asked = ["decode", sys.argv[2], "where is the red circle ?", "--model", sys.argv[3], "--max-new-tokens", "2", "--json"]
made = CliRunner().invoke(app, [*asked, "--pruner", "longest_embedding(budget=0.25)"])
assert json.loads(made.stdout)["kept"] == [16, 16], made.stdout
asked = ["compare", *asked[1:], "--pruners", "longest_embedding,fastv", "--budget", "0.25", "--out", "compared"]
compared = CliRunner().invoke(app, asked)
assert json.loads(compared.stdout)["rows"][1]["retention"] == 0.25, compared.output
from visionpulse_analysis.studies.pruner_comparison import figures as rivals_frontier, measure as rivals
from visionpulse_analysis.studies.pruner_comparison.settings import Basis
assert rivals.all_rivals()["longest_embedding"].at_prefill and rivals_frontier.FAMILIES[-1] == "added"
arms = rivals.rival_arms([0.25], Basis(8, 3))
assert arms["longest_embedding"] == {"longest_embedding 25 %": vpa.make_pruner("longest_embedding", budget=0.25)}
plainly = ["-o", "addopts=", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*plainly, "tests/test_every_pruner.py", "-k", "longest_embedding"]))
"""


def test_the_example_is_all_that_a_new_pruner_needs(tmp_path, scenes_folder, pictures):
    from PIL import Image

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-pruner.md").read_text(), flags=re.S)
    [example] = [block for block in blocks if "(BeforeModel)" in block]
    assert len(example.splitlines()) <= 40
    for folder in ("visionpulse_analysis", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "visionpulse_analysis/pruners/longest_embedding.py").write_text(example)
    Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
    run = subprocess.run(
        [sys.executable, "-c", EVERYWHERE, str(tmp_path), str(tmp_path / "scene.png"), str(scenes_folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b6 passed", run.stdout), run.stdout
