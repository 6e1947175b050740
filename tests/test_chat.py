"""The duplex loop against the release's own sessions, the sampler against hand-worked answers, the
command's errors."""
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import chat
import flm
from chat import Draw, Duplex, Monologue, Sampling, sample
from workshop import bench, command, graphs, half_products, model_files, quantize
from workshop.lean_model import LeanModel
from workshop.record import Record

REFERENCE = Path(__file__).parent / "reference"


def session(duplex, listen):
    """Frames heard -> [T, 9] of text and codes, -1 where nothing was returned."""
    frames = [duplex.step(codes) for codes in listen]
    return torch.tensor([[-1] * 9 if frame is None else [frame[0], *frame[1]] for frame in frames])


@pytest.mark.parametrize("name", ["flm_small", "flm_small_mup"])
@pytest.mark.parametrize("golden, sampling", [
    ("stream_greedy", Sampling.greedy()),
    ("stream_greedy_rep", Sampling.greedy(penalty_text=1.03, penalty_audio=1.2)),
])
def test_session_is_the_release_s(name, golden, sampling):
    """Catches any difference in delays, start row, depth order or repetition penalty."""
    tensors = load_file(REFERENCE / name / "golden.safetensors")
    expected = tensors[golden].long()
    frames = session(Duplex(model_files.load(REFERENCE / name), sampling), tensors["stream_listen"])
    different = (frames != expected).any(1).nonzero()
    assert not len(different), f"first difference in frame {different[0].item()}"


@pytest.mark.parametrize("sampling", [
    Sampling.greedy(), Sampling(temperature_text=1.0, temperature_audio=1.0)])
def test_a_ring_that_has_not_turned_changes_nothing(sampling):
    """Catches a ring, or a masked cache as on a GPU, that differs from one with room for all; and
    one that ends, grows, forgets nothing, or leaves the positions that the model has (64 here) when
    it has turned."""
    model = model_files.load(REFERENCE / "flm_small")
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"]
    listen = torch.cat([listen] * 10)[:200]

    def tokens(context, fixed=False):
        duplex = Duplex(model, sampling, context)
        duplex.cache.fixed = fixed
        duplex.reset(seed=3)
        return session(duplex, listen)
    roomy = tokens(64)
    small = tokens(24)
    assert torch.equal(small[:24], roomy[:24]) and not torch.equal(small, roomy)
    assert torch.equal(tokens(24, fixed=True), small)


def test_conversations_of_a_batch_are_as_alone():
    """Catches sampling, penalties or codes that mix conversations, one that is disturbed when
    another starts again, and one that moves without a frame."""
    model = model_files.load(REFERENCE / "flm_small")
    sampling = Sampling(temperature_text=1.0, temperature_audio=1.0)
    generator = torch.Generator().manual_seed(0)
    listen = torch.randint(0, model.config.empty_token, (3, 30, 8), generator=generator)

    def alone(i, count):
        duplex = Duplex(model, sampling, 24)
        duplex.reset(seed=i)
        return [duplex.step(codes) for codes in listen[i, :count]]
    duplex = Duplex(model, sampling, 24, batch=3)
    answers = [[], [], []]
    for i in range(3):
        duplex.reset(i, seed=i)
    for t in range(40):
        if t == 15:  # the second conversation is left; another one takes its seat
            duplex.reset(1, seed=1)
            first = answers[1]
            answers[1] = []
        turn = [i for i in range(3) if (t + i) % 3 and len(answers[i]) < 30]
        step = duplex.steps({i: listen[i, len(answers[i])] for i in turn})
        for i, (text, speak_codes, _) in step.items():
            answers[i].append((text, speak_codes) if answers[i] else None)
    assert answers == [alone(i, len(answers[i])) for i in range(3)]
    assert first == alone(1, len(first))
    assert min(len(answer) for answer in answers) > 10


@pytest.mark.parametrize("depth", [
    {}, {"depth_cmlp": False, "depth_swiglu": False, "depth_rmsnorm": False, "depth_bias": True}])
