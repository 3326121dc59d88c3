"""Rules that judge answers: what their sources publish, and slow independent statements of the same."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from visionpulse_analysis.experiments.judging import (
    JUDGES,
    LANGUAGE_MODEL,
    Reference,
    anls,
    choice,
    chosen,
    exact,
    relaxed,
    words,
)
from visionpulse_analysis.testbed.scenes.questions import Question
from visionpulse_analysis.testbed.scenes.truth import answer_is_right

RED_BLUE = {"A": "red", "B": "blue", "C": "light blue"}


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("105", ["100"], 1),
        ("95", ["100"], 1),
        ("105.1", ["100"], 0),
        ("-105", ["-100"], 1),
        ("-100", ["100"], 0),
        ("5%", ["0.05"], 1),
        ("5 %", ["5%"], 1),
        ("5", ["5%"], 0),  # a percent sign divides by a hundred: this is 500 %
        ("1e3", ["1000"], 1),
        ("1,000", ["1000"], 0),  # no number to the published rule, and another text
        ("1,000", ["1,000"], 1),
        ("5 apples", ["5"], 0),
        ("Yes", ["yes"], 1),
        ("yes.", ["yes"], 0),
        (" yes \n", ["Yes"], 1),
        ("", ["yes"], 0),
        ("%", ["5"], 0),
        ("0", ["0"], 1),
        ("0.0", ["0"], 0),
        ("0.001", ["0"], 0),
        ("2014", ["7", "2014"], 1),
        ("nan", ["nan"], 1),
        ("nan", ["3"], 0),
        ("inf", ["3"], 0),
        ("٢٠", ["20"], 1),  # digits are digits in every script
        ("Россия", ["россия"], 1),
    ],
)
def test_relaxed_accuracy_is_that_of_chartqa(prediction, references, score):
    assert relaxed(prediction, references) == score


def test_relaxed_accuracy_on_numbers_equals_exact_arithmetic():
    rng = np.random.default_rng(0)
    for wanted, ratio in zip(rng.integers(1, 10**6, 200), rng.integers(900, 1100, 200), strict=True):
        said = Fraction(int(wanted) * int(ratio), 1000)
        if abs(Fraction(int(ratio), 1000) - 1) == Fraction(5, 100):
            continue  # on the edge, binary fractions decide
        inside = abs(said - int(wanted)) <= Fraction(5, 100) * int(wanted)
        assert relaxed(str(float(said)), [str(wanted)]) == inside


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("The Coca", 0), ("CocaCola", 8 / 9), ("Coca cola", 1), ("Cola", 0), ("Cat", 0), ("", 0)],
)
def test_anls_of_the_example_of_its_authors(prediction, score):
    assert anls(prediction, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(score)


def edits(first, second):
    """Levenshtein's distance as it is defined."""

    @cache
    def between(i, j):
        if i == 0 or j == 0:
            return i + j
        same = first[i - 1] == second[j - 1]
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (not same))

    return between(len(first), len(second))


def test_anls_equals_its_definition():
    rng = np.random.default_rng(1)
    for _ in range(200):
        first, second = ("".join(rng.choice(list("abñ東"), rng.integers(1, 9))) for _ in range(2))
        wanted = 1 - edits(first, second) / max(len(first), len(second))
        assert anls(first, [second]) == (wanted if wanted >= 0.5 else 0)
        assert anls(first, [second], threshold=0) == wanted
        assert anls(first, [second, first]) == 1


def test_anls_does_not_see_capitals_and_spaces():
    assert anls("  NEW\n york ", ["New York"]) == 1
    assert anls("ab", ["ac"]) == 0.5, "at the threshold itself the similarity counts"
    assert anls("", [" "]) == 1


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("B. blue", "B"),
        ("B: blue", "B"),
        ("The answer is A", "A"),
        ("The answer is A.", "A"),
        ("Answer: (A)", "A"),
        (r"$\boxed{C}$", "C"),
        (r"\boxed{C}", "C"),
        ("red", "A"),
        ("It is red.", "A"),
        ("Blue.", "B"),  # the text of B, also inside that of C
        ("light blue", "C"),
        ("It is light blue", None),  # blue and light blue both stand there
        ("A or B", None),
        ("A thing that has many colours at once", None),
        ("D", None),
        ("b", None),
        ("", None),
        ("   \n", None),
        ("答案是B", "B"),
        ("答案：Ｂ。", "B"),  # noqa: RUF001
        ("答案是B。因为柱子最高", "B"),
        ("الجواب هو B", "B"),
        ("उत्तर B है", "B"),
        ("Éric", None),
        ("Aérien", None),
        ("D’Artagnan", None),  # noqa: RUF001
    ],
)
def test_the_option_chosen(prediction, letter):
    assert chosen(prediction, RED_BLUE) == letter
    for right in RED_BLUE:
        assert choice(prediction, [right], RED_BLUE) == (right == letter)


def test_options_in_any_script():
    options = {"A": "красный", "B": "青", "C": ""}
    assert [chosen(said, options) for said in ("Красный", "青い", "C", "")] == ["A", "B", "C", None]


def test_a_long_text_that_names_an_option_in_passing_chooses_nothing():
    assert chosen("the red car stands at the left of the picture", RED_BLUE) is None


def test_an_option_inside_another_is_chosen_by_its_whole_text():
    numbers = {"A": "1", "B": "10", "C": "100"}
    assert [chosen(said, numbers) for said in ("1", "10", "100", "10.")] == ["A", "B", "C", "B"]


def test_exact_and_words():
    assert (exact(" Two Dogs", ["two dogs"]), exact("two  dogs", ["two dogs"]), exact("", ["x"])) == (1, 0, 0)
    assert exact("b", ["a", "B"]) == 1
    for said in ("two dogs", " two\ndogs ", "Two dogs", "two", ""):
        assert words(said, ["two dogs"]) == answer_is_right(Question("", "", "two dogs", ()), said)


@pytest.mark.parametrize("judge", [words, exact, relaxed, anls])
@pytest.mark.parametrize("references", [[], "text"])
def test_no_reference_is_refused(judge, references):
    with pytest.raises(ValueError, match="expected one or more right answers in a list"):
        judge("x", references)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="the right option is 'D', but the options are A, B, C"):
        choice("A", ["D"], RED_BLUE)
    with pytest.raises(ValueError, match="options must be named by capital letters, got 'a'"):
        choice("A", ["a"], {"a": "red"})
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        relaxed("1", ["1"], tolerance=float("nan"))
    with pytest.raises(ValueError, match=r"threshold must lie in 0\.\.1"):
        anls("1", ["1"], threshold=2)
    with pytest.raises(ValueError, match=r"no judge 'fuzzy'; known: words, exact, .*, language model"):
        Reference("fuzzy", ("x",))
    with pytest.raises(ValueError, match="the right option is 'B', but the options are none"):
        Reference("choice", ("B",))


def test_a_reference_judges_by_its_rule():
    for name, judge in JUDGES.items():
        if name != "choice":
            assert Reference(name, ("New York",)).score("new york") == judge("new york", ["New York"])
    assert Reference("choice", ("B",), RED_BLUE).score("(B)") == 1
    assert Reference(LANGUAGE_MODEL, ()).score("anything") is None
