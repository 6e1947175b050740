"""The method in six pictures, and the command line of stream.py.

What this is: drawings of a row, of a step, of the monologue's styles, of the stages, of an
interruption and of the streaming loop. README.md shows them as they are drawn here. Numbers and
frames come from the code that does the work, so that no picture can say something else. What this
is not: the formats (stream.py) or the drawing of a grid (drawing.py). Serves stream.py, README.md.

    python stream.py                              # the six pictures, then every format
    python stream.py --picture 6                  # one of them
    python -c "from workshop import pictures; print(pictures.markdown())"     # for README.md
"""
import argparse
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import flm
import mimi
import stream
import train
from stream import K, GridError, Ids, Loss, Turn
from workshop import model_files, shards, sound_card
from workshop.drawing import LEGEND, MARGIN, draw, example, lay_out, made_up_grid, spell

ROOT = Path(__file__).parent.parent
WIDTH = 96                    # characters of a line
IDS = Ids(wait=0, asr=1, answer=2, empty=98, pad=99)  # of the made-up grids
MODEL = flm.PRESETS["7b"]     # whose vocabularies picture 1 names


@dataclass
class Picture:
    """A drawing with its title and, below it, its legend in sentences."""
    title: str
    drawing: str
    legend: str

    def body(self):
        legend = textwrap.fill(self.legend, WIDTH, break_on_hyphens=False)
        return f"{self.drawing}\n\n{legend}"

    def __str__(self):
        return f"{self.title}\n\n{self.body()}\n"


def milliseconds(frames):
    """How long so many frames last."""
    return round(1000 * frames / stream.FRAME_RATE)


# --- 1 and 2: a row, a step ---

def rows_of_frames(frames):
    """The rows that the model reads, when every text id and every code is the number of its frame
    -> Grid. `pad` and <wait> are -1."""
    number = torch.arange(frames)
    codes = number[:, None].expand(-1, K)
    loss = torch.zeros(frames, 1 + K, dtype=torch.uint8)
    unset = Ids(wait=-1, asr=-1, answer=-1, empty=-1, pad=-1)
    return stream.delay(stream.Grid(number, codes, codes, loss), unset)


def picture_of_a_row():
    t = 3  # any row within
    rows = rows_of_frames(2 * t)
    frames = [rows.text[t], *rows.speak[t], *rows.listen[t]]

    def age(frame):
        earlier = t - int(frame)
        return f"t-{earlier}" if earlier else "t"

    kinds = ["sem", *["ac"] * (K - 1)]
    terms = ["S", *["A"] * (K - 1)]
    lines = {
        "codebook": ["", *map(str, range(K)), *map(str, range(K))],
        "of frame": [age(frame) for frame in frames],
        "kind": ["word", *kinds, *kinds],
        "loss": ["M,W", *terms, *["-"] * K],
    }
    table = lay_out(lines, WIDTH).rstrip()
    one = 1 + len("t-1")  # characters of a column
    group = one * K
    head = f"{'row t':<{MARGIN}} text{'speak':^{group}}{'listen':^{group}}".rstrip()
    writers = (f"{'comes from':<{MARGIN}}{'the model, one step before':^{5 + group}}"
               f"{'the user, through the codec':^{group}}").rstrip()
    text_ids, audio_ids = MODEL.vocab_size, MODEL.aud_vocab_size
    return Picture(
        f"1. A row: {1 + 2 * K} channels",
        f"{head}\n{table}\n{writers}",
        f"The model reads one such row every {milliseconds(1)} ms. text: a word's id or <wait>, "
        f"one of {text_ids:,} ids in the 7B model. speak is what the model says, listen what the "
        f"user says: {K} codes a frame, each one of {audio_ids:,} ids. sem: the semantic code. ac: "
        f"the acoustic codes, which stand {stream.ACOUSTIC_DELAY} row later than the semantic code "
        "of their frame. loss: the term of equation 3 in which a token counts when it is "
        "predicted: M a word, W <wait>, S semantic, A acoustic. What the user says is never "
        "predicted.")