@pytest.mark.parametrize("weights", ["float32", "half", "bfloat16", 8, 4])
def test_the_lean_model_says_what_the_model_says(depth, weights):
    """Catches a lean model that differs from the one in flm.py by more than rounding: in weights
    that were joined in the wrong order, at any of the 8 positions, in a batch of which one stands
    still, past the ring's turn, with weights that stand in memory as float16, or packed ones."""
    torch.manual_seed(0)
    dtype = torch.float32 if weights in ("float32", "half") else torch.bfloat16
    config = dataclasses.replace(flm.PRESETS["tiny"], num_hidden_layers=2, use_mup=True,
                                 input_mult=1.5, output_mult=2.0, mup_scale_factor=3.0, **depth)
    model = flm.init_weights(flm.FLM(config), dtype=dtype).eval()
    for name, parameter in model.named_parameters():  # biases and norms of their own
        if parameter.ndim == 1:
            parameter.data = torch.randn_like(parameter)
        if weights == "half":
            parameter.data = parameter.data.half().float()
    if weights in (8, 4):
        quantize.pack(model, weights)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lean = LeanModel(model)
    if half_products.available():
        is_half = isinstance(lean.lm_head, half_products.HalfProduct)
        assert is_half == (weights in ("half", "bfloat16"))
    caches = []
    for one in (model, lean):
        cache_dtype = torch.float32 if one is lean else dtype
        cache = flm.KVCache(config, 2, 6, dtype=cache_dtype)
        depth_cache = flm.depth_cache(config, 2, dtype=cache_dtype)
        caches.append((one, cache, depth_cache))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for t in range(10):
        rows = [torch.randint(0, 512, shape) for shape in ((2, 1), (2, 1, 8), (2, 1, 8))]
        codes = torch.randint(0, 512, (2, 7))
        results = []
        for one, cache, depth_cache in caches:
            cache.active.copy_(torch.tensor([1, t % 3 > 0]))
            with torch.inference_mode():
                h = one.hidden(*rows, cache)
                values = [one.depth_logits(h[:, 0], codes[:, :c], depth_cache) for c in range(8)]
                results.append(torch.cat([one.text_logits(h), *values], -1).float())
        difference = (results[0] - results[1]).norm() / results[0].norm()
        assert difference < tolerance, (t, difference)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_lean_conversation_is_the_same():
    """Catches a lean frame that draws another token anywhere: the shipped sampling, a ring that
    turns, and a second Duplex of the same model, whose weights are joined already."""
    model = model_files.load(REFERENCE / "flm_small")
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"]
    for sampling in (Sampling(), Sampling(top_p_audio=0.0, top_k_audio=5, temperature_text=1.0)):
        sessions = []
        for lean in (False, True):
            duplex = Duplex(model, sampling, 12, lean=lean)
            duplex.reset(seed=4)
            sessions.append(session(duplex, listen))
        assert isinstance(duplex.tools.model, LeanModel)
        assert torch.equal(*sessions)


def test_a_lean_conversation_with_the_shipped_model_is_the_same(shipped):
    """Catches a product with weights in float16 that rounds more than a sum does."""
    model = model_files.load(shipped)
    generator = torch.Generator().manual_seed(0)
    listen = torch.randint(0, 512, (40, 8), generator=generator)
    sessions = []
    for lean in (False, True):
        duplex = Duplex(model, Sampling.of(shipped), lean=lean)
        duplex.reset(seed=2)
        sessions.append(session(duplex, listen))
    assert torch.equal(*sessions)


