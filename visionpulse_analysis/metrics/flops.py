"""What a decode costs the language model, counted from the patches that were really visible. Numbers in, numbers out.

The formula, in floating-point operations (2 per multiply-add), per layer and forward pass, with ``r`` tokens computed,
``s`` tokens whose keys and values are made, and ``p`` query-key pairs::

    4 r d a  +  4 s d c  +  4 p a  +  2 g r d m  +  2 r d e

d width, a query heads x head dimension, c key heads x head dimension, m width of the MLP that one token runs through, g
its matrices (3 when gated), e experts to choose from; then ``2 d V`` for the one row of logits over V words. Pairs are
counted as ``queries x keys``, as every kernel that does not skip the causal half works them out, and as
``torch.utils.flop_counter`` counts. In prefill a sliding window is a mask, which saves no work; a decode step needs,
reads and holds no more than the window, as the cache of transformers does.
Element-wise operations, the vision tower and what a pruner computes to choose are not counted.

Authors of pruners print ``4 n d^2 + 2 n^2 d + 2 n d m`` for a layer that sees n tokens (FastV and those after it): one
per multiply-add, two matrices in the MLP. With 2 per multiply-add and the three matrices of a gated MLP the values here
are 2.55 times as large for LLaVA-1.5-7B, and 1.28 times where authors count 2 per multiply-add; exactly twice where
they write ``3 n d m``. Ratios, such as the share left by a pruner, agree within 0.2 points.

A decode step reads each visible key and value once from memory: ``2 c n b`` bytes per layer for n keys of b bytes. The
layers at which a pruner scores all patches to choose also read the keys of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

UNGATED = (
    "opt", "gpt2", "gpt_neox", "gptj", "phi", "persimmon", "bloom", "falcon", "starcoder2", "mpt", "nemotron", "arcee",
    "apertus", "jais2", "nanochat",
)  # fmt: skip
# Fields of text configurations whose layers have matrices that the formula does not know.
UNKNOWN = (
    "kv_lora_rank", "intermediate_size_mlp", "moe_num_experts", "moe_topk", "shared_intermediate_size",
    "lambda_std_dev", "keep_window_size", "multi_query",
)  # fmt: skip
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a language model that its costs depend on; ValueError where they are below 1 or layers do not match.

    Parameters
    ----------
    width, heads, kv_heads, head_dim, vocabulary : int
    mlp : int [layer]
        The MLP width that one token runs through (all its active experts together).
    experts : int [layer]
        How many a router chooses from, 0 for a dense layer.
    mlp_matrices : 3 (gated) or 2
    value_bytes : int, bytes of one cached number
    windows : int [layer], optional
        The newest tokens that a layer sees, 0 where it sees all; left out, all layers see all.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    mlp: tuple[int, ...]
    experts: tuple[int, ...]
    mlp_matrices: int = 3
    value_bytes: int = 2
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", self.windows or (0,) * len(self.mlp))
        for name in ("mlp", "experts", "windows"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        sizes = (self.width, self.heads, self.kv_heads, self.head_dim, self.vocabulary, self.value_bytes)
        if min(sizes) < 1 or not self.mlp or not len(self.mlp) == len(self.experts) == len(self.windows):
            raise ValueError(f"a model has sizes above 0, and an MLP, experts and a window per layer, got {self}")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.mlp)

    @classmethod
    def of(cls, config: Any, value_bytes: int = 2) -> ModelShape:
        """Read the sizes off a configuration of transformers, of the whole model or of its text part.

        `config` is that object; `value_bytes` goes to the result. Raises ValueError where it lacks a size, naming it,
        and where its layers have parts that are not counted here.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(text, "is_heterogeneous", False):
            raise ValueError(
                f"layers of {type(text).__name__} differ in their sizes, not counted here; give a ModelShape by hand"
            )
        _check_known(text)

        def size(*names: str, default: int | None = None) -> int:
            for name in names:
                found = getattr(text, name, None)
                if isinstance(found, list | tuple):
                    raise ValueError(f"{type(text).__name__} has a {name} for each layer; give a ModelShape by hand")
                if found is not None:
                    return int(found)
            if default is None:
                raise ValueError(f"{type(text).__name__} has no {' or '.join(names)}; give a ModelShape by hand")
            return default

        width, heads, n = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
        experts = size("num_experts", "num_local_experts", "n_routed_experts", default=0)
        every = size("decoder_sparse_step", default=1)
        dense = {*(getattr(text, "mlp_only_layers", None) or ()), *range(size("first_k_dense_replace", default=0))}
        sparse = [bool(experts) and layer not in dense and (layer + 1) % every == 0 for layer in range(n)]
        wide = size("intermediate_size", "ffn_dim", "n_inner", default=0 if all(sparse) else None)
        active = 0
        if experts:
            one = size("moe_intermediate_size", "intermediate_size")
            shared = size("shared_expert_intermediate_size", default=one * size("n_shared_experts", default=0))
            active = one * size("num_experts_per_tok") + shared
        return cls(
            width=width,
            heads=heads,
            kv_heads=size("num_key_value_heads", default=heads),
            head_dim=size("head_dim", default=width // heads),
            vocabulary=size("vocab_size"),
            mlp=tuple(active if is_sparse else wide for is_sparse in sparse),
            experts=tuple(experts if is_sparse else 0 for is_sparse in sparse),
            mlp_matrices=2 if getattr(text, "model_type", "") in UNGATED else 3,
            value_bytes=value_bytes,
            windows=_windows(text, n),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``ModelShape(**shape.to_dict())`` gives it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def flops(self, computed: Any, made: Any, pairs: Any, through_mlp: Any = None) -> Any:
        """FLOPs [...] of forward passes: `computed` is r, `made` s, `pairs` p of the formula, [..., layer] each.

        `through_mlp` is r of its MLP, where another number of tokens goes through that.
        """
        given = (computed, made, pairs, computed if through_mlp is None else through_mlp)
        r, s, p, t = (np.asarray(one, np.float64) for one in given)
        d, a, c = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        m, e = np.asarray(self.mlp, np.float64), np.asarray(self.experts, np.float64)
        layers = 4 * r * d * a + 4 * s * d * c + 4 * p * a + 2 * self.mlp_matrices * t * d * m + 2 * t * d * e
        return layers.sum(axis=-1) + 2 * d * self.vocabulary

    def kv_bytes(self, keys: Any) -> Any:
        """Bytes [...] of the keys and values of `keys` tokens, int [..., layer], all layers together."""
        return 2.0 * self.kv_heads * self.head_dim * self.value_bytes * np.asarray(keys).sum(axis=-1)


def _windows(text: Any, layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 for none; all have the one that is stated, unless kinds of layers are named."""
    window = getattr(text, "sliding_window", None) or 0
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _check_known(text: Any) -> None:
    """Raise ValueError where the layers of a text configuration are not those of the formula."""
    found = [name for name in UNKNOWN if getattr(text, name, None)]
    found += sorted(set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYERS)
    if found:
        raise ValueError(f"{type(text).__name__} has {', '.join(found)}, not counted here; give a ModelShape by hand")


@dataclass(frozen=True)
class Costs:
    """What one decode cost the language model.

    Attributes
    ----------
    flops : float64 [step], step 0 being prefill
    kv_bytes_read : float64 [step], 0 at prefill
    kv_bytes_held : float64 [step], the cache that the method needs after the step
    """

    flops: np.ndarray
    kv_bytes_read: np.ndarray
    kv_bytes_held: np.ndarray

    @property
    def peak_kv_bytes(self) -> float:
        """The largest cache of the run."""
        return float(self.kv_bytes_held.max())


def count_costs(
    shape: ModelShape,
    k_per_layer: np.ndarray,
    *,
    text: int,
    patches: int,
    others: int = 0,
    frozen_layers: Sequence[int] = (),
    blind_layers: Sequence[int] = (),
    neighbours: float | None = None,
    active_heads: Sequence[float] | None = None,
    mlp_share: float = 1.0,
    read_by_text: Sequence[int] | None = None,
    read_by_patches: Sequence[int] | None = None,
    scored_layers: Sequence[int] = (),
    forgets: bool = False,
    recomputes: bool = False,
    canvas: int = 0,
    positions: Sequence[int] | np.ndarray | None = None,
) -> Costs:
    """Cost of every step of one decode.

    Parameters
    ----------
    shape : ModelShape
    k_per_layer : int [step, model_layer]
        Patches visible at each step and layer; step 0 is prefill, each later step reads one more generated token.
    text, patches, others : int
        Tokens of the prompt that belong to no picture, patches, and the other tokens of pictures (line breaks and the
        like), which are visible wherever any patch is.
    frozen_layers : list of int
        Layers of prefill that make the keys and values of pictures, and do not compute them any further.
    blind_layers : list of int
        Layers in which text never sees pictures. Where pictures are frozen as well, nobody needs their keys.
    neighbours : float, optional
        Patches that a patch sees in prefill, mean, where that is a window.
    active_heads : float [model_layer], optional
        Share of the heads that pictures use in prefill. Text works out the weights of the others, and not what they
        would read; decode steps are counted with all heads.
    mlp_share : float
        Share of the neurons that pictures use in prefill.
    read_by_text, read_by_patches : int [model_layer], optional
        Tokens of pictures that text, or pictures, attend to in prefill, where they are fewer than are visible.
    scored_layers : list of int
        Layers at which a decode step reads the keys of all patches that prefill left, in order to choose; nothing more
        than is visible where the others are forgotten.
    forgets : bool, whether a decode step deletes what it hides, so that it need not be held
    recomputes : bool, whether every step reads prompt and answer anew, as prefill does, and holds no cache
    canvas : int
        Places that every step reads at once behind a cached prompt, if there are any: of a model that denoises. Step 0
        is prefill and the first of these.
    positions : int [patch], optional
        Places of the patches in the prompt, for layers with a window: what has left it nobody reads, hidden or not.

    Returns
    -------
    Costs

    Notes
    -----
    Which patches a layer hides is not given, only how many. In a layer with a window as many as can be are taken to be
    those that have left it, so its counts are exact without pruning and else at most too high: a pruner is credited
    with nothing that the window saves by itself.

    Raises
    ------
    ValueError
        The counts do not fit the model or the image.
    """
    k = np.asarray(k_per_layer, np.int64)
    if k.ndim != 2 or k.shape[1] != shape.layers or not len(k):
        raise ValueError(f"k_per_layer must be [step, model_layer] with {shape.layers} layers, got shape {k.shape}")
    if k.min() < 0 or k.max() > patches or text < 1:
        raise ValueError(f"expected 0 to {patches} patches and some text, got {k.min()} to {k.max()} and {text} tokens")
    layers, steps = np.arange(shape.layers), np.arange(len(k))[:, None]
    blind = np.isin(layers, blind_layers)
    k, pictures = k + others * (k > 0), patches + others  # from here on, tokens of pictures
    windows = np.asarray(shape.windows)
    # Without places the pictures come first. Their other tokens, whose places are not given, leave with the first.
    places = np.arange(patches) if positions is None else np.sort(positions)

    def reached(visible: np.ndarray, newest: int = 0) -> np.ndarray:
        """Tokens [step, layer] that are seen where so many of pictures are visible, before ``newest`` to come."""
        total = text + pictures + steps
        limits = np.where(windows > 0, np.minimum(windows - newest, total), total)
        gone = total - limits
        left = np.searchsorted(places, gone) + others * (gone > 0)
        return limits - np.maximum(pictures - visible - np.minimum(left, gone), 0)

    words = text + steps  # of the prompt and of the answer so far
    updated = np.where(np.isin(layers, frozen_layers), 0, k)
    by_text, by_patches = (k if few is None else np.asarray(few) for few in (read_by_text, read_by_patches))
    by_text = np.where(blind, 0, by_text)
    by_patches = by_patches if neighbours is None else np.minimum(by_patches, neighbours + others)
    active = 1.0 if active_heads is None else np.asarray(active_heads)
    pairs = words * (words + by_text * (1 + active) / 2) + updated * (words + by_patches) * active
    made = words + np.where((updated > 0) | (by_text > 0), k, 0)  # where anybody reads them
    # Of reading all up to a step at once.
    whole = shape.flops(words + updated * active, made, pairs, words + updated * mlp_share)
    if recomputes:
        nothing = np.zeros(len(k))
        return Costs(whole, nothing, nothing)
    if canvas:
        seen = text + k + canvas
        flops, read = shape.flops(canvas, canvas, canvas * seen), shape.kv_bytes(seen)
        flops[0] += whole[0]
        return Costs(flops, read, read)
    k = np.where(blind, 0, k)  # what steps see, and so what is worth holding
    seen, scored = reached(k), np.isin(layers, [] if forgets else scored_layers)
    keys_only = shape.kv_bytes(np.where(scored, reached(k[:1]) - seen, 0)) / 2
    flops, read = shape.flops(1, 1, seen), shape.kv_bytes(seen) + keys_only
    flops[0], read[0] = whole[0], 0.0
    return Costs(flops, read, shape.kv_bytes(reached(k if forgets else k[:1], newest=1)))


def costs_of(trace: Any) -> Costs:
    """Costs of every step of a trace, dense or pruned.

    Parameters
    ----------
    trace : Trace, decoded to its end

    Returns
    -------
    Costs; the formula is that of this module

    Raises
    ------
    ValueError
        The trace does not say what its costs depend on (``meta["costs"]``): it is unfinished, or older than that. Or
        its model has layers that the formula does not count.
    """
    if not hasattr(trace, "meta"):
        raise ValueError(f"costs_of takes a Trace, as vpa.decode or vpa.Trace.open gives one; got {trace!r}")
    if "costs" not in trace.meta:
        raise ValueError("this trace does not say what its costs depend on; decode it again, to the end")
    facts = dict(trace.meta["costs"])
    if "unknown" in facts:
        raise ValueError(f"the costs of this trace are not known: {facts['unknown']}")
    shape, patches = ModelShape(**facts.pop("shape")), len(trace.grid)
    dense = np.full((len(trace), shape.layers), patches)
    counts = dense if trace.k_per_layer is None else trace.k_per_layer.values
    return count_costs(shape, counts, patches=patches, positions=trace.grid.position, **facts)
