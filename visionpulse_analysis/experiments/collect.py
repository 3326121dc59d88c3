"""Decode a study's samples once and keep the traces, under a hash of everything that they depend on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionpulse_analysis import decoding
from visionpulse_analysis._util.files import cache_folder
from visionpulse_analysis._util.ledger import note
from visionpulse_analysis._util.progress import bar
from visionpulse_analysis.attention import Execution
from visionpulse_analysis.decoding import decode, end_ids
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.experiments.cache import (
    CHANGED,
    folder_of_this_process,
    generators,
    is_whole,
    part_of_key,
    say_once,
    seal,
    state_of,
)
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.models.families import PromptOptions
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.traces import Trace, traces_hash
from visionpulse_analysis.traces.quantities import quantities_of
from visionpulse_analysis.traces.store import TraceStore

__all__ = ["collect", "key_of", "traces_hash"]


def collect(
    vlm: VLM,
    samples: Sequence[Sample],
    *,
    pruner: Pruner | None = None,
    seed: int = 0,
    sample: Sampling | None = None,
    layers: Any = "all",
    heads: Any = "mean",
    execution: Execution = "masked",
    max_new_tokens: int = 160,
    batch_size: int = 32,
    prompt_options: PromptOptions | Mapping[str, Any] | None = None,
    record: Sequence[str] = (),
    progress: bool | None = None,
) -> list[Trace]:
    """Decode every sample, or read the traces of an earlier run with the same inputs.

    The key is a hash over what runs: the weights as they are now, hooks and configurations, every prompt as the model
    sees it, every option of the decode, the loaded code of `decode` and of the pruner with all that they reach, and the
    settings of the process. What a change touches is decoded again; what cannot be told is not kept, and neither is
    what changed while it ran (see `kept`). Raises ValueError: two samples share an id, or `decode` refuses an option.
    Nothing has been decoded then.

    Parameters
    ----------
    seed : sample ``i`` is decoded with ``seed * 1_000_003 + i``, so that arms of a comparison share their draws
    prompt_options : PromptOptions or dict, optional
        Over those that the model was loaded with, as in `decode`.
    record : further quantities, as in `decode`
    progress : As in `decode`

    Returns
    -------
    list of Trace
        One per sample, in order; ``meta["id"]`` is the sample's.
    """
    if len({one.id for one in samples}) != len(samples):
        raise ValueError(f"{len(samples)} samples share ids; give each its own")
    vlm = vlm.asking(PromptOptions.of(prompt_options).over(vlm.prompt_options))
    options = {
        "pruner": pruner,
        "sample": sample,
        "seed": seed,
        "layers": layers,
        "heads": heads,
        "execution": execution,
        "max_new_tokens": max_new_tokens,
        **({"record": list(record)} if record else {}),  # keys of before there was this stay
    }
    note("batch_size", "decoded together", batch_size)
    # `decode` by its home, so that a stand-in here that counts the calls, as tests have one, is no other code.
    ran = (decoding.decode, pruner, sample, *(row.compute for row in quantities_of(list(record))))
    state = state_of(vlm, *ran)
    key = key_of(vlm, samples, options, state)
    folder = folder_of_this_process() / "traces" if key is None else cache_folder() / key
    if not is_whole(folder):
        drawn_before = generators()
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The folder gets its name when it is whole: what a killed run leaves is never found.
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished,
            bar(len(samples), "decode", "trace", progress),
        ):
            store = TraceStore(Path(unfinished) / "traces", mode="a")
            # In parts, so that not all traces are in memory at once.
            for start in range(0, len(samples), 8 * batch_size):
                part = samples[start : start + 8 * batch_size]
                traces = decode(
                    vlm,
                    [s.image for s in part],
                    [s.question for s in part],
                    pruner=pruner,
                    sample=sample,
                    seed=[seed * 1_000_003 + start + i for i in range(len(part))],
                    layers=layers,
                    heads=heads,
                    execution=execution,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    record=list(record),
                )
                for one, trace in zip(part, traces, strict=True):
                    store.add(trace.with_meta({**trace.meta, "id": one.id}))
            if key is not None and (state_of(vlm, *ran) != state or generators() != drawn_before):
                say_once(CHANGED)
                folder = folder_of_this_process() / "traces"
                shutil.move(store.path, folder)
            else:
                seal(store.path)
                try:
                    store.path.rename(folder)
                except OSError:
                    if not folder.exists():  # else another process was faster with the same traces
                        raise
    store = TraceStore(folder)
    return [store[s.id] for s in samples]


def key_of(vlm: VLM, samples: Sequence[Sample], options: dict[str, Any], state: str | None) -> str | None:
    """Hash of a `state_of`, the options, and the samples as the model sees them: 24 hex digits; None without a state.

    A changed template or image processor changes a prompt, and so does a picture that was changed in place.
    """
    if state is None:
        return None
    asked = [(sample.id, vars(vlm.prompt(sample.image, sample.question))) for sample in samples]
    found = part_of_key([state, vlm.default_anchor, sorted(end_ids(vlm)), options, asked])
    return None if found is None else found[:24]
