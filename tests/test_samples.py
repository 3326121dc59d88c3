"""What a study says about its samples: what is known of them, and so what it leaves out."""

import numpy as np

from visionpulse_analysis.studies.samples import Sample, describe_samples, one_sample, scene_samples


def test_the_sentence_follows_what_is_known():
    own = Sample("own", np.zeros((8, 8, 3), np.uint8), "what ?")
    asked = one_sample(question="what is on the left ?")
    assert describe_samples(scene_samples(3)) == "3 generated scenes: every object and every right answer is known."
    assert describe_samples([asked]).startswith("1 generated scene with a question of your own: the objects are known")
    assert describe_samples([own]).startswith("1 image of your own: what they show is not known")
    # One sample of which nothing is known is enough: what needs the truth cannot be drawn for all.
    assert describe_samples([*scene_samples(1), own]).startswith("2 images of your own")
