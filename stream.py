"""The token grid: what stands in every frame of every channel, and what the model learns to write.

What this is: the formats of Figures 2 and 3 (sections 2.2, 3.1, 3.2.2), the delay between semantic
and acoustic codes, and the loss class of every token. What this is not: a model (flm.py), audio
(data.py), a batch (workshop/batches.py), a file (workshop/shards.py), or the drawing of a grid
(workshop/drawing.py).

    frame      0 1 2 3 4 5   6  7     8 9 10 11 12 13
    text       ~ ~ ~ ~ ~ ~ All is fine. ~  ~  ~  ~  ~
    speak 0    # 0 0 0 0 0   0  0     1 2  3  4  5  0
    listen 0   0 0 1 2 3 4   0  0     0 0  0  0  0  0
    loss text    W W W W W   M  M     M W  W  W  W  W
      semantic   S S S S S   S  S     S S  S  S  S  S
      acoustic A A A A A A   A  A     A A  A  A  A  A

This is one exchange in the format of the last stage. The user speaks in the frames 2 .. 5 (data.py
adds two quiet frames, which are left out here). The model writes its response at once (`~` is
<wait>), and its speech (codes 1 .. 5, silence is 0) begins two frames after its first word. `#` is
a pad. Of the 8 codebooks of each channel the first is shown, which is semantic. The last lines say
in which term of equation 3 a token counts: `S` semantic, `A` acoustic, `M` monologue, `W` wait.
Nothing else carries loss: not what the user says, no empty channel, no word and no semantic code of
frame 0, no pad.

A grid has frames: text, 8 codes and 8 codes of one moment of 80 ms. The model reads rows, in which
acoustic codes come one row later (`delay`; `undelay` takes it back). It reads row t and predicts
row t + 1. These are the rows of a live conversation, and what the steps that read them do:

    row               0        1        2        3
    text         <wait>   word 1   word 2   word 3
    speak 0         pad    sem 1    sem 2    sem 3
    speak 1-7       pad     ac 0     ac 1     ac 2
    listen 0      sem 0    sem 1    sem 2    sem 3
    listen 1-7      pad     ac 0     ac 1     ac 2

    step              0        1        2        3
    new text     word 1   word 2   word 3   word 4
    new sem       sem 1    sem 2    sem 3    sem 4
    new ac         ac 0     ac 1     ac 2     ac 3
    returns     nothing  frame 1  frame 2  frame 3

A word, sem (semantic code) or ac (acoustic codes) has the number of its frame. Step s writes the
acoustic codes that complete frame s and returns this frame. Step 0 returns nothing, because frame 0
is where a conversation starts: text <wait>, and a pad in place of its semantic code.

From a sound at the microphone to the earliest sound of the loudspeaker that it can change:

    milliseconds           least  most   because
    the frame is complete      0    80   a code needs all 1920 samples of its frame
    computing                  0    80   a machine that needs more for a step falls behind
    acoustic delay            80    80   the acoustic codes are written in the next step
    codec                      0     0   at once; the small one's sound is full after 30 ms
    loudspeaker                0    40   it takes blocks of 40 ms, if none waits to be played
    words, semantic codes     80   280   all of these together
    sound of the voice         0   200   without the acoustic delay

The last two lines: what the model says can change after 80 ms at the earliest. How its voice sounds
can change one frame earlier, because the acoustic codes of frame s are written when the semantic
code of the user's frame s is known. The user's acoustic codes of frame s stand in row s + 1, so
what they alone tell comes one frame later.

Why the acoustic codes stand one row later, as in Moshi: the step that writes them has read their
frame's word and semantic code, so the backbone too, and not the depth transformer alone, knows what
they are to sound like.

A transcript of the user's words begins in the frame behind the user's span. The span ends a little
after the user's last sound, because data.py adds CLOSING_SILENCE. In the ASR-style
of post-training 1 and 2 it has no marks and ends with its last word (`Script.transcribe`). In
fine-tuning 1 it begins with <asr> and ends with <answer> (`Script.quote`). In fine-tuning 2, and
in a conversation with the finished model, there is none.

A grid is made in two steps. `write` lays out turns, of which only lengths and words are known, as a
`Script`: the text of every frame, and the spans of frames in which somebody speaks. data.py lays
recordings into these spans and encodes them. Then `Script.grid` sets text and codes side by side.
Nothing in a grid marks where a turn ends. Decision: later turns see the earlier ones. Section 3.1
concatenates pairs and masks nothing, and a live conversation is one long stream too.

    python stream.py                              # the method in six pictures, then every format
    python stream.py --format tts --delayed       # one format, as the model reads it
    python stream.py --grid shard-00000.safetensors --index 3

Shapes: T frames, K = 8 codebooks. A span is a pair (start, stop) of frames.
"""
from dataclasses import dataclass
from enum import IntEnum

