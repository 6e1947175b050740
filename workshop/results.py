"""A folder of results: every conversation that was held, and the numbers of all parts.

What this is: what eval.py keeps on disk, so that nothing is measured twice and no two settings are
mixed. What this is not: what is measured (eval.py), or the table and the plots (report.py). Serves
eval.py.

    OUT/settings.json             what the numbers depend on
    OUT/PART/0000.json, .wav      a conversation: its row, and its sound, user left, model right
    OUT/results.json              {part: {measure: value, n, low, high, unit}}
    OUT/results.txt, failures.md, results.png     report.py
"""
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch
from tqdm import tqdm

from workshop import recogniser, report, sound_file
from workshop.judge import Judge
from workshop.manifests import write_lines
from workshop.measures import numbers_of
from workshop.similarity import Similarity
from workshop.sounds import SAMPLE_RATE, spans
from workshop.spelling import spelling_of
from workshop.test_sets import DEFAULT_MOST

BATCHES_IN_MEMORY = 8  # scenes that are made at once, in batches
# Options that must stay the same in a folder of results.
SETTINGS = ("dialogs", "backchannels", "noise", "talk", "qa", "asr", "asr_format", "tts",
            "tts_format", "fdb", "most", "seed", "language", "whisper", "similarity", "bfloat16")


def settings_of(args, folder, sampling):
    """What numbers depend on: options, weights, sampling -> dict of JSON values."""
    settings = {key: str(getattr(args, key)) for key in SETTINGS if getattr(args, key) is not None}
    settings.setdefault("most", str(DEFAULT_MOST))
    if not args.bfloat16:
        del settings["bfloat16"]
    if not args.snr:
        del settings["noise"]
    if not args.asr:
        del settings["asr_format"]
    if not args.tts:
        del settings["tts_format"]
    if not (args.dialogs and args.talk):
        del settings["talk"]  # a later command may add the long conversations
    times = sorted(file.stat().st_mtime for file in folder.glob("*.safetensors"))
    return settings | dict(model=[str(folder.resolve()), *times], sampling=asdict(sampling))


def known_settings(out, settings):
    """The settings of a folder of results; {} where it is new. Raises ValueError where they are
    others, or where the folder holds other things."""
    file = out / "settings.json"
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} holds other things than results: choose another folder")
        return {}
    settings_before = json.loads(file.read_text())
    changed = [key for key in settings if settings_before.get(key, settings[key]) != settings[key]]
    if changed:
        raise ValueError(f"{out} holds results of another {', '.join(changed)}: choose another "
                         "folder, or remove it")
    return settings_before


