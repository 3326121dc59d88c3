"""Routing attention: everything is restored, nothing leaks between models."""

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from visionpulse_analysis import attention
from visionpulse_analysis.attention import _routes, active_routes, newest, route, stock
from visionpulse_analysis.testbed.model import build_model


def state_of(model):
    return (
        model.config._attn_implementation,
        model.config.text_config._attn_implementation,
        model.config.vision_config._attn_implementation,
        sorted(AttentionInterface._global_mapping),
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        active_routes(model),
    )


@pytest.fixture(scope="module")
def models():
    return build_model(1).eval(), build_model(2).eval()


def run(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(10, 20)[None]).logits


def recorder(calls):
    def attend(module, *args, **options):
        calls.append(module.layer_idx)
        return stock(module, *args, **options)

    return attend


def test_route_calls_every_layer_and_changes_nothing(models):
    model, _ = models
    before, calls = run(model), []
    with route(model, recorder(calls)):
        inside = run(model)
    assert calls == list(range(8))
    assert torch.equal(before, inside)
    assert torch.equal(before, run(model))
    assert calls == list(range(8))
    assert state_of(model)[:3] == ("sdpa", "sdpa", "sdpa")


def test_route_restores_after_an_exception(models):
    model, _ = models
    before = state_of(model)
    assert before[1] == "sdpa"  # else there would be nothing to restore
    with pytest.raises(RuntimeError, match="boom"), route(model, recorder([])):
        assert state_of(model) != before
        raise RuntimeError("boom")
    assert state_of(model) == before

    def fails(*args, **options):
        raise KeyError("inside")

    with pytest.raises(KeyError), route(model, fails):
        run(model)
    assert state_of(model) == before


def test_nested_routes_use_the_inner_one(models):
    model, _ = models
    before, outer, inner = state_of(model), [], []
    with route(model, recorder(outer)):
        with route(model, recorder(inner)):
            run(model)
        assert (len(outer), len(inner)) == (0, 8)
        run(model)
        assert (len(outer), len(inner)) == (8, 8)
    assert state_of(model) == before


def test_two_models_do_not_disturb_one_another(models):
    first, second = models
    expected = run(second)
    calls = []
    with route(first, recorder(calls)):
        assert torch.equal(run(second), expected)
        assert calls == []
        other = []
        with route(second, recorder(other)):
            run(first)
        assert (len(calls), len(other)) == (8, 0)


def test_models_that_share_a_configuration(models):
    first, _ = models
    from transformers import Qwen3VLForConditionalGeneration

    twin = Qwen3VLForConditionalGeneration(first.config).eval()
    expected, calls = run(twin), []
    with route(first, recorder(calls)):
        assert torch.equal(run(twin), expected)
    assert calls == []


def test_a_model_under_eager_is_refused():
    model = build_model(1)
    model.set_attn_implementation({"text_config": "eager"})
    with pytest.raises(ValueError, match=r"'eager'.*needs 'sdpa'"), route(model, stock):
        pass
    assert not any(module in _routes for module in model.modules())


def test_the_padding_mask_is_kept(models):
    model, _ = models
    ids = torch.arange(10, 20)[None]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 10])
    position = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.arange(10)[None]], dim=1).expand(3, 1, -1)
    with torch.inference_mode(), route(model, stock):
        alone = model(input_ids=ids).logits
        with_padding = model(input_ids=padded, attention_mask=mask, position_ids=position).logits
    assert torch.allclose(alone, with_padding[:, 3:], atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_keys_are_not_copied_for_the_query_heads_that_share_them(models, device, masked, monkeypatch):
    """The library copies them on a CPU, and on other devices where there is a mask; without one its way stays."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, k, 32, generator=generator) for n, k in ((4, 1), (2, 30), (2, 30)))
    mask = torch.arange(30)[None] >= torch.tensor([[0], [4]]) if masked else None
    module = models[0].get_decoder().layers[0].self_attn
    expected, _ = stock(module, query, key, value, mask if mask is None else mask[:, None, None], scaling=0.25)
    asked = []
    monkeypatch.setattr(attention, "stock", lambda *given, **options: asked.append(1) or stock(*given, **options))
    moved = (
        t if t is None else t.to(device) for t in (query, key, value, mask if mask is None else mask[:, None, None])
    )
    found, _ = newest(module, *moved, scaling=0.25)
    assert bool(asked) == (device == "meta" and not masked)
    assert found.shape == expected.shape
    assert device == "meta" or torch.allclose(found, expected, rtol=0, atol=1e-6)
