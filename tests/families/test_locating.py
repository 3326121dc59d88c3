"""Where image tokens lie, measured: the layouts of the known families are what is to be found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.models import locating
from visionpulse_analysis.models.locating import keeping
from visionpulse_analysis.models.locating.lattice import frames_of

QUESTION, QUESTIONS = "where ?", ("a ?", "where is it ?")
QUICK = ["qwen2_5_vl", "llava_next", "gemma3", "idefics3"]


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """No map is kept from before, in memory or on disk."""
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "maps"))
    monkeypatch.setattr(keeping, "_maps", type(keeping._maps)())


def seen_boxes(grid):
    """The part of each box inside its picture, float [patch, 4], and whether that is at least half of it."""
    size = grid.image_size[grid.image][:, ::-1]
    inside = np.clip(grid.box, 0, np.tile(size, 2))
    areas = [(box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1) for box in (inside, grid.box)]
    return inside, areas[0] >= 0.5 * areas[1]


def assert_found(vlm, shapes):
    """Each measured centre lies in its own patch, each patch is found, and all else of the pictures shows nothing."""
    pictures = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    located, known = vpa.locate(vlm, images=pictures), vlm.prompt(pictures, QUESTION).grid
    found, boxes = located.on(vlm.prompt(pictures, QUESTION).ids.numpy()), seen_boxes(known)
    assert set(found.position) <= set(known.position)  # breaks are dark
    assert set(known.position[boxes[1]]) <= set(found.position)
    dark = len(known) - len(found)  # patches of the padding around a picture
    breaks = (vlm.prompt(pictures, QUESTION).kinds > 0).sum() - len(known)
    assert len(located.others) == breaks + dark and not set(located.others) & set(located.grid.position)
    mine = np.searchsorted(known.position, found.position)
    assert np.array_equal(found.image, known.image[mine]) and np.array_equal(found.frame, known.frame[mine])
    centre = (found.box[:, :2] + found.box[:, 2:]) / 2
    inside = boxes[0][mine]
    within = (centre >= inside[:, :2] - 1e-3) & (centre <= inside[:, 2:] + 1e-3)
    assert within[boxes[1][mine]].all()
    for image, frame, *_ in known.frames.tolist():  # rows and columns, but for those outside of the picture
        here = (found.image == image) & (found.frame == frame)
        for name in ("row", "col"):
            expected = getattr(known, name)[mine][here]
            assert np.array_equal(getattr(found, name)[here], expected - expected.min())
    return located


@pytest.mark.parametrize("family", QUICK, indirect=True)
@pytest.mark.parametrize("shape", [(64, 64), (33, 150)], ids=str)
def test_every_centre_is_measured_inside_its_own_patch(family, shape):
    assert_found(family.vlm, [shape])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(150, 150), (140, 37)], ids=str)
def test_every_family_is_found_without_being_known(family, shape):
    assert_found(family.vlm, [shape])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"], indirect=True)
def test_stripes_take_few_forwards_and_a_map_is_measured_once(family, monkeypatch, anew):
    picture = np.zeros((64, 64, 3), np.uint8)
    located = vpa.locate(family.vlm, images=picture)
    assert located.way == "stripes" and located.forwards <= 15
    assert vpa.locate(family.vlm, images=picture + 9) is located
    assert vpa.locate(family.vlm, images=np.zeros((64, 96, 3), np.uint8)) is not located
    monkeypatch.setattr(family.vlm.image_processor, "image_mean", [0.1, 0.1, 0.1])
    assert vpa.locate(family.vlm, images=picture) is not located


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"], indirect=True)
def test_several_pictures_of_one_prompt_come_apart(family):
    assert assert_found(family.vlm, [(64, 64), (40, 96), (90, 44)]).grid.n_images == 3


@pytest.mark.parametrize("family", ["llava", "deepseek_vl"], indirect=True)
@pytest.mark.parametrize("shape", [(30, 200), (500, 20)], ids=str)
def test_pictures_cropped_to_their_middle_or_padded_far_are_found_too(family, shape):
    """Of a picture of 500 pixels by 20, llava reads a twenty-fifth."""
    assert_found(family.vlm, [shape])


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_the_sweep_has_the_last_word(family, monkeypatch, anew):
    monkeypatch.setattr(locating, "stripes", lambda light, *_: np.random.default_rng(0).random(len(light.token)))
    assert assert_found(family.vlm, [(64, 64)]).way == "sweep"


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_measuring_leaves_the_model_as_it_was_and_does_not_run_its_language_part(family):
    before = [len(part._forward_pre_hooks) for part in family.vlm.model.modules()]
    ran = []
    handle = family.vlm.model.get_decoder().layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    vpa.locate(family.vlm, images=np.zeros((64, 80, 3), np.uint8))
    handle.remove()
    assert not ran and not attention._interceptors
    assert [len(part._forward_pre_hooks) for part in family.vlm.model.modules()] == before


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"], indirect=True)
def test_towers_that_write_their_attention_out_are_silenced_too(family, anew):
    family.vlm.model.set_attn_implementation({"vision_config": "eager"})
    try:
        assert_found(family.vlm, [(64, 64)])
    finally:
        family.vlm.model.set_attn_implementation({"vision_config": "sdpa"})


class Mixing(torch.nn.Module):
    """Stands for learned queries: every image token is a mixture of all patches."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **options):
        patches = self.inner(*args, **options)
        torch.manual_seed(0)
        return torch.softmax(torch.randn(len(patches[0]), len(patches[0])), dim=1) @ patches


