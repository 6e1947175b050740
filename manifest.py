"""Manifests: what people have, recordings or mere text, becomes lists of speech and words that data.py encodes.

What this is: reading and writing manifests, the layouts of well-known data sets, synthesis through any speech engine, and a
check of what is wrong before anybody trains on it. What this is not: tokens (data.py), or a speech engine. A manifest is
JSONL, paths relative to it, with lines of two kinds:

    {"audio": "a.wav", "text": "It rains."}                                        a pair: formats tts and asr; word-aligned
                              "words": [["It", 0.1, 0.2], ["rains.", 0.2, 0.7]]    needs each word's start and end, seconds
    {"turns": [{"heard": "q.wav", "transcript": "Who are you?",                    a dialog: the other formats
                "spoken": "a.wav", "response": "I am Joe."}]}              "patience": 0.3, seconds of silence before
                                                                               the response, may stand in a turn

    python data.py import librispeech LibriSpeech/train-clean-100 pairs.jsonl
    python data.py synth texts.jsonl speech --model-voice 'espeak-ng -v en-us -w {out} -- {text}' --user-voice ...
    python data.py check pairs.jsonl
"""
import csv
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import stream
from workshop import sound_file

SAMPLE_RATE = 24_000                # Hz
# Decision: what is clipped, silent, and no text of its audio. English and Chinese have about as many bytes a second.
CLIPPED, SILENT, BYTES_A_SECOND = 0.001, -60, (2, 40)  # share of samples at full scale, dB, least and most
UTTERANCE_GAP = 1.0                 # seconds; Decision: in a recorded conversation, a longer pause of the model ends its turn


class DataError(ValueError):
    """Something that cannot be read, made or used; the message is one sentence."""


