"""Listening and speaking at once: the sampler, the frame, and a conversation.

What this is: the model's live loop (section 2.1), token by token the release's, behind a
microphone, a page for the browser, Moshi's clients, or a sound file. In every frame of 80 ms the
model reads what the user and it itself said, and writes its next word and its next 8 codes. There
is no turn-taking: the model is silent when it writes silence. What this is not: the model (flm.py),
the codec (mimi.py), the command line, the sound card and the server (workshop/), or a score
(eval.py).

    python chat.py                                           # microphone and headphones
    python chat.py --serve                                   # a browser, or any Moshi client
    python chat.py --in examples/question.wav --out a.wav    # a sound file
    python chat.py --bench --random-weights 0.5b             # how fast a frame is

A frame has four parts, in this order. Step s reads row s, whose newest part is the user's frame s:

    user_audio s --1 encode_user--> listen codes of s ----+
                                                          +--> row s --2 read_row--> h, text s + 1
    State: text s, code 0 of s, codes 1 .. 7 of s - 1 ----+                             |
      ^                                                                          3 write_codes
      |                                                                                 |
      +------------ text s + 1, code 0 of s + 1, codes 1 .. 7 of s <--------------------+
                                                           |
    model_audio s <--4 decode_model-- codes 0 .. 7 of s <--+

stream.py draws the first four rows of a conversation, and what the steps that read them return.

Unusual here:
- Code 0, the semantic one, stands one row before codes 1 .. 7 of its frame, in both directions. So
  a frame of the model's is complete one step after its code 0 was drawn: step s returns frame s,
  whose word and code 0 stand in row s and whose codes 1 .. 7 were drawn in step s. No word and no
  code 0 of frame 0 was ever drawn: row 0 holds <wait> and a pad in their places. So step 0 returns
  nothing, which in sound is a frame of silence.
- Frame s of the answer stands beside frame s of the question, as in the grid. In a live talk its
  sound begins when the question's frame is over and the step is computed.
- The random numbers of a frame, 0 .. 1, are arguments, and pick the tokens. So a frame can be
  replayed as a CUDA graph, and each conversation of a batch has a seed of its own.
- A conversation has no end, and the memory does not grow: see default_context for what is lost.

Shapes: B conversations, K = 8 codebooks, D model width, V text ids, C audio ids, N samples; P and W
as in State.
"""
import time
from dataclasses import dataclass, fields
from functools import partial
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
from workshop import bench, chat_options, partner_files, sampling_file, sound_card, ways_in
from workshop.answer_end import LONGEST_ANSWER, AnswerWatch
from workshop.graphs import Packet, Runner
from workshop.lean_model import LeanModel
from workshop.model_files import SHIPPED
from workshop.monologue import Monologue, print_nothing

CONTEXT = 4096    # frames (5.5 min) that are remembered where the model does not say
PENALISED = 4     # codebooks 0 .. 3 have a repetition penalty, 4 .. 7 none, as in the release
# Decision: top-p looks at no more tokens than this. Sorting 152,064 takes 9 ms on a CPU, and these
# take 1 ms.
LIKELIEST = 4096
HIGHEST = 1 - 1e-6  # a random number of 1 would point behind the last token


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
    """How tokens are drawn, fields as in Draw; the defaults are the release's. Raises ValueError,
    one sentence, for a number out of range."""
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
            sampling_file.check(field, getattr(self, field.name))

    @classmethod
    def of(cls, folder, **changed):
        """The sampling that a model folder asks for in its sampling.json, else the release's, with
        some fields changed. Raises ValueError that names the file."""
        return cls(**{**sampling_file.read(folder, fields(cls)), **changed})

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


def sample(how, logits, chance, recent=None, is_first=None):
    """logits [B, V or C] -> tokens [B], by a Draw. Nothing here waits for the device.

    chance [B] from 0 to HIGHEST picks the token. recent [B, W]: ids that were drawn lately, which
    the penalty makes less likely; None: no penalty. is_first [B]: nothing was drawn yet, and
    nothing is penalised."""
    logits = logits.float()
    if how.window and recent is not None:
        logits = penalise(how.penalty, logits, recent, is_first)
    if how.temperature < 1e-3:
        return logits.argmax(-1)
    chances = (logits / how.temperature).softmax(-1)
    ids = None
    if how.top_p > 0 or how.top_k > 0:
        count = LIKELIEST if how.top_p > 0 else how.top_k
        chances, ids = chances.topk(min(count, chances.shape[-1]))      # likeliest first
    reached = chances.cumsum(-1)
    total = reached[:, -1:]
    if how.top_p > 0:
        is_kept = reached - chances <= how.top_p                        # the first always stays
        total = (reached * is_kept).amax(-1, keepdim=True)
    place = torch.searchsorted(reached, chance[:, None] * total, right=True)  # [B, 1]
    if ids is not None:
        place = ids.gather(1, place)
    return place[:, 0]


