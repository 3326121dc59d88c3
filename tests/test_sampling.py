"""Drawing tokens: the shares are those of the softmax, cut as asked, and each row has its own generator."""

import numpy as np
import pytest
import torch
import transformers as hf

from visionpulse_analysis.decoding.sampling import Chooser, Sample

N = 4000
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.2, 1.0, -0.5, 0.0])  # not in order, so that a rank is no word


def drawn(sample, logits=LOGITS):
    """Share of the draws that went to each word, one draw by each of N generators: float [word]."""
    words = Chooser(sample, list(range(N)))(logits.expand(N, -1))
    return np.bincount(words.numpy(), minlength=len(logits)) / N


def softmax(temperature=1.0):
    return softmax_of(LOGITS / temperature)


def softmax_of(logits):
    weights = np.exp(logits.double().numpy())
    return weights / weights.sum()


def agrees(shares, expected):
    """Within five standard deviations of the share of N draws."""
    return (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / N)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax_at_that_temperature(temperature):
    assert agrees(drawn(Sample(temperature)), softmax(temperature))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.6, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p):
    shares, kept, held = softmax(), [], 0.0
    for word in np.argsort(-shares):
        kept.append(word)
        held += shares[word]
        if held >= top_p:
            break
    expected = np.zeros(len(shares))
    expected[kept] = shares[kept] / held
    assert agrees(drawn(Sample(top_p=top_p)), expected)


@pytest.mark.parametrize("top_k", [1, 2, 4, 100])
def test_top_k_keeps_the_likeliest(top_k):
    shares = softmax()
    expected = np.where(np.argsort(np.argsort(-shares)) < top_k, shares, 0)
    assert agrees(drawn(Sample(top_k=top_k)), expected / expected.sum())


def words_drawn(sample, logits, monkeypatch):
    """The words that evenly spaced draws give, in one row: set of int."""
    n = 4096
    even = iter(((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None])
    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand", lambda *size, **options: next(even))
        return set(Chooser(sample, list(range(n)))(logits.expand(n, -1)).tolist())


def of_the_library(sample, logits):
    """What ``generate`` would draw from: shares float64 [word], by its own processors in its own order."""
    config = hf.GenerationConfig(do_sample=True, top_k=sample.top_k or 0, top_p=sample.top_p)
    config.temperature = sample.temperature
    config._eos_token_tensor = None
    processors = hf.GenerationMixin()._get_logits_processor(config, 1, None, None, hf.LogitsProcessorList(), "cpu", {})
    return torch.softmax(processors(None, logits[None]).double(), dim=-1)[0].numpy()


CUTS = (None, 1, 5, 20, 49, 60)
CASES = {
    "of the issue": (-0.7 * torch.log(torch.arange(1, 1001).float()), Sample(0.7, 0.8, 20)),
    "top_k alone": (LOGITS, Sample(1.3, 1.0, 3)),
    "top_p alone": (LOGITS, Sample(1.3, 0.6)),
    "a word in both": (LOGITS, Sample(top_p=0.5, top_k=1)),
    "nothing cut": (LOGITS, Sample(0.9, 1.0, 7)),
    "more than there are": (LOGITS, Sample(0.9, 0.8, 1000)),
    "ties at the last place": (torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0]), Sample(1.0, 1.0, 2)),
    "ties at the edge of the nucleus": (torch.tensor([2.0, 3.0, 2.0, 2.0, 2.0, 0.0]), Sample(1.0, 0.6)),
    "all alike": (torch.zeros(10), Sample(0.5, 0.8)),
    "all alike, both cuts": (torch.zeros(10), Sample(2.0, 0.3, 5)),
    "words ruled out": (torch.tensor([-torch.inf, 1.0, 0.0, -torch.inf, 2.0]), Sample(1.0, 0.9, 4)),
    "less than the likeliest word": (LOGITS, Sample(1.0, 1e-6, 4)),
    **{
        f"random {seed}": (
            torch.randn(50, generator=torch.Generator().manual_seed(seed)).mul(2).round(decimals=seed % 3),
            Sample((0.3, 0.7, 1.0, 1.8)[seed % 4], (0.2, 0.5, 0.8, 0.95, 1.0)[seed % 5], CUTS[seed % 6]),
        )
        for seed in range(60)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_words_and_shares_are_those_of_the_library(case, monkeypatch):
    logits, sample = CASES[case]
    shares = of_the_library(sample, logits)
    found = words_drawn(sample, logits, monkeypatch)
    assert {int(word) for word in np.flatnonzero(shares > 1 / 2048)} <= found <= {*np.flatnonzero(shares).tolist()}


@pytest.mark.parametrize("case", ["of the issue", "random 8", "random 20"])
def test_draws_have_the_shares_of_the_library(case):
    logits, sample = CASES[case]
    assert agrees(drawn(sample, logits), of_the_library(sample, logits))


def test_the_nucleus_is_that_of_what_top_k_leaves():
    """10 words of 1000 at the authors' settings; a nucleus of all words, cut afterwards, would leave 20."""
    logits, sample = CASES["of the issue"]
    kept = softmax_of(logits / 0.7)[:20]
    held = np.cumsum(kept / kept.sum())
    assert np.flatnonzero(of_the_library(sample, logits)).size == 1 + (held < 0.8).sum() == 10
    assert set(np.flatnonzero(drawn(sample, logits))) <= set(range(10))


def test_rows_of_a_batch_are_cut_each_by_itself():
    logits = torch.stack([LOGITS, -LOGITS, torch.zeros(7), 3 * LOGITS])
    sample = Sample(0.8, 0.7, 3)
    together = Chooser(sample, [1, 2, 3, 4])(logits)
    assert together.tolist() == [Chooser(sample, [seed])(row[None]).item() for seed, row in enumerate(logits, 1)]


def test_a_row_draws_what_it_would_alone_also_when_others_leave():
    logits = torch.randn(6, 3, 20, generator=torch.Generator().manual_seed(0))
    alone = [Chooser(Sample(), [seed]) for seed in (5, 6, 7)]
    expected = np.array([[one(logits[step, [row]]).item() for step in range(6)] for row, one in enumerate(alone)])
    together = Chooser(Sample(), [5, 6, 7])
    found = [together(logits[step]).tolist() for step in range(3)]
    together.drop_rows(torch.tensor([0, 2]))
    left = [together(logits[step, [0, 2]]).tolist() for step in range(3, 6)]
    assert np.array_equal(np.array(found).T, expected[:, :3])
    assert np.array_equal(np.array(left).T, expected[[0, 2], 3:])


def test_without_a_sample_the_likeliest_word_is_taken():
    assert Chooser(None, [0, 1])(torch.stack([LOGITS, -LOGITS])).tolist() == [1, 2]


def test_words_without_probability_are_never_drawn():
    logits = torch.full((N, 4), -torch.inf)
    logits[:, 2] = 0.0
    assert set(Chooser(Sample(temperature=5.0), list(range(N)))(logits).tolist()) == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature": 0.0},
            r"temperature must be above 0 \(from 1e-30 to 1e\+30\), got 0.0; leave sample .* out for greedy",
        ),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_a_sample_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sample(**options)


def test_nothing_to_choose_from_is_an_error():
    for logits in (torch.full((1, 3), -torch.inf), torch.tensor([[0.0, float("nan"), 1.0]])):
        with pytest.raises(FloatingPointError, match="no token can be chosen"):
            Chooser(None, [0])(logits)