def picture_of_a_step():
    codes = [0, 1, 2, K - 1]  # the positions that are drawn

    def cells(values):
        *first_three, last = values
        return "".join(f"{value:<10}" for value in first_three) + f"...  {last}"

    channels = 1 + 2 * K
    sum_line = f"        speak  0 .. {K - 1} --+--> {channels} embeddings, added --> e_t"
    down = " " * sum_line.index("e_t") + " "
    lines = [
        "row t   text          --+",
        sum_line,
        f"        listen 0 .. {K - 1} --+{'|':>{len(down) - 24}}",
        f"{down}v",
        f"{'rows before t, in the cache --> ':>{len(down) - 3}}backbone",
        f"{down}|",
        f"{down[:-1]}h_t --> text head --> text of row t + 1",
        f"{down}|",
        f"{down}v",
        f"reads h_t and      {cells(['start' if c == 0 else f'code {c - 1}' for c in codes])}",
        f"                   {cells(['|'] * len(codes))}",
        f"depth transformer  {cells([f'[{c}]' for c in codes])}",
        f"                   {cells(['|'] * len(codes))}",
        f"speak of row t + 1 {cells([f'code {c}' for c in codes])}",
    ]
    drawing = "\n".join(lines)
    return Picture(
        "2. A step: from row t to row t + 1",
        drawing,
        "The backbone reads all rows up to t and makes h_t of them (equations 1 and 2). The next "
        "text id is sampled from the text head's logits. The depth transformer writes "
        f"{K} codes, one after the other: each position reads h_t, the code before it and the "
        "positions before it, and its code is sampled before the next position starts. It sees "
        "neither the new text id nor another row. The listen channels of row t + 1 are not "
        "written by the model: they are what the user says.")


# --- 3: the styles of the monologue ---

def picture_of_the_styles():
    parts = []
    for format, title, channel in (
            ("tts", "leading (TTS-style): the words, then their sound", "speak 0"),
            ("asr", "following (ASR-style): the sound, then its words", "listen 0"),
            ("word-aligned", "Moshi: each word in the frame in which it sounds", "speak 0")):
        grid, ids, names = example(format)
        drawing = draw(grid, ids, names, WIDTH, only=("frame", "text", channel))
        parts.append(f"{title}\n{drawing.rstrip()}")
    return Picture(
        "3. The monologue leads or follows",
        "\n\n".join(parts),
        "~ is <wait>, # pad, 1 .. 5 the codes of a sentence's sound, 0 the code of silence. Frame "
        "0 is where a conversation starts. A natural monologue (section 2.2) is a sentence without "
        f"gaps. Where it leads, its sound starts {stream.SPEECH_DELAY} frames after its first "
        "word. Moshi's monologue splits the sentence, and its data must tell when each word "
        "sounds; <answer> stands for its <end-of-pad>.")


# --- 4: the stages ---

# What the steps of a format write, in their order.
TEXT_OF_STEP = {
    stream.Script.respond: "response",
    stream.Script.transcribe: "transcript",
    stream.Script.quote: "<asr> transcript <answer>",
    stream.Script.align: "response",
    stream.Script.overlap: "response",
}
TERMS = {Loss.MONOLOGUE: "words", Loss.WAIT: "<wait>", Loss.SEMANTIC: "semantic",
         Loss.ACOUSTIC: "acoustic"}


def listen_of(format):
    return "the user" if format in stream.LISTENS else "empty"


def speak_of(format):
    return "the response" if format in stream.SPEAKS else "empty"


def text_of(format):
    texts = [TEXT_OF_STEP[step] for step in stream.FORMATS[format] if step in TEXT_OF_STEP]
    return " ".join(texts)


def terms_of(format):
    """The terms of equation 3 that an example of a format has."""
    grid, *_ = example(format)
    kinds = set(grid.loss.flatten().tolist())
    return ", ".join(name for kind, name in TERMS.items() if kind in kinds)


