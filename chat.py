"""Listening and speaking at once: the sampler, the frame, and the ways into a conversation.

What this is: the model's live loop (section 2.1), token by token the release's, behind a
microphone, a page for the browser, Moshi's clients, or a sound file. In every frame of 80 ms the
model reads what the user and it itself said, and writes its next word and its next 8 codes. There
is no turn-taking: the model is silent when it writes silence. What this is not: the model (flm.py),
the codec (mimi.py), the sound card and the server (workshop/), or a score (eval.py).

    user_audio s --encode_user--> listen codes of s ------+
                                                          +--> row s --read_row--> h, text s + 1
    State: text s, code 0 of s, codes 1 .. 7 of s - 1 ----+                             |
      ^                                                                            write_codes
      |                                                                                 |
      +------------ text s + 1, code 0 of s + 1, codes 1 .. 7 of s <--------------------+
                                                           |
    model_audio s <--decode_model-- codes 0 .. 7 of s <----+

    python chat.py                                           # microphone and headphones
    python chat.py --serve                                   # a browser, or any Moshi client
    python chat.py --in examples/question.wav --out a.wav    # a sound file
    python chat.py --bench --random-weights 0.5b             # how fast a frame is

Unusual here:
- Code 0, the semantic one, stands one row before codes 1 .. 7 of its frame, in both directions;
  `python stream.py` draws rows 0 to 3 of a conversation. So a frame of the model's is complete one
  step after its code 0 was drawn, and the first step returns nothing.
- Frame s of the answer stands beside frame s of the question, as in the grid. In a live talk it is
  heard 80 ms later, because the question's frame has to be heard to its end first.
- The random numbers of a frame, 0 .. 1, are arguments, and pick the tokens. So a frame can be
  replayed as a CUDA graph, and each conversation of a batch has a seed of its own.
- A conversation has no end, and the memory does not grow. The cache is a ring of `context` frames:
  the newest frame takes the place of the oldest. Frames that are gone are not wholly forgotten.
  Only the first layer's keys and values come from one frame alone; those of deeper layers were
  computed from hidden states that had read earlier frames, and still hold what these told them.

Shapes: B conversations, K = 8 codebooks, D model width, V text ids, C audio ids, N samples; P and W
as in State.
"""
import argparse
import json
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from workshop import command, pace

if __name__ == "__main__":
    command.stop_while_loading("chat.py")
pace.sleep_while_waiting()  # OpenMP reads it when torch loads: torch and what imports it come after

import torch
import torch.nn.functional as F

import flm
import mimi
from flm import K
from stream import FRAME_RATE
from workshop import (bench, codec_files, devices, model_files, options, quantize, sound_card,
                      sound_file)
from workshop.answer_end import HESITATION, LONGEST_ANSWER, SILENT, AnswerWatch
from workshop.graphs import Runner
from workshop.record import Record, read_record

CONTEXT = 4096    # frames (5.5 min) that are remembered where the model does not say
PENALISED = 4     # codebooks 0 .. 3 have a repetition penalty, 4 .. 7 none, as in the release
# Decision: top-p looks at no more tokens than this. Sorting 152,064 takes 9 ms on a CPU, and these
# take 1 ms.
LIKELIEST = 4096
SHIPPED = Path(__file__).resolve().parent / "tiny" / "model"
# Least and most of the fields of Sampling.
RANGES = {"temperature": (0, 100), "top_p": (0, 1), "top_k": (0, 10**6), "penalty": (0.01, 100),
          "window": (0, 10_000)}


# --- the sampler ---

