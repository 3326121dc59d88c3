"""Text of users, models and files inside HTML stays text."""

from html.parser import HTMLParser

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from visionpulse_analysis.explorer.page import page
from visionpulse_analysis.explorer.payload import pack
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.traces import Trace, create_trace

PIECES = [
    "<script>",
    "</script>",
    "<!--",
    "-->",
    "]]>",
    "<img src=x onerror=alert(1)>",
    "'",
    '"',
    "&lt;",
    "\u2028",
    "</title>",
    "{}",
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=6).map("".join)


class Elements(HTMLParser):
    """Every element with the names of its attributes, and every comment, in order; not the text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}",))

    def handle_comment(self, data):
        self.found.append(("comment",))


def made(text: str) -> Trace:
    rows = np.full((2, 1, 4), 0.1)
    return create_trace(
        **{"attention": rows, "mass": rows.sum(-1), "token_ids": [1, 2], "logprobs": [-1, -2], "layers": [5]},
        tokens=[text, text],
        grid=PatchGrid.from_grid(range(4), 2, 2, [(16, 16)]),
        prompt_tokens=[text],
        meta={"id": text, "question": text, "model": text, "pruner": {"name": text, text: text}, "finished": text},
    )


@settings(deadline=None, max_examples=60)
@given(hostile)
def test_hostile_text_adds_no_element_and_no_attribute(text):
    trace, plain = made(text), made("plain")
    assert Elements(trace._repr_html_()).found == Elements(plain._repr_html_()).found
    assert Elements(page(pack(trace), view=text)).found == Elements(page(pack(plain), view="plain")).found


def test_the_name_of_a_model_is_text_too(vlm):
    from visionpulse_analysis.models.loading import VLM

    named = VLM("<script>alert(1)</script>", vlm.model, vlm.tokenizer, vlm.image_processor)
    assert Elements(named._repr_html_()).found == Elements(vlm._repr_html_()).found
