"""Every family's tiny model, saved and loaded as a user would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from family_table import WITNESS, Witness
from tiny_models import BUILDERS, build

import visionpulse_analysis as vpa

# What transformers 5.4 says of families that it cannot build here: half of an image processor, a default of Cohere2.
LACKS = ("for torchvision only", "Field 'use_cache' expected int, got bool")


def pytest_configure(config):
    config.stash[WITNESS] = Witness()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """All tests are noted before some are left out; the one that looks at what they showed runs last."""
    config.stash[WITNESS].expect(items)
    yield
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.config.stash[WITNESS].note(item, report)
    return report


@pytest.fixture(scope="session", params=BUILDERS)
def family(request, tmp_path_factory):
    """name; vlm, as loaded; tiny, what it was saved from."""
    try:
        tiny = build(request.param)
    except Exception as error:
        if not any(lack in str(error) for lack in LACKS):
            raise
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(folder)
    return SimpleNamespace(name=request.param, vlm=vpa.load(str(folder)), tiny=tiny)


@pytest.fixture(scope="session")
def photos():
    """Noise of three shapes: square, wide and tall."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8) for shape in ((64, 64), (40, 96), (90, 44))]


@pytest.fixture(scope="session")
def film():
    """Noise: five frames of 40 x 96 pixels, three of 90 x 44."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (count, *size, 3), dtype=np.uint8) for count, size in ((5, (40, 96)), (3, (90, 44)))]
