"""Intercepting attention: nothing is renamed, everything is restored, nothing leaks between models."""

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.attention.routing import Call, active_interceptors, intercept, overhear
from visionpulse_analysis.testbed.training.model import build_model


def state_of(model):
    return (
        model.config._attn_implementation,
        model.config.text_config._attn_implementation,
        model.config.vision_config._attn_implementation,
        sorted(AttentionInterface._global_mapping),
        AttentionInterface.get_interface,
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        active_interceptors(model),
    )


@pytest.fixture(scope="module")
def models():
    return build_model(1).eval(), build_model(2).eval()


def run(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(10, 20)[None]).logits


def recorder(calls):
    def attend(call):
        calls.append(call.layer)
        return call.run()

    return attend


@pytest.mark.parametrize("way", [intercept, overhear])
def test_every_layer_is_called_and_nothing_changes(models, way):
    model, _ = models
    before, calls, state = run(model), [], state_of(model)
    with way(model, recorder(calls)):
        inside = run(model)
        assert state_of(model)[:4] == state[:4]  # nothing is renamed, nothing registered
    assert calls == list(range(8))
    assert torch.equal(before, inside)
    assert torch.equal(before, run(model))
    assert calls == list(range(8))
    assert state_of(model) == state


@pytest.mark.parametrize("way", [intercept, overhear])
def test_everything_is_restored_after_an_exception(models, way):
    model, _ = models
    before = state_of(model)
    with pytest.raises(RuntimeError, match="boom"), way(model, recorder([])):
        assert state_of(model) != before
        raise RuntimeError("boom")
    assert state_of(model) == before

    def fails(call):
        raise KeyError("inside")

    with pytest.raises(KeyError), way(model, fails):
        run(model)
    assert state_of(model) == before


def test_the_innermost_is_used_and_one_that_overhears_comes_last(models):
    model, _ = models
    before, all_of_them, outer, inner = state_of(model), [], [], []
    with intercept(model, recorder(outer)):
        with overhear(model, recorder(all_of_them)), intercept(model, recorder(inner)):
            run(model)
            assert (len(all_of_them), len(outer), len(inner)) == (0, 0, 8)
        run(model)
        assert (len(outer), len(inner)) == (8, 8)
    assert state_of(model) == before


def test_a_lookup_that_others_patched_meanwhile_stays_theirs(models):
    model, _ = models
    calls, again, expected = [], [], run(model)
    library = AttentionInterface.get_interface
    with intercept(model, recorder(calls)):
        ours = AttentionInterface.get_interface

        def theirs(self, attn_implementation, default):
            return ours(self, attn_implementation, default)

        AttentionInterface.get_interface = theirs
    try:
        assert AttentionInterface.get_interface is theirs and torch.equal(run(model), expected) and calls == []
        with intercept(model, recorder(again)):
            assert torch.equal(run(model), expected)
        assert again == list(range(8)) and AttentionInterface.get_interface is theirs
    finally:
        AttentionInterface.get_interface, attention._library_lookup = library, None
    assert torch.equal(run(model), expected)


def test_two_models_do_not_disturb_one_another(models):
    first, second = models
    expected = run(second)
    calls = []
    with intercept(first, recorder(calls)):
        assert torch.equal(run(second), expected)
        assert calls == []
        other = []
        with intercept(second, recorder(other)):
            run(first)
        assert (len(calls), len(other)) == (8, 0)


def test_models_that_share_a_configuration(models):
    first, _ = models
    twin = Qwen3VLForConditionalGeneration(first.config).eval()
    expected, calls = run(twin), []
    with intercept(first, recorder(calls)):
        assert torch.equal(run(twin), expected)
    assert calls == []


def test_a_kernel_whose_masks_do_not_say_what_is_seen_is_refused(models):
    model = build_model(1)
    for name in ("eager", "sdpa"):
        model.get_decoder().config._attn_implementation = name
        with intercept(model, Call.run):
            run(model)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    with (
        pytest.raises(ValueError, match=r"'flash_attention_2'.*attn_implementation='sdpa'"),
        intercept(model, Call.run),
    ):
        pass
    assert active_interceptors(model) == 0


def test_the_padding_mask_is_kept(models):
    model, _ = models
    ids = torch.arange(10, 20)[None]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 10])
    position = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.arange(10)[None]], dim=1).expand(3, 1, -1)
    with torch.inference_mode(), intercept(model, Call.run):
        alone = model(input_ids=ids).logits
        with_padding = model(input_ids=padded, attention_mask=mask, position_ids=position).logits
    assert torch.allclose(alone, with_padding[:, 3:], atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_keys_are_not_copied_for_the_query_heads_that_share_them(models, device, masked):
    """The library copies them on a CPU, and on other devices where there is a mask; without one its way stays."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, k, 32, generator=generator) for n, k in ((4, 1), (2, 30), (2, 30)))
    mask = torch.arange(30)[None] >= torch.tensor([[0], [4]]) if masked else None
    module = models[0].get_decoder().layers[0].self_attn
    kernel, asked = AttentionInterface._global_mapping["sdpa"], []

    def call_of(query, key, value, mask, kernel=kernel, **options):
        return Call(kernel, kernel, module, query, key, value, mask, (), {"scaling": 0.25, **options})

    given = (query, key, value, mask if mask is None else mask[:, None, None])
    expected, _ = call_of(*given).run()
    moved = [t if t is None else t.to(device) for t in given]
    found, _ = call_of(*moved).run_newest()
    assert found.shape == expected.shape
    assert device == "meta" or torch.allclose(found, expected, rtol=0, atol=1e-6)

    class Asked(Call):
        def run(self):
            asked.append(1)
            return super().run()

    Asked(**vars(call_of(*moved))).run_newest()
    assert bool(asked) == (device == "meta" and not masked)
    # Another kernel, or anything that a plain softmax does not take, is left to the kernel.
    for other in (call_of(*moved, kernel=lambda *_, **__: (None, None)), call_of(*moved, s_aux=query)):
        asked.clear()
        if other.plain:
            Asked(**vars(other)).run_newest()
            assert asked
        else:
            assert other.unknown == ["s_aux"]


def test_what_is_hidden_is_hidden_under_every_kind_of_mask(models):
    torch.manual_seed(0)
    module = models[0].get_decoder().layers[0].self_attn
    query, key, value = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 9, 32), torch.randn(2, 2, 9, 32)
    kernel, eager = AttentionInterface._global_mapping["sdpa"], object()
    hidden = torch.rand(2, 9) < 0.4
    padding = torch.tensor([[False] * 2 + [True] * 7, [True] * 9])[:, None, None]
    added = torch.zeros(2, 1, 1, 9).masked_fill(~padding, torch.finfo(torch.float32).min)
    shown = ~hidden[:, None, None]
    for mask, expected in ((None, shown), (padding, shown & padding), (added, shown & padding)):
        call = Call(kernel, eager, module, query, key, value, mask, (), {"scaling": 0.2})
        right = call.under(expected).run()[0]
        assert torch.allclose(call.hiding(hidden).run()[0], right, atol=1e-6)
    call = Call(kernel, kernel, module, query, key, value, None, (), {"scaling": 0.2})
    assert call.hiding(hidden).mask.dtype == torch.float32  # what an eager function adds
    assert torch.allclose(call.hiding(hidden).run()[0], call.under(shown).run()[0], atol=1e-6)
