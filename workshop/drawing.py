"""A grid as text: a column for each frame, a line for each channel, as in the figures of the paper.

What this is: the drawing of any grid, the lines of which the six pictures are made too, and made-up
examples of the formats. What this is not: the formats (stream.py), the pictures (pictures.py) or
the command (pictures.py). Serves stream.py, pictures.py and whoever looks at a grid.

    python stream.py --format tts
    print(drawing.draw(grid, ids))

Shapes: T frames, K = 8 codebooks.
"""
import itertools
import shutil

import torch

from stream import LISTENS, SPEAKS, K, Ids, Loss, Turn, place, write

MARGIN = 10  # characters for the name of a channel
LEGEND = (". empty   # pad   ~ <wait>   "
          "loss: S semantic, A acoustic, M monologue, W wait, blank none")


def draw(grid, ids, names=str, width=None, only=None):
    """The grid as text: a column for each frame and a line for each channel, wrapped at `width`
    characters (None: the terminal's). names: text id -> its spelling. only: the lines to draw, by
    name (None: all).

    LEGEND says what the signs are. Below the channels stand the loss classes of text, semantic and
    acoustic codes, by their first letters."""
    lines = spell(grid, ids, names)
    if only is not None:
        lines = {name: lines[name] for name in only}
    if width is None:
        width = shutil.get_terminal_size((120, 24)).columns
    return lay_out(lines, width)


def spell(grid, ids, names):
    """A Grid -> {name of a line: its cells, one for each frame}, all of them text."""
    def word(token):
        special = {ids.wait: "~", ids.asr: "<asr>", ids.answer: "<answer>"}
        return special.get(token) or names(token).strip().replace("\n", " ")

    def code(token):
        signs = {ids.pad: "#", ids.empty: "."}  # one id may be both
        return signs.get(token, str(token))

    def initial(kind):
        return Loss(kind).name[0] if kind else ""

    lines = {"frame": [str(t) for t in range(len(grid))],
             "text": [word(token) for token in grid.text.tolist()]}
    for channel, codes in (("speak", grid.speak), ("listen", grid.listen)):
        for c in range(K):
            lines[f"{channel} {c}"] = [code(token) for token in codes[:, c].tolist()]
    for c, name in enumerate(("loss text", "  semantic", "  acoustic")):
        lines[name] = [initial(kind) for kind in grid.loss[:, c].tolist()]
    return lines


def lay_out(lines, width):
    """{name: cells} -> text with the names on the left, in blocks of at most `width` characters."""
    columns = list(zip(*lines.values()))
    widths = [1 + max(len(cell) for cell in column) for column in columns]
    blocks = []
    start = 0
    while start < len(widths):
        used = itertools.accumulate(widths[start:], initial=MARGIN)
        count = sum(end <= width for end in used) - 1
        stop = start + max(1, count)
        for name, cells in lines.items():
            padded = [f"{cell:>{widths[t]}}" for t, cell in enumerate(cells[start:stop], start)]
            blocks.append(f"{name:<{MARGIN}}{''.join(padded)}".rstrip())
        blocks.append("")
        start = stop
    return "\n".join(blocks)


def example(format):
    """Made-up turns in one format -> (Grid, Ids, names). Frame i of a clip has the code i + 1,
    silence the code 0."""
    spellings = ["~", "<asr>", "<answer>", "What's", "up?", "All", "is", "fine."]
    ids = Ids(wait=0, asr=1, answer=2, empty=98, pad=99)
    if format == "response-tts-free":
        turns = [Turn(listen_frames=2, speak_frames=12, response=(5, 6, 7), backchannel=(1, 1)),
                 Turn(listen_frames=7, speak_frames=3, response=(7,), interrupts=3)]
    elif format == "stereo":
        turns = [Turn(listen_frames=8, speak_frames=8, words=((3, [5, 6, 7]),))]
    else:
        turns = [Turn(listen_frames=4, speak_frames=5, transcript=(3, 4), response=(5, 6, 7),
                      words=((0, [5]), (1, [6]), (4, [7])))]
    script = write(format, turns, [1] * (len(turns) + 1), ids)
    return made_up_grid(format, script), ids, spellings.__getitem__


def made_up_grid(format, script):
    """A Script -> a Grid in whose channels frame i of a clip has the code i + 1, silence the code
    0."""
    def channel(spans):
        clips = []
        for start, stop in spans:
            clip = torch.arange(1, stop - start + 1)
            clips.append(clip[:, None].expand(-1, K))
        return place(spans, clips, torch.zeros(K, dtype=torch.int64), len(script))

    speak = None
    if format in SPEAKS:
        speak = channel(script.speak_spans)
    listen = None
    if format in LISTENS:
        listen = channel(script.listen_spans)
    return script.grid(speak, listen)
