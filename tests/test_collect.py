"""Kept traces: decoded once, decoded again when anything they depend on changes, never taken from a broken run."""

import copy
import dataclasses

import numpy as np
import pytest
from PIL import Image

import visionpulse_analysis as vpa
from visionpulse_analysis.attention import recorder
from visionpulse_analysis.decoding.sampling import Sample as Sampling
from visionpulse_analysis.experiments import collect as module
from visionpulse_analysis.experiments.collect import cache_folder, collect, traces_hash
from visionpulse_analysis.experiments.samples import Sample, image_samples, scene_samples

SHORT = {"max_new_tokens": 3, "layers": [1]}


@pytest.fixture(autouse=True)
def decoded(tmp_path, monkeypatch):
    """Keep traces in an empty folder, and list the questions of every decode that happens."""
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "cache"))
    questions = []

    def counted(vlm, image, question, **options):
        questions.append(list(question))
        return vpa.decode(vlm, image, question, **options)

    monkeypatch.setattr(module, "decode", counted)
    return questions


@pytest.fixture
def samples():
    return scene_samples(3, cells=4)


def test_the_same_inputs_are_decoded_once(vlm, samples, decoded):
    first, again = (collect(vlm, samples, **SHORT) for _ in range(2))
    assert decoded == [[s.question for s in samples]]
    direct = vpa.decode(vlm, [s.image for s in samples], [s.question for s in samples], seed=[0, 1, 2], **SHORT)
    assert [t.data_hash for t in first] == [t.data_hash for t in again] == [t.data_hash for t in direct]
    assert [t.meta["id"] for t in again] == [s.id for s in samples]
    assert traces_hash(first) == traces_hash(again) != traces_hash(first[:2])


def test_parts_and_batches_give_the_same_traces(vlm, decoded, monkeypatch, tmp_path):
    samples = scene_samples(10, cells=4)
    whole = collect(vlm, samples, **SHORT)
    monkeypatch.setenv("VISIONPULSE_CACHE", str(tmp_path / "other"))
    parts = collect(vlm, samples, batch_size=1, **SHORT)
    assert [len(questions) for questions in decoded] == [10, 8, 2]
    assert [t.meta["seed"] for t in parts] == [t.meta["seed"] for t in whole] == list(range(10))
    assert [t.token_ids.tolist() for t in parts] == [t.token_ids.tolist() for t in whole]


CHANGED = [
    {"seed": 1},
    {"pruner": vpa.VisionPulse()},
    {"sample": Sampling(0.7)},
    {"layers": [1, 2]},
    {"heads": "all"},
    {"max_new_tokens": 4},
    {"execution": "gathered"},
]


def test_a_changed_option_decodes_again(vlm, samples, decoded):
    collect(vlm, samples, **SHORT)
    for number, changed in enumerate(CHANGED, start=2):
        for _ in range(2):
            collect(vlm, samples, **{**SHORT, **changed})
        assert len(decoded) == number, changed


def test_a_changed_pruner_decodes_again(vlm, samples, decoded):
    for anchor in (2, 3, 2):
        collect(vlm, samples, pruner=vpa.VisionPulse(anchor_layer=anchor), **SHORT)
    assert len(decoded) == 2


def change_pixel(samples):
    image = samples[1].image.copy()
    image[0, 0, 0] ^= 1
    return [samples[0], dataclasses.replace(samples[1], image=image), samples[2]]


CHANGES = {
    "pixel": change_pixel,
    "ids": lambda samples: [dataclasses.replace(one, id=f"{one.id}-again") for one in samples],
    "unknown word": lambda samples: [dataclasses.replace(one, question="where is the dog ?") for one in samples],
    "question": lambda samples: [dataclasses.replace(samples[0], question="where is the red ? ?"), *samples[1:]],
    "fewer": lambda samples: samples[:2],
    "order": lambda samples: samples[::-1],
}


def test_changed_samples_are_decoded_again(vlm, samples, decoded):
    # A word that the model does not know: its prompt is the same for every such word.
    samples = [dataclasses.replace(one, question="where is the cat ?") for one in samples]
    collect(vlm, samples, **SHORT)
    for number, (name, change) in enumerate(CHANGES.items(), start=2):
        changed = change(samples)
        traces = collect(vlm, changed, **SHORT)
        assert len(decoded) == number, name
        assert [t.question for t in traces] == [s.question for s in changed]
        assert all(np.array_equal(t.images[0], s.image) for t, s in zip(traces, changed, strict=True))