class Run:
    """A model that is measured, and the folder args.out. Raises ValueError where that holds
    something else.

    parts: {name: (numbers, rows, grades)}, those that were measured so far. partner: the model;
    converse(partner, waves, seeds, batch, **forced) holds conversations, and yields (which one, an
    eval.Conversation). grade: a row and a language -> {measure: value}."""

    def __init__(self, args, folder, sampling, converse, grade):
        self.args = args
        self.out = args.out
        self.parts = {}
        self.partner = None  # it is loaded when the folder is known to be right
        self.converse = converse
        self.grade = grade
        self.recogniser = None
        settings = settings_of(args, folder, sampling)
        settings_before = known_settings(self.out, settings)
        self.out.mkdir(parents=True, exist_ok=True)
        write_lines(self.out / "settings.json", [settings_before | settings])

    def draws(self, *what):
        """Random draws that belong to one thing alone, the same in every run."""
        return random.Random(" ".join(str(word) for word in (self.args.seed, *what)))

    # --- conversations ---

    def measure(self, part, scenes, grade=None, **forced):
        """Hold scenes, and grade them. Without any, there is no such part."""
        if any(scenes):
            self.count(part, self.hold(part, scenes, **forced), grade)

    def hold(self, part, scenes, **forced):
        """Hold scenes (waveform, row), or read those that were held before -> rows. A None among
        the scenes is left out. forced: of `converse`, lists with an item for each scene."""
        def scene_of(i):
            return scenes[i], {name: values[i] for name, values in forced.items()}

        places = [i for i, scene in enumerate(scenes) if scene]
        return self.hold_each(part, places, scene_of)

    def hold_each(self, part, numbers, scene_of):
        """The same of scenes by their numbers. scene_of(i) -> (scene, {name: what is forced}) is
        called when it is held, so that the recordings of a test set need not fit in memory."""
        missing = [i for i in numbers if not self.file(part, i).exists()]
        count_before = len(numbers) - len(missing)
        size = BATCHES_IN_MEMORY * self.args.batch
        with tqdm(total=len(numbers), initial=count_before, desc=part, unit="talk") as bar:
            for start in range(0, len(missing), size):
                group = missing[start:start + size]
                scenes, forced = zip(*[scene_of(i) for i in group])
                waves = [scene.wave for scene in scenes]
                seeds = [self.args.seed + i for i in group]
                forced = {name: [one[name] for one in forced] for name in forced[0]}
                talks = self.converse(self.partner, waves, seeds, self.args.batch, **forced)
                for n, talk in talks:
                    save(self.file(part, group[n]), scenes[n].row, talk)
                    bar.update()
        return [json.loads(self.file(part, i).read_text()) for i in numbers]

    def file(self, part, i):
        """The row of conversation i of a part."""
        return self.out / part.replace(" ", "-") / f"{i:04d}.json"

    def may_write(self, output, part, i):
        """Raise ValueError where a file is there that conversation i of a part did not write."""
        if Path(output).exists() and not self.file(part, i).exists() and not self.args.overwrite:
            raise ValueError(f"{output} exists: move it, or add --overwrite")

    def transcribe(self, rows):
        """Add `recognised` to rows: what the recogniser hears of the model. Without --whisper,
        nothing is added."""
        if self.args.whisper is None:
            return rows
        todo = [row for row in rows if "recognised" not in row]
        if todo and self.recogniser is None:
            self.recogniser = recogniser.load(self.args.whisper, self.args.device,
                                              self.args.language)
        for row in tqdm(todo, desc="transcribing", unit="talk", disable=not todo):
            file = self.out / row["audio"]
            audio, rate = soundfile.read(file, dtype="float32")
            row["recognised"] = self.recogniser.transcribe(audio[:, 1], rate)
            write_lines(file.with_suffix(".json"), [row])
        return rows

    def compare(self, rows):
        """Add SIM to `models` of rows that have a reference: how like it the model's voice is.
        Without --similarity, nothing is added."""
        measure = f"SIM by {self.args.similarity}"
        todo = [row for row in rows if "reference" in row and measure not in row.get("models", {})]
        if not self.args.similarity or not todo:
            return rows
        similarity = Similarity(self.args.similarity)
        for row in tqdm(todo, desc="comparing voices", unit="talk"):
            file = self.out / row["audio"]
            audio, rate = soundfile.read(file, dtype="float32")
            cosine = similarity.compare(audio[:, 1], rate, row["reference"])
            row["models"] = {measure: cosine}
            write_lines(file.with_suffix(".json"), [row])
        return rows

    def judge(self, rows):
        """Add a score to `models` of the rows of questions: what a language model thinks of the
        answer. Without --judge, nothing is added."""
        if not self.args.judge:
            return rows
        url, model = self.args.judge
        judge = Judge(url, model, self.args.judge_prompt, self.out / "judge.jsonl")
        answers = []
        for row in rows:
            turn = row["turns"][0]
            text = " ".join(text for at, text in row["lines"] if at >= turn["since"])
            answers.append((turn["question"], turn["expected"], text))
        for row, points in zip(rows, judge.scores(answers)):
            row["models"] = {f"score by {model}": points}
        return rows

    # --- numbers ---

    def count(self, part, rows, grade=None):
        """Grade the rows of a part, and keep its numbers."""
        grade = grade or self.grade
        grades = [grade(row, self.args.language) for row in rows]
        numbers = numbers_of(rows, grades, spelling_of(self.args.language))
        self.parts[part] = numbers, rows, grades

    def count_groups(self, part, rows, keys, grade=None):
        """The same for the rows of each value of some keys."""
        groups = {(key, row[key]) for row in rows for key in keys if row.get(key)}
        for key, value in sorted(groups, key=in_order):
            group = [row for row in rows if row.get(key) == value]
            self.count(f"{part}, {key} {value}", group, grade)

    def write(self):
        """Write results.json, the table, the failures and the plots -> the text of the table."""
        numbers = {part: numbers for part, (numbers, _, _) in self.parts.items()}
        spelling = spelling_of(self.args.language)
        measures = {measure for of_part in numbers.values() for measure in of_part}
        if spelling.label and any(measure.endswith(spelling.label) for measure in measures):
            print(f"eval.py: note: what is marked{spelling.label} does not compare with published "
                  f"numbers: pip install {' '.join(spelling.missing)}", file=sys.stderr)
        write_lines(self.out / "results.json", [numbers])
        return report.write(self.parts, self.out, self.note())

    def note(self):
        """What a reader of the table must know beside it: who recognised the speech."""
        if self.args.whisper is None:
            return ""
        name = recogniser.title(self.args.whisper)
        return f"What the model says was recognised by {name}.\n"


def in_order(group):
    """(key, value) such that numbers are sorted as numbers, and before texts."""
    key, value = group
    if isinstance(value, int):
        return key, value, ""
    return key, float("inf"), str(value)


def save(file, row, talk):
    """Write an eval.Conversation: its sound, and then the row of its scene with what came of it.
    The row comes last, because a row that exists is not held again."""
    file.parent.mkdir(exist_ok=True)
    sound = file.with_suffix(".wav")
    both = torch.stack([talk.user_audio, talk.model_audio], 1).numpy()
    sound_file.write_audio(sound, both, SAMPLE_RATE)
    if row.get("output"):
        sound_file.write_audio(Path(row["output"]), talk.model_audio.numpy(), SAMPLE_RATE)
    result = dict(seconds=len(talk.model_audio) / SAMPLE_RATE,
                  audio=f"{file.parent.name}/{sound.name}", lines=talk.lines,
                  transcripts=talk.transcripts, spans=spans(talk.model_audio))
    write_lines(file, [row | result])
