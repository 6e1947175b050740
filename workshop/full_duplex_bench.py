"""Full-Duplex-Bench (arXiv 2503.04721): its folders of recordings, and its measures.

What this is: what a folder of the benchmark tests, the grades of version 1.0, and the times of
version 1.5. What this is not: the paper's own evaluation, or the rest of version 1.5 (behaviour, by
a language model; speech before and after), which the benchmark's scripts measure on what is written
here: output.wav beside input.wav, clean_output.wav beside clean_input.wav, as long and in time with
it. They make their own output.json from these. Serves eval.py.

    python eval.py --fdb Full-Duplex-Bench/v1 --out results

A sample is a folder with input.wav. The file beside it says what is tested:

    pause.json         the user pauses and goes on       the model should not take the turn
    turn_taking.json   the user's turn ends              the model should take the turn
    interrupt.json     the user interrupts the model     the model should answer what interrupts
    none of them       the user talks for long           the model should give short back-channels
    clean_input.wav or metadata.json: version 1.5; the folder above says who speaks into the answer,
                       metadata.json when ("timestamps": [start, end] in seconds)

Decision: the benchmark takes words and their times from a speech recogniser. Here a time is the
waveform's and a word is the monologue's, so that a recogniser's errors cannot enter.
"""
import json

import numpy as np

from workshop import sound_file
from workshop.measures import words
from workshop.scenes import Scene

# A model takes the turn if it speaks for so many seconds or in more words than these.
TURN_SECONDS = 1.0
TURN_WORDS = 3
BACKCHANNEL_WORDS = 2  # a back-channel is shorter than TURN_SECONDS and has at most so many words
# The file beside input.wav -> the task, and which of its first entry's times ends the user's turn.
TASKS = {"pause": ("pause", 0), "turn_taking": ("turn-taking", 0), "interrupt": ("interruption", 1)}
VERSION_15 = "version 1.5"  # the task of its folders
REFERENCE = "icc_gt_distribution.json"  # when people give back-channels, from the benchmark
BIN = 0.2                   # seconds of a bin of these
NOTHING = 1e-10             # what stands in an empty bin


def samples(folder):
    """A folder of the benchmark -> [(recording, its row)], by name. `output` of a row is the file
    in which the answer goes. Raises ValueError where there are none."""
    files = sorted(folder.rglob("input.wav"))
    if not files:
        raise ValueError(f"{folder} holds no input.wav")
    people = read_people(folder)
    recordings = []
    for file in files:
        row = dict(question=str(file.parent), **task_of(file))
        if row["task"] == "backchannel" and file.parent.name in people:
            row["people"] = people[file.parent.name]
        recordings.append((file, dict(row, output=str(file.with_name("output.wav")))))
        clean = file.with_name("clean_input.wav")
        if clean.exists():
            row = dict(question=str(file.parent), task="clean")
            recordings.append((clean, dict(row, output=str(file.with_name("clean_output.wav")))))
    return recordings


def count(run):
    """Hold the conversations of --fdb, each answer beside its recording, and grade them: the part
    "fdb" of results.Run. Raises ValueError for an answer that is there already."""
    listed = samples(run.args.fdb)
    for i, (_, row) in enumerate(listed):
        run.may_write(row["output"], "fdb", i)

    def scene_of(i):
        path, row = listed[i]
        return Scene(sound_file.read_audio(path), row), {}

    run.count("fdb", run.hold_each("fdb", range(len(listed)), scene_of), grade)


def read_people(folder):
    """{sample: when people gave back-channels in it, as shares of equal parts of its time}, of the
    file REFERENCE in the folder or above it; {} where it is not."""
    for place in (folder, *folder.resolve().parents):
        if (place / REFERENCE).exists():
            return json.loads((place / REFERENCE).read_text())
    return {}


def task_of(file):
    """input.wav of a sample -> dict of `task` and, where the task has one, `end`, the end of the
    user's turn in seconds. Raises ValueError where the file beside it has no such time."""
    for name in ("clean_input.wav", "metadata.json"):
        if file.with_name(name).exists():
            return overlap_of(file)
    for name, (task, place) in TASKS.items():
        side = file.with_name(f"{name}.json")
        if side.exists():
            return dict(task=task, end=end_of_turn(side, place))
    return dict(task="backchannel")


def overlap_of(file):
    """A sample of version 1.5 -> dict of task, event, and the seconds from which and until which
    somebody speaks into the answer. Raises ValueError."""
    side = file.with_name("metadata.json")
    row = dict(task=VERSION_15, event=file.parent.parent.name)
    if side.exists():
        try:
            times = json.loads(side.read_text(encoding="utf-8")).get("timestamps")
            if times is not None:
                row["overlap"] = [float(times[0]), float(times[1])]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{side} has no times at ['timestamps']: {error!r}") from None
    return row


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
        return grade_overlap(row)
    if task == "clean":
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


def grade_overlap(row):
    """Version 1.5: stop latency, seconds from the overlapping sound's start until the answer that
    it falls into ends; response latency, seconds from its end to the next sound. None without."""
    if "overlap" not in row:
        return {}
    start, end = row["overlap"]
    stops = [stop - start for begin, stop in row["spans"] if begin <= start < stop]
    responses = [begin - end for begin, _ in row["spans"] if begin >= end]
    return {f"{row['event']} stop latency": stops[0] if stops else None,
            f"{row['event']} response latency": responses[0] if responses else None}


def grade_backchannels(row, language):
    """How many sounds are shorter than a turn, and the seconds in which they came; none counts
    where another sound takes the turn. JSD: how far their times are from people's, 0 .. 0.83; 1
    without any."""
    turns = []
    last = 0
    for start, end in row["spans"]:
        lines = [line for line in row["lines"] if last <= line[0] < end]
        many_words = count_words(lines, language) > BACKCHANNEL_WORDS
        turns.append(end - start >= TURN_SECONDS or many_words)
        last = end
    takeover = any(turns)
    backchannels = [] if takeover else row["spans"]
    grades = {"backchannel takeover": takeover,
              "backchannels a second": (len(backchannels), row["seconds"])}
    if "people" in row:
        grades["backchannel JSD"] = timing_distance(backchannels, row["seconds"], row["people"])
    return grades


def timing_distance(spans, seconds, people):
    """The Jensen-Shannon distance (natural logarithm) between the times of sounds and those of
    people, as the benchmark's script computes it.

    Each bin of BIN seconds counts the sounds that touch it; people: shares of as many or fewer
    parts of the same time."""
    if not spans:
        return 1.0
    counts = np.full(int(seconds / BIN) + 1, NOTHING)
    for start, end in spans:
        counts[int(start / BIN):int(end / BIN) + 1] += 1
    places = np.linspace(0, 1, len(counts))
    of_people = np.interp(places, np.linspace(0, 1, len(people)), people)
    p = counts / counts.sum()
    q = of_people / of_people.sum()
    middle = (p + q) / 2
    return float(np.sqrt(max(0.0, (divergence(p, middle) + divergence(q, middle)) / 2)))


def divergence(p, q):
    """Kullback and Leibler's, in nats."""
    some = p > 0
    return (p[some] * np.log(p[some] / q[some])).sum()
