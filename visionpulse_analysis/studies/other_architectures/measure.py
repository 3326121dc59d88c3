"""Patterns of computation side by side: answers under them, words that are read off the image, and their price."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import torch

from visionpulse_analysis.attention.routing import intercept
from visionpulse_analysis.decoding.active_heads import active_heads, head_ratios
from visionpulse_analysis.decoding.interventions.kinds import Acting, UnderSelection
from visionpulse_analysis.experiments.conditions import decode_arms
from visionpulse_analysis.experiments.samples import Sample
from visionpulse_analysis.metrics.flops import ModelShape, count_costs
from visionpulse_analysis.metrics.statistics import Claim, Estimate, cluster_bootstrap, paired_difference
from visionpulse_analysis.models.loading import VLM, load
from visionpulse_analysis.pruners import make_pruner
from visionpulse_analysis.pruners.base import Pruner, Selection
from visionpulse_analysis.pruners.pattern import Pattern
from visionpulse_analysis.pruners.vica import ViCA
from visionpulse_analysis.pruners.yopo import YOPO
from visionpulse_analysis.studies.shared.arms import DENSE, Arms
from visionpulse_analysis.testbed.scenes.horizon import reading_horizon
from visionpulse_analysis.testbed.training.batches import KINDS, make_batch
from visionpulse_analysis.testbed.training.evaluation_set import build_items
from visionpulse_analysis.testbed.training.horizon import tokens_of
from visionpulse_analysis.testbed.training.packing import Batch
from visionpulse_analysis.testbed.training.scoring import hidden_states, shared_prefix_attention
from visionpulse_analysis.testbed.twins.streams import Pictures, see, states_under, window_of

YOPO_PLAIN, YOPO_TUNED, YOPO_WITHOUT = "YOPO, not tuned", "YOPO, tuned", "YOPO, tuned, without its pattern"
RANDOM_HEADS = "YOPO, not tuned, random heads"
VICA_PLAIN, VICA_TUNED = "ViCA, not tuned", "ViCA, tuned"
RANDOM_PAIR = "ViCA, not tuned, random layers"
AT_EQUAL_FLOPS = ("FastV", "PyramidDrop", "VTW")
READ = ("row", "column")  # kinds of words that are read off the image
FIRST_WORD_SEED = 22_000_000  # scenes of no training; SeTok's clusters are counted on some of them as well
TASKS = {"find": 1.0, "compare": 1.0, "count": 1.0}
Words = list[np.ndarray]  # of each picture, which words are right: bool [word]


@dataclass(frozen=True, eq=False)
class Answers:
    """Decoded answers under patterns, and in prunings that cost as much.

    arms : of decoding. yopo, vica : the patterns that the twins were tuned under. reading : ViCA's layers, and random
    ones. visual : arm -> share of the prefill's FLOPs on pictures that are left.
    """

    arms: Arms
    yopo: Pattern
    vica: Pattern
    reading: dict[str, tuple[int, ...]]
    visual: dict[str, float]

    def accuracy(self, arm: str) -> Estimate:
        """Share of right answers."""
        truth = self.arms.changes[arm].truth
        return Estimate.missing("right answers are not known") if truth is None else truth.accuracy

    @cached_property
    def judged(self) -> dict[tuple[str, str], Claim]:
        """Differences in accuracy that sentences speak of, all adjusted as one family: (arm, over)."""
        return self.arms.judge_accuracy([
            (YOPO_TUNED, DENSE), (YOPO_TUNED, YOPO_PLAIN), (YOPO_TUNED, YOPO_WITHOUT), (YOPO_PLAIN, RANDOM_HEADS),
            *((YOPO_TUNED, other) for other in AT_EQUAL_FLOPS),
            (VICA_TUNED, DENSE), (VICA_TUNED, VICA_PLAIN), (VICA_PLAIN, RANDOM_PAIR), (VICA_TUNED, YOPO_TUNED),
        ])  # fmt: skip


def answers(vlm: VLM, samples: Sequence[Sample], *, seed: int = 0, **options: Any) -> Answers:
    """Decode the samples under every pattern, by the bundled model and by its twins.

    Parameters
    ----------
    vlm : VLM
        The model that the twins were tuned from.
    samples : list of Sample
        Scenes of one size.
    seed : int
        Of what is drawn at random: heads and layers.
    **options
        Of :func:`decode_arms`.
    """
    twins = {name: load(name, device=str(vlm.model.device)) for name in ("yopo", "vica")}
    yopo, vica = twins["yopo"].pattern, twins["vica"].pattern
    rng = np.random.default_rng(seed)
    pairs = list(combinations(range(vlm.n_layers), vlm.n_layers - len(vica.blind)))
    own = tuple(sorted(set(range(vlm.n_layers)) - set(vica.blind)))
    reading = {VICA_PLAIN: own, RANDOM_PAIR: own}
    while reading[RANDOM_PAIR] == own:
        reading[RANDOM_PAIR] = pairs[int(rng.integers(len(pairs)))]
    drawn = replace(yopo, heads=random_heads(yopo.heads, rng))
    patches = len(vlm.prompt(samples[0].image, samples[0].question).grid)
    shape = ModelShape.of(vlm.model.config)
    share = visual_share(shape, patches, **facts_of(yopo, patches, vlm.n_layers))
    rivals = at_share(share, vlm.n_layers)
    arms: dict[str, Pruner | None] = {DENSE: None, YOPO_PLAIN: as_pruner(yopo), RANDOM_HEADS: as_pruner(drawn)}
    arms |= {label: ViCA(layers) for label, layers in reading.items()} | rivals
    runs = decode_arms(vlm, samples, arms, **options)
    runs[YOPO_TUNED] = decode_arms(twins["yopo"], samples, {DENSE: None}, **options)[DENSE]
    runs[VICA_TUNED] = decode_arms(twins["vica"], samples, {DENSE: None}, **options)[DENSE]
    with without_pattern(twins["yopo"]) as bare:
        runs[YOPO_WITHOUT] = decode_arms(bare, samples, {DENSE: None}, **options)[DENSE]
    visual = {DENSE: 1.0, YOPO_WITHOUT: 1.0} | dict.fromkeys((YOPO_PLAIN, YOPO_TUNED, RANDOM_HEADS), share)
    visual |= dict.fromkeys(
        (VICA_PLAIN, VICA_TUNED, RANDOM_PAIR), visual_share(shape, patches, **facts_of(vica, patches, vlm.n_layers))
    )
    n = vlm.n_layers
    left = {arm: visual_share(shape, patches, kept=kept_by(rival, patches, n)) for arm, rival in rivals.items()}
    return Answers(Arms.of(samples, runs), yopo, vica, reading, visual | left)


@contextmanager
def without_pattern(vlm: VLM) -> Iterator[VLM]:
    """Run a twin as an ordinary model inside the ``with`` block."""
    config = vlm.model.config
    stated, config.visionpulse_pattern = config.visionpulse_pattern, None
    try:
        yield vlm
    finally:
        config.visionpulse_pattern = stated


def as_pruner(pattern: Pattern) -> YOPO:
    """A pattern with heads, no frozen layer and the last layers blind, as the pruner that runs any model under it."""
    n = len(pattern.heads)
    return YOPO(pattern.window, pattern.heads or None, pattern.mlp_share, n - len(pattern.blind))


def random_heads(heads: tuple[tuple[bool, ...], ...], rng: np.random.Generator) -> tuple[tuple[bool, ...], ...]:
    """As many active heads, drawn at random among those of layers in which any is inactive."""
    flat = np.array(heads)
    some = ~flat.all(axis=1)
    flat[some] = rng.permutation(flat[some].ravel()).reshape(flat[some].shape)
    return tuple(tuple(layer) for layer in flat.tolist())


def facts_of(pattern: Pattern, patches: int, n_layers: int) -> dict[str, Any]:
    """What the costs of a prefill of a square picture depend on under a pattern, as `count_costs` takes it."""
    # Nobody reads what leaves the last layer that sees pictures, so that two streams compute them no further.
    seeing = [layer for layer in range(n_layers) if layer not in pattern.blind]
    unread = tuple(range(seeing[-1], n_layers)) if pattern.blind and seeing else ()
    found: dict[str, Any] = {"frozen_layers": pattern.frozen + unread, "blind_layers": pattern.blind}
    found["mlp_share"] = pattern.mlp_share
    if pattern.window is not None:
        near = window_of(patches, round(patches**0.5), pattern.window, "cpu")
        found["neighbours"] = float(near.sum()) / patches
    if pattern.heads:
        found["active_heads"] = [float(np.mean(layer)) for layer in pattern.heads]
    return found


def visual_share(shape: ModelShape, patches: int, text: int = 30, kept: Any = None, **facts: Any) -> float:
    """Share of the FLOPs that pictures add to a prefill which is left: of `kept` patches by layer, or under facts."""
    every = np.full((1, shape.layers), patches)

    def flops(k: np.ndarray, **more: Any) -> float:
        return float(count_costs(shape, k, text=text, patches=patches, **more).flops[0])

    none, whole = flops(0 * every), flops(every)
    return (flops(every if kept is None else np.asarray(kept)[None], **facts) - none) / (whole - none)


def at_share(share: float, n_layers: int) -> dict[str, Any]:
    """Prunings of patches that leave about a share of the patches of all layers, with which visual FLOPs go."""
    layer, drops = max(1, n_layers // 8), drops_before(make_pruner("pyramiddrop"), n_layers)
    ratios = np.linspace(0.01, 1, 100)
    ratio = min(ratios, key=lambda one: abs(np.mean([one**times for times in drops]) - share))
    budget = float(np.clip((share * n_layers - layer) / (n_layers - layer), 0.01, 1))
    return {
        "FastV": make_pruner("fastv", layer=layer, budget=budget),
        "PyramidDrop": make_pruner("pyramiddrop", ratio=float(ratio)),
        "VTW": make_pruner("vtw", layer=max(1, round(share * n_layers))),
    }


def drops_before(pyramid: Any, n_layers: int) -> list[int]:
    """How often PyramidDrop has dropped patches when a layer is entered: [layer]."""
    return [sum(boundary <= number for boundary in pyramid.boundaries(n_layers)) for number in range(n_layers)]


def kept_by(rival: Any, patches: int, n_layers: int) -> list[float]:
    """How many patches a pruning of `at_share` leaves: [layer]."""
    if rival.name == "pyramiddrop":
        return [patches * rival.ratio**drops for drops in drops_before(rival, n_layers)]
    left = 0 if rival.name == "vtw" else patches * rival.budget
    return [patches if number < rival.layer else left for number in range(n_layers)]


@dataclass(frozen=True, eq=False)
class Scenes:
    """Packed true traces about scenes of one size, with what the vision tower makes of them."""

    batches: list[Batch]
    pictures: list[Pictures]

    @classmethod
    def of(cls, vlm: VLM, images: int, cells: int, *, seed: int = 0, at_once: int = 6) -> Scenes:
        """So many scenes with two questions each."""
        first = FIRST_WORD_SEED + 10_000 * seed
        groups = [range(first + at, first + min(at + at_once, images)) for at in range(0, images, at_once)]
        batches = [make_batch(np.random.default_rng([seed, group[0]]), [*group], cells, TASKS, 2) for group in groups]
        batches = [batch.to(vlm.model.device) for batch in batches]
        return cls(batches, [see(vlm.model, batch) for batch in batches])

    @torch.no_grad()
    def right(self, vlm: VLM, pattern: Pattern, **control: Any) -> Words:
        """Which rows and columns are named right, given the true words before them, under a pattern."""
        found: Words = []
        for batch, pictures in zip(self.batches, self.pictures, strict=True):
            read = torch.isin(batch.kind, torch.tensor([KINDS.index(kind) for kind in READ], device=batch.kind.device))
            chosen = (batch.target != -100) & read
            states = states_under(vlm.model, batch, pattern, pictures, **control)
            said = vlm.model.lm_head(states[chosen]).argmax(-1) == batch.target[chosen]
            owners = chosen.nonzero()[:, 0]
            found += [said[owners == row].cpu().numpy() for row in range(len(chosen))]
        return found


def share_right(words: Words) -> Estimate:
    """Share of the words, with an interval over pictures."""
    return cluster_bootstrap(np.concatenate(words).astype(float), owners_of(words), unit="picture")


def gain(words: Words, over: Words) -> Estimate:
    """Difference in the share of right words, paired, with an interval over pictures."""
    before, after = (np.concatenate(one).astype(float) for one in (over, words))
    return paired_difference(before, after, owners_of(words), unit="picture")


def owners_of(words: Words) -> np.ndarray:
    """The picture of each word: int [word]."""
    return np.repeat(np.arange(len(words)), [len(one) for one in words])


def ratios_of(vlm: VLM, samples: Sequence[Sample]) -> np.ndarray:
    """The ratios by which YOPO chooses heads, of the samples: float [sample, layer, head]."""
    return head_ratios(vlm, [(one.image, one.question) for one in samples])


def one_at_a_time(vlm: VLM, scenes: Scenes, ratios: np.ndarray, *, seed: int = 0) -> dict[str, dict[str, dict]]:
    """Each part of YOPO by itself, and its control: part -> label -> value -> words that are right.

    Parameters
    ----------
    ratios : float [sample, layer, head], of `head_ratios`
    seed : int
        Of random heads and shuffled neighbours.
    """
    rng, n = np.random.default_rng(seed), scenes.pictures[0].states.shape[1]
    side, layers = round(n**0.5), vlm.n_layers
    order = torch.from_numpy(rng.permutation(n))
    found: dict[str, dict[str, dict]] = {
        "window": {"neighbours": {}, "shuffled": {}},
        "heads kept": {"by their ratio": {}, "random": {}},
        "neurons": {"the first": {}, "the last": {}},
        "layers that see": {"from the first on": {}},
    }
    for window in (1, 3, 5, 9):
        near = window_of(n, side, window, "cpu")
        shuffled = near[order][:, order] | torch.eye(n, dtype=torch.bool)
        found["window"]["neighbours"][window] = scenes.right(vlm, Pattern(window=window))
        found["window"]["shuffled"][window] = scenes.right(vlm, Pattern(window=window), neighbours=shuffled)
    for share in (0.25, 0.5, 0.75):
        heads = active_heads(ratios, share, exempt=())
        drawn = rng.permutation(np.array(heads).ravel()).reshape(layers, -1)
        found["heads kept"]["by their ratio"][share] = scenes.right(vlm, Pattern(heads=heads))
        found["heads kept"]["random"][share] = scenes.right(vlm, Pattern(heads=tuple(map(tuple, drawn.tolist()))))
        found["neurons"]["the first"][share] = scenes.right(vlm, Pattern(mlp_share=share))
        found["neurons"]["the last"][share] = scenes.right(vlm, Pattern(mlp_share=share), last_neurons=True)
    for cut in range(layers // 2, layers):
        found["layers that see"]["from the first on"][cut] = scenes.right(vlm, Pattern(blind=tuple(range(cut, layers))))
    return found


def reading_pairs(vlm: VLM, scenes: Scenes) -> np.ndarray:
    """Share of right words with pictures frozen and read in two layers only: float [layer, layer], NaN elsewhere."""
    found = np.full((vlm.n_layers, vlm.n_layers), np.nan)
    for pair in combinations(range(vlm.n_layers), 2):
        pattern = Pattern(tuple(range(vlm.n_layers)), tuple(one for one in range(vlm.n_layers) if one not in pair))
        found[pair] = np.concatenate(scenes.right(vlm, pattern)).mean()
    return found


def horizons(vlm: VLM, images: int, cells: int, *, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Where the bundled model and ViCA's twin read, see `reading_horizon`: model -> kind of word -> accuracy."""
    items = build_items({cells: images}, FIRST_WORD_SEED + 10_000 * seed + 5_000)
    twin = load("vica", device=str(vlm.model.device))
    return {"scenes": reading_horizon(vlm, items), VICA_TUNED: reading_horizon(twin, items)}


