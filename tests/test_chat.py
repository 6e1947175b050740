"""The duplex loop against the release's own sessions, the sampler against hand-worked answers, the command's errors."""
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import chat
import flm
import speed
from chat import Duplex, Monologue, Sampling, sample
from conftest import greedy_sampling

REFERENCE = Path(__file__).parent / "reference"


def session(duplex, listen):
    """Frames heard -> [T, 9] of text and codes, -1 where nothing was returned."""
    frames = [duplex.step(codes) for codes in listen]
    return torch.tensor([[-1] * 9 if frame is None else [frame[0], *frame[1]] for frame in frames])


@pytest.mark.parametrize("name", ["flm_small", "flm_small_mup"])
@pytest.mark.parametrize("golden, sampling", [("stream_greedy", greedy_sampling()), ("stream_greedy_rep", greedy_sampling(1.03, 1.2))])
def test_session_is_the_release_s(name, golden, sampling):
    """Catches any difference in delays, start row, depth order or repetition penalty."""
    tensors = load_file(REFERENCE / name / "golden.safetensors")
    found = session(Duplex(flm.load(REFERENCE / name), sampling), tensors["stream_listen"])
    assert torch.equal(found, tensors[golden].long()), f"first difference in frame {(found != tensors[golden]).any(1).nonzero()[0].item()}"


@pytest.mark.parametrize("kind", [greedy_sampling(), Sampling(temperature_text=1.0, temperature_audio=1.0)])
def test_a_ring_that_has_not_turned_changes_nothing(kind):
    """Catches a ring, or a masked cache as on a GPU, that differs from one with room for all; and one that ends, grows,
    forgets nothing, or leaves the positions that the model has (64 here) when it has turned."""
    model = flm.load(REFERENCE / "flm_small")
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"]
    listen = torch.cat([listen] * 10)[:200]

    def tokens(context, fixed=False):
        duplex = Duplex(model, kind, context)
        duplex.cache.fixed = fixed
        duplex.reset(seed=3)
        return session(duplex, listen)
    roomy, small = tokens(64), tokens(24)
    assert torch.equal(small[:24], roomy[:24]) and not torch.equal(small, roomy)
    assert torch.equal(tokens(24, fixed=True), small)


def test_conversations_of_a_batch_are_as_alone():
    """Catches sampling, penalties or codes that mix conversations, one that is disturbed when another starts again, and one
    that moves without a frame."""
    model = flm.load(REFERENCE / "flm_small")
    kind, rng = Sampling(temperature_text=1.0, temperature_audio=1.0), torch.Generator().manual_seed(0)
    listen = torch.randint(0, model.config.empty_token, (3, 30, 8), generator=rng)

    def alone(i, frames):
        duplex = Duplex(model, kind, 24)
        duplex.reset(seed=i)
        return [duplex.step(codes) for codes in listen[i, :frames]]
    together, found, at = Duplex(model, kind, 24, batch=3), [[], [], []], [0, 0, 0]
    for i in range(3):
        together.reset(i, seed=i)
    for t in range(40):
        if t == 15:  # the second conversation is left; another one takes its seat
            together.reset(1, seed=1)
            first, found[1], at[1] = found[1], [], 0
        turn = [i for i in range(3) if (t + i) % 3 and at[i] < 30]
        for i, answer in together.steps({i: listen[i, at[i]] for i in turn}).items():
            found[i].append(answer[:2] if at[i] else None)
            at[i] += 1
    assert [alone(i, at[i]) for i in range(3)] == found and first == alone(1, len(first)) and min(at) > 10


def test_penalty_by_hand():
    """Catches a penalty of the wrong sign: 2 / 1.5 < 1.9, and -1 x 1.5 < -1.2; and one applied twice: 3 / 1.5 > 1.5."""
    def greedy(logits, seen):
        return sample(torch.tensor([logits]), torch.zeros(1), torch.tensor([seen]), 1.5, 0, 0, 0).item()
    assert sample(torch.tensor([[2.0, 1.9]]), torch.zeros(1), None, 1.5, 0, 0, 0).item() == 0
    assert greedy([2.0, 1.9], [0, 0]) == 1
    assert greedy([-1.0, -1.2], [0]) == 1
    assert greedy([3.0, 1.5], [0, 0]) == 0


