"""What a reader can do in the explorer and what must follow: one list, for the offline page and for JupyterLab.

Every action begins at `START` of the traces of `everything`; `agrees` then compares all that is shown with them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from made_traces import AWKWARD, SENTENCE, make_trace
from open_page import Explored, shows, word_after

from visionpulse_analysis.explorer.pairing import align
from visionpulse_analysis.traces import Trace

START = "step=15&layer=3&head=1"
ACTIONS: list[Callable[[Explored, tuple[Trace, ...]], None]] = []


def action(does: Callable) -> Callable:
    """Enter a function ``(view, traces)`` into the list."""
    ACTIONS.append(does)
    return does


def everything() -> tuple[Trace, ...]:
    """Dense and two pruned traces: awkward tokens, three layers, two heads, two images, partings at steps 20 and 10."""
    tokens = [*["<think>", *AWKWARD, *(SENTENCE * 3)][:38], "</think>", "yes"]
    alike = {"heads": (1, 4), "images": 2}
    longer = [*tokens[:20], "hmm", *tokens[22:26], "wait", "a", "moment", *tokens[26:]]
    shorter = [*tokens[:10], "hmm", *tokens[15:]]
    made = {
        "dense": make_trace(tokens=tokens, steps=len(tokens), **alike),
        "longer": make_trace(tokens=longer, steps=len(longer), seed=1, budget=0.1, **alike),
        "shorter": make_trace(tokens=shorter, steps=len(shorter), seed=2, budget=0.3, **alike),
    }
    return tuple(trace.with_meta({**trace.meta, "id": name}) for name, trace in made.items())


def attention(trace: Trace, view: dict) -> np.ndarray:
    """float64 [step, patch] of the layer and head shown."""
    return _chosen(trace.attention, view)


def _chosen(values, view: dict) -> np.ndarray:
    for axis in ("layer", "head"):
        values = values.astype(float).mean(axis) if view[axis] == "mean" else values.sel({axis: view[axis]})
    return values.values.astype(float)


def steps_of(traces: tuple[Trace, ...], view: dict) -> list[int]:
    """The step of each shown trace in the column shown, -1 for none."""
    aligned = align(*(traces[t].token_ids.tolist() for t in (0, view["beside"])))
    return [aligned.first[view["column"]], aligned.second[view["column"]]]


def sinks(traces: tuple[Trace, ...], view: dict) -> np.ndarray:
    """bool [patch]: judged on the first trace, as the help says."""
    medians = np.median(attention(traces[0], view), axis=0)
    return medians > 10 * np.median(medians)


def agrees(view: Explored, traces: tuple[Trace, ...]) -> None:
    """Everything shown, in words, colours and under the pointer, is what the traces hold at the view shown."""
    now = view.view
    shown, steps = (traces[0], traces[now["beside"]]), steps_of(traces, now)
    lines = [line.inner_text() for line in view.page.locator(".vp-now p").all()]
    for trace, step, line in zip(shown, steps, lines, strict=True):
        if step < 0:
            assert "no token aligned here" in line
            continue
        assert f"step {step} of {len(trace) - 1}" in line and seen(trace.tokens[step]) in line
        assert shows(word_after(line, "mass "), float(_chosen(trace.mass, now)[step]))
        assert shows(word_after(line, "probability "), float(np.exp(trace.logprobs[step])))
        assert trace.kept is None or f"kept {int(trace.kept[step].sum())} of 128 patches" in line
    marked = [token.get_attribute("data-step") for token in view.page.locator('.vp-strip [aria-selected="true"]').all()]
    assert marked == [str(step) for step in steps if step >= 0]

    maps = [attention(trace, now) for trace in shown]
    values, drawn = value_of(maps, steps, now["mode"]), view.look("e.values && [...e.values]")
    assert view.page.locator('[data-ref="veil"]').is_visible() == (values is None)
    layer = "mean of 3 layers" if now["layer"] == "mean" else f"layer {now['layer']}"
    head = "mean of 2 heads" if now["head"] == "mean" else f"head {now['head']}"
    assert f"; {layer}, {head}; " in view.text("unit")
    if values is None:
        assert drawn is None
        return
    assert np.allclose(drawn, values, rtol=3e-7, atol=1e-7 * np.abs(maps[0]).max())  # float32
    left = ~sinks(traces, now) if now["sinks"] == "masked" else np.full(len(values), True)
    if now["scale"] == "step":
        most = np.abs(values[left]).max()
    elif now["mode"] == 2:
        aligned = align(*(trace.token_ids.tolist() for trace in shown))
        pairs = [(a, b) for a, b in zip(aligned.first, aligned.second, strict=True) if a >= 0 and b >= 0]
        most = max(np.abs(maps[1][b] - maps[0][a])[left].max() for a, b in pairs)
    else:
        most = max(each[:, left].max() for each in maps)
    assert shows(view.text("high").removeprefix("+"), most)
    for row, col in ((2, 3), (7, 0)):
        view.page.mouse.move(*view.point(row, col))
        told, value = view.text("value"), values[64 * now["panel"] + 8 * row + col]
        assert told.startswith(f"Row {row}, column {col}: attention ") and "of the softmax row" in told
        assert shows(word_after(told, "attention ").removeprefix("+"), value)
    view.away()


def value_of(maps: list[np.ndarray], steps: list[int], mode: int) -> np.ndarray | None:
    """float64 [patch]: what the image shows; None for a difference at a token that one trace lacks."""
    if mode < 2:
        return maps[mode][steps[mode]]
    return None if min(steps) < 0 else maps[1][steps[1]] - maps[0][steps[0]]


def seen(token: str) -> str:
    """A token as it is shown: blanks and controls by a sign."""
    shown = token.replace("\n", "↵").replace("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{REPLACEMENT CHARACTER}")
    return shown.replace("\x1b", "\N{REPLACEMENT CHARACTER}") or "∅"
