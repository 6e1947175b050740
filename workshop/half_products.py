"""Products of float32 rows with weights that stand in memory as float16.

What this is: what lean_model.py and fast_codec.py multiply with where the processor has it. A
product of few rows takes as long as its weights take from memory, and half the bytes take half the
time. Sums are float32, so where float16 holds the weights as they are (every model folder here, and
what was saved in bfloat16), only the rounding of sums is another one. It serves chat.py. What this
is not: weights of 8 or 4 bits (quantize.py), or rounding: other weights stay as they are.

    python chat.py --bench

Decision: FBGEMM's product, which PyTorch brings. On an AMD EPYC it reads 29 of the 31 GB/s that one
thread reads; bfloat16 in oneDNN's order reads 16 to 19. PyTorch has two ways to it. The newer one
takes several threads, and 10 microseconds a call. The older one takes one thread and 2
microseconds, and PyTorch warns that a later version will not have it.

Shapes: a weight is [rows, columns].
"""
import warnings

import torch

# Where float16 is coarsest, below 2^-14, its numbers are 2^-24 apart. A number between two of them
# is off by half of that, which no sum of float32 shows.
FINEST = 2.0 ** -25
LARGE = 2 ** 20  # numbers of a weight for which several threads are worth while


def available():
    """Whether this processor has the product."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def fits(weight):
    """Whether HalfProduct takes this weight, as exact as it is."""
    if weight.device.type != "cpu" or not available():
        return False
    return bool((weight.half().float() - weight.float()).abs().amax() <= FINEST)


class HalfProduct:
    """y = x W^T + b: [..., columns] -> [..., rows], float32."""

    def __init__(self, weight, bias=None):
        weight = weight.float().contiguous()
        has_older_way = hasattr(torch, "fbgemm_linear_fp16_weight_fp32_activation")
        self.is_small = weight.numel() < LARGE and has_older_way
        self.bias = bias
        self.nbytes = 2 * weight.numel()
        if not self.is_small:
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            self(weight[:1])  # the first call warns, the others do not

    def __call__(self, x):
        if self.is_small:
            return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.packed, self.bias)
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
