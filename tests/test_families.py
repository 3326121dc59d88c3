"""The supported families, each as a tiny random model built from its own configuration, with merged patches."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import visionpulse_analysis as vpa
from visionpulse_analysis.models import SUPPORTED_TYPES
from visionpulse_analysis.testbed.tokens import build_tokenizer, vocabulary

IDS = {word: index for index, word in enumerate(vocabulary())}
QUESTION = "where is the red circle ?"
PATCH, MERGE = 4, 2


def text(**extra) -> Any:
    return {
        "vocab_size": len(IDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "pad_token_id": IDS["<|pad|>"], "eos_token_id": IDS["<|im_end|>"], **extra,
    }  # fmt: skip


def tokens() -> Any:
    return {
        "image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
    }  # fmt: skip


def rope(section):
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def qwen3_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": 32,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text(head_dim=8, rope_parameters=rope([2, 1, 1])), vision_config=vision, **tokens()
    )
    return Qwen3VLForConditionalGeneration(config)


def qwen2_5_vl():
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": 32, "window_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text(rope_parameters=rope([2, 1, 1])), vision_config=vision, **tokens())
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen2_vl():
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(text_config=text(rope_parameters=rope([2, 1, 1])), vision_config=vision, **tokens())
    return Qwen2VLForConditionalGeneration(config)


BUILDERS = {"qwen3_vl": qwen3_vl, "qwen2_5_vl": qwen2_5_vl, "qwen2_vl": qwen2_vl}


@pytest.fixture(scope="module", params=BUILDERS)
def family(request, tmp_path_factory):
    """A model of the family, saved and loaded as a user would."""
    torch.manual_seed(0)
    model = BUILDERS[request.param]()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= 4
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=PATCH, temporal_patch_size=2, merge_size=MERGE, size={"shortest_edge": 1024, "longest_edge": 16384}
    ).save_pretrained(folder)
    return vpa.load(str(folder))


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8) for shape in ((64, 64), (40, 96), (80, 48))]


def test_every_supported_family_is_tested():
    assert set(SUPPORTED_TYPES) == set(BUILDERS)


def test_rows_are_those_of_eager_attention(family, photos):
    for photo in photos:
        trace = vpa.decode(family, photo, QUESTION, heads="all", max_new_tokens=6)
        prompt = family.prompt(photo, QUESTION)
        ids = torch.cat([prompt.ids, torch.tensor(trace.token_ids[:-1])])[None]
        family.model.set_attn_implementation({"text_config": "eager"})
        try:
            with torch.inference_mode():
                out = family.model(
                    input_ids=ids,
                    pixel_values=prompt.pixels,
                    image_grid_thw=prompt.grid_thw,
                    mm_token_type_ids=(ids == family.model.config.image_token_id).int(),
                    output_attentions=True,
                )
        finally:
            family.model.set_attn_implementation({"text_config": "sdpa"})
        rows = torch.stack(out.attentions, 1)[0][:, :, len(prompt.ids) - 1 :, prompt.grid.position.copy()].permute(
            2, 0, 1, 3
        )
        assert np.abs(trace.mass.values - rows.sum(-1).numpy()).max() < 1e-6
        assert np.abs(trace.attention.values - rows.numpy()).max() <= np.spacing(np.float16(rows.max())) / 2 + 1e-6
        assert trace.token_ids.tolist() == out.logits[0, len(prompt.ids) - 1 :].argmax(-1).tolist()


def test_one_bright_merged_cell_maps_to_its_patch(family):
    side = PATCH * MERGE
    for rows, cols, row, col in ((8, 8, 3, 5), (5, 12, 0, 11), (10, 6, 9, 0)):
        photo = np.zeros((rows * side, cols * side, 3), np.uint8)
        photo[row * side : (row + 1) * side, col * side : (col + 1) * side] = 255
        prompt = family.prompt(photo, QUESTION)
        bright = int(prompt.pixels.reshape(len(prompt.grid), -1).mean(dim=1).argmax())
        assert prompt.grid.shape() == (rows, cols)
        assert (prompt.grid.row[bright], prompt.grid.col[bright]) == (row, col)


def test_batches_and_pruning(family, photos):
    questions = [QUESTION, "how many blue shapes ?", "describe the picture ."]
    plain = vpa.decode(family, photos, questions, layers="none", max_new_tokens=8)
    recorded = vpa.decode(family, photos, questions, max_new_tokens=8)
    pruner = vpa.VisionPulse(anchor_layer=1, budget=0.25)
    masked, gathered = (
        vpa.decode(family, [*photos, [photos[0], photos[1]]], [*questions, QUESTION], max_new_tokens=8,
                   pruner=pruner, execution=execution)
        for execution in ("masked", "gathered")
    )  # fmt: skip
    for row, (photo, question) in enumerate(zip(photos, questions, strict=True)):
        alone = vpa.decode(family, photo, question, max_new_tokens=8)
        assert plain[row].tokens == recorded[row].tokens == alone.tokens
        assert np.array_equal(plain[row].logprobs, recorded[row].logprobs)
        assert np.abs(recorded[row].mass.values - alone.mass.values).max() < 1e-5
    for a, b in zip(masked, gathered, strict=True):
        assert a.tokens == b.tokens and np.abs(a.logprobs - b.logprobs).max() < 1e-5
        assert (a.k.values[1:] == len(a.grid) // 4).all()