def test_an_empty_channel_and_forced_rows():
    """Catches a user who is not there and is heard all the same, in codes or in a batch beside one
    who is; and forced tokens that are not the ones of the next row."""
    model = model_files.load(REFERENCE / "flm_small")
    empty = torch.full((8,), model.config.empty_token)
    codes = torch.arange(8)
    both = Duplex(model, Sampling.greedy(), batch=2)
    for _ in range(6):
        step = both.steps({0: None, 1: codes}, force_text={1: 7}, force_speak={0: codes + 1})
    assert both.state.listen.tolist() == [empty.tolist(), codes.tolist()]
    assert both.state.text[1] == 7 and both.state.speak[0].tolist() == (codes + 1).tolist()
    assert step[1][0] == 7 and step[0][1][0] == 1
    alone = Duplex(model, Sampling.greedy())
    for _ in range(6):
        step = alone.steps({0: None}, force_speak={0: codes + 1})
    assert torch.equal(alone.state.text[0], both.state.text[0])


def test_penalty_by_hand():
    """Catches a penalty of the wrong sign: 2 / 1.5 < 1.9, and -1 x 1.5 < -1.2; and one applied
    twice: 3 / 1.5 > 1.5."""
    def greedy(logits, recent):
        how = Draw(temperature=0, top_p=0, top_k=0, penalty=1.5, window=len(recent))
        recent = torch.tensor([recent], dtype=torch.long)
        is_first = torch.tensor([False])
        return sample(how, torch.tensor([logits]), torch.zeros(1), recent, is_first).item()
    assert greedy([2.0, 1.9], []) == 0
    assert greedy([2.0, 1.9], [0, 0]) == 1
    assert greedy([-1.0, -1.2], [0]) == 1
    assert greedy([3.0, 1.5], [0, 0]) == 0


def test_top_p_and_top_k_by_hand():
    """Catches cutting one token too early or too late, and draws that are not the distribution's.
    Probabilities 0.3, 0.5, 0.2, so preceding sums 0.5, 0, 0.8."""
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log().expand(200, -1)
    chance = torch.arange(200) / 200

    def counts(top_p, top_k):
        how = Draw(temperature=1, top_p=top_p, top_k=top_k, penalty=1, window=0)
        tokens = sample(how, logits, chance)
        return torch.bincount(tokens, minlength=3).tolist()
    assert counts(0.4, 0) == [0, 200, 0]
    assert counts(0.55, 0) == pytest.approx([75, 125, 0], abs=1)
    assert counts(0.9, 1) == pytest.approx([60, 100, 40], abs=1)  # top_p goes before top_k
    assert counts(0, 2) == pytest.approx([75, 125, 0], abs=1)
    assert counts(0, 0) == pytest.approx([60, 100, 40], abs=1)


def test_sampled_session_repeats_with_its_seed():
    """Catches a sampler that draws from anything but torch's generator."""
    model, listen = model_files.load(REFERENCE / "flm_small"), torch.zeros(20, 8, dtype=torch.long)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(session(Duplex(model, Sampling(temperature_text=1.0, temperature_audio=1.0)), listen))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_sampling_refuses_nonsense():
    with pytest.raises(ValueError, match="top_p_audio must be 0 .. 1, not 1.5"):
        Sampling(top_p_audio=1.5)
    for nonsense in ({"temperature_text": float("nan")}, {"top_k_text": 1.5}, {"window_audio": True}, {"penalty_text": 0},
                     {"temperature_audio": "hot"}):
        with pytest.raises((ValueError, TypeError), match="must be"):
            Sampling(**nonsense)


def test_monologue_prints_words_as_they_come(capsys):
    """Catches words held back or written twice, a character of two ids shown by halves, and a long answer that loses its start."""
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")
    monologue = Monologue(Bytes(), wait_token=0)
    for i, text_id in enumerate([0, *"hé".encode(), 0, *"ok".encode()]):
        monologue.add(i * 0.08, text_id)
    monologue.close()
    assert monologue.lines == [(0.08, "hé"), (0.4, "ok")]
    assert capsys.readouterr().out == "   0.08 s  hé\n   0.40 s  ok\n"
    for text_id in (answer := "é, und so weiter " * 20).encode():
        monologue.add(1, text_id)
    assert monologue.lines[-1] == (1, answer) and capsys.readouterr().out == f"   1.00 s  {answer}"


