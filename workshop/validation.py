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
the lowest sum of the losses, among the checkpoints at which no source had risen by more than
--forget. A run that goes on may have got new sources; each is compared with its own first loss.
"""
from dataclasses import dataclass

from stream import Loss

LEARNED = 0.99  # times its first one, a loss shows that something was learned
SPOILT = 1.5    # times its first one, that the model is spoilt


def may_stop_early(rules):
    """Whether validations may end a run. rules: train.Settings or a History."""
    return rules.forget is not None or rules.patience is not None


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
        monologue = {name: values[Loss.MONOLOGUE].item() for name, values in terms.items()
                     if values[Loss.MONOLOGUE]}  # the mean over no words is 0
        return cls(step, losses, monologue)

    def line(self):
        """For log.jsonl."""
        return {"step": self.step, "valid": self.losses, "valid_monologue": self.monologue}


class History:
    """The validations of a run. lines: of its log.jsonl so far; forget: how far the loss of a
    source may rise above its first one, or None; patience: how many validations in a row may bring
    no source to a new lowest loss, or None."""

    def __init__(self, lines, forget=None, patience=None):
        self.forget = forget
        self.patience = patience
        self.all = [Validation(line["step"], line["valid"], line.get("valid_monologue", {}))
                    for line in lines if "valid" in line]

    def add(self, validation):
        self.all.append(validation)

    def first_of(self, name):
        """The first Validation of a source, perhaps not that of the run."""
        return next(one for one in self.all if name in one.losses)

    def forgotten(self, validation):
        """The sources whose loss has risen by more than `forget`."""
        if self.forget is None:
            return []
        return [name for name, loss in validation.losses.items()
                if loss > self.first_of(name).losses[name] + self.forget]

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
            first = self.first_of(name)
            when = f"at step {first.step}" if first.step else "before the run"
            return (f"at step {newest.step} the loss on {name} is {newest.losses[name]:.3f}, and "
                    f"was {first.losses[name]:.3f} {when} (--forget {self.forget:g})")
        if self.patience is None or len(self.all) <= self.patience:
            return None
        for name in newest.losses:
            earlier = self.losses_on(name, self.all[:-self.patience])
            later = self.losses_on(name, self.all[-self.patience:])
            if not earlier or min(later) < min(earlier):
                return None
        return (f"no loss has fallen in the last {self.patience} validations, up to step "
                f"{newest.step} (--patience {self.patience})")

    def best(self, steps):
        """The step whose model is that of the run where validations choose it, or None. steps:
        those that have a checkpoint. Sums of other sources than the newest cannot be compared."""
        if not may_stop_early(self) or not self.all:
            return None
        sources = self.all[-1].losses.keys()
        good = [one for one in self.all if one.step in steps and one.losses.keys() == sources
                and not self.forgotten(one)]
        if not good:
            return None
        return min(good, key=lambda validation: sum(validation.losses.values())).step

    def verdict(self):
        """What the losses say of a run that has failed, a sentence, or None. Sources without a loss
        from before the run say nothing."""
        if len(self.all) < 2 or self.all[0].step != 0:
            return None
        lowest = {}  # since the first step, of each source
        for name in self.all[0].losses:
            losses = self.losses_on(name, self.all[1:])
            if losses:
                lowest[name] = min(losses)
        before = self.all[0].losses
        if any(loss <= LEARNED * before[name] for name, loss in lowest.items()):
            return None
        for name, loss in lowest.items():
            if loss > SPOILT * before[name]:
                return (f"the loss on {name} was {before[name]:.3f} before the run and never below "
                        f"{loss:.3f} since: this run has spoilt the model; take a lower --lr")
        return ("no loss has fallen by more than a hundredth: this run has taught the model next "
                "to nothing")

    def table(self, step):
        """What each source began with and what it has after a step, or at the last validation
        before it, as text; "" where that is not known."""
        so_far = [one for one in self.all if one.step <= step]
        if len(so_far) < 2 or self.all[0].step != 0:
            return ""
        after = so_far[-1]
        lines = [f"validation before the run and after step {after.step}:",
                 f"{'loss':>16}{'words':>20}"]
        for name, loss in after.losses.items():
            first = self.first_of(name)
            words = ""
            if name in after.monologue and name in first.monologue:
                words = f"{first.monologue[name]:8.3f} -> {after.monologue[name]:5.3f}"
            since = ""
            if first.step:
                since = f", since step {first.step}"
            lines.append(f"{first.losses[name]:7.3f} -> {loss:5.3f}{words:>20}  {name}{since}")
        return "\n".join(lines)
