"""The measures of the house that CONTRIBUTING.md promises, and its pictures, which are drawn from the code."""

import re
from pathlib import Path

import house
import pytest
import walks

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_sixteen_rooms_nine_floors_no_circle():
    found = house.measure()
    assert len(found.root) <= 16 and found.circles == [] and len(found.floors) <= 9


@pytest.mark.parametrize(
    ("imports", "circles", "floors"),
    [
        ({"a": "b", "b": "c", "c": ""}, [], [["c"], ["b"], ["a"]]),
        ({"a": "b", "b": "c", "c": "a", "d": "a"}, ["a", "b", "c"], []),
    ],
)
def test_circles_and_floors_are_seen(tmp_path, imports, circles, floors):
    package = tmp_path / "visionpulse_analysis"
    for room, other in imports.items():
        (package / room).mkdir(parents=True)
        inside = f"    from visionpulse_analysis.{other} import x\n" if other else "    pass\n"
        (package / room / "m.py").write_text(f"def f():  # a comment\n{inside}")
    found = house.measure(package)
    assert (found.circles, found.floors, found.lines) == (circles, floors, 2 * len(imports))
    assert found.comments == 0.5


def test_the_picture_of_the_rooms_is_that_of_the_code():
    assert house.picture(house.measure()) in PAGE, "put what `python tests/house.py` prints into CONTRIBUTING.md"


def test_the_walks_are_those_that_a_decode_takes():
    for title, found in walks.walks().items():
        assert found and walks.drawn(found) in PAGE, f"{title}: put what `python tests/walks.py` prints there"


def test_every_room_is_told_on_the_page():
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    rooms = {name.removesuffix(".py") for name in house.measure().root} - {"__init__", "__main__"}
    assert rooms == told
