"""Runs every kernel once, forward and backward, under compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/touch_kernels.py

The shapes are not multiples of the kernels' block sizes, which exercises the masks. Without a GPU,
`TRITON_INTERPRET=1 python benchmarks/touch_kernels.py` makes the same calls.
"""

import torch

from correlation_aware import ops

SHAPES = [(2, 7, 5), (2, 13, 11)]  # batch, height, width of template and search
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIM, HEADS, RATIO = 64, 2, 2


def main() -> None:
    torch.manual_seed(0)
    count = sum(b * h * w for b, h, w in SHAPES)
    key_shapes = [(b, h // RATIO, w // RATIO) for b, h, w in SHAPES]
    keys = sum(b * h * w for b, h, w in key_shapes)
    ops.set_backend("triton")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):

        def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)

        tokens, residual, weight, bias = random(count, DIM), random(count, DIM), random(DIM), random(DIM)
        outputs = [
            *ops.add_layer_norm(tokens, residual, weight, bias, 1e-6),
            ops.dwconv_gelu(tokens, random(DIM, 1, 3, 3), bias, SHAPES),
            ops.gather_patches(tokens, SHAPES, RATIO)[0],
            *(
                ops.eoc_attention(tokens, random(keys, 2 * DIM), HEADS, SHAPES, key_shapes, cross)
                for cross in (False, True)
            ),
        ]
        sum(t.float().square().sum() for t in outputs).backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        assert torch.isfinite(tokens.grad).all()
        print(f"{dtype}: every kernel ran, forward and backward")


if __name__ == "__main__":
    main()