def test_top_p_and_top_k_by_hand():
    """Catches cutting one token too early or too late, and draws that are not the distribution's. Probabilities 0.3, 0.5,
    0.2, so preceding sums 0.5, 0, 0.8."""
    logits, chance = torch.tensor([[0.3, 0.5, 0.2]]).log().expand(200, -1), torch.arange(200) / 200

    def drawn(top_p, top_k):
        return torch.bincount(sample(logits, chance, None, 1.0, 1.0, top_p, top_k), minlength=3).tolist()
    assert drawn(0.4, 0) == [0, 200, 0]
    assert drawn(0.55, 0) == pytest.approx([75, 125, 0], abs=1)
    assert drawn(0.9, 1) == pytest.approx([60, 100, 40], abs=1)  # top_p goes before top_k
    assert drawn(0, 2) == pytest.approx([75, 125, 0], abs=1)
    assert drawn(0, 0) == pytest.approx([60, 100, 40], abs=1)


def test_sampled_session_repeats_with_its_seed():
    """Catches a sampler that draws from anything but torch's generator."""
    model, listen = flm.load(REFERENCE / "flm_small"), torch.zeros(20, 8, dtype=torch.long)
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
        (("--in", tmp_path / "none.wav", "--out", tmp_path / "a.wav"), "none.wav cannot be read as audio"),
        (("--in", tmp_path / "noise.wav", "--out", tmp_path / "a.wav"), "noise.wav cannot be read as audio"),
        (("--in", question, "--out", question), "is the question itself"),
        (("--in", question, "--out", tmp_path / "kept.wav"), "kept.wav exists"),
        (("--in", question, "--out", tmp_path / "a.xyz"), "no sound format"),
        (("--in", question, "--out", tmp_path / "no" / "a.wav"), "is no folder to write"),
        (("--in", question, "--out", tmp_path / "a.wav", "--model", tmp_path), "config.json is missing"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", -1), "--tail must be 0 or more"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", "inf"), "--tail must be 0 or more"),
        (("--in", tmp_path / "nan.wav", "--out", tmp_path / "a.wav"), "nan.wav holds no audio, or samples that are no numbers"),
        (("--in", question, "--out", tmp_path / "a.wav", "--device", "cuda:7"), "--device cuda:7 cannot be used here"),
        (("--in", tmp_path / "a.raw", "--out", tmp_path / "a.wav"), "a.raw cannot be read as audio"),
        (("--serve", 99_999), "--serve takes a port from 1 to 65535"),
        (("--in", question, "--out", tmp_path / "a.wav", "--serve"), "choose one"),
        (("--in", question, "--out", tmp_path / "a.wav", "--record", tmp_path / "a.wav"), "in a file of its own"),
        (("--replay", tmp_path / "noise.wav"), "is no conversation that --record kept"),
    ]:
        said = run(*arguments)
        assert isinstance(said, str) and sentence in said and "\n" not in said, said
    assert (tmp_path / "kept.wav").read_bytes() == b"mine" and not (tmp_path / "a.wav").exists()


def test_a_recorded_conversation_can_be_held_again(tmp_path, untrained, question, capsys):
    """Catches an answer that follows from anything but sound, seed and settings; and a record that is not what was heard."""
    both = tmp_path / "both.wav"
    assert run("--in", question, "--out", tmp_path / "a.wav", "--tail", 1, "--model", untrained, "--record", both, "--seed", 5) is None
    assert run("--replay", both, "--model", untrained) is None
    assert "the answer is the same, sample for sample" in capsys.readouterr().out
    sound, rate = soundfile.read(both)
    assert rate == 24_000 and np.abs(sound[:, 0]).max() > 0.1 and np.abs(sound[:, 1]).max() > 0
    sound[30_000:40_000, 1] += 0.01
    with soundfile.SoundFile(both) as file:
        comment = file.comment
    with soundfile.SoundFile(both, "w", rate, 2, "FLOAT") as file:
        file.comment = comment
        file.write(sound)
    run("--replay", both, "--model", untrained)
    assert "the answer differs from 1.25 s on" in capsys.readouterr().out
    assert "exists" in run("--in", question, "--out", tmp_path / "b.wav", "--model", untrained, "--record", both)