def run(*arguments):
    """The command -> None, or the one sentence it ends with."""
    try:
        chat.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture
def question(tmp_path):
    """Half a second of a tone, stereo, 16 kHz, in a compressed format."""
    wave = 0.3 * np.sin(np.arange(8000) * 0.1)
    soundfile.write(tmp_path / "q.mp3", np.stack([wave, 0 * wave], 1), 16_000)
    return tmp_path / "q.mp3"


def test_errors_are_one_sentence(tmp_path, question):
    """Catches tracebacks, and files of the user's that would be lost."""
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), 24_000, subtype="FLOAT")
    (tmp_path / "kept.wav").write_bytes(b"mine")
    (tmp_path / "a.raw").write_bytes(b"samples")
    for arguments, sentence in [
        (("--in", tmp_path / "none.wav", "--out", tmp_path / "a.wav"), "none.wav does not exist"),
        (("--in", tmp_path / "noise.wav", "--out", tmp_path / "a.wav"), "noise.wav cannot be read as audio"),
        (("--in", question, "--out", question), "is what is read"),
        (("--in", question, "--out", tmp_path / "kept.wav"), "kept.wav exists"),
        (("--in", question, "--out", tmp_path / "a.xyz"), "no sound format"),
        (("--in", question, "--out", tmp_path / "no" / "a.wav"), "is no folder to write"),
        (("--in", question, "--out", tmp_path / "a.wav", "--model", tmp_path), "config.json is missing"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", -1), "--tail must be 0 .. 3600, not -1.0"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", "inf"), "--tail must be 0 .. 3600"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", 1e8), "--tail must be 0 .. 3600"),
        (("--in", question, "--out", tmp_path / "a.wav", "--seed", 10**30), "--seed must be 0 .. "),
        (("--in", question, "--out", tmp_path / "a.wav", "--device", "meta"), "--device meta cannot be used here"),
        (("--in", question, "--out", tmp_path / "a.wav", "--temperature-audio", "nan"), "--temperature-audio must be 0 .. 100, not nan"),
        (("--in", question, "--out", tmp_path), "is a folder"),
        (("--in", tmp_path, "--out", tmp_path / "a.wav"), "is a folder"),
        (("--in", question), "--in and --out go together"),
        (("--in", tmp_path / "nan.wav", "--out", tmp_path / "a.wav"), "nan.wav holds samples that are no numbers"),
        (("--in", question, "--out", tmp_path / "a.wav", "--device", "cuda:7"), "--device cuda:7 cannot be used here"),
        (("--in", tmp_path / "a.raw", "--out", tmp_path / "a.wav"), "a.raw cannot be read as audio"),
        (("--serve", 99_999), "--serve takes a port from 1 to 65535"),
        (("--in", question, "--out", tmp_path / "a.wav", "--serve"), "choose one"),
        (("--in", question, "--out", tmp_path / "a.wav", "--record", tmp_path / "a.wav"), "a file of its own"),
        (("--in", question, "--out", tmp_path / "a.wav", "--record", tmp_path / "." / "A.wav"), "a file of its own"),
        (("--in", question, "--out", tmp_path / "a.wav", "--record", question), "a record is a .wav"),
        (("--replay", tmp_path / "noise.wav"), "is no conversation that --record kept"),
        (("--replay", tmp_path / "none.wav"), "none.wav does not exist"),
    ]:
        said = run(*arguments)
        assert isinstance(said, str) and sentence in said and "\n" not in said, said
    assert (tmp_path / "kept.wav").read_bytes() == b"mine" and not (tmp_path / "a.wav").exists()


