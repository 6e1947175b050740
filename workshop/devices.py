"""Whether PyTorch can compute on a device.

What this is: the check of --device, in one sentence. Serves every root file that has this option.
What this is not: a choice of a device.

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
