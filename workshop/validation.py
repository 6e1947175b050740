"""What a run's validations say: whether it goes on, which of its steps is its model, and what it
learned and lost.

What this is: the losses on what is not trained on, by source, over the steps of a run; early
stopping; the table at the end. It serves train.py, which computes the losses. What this is not: the
choice of what is held out (batches.py), or a test of answers (eval.py).

    python train.py run grids/new grids/replay:0.5 --init tiny/model --out runs/new \\
        --stage fine-tuning-2 --lr 2e-4 1e-5 --valid grids/new-test --valid grids/old-test \\
        --forget 0.1 --patience 3

With --valid for what is new and for what the model knew before, --forget ends a run that loses the
old, and --patience one that learns nothing more. Its model is then not the last but the best one:
the lowest sum of the losses, among the steps at which no source had risen by more than --forget.
"""
from dataclasses import dataclass

from stream import Loss


@dataclass(frozen=True)
class Validation:
    """The losses after a step, by source."""
    step: int
    losses: dict       # equation 3
    monologue: dict    # its cross-entropy of words alone; no source without words

    @classmethod
    def of(cls, step, terms, weights):
        """terms: {source: the four CE, [5] by class of Loss}; weights: of equation 3, [5]"""
        losses = {name: (weights * values).sum().item() for name, values in terms.items()}
        monologue = {name: values[Loss.MONOLOGUE].item() for name, values in terms.items()}
        return cls(step, losses, monologue)

    def line(self):
        """For log.jsonl."""
        return {"step": self.step, "valid": self.losses, "valid_monologue": self.monologue}


class History:
    """The validations of a run. lines: of its log.jsonl so far; forget: how far the loss of a
    source may rise above what it was before the run, or None; patience: how many validations in a
    row may bring no source to a new lowest loss, or None."""

    def __init__(self, lines, forget=None, patience=None):
        self.forget = forget
        self.patience = patience
        self.all = [Validation(line["step"], line["valid"], line.get("valid_monologue", {}))
                    for line in lines if "valid" in line]

    @property
    def stops_early(self):
        """Whether validations may end this run."""
        return self.forget is not None or self.patience is not None

    def add(self, validation):
        self.all.append(validation)

    def forgotten(self, validation):
        """The sources whose loss has risen by more than `forget`."""
        if self.forget is None:
            return []
        before = self.all[0].losses
        return [name for name, loss in validation.losses.items()
                if loss > before.get(name, loss) + self.forget]

    def losses_on(self, name, validations):
        """A source's losses in some validations; a run that went on may have got new sources."""
        return [one.losses[name] for one in validations if name in one.losses]

    def reason_to_stop(self):
        """Why the run should stop now, a sentence; None where it goes on."""
        if not self.all:
            return None
        newest = self.all[-1]
        lost_sources = self.forgotten(newest)
        if lost_sources:
            name = lost_sources[0]
            return (f"at step {newest.step} the loss on {name} is {newest.losses[name]:.3f}, and "
                    f"was {self.all[0].losses[name]:.3f} before the run (--forget {self.forget:g})")
        if self.patience is None or len(self.all) <= self.patience:
            return None
        for name in newest.losses:
            earlier = self.losses_on(name, self.all[:-self.patience])
            later = self.losses_on(name, self.all[-self.patience:])
            if not earlier or min(later) < min(earlier):
                return None
        return (f"no loss has fallen in the last {self.patience} validations, up to step "
                f"{newest.step} (--patience {self.patience})")

    def best(self):
        """The step whose model is that of the run where validations choose it, or None."""
        if not self.stops_early:
            return None
        good = [validation for validation in self.all[1:] if not self.forgotten(validation)]
        if not good:
            return None
        return min(good, key=lambda validation: sum(validation.losses.values())).step

    def learned_nothing(self):
        """Whether no loss has fallen by a hundredth since before the run, as far as is known."""
        if len(self.all) < 2 or self.all[0].step != 0:
            return False
        before = self.all[0].losses
        return all(loss > 0.99 * before[name] for later in self.all[1:]
                   for name, loss in later.losses.items() if name in before)

    def table(self):
        """What was before the first step and what is after the best or else the last, as text; ""
        where that is not known."""
        if len(self.all) < 2 or self.all[0].step != 0:
            return ""
        before = self.all[0]
        best = self.best()
        after = next((one for one in self.all if one.step == best), self.all[-1])
        lines = [f"validation before the run and after step {after.step}:",
                 f"{'loss':>16}{'words':>20}"]
        for name, loss in after.losses.items():
            words = ""
            if name in after.monologue and name in before.monologue:
                words = f"{before.monologue[name]:8.3f} -> {after.monologue[name]:5.3f}"
            lines.append(f"{before.losses.get(name, float('nan')):7.3f} -> {loss:5.3f}"
                         f"{words:>20}  {name}")
        return "\n".join(lines)