def test_a_recorded_conversation_can_be_held_again(tmp_path, untrained, question, capsys):
    """Catches an answer that follows from anything but sound, seed and settings; and a record that is not what was heard."""
    both = tmp_path / "both.wav"
    assert run("--in", question, "--out", tmp_path / "a.wav", "--tail", 1, "--model", untrained, "--record", both, "--seed", 5,
               "--context", 30) is None
    assert run("--replay", both, "--model", untrained) is None
    assert "the answer is the same, sample for sample" in capsys.readouterr().out
    sound, rate = soundfile.read(both)
    assert rate == 24_000 and np.abs(sound[:, 0]).max() > 0.1 and np.abs(sound[:, 1]).max() > 0
    sound[30_000:40_000, 1] += 0.01
    with soundfile.SoundFile(both) as file:
        comment = file.comment
    assert json.loads(comment)["context"] == 30
    with soundfile.SoundFile(both, "w", rate, 2, "FLOAT") as file:
        file.comment = comment
        file.write(sound)
    run("--replay", both, "--model", untrained)
    assert "the answer differs from 1.25 s on" in capsys.readouterr().out
    assert "exists" in run("--in", question, "--out", tmp_path / "b.wav", "--model", untrained, "--record", both)


@pytest.mark.parametrize("arguments, sentence", [
    ("--bench --record r.wav", "--record has no effect with --bench: it goes with --in or a microphone"),
    ("--random-weights tiny", "--random-weights has no effect with a microphone: it goes with --bench"),
    ("--frames 3 --serve", "--frames has no effect with --serve: it goes with --bench"),
    ("--codec-bits 16 --device cuda", "--codec-bits 16 has no effect with --device cuda: it goes with cpu"),
    ("--bench --random-weights tiny --model folder", "different models: choose one"),
    ("--replay both.wav --seed 3", "--seed has no effect with --replay"),
    ("--replay both.wav --context 30", "--context has no effect with --replay"),
    ("--replay both.wav --top-p-audio 0.5", "--top-p-audio has no effect with --replay"),
    ("--stereo", "--stereo has no effect with a microphone: it goes with --in"),
    ("--tail 0", "--tail has no effect with a microphone: it goes with --in"),
    ("--overwrite", "--overwrite has no effect without --out or --record"),
    ("--token secret", "--token has no effect with a microphone: it goes with --serve"),
    ("--sessions 3 --in q.wav --out a.wav", "--sessions has no effect with --in: it goes with --serve"),
    ("--input-device 1 --in q.wav --out a.wav", "--input-device has no effect with --in: it goes with a microphone"),
    ("--list-devices --seed 3", "--seed has no effect with --list-devices"),
    ("--serve --replay both.wav", "different ways in: choose one"),
    ("--bench --serve", "different ways in: choose one"),
])
def test_options_without_effect_are_refused(arguments, sentence):
    """Catches an option that is taken and ignored, so that somebody believes in what never
    happened."""
    message = run(*arguments.split())
    assert isinstance(message, str) and sentence in message and "\n" not in message, message


@pytest.mark.parametrize("content, sentence", [
    ("[1]", "it must hold an object"), ("null", "it must hold an object"), ('"hot"', "it must hold an object"),
    ('{"temperature_text": {"value": 1}}', "temperature_text must be 0 .. 100"),
    ('{"heat": 1}', "no setting is called heat"), ("{", "Expecting"), ("[" * 100_000, "recursion"),
])
def test_a_damaged_sampling_file(tmp_path, content, sentence):
    """Catches a traceback, or Python's own words, for JSON of the wrong kind."""
    (tmp_path / "sampling.json").write_text(content)
    with pytest.raises(ValueError) as error:
        Sampling.of(tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "sampling.json")), message
    assert sentence in message and len(message) < 300, message


class ScriptedPartner(chat.Partner):
    """A partner that thinks and sounds in the frames it is told to: frames, of 80 ms, counted from
    the first."""

    def __init__(self, thinks=(), sounds=()):
        self.thinks, self.sounds = thinks, sounds
        config = types.SimpleNamespace(sample_rate=24_000, frame_size=1920, frame_rate=12.5)
        self.codec = types.SimpleNamespace(config=config)
        self.duplex = self

    def reset(self, seed):
        self.frame = 0

    def steps(self, user_audio):
        text = int(self.frame in self.thinks)
        model_audio = torch.full((1920,), 0.1 if self.frame in self.sounds else 1e-4)
        self.frame += 1
        return {0: (text, None, model_audio)}

    def monologue(self):
        decoder = types.SimpleNamespace(decode=lambda ids, skip_special_tokens: "word " * len(ids))
        return Monologue(decoder, 0, print=lambda *_, **__: None)


