"""Many short decodes in one process: `python tests/hostile/endurance.py 10000` prints what grew."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import visionpulse_analysis as vpa
from visionpulse_analysis import attention


def state(vlm) -> dict[str, int]:
    """Everything that could grow from decode to decode, counted."""
    gc.collect()
    modules = list(vlm.model.modules())
    return {
        "objects": len(gc.get_objects()),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules),
        "attributes": sum(len(vars(m)) for m in modules),
        "attention functions": len(AttentionInterface._global_mapping),
        "mask functions": len(AttentionMaskInterface._global_mapping),
        "routed modules": len(attention._routes),
        "switched configurations": len(attention._switched),
    }


def resident_mb() -> float:
    """Memory of this process, in MB, after the allocator gave back what it only keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def endure(vlm, decodes: int) -> list[dict[str, float]]:
    """Decode many times, dense and pruned, and take the state at five moments."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pruners = [None, vpa.VisionPulse(budget=0.2)]
    moments = []
    for number in range(decodes + 1):
        if number % max(1, decodes // 5) == 0:
            moments.append({"decodes": number, **state(vlm), "resident_mb": resident_mb()})
        execution = "gathered" if number % 4 == 3 else "masked"
        pruner = pruners[number % 2]
        vpa.decode(vlm, picture, "where ?", max_new_tokens=2, layers=[5], pruner=pruner, execution=execution)
    return moments


def grown(moments: list[dict[str, float]]) -> Counter:
    """What is more at the last moment than at the second; the first fifth fills caches."""
    return Counter({name: moments[-1][name] - moments[1][name] for name in moments[0] if name != "decodes"})


if __name__ == "__main__":
    start = time.time()
    found = endure(vpa.load("scenes"), int(sys.argv[1]))
    print(json.dumps({"moments": found, "grown": grown(found), "seconds": time.time() - start}, indent=1))
