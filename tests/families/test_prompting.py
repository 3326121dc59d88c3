"""How a model is asked: by its stock processor where that loads, with limits, system prompt, prefix, turns."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build
from transformers import ProcessorMixin

import visionpulse_analysis as vpa

QUESTION = "where is it ?"


@pytest.mark.parametrize("family", ["llava_next", "gemma3", "idefics3", "qwen3_vl"], indirect=True)
def test_the_stock_processor_is_taken_wherever_it_loads(family, photos, tmp_path, monkeypatch):
    vlm = family.vlm
    stock = isinstance(family.tiny.processor, ProcessorMixin) or vlm.processor is not None
    assert (vlm.processor is not None) == stock
    if vlm.processor is not None:
        assert (vlm.image_processor, vlm.tokenizer) == (vlm.processor.image_processor, vlm.processor.tokenizer)
    build(family.name).save(tmp_path)
    monkeypatch.setattr("visionpulse_analysis.families.processors.AutoProcessor", None)  # none loads
    without = vpa.load(str(tmp_path))
    assert without.processor is None
    found, expected = (one.prompt(photos[:2], QUESTION) for one in (without, vlm))
    assert torch.equal(found.ids, expected.ids) and found.grid.equals(expected.grid)


def test_own_code_of_a_processor_is_refused_unless_trusted(monkeypatch):
    def asks(*given, **options):
        raise ValueError("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")

    monkeypatch.setattr("visionpulse_analysis.families.processors.AutoProcessor.from_pretrained", asks)
    with pytest.raises(ValueError, match="code of its own, which is not run unless asked for"):
        vpa.load("scenes")