def in_parallel(function, jobs, workers):
    """function of each job, in order, in this process or in `workers`. Raises DataError where one of them was killed."""
    if workers == 1:
        return (yield from map(function, jobs))
    # Workers leave Ctrl-C to this process, which lets them finish what they have begun.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(function, jobs)
    except BrokenExecutor:
        raise DataError("a worker was killed, perhaps for want of memory: run this again, or with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def loudness(audio):
    """dB of the root mean square, footnote 9."""
    return 20 * np.log10(np.sqrt(np.square(audio).mean()) + 1e-6)


# --- manifests ---

def read_lines(file):
    """(number, dict) of each line of a JSONL file, one at a time. Raises DataError that names the line."""
    number = 0
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read" + f", line {number}" * (number > 0) + f": {error}") from None


def write_lines(file, rows):
    """JSON objects, one a line; beside and then renamed, each process under a name of its own."""
    beside = f"{file}.{os.getpid()}.part"
    try:
        with open(beside, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        os.replace(beside, file)
    finally:
        Path(beside).unlink(missing_ok=True)


def read_manifest(file, format):
    """A manifest -> a list of dialogs, each a list of turns: dicts of heard, transcript, spoken, response as the format
    has them, audio as paths; a dialog's have patience too, None where the line has none. Raises DataError that names the line."""
    pairs, dialogs = format in stream.PAIRS, []
    wanted = ["audio", "text"] + ["words"] * (format == "word-aligned") if pairs else ["heard", "transcript", "spoken", "response", "patience"]
    given = {"patience": None} | ({} if format == "asr-response-tts" else {"transcript": ""})  # no other format writes it
    names = {"audio": "heard", "text": "transcript"} if format == "asr" else {"audio": "spoken", "text": "response"}
    for number, row in read_lines(file):
        try:
            turns = [{key: (given | turn)[key] for key in wanted} for turn in ([row] if pairs else row["turns"])]
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: format {format} needs {', '.join(wanted)}, and there is: {error!r}") from None
        for turn in turns:
            if (patience := turn.get("patience")) is not None and not (type(patience) in (int, float) and 0 <= patience < 60):
                raise DataError(f"{file}, line {number}: patience is seconds of silence, 0 .. 60, not {patience!r}")
            for key in turn.keys() - {"patience", "words"}:
                if not isinstance(turn[key], str):
                    raise DataError(f"{file}, line {number}: {key} must be a string, not {turn[key]!r}")
            for key in turn.keys() & {"audio", "heard", "spoken"}:
                turn[key] = Path(file).parent / turn[key]
                if not turn[key].exists():
                    raise DataError(f"{file}, line {number}: {turn[key]} does not exist")
        if not turns:
            raise DataError(f"{file}, line {number}: a dialog without turns")
        dialogs.append([{names.get(key, key): value for key, value in turn.items()} for turn in turns])
    if not dialogs:
        raise DataError(f"the manifest {file} is empty")
    return dialogs


# --- import: what people have -> manifests ---

LAYOUTS = ("librispeech", "ljspeech", "aishell-3", "common-voice", "moshi-finetune", "table")


def rows_in(layout, source, clips):
    """The manifest lines of a data set. Recordings that have to be cut are written to the folder `clips`."""
    def read(file):
        return file.read_text(encoding="utf-8").splitlines()
    if layout == "librispeech":
        for file in sorted(source.rglob("*.trans.txt")):
            for name, text in (line.split(" ", 1) for line in read(file)):
                yield {"audio": file.parent / f"{name}.flac", "text": text.lower()}  # Decision: nobody writes in capitals
    elif layout == "ljspeech":
        for name, *texts in (line.split("|") for line in read(source / "metadata.csv")):
            yield {"audio": source / "wavs" / f"{name}.wav", "text": texts[-1]}
    elif layout == "aishell-3":
        for file in sorted(source.rglob("content.txt")):
            for name, *words in map(str.split, read(file)):  # every other word is pinyin
                yield {"audio": file.parent / "wav" / name[:7] / name, "text": "".join(words[::2])}
    elif layout == "common-voice":
        for row in csv.DictReader(read(source / "validated.tsv"), delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {"audio": source / "clips" / row["path"], "text": row["sentence"]}
    elif layout == "table":
        for row in (row for _, row in read_lines(source)) if source.suffix == ".jsonl" else csv.DictReader(read(source)):
            yield row | {"audio": source.parent / row["audio"], "text": row["text"]}
    else:
        yield from cut_turns(source, clips)


def cut_turns(file, clips):
    """JSONL of stereo files, the model left, beside each a JSON of the model's words -> dialogs. Decision: a turn is what was
    heard since the model last spoke, and what it says; speech at the same time is lost."""
    import soundfile
    clips.mkdir(parents=True, exist_ok=True)
    for source in (file.parent / row["path"] for _, row in read_lines(file)):
        words = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))["alignments"]
        words = [(word.strip(), *span) for word, span, who in words if who == "SPEAKER_MAIN"]
        starts = [i for i, word in enumerate(words) if not i or word[1] - words[i - 1][2] > UTTERANCE_GAP]
        (audio, rate), turns, before = soundfile.read(source, always_2d=True), [], 0
        for said in (words[i:j] for i, j in zip(starts, [*starts[1:], None])):
            turns.append({"response": " ".join(word for word, *_ in said)})
            for key, channel, start, stop in (("heard", 1, before, said[0][1]), ("spoken", 0, said[0][1], said[-1][2])):
                turns[-1][key] = clips / f"{source.stem}-{len(turns)}-{key}.wav"
                soundfile.write(turns[-1][key], audio[int(start * rate):int(stop * rate) + 1, channel], rate)
            before = said[-1][2]
        if turns:
            yield {"turns": turns}


def bring_in(layout, source, out):
    """Write the manifest `out` of a data set, line by line. Returns how many lines it has, and how many recordings are missing.

    Raises DataError, one sentence; what stood at `out` is then kept."""
    if layout not in LAYOUTS:
        raise DataError(f"there is no layout {layout}, only {', '.join(LAYOUTS)}")
    rows, counts = rows_in(layout, Path(source).resolve(), Path(out).resolve().with_suffix("")), Counter()

    def existing():
        for row in tqdm(rows, unit="line"):
            counts[found := "turns" in row or row["audio"].exists()] += 1
            if found:
                yield row
            else:
                tqdm.write(f"SKIPPED: {row['audio']} does not exist", file=sys.stderr)
        if not counts[True]:
            raise DataError(f"{source} holds nothing laid out as {layout} but {counts[False]} recordings that do not exist")
    try:
        write_lines(out, existing())
    except (LookupError, TypeError, RuntimeError, csv.Error) as error:  # soundfile's own is a RuntimeError
        raise DataError(f"{source} is not laid out as {layout}: {error!r}") from None
    return counts[True], counts[False]


# --- synth: written dialogs -> speech ---

def _speak(job):
    """(file, voice, text): write the file unless it is there -> whether it could be done"""
    file, voice, text = job
    beside = file.with_suffix(".part.wav")
    command = [word.replace("{out}", str(beside)).replace("{text}", text) for word in shlex.split(voice)]
    try:
        if not file.exists():
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            if done.returncode or loudness(sound_file.read_audio(beside).numpy()) < SILENT:
                raise ValueError(done.stderr or "it is silent")
            os.replace(beside, file)
        return True
    except ValueError as error:
        return tqdm.write(f"SKIPPED: {voice!r} could not say {text!r}: {' '.join(str(error).split())}", file=sys.stderr)


def synthesise(texts, out, model_voice, user_voices, workers=1, seed=0):
    """Speak dialogs {"turns": [{"transcript", "response"}]}: clips in out/audio, the manifest out/dialogs.jsonl. A voice is a
    command with {out} for the wav and {text} for the words, which its standard input has too. Returns how many dialogs there
    are, and how many clips failed. Decision: of the two users that section 3.2.1 draws, each asks the whole dialog."""
    out, clips, dialogs = Path(out), {}, []
    if not all("{out}" in voice for voice in (model_voice, *user_voices)):
        raise DataError("each voice must have an {out} where its command takes the wav to write")

    def clip(voice, text):
        file = out / "audio" / f"{hashlib.sha1(f'{voice} {text}'.encode()).hexdigest()[:20]}.wav"
        clips[f"audio/{file.name}"] = file, voice, text
        return f"audio/{file.name}"
    for number, row in read_lines(texts):
        users = random.Random(f"{seed} {number}").sample(user_voices, min(2, len(user_voices)))
        try:
            dialogs += [[{**turn, "heard": clip(user, turn["transcript"]), "spoken": clip(model_voice, turn["response"])}
                         for turn in row["turns"]] for user in users]
        except (KeyError, TypeError) as error:
            raise DataError(f"{texts}, line {number}: a dialog has turns of transcript and response, not {error!r}") from None
    (out / "audio").mkdir(parents=True, exist_ok=True)
    spoken = zip(tqdm(in_parallel(_speak, clips.values(), workers), total=len(clips), unit="clip"), clips)
    failed = {name for done, name in spoken if not done}
    dialogs = [turns for turns in dialogs if not failed & {turn[key] for turn in turns for key in ("heard", "spoken")}]
    write_lines(out / "dialogs.jsonl", ({"turns": turns} for turns in dialogs))
    return len(dialogs), len(failed)


# --- check: what is wrong with a data set, before anybody trains on it ---

def _examine(line, folder, longest):
    """A manifest line -> ([(problem, detail)], a digest of its audio and text)"""
    problems, digest, (least, most) = [], hashlib.sha1(), BYTES_A_SECOND
    try:
        clips = [(Path(turn[audio]), turn.get(text, "").encode()) for turn in line.get("turns", [line])
                 for audio, text in (("audio", "text"), ("heard", "transcript"), ("spoken", "response")) if audio in turn]
    except (AttributeError, TypeError) as error:
        return [("malformed", str(error))], repr(line)
    for name, text in clips:
        try:
            audio = sound_file.read_audio(folder / name).numpy()
        except ValueError as error:
            problems.append(("unreadable", str(error)))
            continue
        digest.update(audio.tobytes() + text)
        seconds, level = len(audio) / SAMPLE_RATE, loudness(audio)
        problems += [(problem, f"{name}: {detail}") for problem, detail, wrong in (
            ("clipped", "full scale", np.mean(np.abs(audio) > 0.999) > CLIPPED),
            ("silent", f"{level:.0f} dB", level < SILENT),
            ("too long", f"{seconds:.1f} s", seconds > longest),
            ("text", f"{len(text)} bytes in {seconds:.1f} s", text and not least < len(text) / seconds < most)) if wrong]
    return problems, digest.hexdigest()


def check(manifest, longest, workers=1):
    """Write what is wrong with a manifest beside it (.offenders.jsonl), and what is left of it (.clean.jsonl). Returns how
    many lines have each problem, or none."""
    manifest, seen, offenders, clean, counts = Path(manifest), {}, [], [], Counter()
    lines = list(read_lines(manifest))
    found = in_parallel(partial(_examine, folder=manifest.parent, longest=longest), [row for _, row in lines], workers)
    for (problems, digest), (number, row) in zip(tqdm(found, total=len(lines), unit="line"), lines):
        if seen.setdefault(digest, number) != number:
            problems.append(("duplicate", f"of line {seen[digest]}"))
        counts.update({problem for problem, _ in problems} or ["none"])
        offenders += [{"line": number, "problem": problem, "detail": detail} for problem, detail in problems]
        clean += [] if problems else [row]
    write_lines(manifest.with_suffix(".offenders.jsonl"), offenders)
    write_lines(manifest.with_suffix(".clean.jsonl"), clean)
    return counts
