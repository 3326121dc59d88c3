"""The page of what decoding costs, drawn through `visionpulse_analysis.figures`."""

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
# The same in every panel; dense is grey everywhere.
COLOURS = {variant: f"C{number}" for number, variant in enumerate(NAMES)} | {"dense": figures.METHODS["dense"].colour}
RECORDED = ("plain", "one_layer", "all_layers", "all_heads", "eager")


def efficiency_page(found: Measurements) -> Figure:
    """Make the headline: the time of a step, what bounds it, and what recording and batches cost."""
    fig, axes = figures.new_figure(figures.DOUBLE, 7.4, 3, 2)
    context, retention, roofline, recording, memory, batches = axes.flat
    _draw_context(context, found)
    _draw_retention(retention, found)
    _draw_roofline(roofline, found)
    _draw_recorded(recording, found, "ratio_to_plain.median", "time (plain = 1)")
    figures.draw_reference(recording, 1, "plain")
    if found.rows("recording").peak_memory_mb.isna().all():  # it was not measured
        memory.set_visible(False)
    else:
        _draw_recorded(memory, found, "peak_memory_mb", "peak memory (GB)", scale=1e-3)
    _draw_batches(batches, found)
    for ax in axes.flat:
        if ax.get_visible():
            figures.draw_legend(ax)
    figures.draw_letters(axes.flat)
    rounds = ", ".join(f"{n} ({panels})" for panels, n in _rounds(found).items())
    figures.draw_caption(fig, f"Medians over n rounds, n = {rounds}; no intervals. Limit: bytes read over bandwidth.")
    return fig


def _rounds(found: Measurements) -> dict[str, int]:
    """How many rounds each panel's medians are over."""
    parts = {"a, c": found.decode, "b": found.retention, "d, e": found.recording, "f": found.batch}
    return {panels: part["rounds"] for panels, part in parts.items() if "rounds" in part}


def _draw_context(ax: Axes, found: Measurements) -> None:
    """The time of one step against the context, one row at a time."""
    steps = found.rows("decode").query("batch == 1").sort_values("visual_tokens")
    for variant, name in NAMES.items():
        own = steps[steps.variant == variant]
        if len(own):
            figures.draw_line_band(ax, own.visual_tokens, own.step_ms, label=name, colour=COLOURS[variant])
    dense = steps[steps.variant == "dense"]
    figures.draw_line_band(ax, dense.visual_tokens, dense.limit_ms, label="limit, dense", colour=GREY, dashed=True)
    ax.set(xscale="log", yscale="log", xlabel="visual tokens", ylabel="time of a step (ms)")
    _name_ticks(ax, dense.visual_tokens)


def _draw_retention(ax: Axes, found: Measurements) -> None:
    """The time of one step against the share of the patches that are read from the anchor on."""
    rows = found.rows("retention").query("variant != 'stock'").sort_values("kept")
    figures.draw_line_band(ax, rows.kept, rows.step_ms, label="gathered", colour=COLOURS["gathered_5"])
    figures.draw_line_band(ax, rows.kept, rows.limit_ms, label="limit", colour=GREY, dashed=True)
    ax.set(xscale="log", xlabel="patches kept (share)", ylabel="time of a step (ms)", ylim=(0, None))
    ax.set_xticks([0.01, 0.05, 0.25, 1], ["1 %", "5 %", "25 %", "100 %"])
    ax.minorticks_off()


def _draw_roofline(ax: Axes, found: Measurements) -> None:
    """The time of every measured step against the bytes that it must read, beside the measured bandwidth."""
    rows, bandwidth = found.rows("decode"), found.decode["bandwidth_gb_s"]
    for variant in ("stock", "dense", "gathered_5", "reuse_5"):
        own = rows[rows.variant == variant]
        ax.plot(own.bytes / 1e9, own.step_ms, "o", markersize=3.5, color=COLOURS[variant], label=NAMES[variant])
    ends = np.array([rows.bytes.min(), rows.bytes.max()]) / 1e9
    figures.draw_line_band(ax, ends, 1e3 * ends / bandwidth, label=f"{bandwidth:.1f} GB/s", colour=GREY, dashed=True)
    ax.set(xscale="log", yscale="log", xlabel="must be read (GB)", ylabel="time of a step (ms)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())


def _draw_recorded(ax: Axes, found: Measurements, column: str, ylabel: str, scale: float = 1.0) -> None:
    """What recording costs, side by side for each number of visual tokens."""
    by_tokens = list(found.rows("recording").groupby("visual_tokens"))
    for number, (tokens, rows) in enumerate(by_tokens):
        heights = scale * rows.set_index("variant")[column].astype(float).reindex(list(RECORDED)).to_numpy()
        places = np.arange(len(RECORDED)) + 0.8 * ((number + 0.5) / len(by_tokens) - 0.5)
        ax.bar(places, np.nan_to_num(heights), 0.8 / len(by_tokens), label=f"{tokens:,} visual tokens")
    ax.set_xticks(range(len(RECORDED)), [name.replace("_", " ") for name in RECORDED], rotation=20)
    ax.set(ylabel=ylabel)


def _draw_batches(ax: Axes, found: Measurements) -> None:
    """Samples per second against the batch size, from picture to trace."""
    rows = found.rows("batch").sort_values("batch")
    for number, (tokens, of_size) in enumerate(rows.groupby("visual_tokens")):
        for recorded, line in of_size.groupby("recorded"):
            label, colour = "recorded" if recorded else f"{tokens} visual tokens", f"C{number}"
            speed = line.samples_per_second
            figures.draw_line_band(ax, line.batch, speed, label=label, colour=colour, dashed=bool(recorded))
    ax.set(xscale="log", xlabel="batch size", ylabel="samples per second", ylim=(0, None))
    _name_ticks(ax, rows.batch.unique())


def _name_ticks(ax: Axes, values) -> None:
    ax.set_xticks(list(values), [f"{value:,}" for value in values])
    ax.minorticks_off()