def of_each(formats, describe):
    """describe(format) for each format of a stage; once where all are the same."""
    texts = [describe(format) for format in formats]
    if len(set(texts)) == 1:
        return texts[:1]
    return [f"{format}: {text}" for format, text in zip(formats, texts)]


def mixture_of(stage):
    """The sources of a stage, each with how often an epoch reads it where that is not once."""
    texts = []
    for source, times in stage.mixture.items():
        factor = "" if times == 1 else f"{times:g} x "
        texts.append(factor + source)
    return texts


def picture_of_the_stages():
    stages = train.STAGES.values()
    lines = {"": [[name] for name in train.STAGES],
             "data": [mixture_of(stage) for stage in stages],
             "formats": [list(stage.formats) for stage in stages]}
    for name, describe in (("listen", listen_of), ("text", text_of), ("speak", speak_of),
                           ("loss on", terms_of)):
        lines[name] = [of_each(stage.formats, describe) for stage in stages]
    lines["epochs"] = [[f"{stage.epochs:g}"] for stage in stages]
    lines["rate"] = [[f"{stage.lr[0]:g} .. {stage.lr[1]:g}"] for stage in stages]
    return Picture(
        "4. The four stages",
        table(lines, column=21),
        "Each stage goes on from the model of the one before it. listen, text and speak say what "
        "stands in these channels, in the order in which it comes: the user speaks; then the "
        "transcript of it, if there is one; then the response and, a little later, its speech. "
        "Otherwise text is <wait>, and speak has the codes of silence. loss on: the terms of "
        "equation 3. An empty channel and what the user says have no loss. The weights of the "
        "terms in the paper, in all stages: words "
        f"{train.BETA:g}, <wait> {train.GAMMA:g}, semantic {train.ALPHA_1:g}, acoustic "
        f"{train.ALPHA_2:g}. A factor (0.5 x) says how often an epoch reads a source. rate: the "
        "learning rate, from the start to the end of a cosine. A step has "
        f"{train.PAPER_BATCH} sequences of {train.PAPER_LENGTH:,} frames. In response-tts-free "
        "users "
        "interrupt (picture 5) and say \"uh-huh\".")


def table(lines, column):
    """{name: cells, each a list of texts} -> text, with cells wrapped to columns."""
    rows = []
    for name, cells in lines.items():
        stacks = []  # the lines of each cell
        for texts in cells:
            stacks.append([line for text in texts for line in textwrap.wrap(text, column - 2)])
        height = max(len(stack) for stack in stacks)
        for i in range(height):
            label = name if i == 0 else ""
            parts = [stack[i] if i < len(stack) else "" for stack in stacks]
            row = "".join(f"{part:<{column}}" for part in parts)
            rows.append(f"{label:<{MARGIN}}{row}".rstrip())
    return "\n".join(rows)


# --- 5: an interruption ---

def interruption():
    """A response that the next turn interrupts -> (Turns, Script, names of its text ids)."""
    words = "It is far to the sea but the road is good and dry so we walk".split()
    names = ["~", "<asr>", "<answer>", *words, "Yes."]
    long_response = tuple(range(3, 3 + len(words)))
    turns = [Turn(listen_frames=2, speak_frames=18, response=long_response),
             Turn(listen_frames=8, speak_frames=2, response=(len(names) - 1,), interrupts=3)]
    script = stream.write("response-tts-free", turns, [0, 1, 1], IDS)
    return turns, script, names


