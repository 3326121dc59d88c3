"""The model is written once, and loaded as a user would; without its packages nothing here is collected."""

from __future__ import annotations

import pytest
from smollm2_shell import installed, save_shell

import visionpulse_analysis as vpa

collect_ignore = [] if installed() else ["test_trained_weights.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    save_shell(folder)
    return folder


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def vlm(request, folder):
    return vpa.load(str(folder), dtype=request.param)


@pytest.fixture(scope="session")
def exact(folder):
    """In float32."""
    return vpa.load(str(folder), dtype="float32")