@pytest.mark.parametrize("thinks, sounds, ends", [
    # Nobody answers: 4 s after the user's last sound.
    ([], [], 25 + 50),
    # 2 s after the answer's last sound.
    (range(28, 30), range(30, 50), 50 + 25),
    # It begins late.
    (range(60, 64), range(62, 100), 100 + 25),
    # A pause of 1.2 s stands in the answer.
    (range(28, 30), [*range(30, 40), *range(55, 60)], 60 + 25),
    # It spoke while the user did, and not since.
    (range(10, 12), range(12, 20), 25 + 50),
    # It never ends: 60 s after the file.
    (range(28, 10_000), [], 30 + 750),
])
def test_an_answer_is_heard_to_its_end(thinks, sounds, ends):
    """Catches a file's end, a pause, or a late start taken for the end of the answer; and a wait
    without end."""
    partner = ScriptedPartner(thinks, sounds)
    question = torch.cat([torch.full((25 * 1920,), 0.1), torch.zeros(5 * 1920)])
    monologue = partner.monologue()
    user_audio, model_audio, seconds = partner.converse(question, monologue, tail=None)
    assert len(user_audio) == len(model_audio) == ends * 1920 and len(seconds) == ends
    assert torch.equal(user_audio[:len(question)], question)
    assert not user_audio[len(question):].any()


@pytest.mark.parametrize("tail, length", [(0.0, 30_000), (1.5, 66_000)])
def test_a_tail_is_exact(tail, length):
    """Catches an answer of another length than was asked for."""
    partner = ScriptedPartner(range(10_000))
    question = torch.ones(30_000)
    user_audio, model_audio, _ = partner.converse(question, partner.monologue(), tail=tail)
    assert len(user_audio) == len(model_audio) == length


def test_the_first_command_of_a_newcomer(tmp_path, shipped, capsys):
    """Catches an answer that is cut off, or never begun, because nobody asked for silence after the
    question."""
    question = Path(__file__).parent.parent / "examples" / "question.wav"
    answer = tmp_path / "a.wav"
    assert run("--in", question, "--out", answer) is None
    assert "The capital of France is Paris." in capsys.readouterr().out
    sound, rate = soundfile.read(answer)
    begins = soundfile.info(question).frames
    assert np.abs(sound[begins:]).max() > 0.05 and np.abs(sound[-rate:]).max() < 0.01
    assert len(sound) < begins + 8 * rate


def test_a_record_that_fails_costs_no_answer(tmp_path, untrained, question, monkeypatch, capsys):
    """Catches an answer that is lost because the disk of the record is full, a record that is lost
    with it, and success reported."""
    whole = Record.write

    def fail(self, *voices):
        if self.frames >= 3 * 1920:
            self._end_early(OSError("No space left on device"))
        whole(self, *voices)
    monkeypatch.setattr(Record, "write", fail)
    answer, both = tmp_path / "a.wav", tmp_path / "both.wav"
    message = run("--in", question, "--out", answer, "--tail", 0, "--record", both,
                  "--model", untrained)
    assert "both.wav ends after 0.2 s" in message and "No space left" in message
    assert "the conversation goes on" in capsys.readouterr().err
    assert soundfile.info(answer).frames == 12_000 and soundfile.info(both).frames == 3 * 1920
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "both.wav", "q.mp3"]


