"""What each of several processes does in test_train.py: a module of its own, since each of them
imports it anew."""
import signal

import torch
import torch.distributed as dist

import train
from workshop import batches, processes


def gradient(settings, rank=0, world=1):
    """Terms of equation 3, the whole gradient and its norm, of a run's first step."""
    equation, _ = train.build(settings, torch.device("cpu"))
    first_step = batches.Batches(settings, equation.flm.config, rank, world).step(0)
    terms, _ = train.gradients(equation, first_step, settings.weights())
    whole = {}
    for name, parameter in equation.named_parameters():
        if parameter.requires_grad:
            whole[name] = processes.gather(parameter.grad).clone()
    norm = torch.nn.utils.clip_grad_norm_(equation.parameters(), 1.0)
    return terms, whole, processes.gather(norm)


def work(rank, world, settings, stop_at):
    """One of several processes: the first gradient, then a run that one process alone is asked to
    stop at a step."""
    torch.set_num_threads(1)
    meeting = f"file://{settings.out}-meet-{world}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    result = gradient(settings, rank, world)
    if rank == 0:
        torch.save(result, f"{settings.out}-{world}.pt")
    rate = train.learning_rate

    def stop_on_the_way(step, *rest):
        if step + 1 == stop_at and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return rate(step, *rest)
    train.learning_rate = stop_on_the_way
    try:
        train.train(settings)
    except train.TrainError as error:
        assert f"stopped at step {stop_at}" in str(error)
    dist.destroy_process_group()