@dataclass(frozen=True)
class Prefill:
    """What a prefill takes, stock and with words alone as hidden states.

    seconds : by patches, medians, (stock, words alone). flops : the same, counted. apart : largest difference of a
    logit from masked execution of the same pattern.
    """

    seconds: dict[int, tuple[float, float]]
    flops: dict[int, tuple[float, float]]
    apart: float

    def ratio(self, patches: int, counted: bool = False) -> float:
        """How many times as long, or as many FLOPs, stock takes."""
        stock, alone = (self.flops if counted else self.seconds)[patches]
        return stock / alone


@torch.no_grad()
def text_only(scenes: Scenes, sizes: Sequence[int], rounds: int, *, seed: int = 0) -> Prefill:
    """Run ViCA's twin with words alone as hidden states: against masked execution, and against stock prefill.

    Parameters
    ----------
    scenes : Scenes
        On whose first batch the two executions are compared.
    sizes : list of int
        Patches of a square picture, for times; what is in it does not count.
    rounds : int
        Times are medians of so many.
    seed : int
        Of the words and of the states that stand for a picture.
    """
    twin = load("vica", device="cpu")
    batch, pattern = scenes.batches[0].to("cpu"), twin.pattern
    tokens = tokens_of(twin, batch)
    with Acting(twin, [UnderSelection(Selection(tokens.layout))]).on(tokens):
        masked = hidden_states(twin.model, batch)
    chosen = batch.target != -100
    both = [twin.model.lm_head(one[chosen]) for one in (masked, states_under(twin.model, batch, pattern))]
    rng, shape = np.random.default_rng(seed), ModelShape.of(twin.model.config)
    seconds, flops = {}, {}
    for patches in sizes:
        given, pictures = _blank(twin, rng, round(patches**0.5))
        states = twin.model.model.language_model.embed_tokens(given.ids)
        states[:, given.ids[0] == twin.model.config.image_token_id] = pictures.states

        def stock(states: torch.Tensor = states, given: Batch = given) -> Any:
            with intercept(twin.model, shared_prefix_attention(given.prefix)):
                return twin.model.model.language_model(
                    inputs_embeds=states, attention_mask=given.visible, position_ids=given.positions, use_cache=False
                )

        ways: list[Callable[[], Any]] = [stock, lambda g=given, p=pictures: states_under(twin.model, g, pattern, p)]
        took = np.array([[_seconds(way) for way in ways] for _ in range(rounds)])
        seconds[patches] = tuple(median(column) for column in took.T.tolist())
        text, k = given.ids.shape[1] - patches, np.full((1, shape.layers), patches)
        flops[patches] = tuple(
            float(count_costs(shape, k, text=text, patches=patches, **facts).flops[0])
            for facts in ({}, facts_of(pattern, patches, twin.n_layers))
        )
    return Prefill(seconds, flops, float((both[0] - both[1]).abs().max()))


