"""Tokens of a picture that are no patches, in every family: no text, and gone where the picture is.

The methods are stated a second time, on the plain softmax of every query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny_models import BUILDERS

import visionpulse_analysis as vpa
from visionpulse_analysis.attention.routing import intercept, watch_layers
from visionpulse_analysis.decoding import Batch, Options
from visionpulse_analysis.decoding.trace_builder import Record
from visionpulse_analysis.metrics.flops import ModelShape, costs_of
from visionpulse_analysis.pruners import VTW, Pruner, Selection
from visionpulse_analysis.pruners.look_m import LookM
from visionpulse_analysis.pruners.shortv import ShortV
from visionpulse_analysis.pruners.sparsevlm import SparseVLM
from visionpulse_analysis.pruners.visipruner import VisiPruner
from visionpulse_analysis.pruners.vtw import MVW
from visionpulse_analysis.pruners.zspaprune_cdpruner import CDPruner, ZSPAPrune

QUESTION = "how many ?"
IDEFICS = {"<fake_token_around_image>", "<global-img>"} | {f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2, 3)}
# What a picture of 32 x 64 pixels has beside its patches, by token; the rest have none.
OTHERS = {
    "internvl": {"<img>", "</img>"},
    "internvl2_5": {"<img>", "</img>"},
    "internvl3_5": {"<img>", "</img>"},
    "internvl3_5_moe": {"<img>", "</img>"},
    "aya_vision": {"<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE_1", "TILE_2"},
    "llava_next": {"<image>"},  # line breaks
    "llava_onevision": {"<image>"},
    "gemma3": {"<start_of_image>", "<end_of_image>"},
    "pixtral": {"[IMG_BREAK]", "[IMG_END]"},
    "mistral3": {"[IMG_BREAK]", "[IMG_END]"},
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
}
DECODED = {"internvl", "llava_next", "pixtral", "idefics3"}  # one of each kind


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, size=(32, 64, 3), dtype=np.uint8)


@pytest.fixture
def endless(family, monkeypatch):
    if family.name not in DECODED:
        pytest.skip("one family of each kind is decoded")
    monkeypatch.setattr(family.vlm.model.generation_config, "eos_token_id", 10_000)  # no trace ends early
    return family.vlm


def test_every_token_of_a_prompt_is_text_or_patch_or_another_token_of_a_picture(family, photo, photos):
    for shown in (photo, [photos[2], photo]):
        prompt = family.vlm.prompt(shown, QUESTION)
        kinds = [prompt.text_at, prompt.grid.position, prompt.others]
        assert sorted(np.concatenate(kinds)) == list(range(len(prompt.ids)))
        features = np.flatnonzero(prompt.kinds.numpy())
        assert set(features) <= set(prompt.grid.position) | set(prompt.others)
        # The library's own list, where it names more than the features.
        known = getattr(family.tiny.processor, "image_token_ids", None) or []
        assert not np.isin(prompt.ids.numpy()[prompt.text_at], known).any()
    found = family.vlm.tokenizer.convert_ids_to_tokens(family.vlm.prompt(photo, QUESTION).ids.tolist())
    others = family.vlm.prompt(photo, QUESTION).others
    assert {found[at] for at in others} == OTHERS.get(family.name, set()), sorted({found[at] for at in others})


def test_the_table_above_names_families_that_there_are():
    assert set(OTHERS) <= set(BUILDERS)


@pytest.mark.alike
def test_raters_and_means_of_the_prompt_are_of_text_alone(endless, photo, monkeypatch):
    vlm, prompt, opened = endless, endless.prompt(photo, QUESTION), []
    start = SparseVLM.start
    monkeypatch.setattr(SparseVLM, "start", lambda self, layout: opened.append(start(self, layout)) or opened[-1])
    vpa.decode(vlm, photo, QUESTION, pruner=SparseVLM((1,), shares=(0.5,)), max_new_tokens=1)
    assert set(opened[0].raters[0].nonzero()[:, 0].tolist()) <= set(prompt.text_at.tolist())
    for pruner in (ZSPAPrune(0.3, prompt="text"), CDPruner(0.3, prompt="text")):
        batch = Batch(vlm, [Record(vlm, prompt, 0, {}, layers=[])], Options([], None, pruner))
        words = torch.zeros(len(prompt.ids), dtype=torch.bool)
        words[prompt.text_at] = True
        assert batch.layout.text[0].tolist() == words.tolist()


class Statement:
    """What a method does at a layer of one pass over prompt and answer: to weights, and to what leaves the layer."""

    def __init__(self, vlm, prompt, length):
        found = vlm.tokenizer.convert_ids_to_tokens(prompt.ids.tolist())
        known = set().union(*OTHERS.values(), [vlm.family.image_token])
        self.image = torch.tensor([token in known for token in found] + [False] * (length - len(found)))
        self.patches = torch.tensor(prompt.grid.position)
        self.answered = torch.arange(length) >= len(prompt.ids)

    def hide(self, layer):
        """Which pairs of query and key are not there, bool [query, key]."""
        return torch.zeros(len(self.image), len(self.image), dtype=torch.bool)

    def weigh(self, layer, weights):
        return weights

    def enter(self, layer, block, states):
        self.before = states

    def leave(self, layer, states):
        return None


class Withdrawn(Statement):
    """VTW(2)."""

    def hide(self, layer):
        return ~self.image[:, None] & self.image if layer >= 2 else super().hide(layer)


class Forgotten(Statement):
    """MVW(1), and LOOK-M where text leaves no room."""

    def hide(self, layer):
        return self.answered[:, None] & self.image


class Frozen(Statement):
    """ShortV((1, 2))."""

    def leave(self, layer, states):
        return torch.where(self.image[:, None], self.before, states) if layer in (1, 2) else None


class Shallow(Statement):
    """The first stage of VisiPruner, two layers deep, in prefill."""

    def weigh(self, layer, weights):
        prompt_text = ~self.image & ~self.answered
        if layer == 0:
            merged = weights[:, prompt_text][..., self.patches].sum(-1)
            weights = weights.masked_fill(~self.answered[:, None] & self.image, 0.0)
            weights[:, prompt_text, self.patches[0]] = merged
        elif layer == 1:
            weights = weights.masked_fill(prompt_text[:, None] & self.image, 0.0)
        return weights


def stated(vlm, prompt, statement):
    """Log probabilities of the next token, float64 [word], of one pass through the layers without a cache."""

    def attend(call):
        query, key, value, mask = call.query, call.key, call.value, call.mask
        group, n = query.shape[1] // key.shape[1], query.shape[2]
        logits = query[0] @ key[0].repeat_interleave(group, 0).transpose(1, 2) * call.scaling
        seen = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask[0, 0]
        logits = logits.masked_fill(~seen | statement.hide(call.layer), -torch.inf)
        weights = statement.weigh(call.layer, logits.softmax(-1))
        return (weights @ value[0].repeat_interleave(group, 0)).transpose(0, 1)[None], None

    inputs = vlm.family.batch([prompt], 0)
    position = vlm.family.positions(vlm.model, inputs)
    with torch.inference_mode(), intercept(vlm.model, attend), watch_layers(vlm.model, statement):
        out = vlm.model(**inputs, position_ids=position, use_cache=False)
    return torch.log_softmax(out.logits[0, -1].double(), -1)


@pytest.mark.alike
@pytest.mark.parametrize(
    ("pruner", "statement"),
    [
        (VTW(2), Withdrawn),
        (MVW(1), Forgotten),
        (LookM(heavy=0.0, recent=0.0, merge="none"), Forgotten),
        (ShortV((1, 2)), Frozen),
        (VisiPruner(("shallow",), 2), Shallow),
    ],
    ids=["vtw", "mvw", "lookm", "shortv", "visipruner"],
)
def test_all_of_a_picture_goes_with_its_patches(endless, photo, pruner, statement):
    vlm = endless
    trace = vpa.decode(vlm, photo, QUESTION, pruner=pruner, max_new_tokens=3, execution="gathered")
    prompt = vlm.prompt(photo, QUESTION)
    for step in (0, 2):
        passage = prompt.answered(torch.from_numpy(trace.token_ids[:step].astype(np.int64)))
        logprobs = stated(vlm, passage, statement(vlm, prompt, len(passage.ids)))
        assert logprobs[trace.token_ids[step]].item() == pytest.approx(trace.logprobs[step], abs=1e-4)


@dataclass(frozen=True)
class BlindAtOddSeeds(Pruner):
    """Nothing of the picture is read at decode steps by rows of an odd seed, all but one patch by the others."""

    name: ClassVar[str] = "blind_at_odd_seeds"

    def start(self, layout):
        selection = Selection(layout)
        odd = torch.tensor(layout.seeds)[:, None] % 2 == 1
        kept = layout.patches & ~odd
        kept[:, 0] = False
        selection.visible = lambda view: kept
        return selection


@pytest.mark.alike
def test_rows_of_which_only_some_have_lost_their_picture(endless, photo):
    questions, pruner = [QUESTION, "what is on the left ?"], BlindAtOddSeeds()
    expected = vpa.decode(endless, [photo] * 2, questions, pruner=pruner, max_new_tokens=3)
    found = vpa.decode(endless, [photo] * 2, questions, pruner=pruner, max_new_tokens=3, execution="gathered")
    blind = vpa.decode(endless, photo, questions[1], pruner=MVW(1), max_new_tokens=3)
    assert np.allclose(found[1].logprobs, blind.logprobs, atol=2e-3)
    for masked, gathered in zip(expected, found, strict=True):
        assert np.allclose(masked.logprobs, gathered.logprobs, atol=1e-4)


@pytest.mark.alike
def test_costs_count_what_goes_with_the_patches(endless, photo):
    """Bytes of the cache are those of the tokens that a step can read."""
    trace = vpa.decode(endless, photo, QUESTION, pruner=VTW(2), max_new_tokens=3)
    prompt = endless.prompt(photo, QUESTION)
    shape = ModelShape.of(endless.model.config, endless.model.dtype.itemsize)
    whole, text = len(prompt.ids), len(prompt.text_at)
    for step in (1, 2):
        keys = [whole + step] * 2 + [text + step] * (shape.layers - 2)
        assert costs_of(trace).kv_bytes_read[step] == shape.kv_bytes(keys)


def test_each_tile_and_each_picture_is_a_piece(family, photo):
    """What the vision tower reads by itself: as many pieces as there are frames of the grid, or tiles in them."""
    one, two = family.vlm.prompt(photo, QUESTION), family.vlm.prompt([photo, photo], QUESTION)
    tiles = int(one.pieces.max()) + 1
    first, second = (two.pieces[two.grid.image == image] for image in (0, 1))
    assert len(one.pieces) == len(one.grid) and second.min() == first.max() + 1
    if family.name != "llava_onevision":  # reads several pictures as overviews alone
        assert np.array_equal(first, one.pieces) and np.array_equal(second, one.pieces + tiles)
    for piece in range(tiles):  # a piece is a rectangle of one frame
        rows, cols = one.grid.row[one.pieces == piece], one.grid.col[one.pieces == piece]
        assert len(set(one.grid.frame[one.pieces == piece])) == 1
        assert len(rows) == len(set(rows)) * len(set(cols))
    tiled = {"aya_vision", "llava_next", "idefics3", "smolvlm"} | {name for name in BUILDERS if "internvl" in name}
    assert (tiles > 1) == (family.name in tiled | {"llava_onevision"})


@pytest.mark.alike
def test_cdpruner_keeps_the_same_number_of_each_tile(endless, photo):
    trace = vpa.decode(endless, [photo, photo], QUESTION, pruner=CDPruner(0.25), max_new_tokens=1)
    pieces = endless.prompt([photo, photo], QUESTION).pieces
    for piece in range(pieces.max() + 1):
        own = pieces == piece
        assert trace.kept.values[0][own].sum() == max(1, round(0.25 * own.sum()))
