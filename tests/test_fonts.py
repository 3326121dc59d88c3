"""Characters that DejaVu Sans lacks: drawn in a font that has them, or one sentence."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from io import BytesIO

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import fontManager

from visionpulse_analysis import figures
from visionpulse_analysis.figures import new_figure

fonts = import_module("visionpulse_analysis.figures.style")  # the package has a function of that name
MANY = "你好世界これは日本語한국어입니다🙂🚗🎉"


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine that has the fonts of matplotlib only."""
    monkeypatch.setattr(fontManager, "ttflist", [f for f in fontManager.ttflist if "mpl-data" in f.fname])
    fonts._families.clear()
    fonts._told().clear()
    yield
    fonts._families.clear()
    fonts._told().clear()


def a_font(path, letters: str, name: str) -> None:
    """A font whose letters are triangles."""
    builder, pen = FontBuilder(1000, isTTF=True), TTGlyphPen(None)
    for place in ((0, 0), (500, 900), (900, 0)):
        (pen.lineTo if place != (0, 0) else pen.moveTo)(place)
    pen.closePath()
    triangle, names = pen.glyph(), [f"u{ord(letter):x}" for letter in letters]
    order = [".notdef", *names]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): glyph for letter, glyph in zip(letters, names, strict=True)})
    builder.setupGlyf(dict.fromkeys(order, triangle))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    builder.setupPost()
    builder.save(path)


def drawn(title: str) -> np.ndarray:
    fig, ax = new_figure()
    ax.set_title(title, parse_math=False)
    ax.set_axis_off()
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def test_without_a_font_one_sentence_says_so(no_fonts, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(2):
            fig, ax = new_figure()
            ax.set_title(MANY)
            ax.set_xlabel("مرحبا \u0915\u094d\u0937")
            for kind in ("png", "svg", "pdf"):
                fig.savefig(BytesIO(), format=kind, bbox_inches="tight")
            assert fig._repr_png_()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("no font of this machine has ")
    assert figures.token_label("你 a") == "□ a"


def test_a_font_that_has_them_is_taken(no_fonts, tmp_path, caplog):
    boxes, letters = drawn("你好"), drawn("abc")
    caplog.clear()
    a_font(tmp_path / "a.ttf", "你好", "Triangles A")
    a_font(tmp_path / "b.ttf", "好🙂", "Triangles B")
    for name in "ab":
        fontManager.addfont(tmp_path / f"{name}.ttf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = drawn("你好")
        assert fonts.families_for("a 你🙂 好") == ["DejaVu Sans", "Triangles A", "Triangles B"]
        assert drawn("你🙂").any()
    assert not np.array_equal(found, boxes) and not caplog.records
    assert np.array_equal(drawn("abc"), letters)
    assert figures.token_label(" 你好") == "你好"
    assert fonts.families_for("plain é →") == ["DejaVu Sans"]


def test_labels_are_as_wide_as_they_are_drawn(no_fonts, tmp_path):
    from visionpulse_analysis.figures.tokens import label_width

    a_font(tmp_path / "a.ttf", "你好", "Triangles A")
    fontManager.addfont(tmp_path / "a.ttf")
    assert label_width("你好", 10) == pytest.approx(20, rel=0.1)
