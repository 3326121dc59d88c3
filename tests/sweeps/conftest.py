"""Sweeps of a tiny random model, run in this process or on real worker processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def one_thread():
    """As many threads as a worker process of `local_cluster` has: then all arithmetic rounds alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plain(scenes_folder, tmp_path):
    """A small sweep as YAML would give it: 2 pruners x 6 scenes of 64 patches."""
    return {
        "out": str(tmp_path / "out"),
        "samples": {"scenes": {"n": 6, "cells": 4, "tasks": ["find", "count"]}},
        "models": [{"name": str(scenes_folder), "label": "tiny"}],
        "pruners": ["dense", {"name": "random", "budget": 0.1}],
        "decode": {"max_new_tokens": 6, "batch_size": 2, "layers": [2, 5]},
    }


@pytest.fixture
def sweep(tmp_path):
    """Run plain data as a sweep in this process; returns the summary."""
    from visionpulse_analysis.experiments.sweeps.config import SweepConfig
    from visionpulse_analysis.experiments.sweeps.running import run

    def go(plain, folder: Path = tmp_path, **options):
        config = SweepConfig.from_plain(plain, folder=folder)
        return run(config, **{"workers": 0, "report": lambda line: None, "progress": False, **options})

    return go