from workshop import command

if __name__ == "__main__":
    command.stop_while_loading("stream.py")

import torch
import torch.nn.functional as F

from flm import K  # it stands once, in the first file of the book: the model's embeddings fix it

FRAME_RATE = 12.5   # frames a second, section 2.1
SPEECH_DELAY = 2    # frames from a response's first word to its first sound, sections 3.1 and 3.2.2
ACOUSTIC_DELAY = 1  # rows from a semantic code to the acoustic codes of its frame, section 3.2.2
REACTION_DELAY = 0.5  # seconds from an interruption's first sound to silence, section 3.2.2
INTERRUPTION_PROBABILITY = 0.7  # section 3.2.2


class GridError(ValueError):
    """A grid, or a file of grids, that cannot be used; the message is one sentence."""


class Loss(IntEnum):
    """The term of equation 3 that a token counts in.

    Decision: <asr> and <answer> are MONOLOGUE. Equation 3 is written for post-training, where they
    do not occur. They are tokens that the model must write at the right moment, like words.
    Decision: the codes of silence count in full. Section 3.1 says "all non-empty tokens on the
    speaking channel", and does not say what stands there between two responses. Most frames of a
    conversation are silent, so they are most of the semantic term; a model that is to be silent
    must learn them. (train.py can thin them out: --depth-share, --repeats.)"""
    NONE = 0
    SEMANTIC = 1
    ACOUSTIC = 2
    MONOLOGUE = 3
    WAIT = 4


@dataclass(frozen=True)
class Ids:
    """The special tokens of a grid: three text ids and two audio ids. flm.Config says what each
    means."""
    wait: int
    asr: int
    answer: int
    empty: int
    pad: int

    @classmethod
    def of(cls, config):
        """The ids of an flm.Config."""
        return cls(wait=config.wait_token, asr=config.asr_token, answer=config.answer_token,
                   empty=config.empty_token, pad=config.pad_token)


@dataclass
class Grid:
    """One sample. text [T], speak [T, K] and listen [T, K]: int64 ids. loss [T, 1 + K]: uint8, the
    Loss class of the text and of the 8 codes of speak; listen is never predicted. Raises GridError
    where the shapes do not agree."""
    text: torch.Tensor
    speak: torch.Tensor
    listen: torch.Tensor
    loss: torch.Tensor

    def __post_init__(self):
        T = len(self.text)
        for name, width in (("speak", K), ("listen", K), ("loss", 1 + K)):
            shape = getattr(self, name).shape
            if shape != (T, width):
                raise GridError(f"{name} is {list(shape)} and should be {[T, width]}")

    def __len__(self):
        return len(self.text)


# --- turns: what is known before a frame is laid out ---

