"""What the paper measures (section 4), and what a listener notices: right answers, speech, and how
the model behaves while both talk.

What this is: conversations with recorded people, many in one batch, and the grades of each. What
this is not: when a waveform sounds (workshop/sounds.py), how sure a number is (measures.py there),
the folder of results (results.py there), or a clock: `chat.py --bench` times the frames.

    python eval.py --dialogs tiny/work/test.jsonl --rooms --whisper --out results
    python eval.py --model runs/pt2 --asr LibriSpeech/test-clean --out table-4
    python eval.py --model runs/ft2 --tts seedtts_testset/en/meta.lst --whisper --out table-5

What is unusual here: many conversations step together in one chat.Duplex. Each is exactly the one
that chat.py would hold, and all are over sooner. A model is causal: what it writes at a frame
depends on nothing later. A conversation that is held a second time, now with an interruption, is
therefore the same up to the interruption, and "it stopped" is a comparison of the two.

The scenes, with time from left to right; `ask` is the user's sound, `answer` the model's:

    questions       ask ----.  answer
                             ^^ speaks after: from the end of the user's sound to the model's first
    pause           ask -- | -- ask  answer
                             false start: a sound between the pause and the end of the question
    interruption    ask ----.  answer X  answer 2
                                  ask 2 --.
                                  ^^^^^^^ stops after: from the first sound of the second question
                             to the end of the answer, if that is earlier than before (stopped);
                             the second question's answer is the one that counts
    backchannel     ask ----.  answ|er
                                   uh-huh
                             false stop: the answer ends earlier than before
                             says more: the monologue has more lines than before
    turns           ask ----.  answer  ask ----.  answer  ...       five questions
    follow-up       the same with the turns of one dialog: a later one may need an earlier one
    talk            the same for ten minutes: right answers by the minute
    long silence    a hundred seconds of silence  ask ----.  answer

Shapes: T frames, K = 8 codebooks, N samples.
"""
import sys
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("eval.py")

import torch
import torch.nn.functional as F

import chat
import data
import stream
from data import FRAME, SAMPLE_RATE
from workshop import (blind_pairs, conditions, eval_options, full_duplex_bench, grid_losses,
                      model_files, run_folder, sound_file, test_sets)
from workshop.encoding import recordings
from workshop.full_duplex_bench import between, takes_turn
from workshop.measures import words
from workshop.monologue import read_monologue
from workshop.plan import Plan
from workshop.results import Run
from workshop.scenes import Scene, clip, in_a_row, in_every_place, next_of_each, scene
from workshop.spelling import spelling_of

# Decision: the paper does not say how its conversations were timed.
OPEN_TAIL = 20.0      # seconds of silence after an open question, in which it must be answered
EARLIEST = 0.1        # seconds of an answer before the user interrupts it, at least
LEFT = 1.2            # seconds of it that would be left after that, at least
CUT = 0.3             # seconds by which an answer must end earlier than before to have been cut;
                      # other random draws alone move its end by 0.2
# Frames of a pair of the ASR-style and TTS-style parts.
SILENCE = 3           # before a recording or a text
WRITING = 25          # after it, to write in
SAYING = 8            # for each token that is spoken, at most


# --- the engine: many conversations step together ---

def play(model, sampling, user, seeds=None, batch=32, codec=None, text=None, speak=None, echo=None,
         hears=None):
    """Run the model beside what the user says in each conversation, codes [T, K] or, with a codec,
    samples [T, FRAME], `batch` at once. Yields (which one, (text ids [T], codes [T, K], samples
    [T * FRAME] or none)) as each batch is over, short ones first.

    seeds: of each conversation; None: 0 for all. Lists with an item for each conversation, or None:
    text: ids [T + 1] to read in place of what was drawn (stream.delay makes them). speak: codes
    [T + 1, K], the same. echo: (gain, seconds): what the model says is heard too, so many times as
    loud, so much later (more than a frame); it is added to `user`. hears: whether the user is
    heard; where not, the listening channel is empty."""
    order = sorted(range(len(user)), key=lambda i: len(user[i]))
    for start in range(0, len(order), batch):
        group = order[start:start + batch]
        frames = len(user[group[-1]])
        context = min(chat.default_context(model.config), frames)
        duplex = chat.Duplex(model, sampling, context, len(group), codec=codec)
        for b, i in enumerate(group):
            duplex.reset(b, seeds[i] if seeds else 0)
        answers = [[] for _ in group]
        for t in range(frames):
            step = duplex.steps(*inputs_of_frame(t, group, user, text, speak, hears))
            for b, answer in step.items():
                answers[b].append(answer)
                if echo:
                    add_echo(user[group[b]], answer[2], t, *echo[group[b]])
        for i, frames_of_one in zip(group, answers):
            ids, codes, samples = zip(*frames_of_one)
            yield i, (list(ids), torch.tensor(codes), torch.cat(samples))


