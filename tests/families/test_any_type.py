"""Models of whose type the package knows nothing: loaded, decoded and mapped by the library's own processor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from test_locating import seen_boxes
from tiny_strangers import STRANGERS, build
from transformers import DynamicCache, ProcessorMixin
from typer.testing import CliRunner

import visionpulse_analysis as vpa
from visionpulse_analysis.cli import app
from visionpulse_analysis.decoding.exactness import checks
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.explorer.payload import pack
from visionpulse_analysis.models import locating
from visionpulse_analysis.models.families import Family
from visionpulse_analysis.models.locating import keeping
from visionpulse_analysis.studies.quickstart.figures import draw_film_strip
from visionpulse_analysis.studies.step_dependence.figures import draw_example
from visionpulse_analysis.traces import frame_labels, frame_pictures, media_of

QUESTIONS, STEPS = ("a ?", "where is it ?"), 3
MAPS = {"qwen3_5": "stated by the processor", "janus": "measured by", "ovis2": "measured by", "idefics2": "no map: "}


@pytest.fixture(scope="module", params=STRANGERS)
def stranger(request, tmp_path_factory):
    """name; vlm, as loaded from its files; tiny, what it was saved from; folder."""
    if hf.__version__.startswith("5.4."):
        pytest.skip("this transformers lacks the types or the PIL halves of their image processors")
    tiny, folder = build(request.param), tmp_path_factory.mktemp(request.param)
    tiny.save(folder)
    if isinstance(tiny.processor, ProcessorMixin):
        tiny.processor.save_pretrained(folder)
    return SimpleNamespace(name=request.param, vlm=vpa.load(str(folder)), tiny=tiny, folder=folder)


def test_rows_and_tokens_are_those_of_the_models_own_generate(stranger, photos):
    """Alone and in a batch, whose prompts have different lengths and pictures of different sizes."""
    vlm, together = stranger.vlm, vpa.decode(stranger.vlm, photos[:2], list(QUESTIONS), max_new_tokens=STEPS)
    for photo, question, batched in zip(photos, QUESTIONS, together, strict=False):
        trace, prompt = vpa.decode(vlm, photo, question, max_new_tokens=STEPS), vlm.prompt(photo, question)
        assert trace.meta["map"].startswith(MAPS[stranger.name])
        vlm.model.set_attn_implementation({"text_config": "eager"})
        try:
            out = vlm.model.generate(
                **vlm.family.batch([prompt], padding=0), max_new_tokens=STEPS, do_sample=False,
                past_key_values=DynamicCache(config=vlm.model.config.get_text_config()), output_attentions=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        finally:
            vlm.model.set_attn_implementation({"text_config": "sdpa"})
        assert trace.token_ids.tolist() == out.sequences[0, len(prompt.ids) :].tolist() == batched.token_ids.tolist()
        places = torch.from_numpy(trace.grid.position.copy())
        for step, layers in enumerate(out.attentions):
            rows = torch.stack([layer[0, :, -1] for layer in layers if layer is not None])[..., places].mean(1).numpy()
            assert np.abs(trace.mass.values[step] - rows.sum(-1)).max() < 1e-5
            assert np.abs(trace.attention.values[step] - rows).max() <= np.spacing(np.float16(rows.max())) / 2 + 1e-5
        assert np.abs(trace.mass.values - batched.mass.values).max() < 1e-5


def test_interventions_act_on_it_or_are_refused_by_name(stranger, photos):
    vlm, row = stranger.vlm, (photos[0], QUESTIONS[0])
    last = vlm.attention_layers[-1]
    acts = [vpa.HidePatches(layers=[last]), vpa.AblateHeads([1], layers=[last]), vpa.PatchActivations(np.ones(32), 1)]
    for act in acts:
        said = vpa.intervene(vlm, row, act, max_new_tokens=STEPS)
        told = vpa.intervene(vlm, row, act, answer=said.token.values[0, :-1].tolist())
        assert np.allclose(told.logprobs, said.logprobs, rtol=1e-3, atol=1e-4)
        dense = vpa.intervene(vlm, row, answer=said.token.values[0, :-1].tolist())
        assert np.abs(told.logprobs - dense.logprobs).max() > 0
    if len(vlm.attention_layers) < vlm.n_layers:
        with pytest.raises(ValueError, match=r"HidePatches: layers .* have no softmax attention"):
            vpa.intervene(vlm, row, vpa.HidePatches())
        with pytest.raises(ValueError, match="cannot be read alone"):
            vpa.intervene(vlm, row, answer=[1, 2], alone=True)


def test_every_token_of_a_prompt_is_of_one_of_three_kinds(stranger, photos):
    prompt = stranger.vlm.prompt(photos[:1], QUESTIONS[0])
    kinds = [prompt.text_at, prompt.grid.position, prompt.others]
    assert sorted(np.concatenate(kinds)) == list(range(len(prompt.ids)))
    words = stranger.vlm.tokenizer.convert_ids_to_tokens(prompt.ids[prompt.others].tolist())
    expected = {"qwen3_5": set(), "janus": {"<boi>", "<eoi>"}, "idefics2": {"<fake_token_around_image>"},
                "ovis2": {f"<IMG_{name}>" for name in ("START", "GRID", "ROW", "COL", "END")}}  # fmt: skip
    assert set(words) == expected[stranger.name]
    assert QUESTIONS[0] in stranger.vlm.tokenizer.decode(prompt.ids[prompt.text_at])


@pytest.mark.parametrize("stranger", ["ovis2", "qwen3_5"], indirect=True)
def test_a_bright_cell_reaches_its_patch_and_all_checks_hold(stranger):
    report = vpa.check(stranger.vlm)
    assert report.passed and len(report.findings) == 9, str(report)


@pytest.mark.parametrize("stranger", ["janus"], indirect=True)
def test_studies_sweeps_and_commands_take_them(stranger, photos, tmp_path):
    from PIL import Image

    Image.fromarray(photos[0]).save(tmp_path / "photo.png")
    told = ["decode", str(tmp_path / "photo.png"), QUESTIONS[0], "--model", str(stranger.folder)]
    run = CliRunner().invoke(app, [*told, "--max-new-tokens", "2", "--out", str(tmp_path / "store")])
    assert run.exit_code == 0, run.output
    objects = vpa.load((stranger.vlm.model, stranger.tiny.processor))
    trace = vpa.decode(objects, photos[0], QUESTIONS[0], pruner=vpa.VisionPulse(budget=0.3), max_new_tokens=STEPS)
    assert trace.k.values.tolist() == [64, 19, 19] and trace.meta["map"].startswith("measured")


@pytest.mark.parametrize("stranger", ["idefics2"], indirect=True)
def test_learned_queries_have_rows_and_mass_and_a_clear_word_that_there_is_no_map(stranger, photos):
    trace = vpa.decode(stranger.vlm, photos[:2], QUESTIONS[0], max_new_tokens=STEPS)
    assert len(trace.grid) == 16 and (trace.mass.values > 0).all()
    assert "the median token reads" in trace.meta["map"] and "median token reads" in trace._repr_html_()
    pictures, note = frame_pictures(trace)
    assert pictures == [None] and "no map: the 16 image tokens" in str(note)
    assert frame_labels(trace) == ["No map: image tokens in their order"] and len(media_of(trace)) == 2
    with pytest.raises(ValueError, match="no map: the 16 image tokens"):
        draw_film_strip(trace, 0, layer=0)
    for asked, why in (("yopo", "neighbours only; say window=None"), ("setok", "places too; say place=0")):
        with pytest.raises(ValueError, match=f"there is no map.*{why}"):
            vpa.decode(stranger.vlm, photos[0], QUESTIONS[0], pruner=vpa.make_pruner(asked), max_new_tokens=STEPS)
    axes = draw_example(None, trace, Sample("s", photos[0], QUESTIONS[0]), 0, [0, 1])
    assert all("no map: tokens in order" in ax.get_title() for ax in axes)
    found = checks._geometry(checks._Subject(stranger.vlm))
    assert found.passed and "the median token reads" in found.note
    page = pack(trace)
    assert page["panels"][0]["label"].startswith("No map") and any("no map" in one for one in page["notes"])
    processor, model = stranger.vlm.processor, stranger.vlm.model
    inputs = stranger.vlm.family.batch([stranger.vlm.prompt(photos[0], QUESTIONS[0])], padding=0)
    with vpa.watch(model, processor, images=photos[0]) as w:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert w.traces[0].meta["map"].startswith("no map: the 8 image tokens") and len(w.traces[0].grid) == 8


@pytest.mark.parametrize("stranger", ["janus"], indirect=True)
def test_a_trace_without_a_map_is_given_one(stranger, photos):
    vlm, wide = stranger.vlm, photos[1]
    inputs = vlm.family.batch([vlm.prompt(wide, QUESTIONS[0])], padding=0)
    options = {"max_new_tokens": STEPS, "do_sample": False}
    located = vpa.locate(vlm.model, vlm.processor, wide)
    with vpa.watch(vlm.model, vlm.processor, heads="all") as plain:
        vlm.model.generate(**inputs, **options)
    with vpa.watch(vlm.model, vlm.processor, heads="all", images=wide) as mapped:
        vlm.model.generate(**inputs, **options)
    trace, expected = plain.traces[0].locate(wide, located), mapped.traces[0]
    assert len(plain.traces[0].grid) == 64 > len(trace.grid) and trace.grid.equals(expected.grid)
    assert np.array_equal(trace.attention.values, expected.attention.values)
    # What was attended to in the padding is known as it was rounded, 32 tokens of half a unit each at most.
    assert np.abs(trace.mass.values - expected.mass.values).max() < 32 * np.spacing(np.float16(0.5))
    assert trace.meta["map"] == "measured" and np.array_equal(trace.images[0], wide)
    with pytest.raises(ValueError, match="has a map already"):
        trace.locate(wide, located)
    with pytest.raises(ValueError, match=r"images have .* but what was measured was of"):
        plain.traces[0].locate(photos[0], located)
    with pytest.raises(ValueError, match="the trace had 64 image tokens, the images given have 128"):
        plain.traces[0].locate([wide, wide], vpa.locate(vlm.model, vlm.processor, [wide, wide]))
    with vpa.watch(vlm.model, vlm.processor, pruner=vpa.VisionPulse(budget=0.3)) as pruned:
        vlm.model.generate(**inputs, **options)
    with pytest.raises(ValueError, match="32 are no patches"):
        pruned.traces[0].locate(wide, located)


@pytest.mark.parametrize("stranger", ["janus"], indirect=True)
def test_a_map_is_kept_on_disk_and_a_damaged_one_measured_again(stranger, monkeypatch, tmp_path):
    picture, measured = np.zeros((48, 80, 3), np.uint8), []
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path))
    right = locating.measure
    monkeypatch.setattr(locating, "measure", lambda *given: measured.append(1) or right(*given))

    def locate():
        monkeypatch.setattr(keeping, "_maps", type(keeping._maps)())  # as in another process
        return vpa.locate(stranger.vlm, images=picture)

    first = locate()
    again = locate()
    assert len(measured) == 1 and again.grid.equals(first.grid) and np.array_equal(again.others, first.others)
    (kept,) = tmp_path.glob("map-*.json")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert locate().grid.equals(first.grid) and len(measured) == 2
    locate()
    assert len(measured) == 2
    vpa.locate(stranger.vlm, images=np.zeros((48, 81, 3), np.uint8))
    assert len(measured) == 3


def test_models_without_pictures_in_their_sequence_and_lost_templates_are_one_clear_error(stranger, photos):
    with pytest.raises(ValueError, match=r"read no video here"):
        vpa.decode(stranger.vlm, vpa.Video(photos[:1] * 2, fps=1), QUESTIONS[0])
    with pytest.raises(ValueError, match="processor"):
        vpa.load((stranger.vlm.model, stranger.vlm.tokenizer))


def unknown(family):
    """The model with a family of which nothing is known, so that its map is stated or measured."""
    vlm = family.vlm
    found = Family(vlm.model, vlm.tokenizer, vlm.processor, {})
    found.kind = "unknown"
    return found


QUICK = ["llava_siglip", "llava_next", "gemma3", "deepseek_vl", "glm4v", "internvl3_5"]


@pytest.mark.parametrize("family", QUICK, indirect=True)
@pytest.mark.parametrize("shape", [(64, 64), (33, 150)], ids=str)
def test_a_known_family_is_the_same_without_being_known(family, shape):
    same_without_being_known(family, shape)


@pytest.mark.slow
def test_every_known_family_is_the_same_without_being_known(family):
    same_without_being_known(family, (140, 37))


def same_without_being_known(family, shape):
    """Prompt, inputs and cells are those of the table to the last bit, borders of cells within half of one."""
    if not family.vlm.family.spoken:
        pytest.skip("it has no conversation, which nothing but its name tells")
    stock = unknown(family)
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    known, found = family.vlm.prompt(picture, QUESTIONS[1]), stock.prompt(picture, QUESTIONS[1])
    assert torch.equal(known.ids, found.ids) and torch.equal(known.kinds, found.kinds)
    given, made = family.vlm.family.batch([known], 0), stock.batch([found], 0)
    assert set(given) == set(made)
    for name, value in given.items():
        assert torch.equal(value.flatten(), made[name].to(value.dtype).flatten()), name
    at, seen = np.searchsorted(known.grid.position, found.grid.position), seen_boxes(known.grid)[1]
    assert np.array_equal(known.grid.position[at], found.grid.position)
    dark = np.setdiff1d(known.grid.position, found.grid.position)  # in padding
    assert set(known.grid.position[seen]) <= set(found.grid.position)
    assert np.array_equal(np.union1d(known.others, dark), found.others)
    for name in ("frame", "col", "row"):
        theirs = getattr(known.grid, name)[at]
        assert np.array_equal(getattr(found.grid, name), theirs - (theirs.min() if len(dark) else 0))
    size = np.tile(known.grid.box[at, 2:] - known.grid.box[at, :2], 2)
    assert (np.abs(found.grid.box - known.grid.box[at]) / size).max() < 0.55
