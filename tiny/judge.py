"""What a small trained stage can do, asked of grids: the numbers behind the tables of RESULTS.md.

What this is: word error rates of transcripts, right answers, reaction times and interruptions of a
model that is too young for eval.py's conversations. It is asked in tokens, some hundred questions
in lockstep, and its codes are never decoded to sound. What this is not: an evaluation of the model
that ships (eval.py).

Shapes: T frames, K = 8 codebooks.
"""
import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import chat
import data
import eval as evaluate
import stream
from workshop import grid_losses, measures, model_files, shards, sound_file
from workshop.manifests import read_manifest, write_lines

INTERRUPTED = 4  # frames of an answer that sound before it is interrupted
SECOND = round(stream.FRAME_RATE)  # frames


def seconds(frames):
    return measures.number([n / stream.FRAME_RATE for n in frames], "s")


def first_word(text, wait):
    """The frame of the first word in `text` [T], or None."""
    return next((t for t in range(1, len(text)) if text[t] != wait), None)


@dataclass
class Interruption:
    """Question `by` is asked INTERRUPTED frames into the sound of the answer to `question`."""
    question: int        # numbers of the test's questions
    by: int
    onset: int           # frame in which it begins
    due: int             # frame in which its answer may begin
    listen: torch.Tensor  # what is heard, [T, K]


