"""What is packed equals what was recorded; what is left out is said."""

from __future__ import annotations

import base64
import json
import re
import zlib

import matplotlib as mpl
import numpy as np
import pytest
from made_traces import AWKWARD, make_pair, make_trace

from visionpulse_analysis.explorer import explore, page, payload
from visionpulse_analysis.explorer.pairing import align
from visionpulse_analysis.explorer.payload import pack
from visionpulse_analysis.traces import Trace


def unpack(text: str) -> np.ndarray:
    split = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return split.reshape(2, -1).T.copy().view("<f2").ravel()


def test_every_float16_survives_packing():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    assert np.array_equal(unpack(payload.plane(every)).view(np.uint16), every.view(np.uint16))


def test_attention_is_packed_bit_for_bit_in_layer_and_head_order():
    trace = make_trace(heads=(1, 4))
    packed = pack(trace)
    assert (packed["layers"], packed["heads"]) == ([2, 3, 5], [1, 4])
    for i, layer in enumerate(packed["layers"]):
        for j, head in enumerate(packed["heads"]):
            stored = trace.attention.sel(layer=layer, head=head).values
            assert np.array_equal(unpack(packed["traces"][0]["recorded"]["attention"]["planes"][i][j]), stored.ravel())


def test_page_of_1000_steps_and_1000_patches_is_at_most_3_megabytes(tmp_path):
    trace = make_trace(steps=1000, rows=25, cols=40, layers=(7,), pixels=24)
    path = explore(trace).save(tmp_path / "large.html")
    assert path.stat().st_size <= 3_000_000
    assert pack(trace)["notes"] == []


def test_what_does_not_fit_is_left_out_and_said():
    trace = make_trace(steps=120, rows=16, cols=16, layers=tuple(range(9)))
    whole, small = pack(trace), pack(trace, max_bytes=420_000)
    assert whole["notes"] == [] and whole["stored"] == whole["layers"] == list(range(9))
    assert 1 < len(small["layers"]) < 9 and small["stored"] == [*small["layers"], "mean"]
    assert len(page.page(small)) <= 420_000
    assert small["layer"] == whole["layer"] and small["layer"] in small["layers"]


def test_layers_that_compress_worse_than_the_first_still_keep_to_the_size():
    trace = make_trace(steps=120, rows=16, cols=16, layers=tuple(range(9)))
    trace.dataset["attention"][:, 0] = 0
    small = pack(trace, layer=0, max_bytes=420_000)
    assert len(page.page(small)) <= 420_000 and 1 < len(small["layers"]) < 9


def test_heads_are_averaged_when_they_do_not_fit_and_that_is_said():
    trace = make_trace(steps=120, rows=16, cols=16, layers=(0, 1), heads=tuple(range(8)))
    small = pack(trace, max_bytes=350_000)
    assert small["heads"] is None
    assert any("Heads are averaged (all 8" in note for note in small["notes"])
    mean = trace.attention.sel(layer=small["layers"][0]).values.astype(np.float32).mean(1).astype(np.float16)
    assert np.array_equal(unpack(small["traces"][0]["recorded"]["attention"]["planes"][0][0]), mean.ravel())


def test_one_layer_is_kept_whatever_it_takes():
    assert pack(make_trace(layers=(0, 1)), max_bytes=1)["layers"] == [pack(make_trace(layers=(0, 1)))["layer"]]


def test_first_layer_is_the_one_with_most_mass_or_the_one_asked_for():
    trace = make_trace()
    most = trace.mass.mean("step")
    assert pack(trace)["layer"] == int(most.idxmax())
    assert pack(trace, layer=2)["layer"] == 2
    with pytest.raises(ValueError, match=r"layer 9 was not recorded; recorded layers: \[2, 3, 5\]"):
        pack(trace, layer=9)


def test_traces_of_other_images_are_refused():
    with pytest.raises(ValueError, match="different patch grids"):
        pack(make_trace(), make_trace(rows=4))
    other = make_trace()
    other.dataset = other.dataset.assign(pixels=other.dataset["pixels"] + np.uint8(1))
    with pytest.raises(ValueError, match="different images"):
        pack(make_trace(), other)
    with pytest.raises(ValueError, match=r"no layer to show: the recorded layers are \[1\] and \[2\]"):
        pack(make_trace(layers=(1,)), make_trace(layers=(2,)))


