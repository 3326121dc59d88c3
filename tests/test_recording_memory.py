"""Memory of recording: it grows with steps x layers x patches, never with the square of the prompt."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import visionpulse_analysis as vpa

QUESTION = "where is the red circle ?"


class Tensors(TorchDispatchMode):
    """Counts what every operation returns, by shape; only floating point, because masks and indices are not rows."""

    def __init__(self):
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.shapes[tuple(leaf.shape)] += 1
        return out


@pytest.mark.parametrize("recorded", [{"layers": [4]}, {}, {"heads": "all"}], ids=["one", "all", "heads"])
def test_nothing_of_the_size_of_prompt_by_prompt_is_made(vlm, pictures, recorded):
    with Tensors() as plain:
        unrecorded = vpa.decode(vlm, pictures[1], QUESTION, layers="none", max_new_tokens=3)
    with Tensors() as made:
        trace = vpa.decode(vlm, pictures[1], QUESTION, max_new_tokens=3, **recorded)
    assert trace.token_ids.tolist() == unrecorded.token_ids.tolist()
    n_patches = len(trace.grid)
    extra = made.shapes - plain.shapes
    assert extra  # recording did make something
    for shape in extra:
        assert sum(size >= n_patches for size in shape) <= 1, f"a tensor {shape} for {n_patches} patches"


def test_a_step_adds_its_rows_in_two_bytes_a_number(vlm, pictures):
    short, long = (vpa.decode(vlm, pictures[1], QUESTION, max_new_tokens=n, seed=1) for n in (3, 6))
    steps, layers, patches = long.attention.shape
    assert long.attention.dtype == np.float16 and (layers, patches) == (vlm.n_layers, len(long.grid))
    assert long.attention.nbytes - short.attention.nbytes == (steps - len(short)) * layers * patches * 2