def penalise(penalty, logits, recent, is_first):
    """logits [B, V or C] with those of the ids recent [B, W] made smaller: divided by the penalty
    above 0, multiplied below."""
    penalty = torch.where(is_first, 1.0, penalty)[:, None]  # [B, 1]
    values = logits.gather(1, recent)
    smaller = torch.where(values > 0, values / penalty, values * penalty)
    # An id that stands there twice is written twice, with the same value.
    return logits.scatter(1, recent, smaller)


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
        zeros = partial(torch.zeros, dtype=torch.long, device=device)
        return cls(text=zeros(batch), speak=zeros(batch, K), listen=zeros(batch, K),
                   frames=zeros(batch), recent_text=zeros(batch, sampling.text.window),
                   recent_codes=zeros(batch, PENALISED, sampling.audio.window))

    def start(self, i, config):
        """Conversation i begins: nothing was written, nothing was spoken or heard."""
        self.text[i] = config.wait_token
        self.speak[i] = config.pad_token
        self.listen[i] = config.pad_token
        self.frames[i] = 0


@dataclass
class Tools:
    """What a frame is computed with. The two caches and the codec's states are written in place."""
    model: flm.FLM             # or a LeanModel of it
    codec: mimi.Mimi | None    # None: codes come in, and no sound goes out
    sampling: Sampling
    cache: flm.KVCache         # keys and values of the last frames
    depth_cache: list          # keys and values of the 8 codes in the making


def encode_user(tools, user, hears, active):
    """Part 1: the user's frame as codes -> (listen_codes [B, K],).

    user: samples [B, frame_size] in -1 .. 1 or, without a codec, codes [B, K]. hears [B]: 0 for a
    conversation whose listening channel is empty. active [B]: 0 for one that stands still."""
    if tools.codec is None:
        listen_codes = user.long()
    else:
        tools.codec.active.copy_(active)
        listen_codes = tools.codec.encode_chunk(user[:, None])[..., 0]
    return (torch.where(hears.bool()[:, None], listen_codes, tools.model.config.empty_token),)


def read_row(tools, listen_codes, active, chance, *state):
    """Part 2: the backbone reads a row -> (h [B, D], text [B]): equation (2), and the next text id.

    chance [B] in 0 .. 1 picks it."""
    state = State(*state)
    model = tools.model
    tools.cache.active.copy_(active)
    # The user's acoustic codes are those of the frame before, as in training.
    listen = torch.cat([listen_codes[:, :1], state.listen[:, 1:]], 1)  # [B, K]
    h = model.hidden(state.text[:, None], state.speak[:, None], listen[:, None], tools.cache)
    logits = model.text_logits(h)[:, 0]  # [B, V]
    text = sample(tools.sampling.text, logits, chance, state.recent_text, state.frames == 0)
    return h[:, 0], text


def write_codes(tools, h, text, listen_codes, active, chances, *state):
    """Part 3: the depth transformer writes the next 8 codes, one after the other -> (ids
    [B, 1 + K]: the text id and the codes of the frame that is complete now; and the six tensors of
    the new State).

    h [B, D]; chances [B, K] in 0 .. 1 pick the codes."""
    state = State(*state)
    how = tools.sampling.audio
    is_first = state.frames == 0
    codes = text.new_zeros(len(text), 0)
    for c in range(K):
        logits = tools.model.depth_logits(h, codes, tools.depth_cache)[:, 0]  # [B, C]
        recent = None
        if c < PENALISED:
            recent = state.recent_codes[:, c]
        code = sample(how, logits, chances[:, c], recent, is_first)
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
    """Part 4: the model's frame as sound -> (answer [B, 1 + K + frame_size],): text id, codes,
    samples.

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

    user, hears, active: see encode_user; hears None: all listening channels are empty.
    chances [B, 1 + K] in 0 .. 1: the random numbers of the frame. run(function, tools, *tensors)
    calls each of the four parts; it may be a graph, so parts take tensors and return tuples of
    them."""
    if hears is None:
        listen_codes = torch.full_like(state.listen, tools.model.config.empty_token)
    else:
        listen_codes, = run(encode_user, tools, user, hears, active)
    h, text = run(read_row, tools, listen_codes, active, chances[:, 0], *state)
    ids, *later = run(write_codes, tools, h, text, listen_codes, active, chances[:, 1:], *state)
    answer, = run(decode_model, tools, ids, active)
    return State(*later), answer


