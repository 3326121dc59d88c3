"""The same command twice: the same bytes and equal numbers; on another number of threads, within a stated tolerance."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import visionpulse_analysis as vpa

COMMANDS = """
import sys
from visionpulse_analysis.cli import app
picture, model, out = sys.argv[1:]
for words in [
    ["decode", picture, "where is the red circle ?", "--model", model, "--max-new-tokens", "4", "--temperature", "1.5",
     "--seed", "7", "--pruner", "visionpulse", "-p", "budget=0.2", "--store", "store", "--id", "a", "--explore",
     out + "/page.html", "--json"],
    ["explore", "store", "--sample", "a", "--view", "step=2&layer=5", "--figure", out + "/view"],
    ["export", "store", out + "/steps.csv"],
    ["export", "store", out + "/boxes.json", "--sample", "a", "--layer", "5"],
]:
    if code := app(words, standalone_mode=False):
        sys.exit(code)
"""


@pytest.mark.slow
def test_the_same_commands_twice_give_the_same_bytes(pictures, scenes_folder, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "scene.png")
    printed, files = [], []
    for run in ("1", "2"):  # each with another order of sets, in a folder of its own
        (tmp_path / run / "out").mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": run, "PYTHONPATH": os.pathsep.join(sys.path)}
        words = [sys.executable, "-c", COMMANDS, str(tmp_path / "scene.png"), str(scenes_folder), "out"]
        done = subprocess.run(words, env=environment, cwd=tmp_path / run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout[: done.stdout.index("\n}") + 2])
        result["meta"].pop("created")  # the only thing that may differ
        printed.append(result)
        files.append({path.name: path.read_bytes() for path in (tmp_path / run / "out").iterdir()})
    assert printed[0] == printed[1]
    names = {"page.html", "view.png", "view.pdf", "view.svg", "steps.csv", "boxes.json", "image_0.png"}
    assert set(files[0]) == names
    assert [name for name in names if files[0][name] != files[1][name]] == []


def test_the_same_decode_twice_is_the_same_bit_for_bit(vlm, pictures):
    options = {"max_new_tokens": 5, "pruner": vpa.VisionPulse(budget=0.1), "seed": 3}
    first = vpa.decode(vlm, pictures[1], "where ?", **options)
    vpa.decode(vlm, pictures[0], "is it red ?", max_new_tokens=2)
    assert vpa.decode(vlm, pictures[1], "where ?", **options).data_hash == first.data_hash


def test_another_number_of_threads_moves_masses_by_less_than_1e_5(vlm, pictures):
    """Sums are taken in another order: float32 has 6e-8, and eight layers add up a few dozen of them."""
    before, traces = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            traces.append(vpa.decode(vlm, pictures[2], "where is the red circle ?", max_new_tokens=4))
    finally:
        torch.set_num_threads(before)
    for trace in traces[1:]:
        assert trace.token_ids[0] == traces[0].token_ids[0]
        same = int(np.cumprod(trace.token_ids == traces[0].token_ids).sum())  # rows up to a tie, if there is one
        rows = min(same + 1, len(trace))
        assert np.abs(trace.mass.values[:rows] - traces[0].mass.values[:rows]).max() < 1e-5
        assert np.abs(trace.logprobs[:same] - traces[0].logprobs[:same]).max() < 1e-4