@dataclass
class Turn:
    """One exchange of a conversation, or one (recording, sentence) pair of section 3.1. A pair of
    TTS-style has no listen_frames, a pair of ASR-style no speak_frames.

    The last four are for users who speak whenever they like (`draw_interruptions`)."""
    listen_frames: int = 0    # of the user's speech
    speak_frames: int = 0     # of the model's speech
    transcript: tuple = ()    # text ids of the user's words
    response: tuple = ()      # text ids of the model's words
    # For `align` and `overlap`: (frame where it sounds, text ids) of each word, or each utterance.
    words: tuple = ()
    onset: int = 0            # quiet frames at the start of the user's recording
    # The user's recording starts so many frames into the sound of the response before it.
    # None: it starts after that response.
    interrupts: int | None = None
    reaction: float = REACTION_DELAY  # seconds until that response ends
    # A back-channel: (its start in frames from the first sound of this response, its length).
    backchannel: tuple | None = None


def draw_interruptions(turns, lengths, rng):
    """Let the user interrupt some responses, and say "uh-huh" into others (section 3.2.2): sets
    `interrupts` and `backchannel`. lengths: of a back-channel for each turn, in frames, 0 for none.

    Decision: INTERRUPTION_PROBABILITY counts the responses that another turn follows. The next
    question starts in a frame drawn evenly from all in which the response sounds. A back-channel
    falls evenly too, and is over before an interruption starts."""
    for i, turn in enumerate(turns):
        undisturbed = turn.speak_frames  # frames of sound before an interruption
        is_last = i + 1 == len(turns)
        if not is_last and turn.speak_frames and rng.random() < INTERRUPTION_PROBABILITY:
            undisturbed = rng.randrange(turn.speak_frames)
            turns[i + 1].interrupts = undisturbed
        length = lengths[i]
        if 0 < length <= undisturbed:
            start = rng.randint(0, undisturbed - length)
            turn.backchannel = (start, length)


# --- formats: turns -> script ---