# --- a conversation ---

def default_context(config):
    """Frames that a conversation with a model of this flm.Config remembers.

    The cache is a ring: when it is full, the newest frame takes the place of the oldest. A
    conversation that is longer than the ring loses the keys and values of its first frames. They
    are not wholly forgotten. With 4 places, in frame 6:

        layer 1 reads    frames 3 4 5 6, keys and values of one frame's embedding each
        layer 2 reads    the same places; what layer 1 wrote for frame 3 had read frames 0 .. 3

    So the first layer alone forgets strictly. The deeper ones reach further back, through hidden
    states that had read earlier frames and still hold what these told them.

    Attention between frames that are farther apart than the sequences of training ever were is
    undefined: a model that was trained on sequences of 640 frames and remembers 4,096 falls silent
    after a minute and never speaks again. So a model folder says how long its sequences were
    (`trained_frames`), and no more is remembered.
    Decision: where it does not say, as the release does not, CONTEXT, half of the paper's sequences
    of 8,192 (section 3.1). The paper does not say how much a live conversation remembers. Every
    distance up to a half occurs in at least half of the places of a sequence, so it was trained
    well; and the cache takes half the memory: for the 7B in bfloat16 0.23 GB in place of 0.47."""
    return min(config.trained_frames or CONTEXT, config.max_position_embeddings)


class Duplex:
    """`batch` conversations with a model: `step`, or `steps`, takes what the user says in a frame
    and returns what the model says in it. That is codes; with a codec it is sound.

    context: frames that are remembered; None: as many as `default_context` says. fast: compile the
    frame, on CUDA as graphs. lean: on a CPU, where nothing is compiled, compute in fewer calls.
    timer(name of a part, call), where there is one, must return what call() returns. state: a
    State; read it, and change it through `steps` alone."""

    def __init__(self, model, sampling=Sampling(), context=None, batch=1, fast=False, codec=None,
                 lean=True, timer=None):
        config = model.config
        weight = model.model.norm.weight
        device = weight.device
        context = min(context or default_context(config), config.max_position_embeddings)
        is_lean = lean and device.type == "cpu" and not fast
        dtype = torch.float32 if is_lean else weight.dtype
        self.cache = flm.KVCache(config, batch, context, device, dtype)
        depth_cache = flm.depth_cache(config, batch, device, dtype)
        self.codec = None
        if codec:
            self.codec = partner_files.with_streams_of_its_own(codec, batch, compiled=fast)
        self.model = model
        self.sampling = sampling
        self.batch = batch
        frame_model = LeanModel(model) if is_lean else model
        self.tools = Tools(frame_model, self.codec, sampling, self.cache, depth_cache)
        self.state = State.zeros(batch, sampling, device)
        self.generators = [None] * batch
        size = codec.config.frame_size if codec else K
        self.packet = Packet(batch, 1 + K, size, device)
        self.runner = Runner(fast, device, timer)
        for i in range(batch):
            self.reset(i)
        if fast:
            self.cache.fixed = True
            self.advance()  # nobody is active: it compiles, and changes nothing

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
    def steps(self, user, force_text=None, force_speak=None):
        """A frame of some conversations: {i: samples [frame_size], without a codec codes [8]} ->
        {i: (text id, a list of 8 codes, samples [frame_size] or none)}.

        Those that are not named stand still. The first frame stands for nothing: <wait>, codes that
        begin with a pad, silence. A user who is None is an empty channel, as if there were no
        microphone.
        force_text {i: id} and force_speak {i: codes [8]} stand in the row that this frame writes,
        in place of what the model drew."""
        self.packet.clear()
        for i, values in user.items():
            chances = torch.rand(1 + K, generator=self.generators[i]).clamp(max=HIGHEST)
            self.packet.put(i, chances, values)
        answer = self.advance()
        answer = answer.to("cpu", copy=True)  # the frame's one wait for the device
        for i, token in (force_text or {}).items():
            self.state.text[i] = token
        for i, codes in (force_speak or {}).items():
            self.state.speak[i] = torch.as_tensor(codes)
        ids = answer[:, :1 + K].long().tolist()
        return {i: (ids[i][0], ids[i][1:], answer[i, 1 + K:]) for i in user}

    @torch.inference_mode()
    def advance(self):
        """A frame with the packet as it stands -> answer [B, 1 + K + frame_size], on the device."""
        inputs = self.packet.send()  # user, hears, active, chances
        self.state, answer = frame(self.tools, self.state, *inputs, self.runner.run)
        return answer


