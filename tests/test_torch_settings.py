"""What a program sets in torch for all of itself changes no result."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from any_model import make_for_any

import visionpulse_analysis as vpa
from visionpulse_analysis._util.torch_settings import own_settings
from visionpulse_analysis.decoding.interventions.passes import TeacherForced

QUESTIONS = ["where is the red circle ?", "how many ?"]


@contextmanager
def set_to(name, value):
    if name == "dtype":
        before = torch.get_default_dtype()
        torch.set_default_dtype(value)
    elif name == "device":
        torch.set_default_device(value)
    elif name == "grad":
        torch.set_grad_enabled(value)
    elif name == "autocast":
        torch.set_autocast_enabled("cpu", value)
    elif name == "matmul":
        torch.set_float32_matmul_precision(value)
    else:
        torch.use_deterministic_algorithms(value)
    try:
        yield
    finally:
        if name == "dtype":
            assert torch.get_default_dtype() == value, "the user's setting is back"
            torch.set_default_dtype(before)
        elif name == "device":
            assert torch.get_default_device().type == value
            torch.set_default_device(None)
        elif name == "grad":
            torch.set_grad_enabled(True)
        elif name == "autocast":
            assert torch.is_autocast_enabled("cpu")
            torch.set_autocast_enabled("cpu", False)
        elif name == "matmul":
            assert torch.get_float32_matmul_precision() == value
            torch.set_float32_matmul_precision("highest")
        else:
            torch.use_deterministic_algorithms(False)


SETTINGS = [
    ("dtype", torch.float64), ("dtype", torch.bfloat16), ("device", "meta"), ("grad", False),
    ("deterministic", True), ("autocast", True), ("matmul", "medium"),
]  # fmt: skip


def decoded(vlm, pictures, name):
    pruner = None if name is None else make_for_any(name)
    return vpa.decode(vlm, pictures[:2], QUESTIONS, max_new_tokens=3, layers="anchor", pruner=pruner, batch_size=2)


@pytest.fixture(scope="module")
def known(vlm, pictures):
    return {name: decoded(vlm, pictures, name) for name in [None, *vpa.list_pruners()]}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_setting_changes_a_decode(vlm, pictures, known, setting):
    # Each pruner under the settings that found most; one of them under the others.
    names = known if setting in SETTINGS[:3:2] else [None, "visionpulse", "oracle"]
    for name in names:
        with set_to(*setting):
            found = decoded(vlm, pictures, name)
        for one, other in zip(found, known[name], strict=True):
            assert one.data_hash == other.data_hash, name


def test_no_setting_changes_what_is_loaded_or_read_in_one_pass(scenes_folder, vlm, pictures):
    prompt = vlm.prompt(pictures[0], QUESTIONS[0])
    expected = TeacherForced(vlm, [prompt], [[len(prompt.ids) - 1]]).read()
    for setting in SETTINGS[:3]:
        with set_to(*setting):
            loaded = vpa.load(str(scenes_folder), device="cpu")
            passages = TeacherForced(loaded, [loaded.prompt(pictures[0], QUESTIONS[0])], [[len(prompt.ids) - 1]])
            found = passages.read()
        assert loaded.weights_hash == vlm.weights_hash and np.array_equal(found, expected)


def test_matrix_products_round_nothing():
    """Whether a CPU would round at "medium" is its own affair: what torch is told is looked at."""
    with set_to("matmul", "medium"), own_settings(), own_settings():
        assert torch.get_float32_matmul_precision() == "highest"
    matmul = torch.backends.mkldnn.matmul
    if hasattr(matmul, "fp32_precision"):
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            with own_settings():
                assert matmul.fp32_precision == "ieee"
            assert matmul.fp32_precision == "bf16"
        finally:
            matmul.fp32_precision = before


def test_threads_give_the_users_dtype_back():
    with set_to("dtype", torch.float64):
        first, second = own_settings(), own_settings()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64


def test_a_model_set_to_eager_attention_gives_the_same_trace(scenes_folder, pictures):
    vlm = vpa.load(str(scenes_folder))
    fused = vpa.decode(vlm, pictures[0], QUESTIONS[0], max_new_tokens=4)
    vlm.model.set_attn_implementation("eager")
    eager = vpa.decode(vlm, pictures[0], QUESTIONS[0], max_new_tokens=4)
    assert eager.tokens == fused.tokens and vlm.model.config.get_text_config()._attn_implementation == "eager"
    np.testing.assert_allclose(eager.mass.values, fused.mass.values, rtol=1e-4)


def test_the_advice_for_an_attention_without_rows_can_be_followed(scenes_folder, pictures):
    """Kernels that take no masks: the advice names calls that exist."""
    vlm = vpa.load(str(scenes_folder))
    text = vlm.model.config.get_text_config()
    text._attn_implementation = "flash_attention_2"  # not installed: only its name is asked for
    with pytest.raises(ValueError, match=r"or call (model\.set_attn_implementation\('sdpa'\))") as refused:
        vpa.decode(vlm, pictures[0], QUESTIONS[0], max_new_tokens=1)
    exec(str(refused.value).partition("or call ")[2], {"model": vlm.model})
    assert len(vpa.decode(vlm, pictures[0], QUESTIONS[0], max_new_tokens=1)) == 1
