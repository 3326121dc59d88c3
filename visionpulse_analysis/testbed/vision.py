"""Stage 0 of training: the vision tower learns to name what each patch shows; large models too start from such a tower.

Only content is taught (colour and shape of the object under a patch), no positions: where things are is left for the
language model to work out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from visionpulse_analysis.testbed.batches import patches_of
from visionpulse_analysis.testbed.optimizers import build_optimizers
from visionpulse_analysis.testbed.scenes import COLOURS, SHAPES, Scene, generate


def patch_labels(scene: Scene) -> np.ndarray:
    """Colour and shape under each patch: int64 [patch, 2], indices into COLOURS and SHAPES, the next one for none."""
    side = scene.cells * 2
    labels = np.empty((side, side, 2), np.int64)
    labels[:] = len(COLOURS), len(SHAPES)
    for o in scene.objects:
        value = list(COLOURS).index(o.colour), SHAPES.index(o.shape)
        labels[2 * o.row : 2 * o.row + 2, 2 * o.col : 2 * o.col + 2] = value
    return labels.reshape(-1, 2)


def pretrain_vision(
    model, *, steps: int, seed: int, first_scene: int, images: int = 24, report: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the vision tower alone to name the patches; changes ``model`` in place.

    Returns
    -------
    dict
        Accuracy of colour and shape on the object patches of the last 20 steps.
    """
    visual = model.model.visual
    device = next(visual.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    width, classes = model.config.text_config.hidden_size, len(COLOURS) + len(SHAPES) + 2
    n_heads = 1 + len(visual.deepstack_visual_indexes)
    heads = (torch.randn(n_heads, width, classes, generator=generator) * 0.02).to(device).requires_grad_()
    optimizers = [*build_optimizers(visual).values(), torch.optim.AdamW([heads], betas=(0.9, 0.98))]
    recent: list[tuple[float, float]] = []
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.3 * steps))
        cells = (4, 6, 8)[step % 3]
        scenes = [generate(first_scene + step * images + i, cells) for i in range(images)]
        pixels = torch.from_numpy(np.concatenate([patches_of(scene.render()) for scene in scenes])).to(device)
        grid_thw = torch.tensor([[1, 2 * cells, 2 * cells]] * images, device=device)
        labels = torch.from_numpy(np.concatenate([patch_labels(scene) for scene in scenes])).to(device)
        out = visual(pixels, grid_thw=grid_thw)
        features = torch.stack([out.pooler_output, *out.deepstack_features])
        logits = torch.einsum("fpw,fwc->fpc", features, heads)
        colour, shape = logits.split([len(COLOURS) + 1, len(SHAPES) + 1], dim=-1)
        occupied = labels[:, 0] < len(COLOURS)
        # Background is nine patches in ten; weigh it so that both classes of patch count the same.
        weight = torch.where(occupied, 0.5 / occupied.float().mean(), 0.5 / (~occupied).float().mean())
        losses = [
            (cross_entropy(logit, labels[:, i], reduction="none") * weight).mean()
            for i, both in enumerate((colour, shape))
            for logit in both
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        right = [
            float((logit[0][occupied].argmax(-1) == labels[occupied, i]).float().mean())
            for i, logit in enumerate((colour, shape))
        ]
        recent = [*recent[-19:], (right[0], right[1])]
        if step % 100 == 99:
            report(f"see {step + 1} loss {float(loss.detach()):.3f} colour {right[0]:.3f} shape {right[1]:.3f}")
    return {"colour": float(np.mean([r[0] for r in recent])), "shape": float(np.mean([r[1] for r in recent]))}
