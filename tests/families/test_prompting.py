"""How a model is asked: by its stock processor where that loads, with limits, system prompt, prefix, turns."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from test_geometry import bright_cells_reach_their_patches
from tiny_models import build
from tiny_strangers import build as stranger
from transformers import ProcessorMixin

import visionpulse_analysis as vpa
from visionpulse_analysis.models.limits import limited

QUESTION = "where is it ?"
PIXELS = ["qwen2_5_vl", "qwen3_vl", "glm4v"]
TILES = ["internvl", "aya_vision", "idefics3", "smolvlm"]
SHAPES = [(64, 64), (150, 150), (33, 150), (140, 37), (20, 20)]


def noise(shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", ["llava_next", "gemma3", "idefics3", "qwen3_vl"], indirect=True)
def test_the_stock_processor_is_taken_wherever_it_loads(family, photos, tmp_path, monkeypatch):
    vlm = family.vlm
    build(family.name).save(tmp_path)
    assert isinstance(vlm.processor, ProcessorMixin)
    assert (vlm.image_processor, vlm.tokenizer) == (vlm.processor.image_processor, vlm.processor.tokenizer)
    monkeypatch.setattr("visionpulse_analysis.models.processors.AutoProcessor", None)  # none loads
    without = vpa.load(str(tmp_path))
    assert type(without.processor) is type(vlm.processor)
    found, expected = (one.prompt(photos[:2], QUESTION) for one in (without, vlm))
    assert torch.equal(found.ids, expected.ids) and found.grid.equals(expected.grid)


def test_own_code_of_a_processor_is_refused_unless_trusted(monkeypatch):
    def asks(*given, **options):
        raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")

    monkeypatch.setattr("visionpulse_analysis.models.processors.AutoProcessor.from_pretrained", asks)
    with pytest.raises(ValueError, match="code of its own, which is not run unless asked for"):
        vpa.load("scenes")


@pytest.mark.parametrize("options", [{"max_pixels": 2048}, {"min_pixels": 6000}, {"min_pixels": 40_000}], ids=str)
@pytest.mark.parametrize("family", PIXELS, indirect=True)
def test_pixels_at_least_and_at_most(family, options):
    """The sizes by which the processor itself reads each picture, with the limits written into its own settings."""
    asked = family.vlm.asking(options)
    token = (family.vlm.image_processor.patch_size * family.vlm.image_processor.merge_size) ** 2
    for shape in SHAPES:
        picture, prompt = noise(shape), asked.prompt(noise(shape), QUESTION)
        (_, _, rows, cols), pixels = prompt.grid.frames[0], len(prompt.grid) * token
        assert rows * cols == len(prompt.grid) == int((prompt.ids == asked.family.image_id).sum())
        assert rows * cols == int(prompt.inputs["image_grid_thw"][0].prod()) // 4
        assert options.get("min_pixels", 0) <= pixels <= options.get("max_pixels", np.inf)
        if family.name.startswith("qwen"):  # which also takes them in a call, or once did
            size = dict(family.vlm.image_processor.size)
            size["shortest_edge"] = min(options.get("min_pixels", size["shortest_edge"]), 10**9)
            size["longest_edge"] = max(options.get("max_pixels", size["longest_edge"]), options.get("min_pixels", 0))
            if "max_pixels" in options:
                size["longest_edge"] = options["max_pixels"]
            stock = family.vlm.image_processor(images=[picture], size=size, return_tensors="pt")
            assert torch.equal(stock["image_grid_thw"], prompt.inputs["image_grid_thw"])
    assert family.vlm.prompt(noise((64, 64)), QUESTION).grid.shape() == (8, 8)  # the model's own is as it was


@pytest.mark.parametrize("family", TILES, indirect=True)
def test_tiles_at_most(family):
    side = 4  # 32 pixels, of 4 each, two of them one
    for shape in SHAPES:
        own = family.vlm.prompt(noise(shape), QUESTION).grid
        count = int(own.frames[0, 2:].prod()) // side**2
        for most in (1, 2, 3, 5, count):
            prompt = family.vlm.asking({"max_tiles": most}).prompt(noise(shape), QUESTION)
            frames = prompt.grid.frames[:, 2:].tolist()
            tiles, rest = frames[0][0] * frames[0][1] // side**2, frames[1:]
            assert tiles <= most and rest == ([[side, side]] if tiles > 1 else [])
            assert len(prompt.grid) == side**2 * (tiles + len(rest)) == int((prompt.kinds == 1).sum())
            if most >= count:
                assert prompt.grid.equals(own)


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_crops_at_most(family, monkeypatch):
    monkeypatch.setattr(family.vlm.image_processor, "do_pan_and_scan", True)
    for most, crops in ((1, 0), (2, 2), (3, 3), (9, 3), (12, 3)):
        frames = family.vlm.asking({"max_tiles": most}).prompt(noise((96, 33)), QUESTION).grid.frames.tolist()
        assert frames == ([[0, 0, 4 * crops, 4], [0, 1, 4, 4]] if crops else [[0, 0, 4, 4]])


@pytest.mark.parametrize(
    ("family", "options"),
    [("qwen2_5_vl", {"max_pixels": 4096}), ("glm4v", {"min_pixels": 9000}), ("internvl", {"max_tiles": 3}),
     ("idefics3", {"max_tiles": 3})],
    indirect=["family"], ids=str,
)  # fmt: skip
def test_a_bright_cell_reaches_its_patch_within_the_limits(family, options, rng):
    asked = SimpleNamespace(vlm=family.vlm.asking(options), name=family.name)
    bright_cells_reach_their_patches(asked, [(150, 150), (33, 150)], rng)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "glm4v"], indirect=True)
def test_the_frames_of_a_video_keep_the_limits(family, film):
    """Of each frame, whatever the model counts: single frames, or all of them together."""
    token = (family.vlm.image_processor.patch_size * family.vlm.image_processor.merge_size) ** 2
    for options in ({"max_pixels": 512}, {"min_pixels": 6000}):
        still = [] if family.name == "glm4v" else [noise((64, 64))]  # which cannot read both in one prompt
        prompt = family.vlm.asking(options).prompt([vpa.Video(film[0], fps=2.0), *still], QUESTION)
        pixels = prompt.grid.frames[:, 2:].prod(axis=1) * token
        own = family.vlm.prompt(vpa.Video(film[0], fps=2.0), QUESTION).grid.frames[0, 2:].prod() * token
        if "max_pixels" in options:
            assert (pixels <= 512).all() and pixels[0] < own
        else:
            assert (pixels >= 6000).all() and pixels[0] > own


@pytest.mark.parametrize(
    ("family", "options", "why"),
    [
        ("qwen2_5_vl", {"max_tiles": 2}, "qwen2_5_vl knows no max_tiles.*give max_pixels"),
        ("qwen2_5_vl", {"max_pixels": 63}, "max_pixels=63 is less than the 64 pixels"),
        ("internvl", {"max_pixels": 4096}, "internvl knows no min_pixels and max_pixels.*leave it out"),
        ("idefics3", {"min_pixels": 4096}, "idefics3 knows no min_pixels.*give max_tiles"),
        ("llava_next", {"max_tiles": 2}, "llava_next knows no max_tiles.*image_grid_pinpoints"),
        ("gemma3", {"max_tiles": 2}, "gemma3 knows no max_tiles"),
        ("llava", {"max_pixels": 4096}, "llava knows no min_pixels and max_pixels"),
    ],
    indirect=["family"],
)  # fmt: skip
def test_limits_that_a_model_does_not_have_are_refused(family, options, why, photos):
    with pytest.raises(ValueError, match=why):
        family.vlm.asking(options)
    with pytest.raises(ValueError, match=why):
        vpa.decode(family.vlm, photos[0], QUESTION, prompt_options=options, max_new_tokens=1)


@pytest.mark.parametrize("family", ["paligemma"], indirect=True)
def test_a_model_without_conversations_knows_no_part_of_one(family, photos):
    turns = [{"role": "user", "content": "where ?"}]
    for options in ({"system": "be brief"}, {"prefix": "It is"}, {"template": {"enable_thinking": False}}):
        with pytest.raises(ValueError, match=f"no conversation, and so no {next(iter(options))}; leave"):
            family.vlm.asking(options).prompt(photos[0], QUESTION)
    with pytest.raises(ValueError, match="no conversation, and so no turns"):
        family.vlm.prompt(photos[0], turns)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"], indirect=True)
def test_rows_asked_in_different_ways_are_each_alone(family, photos):
    """One batch: other limits, a system prompt, a prefix; each row as by itself, with the options in its trace."""
    limit = {"max_pixels": 2048} if family.name.startswith("qwen") else {"max_tiles": 1}
    options = [limit, {"system": "be brief"}, {"prefix": "It is"}, None]
    pictures, questions = [*photos, photos[0]], [QUESTION] * 4
    batch = vpa.decode(family.vlm, pictures, questions, prompt_options=options, max_new_tokens=3, seed=[5] * 4)
    for trace, picture, one in zip(batch, pictures, options, strict=True):
        alone = vpa.decode(family.vlm, picture, QUESTION, prompt_options=one, max_new_tokens=3, seed=5)
        assert trace.tokens == alone.tokens and trace.grid.equals(alone.grid)
        assert np.abs(trace.mass.values - alone.mass.values).max() < 1e-5
        assert trace.meta.get("prompt_options") == alone.meta.get("prompt_options") == one
    with pytest.raises(ValueError, match="4 questions need as many prompt_options, or one for all, got 2"):
        vpa.decode(family.vlm, pictures, questions, prompt_options=options[:2], max_new_tokens=3)


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_the_self_checks_check_what_is_asked(family, monkeypatch):
    asked = family.vlm.asking({"max_pixels": 4096, "system": "be brief", "prefix": "It is"})
    report = vpa.check(asked)
    assert report, str(report)
    seen = []
    monkeypatch.setattr(type(asked), "prompt", lambda self, *given: seen.append(self.prompt_options) or 1 / 0)
    vpa.check(asked)
    assert set(map(repr, seen)) == {repr(asked.prompt_options)}


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_a_measured_map_keeps_the_limits(family):
    """A map of the same picture, kept before under other limits, is not found again."""
    picture = np.zeros((64, 64, 3), np.uint8)
    less = family.vlm.asking({"max_pixels": 1024})
    assert [vpa.locate(vlm, images=picture).grid.shape() for vlm in (family.vlm, less)] == [(8, 8), (4, 4)]


def processor_of(kind: str, name: str, **settings):
    if hf.__version__.startswith("5.4."):
        pytest.skip("this transformers lacks the types or the PIL halves of their image processors")
    module = import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    return getattr(module, f"{name}ImageProcessorPil")(**settings)


def test_processors_of_other_types_by_what_they_state():
    """What a setting is called says not what it counts: patches of the tower are no tiles."""
    picture, side = noise((150, 460)), {"height": 32, "width": 32}
    tiled = processor_of("ovis2", "Ovis2", crop_to_patches=True, size=side)
    for most in (2, 3, 20):
        within = limited(tiled, vpa.PromptOptions(max_tiles=most), "ovis2")
        assert len(within(images=[picture], return_tensors="pt")["pixel_values"]) <= most + 1
    dense = processor_of("granite_docling", "GraniteDocling", dense_max_patches=40)
    within = limited(dense, vpa.PromptOptions(max_tiles=4), "granite_docling")
    assert (within.max_patches, within.dense_max_patches) == (4, 4) and dense.dense_max_patches == 40
    for given, kind, name in (("max_tiles", "kosmos2_5", "Kosmos2_5"), ("max_tiles", "mllama", "Mllama"),
                              ("max_pixels", "glm5_next", "Glm5Next")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{kind} knows no .*{given}.*leave it out, or scale the pictures"):
            limited(processor_of(kind, name), vpa.PromptOptions(**{given: 4096}), kind)
    counted = processor_of("hunyuan_vl", "HunYuanVL")
    within = limited(counted, vpa.PromptOptions(max_pixels=64 * 64 * 4), "hunyuan_vl")
    grid = within(images=[picture], return_tensors="pt")["image_grid_thw"][0]
    assert int(grid.prod()) * counted.patch_size**2 <= 64 * 64 * 4 < 150 * 460


@pytest.mark.parametrize(("kind", "options"), [("qwen3_5", {"max_pixels": 2048}), ("ovis2", {"max_tiles": 2})])
def test_types_of_which_nothing_is_known_keep_the_limits(kind, options, tmp_path, rng):
    """The processor's own settings are changed, and its map is stated or measured under them."""
    if hf.__version__.startswith("5.4."):
        pytest.skip("this transformers lacks the types or the PIL halves of their image processors")
    stranger(kind).save(tmp_path)
    own = vpa.load(str(tmp_path))
    asked = own.asking({**options, "system": "be brief", "prefix": "It is"})
    before, prompt = (one.prompt(noise((96, 150)), QUESTION) for one in (own, asked))
    assert 0 < len(prompt.grid) < len(before.grid)
    assert own.tokenizer.decode(prompt.ids).endswith("assistant: It is")
    bright_cells_reach_their_patches(SimpleNamespace(vlm=asked, name=kind), [(96, 150)], rng)
    refused = {"max_tiles": 2} if "max_pixels" in options else {"max_pixels": 2048}
    with pytest.raises(ValueError, match=f"{kind} knows no"):
        own.asking(refused)
