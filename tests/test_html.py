"""How stores and pruners show themselves in a notebook; traces and models: test_traces.py, test_models.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import ClassVar

import numpy as np
import pytest

import visionpulse_analysis as vpa
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.pruners.base import KNOWN, Pruner

EVIL = "<script>alert('x')</script>"


def trace(id: str, steps: int = 2, tokens: list[str] | None = None, **meta) -> vpa.Trace:
    return vpa.create_trace(
        attention=np.full((steps, 1, 4), 0.1),
        mass=np.full((steps, 1), 0.4),
        tokens=tokens or ["a"] * steps,
        token_ids=[1] * steps,
        logprobs=[-0.1] * steps,
        grid=PatchGrid.from_grid(range(4), rows=2, cols=2, image_sizes=[(16, 16)]),
        layers=[5],
        meta={"id": id, "question": EVIL, **meta},
    )


def rows(html: str) -> list[list[str]]:
    """The cells of each row of the table but the first."""
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)[1:]]


def known(html: str) -> dict[str, str]:
    """The table of one thing: what stands beside each name."""
    return dict(re.findall(r"<tr><th>(.*?)</th><td[^>]*>(.*?)</td></tr>", html))


@pytest.fixture
def store(tmp_path):
    return vpa.TraceStore(tmp_path / "traces", mode="a")


def test_a_store_lists_its_traces_and_escapes_every_text(store):
    store.add(trace("one", steps=3, model="m", pruner={"name": "uniform", "budget": 0.1}))
    store.add(trace("two"))
    html = store._repr_html_()
    question = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
    assert rows(html) == [
        ["one", question, "m", "uniform", "3", "whole"],
        ["two", question, "", "none (dense)", "2", "whole"],
    ]
    assert "2 traces" in html and "<script" not in html


def test_tokens_of_any_kind_stay_small_and_to_themselves():
    odd = ["a\nb\t", "", "\x1b[31m", "x" * 5000, "\N{RIGHT-TO-LEFT OVERRIDE}abc", "</code>", "' onclick='"]
    html = trace("one", steps=len(odd), tokens=odd)._repr_html_()
    shown = re.findall(r"<code title='([^']*)' style='([^']*)'>([^<]*)</code>", html)
    assert [text for _, _, text in shown] == [
        "a↵b⇥",
        "∅",
        "\N{REPLACEMENT CHARACTER}[31m",
        "x" * 60 + "…",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc",  # turns its own letters around, not those of its neighbours:
        "&lt;/code&gt;",
        "&#x27; onclick=&#x27;",
    ]
    assert all("unicode-bidi:isolate" in style for _, style, _ in shown)
    assert html.startswith("<div class='mathjax_ignore'")  # a question about $5 or $6 is no formula


def test_a_damaged_trace_is_named_and_does_not_hide_the_others(store):
    store.add(trace("good"))
    store.add(trace("bad"))
    (store.path / "bad" / "zarr.json").write_text("{")
    (bad, good) = rows(store._repr_html_())
    assert good[4:] == ["2", "whole"] and bad[0] == "bad" and "bad/zarr.json" in bad[5]


def test_a_large_store_shows_twenty_traces_and_says_so(store, monkeypatch):
    for number in range(23):
        store.add(trace(f"t{number:02d}"))
    opened = []
    monkeypatch.setattr(vpa.TraceStore, "__getitem__", lambda self, id: opened.append(id) or trace(id))
    html = store._repr_html_()
    assert len(rows(html)) == len(opened) == 20 and "and 3 more" in html
    assert "0 traces" in vpa.TraceStore(store.path.with_name("empty"), mode="a")._repr_html_()


def test_a_pruner_says_what_it_does_with_which_parameters():
    html = vpa.VisionPulse(budget=0.05)._repr_html_()
    assert (known(html)["pruner"], known(html)["budget"]) == ("visionpulse", "0.05")
    assert str(vpa.VisionPulse.__doc__).splitlines()[0] in html

    @dataclass(frozen=True)
    class Odd(Pruner):
        """Drops <b>nothing</b>."""

        name: ClassVar[str] = "odd"
        text: str = EVIL

    try:
        html = Odd()._repr_html_()
    finally:
        del KNOWN["odd"]
    assert "<script" not in html and "&lt;b&gt;nothing" in html


def test_two_pruners_at_once_and_recorded_ones_are_written_as_they_are_made():
    both = vpa.make_pruner("fastv(budget=0.2) | visionpulse(budget=0.1)")
    shown = known(both._repr_html_())
    assert shown == {"pruner": escape(both.to_dict()["name"]), "does": shown["does"]} and "`" not in shown["does"]
    recorded = known(trace("one", pruner={"name": "fastv", "budget": 0.2, "rope": True})._repr_html_())
    assert recorded["pruner"] == "fastv(budget=0.2, rope=True)"
    assert known(trace("one")._repr_html_())["pruner"] == "none (dense)"