def _blank(vlm: VLM, rng: np.random.Generator, side: int) -> tuple[Batch, Pictures]:
    """A prompt of thirty words or so about a picture of so many patches a side, and states that stand for it."""
    batch = make_batch(rng, [FIRST_WORD_SEED], 4, {"find": 1.0}, 1)
    images = (batch.ids[0] == vlm.model.config.image_token_id).nonzero()[:, 0]
    first, behind, count = int(images[0]), int(images[-1]) + 1, side * side
    asked = batch.ids.shape[1] - behind
    length = first + count + asked
    patch, start = torch.arange(count), batch.positions[:, :, :first]
    grid = torch.stack([torch.zeros_like(patch), patch // side, patch % side])[:, None] + first
    rest = (first + side + torch.arange(asked)).expand(3, 1, -1)
    ids = torch.cat([batch.ids[:, :first], batch.ids[:, images[:1]].expand(1, count), batch.ids[:, behind:]], dim=1)
    given = replace(
        batch, ids=ids, positions=torch.cat([start, grid, rest], dim=2), grid_thw=torch.tensor([[1, side, side]]),
        visible=torch.ones(length, length, dtype=torch.bool).tril()[None, None], prefix=first + count,
    )  # fmt: skip
    width = vlm.model.config.get_text_config().hidden_size
    states = [torch.from_numpy(rng.normal(size=(1, count, width)).astype(np.float32)) for _ in range(3)]
    return given, Pictures(states[0], states[1:])


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def estimates(found: Mapping[Any, Words]) -> dict[Any, Estimate]:
    """Shares of right words, for drawing."""
    return {value: share_right(words) for value, words in found.items()}