class Draw(NamedTuple):
    """How one kind of token is drawn."""
    temperature: float  # 0: the likeliest token
    top_p: float        # 0: top_k chooses
    top_k: int          # 0: all tokens
    penalty: float      # what was drawn lately becomes less likely by it; 1: no penalty
    window: int         # how many tokens, or frames, the penalty looks back; 0 without a penalty


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults are the release's. Raises ValueError, one sentence, for a
    number out of range.

    Temperature 0 takes the likeliest token. top_p 0 leaves the choice to top_k, and top_k 0 to all
    tokens. window: tokens, or frames, that the repetition penalty looks back over."""
    temperature_text: float = 0.01
    temperature_audio: float = 0.5
    top_p_text: float = 0.9
    top_p_audio: float = 0.9
    top_k_text: int = 0
    top_k_audio: int = 0
    penalty_text: float = 1.03
    penalty_audio: float = 1.2
    window_text: int = 50
    window_audio: int = 50

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = RANGES[field.name.rpartition("_")[0]]
            if type(value) not in (int, field.type) or not low <= value <= high:
                whole = " and whole" if field.type is int else ""
                raise ValueError(f"{field.name} must be {low} .. {high}{whole}, not {value}")

    @classmethod
    def of(cls, folder, **changed):
        """The sampling that a model folder asks for in its sampling.json, else the release's, with
        some fields changed. Raises ValueError that names the file."""
        file = model_files.resolve(folder) / "sampling.json"
        if not file.exists():
            return cls(**changed)
        try:
            settings = json.loads(file.read_text())
            if not isinstance(settings, dict):
                raise ValueError(f"it must hold an object, {{...}}, and not {settings!r:.40}")
            unknown = settings.keys() - {field.name for field in fields(cls)}
            if unknown:
                raise ValueError(f"no setting is called {sorted(unknown)[0]}")
            return cls(**{**settings, **changed})
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def greedy(cls, penalty_text=1.0, penalty_audio=1.0):
        """The likeliest token always; without a penalty, where none is named."""
        return cls(temperature_text=0, temperature_audio=0,
                   penalty_text=penalty_text, penalty_audio=penalty_audio)

    @property
    def text(self):
        window = self.window_text if self.penalty_text != 1 else 0
        return Draw(self.temperature_text, self.top_p_text, self.top_k_text, self.penalty_text,
                    window)

    @property
    def audio(self):
        window = self.window_audio if self.penalty_audio != 1 else 0
        return Draw(self.temperature_audio, self.top_p_audio, self.top_k_audio, self.penalty_audio,
                    window)


def draw(how, logits, chance, recent, is_first):
    """logits [B, V or C] -> tokens [B], by a Draw. chance [B] in 0 .. 1; recent [B, W] what was
    drawn lately; is_first [B]: nothing was drawn yet, and nothing is penalised."""
    penalty = torch.where(is_first, 1.0, how.penalty)[:, None]
    return sample(logits, chance, recent, penalty, how.temperature, how.top_p, how.top_k)


def sample(logits, chance, recent, penalty, temperature, top_p, top_k):
    """logits [B, V], chance [B] in 0 .. 1 -> tokens [B]. recent [B, W]: ids that the penalty, a
    number or [B, 1], makes less likely. Nothing here waits for the device."""
    logits = logits.float()
    if recent.shape[1]:
        values = logits.gather(1, recent)
        penalised = torch.where(values > 0, values / penalty, values * penalty)
        # An id that stands there twice is written twice, with the same value.
        logits = logits.scatter(1, recent, penalised)
    if temperature < 1e-3:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1)
    ids = None
    if top_p > 0 or top_k > 0:
        count = LIKELIEST if top_p > 0 else top_k
        chances, ids = chances.topk(min(count, chances.shape[-1]))      # likeliest first
    if top_p > 0:
        before = chances.cumsum(-1) - chances
        chances = chances * (before <= top_p)                           # the first always stays
    reached = chances.cumsum(-1)
    wanted = chance[:, None].clamp(max=1 - 1e-6) * reached[:, -1:]
    place = torch.searchsorted(reached, wanted, right=True)             # [B, 1]
    if ids is not None:
        place = ids.gather(1, place)
    return place[:, 0]


# --- a frame ---

class State(NamedTuple):
    """What B conversations carry from one frame to the next, beside the caches of Tools. All are
    ids; P is PENALISED, W the window of the penalty (0: none).

    Three of them are the row that the model reads next, but for the user's new semantic code."""
    text: torch.Tensor          # [B] the text id of the row
    speak: torch.Tensor         # [B, K] the model's codes of the row: code 0 of this frame,
                                #   codes 1 .. 7 of the frame before
    listen: torch.Tensor        # [B, K] the user's codes of the frame before
    frames: torch.Tensor        # [B] how many frames there were
    recent_text: torch.Tensor   # [B, W] the last text ids that the model drew
    recent_codes: torch.Tensor  # [B, P, W] the last codes of each codebook with a penalty

    @classmethod
    @torch.inference_mode()
    def zeros(cls, batch, sampling, device):
        """Room for B conversations. Each begins with `start`."""
        sizes = [(), (K,), (K,), (), (sampling.text.window,), (PENALISED, sampling.audio.window)]
        return cls(*[torch.zeros(batch, *size, dtype=torch.long, device=device) for size in sizes])

    def start(self, i, config):
        """Conversation i begins: nothing was written, nothing was spoken or heard."""
        self.text[i] = config.wait_token
        self.speak[i] = config.pad_token
        self.listen[i] = config.pad_token
        self.frames[i] = 0


@dataclass
class Tools:
    """What a frame is computed with. The two caches and the codec's states are written in place."""
    model: flm.FLM
    codec: mimi.Mimi | None    # None: codes come in, and no sound goes out
    sampling: Sampling
    cache: flm.KVCache         # keys and values of the last frames
    depth_cache: torch.Tensor  # keys and values of the 8 codes in the making


