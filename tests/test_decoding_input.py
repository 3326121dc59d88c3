"""Bad input to decode: one clear error, before anything is decoded."""

import numpy as np
import pytest

import visionpulse_analysis as vpa

QUESTION = "where is the red circle ?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, "question is empty"),
        ({"question": "what <|image_pad|> ?"}, "question contains the image placeholder"),
        ({"layers": 8}, r"layers \[8\]: expected different indices from 0 to 7"),
        ({"layers": [1, 1]}, "different indices"),
        ({"layers": "some"}, "layers must be"),
        ({"heads": [4]}, "indices from 0 to 3"),
        ({"heads": "max"}, "heads must be"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"execution": "magic"}, "'masked' or 'gathered'"),
        ({"question": []}, "no question"),
        (
            {"question": ["a", "b"], "image": [np.zeros((64, 64, 3), np.uint8)]},
            "2 questions need as many images",
        ),
        ({"question": ["a", "b"], "seed": [1]}, "2 questions need as many seeds"),
        ({"image": np.zeros((4, 4), np.uint8)}, "uint8"),
        ({"image": 3}, "got int"),
    ],
)
def test_one_clear_error(vlm, pictures, change, message):
    call = {"image": pictures[0], "question": QUESTION, "max_new_tokens": 2, **change}
    with pytest.raises(ValueError, match=message):
        vpa.decode(vlm, call.pop("image"), call.pop("question"), **call)


def test_one_token(vlm, pictures):
    trace = vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=1)
    assert len(trace) == 1 and not trace.meta["finished"]


def test_nan_logits_stop_with_an_error(vlm, pictures, monkeypatch):
    head = vlm.model.lm_head.weight
    original = head.data.clone()
    try:
        head.data[:] = float("nan")
        with pytest.raises(FloatingPointError, match="NaN"):
            vpa.decode(vlm, pictures[0], QUESTION, max_new_tokens=2)
    finally:
        head.data = original
