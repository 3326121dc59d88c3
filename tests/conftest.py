"""Shared fixtures: tiny random models, built from configuration and loaded as a user would."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("loaded machine", deadline=None)
settings.load_profile("loaded machine")


def torchvision_as_far_as_it_goes() -> Any:
    """Where a torchvision was built for another torch, name the compiled operators that it lacks.

    The library's processors call none of them, but without their names torchvision cannot even be imported.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        operators = import_module("torch").library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_module("torchvision")
        return operators


OPERATORS = torchvision_as_far_as_it_goes() if find_spec("torchvision") else None  # as long as it is held


TOGETHER = {"families", "explorer"}  # folders that share tiny models, or a browser and a JupyterLab
LONGEST = (
    "notebook",
    "families",
    "explorer",
    "test_sweep_kills",
    "test_kept",
    "test_hostile",
    "test_types",
    "test_cli",
)


def group_of(item) -> str:
    """Where several processes share the tests: what stays in one. A file does; each notebook runs by itself."""
    path = item.path
    if path.name == "test_notebooks.py" and item.get_closest_marker("slow"):
        return f"notebook {item.callspec.id}"
    return path.parent.name if path.parent.name in TOGETHER else path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if hasattr(config, "workerinput"):  # the longest first, or a core idles while the last of them runs
        rank = {start: number for number, start in enumerate(LONGEST)}
        items.sort(key=lambda item: min((rank[s] for s in LONGEST if group_of(item).startswith(s)), default=len(rank)))


@pytest.fixture(scope="session", autouse=True)
def own_jupyter_folder(tmp_path_factory):
    """Executed notebooks are signed here, not in the folder of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("jupyter")))
        yield


def settings_of_torch() -> dict[str, Any]:
    import torch

    from visionpulse_analysis._util import torch_settings

    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    precision = getattr(matmul, "fp32_precision", "none")
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": "none" if precision == "ieee" else precision,  # "highest" sets the one, and begins as the other
        "threads": torch.get_num_threads(),
        "own": torch_settings._inside,
    }


@pytest.fixture(autouse=True)
def settings_of_torch_stay():
    """What one test sets in torch for the whole process would change the results of all that follow."""
    before = settings_of_torch()
    yield
    assert settings_of_torch() == before


@pytest.fixture(scope="module", autouse=True)
def pruners_of_this_module(request):
    """A pruner is known from its definition on; those that other test modules define take no part in this one."""
    from visionpulse_analysis.pruners.base import KNOWN

    before = dict(KNOWN)
    for name, kind in before.items():
        if not kind.__module__.startswith("visionpulse_analysis.") and kind.__module__ != request.module.__name__:
            del KNOWN[name]
    yield
    KNOWN.clear()
    KNOWN.update(before)


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    """The bundled architecture with random weights, in Hugging Face format."""
    from visionpulse_analysis.testbed.training.model import build_model, save_bundle

    folder = tmp_path_factory.mktemp("models") / "random-scenes"
    model = build_model(seed=7)
    # Random weights of the usual size give flat attention; larger ones make every test more sensitive.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    save_bundle(model, folder)
    return folder


@pytest.fixture(scope="session")
def vlm(scenes_folder):
    import visionpulse_analysis as vpa

    return vpa.load(str(scenes_folder))


@pytest.fixture(scope="session")
def pictures():
    """Scenes of three sizes: 64, 144 and 256 patches."""
    from visionpulse_analysis.testbed.scenes.scene import generate

    return [generate(seed, cells).render() for seed, cells in enumerate((4, 6, 8))]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


ASKED = {"00": {"seed": 1}, "06": {"seed": 1}}  # no defaults: a figure's command that loses them draws another one


@pytest.fixture(scope="session")
def fast(tmp_path_factory):
    """``fast("06")``: the executed copy of a notebook's fast run, one run for all tests of all processes."""
    import fcntl

    from visionpulse_analysis.cli.notebooks import run as notebooks

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "fast"
    folder.mkdir(exist_ok=True)

    def run(name: str) -> Path:
        source = notebooks.find(name)
        executed = folder / source.stem / "executed" / source.name
        with (folder / f"{source.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not executed.exists():
                notebooks.run(name, ASKED.get(source.stem[:2]), out=executed.parents[1], fast=True)
        return executed

    return run
