"""Written dialogs -> speech, by any program that writes a wav.

What this is: `data.py synth`. A voice is a command line. What this is not: a speech engine. Serves
data.py.

    python data.py synth texts.jsonl speech --model-voice 'espeak-ng -v en-us -w {out} -- {text}' \\
        --user-voice 'espeak-ng -v en-gb -w {out} -- {text}'
"""
import argparse
import hashlib
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from workshop import quality
from workshop.files import check_place
from workshop.manifests import (DataError, Problem, brief, first_of, read_rows, text_lines,
                                text_problem, write_lines)
from workshop.parallel import in_parallel
from workshop.sound_file import SAMPLE_RATE, loudness, read_audio

SILENT = -60  # dB: a quieter clip counts as not spoken
USERS = 2     # voices that ask each dialog, section 3.2.1


def split_command(command, windows=os.name == "nt"):
    """A command line -> its words. Single and double quotes keep a word together. On Windows a
    backslash is part of a path; elsewhere it takes the meaning off the sign behind it, except
    within single quotes. Raises DataError."""
    words = shlex.shlex(command, posix=True, punctuation_chars=False)
    words.whitespace_split = True
    words.commenters = ""
    if windows:
        words.escape = ""
    try:
        return list(words)
    except ValueError as error:
        raise DataError(f"the voice {command!r} is no command: {error}") from None


class Clip(NamedTuple):
    """A text by a voice."""
    file: Path                # to be written
    voice: str                # a command line
    text: str
    least_mos: float | None   # a lower DNSMOS is a failure


def speak(clip):
    """Write a Clip unless it is there -> None, or why it could not be done."""
    try:
        if not clip.file.exists():
            return run_voice(*clip)
        if clip.least_mos is not None:  # an earlier run may have taken a worse one
            return sound_problem(clip.file, clip.least_mos)
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return None


def run_voice(file, voice, text, least_mos):
    """Write a clip -> None, or why it could not be done. Raises OSError and ValueError."""
    beside = file.with_suffix(".part.wav")
    command = []
    for word in split_command(voice):
        command.append(word.replace("{out}", str(beside)).replace("{text}", text))
    process = subprocess.run(command, input=text, capture_output=True, encoding="utf-8",
                             errors="replace")
    if process.returncode:
        complaint = " ".join(process.stderr.split())
        return complaint or f"it ended with code {process.returncode}"
    problem = sound_problem(beside, least_mos)
    if not problem:
        os.replace(beside, file)
    return problem


def sound_problem(file, least_mos):
    """None, or why the sound of a clip is not good enough. Raises ValueError.

    Decision: section 3.2.1 filters voices by DNSMOS. A voice here is a command, which has no
    recording of its own, so each of its clips is judged."""
    audio = read_audio(file).numpy()
    if loudness(audio) < SILENT:
        return "it is silent"
    if least_mos is None:
        return None
    mos = quality.score(audio, SAMPLE_RATE)
    if mos >= least_mos:
        return None
    return f"its DNSMOS is {mos:.2f}, and at least {least_mos:g} are asked for"


def dialog_problem(row):
    """None, or a sentence: what is wrong with a written dialog."""
    if isinstance(row, Problem):
        return row.detail
    turns = row.get("turns")
    is_list = isinstance(turns, list) and len(turns) > 0
    if not is_list or not all(isinstance(turn, dict) for turn in turns):
        return f"a dialog has turns of transcript and response, not {brief(row)}"
    for turn in turns:
        for key in ("transcript", "response"):
            if key not in turn:
                return f"a dialog has turns of transcript and response, and there is no {key}"
            problem = text_problem(key, turn[key])
            if problem:
                return problem.detail
    return None


def clips_of(row):
    """The names of the clips of a dialog."""
    names = set()
    for turn in row["turns"]:
        names |= {turn["heard"], turn["spoken"]}
    return names


