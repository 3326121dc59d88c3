"""What a newcomer wants to add, done once on a copy: how many files it takes is what CONTRIBUTING says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import visionpulse_analysis as vpa

ROOT = Path(__file__).parents[1]
QUANTITY = '''

@quantity(axes=("step", "layer", "head"), unit="share of the softmax row", range=(0, 1))
def strongest(call: LayerAttention) -> torch.Tensor:
    """The weight of the most attended patch."""
    return call.patch_weights.amax(dim=-1)
'''


def test_a_quantity_is_one_function_in_one_file(tmp_path, scenes_folder, pictures):
    tree, picture = tmp_path / "tree", tmp_path / "scene.png"
    unread = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "visionpulse_analysis", tree / "visionpulse_analysis", ignore=unread)
    with (tree / "visionpulse_analysis/attention/quantities.py").open("a") as file:
        file.write(QUANTITY)
    Image.fromarray(pictures[0]).save(picture)
    asked = [
        "decode",
        str(picture),
        "where ?",
        "--model",
        str(scenes_folder),
        "--max-new-tokens",
        "2",
        "--heads",
        "all",
    ]
    asked += ["--record", "strongest", "--store", "store", "--id", "one", "--explore", "page.html"]
    code = "import sys; from visionpulse_analysis.cli import app; app(sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = vpa.TraceStore(tmp_path / "store")["one"].data["strongest"]  # where nobody has the function
    assert found.dims == ("step", "layer", "head") and found.attrs["how"] == "The weight of the most attended patch."
    [payload] = re.findall(r'id="payload">(.*?)</script>', (tmp_path / "page.html").read_text(), re.S)
    assert {row["name"] for row in json.loads(payload)["quantities"]} == {"attention", "mass", "strongest"}


def test_a_quantity_of_a_notebook_is_one_cell(vlm, pictures, monkeypatch):
    from visionpulse_analysis.traces import quantities

    monkeypatch.setattr(quantities, "_registered", dict(quantities._registered))
    blocks = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    [cell] = [block for block in blocks if "@vpa.quantity" in block]
    assert len([line for line in cell.splitlines() if line.strip()]) <= 15
    names = {"vpa": vpa, "vlm": vlm, "image": pictures[0], "question": "where is the red circle ?"}
    exec(cell, names)
    trace = names["trace"]
    assert np.abs(trace.data["strongest"] - trace.attention.astype(float).max("patch")).max() < 1e-3
    [shown] = [row for row in vpa.explore(trace).packed["quantities"] if row["name"] == "strongest"]
    assert shown["how"] == "The weight of the most attended patch." and not shown["map"]
