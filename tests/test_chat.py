"""The duplex loop against the release's own sessions, the sampler against hand-worked answers, the command's errors."""
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import chat
import flm
from chat import Duplex, Monologue, Sampling, sample

REFERENCE = Path(__file__).parent / "reference"


def session(duplex, listen):
    """Frames heard -> [T, 9] of text and codes, -1 where nothing was returned."""
    frames = [duplex.step(codes) for codes in listen]
    return torch.tensor([[-1] * 9 if frame is None else [frame[0], *frame[1].tolist()] for frame in frames])


@pytest.mark.parametrize("name", ["flm_small", "flm_small_mup"])
@pytest.mark.parametrize("golden, sampling", [("stream_greedy", Sampling.greedy()), ("stream_greedy_rep", Sampling.greedy(1.03, 1.2))])
def test_session_is_the_release_s(name, golden, sampling):
    """Catches any difference in delays, start row, depth order or repetition penalty."""
    tensors = load_file(REFERENCE / name / "golden.safetensors")
    found = session(Duplex(flm.load(REFERENCE / name), sampling), tensors["stream_listen"])
    assert torch.equal(found, tensors[golden].long()), f"first difference in frame {(found != tensors[golden]).any(1).nonzero()[0].item()}"


@pytest.mark.parametrize("kind", [Sampling.greedy(), Sampling(temperature_text=1.0, temperature_audio=1.0)])
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
        return [duplex.steps({0: codes})[0] for codes in listen[i, :frames]]
    together, found, at = Duplex(model, kind, 24, batch=3), [[], [], []], [0, 0, 0]
    for i in range(3):
        together.reset(i, seed=i)
    for t in range(40):
        if t == 15:  # the second conversation is left; another one takes its seat
            together.reset(1, seed=1)
            first, found[1], at[1] = found[1], [], 0
        turn = [i for i in range(3) if (t + i) % 3 and at[i] < 30]
        for i, answer in together.steps({i: listen[i, at[i]] for i in turn}).items():
            found[i].append(answer)
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
    """Catches words held back or written twice, and a character of two ids shown by halves."""
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")
    monologue = Monologue(Bytes(), wait_token=0)
    for i, text_id in enumerate([0, *"hé".encode(), 0, *"ok".encode()]):
        monologue.add(i * 0.08, text_id)
    monologue.close()
    assert monologue.lines == [(0.08, "hé"), (0.4, "ok")]
    assert capsys.readouterr().out == "   0.08 s  hé\n   0.40 s  ok\n"


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
    (tmp_path / "kept.wav").write_bytes(b"mine")
    for arguments, sentence in [
        (("--in", tmp_path / "none.wav", "--out", tmp_path / "a.wav"), "none.wav cannot be read as audio"),
        (("--in", tmp_path / "noise.wav", "--out", tmp_path / "a.wav"), "noise.wav cannot be read as audio"),
        (("--in", question, "--out", question), "is the question itself"),
        (("--in", question, "--out", tmp_path / "kept.wav"), "kept.wav exists"),
        (("--in", question, "--out", tmp_path / "a.xyz"), "no sound format"),
        (("--in", question, "--out", tmp_path / "no" / "a.wav"), "is no folder to write"),
        (("--in", question, "--out", tmp_path / "a.wav", "--model", tmp_path), "config.json is missing"),
        (("--in", question, "--out", tmp_path / "a.wav", "--tail", -1), "--tail must be 0 or more"),
        (("--in", question, "--out", tmp_path / "a.wav", "--device", "cuda:7"), "--device cuda:7 cannot be used here"),
        (("--replay", tmp_path / "noise.wav"), "is no conversation that --record kept"),
    ]:
        said = run(*arguments)
        assert isinstance(said, str) and sentence in said and "\n" not in said, said
    assert (tmp_path / "kept.wav").read_bytes() == b"mine" and not (tmp_path / "a.wav").exists()
