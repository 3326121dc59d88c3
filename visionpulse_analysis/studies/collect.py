"""Decode a study's samples once and keep the traces, under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visionpulse_analysis.attending import Execution
from visionpulse_analysis.decoding import decode, end_ids
from visionpulse_analysis.models import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.sampling import Sample as Sampling
from visionpulse_analysis.store import TraceStore
from visionpulse_analysis.studies.samples import Sample
from visionpulse_analysis.traces import Trace

CODE = (
    "attention", "attending", "cache", "collecting", "decoding", "families", "hooks", "images", "models", "patches",
    "prefilling", "prompt_text", "pruners", "relevance", "sampling",
)  # fmt: skip


def cache_folder() -> Path:
    """Where kept traces lie: ``.cache/traces`` of the project, or ``VISIONPULSE_CACHE``."""
    return Path(os.environ.get("VISIONPULSE_CACHE", Path(__file__).parents[2] / ".cache" / "traces"))


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
) -> list[Trace]:
    """Decode every sample, or read the traces of an earlier run with the same inputs.

    The key is a hash over the weights and configuration, every prompt as the model sees it, every option of
    the decode, the library versions and the decoding code: what a change touches is decoded again.

    Parameters
    ----------
    seed : int
        Sample ``i`` is decoded with ``seed * 1_000_003 + i``, so that arms of a comparison share their draws.

    Returns
    -------
    list of Trace
        One per sample, in order; ``meta["id"]`` is the sample's.

    Raises
    ------
    ValueError
        Two samples share an id, or `decode` refuses an option. Nothing has been decoded then.
    """
    if len({one.id for one in samples}) != len(samples):
        raise ValueError(f"{len(samples)} samples share ids; give each its own")
    options = {
        "pruner": None if pruner is None else pruner.to_dict(),
        "sample": None if sample is None else sample.to_dict(),
        "seed": seed,
        "layers": layers,
        "heads": heads,
        "execution": execution,
        "max_new_tokens": max_new_tokens,
    }
    folder = cache_folder() / key_of(vlm, samples, options)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The folder gets its name when it is whole: what a killed run leaves is never found.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished:
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
                )
                for one, trace in zip(part, traces, strict=True):
                    store.add(trace.with_meta({**trace.meta, "id": one.id}))
            try:
                store.path.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster with the same traces
                    raise
    store = TraceStore(folder)
    return [store[s.id] for s in samples]


def traces_hash(traces: Sequence[Trace]) -> str:
    """sha256 (hex) over the data of several traces, for the provenance of a figure."""
    return hashlib.sha256("".join(trace.data_hash for trace in traces).encode()).hexdigest()


def key_of(vlm: VLM, samples: Sequence[Sample], options: dict[str, Any]) -> str:
    """Hash of everything that decoding these samples with these options depends on: 24 hex digits."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    model = [vlm.name, vlm.weights_hash, vlm.model.device, vlm.default_anchor, vlm.model.config.to_dict()]
    ends = sorted(end_ids(vlm))
    # Samples are keyed as the model sees them: a changed template or image processor changes the prompt.
    digest = hashlib.sha256(json.dumps([model, ends, options, versions, _code_hash()], default=str).encode())
    for sample in samples:
        prompt = vlm.prompt(sample.image, sample.question)
        digest.update(f"{sample.id}\0{sample.question}\0{list(prompt.inputs)}\0".encode())
        for array in (prompt.ids.numpy(), *(value.numpy() for value in prompt.inputs.values()), *prompt.images):
            digest.update(f"{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:24]


@cache
def _code_hash() -> str:
    """Hash of the source files that decide what a trace holds."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in CODE:
        target = package / name
        for path in sorted(target.rglob("*.py")) if target.is_dir() else [target.with_suffix(".py")]:
            digest.update(path.read_bytes())
    return digest.hexdigest()
