"""Compile the GPU kernels for GPUs that are not here, as they would be launched; prints a line for each variant.

A launch tells the compiler which numbers and addresses are multiples of 16: with them it arranges memory otherwise.
"""

# pyright: reportMissingImports=false

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from visionpulse_analysis.attention.triton_kernels import BLOCK, PARTS, _attend_part, _join_parts

SHARED_MEMORY = {80: 166_912, 90: 232_448}  # bytes, of an A100 and an H200
POINTERS = {"columns": "*i64", "hidden": "*i1", "sums": "*fp32", "scales": "*fp32", "scaling": "fp32"}
CHANGING = {"read", "per_part", "parts"}
VARIANTS = [  # dtype, numbers of a vector and their power of two, query heads of a key head, key heads, hides
    ("bf16", 128, 128, 4, 8, True),
    ("bf16", 128, 128, 4, 8, False),
    ("fp16", 80, 128, 1, 16, True),
    ("bf16", 64, 64, 7, 1, True),
    ("fp32", 128, 128, 4, 8, True),
]


def made(kernel, fixed, tensors, architecture):
    types = {name: "constexpr" if name in fixed else tensors.get(name, "i32") for name in kernel.arg_names}
    aligned = [
        number
        for number, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or (kind == "i32" and name not in CHANGING and name != "kv_heads")
    ]
    attributes = {(number,): [["tt.divisibility", 16]] for number in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=fixed, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", architecture, 32))


def main():
    for architecture, most in SHARED_MEMORY.items():
        for dtype, dim, width, group, kv_heads, hides in VARIANTS:
            tensors = POINTERS | dict.fromkeys(("query", "key", "value", "output"), f"*{dtype}")
            both = {"DIM": dim, "WIDTH": width}
            part = both | {"GROUP": group, "QUERIES": 16, "HIDES": hides, "BLOCK": BLOCK}
            if kv_heads == 1:
                part["kv_heads"] = 1
            for kernel, fixed in ((_attend_part, part), (_join_parts, both | {"PARTS": PARTS})):
                done = made(kernel, fixed, tensors, architecture)
                print(architecture, dtype, dim, len(done.asm["cubin"]), done.metadata.shared, most)


if __name__ == "__main__":
    main()
