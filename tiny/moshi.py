"""Moshi's word-aligned monologue, Figure 2 left, for grids that have a natural one: the baseline of RQ1 (section 4.4).

What this is: the same frames and the same codes with another text column, so that two models differ in it alone. What
this is not: data.py's way, which is for recordings whose word times are known (stream.Script.align).

When a word sounds is read from the codes themselves: a table, fitted by CTC to recordings whose words are known, says which
two letters a code of codebook 0 stands for, and the most likely path through the letters says where each word begins.
"""
import json
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tqdm import tqdm

import data
import stream
from codec import LETTERS, spelled
from workshop import model_files, shards, sound_file

RECORDINGS, STEPS, BATCH, RATE = 1000, 400, 64, 0.1  # of the table
HEARING_DELAY = 12  # frames; Decision: a word that is heard is written 1 s after it begins (Moshi's recognizer waits 2 s)


def path(scores, letters):
    """The most likely CTC path through known letters. scores [T, letters]: logarithms, 0 is the blank -> the step at which
    each letter is first read, or, where T steps cannot hold them all, evenly spread steps."""
    never = torch.full((2,), float("-inf"))
    states = torch.tensor([0] + [x for letter in letters for x in (letter, 0)])  # blank, letter, blank, letter, .., blank
    skips = F.pad((states[2:] != 0) & (states[2:] != states[:-2]), (2, 0))       # the blank between two letters may be left out,
    skips[1] = True                                                              # and the one before the first
    best, moves = torch.cat([never, never.repeat(len(letters)), never[:1]]), []  # the states, behind two that stand for the beginning
    best[1] = 0
    for row in scores[:, states]:
        top, move = torch.stack([best[2:], best[1:-1], best[:-2].where(skips, never[:1])]).max(0)
        best = torch.cat([never, top + row])
        moves.append(move)
    if not torch.isfinite(best[-2:]).any():
        return [i * len(scores) // len(letters) for i in range(len(letters))]
    at, first = len(states) - 1 - int(best[-2] > best[-1]), {}
    for t in reversed(range(len(scores))):
        first[at] = t
        at -= int(moves[t][at])
    return [first[2 * i + 1] for i in range(len(letters))]


def fit(codes, letters):
    """What a code of codebook 0 spells in the first and in the second half of its frame, by CTC: codes, a list of [T], and the
    letters of each as `spelled` has them -> logarithms of probabilities [codes, 2, letters]."""
    table = torch.zeros(1 + max(int(c.max()) for c in codes), 2, len(LETTERS) + 1, requires_grad=True)
    optimizer, drawn = torch.optim.Adam([table], RATE), torch.Generator().manual_seed(0)
    for _ in tqdm(range(STEPS), desc="letters of codes", unit="step"):
        batch = torch.randint(len(codes), (BATCH,), generator=drawn).tolist()
        padded = torch.nn.utils.rnn.pad_sequence([codes[i] for i in batch])      # [T, B]
        scores = table.log_softmax(-1)[padded].movedim(2, 1).flatten(0, 1)       # [2 T, B, letters]
        loss = F.ctc_loss(scores, torch.tensor(sum((letters[i] for i in batch), [])), torch.tensor([2 * len(codes[i]) for i in batch]),
                          torch.tensor([len(letters[i]) for i in batch]), zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return table.detach().log_softmax(-1)


def letters_of_codes(source):
    """`fit` to the first recordings of source/train.jsonl."""
    turns = [turn for line in open(source / "train.jsonl") for turn in json.loads(line)["turns"]][:RECORDINGS]
    waves = [sound_file.read_audio(source / turn["heard"]).numpy() for turn in turns]
    codes = data.Encoder(source / "start").encode([np.pad(wave, (0, -len(wave) % data.FRAME)) for wave in waves])
    return fit([c[:, 0] for c in codes], [spelled(turn["transcript"]) for turn in turns])


class Aligner:
    """Makes aligned grids. source: make.py's work folder, or one with its train.jsonl and start/ alone."""

    def __init__(self, source):
        start = Path(source) / "start"
        self.tokenizer, self.ids = Tokenizer.from_file(str(start / "tokenizer.json")), stream.Ids.of(model_files.read_config(start))
        self.scores = letters_of_codes(Path(source))  # [codes, 2, letters]

    def words(self, tokens, codes, start):
        """(frame, ids) of each word of a monologue that sounds in `codes` [T] of codebook 0, which begin at frame `start`."""
        groups, letters, firsts = [], [], []
        for token in tokens:
            if not groups or self.tokenizer.id_to_token(token).startswith("Ġ"):
                groups.append([])
            groups[-1].append(token)
        for group in groups:
            firsts.append(len(letters))
            letters += spelled(self.tokenizer.decode(group).strip() + " ")
        steps = path(self.scores[codes].flatten(0, 1), letters)
        return [(start + steps[first] // 2, group) for first, group in zip(firsts, groups)]

    def aligned(self, grid, format):
        """The same grid, its text column rewritten: each word where it sounds, or HEARING_DELAY after it was heard."""
        ids, T, text, words, free = self.ids, len(grid), grid.text.tolist(), [], 1
        starts = [t for t in range(1, T) if text[t] != ids.wait and text[t - 1] == ids.wait]
        for start, after in zip(starts, [*starts[1:], T]):
            stop = next((t for t in range(start, T) if text[t] == ids.wait), T)
            said = text.index(ids.answer, start) + 1 if ids.answer in text[start:stop] else start
            if format in stream.LISTENS and "asr" in format:
                heard = [t for t in text[start:stop if format == "asr" else said] if t not in (ids.asr, ids.answer)]
                words += [(t + HEARING_DELAY, word) for t, word in self.words(heard, grid.listen[free:start, 0], free)]
            if format in stream.SPEAKS:
                sounds = said + stream.SPEECH_DELAY
                words += self.words(text[said:stop], grid.speak[sounds:after, 0], sounds)
            free = stop
        script = stream.Script(ids)
        script.align(stream.Turn(speak_frames=T - 1, words=[(at - 1, word) for at, word in words]))
        text, loss = torch.tensor(script.text[:T]), grid.loss.clone()
        loss[1:, 0] = torch.where(text[1:] == ids.wait, stream.Loss.WAIT, stream.Loss.MONOLOGUE)
        return stream.Grid(text, grid.speak, grid.listen, loss)


aligner = lru_cache(Aligner)  # one a source


def align(source, folder, format):
    """A folder of grids once more, in FOLDER-aligned; shards that stand there already are kept."""
    out = folder.with_name(f"{folder.name}-aligned")
    out.mkdir(exist_ok=True)
    for shard in sorted(folder.glob("shard-*")):
        if not (out / shard.name).exists():
            shards.save([aligner(source).aligned(grid, format) for grid in shards.Shard(shard)], out / shard.name)
    shutil.copy(folder / "grids.json", out)
