"""Samples of a study: which they are, what is known of them, and so what is left out."""

import numpy as np
import pytest
from PIL import Image

from visionpulse_analysis.experiments.samples import Sample, another_sample, describe_samples, one_sample, scene_samples
from visionpulse_analysis.testbed.scenes.scene import generate


def test_the_sentence_follows_what_is_known():
    own = Sample("own", np.zeros((8, 8, 3), np.uint8), "what ?")
    asked = one_sample(question="what is on the left ?")
    assert describe_samples(scene_samples(3)) == "3 generated scenes: every object and every right answer is known."
    assert describe_samples([asked]).startswith("1 generated scene with a question of your own: the objects are known")
    assert describe_samples([own]).startswith("1 image of your own: what they show is not known")
    # One sample of which nothing is known is enough: what needs the truth cannot be drawn for all.
    assert describe_samples([*scene_samples(1), own]).startswith("2 images of your own")


def task_of(sample):
    assert sample.truth is not None
    return sample.truth.task


def scene_seed(sample):
    assert sample.scene is not None
    return sample.scene.seed


def test_scenes_depend_on_the_seed_and_ask_the_tasks_in_turn():
    samples, again, other = scene_samples(6), scene_samples(6), scene_samples(6, seed=1)
    assert [task_of(s) for s in samples] == ["find", "compare", "count"] * 2
    assert all(
        np.array_equal(a.image, b.image) and a.question == b.question for a, b in zip(samples, again, strict=True)
    )
    assert not {scene_seed(s) for s in samples} & {scene_seed(s) for s in other}
    assert all(np.array_equal(s.image, generate(scene_seed(s), 8).render()) for s in samples)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        scene_samples(0)


def test_one_sample_is_a_scene_or_ones_own_image(tmp_path):
    samples = scene_samples(1, cells=4)
    a, b = one_sample(seed=2), one_sample(seed=2, task="count")
    assert np.array_equal(a.image, b.image)
    assert (task_of(a), task_of(b)) == ("find", "count")
    asked = one_sample(question="what ?", seed=2)
    assert (asked.question, asked.scene, asked.truth) == ("what ?", a.scene, None)
    Image.fromarray(samples[0].image).save(tmp_path / "x.png")
    own = one_sample(str(tmp_path / "x.png"), "what ?")
    assert isinstance(own, Sample)
    assert own.scene is None
    assert np.array_equal(own.image, samples[0].image)
    with pytest.raises(ValueError, match="without a question"):
        one_sample(str(tmp_path / "x.png"))


def test_another_question_is_another(tmp_path):
    Image.fromarray(scene_samples(1, cells=4)[0].image).save(tmp_path / "x.png")
    path = str(tmp_path / "x.png")
    own = one_sample(path, "what is this ?")
    assert another_sample(own, path) is None and another_sample(own, path, " what  is this ?\n") is None
    other = another_sample(own, path, "where is it ?")
    assert other and other.question == "where is it ?" and np.array_equal(other.image, own.image)
    for first in (one_sample(seed=2), one_sample(seed=2, task="compare"), one_sample(question="what ?", seed=2)):
        for given in ("", first.question):
            other = another_sample(first, "", given, seed=2)
            assert other and other.question != first.question and np.array_equal(other.image, first.image)
