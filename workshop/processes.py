"""One training run in several processes: how they meet, what they add up, how they share a model,
how they stop.

What this is: the start that `torchrun` asks for, sums over all processes, FSDP, and Ctrl-C. It
serves train.py. What this is not: the loss, or what a process reads. In a run of one process every
function here still works.

    torchrun --nproc-per-node 8 --shutdown-timeout 600 train.py run grids/pt1 --init 7b --paper \\
        --out runs/pt1 --device cuda --bfloat16 --recompute --compile

Unusual here:
- A lone GPU forms a group of one process, so that FSDP gives it the same mixed precision as many
  GPUs have. With adapters it does not (`alone`): FSDP would gather copies of what is there already,
  and adapters are for GPUs without room to spare.
- A stop is a question that all processes answer together: they leave the loop at the same step.
  torchrun kills its processes 30 s after a Ctrl-C, unless --shutdown-timeout says otherwise. A step
  and a checkpoint of a large model take longer. The traceback that follows is the launcher's own.
"""
import os
import signal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


class TrainError(ValueError):
    """A run that ends before its end, in all its processes alike; the message is one sentence."""


class Stopped(TrainError):
    """A run that was asked to stop, and did."""


class ProcessError(ValueError):
    """A device that is not there; the message is one sentence."""


def connect(device, alone=False):
    """Join the other processes of a torchrun. device: "cpu" or "cuda"; alone: a lone GPU forms no
    group -> this process's torch.device. Raises ProcessError where there is no GPU."""
    device = torch.device(device)
    by_torchrun = "RANK" in os.environ
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ProcessError("--device cuda was asked for, and PyTorch sees no GPU")
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and processes_here > torch.cuda.device_count():
        raise ProcessError(f"torchrun started {processes_here} processes here, and PyTorch sees "
                           f"{torch.cuda.device_count()} GPUs: --nproc-per-node must not be more")
    forms_group = by_torchrun or (device.type == "cuda" and not alone)
    if forms_group and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if by_torchrun:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def leave():
    """Part from the other processes at the end of a program. NCCL warns of a group that stays."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values):
    """A CPU tensor -> the same tensor, summed over all processes in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def from_first(value):
    """What the first process passes in, in every process. The others may pass None."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(tensor):
    """A tensor of which each process may hold a part -> the whole tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(root, blocks, model, device, bfloat16):
    """FSDP: each process keeps its part of every weight, and gathers a block only while it runs.

    root: the module whose forward pass is trained; blocks: its modules that are gathered one at a
    time; model: the part of root that has weights; those of the first process go to all, and in the
    others they need no values. bfloat16: compute in bfloat16, and reduce gradients in float32."""
    weights = {}
    if rank() == 0:
        weights = model.state_dict()
    root.to("meta")
    precision = MixedPrecisionPolicy()
    if bfloat16:
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in [*blocks, root]:
        fully_shard(module, mesh=mesh, mp_policy=precision)
    root.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)


class StopRequest:
    """Within `with`, Ctrl-C and SIGTERM are counted and do not strike: half an update could not be
    resumed."""

    def __init__(self):
        self.signals = 0
        self.handlers = {}  # signal number -> what handled it before

    def _count(self, number, frame):
        self.signals += 1

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def anywhere(self):
        """Whether a signal has reached any of the processes. All call this together and get one
        answer."""
        return sum_over_processes(torch.tensor([self.signals])).item() > 0


def is_full_memory(error):
    """Whether an error says that a GPU or this machine has no more memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)


def another_died(error):
    """Whether a RuntimeError says that another process of this run is gone."""
    signs = ("gloo", "nccl", "peer", "timed out")
    return dist.is_initialized() and any(sign in str(error).lower() for sign in signs)
