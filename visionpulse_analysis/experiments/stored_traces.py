"""Traces of a store in the place of a model that makes them: imported ones, or those of an earlier decode."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.traces import Trace, without_map
from visionpulse_analysis.traces.exchange import attention_definition
from visionpulse_analysis.traces.store import TraceStore


class StoredTraces:
    """The finished dense traces of a store, all of one model and one definition of attention.

    Stands where a notebook has a model: it has the same ``chosen_layer`` and ``weights_hash``. What needs the model
    itself (causal usage) or the truth (named objects) cannot be had from traces alone. Raises FileNotFoundError: there
    is no store; ValueError: it holds no finished dense trace, or traces that must not be pooled: of several models, or
    whose attention is defined in several ways.

    Parameters
    ----------
    path : str or Path
        Of the store; ``visionpulse import`` makes one of the paper authors' files.
    pruned : bool
        Keep the pruned traces as well, as ``pruned_traces``: for what compares them with dense ones.
    """

    def __init__(self, path: str | Path, *, pruned: bool = False) -> None:
        store = TraceStore(path)
        finished = store.finished_ids
        self.path, self.unfinished = Path(path), len(store) - len(finished)
        opened = [store[id] for id in finished]
        self.traces: list[Trace] = [trace for trace in opened if trace.meta.get("pruner") is None]
        self.pruned_traces = [trace for trace in opened if pruned and trace.meta.get("pruner") is not None]
        self.pruned = len(opened) - len(self.traces) - len(self.pruned_traces)
        if not self.traces:
            raise ValueError(f"{path} holds no finished dense trace; {self._left_out() or 'it is empty'}")
        every = [*self.traces, *self.pruned_traces]
        self._check_alike(every, "model", [str(trace.meta.get("model", "unknown")) for trace in every])
        self._check_alike(self.traces, "attention", [attention_definition(trace) for trace in self.traces])

    def _check_alike(self, traces: list[Trace], what: str, values: list[str]) -> None:
        for trace, value in zip(traces, values, strict=True):
            if value != values[0]:
                raise ValueError(
                    f"{self.path} holds traces whose {what} differs, which must not be pooled: "
                    f"{self.traces[0].meta.get('id')!r} has {values[0]!r}, {trace.meta.get('id')!r} has {value!r}; "
                    "put them into a store each"
                )

    def _left_out(self) -> str:
        parts = [f"{self.pruned} pruned"] * (self.pruned > 0) + [f"{self.unfinished} unfinished"] * (
            self.unfinished > 0
        )
        return f"{' and '.join(parts)} left out" if parts else ""

    @property
    def about(self) -> str:
        """What the traces are, and what is left out without a model, in one or two sentences."""
        first, left_out, beside = self.traces[0], self._left_out(), len(self.pruned_traces)
        return (
            f"{len(self.traces)} stored {'dense ' if beside else ''}trace{'s' * (len(self.traces) > 1)} of "
            f"{first.meta.get('model', 'unknown')}{f' and {beside} pruned' if beside else ''}"
            f"{f' ({left_out})' if left_out else ''}. No model is loaded, and what the images show is not known: what "
            "needs either (causal usage, anchors, kinds of token, named objects, right answers) is left out."
        )

    @property
    def weights_hash(self) -> str | None:
        """That of the model that made all of them; None where it is not known."""
        hashes = {trace.meta.get("model_hash") for trace in self.traces}
        return hashes.pop() if len(hashes) == 1 else None

    @property
    def samples(self) -> list[Sample]:
        """Picture and question of each trace; a plain grey picture where a trace has none."""
        return [
            Sample(str(trace.meta.get("id", number)), picture_of(trace), trace.question)
            for number, trace in enumerate(self.traces)
        ]

    @cached_property
    def layers(self) -> list[int]:
        """The layers that every trace has recorded."""
        return sorted(set.intersection(*(set(trace.layers) for trace in self.traces)))

    def chosen_layer(self, layer: int = -1) -> int:
        """The layer itself, or for -1 the only one that all traces recorded.

        Raises ValueError where a trace has not recorded it, or -1 could mean several.
        """
        if layer == -1 and len(self.layers) == 1:
            return self.layers[0]
        if layer not in self.layers:
            stated = "several layers, choose one" if layer == -1 and self.layers else f"not layer {layer}"
            raise ValueError(f"the traces of {self.path} have recorded {stated}; layers of all of them: {self.layers}")
        return layer


def picture_of(trace: Trace) -> np.ndarray:
    """The picture of a trace, or a plain grey one where it has none, or no map: uint8 [row_px, col_px, 3]."""
    if trace.images and without_map(trace) is None:
        return trace.images[0]
    rows, cols = trace.grid.shape()
    return np.full((16 * rows, 16 * cols, 3), 200, dtype=np.uint8)
