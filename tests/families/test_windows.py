"""Text models that look at the newest tokens only, in each of the ways in which a configuration says so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_parts import PATCH, Tiny, text, tokenizer, tower
from transformers import DynamicCache

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.interventions.single_steps import SingleSteps
from visionpulse_analysis.models.processors import pil_class

STEPS = 6
QUESTIONS = ["a ?", "what is in the left corner ?", "how many ?"]
EXPERTS = {"num_local_experts": 2}
# The window is stated alone (as `sliding_window`), by the kinds of the layers, by a switch, or against these kinds.
STATED = {
    "mistral": (hf.MistralConfig, {}),
    "mixtral": (hf.MixtralConfig, EXPERTS),
    "phi3": (hf.Phi3Config, {}),
    "starcoder2": (hf.Starcoder2Config, {}),
    "qwen2": (hf.Qwen2Config, {"use_sliding_window": True, "max_window_layers": 2}),
    "cohere2": (hf.Cohere2Config, {}),
    "mistral that names its layers": (hf.MistralConfig, {"layer_types": ["full_attention"] * 4}),
}
WINDOWS = {"in the picture": 24, "in the padding": 95}  # the picture is 64 tokens, the prompts 85 to 110


@pytest.fixture(scope="module", params=[(name, window) for name in STATED for window in WINDOWS], ids=" ".join)
def windowed(request, tmp_path_factory):
    """A LLaVA with such a text model, its window, and a picture."""
    name, where = request.param
    kind, extra = STATED[name]
    words = tokenizer({"image_token": "<image>"}, "<image>", begins=False)
    torch.manual_seed(0)
    try:
        config = hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**tower(32, projection_dim=32)),
            text_config=kind(**text(words, sliding_window=WINDOWS[where], **extra)),
            image_token_index=words.image_token_id,
        )
    except Exception as error:
        if "Field 'use_cache' expected int, got bool" not in str(error):  # Cohere2 in transformers 5.4
            raise
        pytest.skip(str(error))
    model = hf.LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    pictures = pil_class("LlavaImageProcessor")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("windowed")
    processor = hf.LlavaProcessor(pictures, words, PATCH, "default", num_additional_image_tokens=1)
    Tiny(model, words, pictures, processor).save(folder)
    photo = np.random.default_rng(0).integers(0, 256, (8 * PATCH, 8 * PATCH, 3), dtype=np.uint8)
    return SimpleNamespace(vlm=vpa.load(str(folder)), window=WINDOWS[where], photo=photo)


def _same(one, other) -> None:
    assert one.tokens == other.tokens
    assert np.abs(one.mass.values - other.mass.values).max() < 1e-5
    assert np.abs(one.logprobs - other.logprobs).max() < 1e-4


def test_alone_is_eager_generation(windowed):
    vlm, question = windowed.vlm, QUESTIONS[1]
    trace = vpa.decode(vlm, windowed.photo, question, max_new_tokens=STEPS)
    inputs = vlm.family.batch([vlm.prompt(windowed.photo, question)], padding=0)
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        out = vlm.model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, past_key_values=DynamicCache(),
            output_attentions=True, return_dict_in_generate=True,
        )  # fmt: skip
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})
    assert trace.token_ids.tolist() == out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    position = torch.from_numpy(trace.grid.position.copy())
    rows = [[layer[0, :, -1].mean(dim=0)[position] for layer in step] for step in out.attentions]
    masses = torch.stack([torch.stack(step) for step in rows]).sum(-1).numpy()
    assert np.abs(trace.mass.values - masses).max() < 1e-5


def test_costs_are_those_of_the_librarys_own_cache(windowed):
    vlm, question = windowed.vlm, QUESTIONS[1]
    costs = vpa.costs_of(vpa.decode(vlm, windowed.photo, question, max_new_tokens=STEPS, layers="none"))
    inputs = vlm.family.batch([vlm.prompt(windowed.photo, question)], padding=0)
    cache = DynamicCache(config=vlm.model.config.get_text_config(decoder=True))
    length, read = len(vlm.prompt(windowed.photo, question).ids), 0
    vlm.model.generate(**inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, past_key_values=cache)
    assert costs.kv_bytes_held[-1] == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    for layer in cache.layers:
        one = (layer.keys.nbytes + layer.values.nbytes) / layer.keys.shape[2]
        read += one * min(windowed.window if layer.is_sliding else length + STEPS, length + STEPS - 1)
    assert costs.kv_bytes_read[-1] == read


@pytest.mark.parametrize("pruner", [None, vpa.VisionPulse(budget=0.25), vpa.make_pruner("fastv", budget=0.25)])
def test_a_batch_equals_each_row_alone(windowed, pruner):
    def decoded(**options):
        return vpa.decode(
            windowed.vlm, [windowed.photo] * 3, QUESTIONS, max_new_tokens=STEPS, pruner=pruner, **options
        )  # fmt: skip

    alone = decoded(batch_size=1)
    # Two rows at a time, so that the third takes the place of one that has ended.
    executions = ("masked",) if pruner is None else ("masked", "gathered")
    for given in [{"batch_size": 3}, *({"batch_size": 2, "execution": execution} for execution in executions)]:
        for one, other in zip(alone, decoded(**given), strict=True):
            _same(one, other)


def test_replay_wants_layers_that_see_the_whole_trace(windowed):
    trace = vpa.decode(windowed.vlm, windowed.photo, QUESTIONS[1], max_new_tokens=STEPS)
    with pytest.raises(ValueError, match="sees a sliding window, which is shorter than this trace"):
        SingleSteps.of(windowed.vlm, trace)
