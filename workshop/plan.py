"""How many conversations an evaluation will hold, and in how many hours, before it holds any.

What this is: `eval.py --plan`: every scene is made and counted, and a few frames of silence are
timed. What this is not: an evaluation: nothing is written, nobody is asked. Serves eval.py.

    python eval.py --asr LibriSpeech/test-clean --out table-4 --plan       # this machine, timed
    python eval.py --asr LibriSpeech/test-clean --out table-4 --plan 80    # 80 ms for a step

A step is one frame of all conversations of a batch. A batch lasts as long as its longest
conversation, so that the steps, and not the frames, decide the time.
"""
import time
from collections import namedtuple

import torch

from workshop.model_folder import FRAME
from workshop.results import BATCHES_IN_MEMORY, Run
from workshop.sound_file import SAMPLE_RATE

TIMED_FRAMES = 25  # of silence in each conversation of a batch, after as many that do not count

# A part of the evaluation: conversations that are not in the folder yet, their frames, and steps.
Line = namedtuple("Line", "part conversations frames steps")


class Plan(Run):
    """A results.Run that holds no conversation: it has no rows, and its table is a plan."""

    def __init__(self, args, folder, sampling, converse, grade):
        self.args = args
        self.out = args.out
        self.partner = None
        self.converse = converse
        self.grade = grade
        self.lines = []

    def hold_each(self, part, numbers, scene_of):
        """Count the conversations that are missing -> no rows."""
        missing = [i for i in numbers if not self.file(part, i).exists()]
        frames = []
        for i in missing:
            scene, _ = scene_of(i)
            frames.append(-(-len(scene.wave) // FRAME))
        self.lines.append(Line(part, len(missing), sum(frames), steps_of(frames, self.args.batch)))
        return []

    def may_write(self, output, part, i):
        """Nothing is written."""

    def transcribe(self, rows):
        return rows

    def compare(self, rows):
        return rows

    def judge(self, rows):
        return rows

    def count(self, part, rows, grade=None):
        """Nothing is graded."""

    def count_groups(self, part, rows, keys, grade=None):
        """Nothing is graded."""

    def write(self):
        """The text of the plan."""
        lines = [line for line in self.lines if line.conversations]
        batch = min(self.args.batch, max((line.conversations for line in lines), default=1))
        milliseconds = self.args.plan
        source = "as --plan says"
        if not milliseconds:
            milliseconds = 1000 * self.time_step(batch)
            source = f"timed here on {self.args.device}, in silence"
        total = Line("together", *(sum(line[i] for line in lines) for i in (1, 2, 3)))
        text = [f"{'part':<32}{'talks':>7}{'frames':>11}{'of sound':>11}{'steps':>9}{'time':>11}"]
        for part, talks, frames, steps in (*lines, total):
            sound = frames * FRAME / SAMPLE_RATE / 3600
            hours = steps * milliseconds / 3.6e6
            text.append(f"{part:<32}{talks:>7,}{frames:>11,}{sound:>9.2f} h{steps:>9,}"
                        f"{hours:>9.2f} h")
        text.append(f"A step of {batch} conversations takes {milliseconds:.1f} ms, {source}. "
                    "Recogniser, judge and embedding come on top.")
        if self.args.dialogs:
            text.append("What is said into an answer is not counted before the answer is there: "
                        "at most as many talks again for each such part.")
        return "\n".join(text) + "\n"

    def time_step(self, batch):
        """Seconds of a step of `batch` conversations."""
        waves = [torch.zeros(TIMED_FRAMES * FRAME)] * batch
        for _ in range(2):  # the first compiles, fills caches, and does not count
            start = time.perf_counter()
            for _ in self.converse(self.partner, waves, None, batch):
                pass
            seconds = time.perf_counter() - start
        return seconds / TIMED_FRAMES


def steps_of(frames, batch):
    """The steps of conversations of so many frames each, held as results.Run holds them: some
    batches are in memory at once, and in these the short conversations come first."""
    steps = 0
    size = BATCHES_IN_MEMORY * batch
    for start in range(0, len(frames), size):
        group = sorted(frames[start:start + size])
        for first in range(0, len(group), batch):
            steps += group[first:first + batch][-1]
    return steps