@pytest.mark.parametrize("bits, text, codes", [(8, 1e-4, 1e-4), (4, 0.02, 0.02)])
def test_packed_weights(untrained, bits, text, codes):
    """Catches a wrong scale, offset, padding or order of packed weights; and layers that are left whole."""
    model = flm.load(untrained, dtype=torch.bfloat16, convert=speed.packing(bits)).eval()
    packed = [m for m in model.modules() if isinstance(m, speed.Packed)]
    assert len(packed) == 6 * 7 + 1 + 3 * (2 + 8 * 3) + 8
    linear = torch.nn.Linear(300, 70).bfloat16()
    x = torch.randn(2, 3, 300, dtype=torch.bfloat16)
    error = (speed.Packed(linear, bits)(x) - linear(x)).float().std() / linear(x).float().std()
    assert error < (0.02 if bits == 8 else 0.15), error
    kl = speed.divergence(model, untrained, "cpu")
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
    model, s = flm.load(REFERENCE / "flm_small"), greedy_sampling()
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"].tolist()
    loop, duplex, heard = speed.StraightforwardLoop(model), Duplex(model, s), [model.config.pad_token] * 8
    row = (model.config.wait_token, [model.config.pad_token] * 8)
    for codes in listen:
        duplex.step(codes)
        row, heard = loop.step(*row, [codes[0], *heard[1:]]), codes
        assert [row[0], *row[1]] == duplex.written[0].tolist()


def test_a_compiled_step_says_the_same(pytestconfig):
    """Catches a step that cannot be compiled whole, or that is compiled anew for each frame. Takes a C++ compiler, and minutes."""
    if not pytestconfig.getoption("long"):
        pytest.skip("--long compiles the step")
    model = flm.load(REFERENCE / "flm_small")
    listen = load_file(REFERENCE / "flm_small" / "golden.safetensors")["stream_listen"]
    for sampling in (greedy_sampling(1.03, 1.2), Sampling(temperature_text=1.0)):
        eager, fast = Duplex(model, sampling, 24), Duplex(model, sampling, 24, fast=True)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        eager.reset(seed=1), fast.reset(seed=1)
        assert torch.equal(session(eager, listen), session(fast, listen))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_a_whole_frame_can_be_compiled_and_captured(untrained, monkeypatch):
    """Catches a look at a value within a frame, codec included (fullgraph refuses it), a part that is compiled anew, a
    tensor that moves, and a server that can change its sampling so many times only."""
    import functools
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    partner, rng = chat.Partner(untrained, Sampling(), batch=2), torch.Generator().manual_seed(0)
    heard = 0.1 * torch.randn(12, 1920, generator=rng)
    fast = Duplex(partner.model, Sampling(), context=8, batch=2, fast=True, codec=partner.codec)
    eager = Duplex(partner.model, Sampling(), context=8, batch=2, codec=partner.codec)
    graphs, place, found = torch._dynamo.utils.counters["stats"]["unique_graphs"], fast.answer.data_ptr(), []
    for duplex in (eager, fast):
        duplex.reset(0, seed=1), duplex.reset(1, seed=2)
        found.append([duplex.steps({i: x for i in range(2) if i == 0 or t % 3}) for t, x in enumerate(heard)])
    for one, other in zip(*found):
        assert one.keys() == other.keys()
        for i in one:
            assert one[i][:2] == other[i][:2] and torch.allclose(one[i][2], other[i][2], atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs and fast.answer.data_ptr() == place
