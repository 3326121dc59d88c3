"""Videos in every family: the inputs of the library's own processor, the right patch of the right frame, exact rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers import DynamicCache
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils.import_utils import is_torchvision_available

import visionpulse_analysis as vpa
from visionpulse_analysis.decoding.exactness.vision import brighten, changes
from visionpulse_analysis.models.videos import LANCZOS_IN_TORCH, VIDEOS, in_words, video_class
from visionpulse_analysis.traces import frame_labels
from visionpulse_analysis.traces.exchange import patch_boxes

INTERNVL = ("internvl", "internvl2_5", "internvl3_5", "internvl3_5_moe")
ALONE = ("glm46v", "glm4v", "glm4v_moe")  # pictures and videos in prompts of their own
ALIKE = (*INTERNVL, "llava_onevision", "smolvlm")  # the library reads videos of one length together
VIDEO = (*ALONE, *ALIKE, "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
UNUSED = ("labels", "rows", "cols", "video_metadata")
QUESTION = "where is the red circle ?"
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
FPS = 3.0
STEPS = 5

films = pytest.mark.parametrize("family", VIDEO, indirect=True)


def media_of(family, film, photos) -> list[list[Any]]:
    """What is asked about: one video, two, and one among pictures."""
    one, other = vpa.Video(film[0], fps=FPS), vpa.Video(film[1], fps=FPS)
    if family.name in ALIKE:
        other = vpa.Video(film[0][::-1].copy(), fps=FPS)
    mixed = [photos[1], one, photos[2]]
    return [[one], [one, other], *([mixed] if mixes(family, mixed) else [])]


def mixes(family, mixed) -> bool:
    """Whether the family, in this version of the library, reads pictures and videos together."""
    if family.name in ALONE:
        return False
    if family.name != "qwen2_5_vl":
        return True
    try:
        family.vlm.family.positions(family.vlm.model, family.vlm.family.batch([family.vlm.prompt(mixed, QUESTION)], 0))
    except ValueError as error:
        assert "take a newer one" in str(error) and hf.__version__.startswith("5.4.")
        return False
    return True


def stock_inputs(family, media) -> Any:
    """What the library's own processor gives; it needs torchvision."""
    tiny, videos = family.tiny, [one for one in media if isinstance(one, vpa.Video)]
    kind, settings = tiny.video
    template = processing_smolvlm.DEFAULT_CHAT_TEMPLATE if family.name == "smolvlm" else None
    types = [{"type": "video" if isinstance(one, vpa.Video) else "image"} for one in media]
    asked = [{"role": "user", "content": [*types, {"type": "text", "text": QUESTION}]}]
    text = tiny.tokenizer.apply_chat_template(asked, chat_template=template, add_generation_prompt=True, tokenize=False)
    pictures = [one for one in media if not isinstance(one, vpa.Video)]
    known = [
        {"fps": FPS, "total_num_frames": len(one.frames), "frames_indices": list(range(len(one.frames)))}
        for one in videos
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", in_words)
        processor = tiny.processor(family.vlm.image_processor, tiny.tokenizer, getattr(hf, kind)(**settings))
        inputs = processor(
            images=[pictures] if pictures else None, videos=[one.frames for one in videos], text=text,
            return_tensors="pt", do_sample_frames=False, video_metadata=known,
            add_special_tokens=not text.startswith(tiny.tokenizer.bos_token),
        )  # fmt: skip
    return {name: torch.as_tensor(value) for name, value in inputs.items() if name not in UNUSED}


def stock_reads(family, media) -> bool:
    """Whether the library's own processor is there and takes these; SmolVLM's loses pictures beside videos."""
    if family.name == "smolvlm":  # that of transformers 5.4 wants them nested in another way
        known = hasattr(hf.SmolVLMProcessor, "replace_video_token")
        return is_torchvision_available() and known and all(isinstance(one, vpa.Video) for one in media)
    return is_torchvision_available()


@films
@pytest.mark.skipif(not is_torchvision_available(), reason="the library's own video processors need torchvision")
def test_video_inputs_are_those_of_the_stock_processor(family, film, photos):
    for media in filter(partial(stock_reads, family), media_of(family, film, photos)):
        expected = stock_inputs(family, media)
        given = family.vlm.family.batch([family.vlm.prompt(media, QUESTION)], padding=0)
        assert set(given) == set(expected)
        for name, value in given.items():
            assert torch.equal(value, expected[name].to(value.dtype).reshape(value.shape)), name


@pytest.mark.skipif(not is_torchvision_available(), reason="compares with torchvision")
@pytest.mark.parametrize("folder", sorted(set(VIDEOS.values())))
def test_torch_in_the_place_of_torchvision_gives_the_same_numbers(folder, film):
    mine, theirs = video_class(folder), video_class(folder).__mro__[1]
    for frames in film:
        read, expected = (half()([frames], do_sample_frames=False, return_tensors="pt") for half in (mine, theirs))
        assert set(read) == set(expected)
        assert all(torch.equal(value, expected[name]) for name, value in read.items())


@pytest.mark.parametrize("family", [name for name in VIDEO if name != "smolvlm"], indirect=True)
def test_video_frames_hold_the_pixels_of_stills(family):
    """Two frames of one picture and two of another, which need no resizing: what the model's stills hold, twice."""
    side = {**dict.fromkeys(INTERNVL, (32, 32)), "llava_onevision": (34, 34)}.get(family.name, (32, 64))
    stills = np.random.default_rng(4).integers(0, 256, (2, *side, 3), dtype=np.uint8)
    of_video = family.vlm.prompt(vpa.Video(stills[[0, 0, 1, 1]], fps=FPS), QUESTION).inputs
    of_stills = [family.vlm.prompt(one, QUESTION).inputs["pixel_values"] for one in stills]
    if family.name in ALIKE:
        read = of_video["pixel_values_videos"][0] if "pixel_values_videos" in of_video else of_video["pixel_values"]
        expected = [one.reshape(-1, 3, *side)[0] for one in of_stills for _ in range(2)]
        read, expected = read.movedim(1, -1), torch.stack(expected).movedim(1, -1)
    else:  # patch after patch, colour after colour, one pixel of each of both frames after the other
        assert of_video["video_grid_thw"].tolist() == [[2, side[0] // 4, side[1] // 4]]
        read, expected = of_video["pixel_values_videos"], torch.cat(of_stills)
        read, expected = (one.reshape(len(one), 3, -1).movedim(1, -1) for one in (read, expected))
    halves = family.name.startswith("qwen3")
    defaults = HALVES if halves else CLIP
    mine = read * torch.tensor(defaults["image_std"]) + torch.tensor(defaults["image_mean"])
    theirs = expected * torch.tensor(CLIP["image_std"]) + torch.tensor(CLIP["image_mean"])
    assert (mine - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("how", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_video_frames_are_resized_as_pillow_does(film, how):
    """The library resizes the frames of videos with torch, stills with Pillow: one rule, rounded at other places."""
    half = video_class("internvl")(**HALVES, size={"height": 24, "width": 56}, resample=how.value)
    frames = half(film[0], return_tensors="pt")["pixel_values_videos"][0]
    read = ((frames / 2 + 0.5) * 255).round().permute(0, 2, 3, 1).numpy()
    pillow = [np.asarray(Image.fromarray(one).resize((56, 24), how)) for one in film[0]]
    exact = how == Image.Resampling.BICUBIC or LANCZOS_IN_TORCH
    assert not exact or np.abs(read - np.stack(pillow).astype(float)).max() <= 1


@films
@pytest.mark.shows("video")
def test_video_bright_cell_reaches_its_patch_in_its_frame(family, rng):
    film = np.full((5, 40, 96, 3), 60, np.uint8)
    before = family.vlm.prompt(vpa.Video(film, fps=FPS), QUESTION)
    grid = before.grid
    merged = before.videos[0]["merged"]
    assert grid.frames[:, 1].tolist() == list(range(-(-5 // merged))) and grid.n_images == 1
    assert grid.pictures.tolist() == [[first, min(first + merged, 5)] for first in range(0, 5, merged)]
    assert np.array_equal(np.stack(before.images), film)
    for frame in range(5):
        here = np.flatnonzero(grid.frame == frame // merged)
        for patch in rng.choice(here, size=2, replace=False):
            bright = film.copy()
            bright[frame] = brighten(film[frame], grid.box[patch])
            change = changes(family.vlm, before, family.vlm.prompt(vpa.Video(bright, fps=FPS), QUESTION))
            assert grid.position[here][change[grid.position[here]].argmax()] == grid.position[patch] == change.argmax()
            elsewhere = np.ones(len(change), bool)
            elsewhere[grid.position[here]] = False
            assert (change[elsewhere] == 0).all()  # no other frame, no word, no break


@films
@pytest.mark.shows("video")
def test_video_rows_and_tokens_are_those_of_eager_generation(family, film, photos):
    vlm = family.vlm
    for media in media_of(family, film, photos):
        trace = vpa.decode(vlm, media, QUESTION, heads="all", max_new_tokens=STEPS)
        own = not stock_reads(family, media)
        inputs = stock_inputs(family, media) if not own else vlm.family.batch([vlm.prompt(media, QUESTION)], padding=0)
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


@films
@pytest.mark.shows("video")
def test_video_masked_equals_gathered_and_a_batch_equals_one_by_one(family, film, photos):
    asked: list[Any] = [media[-2:] for media in media_of(family, film, photos)]
    questions = [QUESTION, "how many ?", "describe it"][: len(asked)]
    options: dict[str, Any] = {"max_new_tokens": STEPS}
    plain = vpa.decode(family.vlm, asked, questions, layers="none", **options)
    dense = vpa.decode(family.vlm, asked, questions, **options)
    for row, (media, question) in enumerate(zip(asked, questions, strict=True)):
        alone = vpa.decode(family.vlm, media, question, **options)
        assert plain[row].tokens == dense[row].tokens == alone.tokens
        assert np.array_equal(plain[row].logprobs, dense[row].logprobs)
        assert np.abs(dense[row].mass.values - alone.mass.values).max() < 1e-5
    pruner = vpa.VisionPulse(budget=0.25)
    masked, gathered = (
        vpa.decode(family.vlm, asked, questions, pruner=pruner, execution=execution, **options)
        for execution in ("masked", "gathered")
    )
    for a, b in zip(masked, gathered, strict=True):
        assert a.tokens == b.tokens and np.abs(a.logprobs - b.logprobs).max() < 1e-5
        assert (a.k.values[1:] == len(a.grid) // 4).all()
    everything = vpa.decode(family.vlm, asked, questions, pruner=vpa.VisionPulse(budget=1.0), **options)
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(everything, dense, strict=True))


@films
def test_video_trace_says_which_frames_at_which_rate(family, film, tmp_path):
    trace = vpa.decode(family.vlm, vpa.Video(film[0], fps=FPS, sample_fps=2.5), QUESTION, max_new_tokens=1)
    merged = 2 if trace.grid.pictures[0].tolist() == [0, 2] else 1
    assert trace.meta["videos"] == [{"image": 0, "fps": FPS, "total": 5, "frames": [0, 1, 3, 4], "merged": merged}]
    assert len(trace.images) == 4 and np.array_equal(trace.images[2], film[0][3])
    trace.save(tmp_path / "trace")
    back = vpa.Trace.open(tmp_path / "trace")
    assert back.grid.equals(trace.grid) and back.data_hash == trace.data_hash and back.meta == trace.meta
    times = ["0-0.33", "1-1.33"] if merged == 2 else ["0", "0.33", "1", "1.33"]
    numbers = ["frames 1-2", "frames 3-4"] if merged == 2 else [f"frame {n}" for n in range(1, 5)]
    labels = [f"{number}, {time} s".capitalize() for number, time in zip(numbers, times, strict=True)]
    assert frame_labels(trace) == labels
    places = {(note["image_id"], note["frame"]) for note in patch_boxes(trace, 0)["annotations"]}
    assert places == {(merged * frame + 1, frame) for frame in range(len(labels))}
