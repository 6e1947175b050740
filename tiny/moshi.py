"""Moshi's word-aligned monologue, Figure 2 left, for grids that have a natural one: the baseline of
RQ1 (section 4.4).

What this is: the same frames and the same codes with another text column, so that two models differ
in it alone. What this is not: data.py's way, which is for recordings whose word times are known
(stream.Script.align).

The codes themselves tell when a word sounds. A table, fitted by CTC to recordings whose words are
known, says which two letters a code of codebook 0 stands for. The most likely path through the
letters says where each word begins.

Shapes: B recordings, T frames; S steps, two a frame; L the letters of LETTERS and a blank.
"""
import json
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import stream
from codec import LETTERS, spelled
from workshop import model_files, shards, sound_file

# Of the table.
RECORDINGS = 1000
STEPS = 400
BATCH = 64
RATE = 0.1
# Decision: a word that is heard is written 1 s after it begins. Moshi's recognizer waits 2 s.
HEARING_DELAY = 12  # frames


def path(scores, letters):
    """The most likely CTC path through known letters.

    scores [S, L]: logarithms, 0 is the blank -> the step at which each letter is first read, or
    evenly spread steps where S steps cannot hold them all."""
    interleaved = [0]  # blank, letter, blank, letter, ..., blank
    for letter in letters:
        interleaved += [letter, 0]
    states = torch.tensor(interleaved)
    # The blank between two different letters may be left out, and the one before the first.
    may_skip = F.pad((states[2:] != 0) & (states[2:] != states[:-2]), (2, 0))
    may_skip[1] = True
    never = torch.full((2,), float("-inf"))
    # The states, behind two that stand for the beginning.
    best = torch.cat([never, never.repeat(len(letters)), never[:1]])
    best[1] = 0
    moves = []
    for row in scores[:, states]:
        skip = best[:-2].where(may_skip, never[:1])
        top, move = torch.stack([best[2:], best[1:-1], skip]).max(0)
        best = torch.cat([never, top + row])
        moves.append(move)
    if not torch.isfinite(best[-2:]).any():
        return [i * len(scores) // len(letters) for i in range(len(letters))]
    state = len(states) - 1
    if best[-2] > best[-1]:
        state -= 1
    first = {}  # state -> the first step in which the path is there
    for step in reversed(range(len(scores))):
        first[state] = step
        state -= int(moves[step][state])
    return [first[2 * i + 1] for i in range(len(letters))]


def fit(codes, letters):
    """What a code of codebook 0 spells in the first and in the second half of its frame, by CTC.

    codes: a list of [T]; letters: those of each recording, as `spelled` has them -> logarithms of
    probabilities [codes, 2, L]"""
    size = 1 + max(int(row.max()) for row in codes)
    table = torch.zeros(size, 2, len(LETTERS) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([table], RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(STEPS), desc="letters of codes", unit="step"):
        batch = torch.randint(len(codes), (BATCH,), generator=generator).tolist()
        padded = torch.nn.utils.rnn.pad_sequence([codes[i] for i in batch])      # [T, B]
        scores = table.log_softmax(-1)[padded].movedim(2, 1).flatten(0, 1)       # [S, B, L]
        targets = torch.tensor(sum((letters[i] for i in batch), []))
        steps = torch.tensor([2 * len(codes[i]) for i in batch])
        lengths = torch.tensor([len(letters[i]) for i in batch])
        loss = F.ctc_loss(scores, targets, steps, lengths, zero_infinity=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return table.detach().log_softmax(-1)


def letters_of_codes(source):
    """`fit` to the first recordings of source/train.jsonl."""
    turns = []
    for line in open(source / "train.jsonl"):
        turns += json.loads(line)["turns"]
    turns = turns[:RECORDINGS]
    waves = []
    for turn in turns:
        wave = sound_file.read_audio(source / turn["heard"]).numpy()
        waves.append(np.pad(wave, (0, -len(wave) % data.FRAME)))
    codes = data.Encoder(source / "start").encode(waves)
    letters = [spelled(turn["transcript"]) for turn in turns]
    return fit([recording[:, 0] for recording in codes], letters)


class Aligner:
    """Makes aligned grids. source: make.py's work folder, or one with its train.jsonl and start/
    alone."""

    def __init__(self, source):
        start = Path(source) / "start"
        self.tokenizer = model_files.read_tokenizer(start)
        self.ids = stream.Ids.of(model_files.read_config(start))
        self.scores = letters_of_codes(Path(source))  # [codes, 2, L]

    def words(self, tokens, codes, start):
        """(frame, ids) of each word of a monologue that sounds in `codes` [T] of codebook 0, which
        begin at frame `start`."""
        words = []
        for token in tokens:
            if not words or self.tokenizer.id_to_token(token).startswith("Ġ"):
                words.append([])
            words[-1].append(token)
        letters = []
        first_letters = []
        for word in words:
            first_letters.append(len(letters))
            letters += spelled(self.tokenizer.decode(word).strip() + " ")
        steps = path(self.scores[codes].flatten(0, 1), letters)
        return [(start + steps[first] // 2, word) for first, word in zip(first_letters, words)]

    def aligned(self, grid, format):
        """The same grid with another text column: each word stands where it sounds, or
        HEARING_DELAY after it was heard."""
        ids = self.ids
        T = len(grid)
        old = grid.text.tolist()
        starts = [t for t in range(1, T) if old[t] != ids.wait and old[t - 1] == ids.wait]
        words = []
        free = 1  # the first frame behind the monologue before
        for start, after in zip(starts, [*starts[1:], T]):
            stop = next((t for t in range(start, T) if old[t] == ids.wait), T)
            response = start  # where the model's own words begin
            if ids.answer in old[start:stop]:
                response = old.index(ids.answer, start) + 1
            if format in stream.LISTENS and "asr" in format:
                end = stop if format == "asr" else response
                marks = (ids.asr, ids.answer)
                transcript = [token for token in old[start:end] if token not in marks]
                for frame, word in self.words(transcript, grid.listen[free:start, 0], free):
                    words.append((frame + HEARING_DELAY, word))
            if format in stream.SPEAKS:
                sounds = response + stream.SPEECH_DELAY
                words += self.words(old[response:stop], grid.speak[sounds:after, 0], sounds)
            free = stop
        script = stream.Script(ids)
        in_turn = [(frame - 1, word) for frame, word in words]
        script.align(stream.Turn(speak_frames=T - 1, words=in_turn))
        text = torch.tensor(script.text[:T])
        loss = grid.loss.clone()
        loss[1:, 0] = torch.where(text[1:] == ids.wait, stream.Loss.WAIT, stream.Loss.MONOLOGUE)
        return stream.Grid(text, grid.speak, grid.listen, loss)


aligner = lru_cache(Aligner)  # one a source


def align(source, folder, format):
    """A folder of grids once more, in FOLDER-aligned; shards that stand there already are kept."""
    out = folder.with_name(f"{folder.name}-aligned")
    out.mkdir(exist_ok=True)
    for shard in sorted(folder.glob("shard-*")):
        if not (out / shard.name).exists():
            grids = [aligner(source).aligned(grid, format) for grid in shards.Shard(shard)]
            shards.save(grids, out / shard.name)
    shutil.copy(folder / "grids.json", out)
