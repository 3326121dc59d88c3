"""Drawing tokens: the shares are those of the softmax, cut as asked, and each row has its own generator."""

import numpy as np
import pytest
import torch

from visionpulse_analysis.sampling import Chooser, Sample

N = 4000
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.2, 1.0, -0.5, 0.0])  # not in order, so that a rank is no word


def drawn(sample, logits=LOGITS):
    """Share of the draws that went to each word, one draw by each of N generators: float [word]."""
    words = Chooser(sample, list(range(N)))(logits.expand(N, -1))
    return np.bincount(words.numpy(), minlength=len(logits)) / N


def softmax(temperature=1.0):
    weights = np.exp(LOGITS.double().numpy() / temperature)
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


def test_both_cuts_count():
    """The word that top_p lets in is cut by top_k: one is left."""
    assert drawn(Sample(top_p=0.5, top_k=1))[1] == 1


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