def picture_of_an_interruption():
    turns, script, names = interruption()
    grid = made_up_grid("response-tts-free", script)
    lines = spell(grid, IDS, names.__getitem__)
    speech_start, silent_from = script.speak_spans[0]
    first_sound = speech_start + turns[1].interrupts + turns[1].onset
    marks = [""] * len(grid)
    marks[first_sound] = "^"
    marks[first_sound + 1:silent_from] = ["-"] * (silent_from - first_sound - 1)
    marks[silent_from] = "^"
    seconds = [""] * len(grid)
    for t in range(0, len(grid), 5):
        seconds[t] = f"{t / stream.FRAME_RATE:.1f}"
    drawing = {"frame": lines["frame"], "seconds": seconds, "listen 0": lines["listen 0"],
               "text": lines["text"], "speak 0": lines["speak 0"], "reaction": marks}
    exact = stream.REACTION_DELAY * stream.FRAME_RATE
    return Picture(
        "5. An interruption",
        lay_out(drawing, WIDTH).rstrip(),
        f"The model says a long sentence from frame {speech_start} on. The user starts to speak "
        f"in frame {first_sound} (left ^). {stream.REACTION_DELAY} s later (section 3.2.2; "
        f"{exact:g} frames, so {silent_from - first_sound}) words and speech are cut off in the "
        "middle of the sentence (right ^). When the user has finished, the model answers; data.py "
        f"counts {data.CLOSING_SILENCE} quiet frames more to the user's turn, which this picture "
        "leaves out. "
        f"In training {stream.INTERRUPTION_PROBABILITY:.0%} of the responses that another turn "
        "follows are interrupted, anywhere in their sound.")


# --- 6: the loop ---

def picture_of_the_loop():
    lead = milliseconds(stream.SPEECH_DELAY)
    return Picture(
        "6. The loop, and how long it takes",
        f"{first_rows()}\n\n{latency()}",
        "A word, sem (semantic code) or ac (acoustic codes) has the number of its frame. Step s "
        "reads row s, with what the user says in frame s, and writes what the model says in row "
        "s + 1. A frame of speech is complete one step after its semantic code is written. So "
        "step 0 returns nothing, and step s returns frame s: word and semantic code from row s, "
        "acoustic codes from row s + 1. The table is the time from a sound at the microphone to "
        "the earliest sound of the loudspeaker that it can change. What the model says can change "
        "after the time of the last line but one. How its voice sounds can change one frame "
        "earlier, because the acoustic codes of frame s are written when the semantic code of the "
        "user's frame s is known. The user's acoustic codes of frame s stand in row s + 1: what "
        "they alone tell comes one frame later. The buffers of the sound devices come on top, and "
        f"where the loudspeaker is behind up to {sound_card.LAG} frames wait. The sound of a "
        f"response is {lead} ms behind its first word.")


def first_rows():
    """The rows 0 .. 3 of a conversation, and what the steps that read them write and return."""
    count = 4
    rows = rows_of_frames(count)

    def cells(kind, numbers):
        return [f"{kind} {int(number)}" if number >= 0 else "pad" for number in numbers[:count]]

    # In frame 0 nothing is written or spoken yet: there is a <wait>, and a pad (Script.grid).
    lines = {
        "row": [str(s) for s in range(count)],
        "text": ["<wait>", *cells("word", rows.text)[1:]],
        "speak 0": ["pad", *cells("sem", rows.speak[:, 0])[1:]],
        f"speak 1-{K - 1}": cells("ac", rows.speak[:, 1]),
        "listen 0": cells("sem", rows.listen[:, 0]),
        f"listen 1-{K - 1}": cells("ac", rows.listen[:, 1]),
    }
    following = rows_of_frames(count + 1)
    step = {
        "step": lines["row"],
        "new text": cells("word", following.text[1:]),
        "new sem": cells("sem", following.speak[1:, 0]),
        "new ac": cells("ac", following.speak[1:, 1]),
        "returns": ["nothing", *(f"frame {s}" for s in range(1, count))],
    }
    for part in (lines, step):
        for name, row in part.items():
            part[name] = [f"{cell:>8}" for cell in row]
    return f"{lay_out(lines, WIDTH)}\n{lay_out(step, WIDTH).rstrip()}"


