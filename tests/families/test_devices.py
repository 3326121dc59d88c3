"""A model on another kind of device, or split over two, gives the traces of one CPU."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import dispatch_model
from any_model import make_for_any
from fake_devices import FAKE, Elsewhere, FakeDevices, move, split
from test_video import VIDEO
from tiny_models import build
from torch.nn.attention import SDPBackend, sdpa_kernel

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import StepAttention
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding.sampling import Sample
from visionpulse_analysis.models import loading as models
from visionpulse_analysis.pruners import as_text
from visionpulse_analysis.pruners import top_k as choosing

OTHER_DEVICES = pytest.mark.skipif(
    transformers.__version__.startswith("5.4."),
    reason="this transformers asks torch for the autocast of devices that are not there",
)
QUESTIONS = ["where is the red circle ?", "how many ?", "is it left of the square ?"]
ARMS = [
    {},
    {"heads": [1, 0], "sample": Sample(temperature=1.5)},
    {"pruner": "visionpulse(budget=0.2)", "execution": "gathered"},
    {"pruner": "visionpulse(granularity='block', hysteresis=0.5)"},
    {"pruner": "fastv(budget=0.5) | visionpulse"},
    *(
        {"pruner": as_text(make_for_any(name))}
        for name, kind in sorted(vpa.list_pruners().items())
        if kind.__module__.startswith("visionpulse_analysis.") and name not in ("oracle", "combined")
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny LLaVA on the CPU."""
    folder = tmp_path_factory.mktemp("whole")
    build("llava").save(folder)
    return vpa.load(str(folder))


@pytest.fixture(scope="module")
def moved(whole):
    """On one device without float64."""
    elsewhere = copy.deepcopy(whole)
    move(elsewhere.model, f"{FAKE}:0")
    return elsewhere


@pytest.fixture(scope="module")
def parted(whole):
    return apart(whole)


def apart(vlm):
    """Over two devices, the second from layer 2 on."""
    elsewhere = copy.deepcopy(vlm)
    decoder = elsewhere.model.get_decoder()
    split(elsewhere.model, [*decoder.layers[2:], decoder.norm, elsewhere.model.lm_head])
    return elsewhere


@pytest.fixture(autouse=True)
def as_elsewhere(monkeypatch):
    """The fake devices have no float64. How shared keys are read rounds otherwise, and is left out."""
    monkeypatch.setattr(choosing, "NO_FLOAT64", {FAKE})
    monkeypatch.setattr(StepAttention.__init__, "__defaults__", ((), "masked", Call.run))


def decoded(vlm, photos, options, **more):
    """Three rows in two places, so that one joins a running batch and one leaves it."""
    options = dict(options)
    if isinstance(options.get("pruner"), str):
        options["pruner"] = vpa.make_pruner(options["pruner"])
    with sdpa_kernel(SDPBackend.MATH):  # the only kernel that every device has; others round otherwise
        traces = vpa.decode(vlm, photos, QUESTIONS, max_new_tokens=4, batch_size=2, **options, **more)
    return traces


def agree(traces, expected):
    """The same tokens and sets, and numbers to the rounding of float32, of rows also to that of the stored float16."""
    for one, other in zip(traces, expected, strict=True):
        assert one.tokens == other.tokens
        assert (one.kept is None) == (other.kept is None) and (one.kept is None or one.kept.equals(other.kept))
        assert abs(one.logprobs - other.logprobs).max() < 1e-6
        assert abs(one.mass - other.mass).max() < 1e-6
        largest = np.float16(other.attention.max())
        assert abs(one.attention.astype("f4") - other.attention.astype("f4")).max() <= 1e-6 + np.spacing(largest)


@OTHER_DEVICES
@pytest.mark.parametrize("options", ARMS, ids=str)
def test_devices_change_nothing(whole, moved, parted, photos, options):
    expected = decoded(whole, photos, options)
    with FakeDevices():
        agree(decoded(moved, photos, options), expected)
        agree(decoded(parted, photos, options), expected)


PRUNED: dict[str, Any] = {"pruner": "visionpulse(budget=0.3)", "execution": "gathered"}


@OTHER_DEVICES
def test_devices_change_nothing_in_any_family(family, photos):
    """Stills of three shapes, two of them in one question."""
    ones = [photos[0], photos[1:], photos[2]]
    here, expected = copy.deepcopy(family.vlm), decoded(family.vlm, ones, PRUNED)
    move(here.model, f"{FAKE}:0")
    with FakeDevices():
        agree(decoded(here, ones, PRUNED), expected)
        agree(decoded(apart(family.vlm), ones, PRUNED), expected)


@OTHER_DEVICES
@pytest.mark.parametrize("family", VIDEO, indirect=True)
def test_devices_change_nothing_in_a_video(family, film):
    clips = [vpa.Video(film[0], fps=3.0)] * 3
    expected = decoded(family.vlm, clips, PRUNED)
    with FakeDevices():
        agree(decoded(apart(family.vlm), clips, PRUNED), expected)


def test_the_hooks_of_accelerate_change_nothing(family, photos):
    """As it hangs them up where a map names several devices; here each of them is the CPU."""
    hooked, ones = copy.deepcopy(family.vlm), [photos[0], photos[1:], photos[2]]
    inner = hooked.model.model
    parts = {f"model.{name}" for name, _ in [*inner.named_children(), *inner.named_parameters(recurse=False)]}
    dispatch_model(hooked.model, dict.fromkeys({*parts, "lm_head"}, "cpu"), main_device="cpu", force_hooks=True)
    assert sum(hasattr(module, "_hf_hook") for module in hooked.model.modules()) > 3
    agree(decoded(hooked, ones, PRUNED), decoded(family.vlm, ones, PRUNED))


def test_the_fake_devices_refuse_what_real_ones_refuse():
    with FakeDevices():
        here, there = torch.ones(2, device=f"{FAKE}:0"), torch.ones(2).to(f"{FAKE}:1")
        assert isinstance(here, Elsewhere) and there.device == torch.device(FAKE, 1)
        with pytest.raises(RuntimeError, match="different devices"):
            _ = here + there
        with pytest.raises(RuntimeError, match="different devices"):
            _ = here + torch.ones(2)
        with pytest.raises(TypeError, match="float64"):
            here.double()
        assert (here + there.to(here.device)).tolist() == [2, 2]


def test_a_map_without_accelerate_or_beside_a_device(scenes_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"device \(cpu\) and device_map exclude each other"):
        vpa.load(str(scenes_folder), device="cpu", device_map="auto")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs accelerate: pip install 'visionpulse-analysis\[split\]'"):
        vpa.load(str(scenes_folder), device_map="auto")


def test_a_map_of_one_device_is_the_model_as_it_is(vlm, scenes_folder, pictures):
    mapped = vpa.load(str(scenes_folder), device_map={"": "cpu"})
    agree(decoded(mapped, pictures, {}), decoded(vlm, pictures, {}))
    parts = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    with pytest.raises(ValueError, match="does not fit on its devices"):
        vpa.load(str(scenes_folder), device_map=parts)
