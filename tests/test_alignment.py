"""Dense and pruned tokens side by side."""

import difflib

import numpy as np
import pytest

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.samples import Sample, scene_samples
from visionpulse_analysis.studies.frontier.divergence import (
    compare_tokens,
    draw_strips,
    example_number,
    first_divergences,
    strips_height,
)
from visionpulse_analysis.testbed.scenes.questions import reason


def token_rows(found):
    """Both traces as lines of the same columns, a gap where one has no token."""
    steps = zip(found.alignment.first, found.alignment.second, strict=True)
    return [(found.dense[a] if a >= 0 else "", found.pruned[b] if b >= 0 else "") for a, b in steps]


WORDS = ["see", "red", "blue", "at", "."]


@pytest.mark.parametrize("seed", range(20))
def test_both_traces_come_back_and_partners_are_equal(seed):
    rng = np.random.default_rng(seed)
    dense, pruned = (list(rng.choice(WORDS, size=rng.integers(1, 15))) for _ in range(2))
    found = compare_tokens(dense, pruned)
    rows = token_rows(found)
    assert [a for a, _ in rows if a] == dense
    assert [b for _, b in rows if b] == pruned
    assert all(a == b for a, b in rows if a and b)
    alone = [dense[i] for i in found.alone_dense], [pruned[i] for i in found.alone_pruned]
    assert alone == ([a for a, b in rows if not b], [b for a, b in rows if not a])


@pytest.mark.parametrize("seed", range(20))
def test_the_first_difference_is_the_first(seed):
    rng = np.random.default_rng(seed)
    dense, pruned = (list(rng.choice(WORDS[:2], size=6)) for _ in range(2))
    slow = next((i for i, (a, b) in enumerate(zip(dense, pruned, strict=True)) if a != b), None)
    assert compare_tokens(dense, pruned).divergence == slow


@pytest.mark.parametrize(
    ("dense", "pruned", "divergence", "alone"),
    [
        ("a b", "a b", None, ([], [])),
        ("a b", "a", 1, ([1], [])),
        ("a", "a b c", 1, ([], [1, 2])),
        ("a x b", "a y b", 1, ([1], [1])),
        ("a b c d", "a c d", 1, ([1], [])),
    ],
)
def test_small_cases(dense, pruned, divergence, alone):
    found = compare_tokens(dense.split(), pruned.split())
    assert (found.divergence, (found.alone_dense, found.alone_pruned)) == (divergence, alone)


def test_as_many_tokens_find_a_partner_as_difflib_matches():
    dense, pruned = "see red at . see blue at .".split(), "see blue at . see red .".split()
    blocks = difflib.SequenceMatcher(None, dense[1:], pruned[1:], autojunk=False).get_matching_blocks()
    assert sum(a != "" and b != "" for a, b in token_rows(compare_tokens(dense, pruned))) == 1 + sum(
        block.size for block in blocks
    )


@pytest.fixture(scope="module")
def traces():
    """True traces of scenes, and copies with one token changed where we know it."""
    samples = scene_samples(6, tasks=("find", "compare"))
    dense = [[t.word for t in reason(s.scene, s.truth, np.random.default_rng(i))] for i, s in enumerate(samples)]
    pruned = [list(words) for words in dense]
    for words in pruned[:4]:
        words[words.index("see") + 1] = "nothing"  # a colour in the dense trace
    pruned[4].append("more")  # goes on where the dense one has ended
    return samples, dense, pruned


def test_kinds_at_the_first_difference(traces):
    samples, dense, pruned = traces
    found = first_divergences(dense, pruned, samples)
    assert found.equal.value == pytest.approx(1 / 6)
    assert found.steps.tolist() == [w.index("see") + 1 for w in dense[:4]] + [len(dense[4])]
    assert {kind: share.value for kind, share in found.at_kind.items()} == pytest.approx({"colour": 0.8, "end": 0.2})
    n_see = sum(words.count("see") for words in dense)
    assert found.all_kinds["colour"] == pytest.approx(n_see / sum(map(len, dense)))


def test_kinds_are_left_out_without_scenes_and_equal_traces_have_no_step(traces):
    samples, dense, pruned = traces
    unknown = [Sample(s.id, s.image, s.question) for s in samples]
    assert first_divergences(dense, pruned, unknown).at_kind == {}
    same = first_divergences(dense, dense, samples)
    assert same.equal.value == 1 and len(same.steps) == 0
    assert same.numbers()["median_first_difference"] is None


def test_which_example(traces):
    _, dense, pruned = traces
    assert example_number(dense, pruned) == 0
    assert example_number(dense[4:], pruned[4:]) == 0
    assert example_number(dense[5:] + dense[:1], pruned[5:] + pruned[:1]) == 1
    assert example_number(dense, dense) == 0
    assert example_number(dense, pruned, 3) == 3
    with pytest.raises(IndexError, match="sample 6 does not exist; there are 6"):
        example_number(dense, pruned, 6)


def test_the_strips_write_every_token_and_outline_the_first_difference(traces):
    _, dense, pruned = traces
    found = compare_tokens(dense[0], pruned[0])
    fig, bands = figures.new_page(figures.DOUBLE, strips_height(found))
    draw_strips(bands, found)
    for ax, tokens in zip(fig.axes, (dense[0], pruned[0]), strict=True):
        assert len(ax.texts) == len(tokens)
        outlined = [text.get_text() for text in ax.texts if text.get_bbox_patch().get_linewidth() > 1]
        assert outlined == [tokens[dense[0].index("see") + 1]]
