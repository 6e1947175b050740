"""What a run of training says of itself before its first step and after its last.

What this is: its stage beside Table 3, its samples and steps, what of it may surprise, and what it
has learned. It serves train.py. What this is not: the log of its steps (training_log.py), or
refusals (training_options.py).

    python train.py run grids/ft2 --init tiny/model --out runs/ft2 --stage fine-tuning-2
"""
import flm
from stream import FRAME_RATE
from workshop import beside, checkpoints, processes, starting, training_log, training_set
from workshop.lora import Selection


# A step of AdamW moves a weight by about the learning rate, so that the rates of all steps together
# are about how far the weights can come. Measured on the shipped model and 40 dialogs with one new
# answer: 30 steps at 8e-6, 2.4e-4 together, teach nothing of it. The loss on dialogs of these that
# were held out, which was about 20, is
#     rates together     2e-4   1e-3   2e-3   3e-3   6e-3   9e-3
#     at a rate of       8e-6   1e-4   1e-4   3e-4   3e-4   3e-4
#     loss               13.4    4.0    1.9    1.6    0.8    0.4
# and 138 steps from 1e-4 to 1e-5, 7.6e-3 together, make 95 % of the answers right.
TOO_LITTLE = 1e-3
ENOUGH = 6e-3
HIGHEST = 4e-4  # the rate of --keep-knowing; a higher one may spoil a model


def announce(run, stages):
    """Print what a train.Run is about to do, and what of it may surprise. stages: {name:
    train.Stage}"""
    for note in notes(run, stages):
        print(f"note: {note}")
    settings = run.settings
    stage = stages[settings.stage]
    start, end = settings.lr
    mixture = " and ".join(f"{often:g} x {source}" for source, often in stage.mixture.items())
    print(f"{settings.stage}: {settings.epochs:g} epochs, learning rate {start:g} to {end:g}; "
          f"in the paper: {', '.join(stage.formats)}, of {mixture}")
    if not Selection.of(vars(settings)).everything:
        print(trained_parameters(run.equation))
    grids = run.batches.grids
    begin = f", resumed at step {run.step}" if run.step else ""
    print(f"{len(grids)} samples, {grids.frames:,} frames, "
          f"{run.batches.steps_per_epoch} steps an epoch, {run.batches.steps} steps, "
          f"{processes.count()} processes{begin}")


def conclude(run):
    """Print what a finished train.Run has learned, by its validations, and why it ended."""
    step = checkpoints.step_of(checkpoints.best_checkpoint(run.settings.out))
    if run.step < run.batches.steps:
        print(f"stopped early: {run.history.reason_to_stop()}; the model is that of step {step}")
    elif step < run.step:
        print(f"the model is that of step {step}, the best by validation")
    table = run.history.table(step)
    if table:
        print(table)
    verdict = run.history.verdict()
    if verdict:
        print(f"note: {verdict}")


def notes(run, stages):
    """Sentences on what may surprise, one each."""
    sentences = [*notes_on_grids(run, stages), *notes_on_the_model(run)]
    settings = run.settings
    if run.step == 0 and any("loss" in line for line in training_log.read_log(settings.out)):
        sentences.append(f"{settings.out} has no checkpoint of the steps before, so that this run "
                         "begins at the first step again; a checkpoint is written every "
                         f"{settings.save_every} steps (--save-every)")
    steps = run.batches.steps
    rates = steps * sum(settings.lr) / 2
    if rates < TOO_LITTLE:
        sentences.append(
            f"this run is too short or too slow to learn much: the rates of its {steps} steps add "
            f"up to {rates:.1e}, and the shipped model learned a new answer with {ENOUGH:g}, and "
            f"nothing below {TOO_LITTLE:g}; {enough(steps, rates)}")
    if not run.batches.valid:
        sentences.append("nothing is kept to validate on, so that nobody will see what the model "
                         "learns and forgets: --valid FOLDER, or --hold-out 0.02")
    return sentences


def enough(steps, rates):
    """What to do where the rates of so many steps are too little together."""
    start = 2 * ENOUGH / steps / 1.1  # with an end of a tenth, the mean is 1.1 / 2 of it
    if start <= HIGHEST:
        return f"take {ENOUGH / rates:.0f} times the --epochs, or --lr {start:.0e} {start / 10:.0e}"
    return (f"take {start / HIGHEST:.0f} times the --epochs and --lr {HIGHEST:g} "
            f"{HIGHEST / 10:g}")


def notes_on_grids(run, stages):
    """Sentences on what a run reads."""
    settings = run.settings
    stage = stages[settings.stage]
    sources = run.batches.grids.sources
    sentences = []
    others = {source.format for source in sources} - {*stage.formats, "unknown"}
    if others:
        fitting = [name for name, one in stages.items() if others <= set(one.formats)]
        hint = f": --stage {fitting[0]} has it" if fitting else ""
        sentences.append(f"Table 3 has no {', '.join(sorted(others))} in {settings.stage}{hint}")
    if len(stage.mixture) > 1 and len({source.weight for source in sources}) == 1:
        mixture = " and ".join(f"{often:g} x what is {source}"
                               for source, often in stage.mixture.items())
        sentences.append(f"{settings.stage} mixes {mixture}, and here all grids weigh the same: "
                         "write FOLDER:0.5 and FOLDER:5")
    draws = training_set.mean_draws(settings.grids)
    if draws > 1:
        sentences.append(
            f"these grids hold each recording {draws:.3g} times, drawn anew, so that "
            f"{settings.epochs:.3g} epochs read it {settings.epochs * draws:.3g} times; Table 3 "
            f"has {stage.epochs:g}")
    if settings.hold_out and any(source.draws > 1 for source in sources):
        sentences.append("--hold-out keeps draws of recordings that are trained on in other draws, "
                         "so that its loss falls where nothing is learned for other recordings: "
                         "--valid FOLDER with other recordings tells more")
    return sentences


def notes_on_the_model(run):
    """Sentences on the model that a run starts from, and on the one that it makes."""
    settings = run.settings
    sentences = []
    before = run.equation.flm.config.trained_frames
    if before and before > settings.length:
        seconds = settings.length / FRAME_RATE
        sentences.append(
            f"{settings.init} was trained on sequences of {before} frames, and this run has "
            f"sequences of {settings.length} (--length): the model that comes out will remember "
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
