"""What a run of training says of itself before its first step.

What this is: its stage beside Table 3, its samples and steps, and what of it may surprise. It
serves train.py. What this is not: the log of its steps (training_log.py), or refusals
(training_options.py).

    python train.py run grids/ft2 --init tiny/model --out runs/ft2 --stage fine-tuning-2
"""
import flm
from stream import FRAME_RATE
from workshop import beside, processes, starting
from workshop.lora import Trained


def announce(run, stage):
    """Print what a train.Run is about to do, and what of it may surprise. stage: train.Stage"""
    for note in notes(run, stage):
        print(f"note: {note}")
    settings = run.settings
    start, end = settings.lr
    mixture = " and ".join(f"{often:g} x {source}" for source, often in stage.mixture.items())
    print(f"{settings.stage}: {settings.epochs:g} epochs, learning rate {start:g} to {end:g}; "
          f"in the paper: {', '.join(stage.formats)}, of {mixture}")
    if not Trained.of(vars(settings)).everything:
        print(trained_parameters(run.equation))
    grids = run.batches.grids
    begin = f", resumed at step {run.step}" if run.step else ""
    print(f"{len(grids)} samples, {grids.frames:,} frames, "
          f"{run.batches.steps_per_epoch} steps an epoch, {run.batches.steps} steps, "
          f"{processes.count()} processes{begin}")


def conclude(run):
    """Print what a finished train.Run has learned, by its validations, and why it ended."""
    if run.step < run.batches.steps:
        best = run.history.best()
        which = f"the model is that of step {best}" if best else "the model is that of this step"
        print(f"stopped early: {run.history.reason()}; {which}")
    table = run.history.table()
    if table:
        print(table)


def notes(run, stage):
    """Sentences on what may surprise, one each."""
    settings = run.settings
    sentences = []
    others = {source.format for source in run.batches.grids.sources} - {*stage.formats, "unknown"}
    if others:
        sentences.append(f"Table 3 has no {', '.join(sorted(others))} in {settings.stage}")
    before = run.equation.flm.config.trained_frames
    if before and before > settings.length:
        seconds = settings.length / FRAME_RATE
        sentences.append(
            f"{settings.init} was trained on rows of {before} frames, and this run has rows of "
            f"{settings.length} (--length): the model that comes out will remember "
            f"{settings.length} frames ({seconds:.0f} s) and no more")
    is_preset = settings.init in flm.PRESETS
    if not is_preset and not settings.qwen and starting.fresh_config(settings.init):
        sentences.append(f"{settings.init} is a config.json without weights: the model starts with "
                         "fresh ones")
    folders = beside.sources(settings.beside, settings.init, settings.qwen)
    missing = beside.lacking(folders)
    if missing:
        sentences.append(
            f"there is no {' and no '.join(missing)} to lay beside the model that comes out, "
            "without which it cannot talk: name a folder that has them, now with --beside or "
            "later with train.py export --beside")
    return sentences


def trained_parameters(model):
    """How much of a model is trained, as a line for the screen."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return (f"{counts[True] / 1e6:,.2f} M parameters are trained, {counts[False] / 1e6:,.2f} M "
            "stay as they are")
