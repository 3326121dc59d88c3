"""A model whose numbers are broken: one clear error, and what was finished before stays."""

import copy

import numpy as np
import pytest
import torch

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import routing as attention
from visionpulse_analysis.decoding import batch, run
from visionpulse_analysis.decoding.sampling import Chooser, Sample
from visionpulse_analysis.models.loading import VLM

INF = float("inf")


@pytest.mark.parametrize("sample", [None, Sample(0.7, top_p=0.9, top_k=3)])
@pytest.mark.parametrize("row", [[0.0, float("nan")], [1.0, INF], [-INF, -INF], [INF, -INF]])
def test_broken_logits_are_refused_and_minus_infinity_beside_numbers_is_not(row, sample):
    good = [0.5, -INF]
    assert Chooser(sample, [1, 2])(torch.tensor([good, good])).tolist() == [0, 0]
    with pytest.raises(FloatingPointError, match=r"no token can be chosen.*try dtype='float32'"):
        Chooser(sample, [1, 2])(torch.tensor([good, row]))


@pytest.mark.parametrize("value", [float("nan"), INF])
def test_a_model_with_broken_weights_is_one_error_and_left_as_it_was(vlm, pictures, tmp_path, value):
    broken = VLM("broken", copy.deepcopy(vlm.model), vlm.tokenizer, vlm.image_processor)
    broken.model.lm_head.weight.data[5] = value
    store = vpa.TraceStore(tmp_path / "s", mode="a")
    for pruner in (None, vpa.VisionPulse(budget=0.1)):
        with pytest.raises(FloatingPointError, match="no token can be chosen"):
            vpa.decode(
                broken, pictures[0], "where ?", max_new_tokens=2, pruner=pruner, store=store, ids="a", overwrite=True
            )
    assert attention.active_interceptors(broken.model) == 0 and store.finished_ids == []
    assert broken.model.config.text_config._attn_implementation == "sdpa"
    assert len(store["a"]) == 0 and store["a"].meta["complete"] is False


def test_rows_that_finished_before_the_break_are_whole(vlm, pictures, tmp_path, monkeypatch):
    """Row 0 ends at its second token; at the fourth step the logits of row 1 break."""
    seeds, sample = [3, 4], Sample(3.0)
    free = vpa.decode(vlm, pictures[:2], ["where ?"] * 2, max_new_tokens=6, seed=seeds, sample=sample)
    ends = {int(free[0].token_ids[1])}
    assert not ends & set(free[1].token_ids[:4].tolist()) and free[0].token_ids[0] not in ends

    class Breaks(Chooser):
        calls = 0

        def __call__(self, logits):
            Breaks.calls += 1
            return super().__call__(logits * float("nan") if Breaks.calls == 4 else logits)

    monkeypatch.setattr(batch, "Chooser", Breaks)
    monkeypatch.setattr(run, "end_ids", lambda vlm: ends)
    store = vpa.TraceStore(tmp_path / "s", mode="a")
    with pytest.raises(FloatingPointError):
        options = {"seed": seeds, "sample": sample, "store": store, "ids": ["a", "b"]}
        vpa.decode(vlm, pictures[:2], ["where ?"] * 2, max_new_tokens=6, **options)
    assert store.finished_ids == ["a"] and store.ids == ["a", "b"]
    assert store["a"].tokens == free[0].tokens[:2] and store["a"].meta["finished"] is True
    assert store["b"].tokens == free[1].tokens[:3] and store["b"].meta["complete"] is False
    assert np.isfinite(store["b"].attention.values).all()