def test_images_that_look_alike_after_resizing_keep_their_own_traces(vlm, decoded):
    for side in (64, 66):
        grey = Sample("grey", np.full((side, side, 3), 128, np.uint8), "where is the red circle ?")
        assert collect(vlm, [grey], **SHORT)[0].images[0].shape == (side, side, 3)
    assert len(decoded) == 2


def test_changed_weights_or_settings_of_the_model_decode_again(vlm, samples, decoded):
    collect(vlm, samples, **SHORT)
    weights = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
    weights.model.lm_head.weight.data[5, 5] += 0.5
    anchor = dataclasses.replace(vlm, model=copy.deepcopy(vlm.model))
    anchor.model.config.visionpulse_anchor = vlm.default_anchor + 1
    template = dataclasses.replace(vlm, tokenizer=copy.deepcopy(vlm.tokenizer))
    template.tokenizer.chat_template = vlm.tokenizer.chat_template.replace("step by step", "step")
    for number, other in enumerate((weights, anchor, template), start=2):
        collect(other, samples, **SHORT)
        assert len(decoded) == number
    collect(vlm, samples, **SHORT)
    assert len(decoded) == 4


def test_changed_decoding_code_decodes_again(vlm, samples, decoded, monkeypatch):
    collect(vlm, samples, **SHORT)
    plain = recorder.Recorder.take
    monkeypatch.setattr(recorder.Recorder, "take", lambda self: plain(self))
    collect(vlm, samples, **SHORT)
    assert len(decoded) == 2


def test_an_interrupted_run_is_not_taken_for_a_whole_one(vlm, decoded, monkeypatch):
    samples = scene_samples(10, cells=4)
    counted = module.decode

    def interrupted(vlm, image, question, **options):
        if decoded:
            raise KeyboardInterrupt
        return counted(vlm, image, question, **options)

    monkeypatch.setattr(module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(vlm, samples, batch_size=1, **SHORT)
    assert len(decoded) == 1
    assert list(cache_folder().iterdir()) == []
    monkeypatch.setattr(module, "decode", counted)
    assert len(collect(vlm, samples, batch_size=1, **SHORT)) == 10
    assert len(decoded) == 3


def test_what_a_killed_run_leaves_is_not_found(vlm, samples, decoded, monkeypatch):
    class Kept:
        """A temporary folder that nobody removes, as after kill -9."""

        def __init__(self, dir, prefix):
            self.name = dir / f"{prefix}killed"
            self.name.mkdir()

        def __enter__(self):
            return str(self.name)

        def __exit__(self, *error):
            return False

    with monkeypatch.context() as patch:
        patch.setattr(module.tempfile, "TemporaryDirectory", Kept)
        patch.setattr(module.Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(vlm, samples, **SHORT)
    assert [p.name for p in cache_folder().iterdir()] == [".unfinished-killed"]
    assert len(collect(vlm, samples, **SHORT)) == 3
    assert len(decoded) == 2


def test_another_process_that_was_faster_is_not_disturbed(vlm, samples, decoded, monkeypatch):
    counted = module.decode

    def slower(*args, **options):
        monkeypatch.setattr(module, "decode", counted)
        collect(vlm, samples, **SHORT)
        return counted(*args, **options)

    monkeypatch.setattr(module, "decode", slower)
    traces = collect(vlm, samples, **SHORT)
    assert [t.question for t in traces] == [s.question for s in samples]
    assert len(list(cache_folder().iterdir())) == 1


def test_samples_with_one_id_are_refused(vlm, samples, decoded):
    with pytest.raises(ValueError, match="2 samples share ids"):
        collect(vlm, [samples[0], samples[0]], **SHORT)
    assert decoded == []


def test_a_folder_of_images_is_decoded_whatever_the_files_are_called(vlm, tmp_path, samples):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("my cat.png", "a.png", "a.bmp", "notes.txt"):
        Image.fromarray(samples[0].image).save(folder / name, format="png" if name.endswith("txt") else None)
    own = image_samples(folder, "where is the cat ?")
    assert [s.image.name for s in own] == ["a.bmp", "a.png", "my cat.png"]
    assert [t.meta["id"] for t in collect(vlm, own, **SHORT)] == [s.id for s in own]
    assert all(s.scene is None for s in own)
    with pytest.raises(FileNotFoundError, match="no image"):
        image_samples(tmp_path / "nowhere", "?")