def inputs_of_frame(t, group, user, text, speak, hears):
    """What the conversations of a group that are not over get in frame t -> the three arguments of
    chat.Duplex.steps, by places in the group."""
    frames = {}
    forced_text = {}
    forced_speak = {}
    for b, i in enumerate(group):
        if t >= len(user[i]):
            continue
        frames[b] = user[i][t]
        if hears and not hears[i]:
            frames[b] = None  # an empty channel
        if text:
            forced_text[b] = text[i][t + 1]
        if speak:
            forced_speak[b] = speak[i][t + 1]
    return frames, forced_text, forced_speak


def add_echo(user, model_audio, t, gain, seconds):
    """Let the user's microphone hear what the model says in frame t: changes `user` [T, FRAME]."""
    begin = t * FRAME + round(seconds * SAMPLE_RATE)
    later = user.view(-1)[begin:begin + FRAME]
    later += gain * model_audio[:len(later)]


# What a model did beside one recording. user_audio, model_audio: float32 [N]; text [T] and codes
# [T, K]: the ids of each frame, of which those of frame 0 mean nothing; lines and transcripts: of
# `read_monologue`.
Conversation = namedtuple("Conversation", "user_audio model_audio text codes lines transcripts")


def converse(partner, waves, seeds=None, batch=32, **forced):
    """Hold the conversation that chat.py would hold with each recording, float32 [N] at 24 kHz.
    Yields (which one, Conversation) as each batch is over. forced: text, speak, echo, hears of
    `play`."""
    user_audio = [F.pad(wave, (0, -len(wave) % FRAME)).view(-1, FRAME) for wave in waves]
    played = play(partner.model, partner.duplex.sampling, user_audio, seeds, batch, partner.codec,
                  **forced)
    for i, (text, codes, model_audio) in played:
        N = len(waves[i])
        yield i, Conversation(user_audio[i].flatten()[:N], model_audio[:N], text, codes,
                              *read_monologue(text, partner.tokenizer, partner.model.config,
                                              stream.FRAME_RATE))


# --- scenes: what the user says, and when ---

def intruding(question, row, other, rng):
    """The conversation that became `row`, held again with another Clip whose sound begins somewhere
    in the answer; None where the answer is too short for it. Its row has `at`, the second of that
    sound, `undisturbed`, the second at which the answer ended, and `before`, [seconds of the
    conversation, lines of its monologue]."""
    question_end = row["turns"][0]["end"]
    answers = [span for span in row["spans"] if span[0] >= question_end]
    if not answers:
        return None
    start, end = answers[0]
    if end - start < EARLIEST + LEFT:
        return None
    at = rng.uniform(start + EARLIEST, end - LEFT)
    placed = [(0, question), (max(0, at - other.start), other)]
    before = [row["seconds"], len(row["lines"])]
    return scene(placed, 1, at=at, undisturbed=end, before=before)


