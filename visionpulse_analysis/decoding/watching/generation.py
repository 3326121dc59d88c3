"""One call of `generate` under watch: its steps as they are made, and at its end the traces of what it returned.

`generate` numbers nothing: beams change places, several tokens are tried at once and given up again, without a cache
everything is computed anew. So what is recorded at a step is kept under the tokens that led to it, and a trace is put
together by looking up, for each token returned, what was recorded where the same tokens led.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention import Look, PrefillAttention, Recorder, RowReader, StepAttention
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.decoding import Options
from visionpulse_analysis.decoding.batch import asks_for_map
from visionpulse_analysis.decoding.trace_builder import Choice, Record, choice_of
from visionpulse_analysis.decoding.transfer import Arriving
from visionpulse_analysis.decoding.watching.crossing import Crossing
from visionpulse_analysis.decoding.watching.prompts import Prompts, Scatters
from visionpulse_analysis.decoding.watching.pruning import MaskedPruning
from visionpulse_analysis.media.patch_grid import PatchGrid
from visionpulse_analysis.models.families import in_rows, marks_of
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.pruners.base import Pruner
from visionpulse_analysis.pruners.pattern import ORDINARY
from visionpulse_analysis.pruners.view import Layout

MULTIPLIER = 6364136223846793005  # odd, so that no token is lost modulo 2 ** 64
SEQUENCES = ("decoder_input_ids", "input_ids", "decoder_inputs_embeds", "inputs_embeds")  # what a step reads
LIKELY = 64  # tokens of each step whose probability is kept where it is not known which rows go on


@dataclass
class Step:
    """One forward pass.

    total : length of the sequence behind it; length : how many tokens it reads; queries : the tokens recorded, by their
    place among those read, with one recorder for each; attention : what becomes of its calls; seen : the layers that
    have reported.
    """

    total: int
    length: int
    prefill: bool
    queries: list[int] = field(default_factory=list)
    recorders: list[Recorder] = field(default_factory=list)
    attention: Callable[[Call, int], tuple[Any, ...]] | None = None
    seen: set[int] = field(default_factory=set)


@dataclass
class Kept:
    """What one forward pass leaves, for all rows, at one of its positions.

    prefix int64 [row] : the hash of the tokens generated up to here. values : what was recorded. visible : what
    a pruner left visible. logits : float32 [row, word], until it is known which token followed. following, logprob
    [row] : the hash with that token, and its logarithmic probability, of the rows that went on. likely : the most
    likely tokens.
    """

    prefix: torch.Tensor
    values: Arriving
    visible: Arriving | None
    logits: torch.Tensor | None
    following: torch.Tensor | None = None
    logprob: torch.Tensor | None = None
    likely: tuple[torch.Tensor, torch.Tensor] | None = None

    def probability(self, row: int, rows: range, following: int, token: int) -> float:
        """The logarithmic probability of the token that led to the hash ``following``; NaN where it was not kept.

        row : where the sequence was, one of the ``rows`` of its prompt.
        """
        if self.following is not None and self.logprob is not None:
            hashes = self.following.tolist()
            for place in (row, *rows):
                if hashes[place] == following:
                    return float(self.logprob[place])
        if self.logits is not None:
            return float(torch.log_softmax(self.logits[row], dim=0)[token])
        if self.likely is not None:
            found = (self.likely[1][row] == token).nonzero()
            if len(found):
                return float(self.likely[0][row, found[0, 0]])
        return float("nan")


class Generation:
    """One call of `generate`.

    Parameters
    ----------
    vlm : VLM
        The user's model and tokenizer.
    options : Options
        Its layers are those asked for.
    prompts : Prompts
    every_layer : bool
        Whether "all" was asked for, so that layers without attention are left out rather than refused.
    seeds : list of int [prompt]
    """

    def __init__(self, vlm: VLM, options: Options, prompts: Prompts, every_layer: bool, seeds: Sequence[int]):
        self.vlm, self.options, self.prompts, self.every_layer, self.seeds = vlm, options, prompts, every_layer, seeds
        self.reader = RowReader()
        self.kept: dict[int, list[Kept]] = defaultdict(list)  # by the number of tokens generated before
        self.open: list[tuple[int, Kept]] = []  # those of which it is not known yet which token followed
        self.ids: torch.Tensor | None = None  # running sequences, of the forward pass to come
        self.read = 0  # tokens of the sequence read so far
        self.running: torch.Tensor | None = None  # the tokens generated so far, int64 [row, token]
        self.step: Step | None = None
        self.layout: Layout | None = None
        self.pruning: MaskedPruning | None = None
        self.layers: list[int] | None = None  # recorded, once it is known which layers there are
        self.attention_layers: list[int] = []
        self.grids: list[PatchGrid] = []  # one for each prompt
        self.during_forward = ExitStack()
        self.scatters = Scatters()
        self.went_on: Callable[[], None] | None = None  # told of each token that `running` has become longer by
        self.crossing = Crossing(vlm.model)
        self.encoder_mask: torch.Tensor | None = None  # bool-like [row, token], of what is read by cross-attention

    # What `generate` does, in its order.

    def prepare(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Take the running sequences int64 [row, token], and their mask, of which the coming forward pass reads."""
        if not self.prompts.length:  # of a decoder that begins by itself
            self.prompts.ids = ids[:: len(ids) // len(self.prompts.ids)].cpu().numpy()
            self.encoder_mask = mask
        elif self.read < self.prompts.length:
            self.prompts.pad(mask)
        self.ids = ids
        if self.open:
            self.running = ids[:, self.prompts.length :]
            self._follow(self.running)
            if self.went_on is not None:
                self.went_on()

    def before(self, inputs: dict[str, Any]) -> None:
        """A forward pass begins."""
        given = next((inputs[name] for name in SEQUENCES if inputs.get(name) is not None), None)
        if self.ids is None or given is None:
            return
        (rows, length), width = given.shape[:2], self.prompts.length
        # Of a prompt that is read in chunks only the chunk is handed over.
        total = self.ids.shape[1] if self.ids.shape[1] >= width else self.read + length
        step = self.step = Step(total, length, prefill=self.read < width)
        if step.prefill:
            self.scatters.masks.clear()
            self.during_forward.enter_context(self.scatters)
            self.during_forward.enter_context(self.crossing.looked_for())
        past = total - length
        if total < width:
            return
        # Without a cache everything is read again, and only the newest token is new.
        first = total - 1 if past == 0 and not step.prefill else max(past, width - 1)
        step.queries = [position - past for position in range(first, total)]
        if (self.prompts.by_ids and self.prompts.image.any()) or self.crossing.length:
            self._begin(step, rows)

    def _begin(self, step: Step, rows: int) -> None:
        """Prepare the recording of a step, as soon as it is known where the image tokens are."""
        if self.layout is None:
            self.prompts.check(self.vlm.model)
            self.layout = self._arrange(rows)
            if self.options.pruner is not None or self.vlm.pattern != ORDINARY:
                whole, pruner = step.total == step.length, self.options.pruner or Pruner()
                self.pruning = MaskedPruning(pruner, self.layout, whole, self.prompts.by_ids)
                maps = self.prompts.maps
                unknown = maps is None or any(isinstance(m, str) for m in maps)
                if unknown and (why := asks_for_map(self.pruning.group.selection)):
                    raise ValueError(
                        f"no map says where on their picture the patches lie: give images= or locate= to vpa.watch; "
                        f"{self.pruning.name} needs it, for {why}"
                    )
                if self.prompts.crossed and self.pruning.in_prefill:
                    raise ValueError(
                        f"{self.pruning.name} looks at the prompt while it is read, and in "
                        f"{type(self.vlm.model).__name__} pictures are no part of it: they are read by cross-attention"
                    )
        if self.pruning is not None:
            self.pruning.begin(step.prefill, len(step.queries) if step.prefill else step.length)
            if step.prefill and self.pruning.in_prefill:
                self.during_forward.enter_context(self.pruning.states_of(self.vlm.model))
        layers = self.options.layers if self.layers is None else self.layers
        step.recorders = [Recorder(self.layout, layers, self.options.heads, self.options.record) for _ in step.queries]
        newest, reader = step.recorders[-1], self.reader
        if self.pruning is None or (step.prefill and not self.pruning.in_prefill):
            step.attention = Look(dict(zip(step.queries, step.recorders, strict=True)), reader, step.prefill)
        elif step.prefill:
            step.attention = PrefillAttention(newest, reader, self.pruning.group)
        else:
            # What is not hidden is read by the kernel as the model would: nothing is arranged for speed.
            groups, execution = [self.pruning.group], self.options.execution
            step.attention = attention = StepAttention(newest, reader, groups, execution, run=Call.run)
            attention.logprobs = self.pruning.logprobs
            self.during_forward.enter_context(self.pruning.states_of(self.vlm.model, attention))

    def attend(self, call: Call) -> tuple[Any, ...]:
        """One attention call of the language part."""
        step = self.step
        if step is not None and self.crossing.length:
            if call.module not in self.crossing:
                return call.run()  # among the words
            call = replace(call, crossing=self.crossing.layer(call.module))
            self._cross(step)
            if self.options.pruner is not None and call.key.shape[2] != self.crossing.length:
                raise ValueError(
                    f"layer {call.layer} ({type(call.module).__name__}) has one softmax over the words and what an "
                    f"encoder read, of which {self.options.pruner.name} knows nothing; watch without a pruner"
                )
        layer = call.layer
        if step is None or layer < 0 or call.query.shape[2] != step.length:
            return call.run()
        if layer in step.seen:
            raise ValueError(
                f"layer {layer} attends twice in one step ({type(call.module).__name__}): it is not told here which of "
                "the two rows runs over the picture; this model cannot be recorded inside generate"
            )
        if (
            step.prefill and not step.seen and not self.prompts.crossed
        ):  # features have been put into the sequence, and no layer has run
            self.prompts.compare(
                self.scatters.of(len(call.query), step.length), self.vlm.model, step.total - step.length
            )
        step.seen.add(layer)
        if step.queries and not step.recorders and (self.prompts.image.any() or not self.crossing.possible):
            self._begin(step, len(call.query))
        if step.attention is None:
            return call.run()
        return step.attention(call, self.crossing.length if self.prompts.crossed else step.total)

    def _cross(self, step: Step) -> None:
        """Record the calls over the other sequence, and none among the words: at the first that crosses."""
        if self.prompts.crossed:
            return
        self.prompts.cross(self.crossing.length, self.encoder_mask)
        self.layout = self.pruning = step.attention = None
        step.recorders, step.seen = [], set()

    def after(self, output: Any) -> None:
        """A forward pass ends."""
        step, self.step = self.step, None
        self.during_forward.close()
        if step is None or output is None:  # none after an exception, which tells more than anything here would
            return
        if step.prefill:
            self._check_layers(step.seen)
            if step.queries:
                self.prompts.check(self.vlm.model)
        generated = None if self.ids is None else self.ids[:, self.prompts.length :]
        self.ids, self.read = None, step.total
        if not step.recorders or generated is None:
            return
        self._keep(step, generated, _logits(output))

    # What becomes of a step.

    def _check_layers(self, seen: set[int]) -> None:
        """Settle which layers are recorded; ValueError where one that was asked for has no attention."""
        if self.layers is not None:
            return
        self.attention_layers = sorted(seen)
        missing = sorted(set(self.options.layers) - seen)
        name = type(self.vlm.model).__name__
        if not seen:
            raise ValueError(
                f"no layer of {name} asks the library for its attention function: it computes a softmax of its own, "
                "which cannot be seen from outside"
            )
        if missing and not self.every_layer:
            raise ValueError(
                f"layers {missing} of {name} have no softmax attention (linear attention, convolutions); those that "
                f"have it are {self.attention_layers}: choose among them, or layers='all'"
            )
        self.layers = [layer for layer in self.options.layers if layer in seen]

    def _keep(self, step: Step, generated: torch.Tensor, logits: torch.Tensor | None) -> None:
        hashes = _hashes(generated)  # [row, tokens generated + 1]
        known = 0 if logits is None else logits.shape[1]
        if self.pruning is not None and step.prefill:
            self.pruning.group.check_layers(self.attention_layers)
        for number, recorder in enumerate(step.recorders):
            recorder.layers = self.layers or []
            taken = Arriving(dict(recorder.take()))
            behind = len(step.recorders) - number  # how many positions before the end of the sequence
            count = generated.shape[1] + 1 - behind
            visible = None if self.pruning is None else Arriving(self.pruning.visible(self.attention_layers[-1]))
            words = None if logits is None or behind > known else logits[:, -behind].to(torch.float32, copy=True)
            if self.pruning is not None:
                self.pruning.logprobs = None if words is None else torch.log_softmax(words, dim=1)
            kept = Kept(hashes[:, count], taken, visible, words)
            if words is not None and len(generated) > len(self.prompts.ids):
                likely = torch.topk(torch.log_softmax(words, dim=1), min(LIKELY, words.shape[1]), dim=1)
                kept.likely = likely.values, likely.indices
            self.kept[count].append(kept)
            self.open.append((count, kept))

    def _follow(self, generated: torch.Tensor) -> None:
        """Rows went on with these tokens, int64 [row, token]: note how probable they were, and which rows went on."""
        hashes, parents = _hashes(generated), None
        for count, kept in self.open:
            if kept.logits is not None and count < generated.shape[1]:
                parents = self._parents(kept.prefix, hashes[:, count])
                token = generated[:, count].to(kept.logits.device)
                chosen = torch.log_softmax(kept.logits, dim=1)[parents.to(token.device), token]
                kept.following, kept.logprob = hashes[:, count + 1], chosen
            kept.logits = None
        self.open = []
        if self.pruning is not None and parents is not None and len(generated) > len(self.prompts.ids):
            self.pruning.reorder(parents)

    def _parents(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        """Which row each row was, int64 [row], by their hashes: itself, or under beams one of the same prompt."""
        rows = torch.arange(len(now), device=now.device)
        if len(now) == len(self.prompts.ids):
            return rows
        share = len(now) // len(self.prompts.ids)
        together = rows[:, None] // share == rows[None] // share
        same = (now[:, None] == before.to(now.device)[None]) & together
        itself = same.diagonal()
        return torch.where(itself, rows, same.int().argmax(dim=1))

    def _arrange(self, rows: int) -> Layout:
        """Where the image tokens of each row are in its sequence; every prompt has the same number of rows."""
        prompts, device = self.prompts, self.vlm.model.device
        share, self.grids = rows // len(prompts.ids), [prompts.grid(prompt) for prompt in range(len(prompts.ids))]
        own = [grid.position + start for grid, start in zip(self.grids, prompts.starts, strict=True)]
        # Tokens of pictures that the map gives no place: line breaks and the like.
        marks = marks_of(self.vlm.model.config, self.vlm.tokenizer)
        of_pictures = prompts.image if prompts.crossed else prompts.image | np.isin(prompts.ids, marks)
        others = [np.setdiff1d(np.flatnonzero(image), at) for image, at in zip(of_pictures, own, strict=True)]
        present, places, other, other_places, starts = (
            values.repeat_interleave(share, dim=0).to(device)
            for values in (*in_rows(own), *in_rows(others), torch.from_numpy(prompts.starts))
        )
        unknown = torch.zeros(rows, prompts.length, dtype=torch.bool, device=device)
        seeds = [seed for seed in self.seeds for _ in range(share)]
        sizes = self.vlm.n_layers, self.vlm.default_anchor
        known = {"others": other, "other_places": other_places, "model": lambda: self.vlm.weights_hash}
        for name, values in (
            ("cells", [np.stack([grid.row, grid.col], axis=1) for grid in self.grids]),
            ("pieces", [np.unique([grid.image, grid.frame], axis=1, return_inverse=True)[1] for grid in self.grids]),
        ):
            known[name] = in_rows(values)[1].repeat_interleave(share, dim=0).to(device)
        known["pattern"] = self.vlm.pattern
        return Layout(present, places, starts, *sizes, seeds, unknown, **known)

    # What becomes of all of them.

    def fill(self, record: Record, row: int, returned: int, tokens: np.ndarray, whole: bool) -> None:
        """Hand to the record what was seen at each of the tokens int64 [step] of a sequence, from where the record is.

        row : its place among the ``returned`` sequences. whole : whether the last of the tokens ends it. Raises
        RuntimeError where a token was not seen.
        """
        hashes = _hashes(torch.from_numpy(tokens)[None])[0].tolist()
        patches = len(record.prompt.grid)
        if self.pruning is not None:
            record.account = self.pruning.group.account(row // (returned // len(self.prompts.ids)))
        for number in range(len(record.steps), len(tokens)):
            kept, place, rows = self._find(row, returned, number, hashes[number])
            values, token = kept.values.get(), int(tokens[number])
            seen = None if self.options.pruner is None or kept.visible is None else kept.visible.get()
            choice: Choice | None = None if seen is None else choice_of(place, patches, seen)
            logprob = kept.probability(place, rows, hashes[number + 1], token)
            record.add(token, logprob, values, place, choice, last=whole and number + 1 == len(tokens))

    def _find(self, row: int, returned: int, number: int, prefix: int) -> tuple[Kept, int, range]:
        """The step with this prefix, the row that it had there, and all rows of its prompt."""
        share = returned // len(self.prompts.ids)
        for kept in reversed(self.kept[number]):
            found = kept.prefix.tolist()
            each = len(found) // len(self.prompts.ids)
            rows = range(row // share * each, (row // share + 1) * each)
            # Among sampled rows that say the same, each has its own; beams may have changed places.
            for place in ([row] if row in rows else []) + list(rows):
                if found[place] == prefix:
                    return kept, place, rows
        raise RuntimeError(
            f"token {number} of sequence {row} was returned by generate, but the step that made it was not seen: "
            "vpa.watch does not know this way of generating; use vpa.decode, or report the options of generate"
        )


def _logits(output: Any) -> torch.Tensor | None:
    found = getattr(output, "logits", None)
    return found.detach() if torch.is_tensor(found) and found.ndim == 3 else None


def _hashes(tokens: torch.Tensor) -> torch.Tensor:
    """A hash of the first 0, 1, 2, ... of some tokens, int64 [row, token + 1], modulo 2 ** 64."""
    powers = _powers(1 << max(10, tokens.shape[1].bit_length())).to(tokens.device)[: tokens.shape[1]]
    return torch.nn.functional.pad(((tokens.long() + 1) * powers).cumsum(dim=1), (1, 0))


@cache
def _powers(count: int) -> torch.Tensor:
    return torch.full((count,), MULTIPLIER, dtype=torch.int64).cumprod(dim=0)