class Judge:
    """A trained stage and the test's questions, one to a grid, of which the listening channel is
    played. The measures are dicts of eval.py's numbers, each with its count and interval."""

    def __init__(self, model, work):
        self.work = work
        self.model = model_files.load(model)
        self.ids = stream.Ids.of(model_files.read_config(model))
        self.sampling = chat.Sampling.of(chat.SHIPPED)
        self.tokenizer = model_files.read_tokenizer(model)
        dialogs = read_manifest(work / "test.jsonl", "asr-response-tts")
        self.turns = [turns[0] for turns in dialogs]
        grids = self.grids("test-response-tts")  # in the order of the manifest
        self.listen = [grid.listen for grid in grids]
        self.quiet = grids[0].speak[1, 0]  # codebook 0 of silence
        # The frame in which each answer may begin.
        self.due = [first_word(grid.text.tolist(), self.ids.wait) for grid in grids]

    def grids(self, name):
        grids = []
        for path in sorted((self.work / "grids" / name).glob("shard-*")):
            grids += shards.Shard(path)
        return grids

    def play(self, listen, **forced):
        """[(text ids [T], codes [T, K])] of conversations in which `listen`, [T, K] each, is
        heard."""
        played = evaluate.play(self.model, self.sampling, listen, batch=len(listen), **forced)
        return [output[:2] for _, output in sorted(played)]

    def text(self, tokens):
        special = (self.ids.wait, self.ids.asr, self.ids.answer)
        return self.tokenizer.decode([token for token in tokens if token not in special])

    def wer(self, transcripts):
        errors = []
        for transcript, turn in zip(transcripts, self.turns):
            words = measures.words(turn["transcript"])
            errors.append((measures.word_errors(measures.words(transcript), words), len(words)))
        return measures.number(errors, "errors a word")

    def loss(self, name):
        """Nats a token of the monologues, without Moshi's <end-of-pad>."""
        grids = self.grids(name)
        for grid in grids:
            grid.loss[grid.text == self.ids.answer, 0] = stream.Loss.NONE
        sums, counts = grid_losses.losses(self.model, grids)
        monologue = torch.stack([sums, counts], -1)[:, stream.Loss.MONOLOGUE]
        return measures.number(monologue.tolist(), "nats a token")

    def begins(self, texts):
        """(the frame of the first word of each, whether that is before the question's end)"""
        frames = [first_word(text, self.ids.wait) for text in texts]
        early = []
        for frame, due in zip(frames, self.due):
            early.append(frame is not None and frame < due - data.CLOSING_SILENCE)
        return frames, early

    def recognition(self):
        """ASR-style: what is written beside each question while the speaking channel is empty."""
        empty = [torch.full((len(listen) + 1, stream.K), self.ids.empty) for listen in self.listen]
        texts = [text for text, _ in self.play(self.listen, speak=empty)]
        _, early = self.begins(texts)
        transcripts = [self.text(text) for text in texts]
        return {"wer": self.wer(transcripts), "early": measures.number(early, "share")}

    def sounds(self, codes):
        """Frames [T] in which something is said: two in a row whose codebook 0 is not that of
        silence."""
        loud = codes[:, 0] != self.quiet
        loud[0] = False  # codes of frame 0 stand for nothing
        after = F.pad(loud[1:], (0, 1))
        before = F.pad(loud[:-1], (1, 0))
        return loud & (after | before)

    def split(self, text):
        """Text ids -> (those of the transcript, those of the response, whether it has both)."""
        if self.ids.asr in text and self.ids.answer in text:
            place = text.index(self.ids.answer) + 1
            return text[:place], text[place:], True
        return [], text, False

    def is_right(self, response, turn):
        return measures.words(self.text(response)) == measures.words(turn["response"])

    def answers(self, interrupted):
        """An answer is right if everything that is written, after <answer> where there is one, is
        the expected answer, word by word. Beside that: seconds from the question's end to the first
        word and the first sound, how many wrote a word before it, and, if asked for,
        interruptions."""
        played = self.play(self.listen)
        frames, early = self.begins([text for text, _ in played])
        right = []
        thinks = []
        speaks = []
        transcripts = []
        for i, (text, codes) in enumerate(played):
            transcript, response, has_both = self.split(text)
            transcripts.append(self.text(transcript))
            right.append(self.is_right(response, self.turns[i]))
            if early[i]:
                continue
            end = self.due[i] - data.CLOSING_SILENCE
            if frames[i]:
                start = len(transcript) if has_both else frames[i]
                thinks.append(start - end)
            sounding = self.sounds(codes).nonzero()
            if len(sounding):
                speaks.append(int(sounding[0]) - end)
        numbers = {
            "right": measures.number(right, "share"),
            "early": measures.number(early, "share"),
            "transcripts": self.wer(transcripts),
            "thinks": seconds(thinks),
            "speaks": seconds(speaks),
        }
        if interrupted:
            numbers |= self.interruptions(played)
        return numbers

    def interrupt(self, i, codes, by):
        """The Interruption of the answer `codes` [T, K] to question i by question `by`, or None
        where there is too little of an answer to interrupt."""
        sounding = self.sounds(codes).nonzero()
        if not len(sounding):
            return None
        first = int(sounding[0])
        onset = first + INTERRUPTED
        if first < self.due[i] or onset + SECOND >= len(codes):
            return None
        samples = len(sound_file.read_audio(self.turns[by]["heard"]))
        frames = -(-samples // data.FRAME)  # rounded up
        start = self.due[by] - data.CLOSING_SILENCE - frames
        listen = torch.cat([self.listen[i][:onset], self.listen[by][start:]])
        return Interruption(i, by, onset, onset + self.due[by] - start, listen)

    def interruptions(self, played):
        """Each answer is interrupted by the next question: how often there is silence a second
        later, how often there would have been without it, seconds to the silence, right answers to
        what interrupts."""
        interruptions = []
        for i, (_, codes) in enumerate(played):
            interruption = self.interrupt(i, codes, (i + 1) % len(played))
            if interruption:
                interruptions.append(interruption)
        stops = []
        stopped = []
        alone = []
        right = []
        outputs = self.play([one.listen for one in interruptions]) if interruptions else []
        for one, (text, codes) in zip(interruptions, outputs):
            quiet = (~self.sounds(codes)[one.onset:]).nonzero()[:, 0].tolist()
            stops += quiet[:1]
            stopped.append(bool(quiet) and quiet[0] <= SECOND)
            uninterrupted = self.sounds(played[one.question][1])
            alone.append(not uninterrupted[one.onset:one.onset + SECOND + 1].all())
            response = text[one.due - data.CLOSING_SILENCE:]
            right.append(self.is_right(response, self.turns[one.by]))
        return {
            "stopped": measures.number(stopped, "share"),
            "alone": measures.number(alone, "share"),
            "stops": seconds(stops),
            "right_after": measures.number(right, "share"),
        }


def measure(model, stage, work, file, aligned="", interrupted=False):
    """The numbers of one trained stage, kept in a file. work: where the test is; aligned: the
    suffix of its grids; interrupted: whether it is interrupted too."""
    if not file.exists():
        print(f"--- measuring {model}", flush=True)
        judge = Judge(model, work)
        if stage.startswith("post-training"):
            numbers = judge.recognition()
            numbers["loss"] = judge.loss(f"test-asr{aligned}")
        else:
            numbers = judge.answers(interrupted)
            if stage == "fine-tuning-2":
                numbers["loss"] = judge.loss(f"test-response-tts{aligned}")
        write_lines(file, [numbers])
    return json.loads(file.read_text())