def encode_user(tools, user, hears, active):
    """The user's frame as codes -> (listen_codes [B, K],).

    user: samples [B, frame_size] in -1 .. 1 or, without a codec, codes [B, K]. hears [B]: 0 for a
    conversation whose listening channel is empty. active [B]: 0 for one that stands still."""
    if tools.codec is None:
        listen_codes = user.long()
    else:
        tools.codec.active.copy_(active)
        listen_codes = tools.codec.encode_chunk(user[:, None])[..., 0]
    return (torch.where(hears.bool()[:, None], listen_codes, tools.model.config.empty_token),)


def read_row(tools, listen_codes, active, chance, *state):
    """The backbone reads a row -> (h [B, D], text [B]): equation (2), and the next text id.

    chance [B] in 0 .. 1 picks it."""
    state = State(*state)
    model = tools.model
    tools.cache.active.copy_(active)
    # The user's acoustic codes are those of the frame before, as in training.
    listen = torch.cat([listen_codes[:, :1], state.listen[:, 1:]], 1)  # [B, K]
    h = model.hidden(state.text[:, None], state.speak[:, None], listen[:, None], tools.cache)
    logits = model.text_logits(h)[:, 0]  # [B, V]
    text = draw(tools.sampling.text, logits, chance, state.recent_text, state.frames == 0)
    return h[:, 0], text


def write_codes(tools, h, text, listen_codes, active, chances, *state):
    """The depth transformer writes the next 8 codes, one after the other -> (ids [B, 1 + K]: the
    text id and the codes of the frame that is complete now; and the six tensors of the new State).

    h [B, D]; chances [B, K] in 0 .. 1 pick the codes."""
    state = State(*state)
    is_first = state.frames == 0
    codes = text.new_zeros(len(text), 0)
    for c in range(K):
        logits = tools.model.depth_logits(h, codes, tools.depth_cache)[:, 0]  # [B, C]
        recent = state.recent_codes[:, c] if c < PENALISED else codes[:, :0]
        code = draw(tools.sampling.audio, logits, chances[:, c], recent, is_first)
        codes = torch.cat([codes, code[:, None]], 1)
    # The row that was read holds this frame's text id and code 0. Its codes 1 .. 7 are new.
    ids = torch.cat([state.text[:, None], state.speak[:, :1], codes[:, 1:]], 1)
    return ids, *next_state(state, listen_codes, text, codes, active)


def next_state(state, listen_codes, text, codes, active):
    """The State after a frame. A conversation that is not active keeps its own."""
    is_first = state.frames == 0
    later = State(text, codes, listen_codes, state.frames + 1,
                  remember(state.recent_text, text, is_first),
                  remember(state.recent_codes, codes[:, :PENALISED], is_first))
    chosen = []
    for before, after in zip(state, later):
        chosen.append(torch.where(of_each(active.bool(), before), after, before))
    return State(*chosen)


def remember(recent, ids, is_first):
    """Put ids [B, ...] at the end of recent [B, ..., W], and drop the oldest.

    A conversation's first id fills its whole window: the penalty of an id is the same however often
    it stands there."""
    if recent.shape[-1] == 0:
        return recent
    shifted = torch.cat([recent[..., 1:], ids[..., None]], -1)
    return torch.where(of_each(is_first, recent), ids[..., None], shifted)


def of_each(mask, values):
    """mask [B] -> [B, 1 ...], with as many dimensions as values [B, ...]."""
    return mask.view(-1, *[1 for _ in values.shape[1:]])


def decode_model(tools, ids, active):
    """The model's frame as sound -> (answer [B, 1 + K + frame_size],): text id, codes, samples.

    ids [B, 1 + K]: text id and codes. They leave with the samples in one tensor, so that the device
    is waited for once; float32 holds ids up to 2^24 exactly. Sound is silence where a code is the
    empty id or, in the first frame, a pad."""
    if tools.codec is None:
        return (ids.float(),)
    speak_codes = ids[:, 1:]
    size = tools.codec.config.codebook_size
    speaks = active.bool() & (speak_codes < size).all(1)
    tools.codec.active.copy_(speaks)
    sound = tools.codec.decode_chunk(speak_codes.clamp(max=size - 1)[..., None])[:, 0]
    sound = torch.where(speaks[:, None], sound, 0)
    return (torch.cat([ids, sound], 1),)


