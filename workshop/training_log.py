"""What a run of training tells: a line a step on the screen, log.jsonl, and curves drawn from it.

What this is: the writer and the reader of OUT/log.jsonl. It serves train.py.
What this is not: the numbers themselves (train.py, workshop/costs.py).

    python train.py plot runs/ft2        # runs/ft2/curves.png

One line of the screen, of a step of fine-tuning. Each term of equation 3 is followed by its weight
and by what it adds to the loss:

    step 90/310  loss 3.514  semantic 1.432 x 1 = 1.432  acoustic 3.001 x 0.5 = 1.501
                 monologue 0.570 x 1 = 0.570  wait 1.102 x 0.01 = 0.011  lr 8.0e-06  norm 1.02  ...

log.jsonl has an object for each step: step, loss, the terms by name, the same weighted
(weighted_wait), lr, norm, frames, frames/s, times_real_time, gigabytes, minutes_left and, on a GPU
that is known, mfu. A validation has an object of its own: step, valid {source: loss},
valid_monologue {source: the same of words alone}.
"""
import json
import math
import time
from pathlib import Path

from stream import Loss
from workshop.manifests import write_lines

TERMS = [kind for kind in Loss if kind != Loss.NONE]
COLUMNS = {  # how the screen spells the numbers beside equation 3
    "lr": "{:.1e}",
    "norm": "{:.2f}",
    "frames/s": "{:.0f}",
    "times_real_time": "{:.0f}",
    "mfu": "{:.1%}",
    "gigabytes": "{:.1f}",
    "minutes_left": "{:.1f}",
}


class LogError(ValueError):
    """A log that cannot be drawn; the message is one sentence."""


def read_log(folder, steps=math.inf):
    """The objects of a run's log.jsonl up to a step. A line that a kill cut short is left out."""
    file = Path(folder) / "log.jsonl"
    if not file.exists():
        return []
    lines = []
    for text in file.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return [line for line in lines if line["step"] <= steps]


class Log:
    """The log of a run of some train.Settings from its step `first` to `steps`. meter: costs.Meter.
    Raises LogError where it cannot be written for TensorBoard."""

    def __init__(self, settings, first, steps, meter):
        self.first = first
        self.steps = steps
        self.meter = meter
        self.weights = settings.weights().tolist()
        self.began = time.time()
        self.file = Path(settings.out) / "log.jsonl"
        steps_so_far = read_log(settings.out, first)
        write_lines(self.file, steps_so_far)  # steps after the checkpoint come again
        self.board = None
        if settings.tensorboard:
            self.board = open_tensorboard(Path(settings.out) / "tensorboard", first)

    def add_step(self, step, update, seconds):
        """update: train.Update; seconds: how long the step took."""
        line = {"step": step, "loss": update.loss}
        additions = {}   # what each term adds to the loss
        equation = []    # the same, as text
        for kind in TERMS:
            if not update.counts[kind]:
                continue
            name = kind.name.lower()
            term = update.terms[kind].item()
            weight = self.weights[kind]
            line[name] = term
            additions[f"weighted_{name}"] = weight * term
            equation.append(f"{name} {term:.3f} x {weight:g} = {weight * term:.3f}")
        line |= additions
        line |= {"lr": update.rate, "norm": update.norm, **self.meter.read(update.counts, seconds)}
        seconds_a_step = (time.time() - self.began) / (step - self.first)
        line["minutes_left"] = seconds_a_step * (self.steps - step) / 60
        others = [f"{name.replace('_', ' ')} {form.format(line[name])}"
                  for name, form in COLUMNS.items() if name in line]
        self._plot(step, line)
        self._write(line, [f"loss {update.loss:.3f}", *equation, *others])

    def add_validation(self, validation):
        """validation: validation.Validation"""
        columns = [f"valid {name} {loss:.3f}" for name, loss in validation.losses.items()]
        for name, loss in validation.losses.items():
            self._plot(validation.step, {f"valid/{name}": loss})
        self._write(validation.line(), columns)

    def _plot(self, step, numbers):
        if self.board:
            for name, value in numbers.items():
                if name != "step":
                    self.board.add_scalar(name, value, step)
            self.board.flush()

    def _write(self, line, columns):
        with open(self.file, "a") as file:
            print(json.dumps(line), file=file)
        print(f"step {line['step']}/{self.steps}  " + "  ".join(columns), flush=True)


def open_tensorboard(folder, first):
    """A SummaryWriter of a run that goes on behind step `first`. Raises LogError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LogError("--tensorboard needs the package of this name: pip install tensorboard"
                       ) from None
    return SummaryWriter(folder, purge_step=first + 1)


# --- curves ---

PANELS = (  # the curves that share a panel
    ("loss",),
    ("semantic", "acoustic", "monologue", "wait"),
    ("lr", "norm"),
    ("times_real_time", "mfu"),
)
OWN_AXES = ("lr", "times_real_time")  # panels that begin with these have curves of two units


def series(lines, name):
    """The curve of one number -> (steps, values)"""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]


def draw_panel(panel, names, lines):
    """Draw some numbers of a log into one panel of matplotlib."""
    present = [name for name in names if any(name in line for line in lines)]
    for i, name in enumerate(present):
        axis = panel
        if i > 0 and names[0] in OWN_AXES:
            axis = panel.twinx()
        axis.plot(*series(lines, name), f"C{i}", linewidth=1)
        place = ("bottom", "center", "top")[i % 3]
        axis.set_ylabel(name.replace("_", " "), color=f"C{i}", loc=place)
    panel.set_xlabel("step")


def draw_validation(panel, lines):
    """Add the validation losses of each source to a panel."""
    for name in sorted({name for line in lines for name in line["valid"]}):
        of_sources = [{"step": line["step"], **line["valid"]} for line in lines]
        panel.plot(*series(of_sources, name), "o-", label=f"valid, {name}")
        panel.legend()


def plot(folder, file):
    """A run's log.jsonl -> a PNG: loss, its terms, learning rate with gradient norm, speed.
    Raises LogError."""
    lines = read_log(folder)
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise LogError(f"{folder} has no log.jsonl with steps to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LogError("plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for panel, names in zip(panels, PANELS):
        draw_panel(panel, names, steps)
        if names == ("loss",):
            draw_validation(panel, [line for line in lines if "valid" in line])
    figure.savefig(file, dpi=120)
