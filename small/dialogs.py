"""Dialogs that the language model writes by itself, in Magpie's manner ([41] of the paper).

What this is: given the opening of a user's turn, SmolLM2 samples a question that people ask; given
the question, it answers; given both, it may be asked on. Filters keep what can be said and what it
is sure of. What this is not: facts that we know to be true; those are facts.py's. What is kept here
is what the model knows and says, right or wrong: the spoken model shall keep it.

    python small/make.py --only dialogs      # goes on from the dialogs that are there

A batch of B dialogs is written in lockstep over one KV cache. Each of them is in its own place:
asking, or forced through the markers between turns, or answering.

    row 0   What is a lute ? <|im_end|> \\n <|im_start|> assistant \\n A lute is a ...
    row 1   How do I boil an egg quickly ? <|im_end|> \\n <|im_start|> assistant \\n ...
            sampled ------------------->  forced ------------------>  greedy ---->

Decision: a question begins with one of some openings and ends with its question mark, an answer
ends with its first sentence. Without this most of what so small a model samples is too long to be
said.
Decision: questions are sampled and answers are greedy. The score of an answer is the mean log
probability of its tokens, which a greedy answer has highest where the model is sure.
"""
import json
import re
from dataclasses import dataclass, field

import torch

import flm
import sentences
from base import END_OF_TURN
from spoken import spoken

OPENINGS = ("What", "What is", "What are", "What do", "What does", "What color", "What kind of",
            "How", "How many", "How do", "How does", "How can I", "How long", "How far", "Who",
            "Who was", "Who wrote", "Where", "Where do", "Where is", "When", "When did", "Why",
            "Why is", "Why do", "Which", "Which animal", "Which country", "Is", "Are", "Do", "Does",
            "Can", "Can you tell me", "Should I", "Could you")
SYSTEM = ("You are a helpful voice assistant. The user asks short, simple questions. "
          "You answer each of them in one short sentence.")
BATCH = 48
TURNS = 2               # of a dialog, as it is written; a bad later turn is cut off
MOST_TOKENS = 36        # of a question or an answer
TEMPERATURE = 0.8       # of questions
TOP_P = 0.9
CANDIDATES = 200        # most probable ids that are looked at
LEAST_SCORE = -0.65     # nats a token
FEWEST_WORDS, MOST_WORDS = 3, 22
LONGEST_QUESTION = 16   # words


# --- writing ---

@dataclass
class Row:
    """One dialog that is being written."""
    forced: list                                    # ids to come before anything is sampled
    turns: list = field(default_factory=list)       # of (question ids, answer ids, score)
    answering: bool = False
    ids: list = field(default_factory=list)         # of the part that is being written
    question: list = field(default_factory=list)
    score: float = 0.0
    finished: bool = False


class Writer:
    """A language model that continues chats."""

    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.to_answer = tokenizer.encode("\n<|im_start|>assistant\n").ids
        self.to_question = tokenizer.encode("\n<|im_start|>user\n").ids
        ids = range(model.config.vocab_size)
        self.ends = [tokenizer.id_to_token(i)[-1:] for i in ids]    # the last sign of each id

    def logits(self, ids, cache):
        """ids [B, T] -> logits [B, V] of the next id, with audio channels that carry nothing."""
        empty = torch.full((*ids.shape, flm.K), self.model.config.empty_token)
        hidden = self.model.hidden(ids, empty, empty, cache)
        return self.model.text_logits(hidden[:, -1:])[:, 0].float()

    @torch.no_grad()
    def dialogs(self, batch, turns, generator, system=SYSTEM):
        """`batch` new dialogs: lists of (question, answer, score)."""
        opening = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
        ids = self.tokenizer.encode(opening).ids
        longest = len(ids) + turns * 2 * (MOST_TOKENS + len(self.to_answer) + 1)
        dtype = self.model.lm_head.weight.dtype
        cache = flm.KVCache(self.model.config, batch, longest, dtype=dtype)
        logits = self.logits(torch.tensor([ids]).expand(batch, -1), cache)
        rows = [self.new_row(generator) for _ in range(batch)]
        while not all(row.finished for row in rows) and cache.filled < longest:
            sampled = draw(logits, generator).tolist()
            scores, best = logits.log_softmax(-1).max(-1)
            choices = zip(rows, sampled, best.tolist(), scores.tolist())
            following = [self.advance(*choice, turns) for choice in choices]
            logits = self.logits(torch.tensor(following)[:, None], cache)
        decode = self.tokenizer.decode
        return [[(decode(question), decode(answer), score) for question, answer, score in row.turns]
                for row in rows]

    def new_row(self, generator):
        """A dialog with the opening of its first question."""
        chosen = torch.randint(len(OPENINGS), (), generator=generator)
        ids = self.tokenizer.encode(OPENINGS[chosen]).ids
        return Row(forced=list(ids), ids=list(ids))

    def advance(self, row, sampled, best, score, turns):
        """The next id of a row, which goes over to its next part where one ends."""
        if row.finished:
            return END_OF_TURN
        if row.forced:
            return row.forced.pop(0)
        chosen = best if row.answering else sampled
        if not self.is_whole(row) and chosen != END_OF_TURN:
            row.ids.append(chosen)
            row.score += score
            row.finished = len(row.ids) == MOST_TOKENS   # too long to be said
            return chosen
        if row.answering:
            row.turns.append((row.question, row.ids, row.score / max(1, len(row.ids))))
            row.forced = list(self.to_question)
            row.finished = len(row.turns) == turns
        else:
            row.question = row.ids
            row.forced = list(self.to_answer)
        row.answering = not row.answering
        row.ids = []
        row.score = 0.0
        return END_OF_TURN

    def is_whole(self, row):
        """Whether what a row writes has come to the end of its question or sentence."""
        if len(row.ids) < FEWEST_WORDS:
            return False
        if row.answering:
            # A full stop behind a digit may be the point of a fraction.
            return self.ends[row.ids[-1]] == "." and not self.ends[row.ids[-2]].isdigit()
        return self.ends[row.ids[-1]] == "?"


