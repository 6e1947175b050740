"""What a small trained stage can do, asked of grids: the numbers behind the tables of RESULTS.md.

What this is: word error rates of transcripts, right answers, reaction times and interruptions of a model that is too
young for eval.py's conversations: it is asked in tokens, some hundred questions in lockstep, and never decoded to sound.
What this is not: an evaluation of the model that ships (eval.py).

Shapes: T frames, K = 8 codebooks.
"""
import json

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import chat
import data
import eval as evaluate
import flm
import stream
from workshop import grid_losses, measures, model_files, shards, sound_file
from workshop.manifests import read_manifest, write_lines

INTERRUPTED = 4  # frames of an answer that sound before it is interrupted


def seconds(frames):
    return measures.number([n / stream.FRAME_RATE for n in frames], "s")


class Judge:
    """A trained stage and the test's questions, one to a grid, of which the listening channel is heard. -> dicts of eval.py's numbers,
    each with its count and interval."""

    def __init__(self, model, work):
        self.model, self.work, self.ids, self.sampling = model_files.load(model), work, stream.Ids.of(model_files.read_config(model)), chat.Sampling.of(chat.SHIPPED)
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        dialogs = read_manifest(work / "test.jsonl", "asr-response-tts")
        grids = self.grids("test-response-tts")  # in the order of the manifest
        self.turns = [turns[0] for turns in dialogs]
        self.heard, self.quiet = [grid.listen for grid in grids], grids[0].speak[1, 0]
        self.due = [int((grid.text[1:] != self.ids.wait).nonzero()[0]) + 1 for grid in grids]  # the frame in which an answer may begin

    def grids(self, name):
        return [grid for shard in sorted((self.work / "grids" / name).glob("shard-*")) for grid in shards.Shard(shard)]

    def play(self, heard, **forced):
        return [written[:2] for _, written in sorted(evaluate.play(self.model, self.sampling, heard, batch=len(heard), **forced))]

    def text(self, tokens):
        return self.tokenizer.decode([t for t in tokens if t not in (self.ids.wait, self.ids.asr, self.ids.answer)])

    def wer(self, found):
        pairs = [(measures.words(a), measures.words(turn["transcript"])) for a, turn in zip(found, self.turns)]
        return measures.number([(measures.word_errors(a, b), len(b)) for a, b in pairs], "errors a word")

    def loss(self, name):
        """Nats a token of the monologues, Moshi's <end-of-pad> aside."""
        grids = self.grids(name)
        for grid in grids:
            grid.loss[grid.text == self.ids.answer, 0] = stream.Loss.NONE
        sums, counts = grid_losses.losses(self.model, grids)
        return measures.number(torch.stack([sums, counts], -1)[:, stream.Loss.MONOLOGUE].tolist(), "nats a token")

    def begins(self, texts):
        """The frame of the first word of each, and whether that is before the question's end."""
        first = [next((t for t in range(1, len(text)) if text[t] != self.ids.wait), None) for text in texts]
        return first, [t is not None and t < due - data.CLOSING_SILENCE for t, due in zip(first, self.due)]

    def recognition(self):
        """ASR-style: what is written beside each question while the speaking channel is empty."""
        silent = [torch.full((len(heard) + 1, stream.K), self.ids.empty) for heard in self.heard]
        texts = [text for text, _ in self.play(self.heard, speak=silent)]
        return dict(wer=self.wer(map(self.text, texts)), early=measures.number(self.begins(texts)[1], "share"))

    def sounds(self, codes):
        """Frames in which something is said: two in a row whose codebook 0 is not that of silence."""
        loud = codes[:, 0] != self.quiet
        loud[0] = False  # codes of frame 0 stand for nothing
        return loud & (F.pad(loud[1:], (0, 1)) | F.pad(loud[:-1], (1, 0)))

    def answers(self, interrupted):
        """Everything that is written (after <answer>, if there is one) is the expected answer, word by word; seconds from the
        question's end to the first word and sound; how many wrote a word before it; and, if asked for, interruptions."""
        played, right, thinks, speaks, transcripts = self.play(self.heard), [], [], [], []
        first, early = self.begins([text for text, _ in played])
        for (text, codes), turn, due, start, soon in zip(played, self.turns, self.due, first, early):
            said = text[text.index(self.ids.answer) + 1:] if self.ids.asr in text and self.ids.answer in text else text
            transcripts.append(self.text(text[:len(text) - len(said)]))
            right.append(measures.words(self.text(said)) == measures.words(turn["response"]))
            end, sounds = due - data.CLOSING_SILENCE, self.sounds(codes).nonzero()
            thinks += [(len(text) - len(said) if self.ids.asr in text else start) - end] if start and not soon else []
            speaks += [int(sounds[0]) - end] if len(sounds) and not soon else []
        return dict(right=measures.number(right, "share"), early=measures.number(early, "share"), transcripts=self.wer(transcripts),
                    thinks=seconds(thinks), speaks=seconds(speaks), **(self.interruptions(played) if interrupted else {}))

    def interruptions(self, played):
        """Each answer is interrupted INTERRUPTED frames into its sound by the next question: how often there is silence a
        second later, how often there would have been without it, seconds to the silence, right answers to what interrupts."""
        second, heard, due, onsets, asked = round(stream.FRAME_RATE), [], [], [], []
        for i, (_, codes) in enumerate(played):
            j, sounds = (i + 1) % len(played), self.sounds(codes)
            begins = self.due[j] - data.CLOSING_SILENCE - -(-len(sound_file.read_audio(self.turns[j]["heard"])) // data.FRAME)
            if sounds.any() and (first := int(sounds.nonzero()[0])) >= self.due[i] and first + INTERRUPTED + second < len(codes):
                onsets.append(first + INTERRUPTED)
                heard.append(torch.cat([self.heard[i][:onsets[-1]], self.heard[j][begins:]]))
                due.append(onsets[-1] + self.due[j] - begins)
                asked.append((i, j))
        stops, stopped, alone, right = [], [], [], []
        for (text, codes), end, onset, (i, j) in zip(self.play(heard) if heard else (), due, onsets, asked):
            quiet = (~self.sounds(codes)[onset:]).nonzero()[:, 0].tolist()
            stops += quiet[:1]
            stopped.append(bool(quiet) and quiet[0] <= second)
            alone.append(not self.sounds(played[i][1])[onset:onset + second + 1].all())
            right.append(measures.words(self.text(text[end - data.CLOSING_SILENCE:])) == measures.words(self.turns[j]["response"]))
        return dict(stopped=measures.number(stopped, "share"), alone=measures.number(alone, "share"), stops=seconds(stops),
                    right_after=measures.number(right, "share"))


def measure(model, stage, work, file, aligned="", interrupted=False):
    """The numbers of one trained stage, kept in a file. work: where the test is; aligned: the suffix of its grids;
    interrupted: whether it is interrupted too."""
    if not file.exists():
        print(f"--- measuring {model}", flush=True)
        judge = Judge(model, work)
        if stage.startswith("post-training"):
            found = judge.recognition() | {"loss": judge.loss(f"test-asr{aligned}")}
        else:
            found = judge.answers(interrupted) | ({"loss": judge.loss(f"test-response-tts{aligned}")} if stage == "fine-tuning-2" else {})
        write_lines(file, [found])
    return json.loads(file.read_text())
