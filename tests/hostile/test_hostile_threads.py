"""Several threads: right, or refused."""

from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.attention.routing import Call, intercept
from visionpulse_analysis.models.loading import VLM
from visionpulse_analysis.testbed.training.model import build_model

QUESTION = "where is the red circle ?"


def in_threads(*functions) -> list[Any]:
    """What each function returned or raised, all run at once, each in its own thread."""
    results: list[Any] = [None] * len(functions)
    barrier = Barrier(len(functions))

    def call(place, function):
        barrier.wait(60)
        try:
            results[place] = function()
        except Exception as error:
            results[place] = error

    threads = [Thread(target=call, args=item) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def twin(vlm, config) -> VLM:
    """Another model with weights of its own, of the given configuration."""
    model = Qwen3VLForConditionalGeneration(config).eval()
    return VLM("twin", model, vlm.tokenizer, vlm.image_processor)


@pytest.mark.parametrize("shared", [False, True], ids=["own configuration", "shared configuration"])
def test_two_models_in_two_threads_give_what_each_gives_alone(vlm, pictures, shared):
    first = twin(vlm, build_model(1).config)
    second = twin(vlm, first.model.config if shared else build_model(1).config)
    pruner = vpa.VisionPulse(budget=0.1)

    def work(one, **options):
        return lambda: [vpa.decode(one, pictures[0], QUESTION, max_new_tokens=6, **options) for _ in range(4)]

    calls = work(first, layers="none", pruner=pruner), work(second, layers=[2, 5])
    alone = [call()[0] for call in calls]
    for expected, found in zip(alone, in_threads(*calls), strict=True):
        assert [trace.data_hash for trace in found] == [expected.data_hash] * 4
    for one in (first, second):
        assert one.model.config.text_config._attn_implementation == "sdpa"
        assert attention.active_interceptors(one.model) == 0
    assert attention._library_lookup is None


def test_one_model_in_two_threads_is_refused_and_the_first_goes_on(vlm, pictures):
    expected = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=3)
    inside, done = Event(), Event()

    def first():
        with intercept(vlm.model, Call.run):
            inside.set()
            done.wait(60)
            return vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=3)

    def second():
        inside.wait(60)
        try:
            return vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=3)
        finally:
            done.set()

    right, refused = in_threads(first, second)
    assert right.data_hash == expected.data_hash
    assert isinstance(refused, RuntimeError) and "decoding in another thread" in str(refused)
    assert vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=3).data_hash == expected.data_hash


def test_plain_use_of_a_model_beside_a_decode_is_left_alone():
    model, ids = build_model(3), torch.arange(10, 20)[None]

    def run():
        with torch.inference_mode():
            return model(input_ids=ids).logits

    expected = run()

    def zeros(call):
        return torch.zeros_like(call.query).transpose(1, 2), None

    with intercept(model, zeros):
        assert not torch.equal(run(), expected)
        (beside,) = in_threads(run)
        assert torch.equal(beside, expected)