def draw(logits, generator):
    """Ids [B] from logits [B, V], of the most probable that make up TOP_P."""
    count = min(CANDIDATES, logits.shape[-1])
    ordered, ids = (logits / TEMPERATURE).softmax(-1).topk(count)
    before = ordered.cumsum(-1) - ordered
    usable = torch.where(before < TOP_P, ordered, torch.zeros(()))
    return ids.gather(1, torch.multinomial(usable, 1, generator=generator))[:, 0]


# --- filters ---

REFUSED = re.compile(
    r"\b(SmolLM|Hugging ?Face|AI|language model|assistant|as an|I'm sorry|http|code|Python|"
    r"happy to help|happy to explain|sure, I|following|passage|paragraph|essay|article|text|"
    r"below|above|email|story|poem|list of)\b", re.I)


def as_said(text, most_words):
    """A part of a dialog as it is said, or None where it cannot be: lists, code, other scripts, too
    long or too short."""
    text = text.strip()
    if not text or "\n" in text or REFUSED.search(text):
        return None
    try:
        text = spoken(text)
    except ValueError:
        return None
    count = len(text.split())
    if not FEWEST_WORDS <= count <= most_words or text[-1] not in ".?!":
        return None
    return None if repeats(text) or re.search(r"\.\.|--|[A-Z]{4}", text) else text


def repeats(text):
    """Whether three words come twice in a row of words."""
    words = text.lower().split()
    triples = [tuple(words[i:i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples)


def usable_turns(turns):
    """The turns of a written dialog up to the first that cannot be used: (question, answer)."""
    usable = []
    for question, answer, score in turns:
        question = as_said(question, LONGEST_QUESTION)
        answer = as_said(answer, MOST_WORDS)
        if question is None or answer is None or score < LEAST_SCORE:
            break
        if not question.endswith("?") or answer.endswith("?"):
            break
        usable.append((question, answer))
    return usable


# --- the file of dialogs ---

def write(model, tokenizer, file, count):
    """Write dialogs to a file of lines until it holds `count`, going on from those that are there.
    A dialog is a line, {"turns": [[question, answer], ...], "held_out": whether it is for tests}"""
    lines = []
    if file.exists():
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        file.write_text("".join(lines))
    first_questions = {json.loads(line)["turns"][0][0] for line in lines}
    writer = Writer(model, tokenizer)
    batches = 0
    with open(file, "a") as out:
        while len(first_questions) < count:
            generator = torch.Generator().manual_seed(10_000 * len(first_questions) + batches)
            batches += 1
            for turns in writer.dialogs(BATCH, TURNS, generator):
                turns = usable_turns(turns)
                if not turns or turns[0][0] in first_questions:
                    continue
                first_questions.add(turns[0][0])
                line = {"turns": turns, "held_out": sentences.held_out(turns[0][0])}
                out.write(json.dumps(line) + "\n")
            out.flush()
            print(f"dialogs: {len(first_questions)} of {count} after {batches} batches", flush=True)