@pytest.mark.parametrize("mixed", ["llava"])
def test_learned_queries_are_refused_with_what_they_were_measured_to_read(mixed, tmp_path):
    build(mixed).save(tmp_path)
    vlm = vpa.load(str(tmp_path))
    vlm.model.model.multi_modal_projector = Mixing(vlm.model.model.multi_modal_projector)
    with pytest.raises(locating.NoMapError, match=r"64 image tokens .* no patches: the median token reads [5-9]\d%"):
        vpa.locate(vlm, images=np.zeros((48, 48, 3), np.uint8))


def test_tokens_that_see_nothing_have_no_map(tmp_path):
    build("llava").save(tmp_path)
    vlm = vpa.load(str(tmp_path))
    for parameter in vlm.model.model.multi_modal_projector.parameters():
        parameter.data.zero_()
    with pytest.raises(locating.NoMapError, match=r"no token of Llava.* differs between a dark and a bright picture"):
        vpa.locate(vlm, images=np.zeros((48, 48, 3), np.uint8))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A tiny LLaVA as a user has it: her model and her processor."""
    tiny, folder = build("llava"), tmp_path_factory.mktemp("llava")
    tiny.save(folder)
    return SimpleNamespace(vlm=vpa.load(str(folder)), processor=tiny.processor)


def test_a_model_and_its_processor_are_enough(own, photos):
    located = vpa.locate(own.vlm.model, own.processor, photos[1])
    known = vpa.locate(own.vlm, images=photos[1])
    assert np.array_equal(located.grid.box, known.grid.box) and np.array_equal(located.grid.col, known.grid.col)
    with pytest.raises(ValueError, match=r"prompts of Llava.* its processor with its image processor is needed"):
        vpa.locate(own.vlm.model, own.vlm.tokenizer, photos[0])
    with pytest.raises(ValueError, match="no image given"):
        vpa.locate(own.vlm.model, own.processor, [])


def test_watched_traces_have_the_measured_map(own, photos):
    prompts = [
        own.vlm.prompt(photo, question) for photo, question in zip(photos, ("a ?", "where is it ?"), strict=False)
    ]
    inputs = own.vlm.family.batch(prompts, padding=0)
    with vpa.watch(own.vlm.model, own.processor, images=photos[:2]) as w:
        own.vlm.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    for trace, prompt in zip(w.traces, prompts, strict=True):
        assert trace.meta["map"] == "measured" and np.array_equal(trace.grid.position, prompt.grid.position)
        assert np.array_equal(trace.grid.image_size, prompt.grid.image_size)
        assert np.array_equal(trace.grid.row, prompt.grid.row) and np.array_equal(trace.grid.col, prompt.grid.col)


def test_pictures_that_are_not_those_of_the_prompt_are_refused(own, photos):
    inputs = own.vlm.family.batch([own.vlm.prompt(photos[0], "a ?")], padding=0)
    with vpa.watch(own.vlm.model, own.processor, images=photos[:2]) as w:
        with pytest.raises(ValueError, match="has 64 image tokens, the pictures given have 128"):
            own.vlm.model.generate(**inputs, max_new_tokens=2)
    assert not w.traces
    with pytest.raises(ValueError, match="images and locate both"):
        with vpa.watch(own.vlm.model, own.processor, images=photos[0], locate=lambda *_: []):
            pass


def lattice(rows, cols, left, top, step):
    col, row = np.meshgrid(np.arange(cols), np.arange(rows))
    return np.stack([left + step * (col.ravel() + 0.5), top + step * (row.ravel() + 0.5)], axis=1)


def test_tiles_beside_an_overview_come_apart(rng):
    tiles = [lattice(4, 4, x, y, 8.0) for y in (0, 32) for x in (0, 32, 64)]
    overview = lattice(3, 4, 0, 0, 24.0)
    for order in ([*tiles, overview], [overview, *tiles]):
        centre = np.concatenate(order)
        frames = frames_of(centre + rng.normal(size=centre.shape), (6.0, 6.0))
        assert frames is not None
        assert [frame.shape for frame in frames] == [(8, 12), (3, 4)] and {frame.filled for frame in frames} == {1.0}
        boxes = frames[0].boxes((64, 96), 0.3)
        assert np.abs(boxes[:, 2:] - boxes[:, :2] - 8).max() < 1e-6 and boxes.min() == 0 and boxes.max() == 96


def test_centres_at_random_are_no_lattice(rng):
    frames = frames_of(rng.random((64, 2)) * 64, (4.0, 4.0))
    assert frames is None or len(frames) > 3 or any(frame.filled < 0.5 for frame in frames)