def frame(tools, state, user, hears, active, chances, run):
    """One frame of B conversations -> (the new State, answer [B, 1 + K + frame_size]).

    user, hears, active: see encode_user; hears None: nobody hears anything in this frame.
    chances [B, 1 + K] in 0 .. 1: the random numbers of the frame. run(function, tools, *tensors)
    calls each of the four parts."""
    if hears is None:
        listen_codes = torch.full_like(state.listen, tools.model.config.empty_token)
    else:
        listen_codes, = run(encode_user, tools, user, hears, active)
    h, text = run(read_row, tools, listen_codes, active, chances[:, 0], *state)
    ids, *later = run(write_codes, tools, h, text, listen_codes, active, chances[:, 1:], *state)
    answer, = run(decode_model, tools, ids, active)
    return State(*later), answer


PARTS = {"encode": encode_user, "backbone": read_row, "depth": write_codes, "decode": decode_model}


# --- a conversation ---

def default_context(config):
    """Frames that a conversation with a model of this flm.Config remembers.

    Attention between frames that are farther apart than the rows of training ever were is
    undefined: a model that was trained on rows of 640 frames and remembers 4,096 falls silent after
    a minute and never speaks again. So a model folder says how long its rows were
    (`trained_frames`), and no more is remembered.
    Decision: where it does not say, as the release does not, CONTEXT, half of the paper's rows of
    8,192 (section 3.1). The paper does not say how much a live conversation remembers. Every
    distance up to a half occurs in at least half of the places of a row, so it was trained well;
    and the cache takes half the memory: for the 7B in bfloat16 0.23 GB in place of 0.47."""
    return min(config.trained_frames or CONTEXT, config.max_position_embeddings)


class Duplex:
    """`batch` conversations with a model: `step`, or `steps`, takes what the user says in a frame
    and returns what the model says in it. That is codes; with a codec it is sound.

    context: frames that are remembered; None: as many as `default_context` says. fast: compile the
    frame, on CUDA as graphs. state: a State; read it, and change it through `steps` alone."""

    def __init__(self, model, sampling=Sampling(), context=None, batch=1, fast=False, codec=None):
        config = model.config
        weight = model.model.norm.weight
        device = weight.device
        context = min(context or default_context(config), config.max_position_embeddings)
        self.cache = flm.KVCache(config, batch, context, device, weight.dtype)
        depth_cache = flm.depth_cache(config, batch, device, weight.dtype)
        self.codec = with_states_of_its_own(codec, batch) if codec else None
        self.model = model
        self.sampling = sampling
        self.batch = batch
        self.tools = Tools(model, self.codec, sampling, self.cache, depth_cache)
        self.state = State.zeros(batch, sampling, device)
        self.generators = [None] * batch
        # All that goes to the device in a frame, in one copy. Columns: 0 active, 1 hears,
        # 2 .. 2 + K chances, then the user's samples or codes.
        size = codec.config.frame_size if codec else K
        pinned = device.type == "cuda"
        self.packet = torch.zeros(batch, 3 + K + size, pin_memory=pinned)
        self.inputs = self.packet.to(device)
        self.runner = Runner(fast, device)
        for i in range(batch):
            self.reset(i)
        if fast:
            self.cache.fixed = True
            self.advance(self.runner.run)  # nobody is active: it compiles, and changes nothing

    @torch.inference_mode()
    def reset(self, i=0, seed=None):
        """Conversation i starts afresh. Its random numbers follow from `seed`; without one, from
        torch's generator."""
        self.state.start(i, self.model.config)
        self.cache.position[i] = 0
        if self.batch == 1:
            self.cache.filled = 0
        self.generators[i] = None if seed is None else torch.Generator().manual_seed(seed)
        if self.codec:
            self.codec.reset(i)

    def step(self, listen_codes):
        """One conversation by codes: the user's [8] -> (text id, a list of 8 codes), or None in the
        first frame, as the release returns them."""
        is_first = self.state.frames[0] == 0
        text, speak_codes, _ = self.steps({0: listen_codes})[0]
        return None if is_first else (text, speak_codes)

    @torch.inference_mode()
    def steps(self, user, force_text=None, force_speak=None, timer=None):
        """A frame of some conversations: {i: samples [frame_size], without a codec codes [8]} ->
        {i: (text id, a list of 8 codes, samples [frame_size] or none)}.

        Those that are not named stand still. The first frame stands for nothing: <wait>, codes that
        begin with a pad, silence. A user who is None is an empty channel, as of no microphone.
        force_text {i: id} and force_speak {i: codes [8]} stand in the row that this frame writes,
        in place of what the model drew. timer(name of a part, call), where there is one, must
        return what call() returns."""
        self.packet.zero_()
        for i, values in user.items():
            self.packet[i, 0] = 1
            self.packet[i, 2:3 + K] = torch.rand(1 + K, generator=self.generators[i])
            if values is not None:
                self.packet[i, 1] = 1
                self.packet[i, 3 + K:] = torch.as_tensor(values)
        run = self.timed(timer) if timer else self.runner.run
        somebody_hears = any(values is not None for values in user.values())
        answer = self.advance(run, somebody_hears)
        answer = answer.to("cpu", copy=True)  # the frame's one wait for the device
        for i, token in (force_text or {}).items():
            self.state.text[i] = token
        for i, codes in (force_speak or {}).items():
            self.state.speak[i] = torch.as_tensor(codes)
        ids = answer[:, :1 + K].long().tolist()
        return {i: (ids[i][0], ids[i][1:], answer[i, 1 + K:]) for i in user}

    @torch.inference_mode()
    def advance(self, run, somebody_hears=True):
        """A frame with the packet as it stands -> answer [B, 1 + K + frame_size], on the device."""
        self.inputs.copy_(self.packet, non_blocking=True)
        active = self.inputs[:, 0]
        hears = self.inputs[:, 1] if somebody_hears else None
        chances = self.inputs[:, 2:3 + K]
        user = self.inputs[:, 3 + K:]
        self.state, answer = frame(self.tools, self.state, user, hears, active, chances, run)
        return answer

    def timed(self, timer):
        """`run` of the frame, such that `timer` calls each part."""
        names = {function: name for name, function in PARTS.items()}

        def run(function, *arguments):
            return timer(names[function], lambda: self.runner.run(function, *arguments))
        return run

    @torch.inference_mode()
    def skip_to(self, frames):
        """Go on as if there had been so many frames of which the cache remembers nothing but zeros.
        For measurements and tests of long conversations."""
        self.cache.position.fill_(frames)
        self.cache.filled = min(frames, self.cache.length)


