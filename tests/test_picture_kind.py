"""A model of drawn pictures says so when it is shown anything else."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

import visionpulse_analysis as vpa
from visionpulse_analysis.models.picture_kind import unlike_training
from visionpulse_analysis.testbed.charts.chart import generate as generate_chart
from visionpulse_analysis.testbed.charts.drawing import render
from visionpulse_analysis.testbed.charts.world import Charts
from visionpulse_analysis.testbed.scenes.scene import generate as generate_scene
from visionpulse_analysis.testbed.worlds import SCENES


def photograph(seed=0, grey=False):
    """Smooth patches of light in many colours with noise, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (128, 128), Image.Resampling.BICUBIC
    )
    image = np.clip(np.asarray(coarse, float) + rng.normal(0, 6, (128, 128, 3)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB")) if grey else image


def as_jpeg(image, quality=50):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def drawn(world, seed):
    if world == "scenes":
        return generate_scene(seed, 2 + seed % 15).render()
    return render(generate_chart(seed, (12, 16, 24, 32)[seed % 4]))


KINDS = {"scenes": SCENES.pictures, "charts": Charts.pictures}


@pytest.mark.parametrize("world", KINDS)
def test_the_bundled_models_state_what_they_were_trained_on(world):
    assert AutoConfig.from_pretrained(f"data/{world}").visionpulse_pictures == KINDS[world]


@pytest.mark.parametrize("world", KINDS)
def test_their_own_pictures_are_known_also_as_jpeg_and_at_other_sizes(world):
    for seed in range(60):
        image = drawn(world, seed)
        twice = np.asarray(Image.fromarray(image).resize((2 * image.shape[1], 2 * image.shape[0])))
        for shown in (image, as_jpeg(image), twice):
            assert unlike_training(KINDS[world], [shown]) is None, seed


@pytest.mark.parametrize("world", KINDS)
@pytest.mark.parametrize(
    "image",
    [
        *(pytest.param(photograph(seed), id=f"photograph-{seed}") for seed in range(5)),
        pytest.param(photograph(grey=True), id="grey photograph"),
        pytest.param(np.full((64, 64, 3), 128, np.uint8), id="grey"),
        pytest.param(np.full((64, 64, 3), 232, np.uint8), id="paper and nothing else"),
        pytest.param(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), id="noise"),
    ],
)
def test_other_pictures_are_told(world, image):
    assert "not of the kind" in (unlike_training(KINDS[world], [image]) or "")


def test_of_several_pictures_the_strange_ones_are_named_and_other_models_say_nothing():
    own = drawn("scenes", 1)
    assert "number 2, 3 is" in (unlike_training(KINDS["scenes"], [own, photograph(), photograph(1)]) or "")
    assert unlike_training(None, [photograph()]) is None


def test_trace_page_and_figure_say_so():
    vlm = vpa.load("scenes")
    strange = vpa.decode(vlm, photograph(), "where is the red circle ?", max_new_tokens=4)
    own = vpa.decode(vlm, drawn("scenes", 6), "where is the red circle ?", max_new_tokens=4)
    assert "unlike_training" not in own.meta
    said = strange.meta["unlike_training"]
    assert said.endswith(".") and "coloured shapes" in said
    assert said in strange._repr_html_()
    assert said in json.loads(vpa.explore(strange).payload)["notes"] and said not in vpa.explore(own).payload
    written = [text.get_text().replace("\n", " ") for text in vpa.explore(strange).figure().findobj(match=_is_text)]
    assert any(said in text for text in written)


def _is_text(artist):
    return hasattr(artist, "get_text")
