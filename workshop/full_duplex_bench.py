"""Full-Duplex-Bench (arXiv 2503.04721): its folders of recordings, and its measures.

What this is: what a folder of the benchmark tests, and the grades of version 1. What this is not:
the paper's own evaluation, or the benchmark's scripts, which grade version 1.5. Serves eval.py.

    python eval.py --fdb Full-Duplex-Bench/v1 --out results

A sample is a folder with input.wav. The file beside it says what is tested:

    pause.json         the user pauses and goes on       the model should not take the turn
    turn_taking.json   the user's turn ends              the model should take the turn
    interrupt.json     the user interrupts the model     the model should answer what interrupts
    none of them       the user talks for long           the model should give short back-channels
    clean_input.wav or metadata.json: version 1.5

Decision: the benchmark takes words and their times from a speech recogniser. Here a time is the
waveform's and a word is the monologue's, so that a recogniser's errors cannot enter.
"""
import json
import sys

from workshop.measures import words

# A model takes the turn if it speaks for so many seconds or in more words than these.
TURN_SECONDS = 1.0
TURN_WORDS = 3
BACKCHANNEL_WORDS = 2  # a back-channel is shorter than TURN_SECONDS and has at most so many words
# The file beside input.wav -> the task, and which of its first entry's times ends the user's turn.
TASKS = {"pause": ("pause", 0), "turn_taking": ("turn-taking", 0), "interrupt": ("interruption", 1)}
VERSION_15 = "version 1.5"  # the task that is not graded here


def samples(folder):
    """A folder of the benchmark -> [(recording, its row)], by name. `output` of a row is the file
    in which the answer goes. Raises ValueError where there are none."""
    recordings = []
    ungraded = 0
    for file in sorted(folder.rglob("input.wav")):
        row = dict(question=str(file.parent), **task_of(file))
        recordings.append((file, row))
        clean = file.with_name("clean_input.wav")
        if clean.exists():
            recordings.append((clean, row))
        if row["task"] == VERSION_15:
            ungraded += 1
    if not recordings:
        raise ValueError(f"{folder} holds no input.wav")
    if ungraded:
        print(f"eval.py: {ungraded} folders are of Full-Duplex-Bench 1.5: output.wav and "
              "clean_output.wav are written for its own scripts, and are not graded here",
              file=sys.stderr)
    return [(file, dict(row, output=str(file.with_name(file.name.replace("input", "output")))))
            for file, row in recordings]


def task_of(file):
    """input.wav of a sample -> dict of `task` and, where the task has one, `end`, the end of the
    user's turn in seconds. Raises ValueError where the file beside it has no such time."""
    for name in ("clean_input.wav", "metadata.json"):
        if file.with_name(name).exists():
            return dict(task=VERSION_15)
    for name, (task, place) in TASKS.items():
        side = file.with_name(f"{name}.json")
        if side.exists():
            return dict(task=task, end=end_of_turn(side, place))
    return dict(task="backchannel")


def end_of_turn(side, place):
    """Seconds. Raises ValueError."""
    try:
        entries = json.loads(side.read_text(encoding="utf-8"))
        return float(entries[0]["timestamp"][place])
    except (ValueError, LookupError, TypeError) as error:
        time = f"[0]['timestamp'][{place}]"
        raise ValueError(f"{side} has no time at {time}: {error!r}") from None


def between(row, since, until=1e9):
    """What began between two times of a conversation -> (spans of sound, lines of monologue)."""
    spans = [span for span in row["spans"] if since <= span[0] < until]
    lines = [line for line in row["lines"] if since <= line[0] < until]
    return spans, lines


def takes_turn(spans, lines, language="en"):
    """Whether sounds and lines of a model are a turn: it sounds, for long or in many words."""
    if not spans:
        return False
    seconds = spans[-1][1] - spans[0][0]
    return seconds >= TURN_SECONDS or count_words(lines, language) > TURN_WORDS


def count_words(lines, language):
    return len(words(" ".join(text for _, text in lines), language))


def grade(row, language):
    """A conversation -> {measure: boolean, seconds, pair or None}.

    takeover: whether the model takes the turn; after an interruption only what follows counts.
    latency: seconds from the end of the user's turn to the first sound, at least 0; None where the
    turn is not taken."""
    task = row["task"]
    if task == VERSION_15:
        return {}
    if task == "backchannel":
        return grade_backchannels(row, language)
    since = row["end"] if task == "interruption" else 0
    spans, lines = between(row, since)
    takes = takes_turn(spans, lines, language)
    grades = {f"{task} takeover": takes}
    if task != "pause":
        latency = None
        if takes:
            latency = max(0, spans[0][0] - row["end"])
        grades[f"{task} latency"] = latency
    return grades


def grade_backchannels(row, language):
    """How many sounds are shorter than a turn, and the seconds in which they came; none counts
    where another sound takes the turn. Not measured: how far their times are from people's, which
    needs a file of the benchmark."""
    turns = []
    last = 0
    for start, end in row["spans"]:
        lines = [line for line in row["lines"] if last <= line[0] < end]
        many_words = count_words(lines, language) > BACKCHANNEL_WORDS
        turns.append(end - start >= TURN_SECONDS or many_words)
        last = end
    takeover = any(turns)
    count = 0 if takeover else len(turns)
    return {"backchannel takeover": takeover,
            "backchannels a second": (count, row["seconds"])}