def with_states_of_its_own(codec, batch):
    """A codec that shares its weights with this one, and has its own streams."""
    shared = {id(tensor): tensor for tensor in (*codec.parameters(), *codec.buffers())}
    own = deepcopy(codec, shared)
    own.start(batch)
    return own


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


class Partner:
    """A model folder ready to talk: tokenizer, language model, codec, and a warm Duplex.

    shape: context, batch and fast of Duplex. Raises model_files.LoadError, one sentence."""

    def __init__(self, folder, sampling, device="cpu", dtype=torch.float32, bits=16, **shape):
        from tokenizers import Tokenizer
        folder = model_files.resolve(folder)
        self.model = model_files.load(folder, device, dtype, quantize.packing(bits)).eval()
        self.codec = codec_files.load(folder, device, K)
        self.shape = shape
        path = folder / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise model_files.LoadError(f"{path} cannot be read: {error}") from None
        ids, entries = self.model.config.aud_vocab_size, self.codec.config.codebook_size
        if ids <= entries:
            raise model_files.LoadError(f"{folder}: the model has {ids} audio ids, too few for a "
                                        f"codec of {entries}")
        self.sample_with(sampling)

    def sample_with(self, sampling):
        """A Duplex with this sampling. It holds a short conversation, so that the first frame of
        the next one is as fast as the others."""
        self.duplex = Duplex(self.model, sampling, codec=self.codec, **self.shape)
        silence = torch.zeros(3, self.codec.config.frame_size)
        for _ in hold(self, silence, self.monologue(print_nothing)):
            pass

    def monologue(self, print=print, stamps=True):
        return Monologue(self.tokenizer, self.model.config.wait_token, print, stamps)


def print_nothing(*_, **__):
    """In the place of `print`."""


def hold(partner, frames, monologue, seed=None, record=None):
    """One conversation, frame by frame -> (user_audio, model_audio, seconds it took) for each.

    frames: the user's, [frame_size] samples each, of any source that can be iterated. record: a
    Record for both voices."""
    partner.duplex.reset(seed=seed)
    for i, user_audio in enumerate(frames):
        start = time.perf_counter()
        text, _, model_audio = partner.duplex.steps({0: user_audio})[0]
        seconds = time.perf_counter() - start
        monologue.add(i / partner.codec.config.frame_rate, text)
        if record:
            record.write(user_audio, model_audio)
        yield user_audio, model_audio, seconds
    monologue.close()


