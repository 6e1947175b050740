"""The questions of an evaluation again, under other conditions: pauses, noise, rooms, long talks.

What this is: parts of eval.py that the paper does not have; a listener notices them. Each gets a
Run (results.py) and `alone`, an eval.Asked: the questions, each held alone before. What this is
not: interruptions, back-channels and turns, or a grade (all of it eval.py). Serves eval.py.

    python eval.py --dialogs tiny/work/test.jsonl --only pause noise rooms talk --out results
"""
from workshop.encoding import recordings
from workshop.full_duplex_bench import between
from workshop.measures import spaced
from workshop.scenes import in_noise, in_room, long_talk, scene, with_pause

TALKS = 4             # long conversations
LONG_SILENCE = 100.0  # seconds of silence before a question
SILENCES = 32         # questions that are asked after it, at most


def pauses(run, alone):
    """A pause within each question."""
    run.measure("pause", [with_pause(one, run.draws("pause", i))
                          for i, one in enumerate(alone.questions)])


def noise(run, alone):
    """The questions again, in noise."""
    paths = recordings(run.args.noise)
    for snr in run.args.snr:
        run.measure(f"noise {snr:g} dB", [in_noise(one, snr, paths, run.draws(snr, i))
                                          for i, one in enumerate(alone.scenes)])


def rooms(run, alone):
    """The questions again, in made-up rooms."""
    if run.args.rooms:
        run.measure("rooms", [in_room(one, run.draws("room", i))
                              for i, one in enumerate(alone.scenes)])


def by_question(row):
    """The row of a conversation -> a row for each of its questions, with the minute in which it was
    asked."""
    rows = []
    for turn in row["turns"]:
        _, lines = between(row, turn["since"], turn["until"])
        minute = int(turn["end"] // 60) + 1
        rows.append(dict(row, turns=[turn], minute=minute, lines=lines))
    return rows


def talks(run, alone):
    """Long conversations: right answers by the minute in which the question was asked; and answers
    after a long silence."""
    questions = alone.questions
    if not run.args.talk:
        return
    starts = [len(questions) * i // TALKS for i in range(TALKS)]
    talks_held = run.hold("talk", [long_talk(questions, first, run.args.talk) for first in starts])
    rows = [row for talk in talks_held for row in by_question(talk)]
    run.count("talk", rows)
    run.count_groups("talk", rows, ["minute"])
    run.measure("long silence", [scene([(LONG_SILENCE, one)])
                                 for one in spaced(questions, SILENCES)])
