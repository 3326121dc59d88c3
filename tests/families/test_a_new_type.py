"""A model type that nobody knows, registered with the library by its author, is recorded without an edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import build

import visionpulse_analysis as vpa

GREEDY = {"max_new_tokens": 3, "do_sample": False}


class NewConfig(hf.LlavaConfig):
    model_type = "written_this_morning"


class NewModel(hf.LlavaForConditionalGeneration):
    config_class = NewConfig


def test_a_new_type_is_loaded_decoded_mapped_and_watched(tmp_path, photos):
    if hf.__version__.startswith("5.4."):
        pytest.skip("this transformers makes no stock processor of this type without torchvision")
    hf.AutoConfig.register(NewConfig.model_type, NewConfig, exist_ok=True)
    hf.AutoModelForImageTextToText.register(NewConfig, NewModel, exist_ok=True)
    tiny = build("llava")
    known = tiny.model.config.to_dict()
    model = NewModel(NewConfig(**{name: value for name, value in known.items() if name != "model_type"}))
    model.load_state_dict(tiny.model.state_dict())
    model.eval().save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    vlm = vpa.load(str(tmp_path))
    assert type(vlm.model) is NewModel
    trace = vpa.decode(vlm, photos[0], "where is it ?", max_new_tokens=3, sample=None)
    prompt = vlm.prompt(photos[0], "where is it ?")
    inputs = {"input_ids": prompt.ids[None], "attention_mask": torch.ones_like(prompt.ids)[None], **prompt.inputs}
    with vpa.watch(vlm.model, vlm.processor) as seen:
        tokens = vlm.model.generate(**inputs, **GREEDY)[0, len(prompt.ids) :]
    (watched,) = seen.traces
    assert trace.token_ids.tolist() == tokens.tolist() == watched.token_ids.tolist()
    assert np.abs(trace.mass - watched.mass).max() < 1e-5 and len(trace.grid) == 64
