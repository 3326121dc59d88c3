"""The optimisers of the bundled model."""

from __future__ import annotations

import torch


def build_optimizers(model: torch.nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, output head, norms and biases.

    What is not to be trained (``requires_grad``) is left out.
    """
    matrices, plain = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = "layers." in name or "blocks." in name
        (matrices if inside and parameter.ndim == 2 else plain).append(parameter)
    return {
        "muon": torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(plain, betas=(0.9, 0.98), weight_decay=0.01),
    }
