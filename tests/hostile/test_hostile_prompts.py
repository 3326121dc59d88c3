"""Strange questions, shapes and limits: the model is asked what was typed, or there is one clear error before."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.exactness.vision import changes
from visionpulse_analysis.explorer.page import page
from visionpulse_analysis.explorer.payload import pack

slowly = settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))


def special_tokens(vlm) -> list[str]:
    return [token.content for token in vlm.tokenizer.added_tokens_decoder.values() if token.special]


def test_special_tokens_typed_by_the_user_are_refused(vlm, pictures):
    marks = special_tokens(vlm)
    assert {"<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"} <= set(marks)
    for mark in marks:
        with pytest.raises(ValueError, match="the question contains"):
            vpa.decode(vlm, pictures[0], f"where{mark}is it ?")


@pytest.mark.parametrize("question", ["", "  \n\t", None, 3, b"where ?", "where \ud800 ?"])
def test_questions_that_are_no_text_are_refused(vlm, pictures, question):
    with pytest.raises(ValueError, match=r"question is (empty|not valid Unicode)"):
        vlm.prompt(pictures[0], question)


@slowly
@given(st.text(min_size=1, max_size=60))
def test_any_other_text_is_asked_as_it_is(vlm, pictures, question):
    try:
        prompt = vlm.prompt(pictures[0], question)
    except ValueError as error:
        assert not question.strip() or any(mark in question for mark in special_tokens(vlm)), error
        return
    plain = vlm.prompt(pictures[0], "where ?")
    words = vlm.tokenizer(question, add_special_tokens=False).input_ids
    asked = vlm.tokenizer("where ?", add_special_tokens=False).input_ids
    assert prompt.question == question
    rest = sorted([*prompt.ids.tolist(), *asked])
    assert rest == sorted([*plain.ids.tolist(), *words])  # the same conversation, with other words in it


STRANGE = {
    "right to left": "أين الدائرة الحمراء ؟ איפה העיגול האדום",
    "emoji": "where is the 🔴 👩‍👩‍👧‍👦 🏳️‍🌈 ?",
    "markup": "</script><img src=x onerror=alert(1)> {{ 7*7 }} {% raw %} $\\frac{1}{0}$ %s {0}",
    "control": "where\x00 is\x1b[31m the \u202eelcric\u202c ?",
    "10,000 words": "where is the red circle " * 2000,
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_questions_come_back_as_they_were(vlm, pictures, tmp_path, name):
    question = STRANGE[name]
    store = vpa.TraceStore(tmp_path / "s", mode="a")
    trace = vpa.decode(vlm, pictures[0], question, max_new_tokens=2, layers=[2], store=store, ids="a")
    assert trace.question == question == store["a"].question
    assert store["a"].data_hash == trace.data_hash and len(trace) == 2
    assert "<img src=x" not in trace._repr_html_() and "<img src=x" not in page(pack(trace))


@slowly
@given(
    sides=st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=3),
    budget=st.floats(0.001, 1),
    name=st.sampled_from(["visionpulse", "random", "uniform", "prefill_once", "last_step_only"]),
    new=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_random_grids_batches_and_budgets(vlm, sides, budget, name, new, seed):
    """Masked equals gathered, batched equals alone, what was dropped has no attention, and K patches are K patches."""
    random = np.random.default_rng(seed)
    images = [random.integers(0, 256, (rows * 8, cols * 8, 3), dtype=np.uint8) for rows, cols in sides]
    questions = [" ".join(["where"] * int(random.integers(1, 6))) for _ in images]
    pruner = vpa.make_pruner(name, budget=budget)
    options = {"max_new_tokens": new, "pruner": pruner, "seed": [seed % 1000] * len(images)}
    masked = vpa.decode(vlm, images, questions, **options)
    gathered = vpa.decode(vlm, images, questions, execution="gathered", **options)
    for place, (a, b) in enumerate(zip(masked, gathered, strict=True)):
        assert a.grid.shape() == sides[place]
        assert np.array_equal(a.kept.sum("patch"), a.k) and a.k.min() >= 1
        assert np.abs(a.mass.values - b.mass.values).max() < 1e-5
        anchor = vlm.default_anchor
        hidden = a.attention.sel(layer=list(range(anchor + 1, vlm.n_layers))).where(~a.kept, 0)
        assert float(abs(hidden).max()) == 0
        alone = vpa.decode(vlm, images[place], questions[place], **{**options, "seed": seed % 1000})
        assert np.abs(a.mass.values - alone.mass.values)[0].max() < 1e-5
        if a.tokens == alone.tokens:  # a tie may fall either way
            assert np.abs(a.mass.values - alone.mass.values).max() < 1e-5


@slowly
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_pictures_of_any_shape(vlm, height, width, data):
    """Down to one pixel and up to forty to one: every pixel belongs to a patch, or the processor says why not."""
    stretch = data.draw(st.sampled_from([(1, 1), (40, 1), (1, 40)]))
    picture = np.zeros((height * stretch[0], width * stretch[1], 3), np.uint8)
    row, col = (data.draw(st.integers(0, side - 1)) for side in picture.shape[:2])
    picture[row, col] = 255
    try:
        grid = vlm.prompt(picture, "where ?").grid
    except ValueError as error:
        assert str(error)
        return
    assert grid.image_size.tolist() == [list(picture.shape[:2])]
    assert (
        grid.box[:, :2].min() == 0
        and grid.box[:, 2].max() == picture.shape[1]
        and grid.box[:, 3].max() == picture.shape[0]
    )
    assert np.prod(grid.box[:, 2:] - grid.box[:, :2], axis=1).sum() == pytest.approx(
        picture.shape[0] * picture.shape[1]
    )
    # No token sees the pixel from afar: the cell that changes most lies within the smoothing's reach of it.
    change = changes(vlm, vlm.prompt(np.zeros_like(picture), "where ?"), vlm.prompt(picture, "where ?"))
    box = grid.box[change[grid.position].argmax()]
    across, down = np.maximum(grid.box[0, 2:] - grid.box[0, :2], 2)
    assert change.max() > 0 and box[0] - across <= col < box[2] + across and box[1] - down <= row < box[3] + down


def test_one_new_token_and_an_end_at_once(vlm, pictures, monkeypatch):
    from visionpulse_analysis.decoding import run

    pruner = vpa.VisionPulse(budget=0.1)
    free = vpa.decode(vlm, pictures[0], "where ?", max_new_tokens=1, pruner=pruner)
    assert len(free) == 1 and free.kept.all() and free.meta["finished"] is False
    monkeypatch.setattr(run, "end_ids", lambda vlm: set(range(vlm.model.config.text_config.vocab_size)))
    for execution in ("masked", "gathered"):
        ended = vpa.decode(vlm, pictures[0], ["where ?"] * 2, max_new_tokens=9, pruner=pruner, execution=execution)
        for trace in ended:
            assert trace.tokens == free.tokens and trace.meta["finished"] is True
            assert np.array_equal(trace.attention[0], free.attention[0]) or np.allclose(
                trace.mass, free.mass, atol=1e-6
            )


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"max_new_tokens": -1}, {"batch_size": 0}, {"layers": [8]}])
def test_limits_are_checked_before_anything_is_decoded(vlm, pictures, wrong):
    with pytest.raises(ValueError, match=r"at least 1|indices from 0 to 7"):
        vpa.decode(vlm, pictures[0], "where ?", **wrong)