def test_a_trace_with_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="0 steps and 64 image patches"):
        pack(Trace(make_trace().dataset.isel(step=slice(0))))
    with pytest.raises(ValueError, match=r"the recorded layers are \[\]"):
        pack(Trace(make_trace().dataset.isel(layer=slice(0))))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("stp=3", "'stp'; the explorer's links have step"),
        ("step=40", r"the trace has steps 0\.\.39"),
        ("layer=4", r"layer 4 was not recorded; recorded layers: \[2, 3, 5\]"),
        ("head=1", "head 1 is not in the page; it has the mean only"),
        ("trace=pruned", "shows a pruned trace, but none was given"),
        ("panel=1", "panel 1 is out of range"),
        ("rows=0-8&cols=0-1", "leave the 8 x 8 patches"),
    ],
)
def test_a_view_that_cannot_be_shown_is_refused_at_once(view, message):
    with pytest.raises(ValueError, match=message):
        explore(make_trace(), view=view)
    widget = explore(make_trace(), view="step=5")
    with pytest.raises(ValueError):
        widget.view = view
    assert widget.view == "step=5"


def test_the_heading_says_what_each_trace_is_and_answered():
    dense, pruned = make_pair()
    assert pack(dense, pruned)["about"] == [
        "Model: synthetic",
        "Dense: 40 steps, answer \N{LEFT DOUBLE QUOTATION MARK}r0 c2\N{RIGHT DOUBLE QUOTATION MARK}",
        "Pruned (visionpulse): 42 steps, answer \N{LEFT DOUBLE QUOTATION MARK}r0 c2\N{RIGHT DOUBLE QUOTATION MARK}",
    ]
    assert pack(make_trace(tokens=["◁think▷", "look", "◁/", "think▷", " yes"], steps=5))["traces"][0]["answer"] == 4
    thinking = make_trace(tokens=["<think>", "look"], steps=2)
    assert pack(thinking)["about"][1] == "Dense: 2 steps, no answer"


def test_alignment_pairs_only_equal_tokens_and_keeps_every_step_once():
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, second = (rng.integers(0, 4, rng.integers(0, 25)).tolist() for _ in range(2))
        aligned = align(first, second)
        assert [step for step in aligned.first if step >= 0] == list(range(len(first)))
        assert [step for step in aligned.second if step >= 0] == list(range(len(second)))
        pairs = zip(aligned.first, aligned.second, strict=True)
        assert all(first[a] == second[b] for a, b in pairs if a >= 0 and b >= 0)
        same = sum(1 for a, b in zip(first, second, strict=False) if a == b)
        alone = [c for c, pair in enumerate(zip(aligned.first, aligned.second, strict=True)) if -1 in pair]
        assert aligned.divergence == (alone[0] if alone else None)
        assert (aligned.divergence is None) == (first == second and same == len(first))


def test_small_pictures_are_exact_and_large_ones_are_reduced_and_said():
    noise = np.random.default_rng(0).integers(0, 255, (1400, 2000, 3), np.uint8)
    (exact,), note = payload.encode_pictures([noise[:64, :64]])
    assert exact.startswith("data:image/png") and note is None
    (reduced,), note = payload.encode_pictures([noise])
    assert len(reduced) < 1.1 * payload.PICTURE_BYTES
    assert note is not None and re.search(r"at most \d+ px", note)


def test_no_text_of_a_trace_can_leave_its_script_element(tmp_path):
    trace = make_trace(steps=len(AWKWARD), tokens=AWKWARD)
    html = explore(trace).save(tmp_path / "awkward.html").read_text()
    data = html.split('id="payload">')[1].split("</script>")[0]
    assert json.loads(data)["traces"][0]["tokens"] == AWKWARD
    assert not set("<>&\u2028") & set(data)


def test_page_names_no_address_outside_itself():
    assert not re.search(
        r"(?:https?:)?//[\w-]+\.\w", re.sub(r"[A-Za-z0-9+/=]{200,}", "", page.page(pack(make_trace())))
    )


def test_save_needs_an_existing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="Create it first"):
        explore(make_trace()).save(tmp_path / "missing" / "page.html")


@pytest.mark.parametrize(("name", "like"), [("magma", "magma"), ("cividis", "cividis"), ("difference", "berlin")])
def test_colour_maps_are_those_of_matplotlib(name, like):
    stops = re.search(rf'{name}: "([0-9a-f]+)"', page.asset("colours.js"))
    assert stops is not None
    given = np.frombuffer(bytes.fromhex(stops[1]), np.uint8).reshape(-1, 3)
    there = np.linspace(0, 1, len(given))
    fine = np.linspace(0, 1, 256)
    drawn = np.stack([np.interp(fine, there, given[:, c]) for c in range(3)], 1)
    wanted = mpl.colormaps[like](fine)[:, :3] * 255
    assert np.abs(drawn - wanted).max() < 6  # of 255: 33 stops, joined by straight lines