def latency():
    """The parts of the way from microphone to loudspeaker, in milliseconds -> a table."""
    frame = milliseconds(1)
    released = mimi.PRESETS["released"]
    small = mimi.PRESETS["tiny"]
    lag = round(1000 * small.lag / small.sample_rate)
    block = round(1000 * sound_card.BLOCK)
    late = milliseconds(stream.ACOUSTIC_DELAY)
    parts = [
        ("the frame is complete", 0, frame,
         f"a code needs all {released.frame_size} samples of its frame"),
        ("computing", 0, frame, "a machine that needs more for a step falls behind"),
        ("acoustic delay", late, late,
         "the acoustic codes are written in the next step"),
        ("codec", 0, 0, f"at once; the small one's sound is full after {lag} ms"),
        ("loudspeaker", 0, block, f"it takes blocks of {block} ms, if none waits to be played"),
    ]
    least = sum(part[1] for part in parts)
    most = sum(part[2] for part in parts)
    lines = [f"{'milliseconds':<23}{'least':>5}{'most':>6}   because"]
    for name, low, high, reason in parts:
        lines.append(f"{name:<23}{low:>5}{high:>6}   {reason}")
    lines.append(f"{'words, semantic codes':<23}{least:>5}{most:>6}   all of these together")
    lines.append(f"{'sound of the voice':<23}{least - late:>5}{most - late:>6}   without the "
                 "acoustic delay")
    return "\n".join(lines)


# --- the command ---

PICTURES = (picture_of_a_row, picture_of_a_step, picture_of_the_styles, picture_of_the_stages,
            picture_of_an_interruption, picture_of_the_loop)


def markdown():
    """The pictures as README.md shows them."""
    blocks = []
    for make in PICTURES:
        picture = make()
        blocks.append(f"### {picture.title}\n\n```\n{picture.body()}\n```\n")
    return "\n".join(blocks)


def options(arguments):
    parser = argparse.ArgumentParser(
        prog="stream.py", epilog=LEGEND,
        description="Draw the method in six pictures, made-up examples of the formats, or a grid.")
    parser.add_argument("--picture", type=int, choices=range(1, 1 + len(PICTURES)),
                        help="draw this picture only")
    parser.add_argument("--format", choices=stream.FORMATS, help="draw this format only")
    parser.add_argument("--delayed", action="store_true",
                        help="draw grids as the model reads them: acoustic codes a row late")
    parser.add_argument("--grid", metavar="FILE", help="draw a grid of this file, made by data.py")
    parser.add_argument("--index", type=int, default=0,
                        help="which of the file's grids (default: the first)")
    parser.add_argument("--model", type=Path, default=ROOT / "tiny" / "model",
                        help="model folder that the file was made for: its special ids and "
                             "tokenizer (default: the shipped one)")
    return parser.parse_args(arguments)


def open_grid(path, index, model):
    """A grid of a file, for the tokenizer and ids of a model folder -> (Grid, Ids, names). Raises
    GridError, one sentence."""
    shard = shards.Shard(path)
    if not -len(shard) <= index < len(shard):
        raise GridError(f"{path} holds {len(shard)} grids, and there is no number {index}")
    tokenizer = model_files.read_tokenizer(model)

    def names(token):
        return tokenizer.decode([token])

    return shard[index], Ids.of(model_files.read_config(model)), names


def print_grid(title, grid, ids, names, delayed):
    if delayed:
        grid = stream.delay(grid, ids)
    print(f"{title}\n{draw(grid, ids, names)}")


def main(arguments=None):
    args = options(arguments)
    if args.grid:
        try:
            grid, ids, names = open_grid(args.grid, args.index, args.model)
        except ValueError as error:
            sys.exit(f"stream.py: {error}")
        print_grid("", grid, ids, names, args.delayed)
        return
    if args.picture:
        print(PICTURES[args.picture - 1]())
        return
    formats = [args.format] if args.format else stream.FORMATS
    if not args.format and not args.delayed:
        for picture in PICTURES:
            print(picture())
    for format in formats:
        print_grid(format, *example(format), args.delayed)