class Script:
    """A sample before its audio. text: a list of ids, one for each frame. listen_spans and
    speak_spans: where the user and the model speak.

    The methods down to `overlap` are the steps of which FORMATS makes a format: each lays out one
    part of a turn behind what is there already."""

    def __init__(self, ids):
        self.ids = ids
        self.text = [ids.wait]  # frame 0, where a conversation starts
        self.listen_spans = []
        self.speak_spans = []

    def __len__(self):
        return len(self.text)

    def wait(self, frames):
        """Write nothing for so many frames."""
        self.text += [self.ids.wait] * frames

    def wait_until(self, frame):
        """Write nothing until this frame; it may have passed already."""
        self.wait(max(0, frame - len(self)))

    def cut(self, turn):
        """Where this turn interrupts, end the response before it: its words and its sound both stop
        a reaction after the first sound of the user.

        Decision: a word that is cut simply turns into <wait>, without a token for the cut, and
        speech turns into silence from one frame to the next. What was not said leaves no trace, as
        when a person stops.
        Decision: 0.5 s are 6.25 frames; the nearest whole number is taken."""
        if turn.interrupts is None:
            return
        start, stop = self.speak_spans.pop()
        first_sound = start + turn.interrupts + turn.onset
        silent_from = first_sound + round(turn.reaction * FRAME_RATE)
        self.speak_spans.append((start, min(stop, silent_from)))
        del self.text[silent_from:]  # with the silence that `write` laid before this turn

    def hear(self, turn):
        """Write nothing until the user has spoken."""
        start = len(self)
        if turn.interrupts is not None:
            response_start, _ = self.speak_spans[-1]
            start = response_start + turn.interrupts
        stop = start + turn.listen_frames
        self.listen_spans.append((start, stop))
        self.wait_until(stop)

    def transcribe(self, turn):
        """Write the user's words right after the user has spoken, without gaps between them: a
        natural monologue that follows (section 2.2)."""
        self.text += turn.transcript

    def quote(self, turn):
        """Write the user's words between <asr> and <answer> (section 3.2.2)."""
        self.text += [self.ids.asr, *turn.transcript, self.ids.answer]

    def respond(self, turn):
        """Write the response at once, without gaps: a natural monologue that leads (section 2.2).
        Its sound starts SPEECH_DELAY frames after the first word. <wait> fills the text until it is
        over."""
        start = len(self) + SPEECH_DELAY
        stop = start + turn.speak_frames
        self.text += turn.response
        self.speak_spans.append((start, stop))
        self.wait_until(stop)

    def backchannel(self, turn):
        """Let the user say "uh-huh" into the response, which goes on unchanged."""
        if turn.backchannel is None:
            return
        response_start, _ = self.speak_spans[-1]
        after, length = turn.backchannel
        start = response_start + after
        self.listen_spans.append((start, start + length))

    def align(self, turn):
        """Write each word in the frame in which it sounds, or after the word before it: Moshi's
        monologue. <end-of-pad> stands before a word where there is room.

        Decision: in this format the ids of <wait> and <answer> stand for Moshi's <pad> and
        <end-of-pad>, which are other tokens and mean: nothing is written now; words follow. So a
        model for the comparison needs no ids of its own."""
        start = len(self)
        self.speak_spans.append((start, start + turn.speak_frames))
        self.wait(turn.speak_frames)
        free = start  # the first frame behind the words so far
        for frame, word in turn.words:
            first = max(free, start + frame)
            free = first + len(word)
            self.wait_until(free)
            self.text[first:free] = word
            before = first - 1
            if before > 0 and self.text[before] == self.ids.wait:
                self.text[before] = self.ids.answer

    def overlap(self, turn):
        """Lay out a recorded conversation as it was: both channels whole, side by side. Each
        utterance of the model is a natural monologue that leads: it is written at once,
        SPEECH_DELAY frames before its sound, or right behind the utterance before it."""
        start = len(self)
        self.listen_spans.append((start, start + turn.listen_frames))
        self.speak_spans.append((start, start + turn.speak_frames))
        self.wait(max(turn.listen_frames, turn.speak_frames))
        free = start  # the first frame behind the utterances so far
        for frame, utterance in turn.words:
            first = max(free, start + frame - SPEECH_DELAY)
            free = first + len(utterance)
            self.wait_until(free)
            self.text[first:free] = utterance

    def grid(self, speak=None, listen=None):
        """Set codes [T, K] beside the text -> Grid. None: a channel that stays empty, without loss
        (section 3.1)."""
        T = len(self)
        text = torch.tensor(self.text)
        empty = torch.full((T, K), self.ids.empty)
        loss = torch.zeros(T, 1 + K, dtype=torch.uint8)
        loss[1:, 0] = torch.where(text[1:] == self.ids.wait, Loss.WAIT, Loss.MONOLOGUE)
        if speak is None:
            speak = empty.clone()
            speak[0] = self.ids.pad
        else:
            speak = speak.clone()
            loss[1:, 1] = Loss.SEMANTIC
            loss[:, 2:] = Loss.ACOUSTIC
            loss[:, 1:][speak == self.ids.empty] = Loss.NONE
            # The streaming loop starts from this pad. It samples the acoustic codes of frame 0.
            speak[0, 0] = self.ids.pad
        if listen is None:
            listen = empty
        return Grid(text, speak, listen, loss)


# The steps that are taken for each turn, in this order.
FORMATS = {
    # Section 3.1, Figure 3 left: nothing is heard.
    "tts": (Script.respond,),
    # Section 3.1, Figure 3 left: nothing is spoken.
    "asr": (Script.hear, Script.transcribe),
    # Section 3.2.2, Figure 3 middle.
    "asr-response-tts": (Script.hear, Script.quote, Script.respond),
    # Section 3.2.2, Figure 3 top right.
    "response-tts": (Script.hear, Script.respond),
    # Section 3.2.2, Figure 3 bottom right: users speak whenever they like.
    "response-tts-free": (Script.cut, Script.hear, Script.respond, Script.backchannel),
    # Figure 2 left: Moshi's monologue over a pair, the baseline of section 4.4.
    "word-aligned": (Script.align,),
    # Section 4.2, for SIM of Table 5: a recording of a voice, then a text in this voice.
    # Decision: the paper says of this format that it "incorporates reference audio", and no more.
    # Here the reference is heard, as a user is, and its words are not written. So it needs no
    # transcript, and a model of the last stage, which listens already, can be tuned to it.
    "reference-tts": (Script.hear, Script.respond),
    # Not the paper's: recordings of two people. STAGES.md tells how it was added.
    "stereo": (Script.overlap,),
}
# Formats whose listening channel is not empty, and formats whose speaking channel is not.
LISTENS = {name for name, steps in FORMATS.items()
           if Script.hear in steps or Script.overlap in steps}
