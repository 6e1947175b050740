"""The monologue as people read it: text ids, one a frame, as lines with times.

What this is: lines that are printed while the model writes them (Monologue, for chat.py), and the
lines of a conversation that is over, what the model says and, between <asr> and <answer> (section
3.2.2), what it says that the user said (read_monologue, for eval.py). What this is not: what the
ids mean to the model (stream.py).

    ids   ~ ~ <asr> What's up? <answer> All is fine. ~ ~   (~ is <wait>; a frame is 0.08 s)
    ->    lines [(0.48, "All is fine.")], transcripts [(0.24, "What's up?")]
"""


class Monologue:
    """Text ids, one a frame -> printed lines, as they are written, each with the time of its first
    word.

    lines: [(seconds, text)]; ids: the last ids of the line that is being written, none between two
    lines."""

    def __init__(self, tokenizer, wait_token, print=print, stamps=True):
        self.tokenizer = tokenizer
        self.wait_token = wait_token
        self.print = print
        self.stamps = stamps
        self.ids = []
        self.lines = []

    def add(self, seconds, text_id):
        if text_id == self.wait_token:
            return self.close()
        if not self.ids:
            stamp = f"{seconds:7.2f} s  " if self.stamps else ""
            self.print(stamp, end="", flush=True)
            self.lines.append((seconds, ""))
        # A character may take two ids, so what an id adds is seen only together with a few before.
        self.ids = [*self.ids[-8:], text_id]
        before = self.decode(self.ids[:-1])
        new = self.decode(self.ids)[len(before):]
        self.print(new, end="", flush=True)
        start, text = self.lines[-1]
        self.lines[-1] = (start, text + new)

    def decode(self, ids):
        """The text of ids, without half a character at its end."""
        return self.tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd")

    def close(self):
        """The line is whole."""
        if self.ids:
            self.print(flush=True)
        self.ids = []


def print_nothing(*_, **__):
    """In the place of `print`."""


def read_monologue(text, tokenizer, config, frame_rate):
    """Text ids [T] -> (lines, transcripts), both [(seconds of the first word, text)].

    <wait>, <asr> and <answer> each end a line. Their ids tell them, and not their spellings: a
    tokenizer may have none for them. config: flm.Config, of which asr_token and answer_token may
    be None."""
    special = (config.wait_token, config.asr_token, config.answer_token)
    lines = []
    transcripts = []
    quotes = False  # between <asr> and <answer>
    ids = None      # of the line that is being written
    for t, token in enumerate(text):
        if token in special:
            ids = None
            if token != config.wait_token:
                quotes = token == config.asr_token
            continue
        if ids is None:
            ids = []
            target = transcripts if quotes else lines
            target.append((t / frame_rate, ids))
        ids.append(token)

    def spelled(tokens):
        return [(seconds, tokenizer.decode(ids, skip_special_tokens=False).strip())
                for seconds, ids in tokens]
    return spelled(lines), spelled(transcripts)