def recognition_scene(entry, run):
    """A recording is heard, then there is silence to write in (Table 4). Nothing is spoken: the
    speaking channel is forced to what the stage was trained on, which is empty in ASR-style
    (section 3.1), and silence where a response follows (section 3.2.2). -> (Scene, what is
    forced)."""
    partner = run.partner
    ids = stream.Ids.of(partner.model.config)
    wave = F.pad(sound_file.read_audio(entry["heard"]), (SILENCE * FRAME, 0))
    script = stream.Script(ids)
    words_to_write = len(partner.tokenizer.encode(entry["transcript"]).ids)
    script.wait(len(wave) // FRAME + words_to_write + WRITING)
    wave = F.pad(wave, (0, len(script) * FRAME - len(wave)))
    speak = None
    if run.args.asr_format != "asr":
        speak = silence_codes(partner.codec).expand(len(script), stream.K)
    rows = stream.delay(script.grid(speak), ids)
    return Scene(wave, dict(expected=entry["transcript"])), dict(speak=rows.speak)


def reading_scene(entry, run):
    """A text is written, with silence to say it in (Table 5). Nothing is heard or, by a model that
    knows the format, a reference before the text. -> (Scene, what is forced)."""
    partner = run.partner
    ids = stream.Ids.of(partner.model.config)
    tokens = partner.tokenizer.encode(entry["response"]).ids
    turn = stream.Turn(speak_frames=SAYING * len(tokens) + WRITING, response=tokens)
    about = dict(expected=entry["response"])
    if "reference" in entry:
        about["reference"] = str(entry["reference"])
    script = stream.Script(ids)
    script.wait(SILENCE)
    reference = torch.zeros(0)
    hears = run.args.tts_format in stream.LISTENS
    if hears:
        reference = sound_file.read_audio(entry["reference"])
        turn.listen_frames = -(-len(reference) // FRAME) + data.CLOSING_SILENCE
    for step in stream.FORMATS[run.args.tts_format]:
        step(script, turn)
    wave = torch.zeros(len(script) * FRAME)
    for start, _ in script.listen_spans:
        wave[start * FRAME:start * FRAME + len(reference)] = reference
    rows = stream.delay(script.grid(), ids)
    return Scene(wave, about), dict(text=rows.text, hears=hears)


@lru_cache(maxsize=1)
def silence_codes(codec):
    """The codes [K] that digital silence settles at."""
    device = next(codec.parameters()).device
    return codec.encode(torch.zeros(1, 1, 50 * FRAME, device=device))[0, :, -1].cpu()


# --- grades: what the row of a conversation that was played says ---
# Beside what its scene says, such a row has `seconds`, `audio` (a path), `lines` and `transcripts`
# [[seconds, text]] of the monologue, and `spans` [[start, end]] of the model's sound. Where other
# models were asked, it has `recognised`, the text of that sound, and `models`, their
# grades: points of a language model (Table 6), likeness of a voice to its reference (Table 5).

def grade(row, language):
    """A row -> {measure: boolean, seconds or None}."""
    grades = {}
    turns = row.get("turns", ())
    for k, turn in enumerate(turns, 1):
        suffix = f", turn {k}" if len(turns) > 1 else ""
        for measure, value in grade_turn(row, turn, language).items():
            grades[measure + suffix] = value
    if "recognised" in row:
        grades |= grade_speech(row, language)
    grades |= row.get("models", {})
    if "pause" in row:
        grades |= grade_pause(row, language)
    if "at" in row:
        if turns:
            grades |= grade_interruption(row)
        else:  # a back-channel expects no answer, so that its scene has no turn
            grades |= grade_backchannel(row)
    return grades


def grade_turn(row, turn, language):
    """right: the first response is the expected one, word by word. exact: all responses together
    are, letter by letter. takeover: the model takes the turn (full_duplex_bench.py). thinks after,
    speaks after: seconds from the user's end to the first line and sound; 0 for one before it."""
    sounds, lines = between(row, turn["since"], turn["until"])
    texts = [text for _, text in lines]
    expected = words(turn["expected"], language)
    return {"right": bool(texts) and words(texts[0], language) == expected,
            "exact": " ".join(texts) == turn["expected"],
            "takeover": takes_turn(sounds, lines, language),
            "thinks after": delay_of(lines, turn["end"]),
            "speaks after": delay_of(sounds, turn["end"])}


def delay_of(events, end):
    """Seconds from the user's end to the first of some lines or sounds, at least 0; None without
    any."""
    if not events:
        return None
    return max(0, events[0][0] - end)


def grade_speech(row, language):
    """spoken right, spoken exact: the same of what a recogniser hears."""
    expected = row["expected"] if "expected" in row else row["turns"][0]["expected"]
    return {"spoken right": words(row["recognised"], language) == words(expected, language),
            "spoken exact": row["recognised"] == expected}


def grade_answers(row, language):
    """answer in monologue, answer in speech: an accepted answer stands in the response, as it was
    written and as a recogniser hears it (both numbers are in Table 4)."""
    spelling = spelling_of(language)

    def is_in(text):
        return any(spelling.contains(text, answer) for answer in row["answers"])

    turn = row["turns"][0]
    sounds, lines = between(row, turn["since"])
    grades = {"answer in monologue" + spelling.label: is_in(" ".join(text for _, text in lines)),
              "thinks after": delay_of(lines, turn["end"]),
              "speaks after": delay_of(sounds, turn["end"])}
    if "recognised" in row:
        grades["answer in speech" + spelling.label] = is_in(row["recognised"])
    return grades | row.get("models", {})


def grade_pause(row, language):
    """right at last: the last response is the expected one. false start: the model sounds after
    the pause began and before the user is done."""
    turn = row["turns"][0]
    _, lines = between(row, turn["since"], turn["until"])
    early = [start for start, _ in row["spans"] if row["pause"] <= start < turn["end"]]
    expected = words(turn["expected"], language)
    return {"right at last": bool(lines) and words(lines[-1][1], language) == expected,
            "false start": bool(early)}


def end_of_answer(row):
    """The second at which the sound ends that the user breaks into."""
    for start, end in row["spans"]:
        if start <= row["at"] < end:
            return end
    return row["at"]


def grade_interruption(row):
    """stopped: the answer ends earlier than it would have. stops after: so many seconds after the
    first sound of the interruption."""
    end = end_of_answer(row)
    stopped = end < row["undisturbed"] - CUT
    stops_after = None
    if stopped:
        stops_after = end - row["at"]
    return {"stopped": stopped, "stops after": stops_after}


def grade_backchannel(row):
    """false stop: the answer ends earlier than it would have. says more: the monologue has more
    lines than it had without the back-channel, in the same time."""
    seconds, lines_before = row["before"]
    lines = [at for at, _ in row["lines"] if at < seconds]
    return {"false stop": end_of_answer(row) < row["undisturbed"] - CUT,
            "says more": len(lines) > lines_before}


# --- the parts of an evaluation ---

@dataclass
class Asked:
    """--dialogs. dialogs: the clips of each; questions: the first of each; scenes: each question
    alone; rows: what became of these."""
    dialogs: list
    questions: list
    scenes: list
    rows: list


def ask(run):
    """The first turns of --dialogs, each in a conversation of its own -> Asked."""
    dialogs = [[clip(sound_file.read_audio(path), **known) for path, known in turns]
               for turns in test_sets.dialogs(run.args.dialogs, run.args.most)]
    questions = [clips[0] for clips in dialogs]
    scenes = [scene([(0, one)]) for one in questions]
    rows = run.judge(run.transcribe(run.hold("questions", scenes)))
    run.count("questions", rows)
    run.count_groups("questions", rows, test_sets.GROUPS)
    return Asked(dialogs, questions, scenes, rows)


def interruptions(run, alone):
    """Another question, asked into the answer to each: the next one, and the next of the same
    voice, which a model cannot tell from the first by who speaks."""
    for part, same in (("interruption", None), ("interruption by the same voice", "voice")):
        scenes = []
        places = next_of_each(alone.questions, same)
        for i, (one, row, j) in enumerate(zip(alone.questions, alone.rows, places)):
            if j is not None:
                other = alone.questions[j]
                scenes.append(intruding(one, row, other, run.draws(part, i)))
        run.measure(part, scenes)


def backchannels(run, alone):
    """An "uh-huh" of --backchannels, into the answer to each question."""
    if not run.args.backchannels:
        return
    files = recordings([run.args.backchannels])
    clips = [clip(sound_file.read_audio(file)) for file in files]
    scenes = []
    for i, (one, row) in enumerate(zip(alone.questions, alone.rows)):
        chosen = run.draws("murmur", i).choice(clips)
        scenes.append(intruding(one, row, chosen, run.draws("backchannel", i)))
    run.measure("backchannel", scenes)


def turns(run, alone):
    """Conversations of several questions, and dialogs whose later questions need the earlier
    ones."""
    run.measure("turns", in_every_place(alone.questions))
    run.measure("follow-up", [in_a_row(clips, first=1) for clips in alone.dialogs
                              if len(clips) > 1])


def leakage(run, alone):
    """The questions again, while the model hears itself at some gain."""
    for gain in run.args.leakage:
        delays = [run.draws(run.args.seed + i).uniform(*data.LEAKAGE_DELAY)
                  for i in range(len(alone.scenes))]
        run.measure(f"leakage {gain:g}", alone.scenes,
                    echo=[(gain, seconds) for seconds in delays])


# What people and rooms do to questions.
CONVERSATIONS = {"pause": conditions.pauses, "interruption": interruptions,
                 "backchannel": backchannels, "turns": turns, "noise": conditions.noise,
                 "rooms": conditions.rooms, "talk": conditions.talks, "leakage": leakage}


def recognition(run):
    """Table 4: errors of the monologue against the text of each recording."""
    entries = test_sets.utterances(run.args.asr, run.args.most)
    rows = run.hold_each("asr", range(len(entries)), lambda i: recognition_scene(entries[i], run))
    for row in rows:
        row["recognised"] = " ".join(text for _, text in row["transcripts"] or row["lines"])
    run.count("asr", rows)


def reading(run):
    """Table 5: errors of what a recogniser hears against the text that was written, and how like
    the reference the voice is."""
    needs_references = run.args.tts_format in stream.LISTENS
    entries = test_sets.texts(run.args.tts, run.args.most, needs_references)
    rows = run.hold_each("tts", range(len(entries)), lambda i: reading_scene(entries[i], run))
    run.count("tts", run.compare(run.transcribe(rows)))


def question_answering(run):
    """Table 4: spoken questions, of which an accepted answer must stand in the response."""
    entries = test_sets.questions(run.args.qa, run.args.most)

    def scene_of(i):
        path, question, answers = entries[i]
        one = clip(sound_file.read_audio(path), question=question, expected=answers[0],
                   about=dict(answers=answers))
        return scene([(0, one)], tail=OPEN_TAIL), {}

    rows = run.transcribe(run.hold_each("qa", range(len(entries)), scene_of))
    run.count("qa", run.judge(rows), grade_answers)


def start(args):
    """The model that is measured, and the folder of its results -> Run. Raises ValueError."""
    args.asr_format = args.asr_format or run_folder.asr_format(args.model)
    args.tts_format = args.tts_format or run_folder.tts_format(args.model)
    folder = model_files.resolve(run_folder.model_folder(args.model))
    sampling = chat.Sampling.of(folder)
    kind = Run if args.plan is None else Plan
    run = kind(args, folder, sampling, converse, grade)
    dtype = torch.bfloat16 if args.bfloat16 else torch.float32
    run.partner = chat.Partner(folder, sampling, args.device, dtype)
    return run


def measure(args):
    """Every part that was asked for -> the table of results."""
    if args.ab:
        return blind_pairs.write(*args.ab, args.out, args.most, args.seed)
    if args.ab_sheets:
        return blind_pairs.read(args.ab_sheets, args.out)
    run = start(args)
    if args.dialogs:
        alone = ask(run)
        for name, part in CONVERSATIONS.items():
            if args.only is None or name in args.only:
                part(run, alone)
    if args.qa:
        question_answering(run)
    if args.asr:
        recognition(run)
    if args.tts:
        reading(run)
    if args.grids:
        grid_losses.count(run)
    if args.fdb:
        full_duplex_bench.count(run)
    return run.write()


def main(arguments=None):
    args = eval_options.make_parser(CONVERSATIONS).parse_args(arguments)
    try:
        eval_options.check(args)
        print(measure(args), end="")
    except torch.OutOfMemoryError:
        sys.exit("eval.py: the GPU's memory is full: take --bfloat16, or a smaller --batch")
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        sys.exit(f"eval.py: {error}")


if __name__ == "__main__":
    command.run("eval.py", main, "stopped; the same command goes on")