def converse(partner, audio, monologue, seed=None, record=None, tail=0.0):
    """Talk with a recording: audio float32 [N] -> (user_audio [M], model_audio [M], seconds that
    each frame took).

    tail: seconds of silence after it; None: until the answer is over, LONGEST_ANSWER seconds at
    most. The model gets the recording frame by frame, as from a microphone, and knows nothing of
    what comes later. A Ctrl-C ends the talk early."""
    config = partner.codec.config
    size = config.frame_size
    length = len(audio) + round((tail or 0) * config.sample_rate)
    padded = F.pad(audio, (0, length - len(audio) + -length % size))
    frames = padded.split(size)
    watch = AnswerWatch(frames, config.frame_rate)

    def user_frames():
        yield from frames
        most = len(frames) + LONGEST_ANSWER * config.frame_rate
        while tail is None and not watch.over() and watch.frames < most:
            yield torch.zeros(size)

    voices = [torch.zeros(2, 0)]
    seconds = []
    try:
        for user_audio, model_audio, took in hold(partner, user_frames(), monologue, seed, record):
            watch.add(bool(monologue.ids), model_audio)
            voices.append(torch.stack([user_audio, model_audio]))
            seconds.append(took)
    except KeyboardInterrupt:
        monologue.close()
        print("\nchat.py: stopped; the answer so far is kept", file=sys.stderr)
    user_audio, model_audio = torch.cat(voices, 1)
    if tail is None:
        return user_audio, model_audio, seconds
    return user_audio[:length], model_audio[:length], seconds


# --- ways in ---

