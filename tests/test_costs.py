"""Costs: the formula against counted forwards with patches really taken out, and against caches really held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import StepAttention
from visionpulse_analysis.attention.gathered import Gathered
from visionpulse_analysis.attention.routing import Call
from visionpulse_analysis.metrics.flops import Costs, ModelShape, costs_of, count_costs
from visionpulse_analysis.pruners import FastV, KeepAll, VisionPulse
from visionpulse_analysis.testbed.training.model import Size, build_model

SIZES = [
    Size(layers=4, width=64, heads=4, kv_heads=4, head_dim=16, mlp=96),
    Size(layers=5, width=64, heads=6, kv_heads=2, head_dim=32, mlp=160),
    Size(layers=3, width=256, heads=2, kv_heads=1, head_dim=64, mlp=1024),
]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size.layers}x{size.width}")
def model(request):
    return build_model(0, request.param).eval()


@torch.inference_mode()
def run_layers(language, states: list[torch.Tensor], past=None):
    """Run every layer on its own tokens, [1, token, width] each; the counts of tokens are what costs depend on."""
    for layer, given in zip(language.layers, states, strict=True):
        position = torch.arange(given.shape[1])[None].expand(3, 1, -1)
        cos, sin = language.rotary_emb(given, position)
        layer(given, position_embeddings=(cos, sin), attention_mask=None)


def test_prefill_with_fewer_patches_at_each_layer(model):
    """Each layer really runs on the tokens left; then one row of logits."""
    text, patches, shape = 30, 400, ModelShape.of(model.config)
    k = np.linspace(patches, 0, shape.layers).astype(int)
    states = [torch.randn(1, text + left, shape.width) for left in k]
    # Made of plain matrix products, which the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        run_layers(model.model.language_model, states)
        model.lm_head(states[0][:, -1:])
    costs = count_costs(shape, k[None], text=text, patches=patches)
    assert costs.flops[0] == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_formula_of_authors_is_a_stated_part_of_ours():
    """One layer of LLaVA-1.5-7B, and the shares that they report: 4 n d^2 + 2 n^2 d + 2 n d m."""
    d, m, layers, text = 4096, 11008, 32, 64
    shape = ModelShape(d, 32, 32, 128, 32000, (m,) * layers, (0,) * layers)

    def theirs(n, matrices):
        return 4 * n * d**2 + 2 * n**2 * d + matrices * n * d * m

    def ours(patches):
        costs = count_costs(shape, np.full((1, layers), patches), text=text, patches=patches)
        return (costs.flops[0] - 2 * d * shape.vocabulary) / layers

    assert ours(576) == 2 * theirs(640, 3)
    assert ours(576) / theirs(640, 2) == pytest.approx(2.55, abs=0.01)
    assert ours(56) / ours(576) == pytest.approx(theirs(120, 2) / theirs(640, 2), abs=0.002)


def test_other_tokens_of_a_picture_count_where_patches_are_visible(model):
    shape, k = ModelShape.of(model.config), np.zeros((3, ModelShape.of(model.config).layers), int)
    k[:, :2] = 40
    parted = count_costs(shape, k, text=30, patches=40, others=5, frozen_layers=[1])
    as_patches = count_costs(shape, np.where(k, 45, 0), text=30, patches=45, frozen_layers=[1])
    for name in ("flops", "kv_bytes_read", "kv_bytes_held"):
        assert np.array_equal(getattr(parted, name), getattr(as_patches, name))


def test_a_frozen_layer_makes_keys_and_values_of_patches_and_nothing_else(model):
    text, patches, shape = 30, 400, ModelShape.of(model.config)
    layer = model.model.language_model.layers[0]
    words, everything = torch.randn(text, shape.width), torch.randn(text + patches, shape.width)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        attention = layer.self_attn
        query = attention.q_proj(words).view(text, shape.heads, -1).transpose(0, 1)
        key, value = (
            p(everything).view(text + patches, shape.kv_heads, -1).transpose(0, 1)
            for p in (attention.k_proj, attention.v_proj)
        )
        key, value = (given.repeat_interleave(shape.heads // shape.kv_heads, 0) for given in (key, value))
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
        layer.mlp(attention.o_proj(mixed.transpose(0, 1).flatten(1)))
    dense, frozen = (
        count_costs(shape, np.full((1, shape.layers), patches), text=text, patches=patches, frozen_layers=layers)
        for layers in ([], [0])
    )
    one_layer = (dense.flops[0] - 2 * shape.width * shape.vocabulary) / shape.layers
    assert dense.flops[0] - frozen.flops[0] == pytest.approx(one_layer - counter.get_total_flops(), rel=0.01)


def test_attention_that_reads_fewer_patches_costs_fewer_pairs(model):
    shape, text, patches = ModelShape.of(model.config), 20, 100
    k, head = np.full((1, shape.layers), patches), shape.heads * shape.head_dim
    dense = count_costs(shape, k, text=text, patches=patches)
    blind = count_costs(
        shape, k, text=text, patches=patches, read_by_text=[1, *[patches] * (shape.layers - 1)],
        read_by_patches=[0, *[patches] * (shape.layers - 1)],
    )  # fmt: skip
    assert dense.flops[0] - blind.flops[0] == 4 * head * (text * (patches - 1) + patches * patches)


@pytest.mark.parametrize("execution", ["masked", "gathered"])
def test_bytes_are_those_of_the_keys_and_values_really_read(vlm, pictures, monkeypatch, execution):
    """What the gathered attention gets is counted call by call; masked execution reports the same costs."""
    read: list[int] = []

    def newest(call, original=Call.run_newest):
        read.append(call.key.nbytes + call.value.nbytes)
        return original(call)

    def attend(self, query, key, value, *given, original=Gathered.attend):
        columns = self.index.shape[1] + sum(end - first for first, end in self.views)
        read.append((key[:, :, 0].nbytes + value[:, :, 0].nbytes) * columns)
        return original(self, query, key, value, *given)

    monkeypatch.setattr(StepAttention.__init__, "__defaults__", ((), "masked", newest))
    monkeypatch.setattr(Gathered, "attend", attend)
    for pruner in (VisionPulse(budget=0.1), FastV(3, 0.2), None, KeepAll()):
        read.clear()
        trace = vpa.decode(
            vlm,
            pictures[1],
            "where is the red circle ?",
            pruner=pruner,
            max_new_tokens=5,
            layers="none",
            execution=execution,
        )
        costs, per_step = costs_of(trace), np.reshape(read, (-1, 8)).sum(axis=1)
        text, n = trace.meta["costs"]["text"], 144
        scoring = 4 * 2 * 32 * (n - int(0.1 * n)) if isinstance(pruner, VisionPulse) else 0  # float32 keys, one layer
        dense = [2 * 4 * 2 * 32 * 8 * (text + n + step) for step in range(1, len(trace))]
        if execution == "gathered":
            assert costs.kv_bytes_read[1:].tolist() == (per_step + scoring).tolist()
        else:
            assert per_step.tolist() == dense and (costs.kv_bytes_read[1:] <= per_step).all()


def test_dense_peak_is_the_size_of_the_cache(vlm, pictures):
    trace = vpa.decode(vlm, pictures[0], "how many blue shapes ?", max_new_tokens=6)
    tokens = trace.meta["costs"]["text"] + 64 + 5  # the newest token of the last step has no successor to read it
    assert costs_of(trace).peak_kv_bytes == 8 * 2 * tokens * 2 * 32 * 4
    assert costs_of(trace).kv_bytes_read[0] == 0


def test_what_is_forgotten_is_not_held():
    shape = ModelShape(8, 2, 1, 4, 10, (16, 16), (0, 0), value_bytes=1)
    k = np.array([[100, 100], [100, 100], [0, 0], [0, 0]])
    held = {forgets: count_costs(shape, k, text=10, patches=100, forgets=forgets) for forgets in (False, True)}
    per_token = 2 * 2 * 4
    assert (held[False].kv_bytes_held / per_token).tolist() == [110, 111, 112, 113]
    assert (held[True].kv_bytes_held / per_token).tolist() == [110, 111, 12, 13]
    assert held[True].peak_kv_bytes == 111 * per_token
    assert (held[True].kv_bytes_read / per_token).tolist() == [0, 111, 12, 13]


def test_scored_layers_read_the_keys_of_every_patch_that_prefill_left():
    shape = ModelShape(8, 2, 1, 4, 10, (16, 16), (0, 0), value_bytes=2)
    k = np.array([[100, 60], [100, 5]])
    without = count_costs(shape, k, text=10, patches=100)
    with_it = count_costs(shape, k, text=10, patches=100, scored_layers=[1])
    assert (with_it.kv_bytes_read - without.kv_bytes_read).tolist() == [0, (60 - 5) * 4 * 2]


@pytest.mark.parametrize("seed", range(20))
def test_a_window_saves_itself_what_has_left_it(seed):
    """Tokens seen, counted one by one: as many without pruning, and at most too many with it."""
    rng, window = np.random.default_rng(seed), 12
    patches, text = 10, int(rng.integers(3, 20))
    shape = ModelShape(8, 2, 1, 4, 10, (16, 16), (0, 0), value_bytes=1, windows=(0, window))
    positions = np.sort(rng.choice(text + patches, patches, replace=False))
    hidden = rng.random((6, patches)) < rng.random()
    k = np.stack([np.full(6, patches), (~hidden).sum(axis=1)], axis=1)
    options = {"text": text, "patches": patches, "positions": positions}
    dense, found = (count_costs(shape, counts, **options) for counts in (np.full_like(k, patches), k))
    somewhere = count_costs(shape, k, text=text, patches=patches)
    for step in range(1, 6):
        total, bytes_of_all = text + patches + step, 8 * (text + patches + step)
        newest = np.arange(total) >= total - window
        gone = np.isin(np.arange(total), positions[hidden[step]])
        assert dense.kv_bytes_read[step] == bytes_of_all + 8 * newest.sum()
        assert bytes_of_all + 8 * (newest & ~gone).sum() <= found.kv_bytes_read[step] <= dense.kv_bytes_read[step]
        assert found.kv_bytes_read[step] <= somewhere.kv_bytes_read[step] <= dense.kv_bytes_read[step]
        assert found.kv_bytes_held[step] <= 8 * (total + min(window - 1, total))


def test_a_window_longer_than_the_trace_changes_nothing():
    k = np.array([[100, 60, 60], [100, 5, 0], [0, 5, 100]])
    given = {"text": 10, "patches": 100, "others": 7, "scored_layers": [1], "positions": np.arange(3, 103)}
    plain = ModelShape(8, 2, 1, 4, 10, (16,) * 3, (0,) * 3)
    wide = ModelShape(8, 2, 1, 4, 10, (16,) * 3, (0,) * 3, windows=(121, 0, 1000))
    for forgets in (False, True):
        one, other = (count_costs(shape, k, forgets=forgets, **given) for shape in (plain, wide))
        for name in ("flops", "kv_bytes_read", "kv_bytes_held"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


class TestShapes:
    def test_windows_are_stated_for_all_layers_or_by_kind(self):
        from transformers import Gemma3TextConfig, MistralConfig, Qwen2Config

        sizes = {"num_hidden_layers": 6, "sliding_window": 24}
        assert ModelShape.of(MistralConfig(**sizes)).windows == (24,) * 6
        assert ModelShape.of(Gemma3TextConfig(**sizes)).windows == (24, 24, 24, 24, 24, 0)
        assert ModelShape.of(Qwen2Config(**sizes)).windows == (0,) * 6  # its switch is off
        with pytest.raises(ValueError, match="a window per layer"):
            ModelShape(8, 2, 1, 4, 10, (16, 16), (0, 0), windows=(4,))

    def test_of_a_mixture_of_experts(self):
        from transformers import Qwen3VLMoeTextConfig

        config = Qwen3VLMoeTextConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=100, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24,
            decoder_sparse_step=2, mlp_only_layers=[3], vocab_size=50,
        )  # fmt: skip
        shape = ModelShape.of(config)
        assert (shape.mlp, shape.experts) == ((100, 48, 100, 100), (0, 8, 0, 0))
        assert ModelShape(**shape.to_dict()) == shape

    def test_of_an_older_model(self):
        from transformers import OPTConfig

        config = OPTConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=50)
        config.intermediate_size = 128
        shape = ModelShape.of(config)
        assert (shape.kv_heads, shape.head_dim, shape.mlp_matrices) == (4, 16, 2)

    def test_what_a_configuration_lacks_is_named(self):
        class Config:
            hidden_size = 8

        with pytest.raises(ValueError, match="Config has no num_attention_heads"):
            ModelShape.of(Config())

    @pytest.mark.parametrize(
        ("k", "text", "message"),
        [
            (np.zeros((2, 3)), 5, r"\[step, model_layer\] with 2 layers, got shape \(2, 3\)"),
            (np.zeros((0, 2)), 5, "got shape"),
            (np.full((1, 2), 11), 5, "expected 0 to 10 patches and some text, got 11 to 11 and 5 tokens"),
            (np.full((1, 2), -1), 5, "expected 0 to 10"),
            (np.ones((1, 2)), 0, "and 0 tokens"),
        ],
    )
    def test_counts_that_do_not_fit(self, k, text, message):
        with pytest.raises(ValueError, match=message):
            count_costs(ModelShape(8, 2, 1, 4, 10, (16, 16), (0, 0)), k, text=text, patches=10)

    def test_a_trace_that_does_not_say(self, vlm, pictures):
        trace = vpa.decode(vlm, pictures[0], "how many blue shapes ?", max_new_tokens=2)
        assert isinstance(costs_of(trace), Costs)
        meta = {name: value for name, value in trace.meta.items() if name != "costs"}
        with pytest.raises(ValueError, match="does not say what its costs depend on"):
            costs_of(trace.with_meta(meta))