class Speech:
    """The clips that some dialogs need: each text by each voice once."""

    def __init__(self, out, least_mos):
        self.folder = out / "audio"
        self.least_mos = least_mos
        self.clips = {}  # name of a clip, relative to `out` -> Clip

    def clip(self, voice, text):
        """The name of a clip, which is made later."""
        digest = hashlib.sha1(f"{voice} {text}".encode()).hexdigest()[:20]
        name = f"audio/{digest}.wav"
        self.clips[name] = Clip(self.folder / f"{digest}.wav", voice, text, self.least_mos)
        return name

    def make(self, workers):
        """Speak all clips -> the names of those that failed, which are named on the screen too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        failed = set()
        reasons = in_parallel(speak, self.clips.values(), workers)
        reasons = tqdm(reasons, total=len(self.clips), unit="clip")
        for reason, (name, clip) in zip(reasons, self.clips.items()):
            if reason is not None:
                tqdm.write(f"SKIPPED: {clip.voice!r} could not say {clip.text!r}: {reason}",
                           file=sys.stderr)
                failed.add(name)
        return failed


def read_voices(file):
    """A file with a voice a line -> a list of voices. Empty lines, and lines that begin with #, are
    left out. Raises DataError where none is left."""
    voices = []
    for _, line in text_lines(file):
        if line.strip() and not line.lstrip().startswith("#"):
            voices.append(line.strip())
    if not voices:
        raise DataError(f"{file} holds no voice: it needs a command a line")
    return voices


def check_voice(voice):
    """Raise DataError for a command that cannot be a voice."""
    words = split_command(voice)
    if not any("{out}" in word for word in words):
        raise DataError(f"each voice must have an {{out}} where its command takes the wav to "
                        f"write, and {voice!r} has none")
    if shutil.which(words[0]) is None:
        raise DataError(f"there is no program {words[0]}, which the voice {voice!r} needs")


def synthesise(texts, out, model_voice, user_voices, workers=1, seed=0, users=USERS,
               least_mos=None, overwrite=False):
    """Speak dialogs {"turns": [{"transcript", "response"}]}: clips in out/audio, the manifest
    out/dialogs.jsonl. A voice is a command with {out} for the wav and {text} for the words, which
    its standard input has too. users: how many voices, drawn anew, ask each dialog; least_mos: a
    clip of a lower DNSMOS counts as failed; overwrite: a manifest that is there is replaced (clips
    that are there stay in any case). Returns how many dialogs there are, and how many clips failed.
    Raises ValueError, also where no dialog is left.

    Decision: of the two users that section 3.2.1 draws, each asks the whole dialog."""
    out = Path(out)
    if out.is_dir():
        check_place(out / "dialogs.jsonl", overwrite, [texts])
    for voice in (model_voice, *user_voices):
        check_voice(voice)
    speech = Speech(out, least_mos)
    dialogs = []
    problems = []
    for number, row in read_rows(texts):
        problem = dialog_problem(row)
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        askers = random.Random(f"{seed} {number}").sample(user_voices, min(users, len(user_voices)))
        for user in askers:
            turns = []
            for turn in row["turns"]:
                clips = {"heard": speech.clip(user, turn["transcript"]),
                         "spoken": speech.clip(model_voice, turn["response"])}
                turns.append(turn | clips)
            dialogs.append({**row, "turns": turns})
    if problems:
        raise DataError(f"{texts}: {len(problems)} lines cannot be spoken: {first_of(problems)}")
    if not dialogs:
        raise DataError(f"{texts} is empty")
    failed = speech.make(workers)
    whole = [row for row in dialogs if not clips_of(row) & failed]
    if not whole:
        raise DataError(f"{texts}: no dialog could be spoken; {len(failed)} clips failed")
    write_lines(out / "dialogs.jsonl", whole)
    return len(whole), len(failed)


VOICES = """voices, as command lines (one without {text} reads it from standard input):
  'espeak-ng -v en-us -w {out} -- {text}'
  'piper -m en_US-joe-medium.onnx -f {out}'"""


def add_command(commands):
    """The command `synth` of data.py."""
    about = "Turn written dialogs into speech. A stopped run goes on."
    parser = commands.add_parser("synth", help=about, description=about, epilog=VOICES,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help='JSONL of {"turns": [{"transcript", "response"}]}')
    parser.add_argument("out", help="folder for audio/ and dialogs.jsonl")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace a dialogs.jsonl that exists; clips that exist are not spoken "
                        "again")
    parser.add_argument("--model-voice", required=True, metavar="COMMAND",
                        help="the one voice of the model")
    parser.add_argument("--user-voice", action="append", default=[], metavar="COMMAND",
                        help="may stand several times")
    parser.add_argument("--user-voices", metavar="FILE", help="a file with such a command a line")
    parser.add_argument("--users", type=int, default=USERS, metavar="N",
                        help="voices that ask each dialog, from its first turn to its last; each "
                        "makes a dialog of its own (default: %(default)s)")
    parser.add_argument("--dnsmos", type=float, metavar="LEAST",
                        help="leave out clips of a lower DNSMOS, 1 to 5; needs the package "
                        "speechmos")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")

    def run(args):
        voices = list(args.user_voice)
        if args.user_voices:
            voices += read_voices(args.user_voices)
        if not voices or args.users < 1:
            raise DataError("synth needs --user-voice or --user-voices, and --users from 1 on")
        if args.dnsmos is not None:
            quality.check_packages("--dnsmos")
        if args.users > len(voices):
            print(f"note: each dialog should be asked by {args.users} voices (--users), and there "
                  f"are no more than {len(voices)}: name more with --user-voices", file=sys.stderr)
        count, failed = synthesise(args.texts, args.out, args.model_voice, voices, args.workers,
                                   users=args.users, least_mos=args.dnsmos,
                                   overwrite=args.overwrite)
        return f"{count} dialogs, {failed} clips failed"
    parser.set_defaults(run=run)
