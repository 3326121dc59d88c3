"""Each family's rows, tokens and pruned decodes, against the library's own eager attention and generate."""

import copy
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BUILDERS
from transformers import DynamicCache
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

import visionpulse_analysis as vpa
from visionpulse_analysis.models.layouts import LAYOUTS

QUESTION = "where is the red circle ?"
QUESTIONS = [QUESTION, "how many ?", "describe it"]
STEPS = 6
SAME_TYPE = {  # with other towers or words
    "llava_siglip": "llava", "pixtral": "llava",
    **dict.fromkeys(("internvl2_5", "internvl3_5", "internvl3_5_moe"), "internvl"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stock_inputs(family) -> Any:
    """The library's own processor as a function of pictures and question; None where it needs torchvision."""
    tiny: Any = family.tiny
    processor: Any = tiny.processor
    if processor is None:
        return None
    if not isinstance(processor, ProcessorMixin):
        with pytest.MonkeyPatch.context() as patch:  # its video half needs torchvision and is left out
            patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *given: None)
            patch.setattr(processing_smolvlm, "num2words", str)
            video = {"video_processor": None} if "video_processor" in signature(processor).parameters else {}
            processor = processor(family.vlm.image_processor, tiny.tokenizer, **video)
    processor = copy.copy(processor)
    processor.image_processor = family.vlm.image_processor  # torchvision's, where that is there
    processor.chat_template = tiny.tokenizer.chat_template

    tensors: Any = {"return_tensors": "pt"}

    def inputs(pictures, question):
        if processor.chat_template is None:  # PaliGemma
            text = "<image>" * len(pictures) + question
            return processor(images=pictures, text=text, **tensors)
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
        text = tiny.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        begun = tiny.tokenizer.bos_token is not None and text.startswith(tiny.tokenizer.bos_token)
        return processor(images=[pictures], text=text, **tensors, **{"add_special_tokens": not begun})

    return inputs


def test_the_stock_processor_gives_the_same_inputs(family, photos, stock_inputs):
    if stock_inputs is None:
        pytest.skip("the library's own processor needs torchvision")
    large = np.random.default_rng(1).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    for pictures in ([photos[1]], photos, [large]):
        expected = stock_inputs(pictures, QUESTION)
        given = family.vlm.family.batch([family.vlm.prompt(pictures, QUESTION)], padding=0)
        assert set(given) == set(expected) - {"labels"}
        for name, value in given.items():
            # Idefics3's tiles are counted along another axis; the model flattens both.
            assert torch.equal(value.flatten(), torch.as_tensor(expected[name]).to(value.dtype).flatten()), name


@pytest.mark.shows("still", "several images", "recorded")
def test_rows_and_tokens_are_those_of_eager_generation(family, photos, stock_inputs):
    vlm = family.vlm
    for pictures in ([photos[1]], photos):
        trace = vpa.decode(vlm, pictures, QUESTION, heads="all", max_new_tokens=STEPS)
        prompt = vlm.prompt(pictures, QUESTION)
        inputs = dict(stock_inputs(pictures, QUESTION) if stock_inputs else vlm.family.batch([prompt], padding=0))
        inputs.pop("labels", None)
        length = inputs["input_ids"].shape[1]
        vlm.model.set_attn_implementation({"text_config": "eager"})
        try:
            out = vlm.model.generate(
                **inputs, max_new_tokens=STEPS, do_sample=False, past_key_values=DynamicCache(),
                output_attentions=True, return_dict_in_generate=True,
            )  # fmt: skip
        finally:
            vlm.model.set_attn_implementation({"text_config": "sdpa"})
        assert trace.token_ids.tolist() == out.sequences[0, length:].tolist()
        position = torch.from_numpy(trace.grid.position.copy())
        for step, layers in enumerate(out.attentions):
            rows = torch.stack([layer[0, :, -1] for layer in layers])[..., position].numpy()
            assert np.abs(trace.mass.values[step] - rows.sum(-1)).max() < 1e-5
            # Half a unit in the last place of the stored float16, plus the kernels' own rounding.
            assert np.abs(trace.attention.values[step] - rows).max() <= np.spacing(np.float16(rows.max())) / 2 + 1e-5


@pytest.mark.shows("recorded", "batch")
def test_recording_changes_no_logit_and_a_batch_no_row(family, photos):
    plain = vpa.decode(family.vlm, photos, QUESTIONS, layers="none", max_new_tokens=STEPS)
    recorded = vpa.decode(family.vlm, photos, QUESTIONS, max_new_tokens=STEPS)
    for row, (photo, question) in enumerate(zip(photos, QUESTIONS, strict=True)):
        alone = vpa.decode(family.vlm, photo, question, max_new_tokens=STEPS)
        assert plain[row].tokens == recorded[row].tokens == alone.tokens
        assert np.array_equal(plain[row].logprobs, recorded[row].logprobs)
        assert np.abs(recorded[row].mass.values - alone.mass.values).max() < 1e-5


@pytest.mark.shows("batch", "pruned")
def test_masked_equals_gathered_and_keeping_all_equals_dense(family, photos):
    pictures, questions = [*photos[:2], [photos[0], photos[2]]], [*QUESTIONS[:2], QUESTION]
    pruner = vpa.VisionPulse(budget=0.25)
    masked, gathered = (
        vpa.decode(family.vlm, pictures, questions, max_new_tokens=STEPS, pruner=pruner, execution=execution)
        for execution in ("masked", "gathered")
    )
    for a, b in zip(masked, gathered, strict=True):
        assert a.tokens == b.tokens and np.abs(a.logprobs - b.logprobs).max() < 1e-5
        assert (a.k.values[1:] == len(a.grid) // 4).all()
    everything = vpa.decode(family.vlm, photos[1], QUESTION, max_new_tokens=STEPS, pruner=vpa.VisionPulse(budget=1.0))
    dense = vpa.decode(family.vlm, photos[1], QUESTION, max_new_tokens=STEPS)
    assert everything.kept.values.all() and np.array_equal(everything.logprobs, dense.logprobs)


def test_every_supported_family_is_tested():
    assert set(LAYOUTS) - {"llava with pixtral"} == {SAME_TYPE.get(name, name) for name in BUILDERS}


def test_the_default_anchor_sees_the_whole_prompt(family):
    anchor = family.vlm.default_anchor
    assert anchor not in family.vlm.windowed_layers
    assert abs(anchor - 1) <= (1 if family.vlm.windowed_layers else 0)


def test_the_users_own_objects_decode_as_the_loaded_ones(family, photos):
    """`load((model, processor))`; without torchvision a stand-in, as its stock processor cannot be made everywhere."""
    loaded, tiny = family.vlm, family.tiny

    class Processor:
        tokenizer, image_processor, chat_template = loaded.tokenizer, loaded.image_processor, None
        video_processor = None

    own = vpa.load((loaded.model, Processor()))
    own.settings = loaded.settings
    assert own.model is loaded.model and own.weights_hash == loaded.weights_hash
    expected, found = (vpa.decode(vlm, photos[1], QUESTION, max_new_tokens=2) for vlm in (loaded, own))
    assert found.data_hash == expected.data_hash and found.meta["model"] == loaded.model.config._name_or_path
    with pytest.raises(ValueError, match="are for models by name"):
        vpa.load((loaded.model, Processor()), dtype="float32")
    assert tiny.tokenizer.chat_template == loaded.tokenizer.chat_template