def talk_to_file(partner, args):
    """--in and --out: listen to a file, write the answer beside it. Raises OSError, one
    sentence."""
    config = partner.codec.config
    with recording(args, partner) as record:
        monologue = partner.monologue(command.print_while_read)
        user_audio, model_audio, seconds = converse(partner, args.question, monologue, args.seed,
                                                    record, args.tail)
        if not seconds:  # Ctrl-C in the first frame
            return
        answer = torch.stack([user_audio, model_audio], 1) if args.stereo else model_audio
        save_answer(args.target, answer, config.sample_rate)
    length = len(model_audio) / config.sample_rate
    speed_up = length / sum(seconds)
    slowest = 1000 * max(seconds)
    print(f"{length:.1f} s of conversation in {sum(seconds):.1f} s ({speed_up:.1f} x real time, "
          f"slowest frame {slowest:.0f} of {1000 / config.frame_rate:.0f} ms) -> {args.target}")
    if model_audio.abs().max() <= SILENT:
        print("chat.py: note: the model said nothing: is there speech in the file?",
              file=sys.stderr)
    elif model_audio[-config.sample_rate // 4:].abs().max() > SILENT:
        print("chat.py: note: the file ended while the model was speaking: "
              "a longer --tail lets it finish", file=sys.stderr)
    warning = pace.too_slow(sum(seconds) / len(seconds), 1 / config.frame_rate)
    if warning:
        print(warning)


def talk_to_microphone(partner, args):
    """No --in: sound devices, until Ctrl-C. Raises ValueError, one sentence, where there are none,
    or when they go away."""
    config = partner.codec.config
    monologue = partner.monologue(print_nothing)
    devices = (args.input_device, args.output_device)
    with (sound_card.SoundCard(config.sample_rate, config.frame_size, *devices) as card,
          recording(args, partner) as record):
        print("Talk; Ctrl-C ends it. Wear headphones, or the model hears itself.", flush=True)
        talk = hold(partner, card, monologue, args.seed, record)
        sound_card.show(card, talk, monologue, 1 / config.frame_rate)


def talk_to_visitors(partner, args):
    """--serve: the page and Moshi's clients, until Ctrl-C."""
    server_module().serve(partner, args)


def talk_again(partner, args):
    """--replay: what --record kept is said again, and the answer compared with the one kept."""
    replay = args.again
    _, model_audio, _ = converse(partner, replay.user_audio, partner.monologue(), replay.seed)
    differ = (model_audio != replay.model_audio[:len(model_audio)]).nonzero()
    if len(differ):
        moment = differ[0].item() / partner.codec.config.sample_rate
        print(f"{args.replay}: the answer differs from {moment:.2f} s on")
    else:
        print(f"{args.replay}: the answer is the same, sample for sample")


@contextmanager
def recording(args, partner):
    """--record: a Record that says how to hold the conversation again, or None. What failed is
    raised when all else is done."""
    if not args.record:
        yield None
        return
    settings = {"seed": args.seed, "sampling": asdict(args.sampling),
                "context": partner.duplex.cache.length}
    record = Record(args.record, partner.codec.config.sample_rate, settings)
    try:
        yield record
    finally:
        record.close()
    if record.trouble:
        raise OSError(record.trouble)


@dataclass
class Replay:
    """A recorded conversation: both voices, [N] samples each, and what it takes to hold it
    again."""
    user_audio: torch.Tensor
    model_audio: torch.Tensor
    sampling: Sampling
    seed: int
    context: int | None  # frames; None: as many as the model was trained on

    def __post_init__(self):
        options.check_number("seed", self.seed)
        if self.context is not None:
            options.check_number("context", self.context)


def read_replay(path):
    """A file of --record -> Replay. Raises ValueError, one sentence."""
    user_audio, model_audio, settings = read_record(path)
    try:
        sampling = Sampling(**settings["sampling"])
        return Replay(user_audio, model_audio, sampling, settings["seed"], settings.get("context"))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is no conversation that --record kept") from None


def save_answer(target, audio, sample_rate):
    """Write an answer; elsewhere, where `target` takes it no more. Raises OSError that says
    where."""
    try:
        sound_file.write_audio(target, audio, sample_rate)
    except OSError as error:
        raise OSError(f"{error}; {sound_file.rescue_audio(target, audio, sample_rate)}") from None


def server_module():
    """workshop/server.py, which needs a package that nothing else here needs."""
    try:
        from workshop import server
        return server
    except ModuleNotFoundError as error:
        raise ValueError(f"--serve needs the {error.name} package: "
                         f"pip install {error.name}") from None


# --- command line ---

def run(args):
    """The way in that the options ask for. Raises OSError or ValueError, one sentence."""
    if args.list_devices:
        return sound_card.list_devices()
    devices.check_device(args.device)
    changed = changed_sampling(args)
    if options.way_of(args) == "microphone":
        sound_card.check_devices(args.input_device, args.output_device)
    if args.serve is not None:
        args.door = server_module().door.open_door(args)
    check_targets(args)
    if args.source:
        args.question = sound_file.read_question(args.source)
        check_room(args)
    dtype = torch.bfloat16 if args.bfloat16 or args.bits < 16 else torch.float32
    args.again = read_replay(args.replay) if args.replay else None
    shape = {"context": args.again.context if args.again else args.context,
             "batch": args.sessions if args.serve is not None else 1,
             "fast": args.device.startswith("cuda") and not args.eager}
    if args.bench:
        return time_frames(args, dtype, Sampling(**changed), shape)
    args.sampling = args.again.sampling if args.again else Sampling.of(args.model, **changed)
    partner = Partner(args.model, args.sampling, args.device, dtype, args.bits, **shape)
    pace.settle_threads(partner.model, partner.codec)
    warn_of_context(partner.model.config, args.context)
    if args.source:
        talk_to_file(partner, args)
    elif args.replay:
        talk_again(partner, args)
    elif args.serve is not None:
        talk_to_visitors(partner, args)
    else:
        talk_to_microphone(partner, args)


def time_frames(args, dtype, sampling, shape):
    """--bench"""
    model, codec = bench.subject(args, dtype)
    pace.settle_threads(model, codec)
    bench.bench(args, model, codec, Duplex(model, sampling, codec=codec, **shape))


def check_targets(args):
    """Raise ValueError, one sentence, where --out and --record must not or cannot be written."""
    if args.record and args.target and sound_file.same_file(args.record, args.target):
        raise ValueError(f"--record and --out are one file, {args.target}: "
                         "give the record a file of its own")
    if args.record and args.record.suffix.lower() != ".wav":
        raise ValueError(f"--record {args.record}: a record is a .wav")
    sources = [args.source] if args.source else []
    for target in (args.target, args.record):
        if target:
            sound_file.check_target(target, args.overwrite, sources)


def check_room(args, sample_rate=24_000):
    """Raise ValueError, one sentence, where a disk has no room for a conversation about
    args.question. An answer's length is not known beforehand; what is known is how long it is
    waited for."""
    seconds = HESITATION if args.tail is None else args.tail
    samples = len(args.question) + round(seconds * sample_rate)
    sizes = {args.target: samples * 2 * (2 if args.stereo else 1)}  # two bytes a sample
    if args.record:
        sizes[args.record] = samples * 4 * 2
    sound_file.check_space(sizes)


def changed_sampling(args):
    """{field of Sampling: value} of the options that were named. Raises ValueError that names the
    option."""
    changed = {}
    for field in fields(Sampling):
        value = getattr(args, field.name)
        if value is None:
            continue
        try:
            Sampling(**{field.name: value})
        except ValueError as error:
            sentence = str(error).replace(field.name, options.option(field.name))
            raise ValueError(sentence) from None
        changed[field.name] = value
    return changed


def warn_of_context(config, context):
    """Say so where more is to be remembered than the model was trained to."""
    if config.trained_frames and context and context > config.trained_frames:
        seconds = config.trained_frames / FRAME_RATE
        print(f"chat.py: note: this model was trained on rows of {config.trained_frames} frames "
              f"({seconds:.0f} s); with --context {context} it may fall silent after that time",
              file=sys.stderr)


def command_line():
    """The options, in groups by way in."""
    parser = argparse.ArgumentParser(
        description="Talk with the model: by microphone, in a browser or a Moshi client (--serve), "
                    "or by a sound file (--in, --out).")
    add_file_options(parser.add_argument_group("conversation with a file"))
    add_sound_options(parser.add_argument_group(
        "microphone (what happens when no other way in is asked for)"))
    add_server_options(parser.add_argument_group("browser and Moshi clients"))
    add_model_options(parser.add_argument_group("model"))
    add_speed_options(parser.add_argument_group("speed"))
    add_sampling_options(parser.add_argument_group("sampling"))
    return parser


def add_file_options(group):
    add = group.add_argument
    add("--in", dest="source", type=Path, metavar="FILE",
        help="what is said to the model: any format and rate that soundfile reads")
    add("--out", dest="target", type=Path, metavar="FILE",
        help="what it answers, of the same start and length")
    add("--tail", type=float, metavar="SECONDS",
        help="silence heard after the file ends, 0 for none "
             f"(default: until the answer is over, {LONGEST_ANSWER} at most)")
    add("--stereo", action="store_true",
        help="write both voices: the question left, the answer right")
    add("--overwrite", action="store_true", help="replace an answer or a record that exists")
    add("--record", type=Path, metavar="FILE.wav",
        help="keep both voices, exactly; with a microphone too")
    add("--replay", type=Path, metavar="FILE.wav",
        help="hold a recorded conversation again, and compare the answer")


def add_sound_options(group):
    group.add_argument("--list-devices", action="store_true", help="number the sound devices")
    for way in ("input", "output"):
        group.add_argument(f"--{way}-device", type=int, metavar="N",
                           help="a number of --list-devices (default: the system's)")


def add_server_options(group):
    add = group.add_argument
    add("--serve", type=int, nargs="?", const=8990, metavar="PORT",
        help="a page, and /api/chat (port %(const)s)")
    add("--host", default="localhost",
        help="address to listen on; 0.0.0.0 is every one (default: %(default)s)")
    add("--ssl", type=Path, nargs=2, metavar=("CERT", "KEY"),
        help="serve https: without it, browsers of other machines give no microphone")
    add("--token", metavar="SECRET",
        help="what visitors must have in their link or in an Authorization header")
    add("--origin", action="append", default=[], metavar="ORIGIN",
        help="let pages of another origin connect, written https://HOST or https://HOST:PORT; "
             "behind a proxy, its own; may be repeated")
    add("--sessions", type=int, default=1, metavar="N",
        help="conversations at once (default: %(default)s)")
    add("--longest", type=float, metavar="MINUTES",
        help="end a conversation after so long (default: never)")


def add_model_options(group):
    add = group.add_argument
    add("--model", default=SHIPPED,
        help="folder or Hub id, such as CofeAI/FLM-Audio (default: the small model shipped here)")
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add("--bfloat16", action="store_true",
        help="weights in 16 bits: half the memory, for GPUs")
    add("--bits", type=int, choices=(4, 8, 16), default=16,
        help="bits of a weight; 4 and 8 compute in bfloat16")
    add("--context", type=int, metavar="FRAMES",
        help="what is remembered (default: as many as the rows that the model was trained on, "
             f"else {CONTEXT})")
    add("--eager", action="store_true", help="neither compile nor capture the step on a GPU")


def add_speed_options(group):
    add = group.add_argument
    add("--bench", action="store_true",
        help="time a frame, beside memory bandwidth and the straightforward loop")
    add("--random-weights", choices=flm.PRESETS, metavar="PRESET",
        help=f"a shape alone: {', '.join(flm.PRESETS)}")
    add("--frames", type=int, default=50, metavar="N", help="frames timed (default: %(default)s)")


def add_sampling_options(group):
    for field in fields(Sampling):
        group.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, metavar="X",
                           help=f"(default: the model's sampling.json, else {field.default})")
    group.add_argument("--seed", type=int, default=0,
                       help="the same seed gives the same answer (default: %(default)s)")


def main(arguments=None):
    parser = command_line()
    args = parser.parse_args(arguments)
    try:
        options.check_options(parser, args, [field.name for field in fields(Sampling)])
        run(args)
    except torch.OutOfMemoryError:
        sys.exit("chat.py: the GPU's memory is full: take --bfloat16, --bits 8 or 4, or a smaller "
                 "--context")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sys.exit("chat.py: the memory is full: take fewer --sessions, or a smaller --context")
    except BrokenPipeError:  # nobody reads what is printed; command.run ends quietly
        raise
    except (OSError, ValueError) as error:
        if sys.stdout.isatty():
            print()  # below the status line
        sys.exit(f"chat.py: {error}")


if __name__ == "__main__":
    command.run("chat.py", main)
