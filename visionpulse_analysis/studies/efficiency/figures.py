"""The figures of what decoding costs, drawn through `visionpulse_analysis.figures`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from visionpulse_analysis import figures
from visionpulse_analysis.figures.style import GREY
from visionpulse_analysis.studies.efficiency.measure import Measurements

NAMES = {
    "stock": "library",
    "eager": "eager",
    "dense": "dense",
    "gathered_5": "gathered, 5 %",
    "reuse_5": "reused, 5 %",
}
RECORDED = {
    "plain": "plain",
    "one_layer": "one layer",
    "all_layers": "all layers",
    "all_heads": "all heads",
    "eager": "eager",
}


def efficiency_page(found: Measurements) -> Figure:
    """Make the headline: the time of a step, what bounds it, and what recording and batches cost."""
    fig, axes = figures.new_figure(figures.DOUBLE, 7.4, 3, 2)
    draw_context(axes[0, 0], found)
    draw_retention(axes[0, 1], found)
    draw_roofline(axes[1, 0], found)
    draw_recording(axes[1, 1], found)
    draw_memory(axes[2, 0], found)
    draw_batches(axes[2, 1], found)
    for letter, ax in zip("abcdef", axes.flat, strict=True):
        ax.set_title(letter, loc="left", x=-0.2, fontweight="bold")
        if ax.get_visible():
            figures.draw_legend(ax)
    return fig


def draw_context(ax: Axes, found: Measurements) -> Axes:
    """Draw the time of one step against the context, one row at a time."""
    steps = found.rows("decode").query("batch == 1")
    for variant, name in NAMES.items():
        own = steps.query(f"variant == '{variant}'").sort_values("visual_tokens")
        if len(own):
            figures.draw_line_band(ax, own.visual_tokens, own.step_ms, label=name, colour=_colour(variant))
    dense = steps.query("variant == 'dense'").sort_values("visual_tokens")
    figures.draw_line_band(ax, dense.visual_tokens, dense.limit_ms, label="limit, dense", colour=GREY, dashed=True)
    ax.set(xscale="log", yscale="log", xlabel="visual tokens", ylabel="time of a step (ms)")
    _name_ticks(ax, dense.visual_tokens)
    return ax


def draw_retention(ax: Axes, found: Measurements) -> Axes:
    """Draw the time of one step against the share of the patches that are read from the anchor on."""
    rows = found.rows("retention")
    gathered = rows.query("variant != 'stock'").sort_values("kept")
    figures.draw_line_band(ax, gathered.kept, gathered.step_ms, label="gathered", colour=_colour("gathered_5"))
    figures.draw_line_band(ax, gathered.kept, gathered.limit_ms, label="limit", colour=GREY, dashed=True)
    ax.set(xscale="log", xlabel="patches kept (share)", ylabel="time of a step (ms)", ylim=(0, None))
    ax.set_xticks([0.01, 0.05, 0.25, 1], ["1 %", "5 %", "25 %", "100 %"])
    ax.minorticks_off()
    return ax


def draw_roofline(ax: Axes, found: Measurements) -> Axes:
    """Draw the time of every measured step against the bytes that it must read, beside the measured bandwidth."""
    rows = found.rows("decode")
    for variant in ("stock", "dense", "gathered_5", "reuse_5"):
        own = rows[rows.variant == variant]
        ax.plot(own.bytes / 1e9, own.step_ms, "o", markersize=3.5, color=_colour(variant), label=NAMES[variant])
    ends = np.array([rows.bytes.min(), rows.bytes.max()]) / 1e9
    bandwidth = found.decode["bandwidth_gb_s"]
    figures.draw_line_band(ax, ends, 1e3 * ends / bandwidth, label=f"{bandwidth:.1f} GB/s", colour=GREY, dashed=True)
    ax.set(xscale="log", yscale="log", xlabel="must be read (GB)", ylabel="time of a step (ms)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    return ax


def draw_recording(ax: Axes, found: Measurements) -> Axes:
    """Draw what recording costs in time, relative to plain decoding of the same round."""
    _draw_bars(ax, found, "ratio_to_plain.median", "time (plain = 1)")
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    return ax


def draw_memory(ax: Axes, found: Measurements) -> Axes:
    """Draw the peak memory of a process that decodes once; nothing where it was not measured."""
    if found.rows("recording").peak_memory_mb.isna().all():
        ax.set_visible(False)
        return ax
    return _draw_bars(ax, found, "peak_memory_mb", "peak memory (GB)", scale=1e-3)


def draw_batches(ax: Axes, found: Measurements) -> Axes:
    """Draw samples per second against the batch size, from picture to trace."""
    rows = found.rows("batch")
    for number, tokens in enumerate(sorted(rows.visual_tokens.unique())):
        for recorded, name in ((False, f"{tokens} visual tokens"), (True, "recorded")):
            line = rows.query(f"visual_tokens == {tokens} and recorded == {recorded}").sort_values("batch")
            options = {"label": name, "colour": f"C{number}", "dashed": recorded}
            figures.draw_line_band(ax, line.batch, line.samples_per_second, **options)
    ax.set(xscale="log", xlabel="batch size", ylabel="samples per second", ylim=(0, None))
    _name_ticks(ax, rows.batch.unique())
    return ax


def _colour(variant: str) -> str:
    """The same in every panel."""
    return f"C{list(NAMES).index(variant)}"


def _draw_bars(ax: Axes, found: Measurements, column: str, ylabel: str, scale: float = 1.0) -> Axes:
    rows = found.rows("recording")
    tokens = sorted(rows.visual_tokens.unique())
    for number, count in enumerate(tokens):
        own = rows[rows.visual_tokens == count].set_index("variant").reindex(list(RECORDED))
        places = np.arange(len(RECORDED)) + 0.8 * ((number + 0.5) / len(tokens) - 0.5)
        heights = scale * own[column].astype(float).to_numpy()
        ax.bar(places, np.nan_to_num(heights), 0.8 / len(tokens), label=f"{count:,} visual tokens")
    ax.set_xticks(range(len(RECORDED)), list(RECORDED.values()), rotation=20)
    ax.set(ylabel=ylabel)
    return ax


def _name_ticks(ax: Axes, values) -> None:
    ax.set_xticks(list(values), [f"{value:,}" for value in values])
    ax.minorticks_off()
