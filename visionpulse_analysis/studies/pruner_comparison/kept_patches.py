"""What each pruner keeps of one image, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from visionpulse_analysis import figures
from visionpulse_analysis.experiments.collect import collect
from visionpulse_analysis.experiments.conditions import kept_by_layer
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.studies.frontier.figures import kept_of
from visionpulse_analysis.studies.pruner_comparison.measure import retention
from visionpulse_analysis.traces import Trace, frame_labels, frame_pictures

FEWEST, COLUMNS = 3, 7  # kept sets beside one another
STEPS = 4  # rows of kept sets, at most
KEY = "Bright: what the last layer sees at that step. % kept: mean over the steps and the layers that a method acts on."


def decode_one(
    vlm: VLM, sample: Sample, arms: Mapping[str, Mapping[str, Pruner]], max_new_tokens: int
) -> dict[str, Trace]:
    """One sample under one arm of every rival, the first that ``arms`` gives it."""
    traces = {}
    for label, group in arms.items():
        pruner = next(iter(group.values()))
        [traces[label]] = collect(vlm, [sample], pruner=pruner, layers="none", max_new_tokens=max_new_tokens)
    return traces


def shown_steps(traces: Mapping[str, Trace]) -> list[int]:
    """Up to four steps, evenly spaced over those that all traces reach, the first pruned one first.

    Raises ValueError where no trace has a step after prefill.
    """
    ends = [len(trace) - 1 for trace in traces.values()]
    if max(ends) < 1:
        raise ValueError("every trace ends before any pruned step; ask for more tokens or another question")
    last = max(min(ends), min(STEPS, max(ends)))  # one trace that ends at once does not hide what the others do
    return np.unique(np.linspace(1, last, STEPS).round().astype(int)).tolist()


def kept_share(trace: Trace) -> float | None:
    """The :func:`retention` of one trace; 1 where dense, None for a pruned one without a step after prefill."""
    shares = kept_by_layer(trace)
    if trace.kept is not None and not len(shares):
        return None
    return retention(shares, (trace.meta["pruner"] or {}).get("name", ""), len(shares))


def kept_page(traces: Mapping[str, Trace], steps: Sequence[int], panel: int = 0) -> Figure:
    """Draw what every pruner keeps at some steps: pruners side by side, steps below one another.

    Each is titled with the share that its trace keeps. Nothing is drawn where a trace has ended before that step. Of
    several images or frames, ``panel`` is shown.
    """
    labels = list(traces)
    columns = min(COLUMNS, max(FEWEST, len(labels)))
    groups = [labels[start : start + columns] for start in range(0, len(labels), columns)]
    shown = traces[labels[0]]
    frames = np.asarray(shown.grid.frames)
    pictures, note = frame_pictures(shown)
    picture, (image, frame) = pictures[panel], frames[panel, :2].tolist()
    if picture is None:
        raise ValueError(f"the traces cannot be drawn over the picture that was asked about: {note}")
    tall, wide = picture.shape[:2]
    height = (figures.DOUBLE / columns * tall / wide + 0.08) * len(steps) + 0.3
    fig, parts = figures.new_page(figures.DOUBLE, [height] * (len(groups) - 1) + [height + 0.15])
    for part, group in zip(parts, groups, strict=True):
        with figures.style():
            panels = part.subplots(len(steps), columns, squeeze=False)
            for column in range(len(group), columns):
                for ax in panels[:, column]:
                    ax.set_axis_off()
            for ax, label in zip(panels[0], group, strict=False):
                name, share = label.replace(" | ", " |\n").replace(", ", ",\n"), kept_share(traces[label])
                ax.set_title(name if share is None else f"{name}\n{100 * share:.1f} % kept", parse_math=False)
        for row, step in enumerate(steps):
            for ax, label in zip(panels[row], group, strict=False):
                trace = traces[label]
                if step >= len(trace):
                    ax.text(0.5, 0.5, "ended", ha="center", va="center", transform=ax.transAxes)
                    ax.set(xticks=[], yticks=[])
                    ax.spines[:].set_visible(False)
                    continue
                figures.draw_kept(ax, picture, trace.grid.to_map(kept_of(trace)[step], image, frame))
            where = f"{frame_labels(shown)[panel].lower()}, " if len(frames) > 1 else ""
            panels[row, 0].set_ylabel(f"{where}step {step}", fontsize=8)
    with figures.style():
        parts[-1].supxlabel(KEY, fontsize=7)
    return fig
