"""Products of float32 rows with weights that stand in memory as float16.

What this is: what lean_model.py and fast_codec.py multiply with where the processor has it. A
product of few rows takes as long as its weights take from memory, and half the bytes take half the
time. Sums are float32, so where float16 holds the weights as they are (every model folder here, and
what was saved in bfloat16), only the rounding of sums is another one. It serves chat.py. What this
is not: weights of 8 or 4 bits (quantize.py), or rounding: other weights stay as they are.

    python chat.py --bench

Decision: FBGEMM's product, which PyTorch brings for its dynamic quantization. On an AMD EPYC it
reads 29 of the 31 GB/s that one thread reads; bfloat16 in oneDNN's order reads 16 to 19.

Shapes: a weight is [rows, columns].
"""
import torch

# Where float16 is coarsest, below 2^-14, its numbers are 2^-24 apart. A number between two of them
# is off by half of that, which no sum of float32 shows.
FINEST = 2.0 ** -25
# Numbers of a weight from which on it is worth while. A call costs 9 microseconds more than that of
# a float32 product.
LEAST = 100_000


def available():
    """Whether this processor has the product."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def fits(weight):
    """Whether HalfProduct takes this weight, as exact as it is."""
    if weight.device.type != "cpu" or weight.numel() < LEAST or not available():
        return False
    return bool((weight.half().float() - weight.float()).abs().amax() <= FINEST)


class HalfProduct:
    """y = x W^T + b: [..., columns] -> [..., rows], float32."""

    def __init__(self, weight, bias=None):
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), bias)
        self.nbytes = 2 * weight.numel()

    def __call__(self, x):
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