def test_an_answer_that_fails_costs_no_record(tmp_path, untrained, question, monkeypatch):
    """Catches a record, or the answer itself, that is lost because the disk of the answer has
    filled in the meantime."""
    write = Path.write_bytes

    def fail(self, data):
        if self.parent == tmp_path:
            raise OSError(28, "No space left on device")
        return write(self, data)
    monkeypatch.setattr(Path, "write_bytes", fail)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    both = tmp_path / "both.wav"
    message = run("--in", question, "--out", tmp_path / "a.flac", "--tail", 0, "--record", both,
                  "--model", untrained)
    assert "a.flac cannot be written: No space left on device; it is kept in" in message
    assert soundfile.info(message.split()[-1]).frames == 12_000
    assert soundfile.info(both).frames == 7 * 1920


def test_an_answer_is_written_though_nobody_reads_on(tmp_path, untrained, question):
    """Catches an answer that is lost behind `| head -1`."""
    chat_py = Path(__file__).parent.parent / "chat.py"
    command = (f"{sys.executable} {chat_py} --in {question} --out {tmp_path / 'a.wav'} --tail 1 "
               f"--model {untrained} | (head -c 1; exec 0<&-)")
    ended = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Error" not in ended.stderr, ended.stderr
    assert soundfile.info(tmp_path / "a.wav").frames == 36_000


def test_ctrl_c_while_loading_is_one_line():
    """Catches a traceback of the imports, which take seconds, and an exit code that a script takes
    for success."""
    root = Path(__file__).parent.parent
    code = ("import os, signal, sys; sys.path.insert(0, sys.argv[1]); "
            "from workshop import command; command.stop_while_loading('chat.py'); "
            "os.kill(os.getpid(), signal.SIGINT); import torch")
    ended = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stderr.strip() == "chat.py: stopped"
    for name in ("chat.py", "mimi.py", "stream.py", "data.py", "train.py", "eval.py"):
        text = (root / name).read_text()
        before, _, after = text.partition(f'command.stop_while_loading("{name}")')
        assert "import torch" not in before and "import torch" in after


def test_ctrl_c_ends_every_command_alike(capsys, monkeypatch):
    """Catches an exit code that a script takes for success or for an error of the user's: 130 is
    what a shell reports of a program that was stopped, also when it still puts away its answer."""
    def stop():
        raise KeyboardInterrupt

    def stop_and_save():
        command.note_stop("chat.py: stopped; the answer so far is kept")
    monkeypatch.setattr(command, "stops", [])
    for main, sentence in [(stop, "chat.py: stopped; go on"),
                           (stop_and_save, "chat.py: stopped; the answer so far is kept")]:
        with pytest.raises(SystemExit) as end:
            command.run("chat.py", main, "stopped; go on")
        assert end.value.code == 130
        assert capsys.readouterr().err == f"\n{sentence}\n"
    root = Path(__file__).parent.parent
    for name in ("data.py", "train.py", "eval.py"):
        text = (root / name).read_text()
        assert f'command.run("{name}", main' in text
        assert "KeyboardInterrupt" not in text


@pytest.mark.parametrize("bits, text, codes", [(8, 1e-4, 1e-4), (4, 0.02, 0.02)])
def test_packed_weights(untrained, bits, text, codes):
    """Catches a wrong scale, offset, padding or order of packed weights; and layers that are left whole."""
    model = model_files.load(untrained, dtype=torch.bfloat16, convert=quantize.packing(bits)).eval()
    packed = [m for m in model.modules() if isinstance(m, quantize.Packed)]
    assert len(packed) == 6 * 7 + 1 + 3 * (2 + 8 * 3) + 8
    linear = torch.nn.Linear(300, 70).bfloat16()
    x = torch.randn(2, 3, 300, dtype=torch.bfloat16)
    error = (quantize.Packed(linear, bits)(x) - linear(x)).float().std() / linear(x).float().std()
    assert error < (0.02 if bits == 8 else 0.15), error
    kl = bench.divergence(model, untrained, "cpu")
    assert 0 <= kl[0] < text and 0 <= kl[1] < codes, kl


