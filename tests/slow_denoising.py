"""Denoising stated once more: the whole sequence at every step, without a cache, one word after the other."""

from __future__ import annotations

import numpy as np
import torch


def slow_denoise(vlm, image, question, canvas, steps, mask, *, start=None, kept=None):
    """Words of a canvas, the places unmasked at each step, and mean attention rows over all keys, [step][layer].

    start, kept : from this step on the canvas does not see the other patches; from step 0 on the prompt neither.
    """
    prompt, model = vlm.prompt(image, question), vlm.model
    words, places, rows = [mask] * canvas, [], []
    n = len(prompt.ids)
    kernel = model.get_decoder().config._attn_implementation
    model.set_attn_implementation("eager")  # which shows its rows
    try:
        for step in range(steps):
            inputs = vlm.family.batch([prompt.answered(torch.tensor(words))], 0)
            positions = vlm.family.positions(model, inputs)
            seen = np.tril(np.ones((n + canvas, n + canvas), bool))
            seen[n:] = True
            if start is not None and step >= start and kept is not None:
                gone = prompt.grid.position[~kept]
                seen[0 if start == 0 else n :, gone] = False
                seen[gone, gone] = True
            added = torch.zeros(1, 1, n + canvas, n + canvas).masked_fill(~torch.from_numpy(seen), -1e30)
            inputs.pop("attention_mask")
            with torch.no_grad():
                out = model(**inputs, attention_mask=added, position_ids=positions, output_attentions=True)
            best = []
            for place in range(canvas):
                logits = out.logits[0, n - 1 + place].clone()
                logits[mask] = -torch.inf
                share = torch.log_softmax(logits, 0)
                if words[place] == mask:
                    best.append((-float(share.max()), place, int(share.argmax())))
            taken = sorted(best)[: canvas // steps + (step < canvas % steps)]
            for _, place, word in taken:
                words[place] = word
            places.append(sorted(place for _, place, _ in taken))
            rows.append([layer[0, :, [n - 1 + p for p in places[-1]]].mean(dim=(0, 1)) for layer in out.attentions])
    finally:
        model.set_attn_implementation(kernel)
    return words, places, rows
