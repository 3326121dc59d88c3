"""The model's own generation configuration: greedy decodes are the library's, token for token, in batches too."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import visionpulse_analysis as vpa

STEPS = 7
QUESTIONS = ["where is the red circle ?", "how many ?", "describe the picture , look at the circle"]


@pytest.fixture
def asking(vlm, monkeypatch):
    """The random model with settings of its own, in a generation configuration of its own."""
    monkeypatch.setattr(vlm.model, "generation_config", copy.deepcopy(vlm.model.generation_config))

    def ask(settings):
        vlm.model.generation_config.update(**settings)
        return vlm

    return ask


def generated(vlm, picture, question) -> list[int]:
    inputs = vlm.family.batch([vlm.prompt(picture, question)], padding=0)
    found = vlm.model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, tokenizer=vlm.tokenizer, past_key_values=None
    )
    return found[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def plain(vlm, pictures):
    """Tokens of the first question without any settings."""
    return vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none", max_new_tokens=STEPS).token_ids.tolist()


# What each asks for, of the tokens that come without it.
SETTINGS = {
    "repetition_penalty": lambda said: 3.0,
    "no_repeat_ngram_size": lambda said: 1,
    "suppress_tokens": lambda said: said[:2],
    "begin_suppress_tokens": lambda said: said[:1],
    "bad_words_ids": lambda said: [[said[0]], said[1:3]],
    "sequence_bias": lambda said: [[[said[0]], -50.0]],
    "encoder_repetition_penalty": lambda said: 40.0,
    "forced_bos_token_id": lambda said: 40,
    "forced_eos_token_id": lambda said: 3,
    "eos_token_id": lambda said: [3, said[3]],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_decode_is_the_librarys_alone_and_in_a_batch(asking, pictures, plain, name):
    vlm = asking({name: SETTINGS[name](plain)})
    alone = [vpa.decode(vlm, p, q, max_new_tokens=STEPS) for p, q in zip(pictures, QUESTIONS, strict=True)]
    for trace, picture, question in zip(alone, pictures, QUESTIONS, strict=True):
        assert trace.token_ids.tolist() == generated(vlm, picture, question)
    if name != "forced_bos_token_id":  # which asks for the first token of a text without a prompt
        assert alone[0].token_ids.tolist() != plain
    refilled = vpa.decode(vlm, pictures, QUESTIONS, max_new_tokens=STEPS, batch_size=2)
    assert [trace.tokens for trace in refilled] == [trace.tokens for trace in alone]
    if name != "eos_token_id":
        assert alone[0].meta["generation"] == {name: SETTINGS[name](plain)}


@pytest.mark.parametrize("name", ["min_new_tokens", "min_length", "exponential_decay_length_penalty"])
def test_lengths(asking, pictures, plain, name):
    length = len(asking({}).prompt(pictures[0], QUESTIONS[0]).ids)
    value = {"min_new_tokens": 5, "min_length": length + 5}.get(name, [2, 2.5])
    vlm = asking({"eos_token_id": [plain[2]], name: value})
    trace = vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none", max_new_tokens=STEPS)
    assert trace.token_ids.tolist() == generated(vlm, pictures[0], QUESTIONS[0])
    assert (len(trace) > 3) == (name != "exponential_decay_length_penalty")


def test_stop_strings_end_a_trace(asking, pictures, plain):
    # The end of one word, all of the next and the beginning of another: no token is that text.
    first, second, third = (asking({}).tokenizer.decode([token]) for token in plain[:3])
    vlm = asking({"stop_strings": [f"{first[-1]} {second} {third[0]}", "nothing says this, which is long"]})
    batch = vpa.decode(vlm, pictures[0], [QUESTIONS[0]] * 3, layers="none", max_new_tokens=STEPS, batch_size=2)
    for trace in batch:
        assert trace.token_ids.tolist() == plain[:3] and trace.meta["finished"]


WARM = {"do_sample": True, "temperature": 0.6, "top_k": 20}


def test_the_model_samples_as_it_says_and_greedy_where_asked(asking, pictures, plain):
    vlm = asking({**WARM, "guidance_scale": 2.0, "min_p": 0.1})
    options = {"layers": "none", "max_new_tokens": STEPS}
    own, same, greedy = (
        [vpa.decode(vlm, pictures[0], QUESTIONS[0], seed=seed, **options, **drawn) for seed in range(4)]
        for drawn in ({}, {"sample": vpa.Sample(0.6, top_k=20)}, {"sample": None})
    )
    rest = {"guidance_scale": 2.0, "min_p": 0.1}
    for a, b, c in zip(own, same, greedy, strict=True):
        assert a.tokens == b.tokens and c.token_ids.tolist() == plain
        assert a.meta["sample"] == b.meta["sample"] == {"temperature": 0.6, "top_p": 1.0, "top_k": 20}
        assert (a.meta["generation"], a.meta["generation_left_out"]) == (WARM, rest)
        assert c.meta["sample"] is None and "generation" not in c.meta
        assert b.meta["generation_left_out"] == c.meta["generation_left_out"] == {**rest, **WARM}
    assert len({tuple(trace.tokens) for trace in own}) > 1


@pytest.mark.parametrize(
    ("stated", "sample"),
    [
        ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0, "top_k": 50}),  # as in the library
        ({"do_sample": True, "top_k": 0, "top_p": 0.8}, {"temperature": 1.0, "top_p": 0.8, "top_k": None}),
        ({"temperature": 0.6, "top_k": 20}, None),  # says how, but not to do it
        ({"do_sample": False, "temperature": 0.6}, None),
    ],
    ids=str,
)
def test_what_a_model_says_of_drawing(asking, pictures, stated, sample):
    assert (
        vpa.decode(asking(stated), pictures[0], QUESTIONS[0], layers="none", max_new_tokens=1).meta["sample"] == sample
    )


def test_the_models_own_draws_have_the_librarys_probabilities(asking, pictures):
    """Of the second token: words that `generate` never draws are never drawn, and the others as often."""
    vlm = asking({"do_sample": True, "top_k": 3, "temperature": 0.7})
    inputs = vlm.family.batch([vlm.prompt(pictures[0], QUESTIONS[0])], padding=0)
    out = vlm.model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
    shares = out.scores[0][0].softmax(0).numpy()
    drawn = vpa.decode(vlm, pictures[0], [QUESTIONS[0]] * 200, layers="none", max_new_tokens=1, batch_size=100)
    counts = np.bincount([int(trace.token_ids[0]) for trace in drawn], minlength=len(shares))
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(shares)) and (shares > 0).sum() == 3
    spread = np.sqrt(200 * shares * (1 - shares))
    assert (np.abs(counts - 200 * shares) <= 5 * spread + 1e-9).all()


def test_the_models_own_limit_of_tokens(asking, pictures, plain):
    vlm = asking({"max_new_tokens": 3, "eos_token_id": []})
    trace = vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none")
    assert len(trace) == trace.meta["max_new_tokens"] == 3 and trace.meta["generation"]["max_new_tokens"] == 3
    other = vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none", max_new_tokens=2)
    assert len(other) == 2 and other.meta["generation_left_out"]["max_new_tokens"] == 3
    assert vpa.decode(asking({"max_new_tokens": None}), pictures[0], QUESTIONS[0]).meta["max_new_tokens"] == 256


def test_logprobs_are_those_of_the_models_own_logits(asking, pictures, plain):
    without = vpa.decode(asking({}), pictures[0], QUESTIONS[0], layers="none", max_new_tokens=1)
    vlm = asking({"sequence_bias": [[[plain[0]], 9.0]]})
    biased = vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none", max_new_tokens=1)
    assert np.array_equal(biased.logprobs, without.logprobs)


def test_a_watermark_is_left_out_and_named(asking, pictures, plain):
    vlm = asking({"watermarking_config": {"greenlist_ratio": 0.3}})
    trace = vpa.decode(vlm, pictures[0], QUESTIONS[0], layers="none", max_new_tokens=STEPS)
    assert trace.token_ids.tolist() == plain
    assert trace.meta["generation_left_out"]["watermarking_config"]["greenlist_ratio"] == 0.3


def test_what_repeats_the_prompt(asking, pictures, plain):
    vlm = asking({"encoder_no_repeat_ngram_size": 1})
    question = f"where is the circle {vlm.tokenizer.decode(plain[:1])} ?"
    trace = vpa.decode(vlm, pictures[0], question, layers="none", max_new_tokens=STEPS)
    assert trace.token_ids.tolist() == generated(vlm, pictures[0], question)
    assert not set(trace.token_ids.tolist()) & set(vlm.prompt(pictures[0], question).ids.tolist())
