"""Weights of 8 or 4 bits, packed layer by layer while a model is loaded.

What this is: what `chat.py --bits` does to the Linear layers. It serves chat.py. What this is not:
training in few bits, or files of packed weights: a folder holds whole weights always.

    python chat.py --bits 8 --in question.wav --out answer.wav

Shapes: a Linear's weight is [rows, columns].
"""
import torch
import torch.nn.functional as F


class Packed(torch.nn.Module):
    """A Linear with 8-bit weights (a scale for each row) or 4-bit ones (a scale and an offset for
    each GROUP of a row).

    Decision: torch's own packed products, on which torchao's weight-only layers stand too: one
    package fewer."""
    GROUP = 128
    # Rows that are packed at once. Float32 copies of a whole 7B head would take as much memory as
    # the packed model.
    ROWS = 4096

    def __init__(self, linear, bits):
        super().__init__()
        weight = linear.weight.detach()
        self.bias = linear.bias
        self.bits = bits
        self.rows, columns = weight.shape
        # The kernels want whole groups. 2730, a width of the depth transformer's, has none.
        pad = -columns % self.GROUP
        packed, scales = [], []
        for part in weight.split(self.ROWS):
            whole = F.pad(part.float(), (0, pad, 0, -len(part) % self.GROUP))
            ids, scale = pack_8(whole) if bits == 8 else pack_4(whole, self.GROUP)
            packed.append(ids)
            scales.append(scale)
        self.register_buffer("weight", torch.cat(packed))
        self.register_buffer("scale", torch.cat(scales, SCALE_ROWS[bits]).to(weight.dtype))

    def forward(self, x):
        """x [..., columns] -> [..., rows]"""
        y = product(x.flatten(0, -2), self.weight, self.scale, self.bits)
        y = y[:, :self.rows].unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


# The dimension of `scale` that stands for rows, by bits.
SCALE_ROWS = {8: 0, 4: -2}


def product(x, weight, scale, bits):
    """x [N, columns] and what a Packed holds -> [N, rows], in whole groups of rows, in x's
    dtype."""
    is_cpu = x.device.type == "cpu"
    columns = Packed.GROUP * len(scale) if bits == 4 else weight.shape[1]
    rows = x.to(scale.dtype).contiguous()
    if columns > rows.shape[1]:
        rows = F.pad(rows, (0, columns - rows.shape[1]))
    if bits == 4:
        multiply = torch._weight_int4pack_mm_for_cpu if is_cpu else torch._weight_int4pack_mm
        y = multiply(rows, weight, Packed.GROUP, scale)
    elif is_cpu:
        y = torch._weight_int8pack_mm(rows, weight, scale)
    elif len(rows) == 1 and torch.compiler.is_compiling():
        y = product_with_a_vector(rows, weight, scale)
    else:
        y = rows @ weight.to(scale.dtype).T * scale
    return y.to(x.dtype)


def product_with_a_vector(row, weight, scale):
    """row [1, columns] -> [1, rows], with weights of 8 bits. The compiler makes one kernel of this,
    which reads 8 bits of each weight. For a product of matrices it writes the weights in 16 bits
    first, and reads those."""
    sums = (weight.float() * row.float()).sum(1)
    return (sums[None] * scale.float()).to(row.dtype)


def pack_8(weight):
    """weight [rows, columns] float32 -> int8 of the same shape, and scales [rows]."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return (weight / scale).round().to(torch.int8), scale[:, 0]


def pack_4(weight, group):
    """weight [rows, columns] float32 -> ids as the kernel of its device wants them, and scales and
    offsets [columns / group, rows, 2]."""
    groups = weight.unflatten(1, (-1, group))
    low = groups.amin(-1, keepdim=True)
    high = groups.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-8) / 15
    ids = ((groups - low) / scale).round().clamp(0, 15).flatten(1).to(torch.int32)
    offset = low + 8 * scale  # the kernels take 8 from an id
    scales = torch.cat([scale, offset], -1).transpose(0, 1).contiguous()
    if weight.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(ids, 1), scales
    pairs = (ids[:, ::2] << 4 | ids[:, 1::2]).to(torch.uint8)
    return torch._convert_weight_to_int4pack(pairs, 8), scales


def packing(bits):
    """What model_files.load does with each Linear for 8 or 4 bits; None for whole weights."""
    if bits == 16:
        return None

    def convert(name, linear):
        # Of linear_in the model reads some rows at a time, so it stays whole.
        return linear if name.endswith("linear_in") else Packed(linear, bits)
    return convert


def pack(model, bits):
    """Pack the layers of a model that is in memory."""
    convert = packing(bits)
    if convert is None:
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            model.set_submodule(name, convert(name, module))