SPEAKS = {name for name, steps in FORMATS.items()
          if Script.respond in steps or Script.align in steps or Script.overlap in steps}
# Formats of pairs: one of the two channels is empty.
PAIRS = FORMATS.keys() - (LISTENS & SPEAKS)


def write(format, turns, silences, ids):
    """Lay out turns in one format, with silences[i] frames before turn i and silences[-1] at the
    end -> Script. Raises GridError for another number of silences."""
    if len(silences) != len(turns) + 1:
        raise GridError(f"{len(turns)} turns need {len(turns) + 1} silences, not {len(silences)}")
    script = Script(ids)
    for turn, silence in zip(turns, silences):
        script.wait(silence)
        for step in FORMATS[format]:
            step(script, turn)
    script.wait(silences[-1])
    return script


def place(spans, clips, filler, T):
    """Lay clips, codes [frames, K] each, into their spans of a channel that holds `filler` [K]
    elsewhere -> [T, K]. Raises GridError for a clip of another length than its span."""
    channel = filler.expand(T, K).clone()
    for (start, stop), clip in zip(spans, clips, strict=True):
        if len(clip) != stop - start:
            raise GridError(f"a clip of {len(clip)} frames does not fit the span {start} .. {stop}")
        channel[start:stop] = clip
    return channel


# --- delays: frames <-> rows ---

def delay_columns(columns, on_time, hole):
    """[T, n] -> [T + 1, n]: the first `on_time` columns stay, the others come ACOUSTIC_DELAY rows
    later; `hole` fills what opens. Codes, with on_time = 1:

        frame     0  1  2         row       0   1  2  3
        semantic  a  b  c         semantic  a   b  c  pad
        acoustic  A  B  C         acoustic  pad A  B  C
    """
    early = F.pad(columns[:, :on_time], (0, 0, 0, ACOUSTIC_DELAY), value=hole)
    late = F.pad(columns[:, on_time:], (0, 0, ACOUSTIC_DELAY, 0), value=hole)
    return torch.cat([early, late], 1)


def advance_columns(columns, on_time):
    """[T + 1, n] -> [T, n]: takes `delay_columns` back."""
    early = columns[:-ACOUSTIC_DELAY, :on_time]
    late = columns[ACOUSTIC_DELAY:, on_time:]
    return torch.cat([early, late], 1)


def delay(grid, ids):
    """A Grid of T frames -> a Grid of the T + 1 rows that the model reads. Loss classes move with
    their tokens.

    Decision: the delay holds in every stage. The paper names it first in fine-tuning (section
    3.2.2, "a 1-step offset"). Without it in post-training the model would have to learn its rows
    anew, and Moshi's whole training has it."""
    return Grid(text=F.pad(grid.text, (0, ACOUSTIC_DELAY), value=ids.wait),
                speak=delay_columns(grid.speak, 1, ids.pad),
                listen=delay_columns(grid.listen, 1, ids.pad),
                loss=delay_columns(grid.loss, 2, Loss.NONE))


def undelay(rows):
    """A Grid of T + 1 rows -> a Grid of T frames: undelay(delay(grid, ids)) is grid."""
    return Grid(text=rows.text[:-ACOUSTIC_DELAY],
                speak=advance_columns(rows.speak, 1),
                listen=advance_columns(rows.listen, 1),
                loss=advance_columns(rows.loss, 2))


if __name__ == "__main__":
    from workshop import pictures
    command.run("stream.py", pictures.main)