class Partner:
    """A model folder ready to talk: language model, codec, tokenizer, and a warm Duplex.

    shape: context, batch and fast of Duplex. Raises ValueError, one sentence."""

    def __init__(self, folder, sampling, device="cpu", dtype=torch.float32, bits=16,
                 codec_bits=32, **shape):
        parts = partner_files.read(folder, device, dtype, bits, codec_bits)
        self.model, self.codec, self.tokenizer = parts
        self.shape = shape
        self.sample_with(sampling)

    def sample_with(self, sampling):
        """A Duplex with this sampling. It holds a short conversation, so that the first frame of
        the next one is as fast as the others."""
        self.duplex = Duplex(self.model, sampling, codec=self.codec, **self.shape)
        silence = torch.zeros(3, self.codec.config.frame_size)
        for _ in self.hold(silence, self.monologue(print_nothing)):
            pass

    def monologue(self, write=print, stamps=True):
        """What turns the text ids of a conversation into words, and writes them -> Monologue"""
        return Monologue(self.tokenizer, self.model.config.wait_token, write, stamps)

    def hold(self, frames, monologue, seed=None, record=None):
        """One conversation, frame by frame -> (user_audio, model_audio, seconds it took) for each.

        frames: the user's, [frame_size] samples each, of any source that can be iterated. record: a
        Record for both voices."""
        self.duplex.reset(seed=seed)
        for i, user_audio in enumerate(frames):
            start = time.perf_counter()
            text, _, model_audio = self.duplex.steps({0: user_audio})[0]
            seconds = time.perf_counter() - start
            monologue.add(i / self.codec.config.frame_rate, text)
            if record:
                record.write(user_audio, model_audio)
            yield user_audio, model_audio, seconds
        monologue.close()

    def converse(self, audio, monologue, seed=None, record=None, tail=0.0):
        """Talk with a recording: audio float32 [N] -> (user_audio [M], model_audio [M], seconds
        that each frame took).

        The model gets the recording frame by frame, as from a microphone, and knows nothing of what
        comes later. tail: seconds of silence after it; None: until AnswerWatch sees the answer's
        end, LONGEST_ANSWER seconds at most. A Ctrl-C ends the talk early."""
        config = self.codec.config
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
            for user_audio, model_audio, took in self.hold(user_frames(), monologue, seed, record):
                watch.add(bool(monologue.ids), model_audio)
                voices.append(torch.stack([user_audio, model_audio]))
                seconds.append(took)
        except KeyboardInterrupt:
            monologue.close()
            command.note_stop("chat.py: stopped; what follows is of the frames so far")
        user_audio, model_audio = torch.cat(voices, 1)
        if tail is None:
            return user_audio, model_audio, seconds
        return user_audio[:length], model_audio[:length], seconds


# --- command line ---

def main(arguments=None):
    with chat_options.errors_in_one_sentence():
        args = chat_options.read(arguments, Sampling, SHIPPED, CONTEXT)
        if args.way == "devices":
            sound_card.list_devices()
        elif args.way == "bench":
            bench.bench(args, Duplex)
        else:
            partner = Partner(args.model, args.sampling, args.device, args.dtype, args.bits,
                              args.codec_bits, **args.shape)
            ways_in.talk(partner, args)


if __name__ == "__main__":
    command.run("chat.py", main)
