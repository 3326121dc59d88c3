"""Stage 0 of training: the vision tower learns what each patch shows and where it is, before anything else is learned.

Patches are labelled one by one. Finding the object that a question asks for, and everything after that, is left for the
language model to learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from visionpulse_analysis.testbed.scenes.scene import COLOURS, MAX_CELLS, SHAPES, Scene, generate
from visionpulse_analysis.testbed.training.optimizers import build_optimizers
from visionpulse_analysis.testbed.training.packing import patches_of

LABELS = {"colour": len(COLOURS) + 1, "shape": len(SHAPES) + 1, "row": MAX_CELLS, "column": MAX_CELLS}


def patch_labels(scene: Scene) -> np.ndarray:
    """What is under each patch, in the order of ``LABELS``: int64 [patch, 4].

    Indices into COLOURS and SHAPES, the next one where there is no object; row and column of the cell.
    """
    side = scene.cells * 2
    labels = np.empty((side, side, 4), np.int64)
    labels[..., 0], labels[..., 1] = len(COLOURS), len(SHAPES)
    labels[..., 2], labels[..., 3] = np.mgrid[0:side, 0:side] // 2
    for o in scene.objects:
        value = list(COLOURS).index(o.colour), SHAPES.index(o.shape)
        labels[2 * o.row : 2 * o.row + 2, 2 * o.col : 2 * o.col + 2, :2] = value
    return labels.reshape(-1, 4)


def pretrain_vision(
    model, *, steps: int, seed: int, first_scene: int, images: int = 24, report: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the vision tower alone to label the patches; changes ``model`` in place.

    Returns
    -------
    dict
        Accuracy of each label on the object patches, mean of the last 20 steps.
    """
    visual = model.model.visual
    device = next(visual.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    n_heads, width = 1 + len(visual.deepstack_visual_indexes), model.config.text_config.hidden_size
    heads = (torch.randn(n_heads, width, sum(LABELS.values()), generator=generator) * 0.02).to(device).requires_grad_()
    optimizers = [*build_optimizers(visual).values(), torch.optim.AdamW([heads], betas=(0.9, 0.98))]
    recent: list[list[float]] = []
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.3 * steps))
        cells = (4, 6, 8)[step % 3]
        scenes = [generate(first_scene + step * images + i, cells) for i in range(images)]
        pixels = torch.from_numpy(np.concatenate([patches_of(scene.render()) for scene in scenes])).to(device)
        grid_thw = torch.tensor([[1, 2 * cells, 2 * cells]] * images, device=device)
        labels = torch.from_numpy(np.concatenate([patch_labels(scene) for scene in scenes])).to(device)
        out = visual(pixels, grid_thw=grid_thw)
        features = torch.stack([out.pooler_output, *out.deepstack_features])
        logits = torch.einsum("fpw,fwc->fpc", features, heads).split(list(LABELS.values()), dim=-1)
        occupied = labels[:, 0] < len(COLOURS)
        # Background is nine patches in ten; weigh it so that both classes of patch count the same.
        weight = torch.where(occupied, 0.5 / occupied.float().mean(), 0.5 / (~occupied).float().mean())
        losses = [
            (cross_entropy(logit, labels[:, i], reduction="none") * weight).mean()
            for i, layers in enumerate(logits)
            for logit in layers
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        right = [
            float((layers[0][occupied].argmax(-1) == labels[occupied, i]).float().mean())
            for i, layers in enumerate(logits)
        ]
        recent = [*recent[-19:], right]
        if step % 100 == 99:
            shown = " ".join(f"{name} {value:.3f}" for name, value in zip(LABELS, right, strict=True))
            report(f"see {step + 1} loss {float(loss.detach()):.3f} {shown}")
    return dict(zip(LABELS, np.mean(recent, axis=0).round(4).tolist(), strict=True))
