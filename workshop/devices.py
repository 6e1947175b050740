"""Whether PyTorch can compute on a device, and how exactly.

What this is: the check of --device, in one sentence, and convolutions in whole float32. Serves
every root file that has this option. What this is not: a choice of a device.

    python chat.py --device cuda
"""
import torch

from workshop.files import error_line


def check_device(device):
    """Raise ValueError, one sentence, where PyTorch cannot compute on a device."""
    try:
        torch.ones(1, device=device).sum().item()  # "meta" makes tensors, and has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = error_line(error).partition(". ")[0]
        raise ValueError(f"--device {device} cannot be used here: {reason}") from None


def convolve_exactly():
    """Convolutions of float32 in float32 on a GPU too. cuDNN would round what goes in to 10 bits
    (TF32), and a codec whose latent is that far off chooses other codes."""
    torch.backends.cudnn.allow_tf32 = False