def test_bench(capsys, untrained):
    """Catches a report that does not run, or whose last line does not say what it promises."""
    assert run("--bench", "--model", untrained, "--frames", 3, "--bits", 8) is None
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["ms_per_frame"]["median"] <= report["ms_per_frame"]["p99"] <= report["ms_per_frame"]["worst"]
    assert set(report["split_ms"]) == {"encode", "backbone", "depth", "decode"} and report["dtype"] == "bfloat16"
    assert report["weight_bytes_per_frame"] > 8e6 and 0 < report["bandwidth_share"] and report["bandwidth_bytes_per_s"] > 1e8
    assert report["device"] and report["kl_nats"]["codes"] >= 0


def test_the_straightforward_loop_says_the_same():
    """Catches a comparison with a loop that does something else."""
    model, s = model_files.load(REFERENCE / "flm_small"), Sampling.greedy()
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"].tolist()
    loop, duplex, heard = bench.StraightforwardLoop(model), Duplex(model, s), [model.config.pad_token] * 8
    row = (model.config.wait_token, [model.config.pad_token] * 8)
    for codes in listen:
        duplex.step(codes)
        row, heard = loop.step(*row, [codes[0], *heard[1:]]), codes
        assert [row[0], *row[1]] == [duplex.state.text[0], *duplex.state.speak[0]]


def test_a_compiled_step_says_the_same(pytestconfig):
    """Catches a step that cannot be compiled whole, or that is compiled anew for each frame. Takes a C++ compiler, and minutes."""
    if not pytestconfig.getoption("long"):
        pytest.skip("--long compiles the step")
    model = model_files.load(REFERENCE / "flm_small")
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"]
    for sampling in (Sampling.greedy(1.03, 1.2), Sampling(temperature_text=1.0)):
        eager, fast = Duplex(model, sampling, 24), Duplex(model, sampling, 24, fast=True)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        eager.reset(seed=1), fast.reset(seed=1)
        assert torch.equal(session(eager, listen), session(fast, listen))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_a_whole_frame_can_be_compiled(untrained, monkeypatch):
    """Catches a look at a value within a frame, codec included (fullgraph refuses it), and a part
    that is compiled anew."""
    aot_eager = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", aot_eager)
    assert_fast_equals_eager(untrained)


def test_a_whole_frame_can_be_captured(untrained, monkeypatch):
    """Catches what a CUDA graph would: an argument that moves and is not copied to the buffer that
    the graph reads, and a result that is read after the next replay has overwritten it."""
    def record(call, buffers):
        outputs = tuple(output.clone() for output in call(*buffers))

        def replay():
            for output, value in zip(outputs, call(*buffers)):
                output.copy_(value)
        return replay, outputs
    init = graphs.Runner.__init__

    def init_as_on_cuda(self, fast, device, timer):
        init(self, fast, device, timer)
        self.is_cuda = True
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs.Runner, "__init__", init_as_on_cuda)
    assert_fast_equals_eager(untrained)


def assert_fast_equals_eager(folder):
    """Two conversations, of which one stands still at times and begins again, say the same in a
    fast Duplex and in an eager one; and nothing is compiled once it is made."""
    partner = chat.Partner(folder, Sampling(), batch=2)
    user_audio = 0.1 * torch.randn(12, 1920, generator=torch.Generator().manual_seed(0))

    def answers(duplex):
        duplex.reset(0, seed=1)
        duplex.reset(1, seed=2)
        frames = []
        for t, frame in enumerate(user_audio):
            if t == 7:
                duplex.reset(1, seed=3)
            users = {0: frame, 1: frame} if t % 3 else {0: frame}
            frames.append(duplex.steps(users, force_text={0: 5} if t == 4 else None))
        return frames
    fast = Duplex(partner.model, Sampling(), context=8, batch=2, fast=True, codec=partner.codec)
    eager = Duplex(partner.model, Sampling(), context=8, batch=2, codec=partner.codec)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for one, other in zip(answers(eager), answers(fast)):
        assert one.keys() == other.keys()
        for i in one:
            assert one[i][:2] == other[i][:2]
            assert torch.allclose(one[i][2], other[i][2], atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
