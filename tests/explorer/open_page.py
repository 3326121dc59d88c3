"""What the tests do with an explorer that is open in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def shows(text: str, value: float) -> bool:
    """Whether a shown number is `value` rounded to four digits (either way at a tie)."""
    shown = float(text.replace("\N{MINUS SIGN}", "-"))
    unit = 10.0 ** (np.floor(np.log10(abs(value))) - 3) if value else 0.0
    return abs(shown - value) <= 0.5000001 * unit


def word_after(text: str, before: str) -> str:
    return text.split(before)[1].split()[0]


class Explored:
    """A saved explorer, open in the browser."""

    def __init__(self, page, path: Path) -> None:
        self.page, self.url = page, path.as_uri()
        self.complaints: list[str] = []  # errors that the page logged

    def open(self, link: str = "") -> Explored:
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}#{link}" if link else self.url)
        self.page.wait_for_selector("[data-ready]")
        return self

    def away(self) -> None:
        """Take the pointer off everything."""
        self.page.mouse.move(5, 5)

    def show(self, link: str) -> None:
        """Bring the open explorer to a link, and the keyboard to it; a widget in a notebook can do this too."""
        self.away()
        self.page.locator(".vp-brand").click()
        self.look(f"e.follow({link!r})")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, name: str) -> str:
        return self.page.locator(f'[data-ref="{name}"]').inner_text()

    def look(self, expression: str):
        """Evaluate JavaScript with `e` = the explorer in the page, and three of its parts by name."""
        with_parts = f"(e, [tokens, curve, steps, stage] = e.parts) => {expression}"
        return self.page.evaluate(f"({with_parts})(document.querySelector('.vp-explorer').explorer)")

    def settled(self, expression: str, value) -> None:
        """Wait until an expression of the explorer has a value (a layer may have to be decoded first)."""
        for _ in range(600):
            found = self.look(expression)
            if found == value:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{expression} is {found!r}, expected {value!r}")

    def pixels(self, name: str) -> np.ndarray:
        """uint8 [patch, 4]: colour and opacity of a canvas, 3 pixels inside the corner of each patch."""
        return np.array(
            self.look(
                f"((c) => {{ const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                " const at = (x, y) => 4 * ((y + 3) * c.width + x + 3);"
                " return stage.rects.map(([, x, y]) => [...all.slice(at(x, y), at(x, y) + 4)]); })"
                f"(e.ref.{name})"
            )
        )

    @property
    def view(self) -> dict:
        return self.look("({...e.view})")

    def heat(self) -> str:
        """What the heat canvas holds, as a PNG data URL."""
        return self.look("e.ref.heat.toDataURL()")

    def point(self, row: float, col: float, rows: int = 8, cols: int = 8) -> tuple[float, float]:
        """Page coordinates of the middle of a patch, in sight."""
        stage = self.page.locator('[data-ref="stage"]')
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        return box["x"] + (col + 0.5) * box["width"] / cols, box["y"] + (row + 0.5) * box["height"] / rows
