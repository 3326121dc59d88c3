"""One checker of values against annotations, for fields of dataclasses, sweeps' files and notebooks' cells."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from visionpulse_analysis._util.checks import NAMES, Interval, check_fields, checked, expected, fits

SHARE = Annotated[float, Interval(gt=0, le=1)]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None, float("nan")]),
        (float, [0, 0.5, np.float64(1)], [True, float("nan"), float("inf"), "1"]),
        (bool, [True, False], [0, 1, "True", None]),
        (str, ["", "a", np.str_("a")], [b"a", 1, None]),
        (int | None, [None, 1], [False, "None"]),
        (Literal["a", 1], ["a", np.str_("a"), 1], [True, "b", 1.0, np.ones(2)]),
        (Literal[1000], [500 + 500], [1000.0]),
        (list[int], [[1], (1, 2), np.arange(2), []], [1, "12", [1.5], [True]]),
        (tuple[float, ...], [[1], (0.5,)], [0.5, ["a"], [float("nan")]]),
        (list, [[1, "a"]], ["a", {}]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
        (SHARE, [1, 1e-9], [0, 1.1, True, None]),
        (SHARE | None, [None, 0.5], [2, "a"]),
        (Annotated[int | None, Interval(ge=0)], [None, 0], [-1, 0.5]),
        (tuple[SHARE, ...], [(0.5, 1)], [(0.5, 2)]),
        (Any, [object(), None], []),
    ],
)
def test_what_fits_an_annotation(kind, good, bad):
    assert [one for one in good if not fits(one, kind)] == []
    assert [one for one in bad if fits(one, kind)] == []


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        ({"gt": 0, "le": 1}, "in (0, 1]", [1, 0.1], [0, 1.1]),
        ({"ge": 0, "lt": 1}, "in [0, 1)", [0, 0.9], [-0.1, 1]),
        ({"ge": 1}, "at least 1", [1, 9], [0]),
        ({"gt": 1}, "above 1", [2], [1]),
        ({"le": 1}, "at most 1", [1, -9], [2]),
        ({"lt": 1}, "below 1", [0], [1]),
        ({"gt": 0, "le": 1, "what": "a share"}, "a share in (0, 1]", [1], [0]),
    ],
)
def test_an_interval_says_what_it_holds(bounds, words, inside, outside):
    interval = Interval(**bounds)
    assert str(interval) == words
    assert [value in interval for value in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (2, SHARE, "x must be in (0, 1], got 2"),
        ("a", SHARE, "x must be a finite number, got 'a'"),
        (2, SHARE | None, "x must be in (0, 1], got 2"),
        ("a", SHARE | None, "x must be a finite number or None, got 'a'"),
        (np.float64(2), SHARE, "x must be in (0, 1], got 2.0"),
        ((2.0,), tuple[SHARE, ...], "x must be a list, each a finite number in (0, 1], got (2.0,)"),
        ("c", Literal["a", "b"], "x must be 'a' or 'b', got 'c'"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(value, kind, said):
    with pytest.raises(ValueError) as caught:
        checked(value, kind, "x")
    assert str(caught.value) == said


def test_words_of_annotations():
    assert expected(int | None) == "a whole number or None"
    assert expected(list[int] | Literal["all"], NAMES) == "a list of int or 'all'"
    assert expected(list, NAMES) == "list"
    assert expected(dict[str, Any], NAMES) == "dict"


def test_fields_are_checked_and_numbers_become_python_s():
    @dataclass(frozen=True)
    class Given:
        n: Annotated[int, Interval(ge=1)] = 1
        share: SHARE | None = None

    for wrong, said in (({"n": 0}, "n must be at least 1, got 0"), ({"share": 2.0}, r"share must be in \(0, 1\], got")):
        with pytest.raises(ValueError, match=said):
            check_fields(Given(**wrong))
    given = Given(np.int64(2), np.float32(0.5))
    check_fields(given)
    assert (type(given.n), type(given.share)) == (int, float)
