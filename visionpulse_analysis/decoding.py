"""Decode with a recorder, and perhaps a pruner, attached."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from visionpulse_analysis.attention import route
from visionpulse_analysis.cache import grows_in_place, make_cache
from visionpulse_analysis.collecting import Record, choices_of, collecting
from visionpulse_analysis.families import Prompt
from visionpulse_analysis.images import ImageLike
from visionpulse_analysis.models import VLM
from visionpulse_analysis.prompt_text import question_tokens
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.view import Layout
from visionpulse_analysis.recording import Execution, StepAttention
from visionpulse_analysis.relevance import relevance
from visionpulse_analysis.sampling import Chooser, Sample
from visionpulse_analysis.store import TraceStore
from visionpulse_analysis.traces import Trace


@dataclass(frozen=True)
class _Options:
    layers: list[int]
    heads: list[int] | None
    pruner: Pruner | None
    execution: Execution
    sample: Sample | None
    max_new_tokens: int


def decode(
    vlm: VLM,
    image: ImageLike | Sequence[Any],
    question: str | Sequence[str],
    *,
    layers: Literal["all", "anchor", "none"] | int | Sequence[int] = "all",
    heads: Literal["mean", "all"] | Sequence[int] = "mean",
    pruner: Pruner | None = None,
    execution: Execution = "masked",
    seed: int | Sequence[int] = 0,
    sample: Sample | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    store: TraceStore | None = None,
    ids: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> Any:
    """Let the model reason about an image and record where it looks at every step.

    At each step the softmax row of the newest query is restricted to the image patches: temperature 1, not
    renormalised over the image. Step 0 is the token that prefill produces. The model runs under its own
    scaled-dot-product attention; logits and tokens are the same with and without recording.

    Parameters
    ----------
    vlm : VLM
    image : image or list of images
        A path, a PIL image or uint8 [row_px, col_px, 3]. With one question, a list is several images of that
        question. With a list of questions, one entry (an image or a list of images) per question.
    question : str or list of str
        A list is decoded in left-padded batches of ``batch_size`` and gives a list of traces.
    layers : "all", "anchor", "none", int or list of int
        Which layers to record, zero-based; "anchor" is the model's default anchor.
    heads : "mean", "all" or list of int
        The mean over heads, or one row per head.
    pruner : Pruner, optional
        Hides patches; dense without one.
    execution : "masked" or "gathered"
        Hide dropped patches by a mask (exact simulation), or read only the kept keys and values.
    seed : int or list of int
        Row ``i`` of a list of questions uses ``seed + i``, or the i-th seed of a list.
    sample : Sample, optional
        Temperature and truncation; greedy without one.
    max_new_tokens : int
        At least 1. A trace that stops here has ``meta["finished"]`` False.
    store : TraceStore, optional
        Streams every finished step to disk under ``ids`` while decoding.

    Returns
    -------
    Trace or list of Trace

    Raises
    ------
    ValueError
        A question is empty, a layer or head out of range, an option unknown, or an image unreadable. Nothing has
        been decoded then.
    FileNotFoundError
        An image path does not exist.
    FileExistsError
        The store holds one of the ids; nothing has been decoded then.
    FloatingPointError
        The model returned NaN or infinite logits. What finished before is in the store.
    RuntimeError
        The model is decoding in another thread.
    """
    single = isinstance(question, str)
    questions = [question] if single else list(question)
    images = [image] if single else list(image) if isinstance(image, list | tuple) else [image] * len(questions)
    if not questions:
        raise ValueError("no question given; pass a string or a list of strings")
    if len(images) != len(questions):
        raise ValueError(f"{len(questions)} questions need as many images, got {len(images)}")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if execution not in ("masked", "gathered"):
        raise ValueError(f"execution must be 'masked' or 'gathered', got {execution!r}")
    seeds = [seed + i for i in range(len(questions))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(questions):
        raise ValueError(f"{len(questions)} questions need as many seeds, got {len(seeds)}")
    names = _names(ids, len(questions), store, overwrite)
    options = _Options(_layers(vlm, layers), _heads(vlm, heads), pruner, execution, sample, max_new_tokens)
    prompts = [vlm.prompt(i, q) for i, q in zip(images, questions, strict=True)]
    traces: list[Trace] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        records = [
            Record(vlm, prompt, _meta(vlm, prompt, options, row_seed, name), options.layers, options.heads)
            for prompt, row_seed, name in zip(prompts[part], seeds[part], names[part], strict=True)
        ]
        with collecting(records, store, pruned=pruner is not None, overwrite=overwrite):
            _Run(vlm, prompts[part], records, seeds[part], options).finish()
            traces += [record.close() for record in records]
    return traces[0] if single else traces


def _meta(vlm: VLM, prompt: Prompt, options: _Options, seed: int, name: str | None) -> dict[str, Any]:
    """Provenance of one trace."""
    packages = ("torch", "transformers", "visionpulse_analysis")
    return {
        **({} if name is None else {"id": name}),
        "question": prompt.question,
        "model": vlm.name,
        "model_hash": vlm.weights_hash,
        "revision": vlm.revision,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "attention": "sdpa",
        "seed": seed,
        "sample": None if options.sample is None else options.sample.to_dict(),
        "pruner": None if options.pruner is None else options.pruner.to_dict(),
        "execution": options.execution if options.pruner is not None else "dense",
        "max_new_tokens": options.max_new_tokens,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _names(ids: str | Sequence[str] | None, count: int, store: TraceStore | None, overwrite: bool) -> list[str | None]:
    if ids is None:
        if store is not None:
            raise ValueError("streaming to a store needs ids, one per question")
        return [None] * count
    listed = [ids] if isinstance(ids, str) else list(ids)
    if len(listed) != count or len(set(listed)) != count:
        raise ValueError(f"ids must be {count} different names, got {len(listed)} with {len(set(listed))} different")
    if store is not None:
        for name in listed:
            store.check_new(name, overwrite)
    return list(listed)


def _layers(vlm: VLM, layers: Any) -> list[int]:
    n = vlm.n_layers
    if isinstance(layers, str):
        known = {"all": list(range(n)), "anchor": [vlm.default_anchor], "none": []}
        if layers not in known:
            raise ValueError(f"layers must be 'all', 'anchor', 'none', an int or a list of int, got {layers!r}")
        return known[layers]
    chosen = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    wrong = [layer for layer in chosen if not 0 <= layer < n]
    if wrong or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} layers)")
    return sorted(chosen)


def _heads(vlm: VLM, heads: Any) -> list[int] | None:
    n = vlm.model.config.get_text_config().num_attention_heads
    if isinstance(heads, str):
        if heads not in ("mean", "all"):
            raise ValueError(f"heads must be 'mean', 'all' or a list of int, got {heads!r}")
        return None if heads == "mean" else list(range(n))
    chosen = [int(head) for head in heads]
    if not chosen or len(set(chosen)) != len(chosen) or any(not 0 <= head < n for head in chosen):
        raise ValueError(f"heads {chosen}: expected different indices from 0 to {n - 1} ({vlm.name} has {n} heads)")
    return chosen


class _Run:
    """One left-padded batch, from prefill to the last row's end token."""

    def __init__(self, vlm: VLM, prompts: list[Prompt], records: list[Record], seeds: list[int], options: _Options):
        self.vlm, self.prompts, self.options = vlm, prompts, options
        self.running = list(records)
        device = vlm.model.device
        lengths = [len(prompt.ids) for prompt in prompts]
        self.width = max(lengths)
        self.mask = torch.zeros(len(prompts), self.width + options.max_new_tokens, dtype=torch.long)
        places = torch.zeros(len(prompts), max(len(prompt.grid) for prompt in prompts), dtype=torch.long)
        present = torch.zeros(places.shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            pad = self.width - lengths[row]
            self.mask[row, pad : self.width] = 1
            places[row, : len(prompt.grid)] = torch.from_numpy(prompt.grid.position + pad)
            present[row, : len(prompt.grid)] = True
        self.mask, present = self.mask.to(device), present.to(device)
        question = torch.zeros(len(prompts), self.width, dtype=torch.bool)
        for row, prompt in enumerate(prompts if options.pruner is not None else []):
            question[row, self.width - lengths[row] + question_tokens(vlm.tokenizer, prompt)] = True
        starts = torch.tensor([self.width - length for length in lengths], device=device)
        anchor, places, question = vlm.default_anchor, places.to(device), question.to(device)
        layout = Layout(present, places, starts, vlm.n_layers, anchor, list(seeds), question, self._relevance)
        self.attention = StepAttention(
            layout,
            options.layers,
            options.heads,
            options.pruner.start(layout) if options.pruner is not None else None,
            options.execution,
        )
        self.chooser = Chooser(options.sample, list(seeds))
        self.ends = end_ids(vlm)
        self.cache = make_cache(vlm.model)

    @torch.inference_mode()
    def finish(self) -> None:
        """Decode every row to its end token, or to the limit."""
        with route(self.vlm.model, self.attention):
            logits, position = self._prefill()
            for step in range(self.options.max_new_tokens):
                tokens = self._note(logits)
                alive = [place for place, record in enumerate(self.running) if not record.finished]
                if not alive or step + 1 == self.options.max_new_tokens:
                    return
                if 2 * len(alive) <= len(self.running) and grows_in_place(self.cache):
                    tokens, position = self._keep(alive, tokens, position)
                self.attention.step = step + 1
                self.mask[:, self.width + step] = 1
                logits = self._forward(tokens[:, None], self.width + step + 1, position[:, None])
                position = position + 1

    def _prefill(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [row, word] of the first token and the position [row] that it will take."""
        inputs = self.vlm.to_device(self.vlm.family.batch(self.prompts, pad_id(self.vlm)))
        position = self.vlm.family.positions(self.vlm.model, inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        with self.attention.watching(self.vlm.model):
            logits = self._forward(ids, mask.shape[1], position, **inputs)
        return logits, position.view(-1, *ids.shape)[:, :, -1].amax(dim=0) + 1

    def _relevance(self, tokens: int) -> torch.Tensor:
        """How much the first tokens of the dense answers depend on each patch: float32 [row, patch]."""
        limit = min(tokens, self.options.max_new_tokens)
        options = _Options([], None, None, "masked", None, limit)
        records = [Record(self.vlm, prompt, {}, [], None) for prompt in self.prompts]
        _Run(self.vlm, self.prompts, records, [0] * len(records), options).finish()
        answers = [torch.tensor([step["token_id"] for step in record.steps]) for record in records]
        found = [relevance(self.vlm, *given) for given in zip(self.prompts, answers, strict=True)]
        return pad_sequence(found, batch_first=True).to(self.vlm.model.device)

    def _forward(self, ids: torch.Tensor, length: int, position: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the model on new tokens; logits float32 [row, word] of the newest."""
        out = self.vlm.model(
            input_ids=ids,
            attention_mask=self.mask[:, :length],
            position_ids=position.expand(3, -1, -1) if self.vlm.family.mrope and position.ndim == 2 else position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        return out.logits[:, -1].float()

    def _note(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose the next tokens int64 [row] and hand this step to every running record."""
        tokens = self.chooser(logits)
        logprobs = torch.log_softmax(logits, dim=1).gather(1, tokens[:, None])[:, 0].tolist()
        rows, masses = self.attention.take()
        sizes = [len(record.prompt.grid) for record in self.running]
        choices = [None] * len(sizes) if self.options.pruner is None else choices_of(self.attention, sizes)
        for place, (record, token) in enumerate(zip(self.running, tokens.tolist(), strict=True)):
            if self.attention.step == 0:
                record.account = self.attention.account(place)
            if not record.finished:
                attention = rows[place, ..., : sizes[place]].numpy()
                record.add(token, logprobs[place], attention, masses[place].numpy(), choices[place])
                record.finished = token in self.ends
                if record.finished:
                    record.close()  # at once: what happens to the other rows cannot cost this trace
        return tokens

    def _keep(self, alive: list[int], *per_row: torch.Tensor) -> list[torch.Tensor]:
        """Drop finished rows from the batch."""
        rows = torch.tensor(alive, device=self.mask.device)
        self.running = [self.running[place] for place in alive]
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
        self.attention.drop_rows(rows)
        self.chooser.drop_rows(rows)
        return [tensor[rows] for tensor in per_row]


def pad_id(vlm: VLM) -> int:
    """The token that fills short rows: the tokenizer's padding token, or 0, which the mask hides anyway."""
    return vlm.tokenizer.pad_token_id if vlm.tokenizer.pad_token_id is not None else 0


def end_ids(vlm: VLM) -> set[int]:
    """The tokens that end a trace. Raises ValueError where the model names none."""
    generation = getattr(vlm.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    ends = vlm.tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError(f"{vlm.name} names no end token; set generation_config.eos_token_id")
    return set(ends) if isinstance(ends, list | tuple) else {int(ends)}
