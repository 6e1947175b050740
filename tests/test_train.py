"""Equation 3 by hand, packing, the schedule, and a run that is stopped and goes on."""
import json
import random
import signal

import pytest
import torch

import flm
import stream
import train
from stream import FORMATS, K, Ids, Loss, Turn

SMALL = flm.Config(**{**vars(flm.PRESETS["tiny"]), "vocab_size": 32, "aud_vocab_size": 17, "pad_token": 16, "empty_token": 16,
                      "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "depth_layers": 1, "depth_dim": 32, "head_dim": None})
IDS = Ids.of(SMALL)


def made_up(n, seed=0, format="response-tts"):
    """n delayed grids of one turn with random codes."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        turn = Turn(rng.randint(2, 6), rng.randint(2, 6), [4, 5], [rng.randint(6, 31) for _ in range(3)])
        script = stream.write(format, [turn], [rng.randint(0, 3), 2], IDS)
        codes = torch.randint(0, 16, (2, len(script), K), generator=torch.Generator().manual_seed(rng.randint(0, 10**6)))
        rows.append(script.grid(codes[0] if format in stream.SPEAKS else None, codes[1] if format in stream.LISTENS else None))
    return rows


def model(seed=0):
    torch.manual_seed(seed)
    return flm.init_weights(flm.FLM(SMALL))


@pytest.mark.parametrize("format", FORMATS)
def test_equation_3_token_by_token(format):
    """Catches a token counted in the wrong class, a row off, or a mean over the wrong number: each term is summed here
    token by token, from the model's own logits, with plain loops."""
    net, rows = model(), [stream.delay(g, IDS) for g in made_up(2, format=format)]
    length = max(map(len, rows)) + 3
    text, speak, listen, loss = train.collate(rows, [[0], [1]], length, IDS)
    found = train.losses(net, text, speak, listen, loss)
    sums = {kind: [] for kind in Loss}
    for row in rows:
        h = net.hidden(row.text[None], row.speak[None], row.listen[None])
        words = net.text_logits(h)[0].log_softmax(-1)
        codes = net.depth_logits(h[0, :-1], row.speak[1:, :K - 1]).log_softmax(-1)
        for t in range(1, len(row)):
            sums[Loss(row.loss[t, 0].item())].append(-words[t - 1, row.text[t]])
            for c in range(K):
                sums[Loss(row.loss[t, 1 + c].item())].append(-codes[t - 1, c, row.speak[t, c]])
    sums.pop(Loss.NONE)
    assert set(found) == {kind for kind, values in sums.items() if values}
    for kind, value in found.items():
        assert value.item() == pytest.approx(sum(v.item() for v in sums[kind]) / len(sums[kind]), rel=1e-4), kind
    assert train.WEIGHTS == {Loss.SEMANTIC: 1, Loss.ACOUSTIC: 0.5, Loss.MONOLOGUE: 1, Loss.WAIT: 0.01}


def test_packing_uses_every_sample_once():
    """Catches samples lost or doubled between rows, and rows that are too long."""
    rows = [stream.delay(g, IDS) for g in made_up(200)]
    packed = train.pack(rows, 64, random.Random(0))
    assert sorted(i for row in packed for i in row) == list(range(200))
    assert max(sum(len(rows[i]) for i in row) for row in packed) <= 64
    assert sum(map(len, rows)) / (64 * len(packed)) > 0.85
    with pytest.raises(train.TrainError, match="raise --length"):
        train.pack(rows, 5, random.Random(0))


def test_schedule():
    """Catches a cosine that does not start and end where Table 3 says."""
    stage = train.Stage(1, 2e-4, 1e-5)
    rates = [train.learning_rate(step, 1000, stage) for step in range(1000)]
    assert max(rates) == pytest.approx(2e-4) and rates[-1] == pytest.approx(1e-5, rel=0.01) and rates[0] < 2e-5
    assert all(a >= b for a, b in zip(rates[20:], rates[21:]))


@pytest.fixture
def grids(tmp_path):
    (tmp_path / "grids").mkdir()
    stream.save(made_up(12), tmp_path / "grids" / "shard-00000.safetensors")
    flm.save(model(), tmp_path / "start")
    (tmp_path / "start" / "tokenizer.json").write_text("{}")
    return tmp_path


def test_training_learns_and_resumes_exactly(grids, monkeypatch):
    """Catches an update that does not learn, and a resumed run that differs from one that was never stopped: the weights
    are compared bit by bit."""
    run = dict(folders=[grids / "grids"], init=grids / "start", stage=train.Stage(20, 3e-3, 1e-3), batch=2, length=64, save_every=7)
    train.train(out=grids / "whole", **run)
    log = [json.loads(line) for line in open(grids / "whole" / "log.jsonl")]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"] and [line["step"] for line in log] == list(range(1, len(log) + 1))
    assert (grids / "whole" / "tokenizer.json").exists()

    real, calls = train.losses, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 10:
            signal.raise_signal(signal.SIGINT)
        return real(*args)
    monkeypatch.setattr(train, "losses", stop)
    with pytest.raises(train.TrainError, match="stopped at step 10"):
        train.train(out=grids / "stopped", **run)
    monkeypatch.setattr(train, "losses", real)
    train.train(out=grids / "stopped", **run)
    a, b = flm.load(grids / "whole").state_dict(), flm.load(grids / "stopped").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(train.TrainError, match="made with another batch"):
        train.train(out=grids / "stopped", **{**run, "batch": 3})


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    """Catches a checkpoint that is destroyed by the attempt to write the next one."""
    train.save_checkpoint(tmp_path / "c.pt", step=1)

    def full(*_):
        raise RuntimeError("No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(train.TrainError, match="c.pt cannot be written: No space left"):
        train.save_checkpoint(tmp_path / "c.pt", step=2)
    assert torch.load(tmp_path / "c.pt") == {"step": 1}


def test_errors_are_one_sentence(grids):
    for arguments, sentence in [
        ([str(grids / "none"), "--init", "tiny", "--out", str(grids / "o")], "holds no grids"),
        ([str(grids / "grids"), "--init", str(grids / "none"), "--out", str(grids / "o")], "none does not exist"),
    ]:
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        assert sentence in end.value.code and "\n" not in end.value.code
