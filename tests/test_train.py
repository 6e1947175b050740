"""Equation 3 by hand, packing, processes against one process, kills, full disks, and what else can
go wrong in a run."""
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint
import torch.multiprocessing
from safetensors.torch import load_file, save_file

import data
import flm
import many_processes
import stream
import train
from stream import K, Ids, Loss, Turn
from workshop import (batches, checkpoints, costs, files, lora, model_files, parameters, processes,
                      shards, training_log, training_notes,
                      training_set, validation)
from workshop.training_log import read_log
from workshop.training_options import option_name

SMALL = replace(
    flm.PRESETS["tiny"], vocab_size=32, aud_vocab_size=17, pad_token=16, empty_token=16,
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, depth_layers=1, depth_dim=32,
    head_dim=None)
IDS = Ids.of(SMALL)
WEIGHTS = torch.tensor([0, 1, 0.5, 1, 0.01], dtype=torch.float64)


def made_up(n, seed=0, format="response-tts"):
    """n grids of one turn with random codes."""
    rng = random.Random(seed)
    grids = []
    for _ in range(n):
        lengths = rng.randint(2, 6), rng.randint(2, 6)
        turn = Turn(*lengths, [4, 5], [rng.randint(6, 31) for _ in range(3)])
        script = stream.write(format, [turn], [rng.randint(0, 3), 2], IDS)
        generator = torch.Generator().manual_seed(rng.randint(0, 10**6))
        speak, listen = torch.randint(0, 16, (2, len(script), K), generator=generator)
        if format not in stream.SPEAKS:
            speak = None
        if format not in stream.LISTENS:
            listen = None
        grids.append(script.grid(speak, listen))
    return grids


def model(seed=0):
    torch.manual_seed(seed)
    return flm.init_weights(flm.FLM(SMALL))


def log_of(folder, *names):
    return [tuple(line.get(name) for name in names) for line in read_log(folder) if "loss" in line]


@pytest.fixture
def run(tmp_path):
    """Grids of two formats, a model to start from, and the settings of a short run on them."""
    for format in ("asr", "response-tts"):
        (tmp_path / format).mkdir()
        shards.save(made_up(12, format=format), tmp_path / format / "shard-00000.safetensors")
        (tmp_path / format / "grids.json").write_text(json.dumps({"format": format}))
    model_files.save(model(), tmp_path / "start")
    (tmp_path / "start" / "tokenizer.json").write_text("{}")
    return train.Settings(
        grids=(str(tmp_path / "asr"), str(tmp_path / "response-tts")), init=str(tmp_path / "start"),
        out=str(tmp_path / "out"), stage="fine-tuning-2", epochs=2, lr=(3e-3, 1e-3), batch=2,
        length=64, save_every=3, depth_share=0.8)


# --- equation 3 ---

def normed(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def attended(q, k, v):
    """[T, d] each, causal."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    scores[np.triu_indices(len(q), 1)] = -np.inf
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v


def turned(x):
    """RoPE of one head [T, d], as complex numbers: pair i is dimensions i and i + d / 2."""
    half = x.shape[-1] // 2
    speed = SMALL.rope_theta ** (-np.arange(half) / half)
    turn = np.exp(1j * np.outer(np.arange(len(x)), speed))
    z = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([z.real, z.imag], -1)


def swiglu(x, w, name):
    gate = x @ w[f"{name}.gate_proj.weight"].T
    up = x @ w[f"{name}.up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ w[f"{name}.down_proj.weight"].T


def surprise(logits, token):
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token]


def by_hand(w, text, speak, listen, loss):
    """{class: list of cross-entropies} of one row, from the weights alone, frame by frame."""
    h = backbone_by_hand(w, text, speak, listen)
    surprises = {kind: [] for kind in Loss}
    for t in range(len(text) - 1):
        text_class = Loss(loss[t + 1, 0])
        surprises[text_class].append(surprise(w["lm_head.weight"] @ h[t], text[t + 1]))
        logits = depth_by_hand(w, h[t], speak[t + 1])
        for c in range(K):
            code_class = Loss(loss[t + 1, 1 + c])
            surprises[code_class].append(surprise(logits[c], speak[t + 1, c]))
    return surprises


def backbone_by_hand(w, text, speak, listen):
    """h of each frame, [T, D]"""
    tables = "model.embed_tokens"
    x = w[f"{tables}.text_embeddings.weight"][text].copy()
    for c in range(K):
        x += w[f"{tables}.aud_speak_embeddings.{c}.weight"][speak[:, c]]
        x += w[f"{tables}.aud_listen_embeddings.{c}.weight"][listen[:, c]]
    d = SMALL.head_dim
    shared = SMALL.num_attention_heads // SMALL.num_key_value_heads
    for i in range(SMALL.num_hidden_layers):
        at = f"model.layers.{i}"
        y = normed(x, w[f"{at}.input_layernorm.weight"])
        q = y @ w[f"{at}.self_attn.q_proj.weight"].T + w[f"{at}.self_attn.q_proj.bias"]
        k = y @ w[f"{at}.self_attn.k_proj.weight"].T + w[f"{at}.self_attn.k_proj.bias"]
        v = y @ w[f"{at}.self_attn.v_proj.weight"].T + w[f"{at}.self_attn.v_proj.bias"]
        heads = []
        for head in range(SMALL.num_attention_heads):
            own = slice(head * d, (head + 1) * d)
            group = slice(head // shared * d, (head // shared + 1) * d)
            heads.append(attended(turned(q[:, own]), turned(k[:, group]), v[:, group]))
        x = x + np.concatenate(heads, -1) @ w[f"{at}.self_attn.o_proj.weight"].T
        x = x + swiglu(normed(x, w[f"{at}.post_attention_layernorm.weight"]), w, f"{at}.mlp")
    return normed(x, w["model.norm.weight"])


def depth_by_hand(w, h, codes):
    """Logits of the 8 codes of one frame, [K, C], from h [D] and these codes [K]"""
    depth = "aud_output_layers"
    d = SMALL.depth_dim // SMALL.depth_heads
    inputs = [SMALL.empty_token, *codes[:K - 1]]
    x = (w[f"{depth}.linear_in.weight"] @ h).reshape(K, SMALL.depth_dim)
    x = x + w[f"{depth}.transformer.wpe.weight"]
    x = x + np.stack([w[f"{depth}.transformer.wtes.{c}.weight"][inputs[c]] for c in range(K)])
    for i in range(SMALL.depth_layers):
        at = f"{depth}.transformer.h.{i}"
        y = normed(x, w[f"{at}.ln_1.weight"])
        q, k, v = np.split(y @ w[f"{at}.attn.c_attn.weight"].T, 3, -1)
        heads = []
        for head in range(SMALL.depth_heads):
            own = slice(head * d, (head + 1) * d)
            heads.append(attended(q[:, own], k[:, own], v[:, own]))
        x = x + np.concatenate(heads, -1) @ w[f"{at}.attn.c_proj.weight"].T
        y = normed(x, w[f"{at}.ln_2.weight"])
        x = x + np.stack([swiglu(y[c], w, f"{at}.mlps.{c}") for c in range(K)])
    x = normed(x, w[f"{depth}.transformer.ln_f.weight"])
    return np.stack([w[f"{depth}.lm_heads.{c}.weight"] @ x[c] for c in range(K)])


@pytest.mark.parametrize("stage", train.STAGES)
def test_equation_3_in_numpy(stage):
    """Catches a token counted in the wrong class, a row off, a mean over the wrong number or a
    wrong weight: the whole loss is written out here in numpy, a frame at a time, in float64."""
    net = model()
    formats = train.STAGES[stage].formats
    rows = []
    for seed in range(2):
        grids = made_up(2, seed, formats[seed % len(formats)])
        rows.append([stream.delay(grid, IDS) for grid in grids])
    length = max(sum(map(len, row)) for row in rows) + 3
    batch = batches.collate(rows, length, IDS)
    terms, _ = train.gradients(train.Equation3(net), [batch], WEIGHTS)
    w = {name: p.detach().double().numpy() for name, p in net.named_parameters()}
    surprises = {kind: [] for kind in Loss}
    for row in zip(*(x.numpy() for x in batch)):
        for kind, values in by_hand(w, *row).items():
            surprises[kind] += values
    means = {kind: np.mean(values) if values else 0.0 for kind, values in surprises.items()}
    expected = (1.0 * means[Loss.SEMANTIC] + 0.5 * means[Loss.ACOUSTIC]
                + 1.0 * means[Loss.MONOLOGUE] + 0.01 * means[Loss.WAIT])
    assert (WEIGHTS * terms).sum().item() == pytest.approx(expected, abs=1e-5)
    for kind in (Loss.SEMANTIC, Loss.ACOUSTIC, Loss.MONOLOGUE, Loss.WAIT):
        assert terms[kind].item() == pytest.approx(means[kind], abs=1e-5), kind


def test_the_economies_change_nothing():
    """Catches a bench that compares two different losses, and heads that run on wrong frames."""
    net = model()
    rows = [[stream.delay(grid, IDS)] for grid in made_up(3, format="tts")]
    batch = batches.collate(rows, 40, IDS)
    sums = train.Equation3(net)(*batch)
    assert torch.allclose(sums[1:], costs.straightforward(net, *batch)[1:], rtol=1e-5)


def test_cost_of_a_step_as_counted_by_torch():
    """Catches an MFU of a wrong formula: PyTorch's own counter of operations on the same pass."""
    from torch.utils.flop_counter import FlopCounterMode
    frames = 64
    batch = batches.collate([[]], frames + 1, IDS)
    batch.loss[:] = torch.tensor([Loss.MONOLOGUE, Loss.SEMANTIC, *[Loss.ACOUSTIC] * 7])
    with FlopCounterMode(display=False) as counter:
        train.Equation3(model())(*batch).sum().backward()
    flops = costs.flops(SMALL, frames, frames, frames)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.1)


# --- packing, schedule, choice of frames ---

def test_packing_uses_every_sample_once():
    """Catches samples lost or doubled between rows, and rows that are too long."""
    lengths = [len(g) for g in made_up(200)]
    rows = batches.pack(random.Random(0).sample(range(200), 200), lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64
    assert sum(lengths) / (64 * len(rows)) > 0.85
    with pytest.raises(batches.BatchError, match="raise --length"):
        batches.pack([0], lengths, 5)


def test_each_source_is_held_out(run):
    """Catches a small source of which nothing is held out beside a large one of the same format,
    and one whose only sample is."""
    few, many = run.grids
    shards.save(made_up(60), Path(many) / "shard-00001.safetensors")
    for folder in run.grids:
        (Path(folder) / "grids.json").write_text('{"format": "response-tts"}')
    for seed in range(30):
        held_out = batches.Batches(replace(run, hold_out=0.02, seed=seed), SMALL).is_held_out
        assert held_out[:12].sum() == 1 and held_out[12:].sum() == 2
    shards.save(made_up(1), Path(few) / "shard-00000.safetensors")
    assert not batches.Batches(replace(run, hold_out=0.02), SMALL).is_held_out[0]


def test_every_sequence_of_a_later_epoch_is_read(run):
    """Catches sequences that are never read, since their epoch packs into more than the first."""
    reading = batches.Batches(replace(run, batch=2), SMALL)
    for count in (3, 5, 6, 7, 8, 11):
        reading.steps_per_epoch = 3
        reading.sequences = list(range(count))
        steps = [reading._sequences_of_step(number) for number in range(3)]
        assert {sequence for step in steps for sequence in step} == {*range(count)}
        assert all(steps) and max(map(len, steps)) <= max(2, math.ceil(count / 3))
    reading.sequences = [0, 1, 2, 3, 4]
    assert [reading._sequences_of_step(number) for number in range(3)] == [[0, 1], [2, 3], [4]]
    micro_batches = reading.micro_batches(reading.grids, [[0], [1], [2]])
    assert [len(batch.text) for batch in micro_batches] == [2, 1], "no more at once than a batch"


def test_schedule():
    """Catches a cosine that does not start and end where Table 3 says."""
    rates = [train.learning_rate(step, 1000, (2e-4, 1e-5)) for step in range(1000)]
    assert max(rates) == pytest.approx(2e-4)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)
    assert rates[0] < 2e-5
    assert all(a >= b for a, b in zip(rates[20:], rates[21:]))


def test_thinning_takes_codes_and_leaves_text():
    """Catches a choice of frames that differs from run to run, and one that takes the loss off the
    text too."""
    loss = torch.full((4000, 9), int(Loss.ACOUSTIC), dtype=torch.uint8)
    speak = torch.arange(4000)[:, None].expand(-1, K) // 2  # every other frame repeats the last
    result = batches.thin(speak, loss, 0.5, 0.2, "x")
    assert torch.equal(result, batches.thin(speak, loss, 0.5, 0.2, "x"))
    assert (result[:, 0] == Loss.ACOUSTIC).all()
    share = (result[:, 1:] == Loss.ACOUSTIC).all(-1).float()
    assert share[0::2].mean() == pytest.approx(0.5, abs=0.05)
    assert share[1::2].mean() == pytest.approx(0.1, abs=0.03)


def test_hiding_blanks_what_is_heard_alone():
    """Catches codes hidden alike in every step, or a share that is not the one asked for."""
    listen = torch.ones(4000, K, dtype=torch.long)
    result = batches.hide(listen, 0.2, 7, "x")
    assert torch.equal(result, batches.hide(listen, 0.2, 7, "x"))
    assert not torch.equal(result, batches.hide(listen, 0.2, 7, "y"))
    assert set(result.unique().tolist()) == {1, 7}
    assert (result == 7).float().mean() == pytest.approx(0.2, abs=0.01)


# --- processes ---

def assert_same_gradient(one, several):
    """Raise AssertionError where two results of many_processes.gradient differ."""
    terms, whole, norm = one
    shared_terms, shared, shared_norm = several
    assert torch.allclose(shared_terms[1:], terms[1:], rtol=1e-6)
    assert shared_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert whole.keys() == shared.keys()
    for name, expected in whole.items():
        difference = (shared[name] - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max(), name


def together(run, world, stop_at):
    """Train in several processes up to a step -> the first gradient, as all of them see it."""
    arguments = (world, replace(run, micro=1), stop_at)
    torch.multiprocessing.spawn(many_processes.work, arguments, nprocs=world)
    return torch.load(f"{run.out}-{world}.pt")


def assert_several_are_one(run, worlds):
    """Train in so many processes up to step 2, 4 ..., and in one to the end; compare with a run in
    one process."""
    alone = replace(run, out=f"{run.out}-alone", recompute=False)
    first = many_processes.gradient(alone)
    train.train(alone)
    for number, world in enumerate(worlds):
        assert_same_gradient(first, together(run, world, 2 * number + 2))
    train.train(run)
    one = log_of(alone.out, "step", "loss", "norm")
    several = log_of(run.out, "step", "loss", "norm")
    assert len(one) == len(several) > 2 * len(worlds)
    assert np.allclose(one, several, rtol=1e-5), (one, several)
    weights = model_files.load(run.out).state_dict()
    for name, expected in model_files.load(alone.out).state_dict().items():
        assert torch.allclose(weights[name], expected, atol=1e-4), name


def test_two_processes_are_one(run):
    """Catches means over a process's own tokens, gradients averaged where they should be summed,
    processes that wait for each other for ever when a row is missing, checkpoints bound to a number
    of processes, adapters that are not shared out: 2 processes train to step 2, 1 goes on from
    there, and 1 has trained alone."""
    assert_several_are_one(replace(run, batch=3, recompute=True, lora=2), (2,))


def test_four_and_two_processes_are_one(run, pytestconfig):
    """The same with all weights, and with more of them."""
    if not pytestconfig.getoption("long"):
        pytest.skip("takes a minute: --long")
    assert_several_are_one(replace(run, batch=3, recompute=True, epochs=4), (4, 2))


# --- checkpoints ---

def test_kill_9_and_resume_is_bitwise_the_same_run(run, pytestconfig):
    """Catches a checkpoint without moments, schedule or place in the data, one that later steps
    write into, and one that a kill leaves half written: the process is killed at no particular
    moment, and all losses after it must be equal to the bit."""
    run = replace(run, epochs=6, save_every=4, hold_out=0.1, valid_every=8)
    killed_at = 8
    if pytestconfig.getoption("long"):
        run = replace(run, epochs=70, save_every=10, valid_every=50)
        killed_at = 90
    train.train(replace(run, out=f"{run.out}-whole"))
    assert log_of(f"{run.out}-whole", "step")[-1][0] >= killed_at + 4
    flags = ["--lr", *map(str, run.lr)]
    for name in ("init", "out", "stage", "epochs", "batch", "length", "save_every", "depth_share",
                 "hold_out", "valid_every"):
        flags += [option_name(name), str(getattr(run, name))]
    command = [sys.executable, train.__file__, "run", *run.grids, *flags]
    same_threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=same_threads)
    for line in child.stdout:
        if line.startswith(f"step {killed_at}/"):
            break
    time.sleep(0.05 * (time.time() % 1))
    child.kill()
    child.wait()
    folder = Path(run.out) / "checkpoints"
    (folder / "step-00000999.part").mkdir()  # what a kill while writing leaves
    train.train(run)
    names = ("step", "loss", "semantic", "acoustic", "monologue", "wait", "norm", "lr", "valid")
    assert log_of(run.out, *names) == log_of(f"{run.out}-whole", *names)
    assert len(checkpoints.list_checkpoints(folder)) == run.keep
    assert not list(folder.glob("*.part"))
    validated = [line["valid"] for line in read_log(run.out) if "valid" in line]
    assert validated == [line["valid"] for line in read_log(f"{run.out}-whole") if "valid" in line]
    assert len(validated) > 2


def test_a_full_disk_keeps_the_older_checkpoint(run, monkeypatch):
    """Catches a checkpoint that is destroyed by the attempt to write the next one: from step 5 on
    no file can grow past 20 kB, so that writing the checkpoint of step 6 fails in the middle, as on
    a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    rate = train.learning_rate
    folder = Path(run.out) / "checkpoints"

    def fill(step, *rest):
        if step == 4:
            while not checkpoints.list_checkpoints(folder):
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        return rate(step, *rest)
    monkeypatch.setattr(train, "learning_rate", fill)
    try:
        sentence = "step-00000006 cannot be written, with .* GB free"
        with pytest.raises(checkpoints.CheckpointError, match=sentence) as error:
            train.train(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(error.value)
    assert [path.name for path in checkpoints.list_checkpoints(folder)] == ["step-00000003"]
    monkeypatch.setattr(train, "learning_rate", rate)
    train.train(run)
    steps = [step for step, in log_of(run.out, "step")]
    assert steps == list(range(1, 1 + len(steps)))


def test_training_learns_exports_and_refuses_other_settings(run, tmp_path):
    """Catches an update that does not learn, an export that is not the model trained, and a resumed
    run that would quietly be another run."""
    run = replace(run, epochs=6, save_every=100, hold_out=0.1, valid_every=10)
    train.train(run)
    losses = [loss for loss, in log_of(run.out, "loss")]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    validated = {name for line in read_log(run.out) for name in line.get("valid", ())}
    assert validated == {f"{run.grids[0]} (asr)", f"{run.grids[1]} (response-tts)"}
    with pytest.raises(SystemExit, match="in its run all weights were trained"):
        train.main(["export", run.out, str(tmp_path / "x"), "--adapters"])
    newest = checkpoints.list_checkpoints(Path(run.out) / "checkpoints")[-1]
    exported = tmp_path / "exported"
    train.main(["export", str(newest), str(exported), "--dtype", "bfloat16"])
    weights = model_files.load(exported).state_dict()
    for name, expected in model_files.load(run.out).state_dict().items():
        assert torch.equal(weights[name], expected.bfloat16().float()), name
    assert (exported / "tokenizer.json").exists()
    # Catches a model that does not say how long its rows were: chat.py would remember too much.
    assert model_files.load(run.out).config.trained_frames == run.length
    with pytest.raises(checkpoints.CheckpointError, match="other settings .--lr, --batch.: choose"):
        train.train(replace(run, batch=3, lr=(5e-3, 1e-3)))
    shards.save(made_up(1), Path(run.grids[0]) / "shard-00001.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match="other grids than .*asr: choose"):
        train.train(run)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = [
    ("run.json", lambda path: path.write_text(""), "run.json is empty or damaged"),
    ("run.json", lambda path: path.write_text('{"step": 6}'), "run.json is empty or damaged"),
    ("__0_0.distcp", truncate, "__0_0.distcp is missing, or not as long"),
    ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing, or not as long"),
    (".metadata", lambda path: path.write_bytes(bytes(path.stat().st_size)), "is damaged ("),
]


def test_a_damaged_checkpoint_is_passed_over_loudly(run, capfd):
    """Catches a run that cannot go on, or begins anew without a word, because a power cut spoilt
    its newest checkpoint; and an older one that is lost with it."""
    train.train(run)
    losses = log_of(run.out, "step", "loss")
    for number, (name, damage, sentence) in enumerate(DAMAGES):
        copy = f"{run.out}-{number}"
        shutil.copytree(run.out, copy)
        newest = checkpoints.list_checkpoints(Path(copy) / "checkpoints")[-1]
        about = checkpoints.read_about(newest)
        damage(newest / name)
        capfd.readouterr()
        equation, _ = train.build(run, torch.device("cpu"))
        optimizer = train.make_optimizer(equation)
        with closing(checkpoints.Checkpoints(copy, 2)) as folder:
            step = folder.resume(equation.flm, optimizer, about, train.Settings)
        assert step == 3
        warning = capfd.readouterr().err
        assert "WARNING: " in warning and sentence in warning, name
        assert newest.with_name(f"damaged-{newest.name}").exists()
    train.train(replace(run, out=copy))
    assert "resumed at step 3" in capfd.readouterr().out
    assert log_of(copy, "step", "loss") == losses


def test_a_run_that_begins_again_says_so(run, capsys):
    """Catches steps that are lost in silence: a kill before the first checkpoint leaves a log and
    nothing to go on from."""
    Path(run.out).mkdir()
    (Path(run.out) / "log.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    train.train(replace(run, epochs=0.3))
    printed = capsys.readouterr().out
    assert "no checkpoint of the steps before, so that this run begins at the first step" in printed
    assert "every 3 steps (--save-every)" in printed


def test_a_format_of_another_stage_names_that_stage(run, capsys):
    """Catches a note that says what is wrong and not what to do: without --stage a run is
    post-training 1."""
    train.train(replace(run, stage="post-training-1", grids=run.grids[1:], epochs=0.3))
    printed = capsys.readouterr().out
    assert "no response-tts in post-training-1: --stage fine-tuning-2 has it" in printed


def test_a_run_without_a_model_yet_says_what_to_do(tmp_path):
    """Catches `chat.py --model RUN` during a run, which named a config.json that nobody writes."""
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="a run of train.py that has no model yet: let it "):
        model_files.load(tmp_path)


def test_checkpoints_of_older_versions_are_gone_on_from(run, capsys):
    """Catches a setting, or a thing that run.json says, without which no older run can go on."""
    train.train(run)
    folder = Path(run.out) / "checkpoints"
    whole = log_of(run.out, "step", "loss")
    newest = checkpoints.list_checkpoints(folder)[-1]
    shutil.rmtree(newest)
    older = folder / "step-00000003" / "run.json"
    about = json.loads(older.read_text())
    for name in ("loss", "best", "files"):
        del about[name]
    for name in ("lora", "lora_full_audio", "freeze", "data", "base"):
        del about["method"][name]
    about["method"]["samples"] = 24
    older.write_text(json.dumps(about))
    train.train(run)
    assert "resumed at step 3" in capsys.readouterr().out
    assert log_of(run.out, "step", "loss") == whole


def test_another_model_is_no_damage(run):
    """Catches good checkpoints that are set aside as damaged, one after the other, because
    config.json has another shape now; and a run that goes on with another RoPE without a word."""
    file = Path(run.init) / "config.json"
    config = json.loads(file.read_text())
    model_file = Path(run.init) / "model.safetensors"
    model_file.unlink()
    run = replace(run, epochs=1)
    train.train(run)
    stand = sorted(os.listdir(Path(run.out) / "checkpoints"))
    other_rope = f"with rope_theta {SMALL.rope_theta} and not 50000.0"
    for change, sentence in [({"num_hidden_layers": 3}, "with num_hidden_layers 2 and not 3"),
                             ({"rope_theta": 5e4}, other_rope)]:
        file.write_text(json.dumps(config | change))
        with pytest.raises(checkpoints.CheckpointError, match=sentence):
            train.train(run)
    assert sorted(os.listdir(Path(run.out) / "checkpoints")) == stand


def test_what_cannot_be_read_now_is_no_damage(run, monkeypatch):
    """Catches a good checkpoint that is set aside because a disk gave no answer or memory was full
    for a moment."""
    run = replace(run, epochs=0.5)
    train.train(run)
    stand = sorted(os.listdir(Path(run.out) / "checkpoints"))
    for error in (OSError(5, "Input/output error"), MemoryError(),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        def fail(*arguments, **options):
            raise error
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", fail)
            with pytest.raises(checkpoints.CheckpointError, match="step-.* cannot be read now"):
                train.train(run)
    assert sorted(os.listdir(Path(run.out) / "checkpoints")) == stand


def test_what_was_set_aside_before_stays(tmp_path):
    """Catches an older damaged checkpoint that is deleted for a newer one of the same step."""
    for content in ("first", "second", "third"):
        path = tmp_path / "step-00000004"
        path.mkdir()
        (path / "run.json").write_text(content)
        checkpoints.set_aside(path)
    contents = {(path / "run.json").read_text() for path in tmp_path.iterdir()}
    assert contents == {"first", "second", "third"}
    assert not checkpoints.list_checkpoints(tmp_path)


def test_a_slash_makes_no_other_folder_and_options_are_named(run):
    """Catches a run that cannot go on because a shell wrote "grids/" for "grids", and a sentence
    that names no option to change."""
    run = replace(run, epochs=0.5)
    train.train(run)
    train.train(replace(run, init=f"{run.init}/", grids=tuple(f"{path}/:1" for path in run.grids)))
    with pytest.raises(checkpoints.CheckpointError, match="other settings .grids, --wait-weight.: "):
        train.train(replace(run, grids=run.grids[:1], wait_weight=1.0))


def test_no_whole_checkpoint_is_one_sentence(run):
    """Catches a run that begins at its first step unasked, over the only checkpoints there are."""
    run = replace(run, epochs=1)
    train.train(run)
    for path in checkpoints.list_checkpoints(Path(run.out) / "checkpoints"):
        (path / "run.json").write_text("")
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint in .* is whole"):
        train.train(run)


def test_two_runs_in_one_folder(run):
    """Catches two runs that overwrite each other's checkpoints, and a lock that a run which was
    killed leaves behind."""
    Path(run.out).mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        lock = checkpoints.lock(Path(run.out))
        os.write(writer, str(os.getpid()).encode())
        signal.pause()
        lock.close()
    assert int(os.read(reader, 20)) == child
    sentence = f"another run \\(process {child}\\) writes to"
    with pytest.raises(checkpoints.CheckpointError, match=sentence):
        train.train(run)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoints.Checkpoints(run.out, 2).close()


def made_up_checkpoint(folder, step, loss):
    """What a run leaves after a step, as far as the choice of those that stay reads it."""
    path = folder.path(step)
    path.mkdir()
    about = {"step": step, "loss": loss, "method": {}, "config": {}, "beside": None}
    (path / "run.json").write_text(json.dumps(about))


def test_spoilt_steps_do_not_push_out_good_checkpoints(tmp_path):
    """Catches a run that went astray and has nothing left to go back to, and one that keeps every
    checkpoint since."""
    folder = checkpoints.Checkpoints(tmp_path, keep=2)
    for step, loss in enumerate((3.0, 2.0, 2.2, 1.9, 7.0, 8.0, 9.0), 1):
        made_up_checkpoint(folder, step, loss)
    names = {path.name for path in folder._superfluous(best=1)}
    assert names == {"step-00000002", "step-00000005", "step-00000006"}
    advice = folder.advice()
    assert "remove" in advice and f"{folder.path(7)}, whose loss is spoilt" in advice
    assert advice.endswith(f"goes on from {folder.path(4)}")
    folder.close()


def test_a_checkpoint_that_gives_no_answer_stays(tmp_path, monkeypatch):
    """Catches a good checkpoint that is removed as superfluous, because the disk gave no answer
    when it was looked at; and a new one that is called unwritten for it."""
    folder = checkpoints.Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        made_up_checkpoint(folder, step, 2.0)
    read_about = checkpoints.read_about

    def read(path):
        if path == folder.path(1):
            raise OSError(5, "Input/output error")
        return read_about(path)
    monkeypatch.setattr(checkpoints, "read_about", read)
    assert folder._superfluous(best=None) == []
    folder.close()


def test_after_nan_a_lower_rate_goes_on(run, monkeypatch, capsys):
    """Catches a run that blew up and says neither from where it can go on nor how, and one that
    cannot go on because the rate would be another."""
    run = replace(run, epochs=2)
    rate = train.learning_rate
    monkeypatch.setattr(train, "learning_rate",
                        lambda step, *rest: math.nan if step == 4 else rate(step, *rest))
    sentence = "step 6 has loss nan .* with a lower --lr goes on from .*step-00000003; or look"
    with pytest.raises(train.TrainError, match=sentence):
        train.train(run)
    monkeypatch.undo()
    train.train(replace(run, lr=(1e-4, 1e-5)))
    assert "the learning rate was [0.003, 0.001], and is [0.0001, 1e-05]" in capsys.readouterr().out
    rates = [rate for rate, in log_of(run.out, "lr")]
    assert min(rates[:3]) > 1e-3 and max(rates[3:]) < 1e-3


def test_what_must_survive_a_power_cut_is_on_the_disk_first(tmp_path, monkeypatch):
    """Catches a new name that stands before its content: after a power cut the file is empty."""
    events = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: events.append("sync"))
    replace_file = os.replace

    def renamed(*paths):
        events.append("rename")
        replace_file(*paths)
    monkeypatch.setattr(files.os, "replace", renamed)
    with files.replacing(tmp_path / "file") as beside:
        beside.write_text("content")
    assert events == ["sync", "rename", "sync"]


# --- validation ---

STEPS = range(1, 1000)  # of checkpoints


def history(losses, **rules):
    """A History of these losses, {source: loss} after 0, 10, 20 ... steps."""
    lines = [{"step": 10 * i, "valid": values} for i, values in enumerate(losses)]
    return validation.History(lines, **rules)


def test_a_run_that_forgets_ends_and_its_best_model_stays():
    """Catches a rule for early stopping that looks at one source alone, at the last step and not at
    the start, or that takes a model which has forgotten."""
    old_and_new = [dict(old=1.0, new=5.0), dict(old=1.05, new=2.0), dict(old=1.08, new=1.0),
                   dict(old=1.2, new=0.5)]
    runs = history(old_and_new, forget=0.1)
    assert "on old is 1.200, and was 1.000" in runs.reason_to_stop()
    assert runs.best(STEPS) == 20
    assert history(old_and_new[:3], forget=0.1).reason_to_stop() is None
    assert history(old_and_new, forget=0.3).best(STEPS) == 30
    assert history(old_and_new).best(STEPS) is None
    assert history(old_and_new).reason_to_stop() is None
    assert history(old_and_new[:1] * 2, forget=0.1).reason_to_stop() is None


def test_a_run_that_learns_nothing_more_ends():
    """Catches patience that counts from the wrong validation, or that ends a run of which one
    source still improves."""
    losses = [dict(a=3.0, b=3.0), dict(a=2.0, b=2.0), dict(a=2.1, b=1.8), dict(a=2.2, b=2.0)]
    assert history(losses, patience=2).reason_to_stop() is None       # b fell at the first of the two
    assert "no loss has fallen in the last 1" in history(losses, patience=1).reason_to_stop()
    losses.append(dict(a=2.2, b=2.0))
    assert "up to step 40" in history(losses, patience=2).reason_to_stop()
    assert history(losses, patience=2).best(STEPS) == 20
    with_another = [*losses[:4], dict(b=2.0, c=3.0), dict(b=2.1, c=3.1)]
    assert history(with_another, patience=2).reason_to_stop() is None  # nothing is known of c before
    assert "up to step 50" in history(with_another, patience=1).reason_to_stop()


def test_a_source_that_comes_later_is_compared_with_its_own_start():
    """Catches sums over different sources, in which a run that goes on with one more seems to have
    become worse for ever, --forget without effect on what is new, and a start that is called the
    run's."""
    losses = [dict(a=3.0), dict(a=2.0), dict(a=1.9, b=5.0), dict(a=1.8, b=5.05), dict(a=1.7, b=5.3)]
    assert history(losses[:4], forget=0.1).best(STEPS) == 30
    assert history(losses[:4], forget=0.1).reason_to_stop() is None
    later = history(losses, forget=0.1)
    assert "on b is 5.300, and was 5.000 at step 20 (--forget" in later.reason_to_stop()
    assert later.best(STEPS) == 30
    assert "5.000 -> 5.300                      b, since step 20" in later.table(40)
    assert "3.000 -> 1.700                      a\n" in later.table(40)


def test_a_loss_that_has_exploded_is_not_called_nothing():
    """Catches a model that a high rate has spoilt, and of which its run says that it was taught
    next to nothing."""
    assert "was 16.400 before the run and never below 190" in history(
        [dict(a=16.4), dict(a=195.7), dict(a=190.0)]).verdict()
    assert "next to nothing" in history([dict(a=2.0), dict(a=1.99)]).verdict()
    assert history([dict(a=2.0), dict(a=1.9)]).verdict() is None


def test_a_source_without_words_has_no_loss_of_words():
    """Catches a table that says 0.000 -> 0.000 of words that are not there."""
    terms = {"a": torch.tensor([0.0, 2.0, 3.0, 0.0, 1.0]), "b": torch.tensor([0.0, 2, 3, 4, 1])}
    assert validation.Validation.of(0, terms, WEIGHTS).monologue == {"b": 4.0}


def test_the_model_at_the_end_is_the_one_that_is_named(run, capsys):
    """Catches a run that goes on with --patience after its last step, and names a step of which it
    has no checkpoint: another model was exported."""
    run = replace(run, epochs=1, save_every=2, hold_out=0.1, valid_every=1)
    train.train(run)
    steps = [checkpoints.step_of(path)
             for path in checkpoints.list_checkpoints(Path(run.out) / "checkpoints")]
    assert steps == [2, 3]
    capsys.readouterr()
    run = replace(run, patience=1)
    log = Path(run.out) / "log.jsonl"
    lines = read_log(run.out)
    for line in lines:  # the best step has no checkpoint, and the better checkpoint is the older
        if "valid" in line:
            loss = {1: 0.1, steps[0]: 1.0}.get(line["step"], 2.0)
            line["valid"] = dict.fromkeys(line["valid"], loss)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train.train(run)
    output = capsys.readouterr().out
    assert f"the model is that of step {steps[0]}, the best by validation" in output
    assert f"before the run and after step {steps[0]}:" in output
    exported = f"{run.out}-exported"
    train.main(["export", f"{run.out}/checkpoints/step-{steps[0]:08d}", exported])
    train.main(["export", run.out, f"{exported}-best"])
    expected = model_files.load(exported).state_dict()
    for folder in (run.out, f"{exported}-best"):
        for name, value in model_files.load(folder).state_dict().items():
            assert torch.equal(value, expected[name]), (folder, name)


def test_early_stopping_in_a_run(run, capsys):
    """Catches a run that goes on though it forgets, one whose model is that of its last step, and
    one that goes on when it is called again."""
    both = run.grids
    run = replace(run, grids=both[:1], valid=both, forget=0.3, valid_every=1, epochs=20,
                  lr=(3e-2, 3e-2))
    train.train(run)
    output = capsys.readouterr().out
    assert "stopped early: at step" in output and "validation before the run and after" in output
    lines = [line["valid"] for line in read_log(run.out) if "valid" in line]
    source = f"{both[1]} (response-tts)"
    assert lines[-1][source] > lines[0][source] + run.forget
    assert all(line[source] <= lines[0][source] + run.forget for line in lines[:-1])
    best = min(range(1, len(lines) - 1), key=lambda step: sum(lines[step].values()))
    assert f"the model is that of step {best}" in output
    train.main(["export", f"{run.out}/checkpoints/step-{best:08d}", f"{run.out}-best"])
    expected = model_files.load(f"{run.out}-best").state_dict()
    for name, value in model_files.load(run.out).state_dict().items():
        assert torch.equal(value, expected[name]), name
    train.train(run)
    assert f"the model is that of step {best}" in capsys.readouterr().out
    assert len([line for line in read_log(run.out) if "valid" in line]) == len(lines)


def test_a_stop_is_one_sentence_and_the_exit_code_of_a_stop(run, monkeypatch, capsys):
    """Catches a stop that reads as a failure, or as a run that has ended."""
    monkeypatch.setattr(processes.StopRequest, "anywhere", lambda request: True)
    with pytest.raises(SystemExit) as end:
        train.main(["run", *run.grids, "--init", run.init, "--out", run.out, "--length", "64"])
    assert end.value.code == 130
    assert capsys.readouterr().err == ("train.py: stopped at step 1; the same command goes on from "
                                       "there\n")


def test_a_model_that_is_there_is_not_written_over(run, tmp_path):
    """Catches an export of adapters onto the model that they stand beside, with which both are
    lost; and a run whose --out is another model."""
    run = replace(run, epochs=0.5, lora=2)
    train.train(run)
    weights = (Path(run.init) / "model.safetensors").read_bytes()
    share = str(tmp_path / "share")
    train.main(["export", run.out, share, "--adapters"])
    for arguments, sentence in [
        (["export", run.out, run.init], "start/model.safetensors is there, and would"),
        (["export", share, run.init, "--base", run.init], "start/model.safetensors is there"),
        (["export", run.out, share, "--adapters"], "share/adapters.safetensors is there"),
        (["run", *run.grids, "--init", "tiny", "--out", run.init], "start holds another model"),
    ]:
        with pytest.raises(SystemExit, match=sentence):
            train.main(arguments)
    assert (Path(run.init) / "model.safetensors").read_bytes() == weights
    newest = checkpoints.list_checkpoints(Path(run.out) / "checkpoints")[-1]
    train.main(["export", run.out, run.out])
    train.main(["export", str(newest), run.out])
    train.main(["export", run.out, run.init, "--overwrite"])
    assert (Path(run.init) / "model.safetensors").read_bytes() != weights


# --- a part of the weights ---

def adapted(net, **choices):
    """A model with adapters that change something."""
    lora.adapt(net, lora.Selection(**choices))
    for name, parameter in net.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1)
    return net


@pytest.mark.parametrize("full_audio", (False, True))
def test_merged_adapters_compute_the_same(full_audio):
    """Catches an adapter that is merged transposed, unscaled, or not into every layer that has one,
    and a merge that touches what has none."""
    net = adapted(model(), rank=3, full_audio=full_audio)
    before = {name: value.detach().clone() for name, value in net.state_dict().items()}
    batch = batches.collate([[stream.delay(grid, IDS) for grid in made_up(2)]], 40, IDS)
    expected = train.Equation3(net)(*batch)
    lora.merge(net)
    assert torch.allclose(train.Equation3(net)(*batch), expected, rtol=1e-5)
    assert not torch.allclose(train.Equation3(model())(*batch), expected, rtol=1e-3)
    assert net.state_dict().keys() == model().state_dict().keys()
    with_adapters = {name.removesuffix("lora_A") for name in before if name.endswith("lora_A")}
    for name, value in net.state_dict().items():
        same = torch.equal(value, before[name])
        assert same == (name.removesuffix("weight") not in with_adapters), name
    depth_is_adapted = any(name.startswith("aud_output_layers") for name in with_adapters)
    assert depth_is_adapted != full_audio


@pytest.mark.parametrize("part", (dict(lora=2), dict(freeze=("backbone", "depth"))))
def test_a_run_of_a_part_resumes_and_leaves_the_rest(run, monkeypatch, part):
    """Catches a frozen weight that changes, checkpoints that hold what is not trained, a resumed
    run that is another one, and an export that lacks adapters or base."""
    run = replace(run, epochs=1, lr=(1e-1, 1e-2), **part)
    train.train(replace(run, out=f"{run.out}-whole"))
    monkeypatch.setattr(processes.StopRequest, "anywhere", lambda request: True)
    with pytest.raises(train.TrainError, match="stopped at step 1"):
        train.train(run)
    monkeypatch.undo()
    train.train(run)
    names = ("step", "loss", "norm")
    assert log_of(run.out, *names) == log_of(f"{run.out}-whole", *names)
    start = model_files.load(run.init).state_dict()
    weights = model_files.load(run.out).state_dict()
    again = model_files.load(f"{run.out}-whole").state_dict()
    changed = set()
    for name, value in weights.items():
        assert torch.equal(value, again[name]), name
        if not torch.equal(value, start[name]):
            changed.add(name)
    if run.lora:
        assert "model.norm.weight" not in changed and "lm_head.weight" in changed
        query = "model.layers.1.self_attn.q_proj.weight"
        assert torch.linalg.matrix_rank(weights[query] - start[query], rtol=1e-4) == run.lora
    else:
        parts = {lora.part_of(name) for name in changed}
        assert parts == {"embeddings", "heads"}
    newest = checkpoints.list_checkpoints(Path(run.out) / "checkpoints")[-1]
    metadata = torch.distributed.checkpoint.FileSystemReader(newest).read_metadata()
    assert "model.model.norm.weight" not in metadata.state_dict_metadata
    assert "model.model.embed_tokens.aud_listen_embeddings.0.weight" in metadata.state_dict_metadata


def test_adapters_need_the_model_that_they_stand_beside(run):
    """Catches adapters that are resumed on, or merged into, a model that was changed since."""
    run = replace(run, epochs=1, lora=2)
    train.train(run)
    start = model_files.load(run.init)
    start.model.norm.weight.data[0] += 1
    model_files.save(start, run.init)
    with pytest.raises(checkpoints.CheckpointError, match="beside other weights than .*start: "):
        train.train(run)
    with pytest.raises(SystemExit, match="other weights are there now"):
        train.main(["export", run.out, f"{run.out}-exported"])


@pytest.mark.parametrize("part", (dict(lora=2), dict(freeze=("backbone",))))
def test_adapters_travel_alone(run, tmp_path, part):
    """Catches a small folder that is not small, or that makes another model than the run did, and
    one that is merged with other weights than it was trained beside."""
    run = replace(run, epochs=1, **part)
    train.train(run)
    share = tmp_path / "share"
    train.main(["export", run.out, str(share), "--adapters"])
    assert not any("model.layers.0.self_attn.q_proj.weight" in name
                   for name in load_file(share / "adapters.safetensors"))
    train.main(["export", str(share), str(tmp_path / "whole"), "--base", run.init])
    expected = model_files.load(run.out)
    merged = model_files.load(tmp_path / "whole")
    assert merged.config == expected.config and merged.config.trained_frames == run.length
    for name, value in merged.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert (tmp_path / "whole" / "tokenizer.json").exists()
    for arguments, sentence in [
        (["export", str(share), str(tmp_path / "x"), "--base", run.out], "beside other weights"),
        (["export", run.out, str(tmp_path / "x"), "--base", run.init], "holds no adapters"),
        (["export", run.out, str(tmp_path / "x"), "--base", "b", "--adapters"], "alone: --base"),
    ]:
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        assert sentence in end.value.code and "\n" not in end.value.code


def test_adapters_with_bfloat16(run):
    """Catches a base in 16 bits that the computation cannot read, and an export without it."""
    train.train(replace(run, epochs=1, lora=2, bfloat16=True))
    start = model_files.load(run.init).state_dict()
    weights = model_files.load(run.out).state_dict()
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(weights[norm], start[norm])
    losses = [loss for loss, in log_of(run.out, "loss")]
    assert all(map(math.isfinite, losses))


# --- what a user sees ---

def test_a_run_that_cannot_learn_says_so(run, capsys):
    """Catches a run that ends well and has taught nothing, without a word before or after; and a
    warning where the rates suffice."""
    too_slow = replace(run, lr=(1e-9, 1e-9), hold_out=0.1)
    train.train(too_slow)
    output = capsys.readouterr().out
    assert "too short or too slow to learn much: the rates of its 6 steps add" in output
    assert "up to 6.0e-09" in output
    assert "no loss has fallen by more than a hundredth" in output
    assert "validation before the run and after step 6:" in output
    assert f"{run.grids[0]} (asr)" in output.split("validation before the run")[1]
    train.train(replace(run, out=f"{run.out}-fast"))
    output = capsys.readouterr().out
    assert "too slow" not in output and "nothing is kept to validate on" in output


def test_held_out_draws_of_what_is_trained_on_are_said(run, capsys):
    """Catches a loss on held-out draws that is taken for one on new recordings."""
    for folder in run.grids:
        (Path(folder) / "grids.json").write_text('{"format": "response-tts", "draws": 6}')
    train.train(replace(run, epochs=0.1, hold_out=0.1))
    assert "--hold-out keeps draws of recordings that are trained on" in capsys.readouterr().out


def test_draws_count_as_epochs(run, capsys):
    """Catches six epochs on grids that hold each recording six times, which nobody asked for."""
    for folder in run.grids:
        about = json.loads((Path(folder) / "grids.json").read_text())
        (Path(folder) / "grids.json").write_text(json.dumps(about | {"draws": 6}))
    train.train(replace(run, epochs=None))
    output = capsys.readouterr().out
    assert "hold each recording 6 times, drawn anew, so that 1 epochs read it 6 times" in output
    assert log_of(run.out, "step")[-1][0] == 3
    assert train.Settings(init="tiny", out="-", stage="fine-tuning-2").resolve(SMALL).epochs == 6


def test_a_mixture_without_weights_is_said(run, capsys):
    """Catches post-training 2 on half of nothing and five times nothing."""
    run = replace(run, stage="post-training-2", epochs=1)
    train.train(run)
    assert "mixes 0.5 x what is transcribed by a program and 5 x" in capsys.readouterr().out
    asr, other = run.grids
    train.train(replace(run, grids=(f"{asr}:0.5", f"{other}:5"), out=f"{run.out}-mixed"))
    assert "all grids weigh the same" not in capsys.readouterr().out


def test_tensorboard(run, monkeypatch):
    """Catches a traceback where the package is missing, and numbers that do not arrive."""
    run = replace(run, epochs=1, tensorboard=True, hold_out=0.1)
    numbers = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert (str(folder), purge_step) == (f"{run.out}/tensorboard", 1)

        def add_scalar(self, name, value, step):
            numbers.append((name, step))

        def flush(self):
            pass
    stand_in = type(sys)("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    train.train(run)
    assert {("loss", 1), ("weighted_wait", 1), (f"valid/{run.grids[0]} (asr)", 0)} <= {*numbers}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(training_log.LogError, match="pip install tensorboard"):
        train.train(replace(run, out=f"{run.out}-without"))


def test_log_shows_what_each_term_adds(run, capsys):
    """Catches a weight that cannot be set, or that is set for another term, and a log that does not
    show what gamma does to the loss."""
    run = replace(run, epochs=1, semantic_weight=3.0, acoustic_weight=0.25, monologue_weight=2.0,
                  wait_weight=0.125)
    train.train(run)
    first = read_log(run.out)[0]
    weights = {"semantic": 3.0, "acoustic": 0.25, "monologue": 2.0, "wait": 0.125}
    for name, weight in weights.items():
        assert first[f"weighted_{name}"] == pytest.approx(weight * first[name])
    assert first["loss"] == pytest.approx(sum(first[f"weighted_{name}"] for name in weights))
    product = f"wait {first['wait']:.3f} x 0.125 = {first['weighted_wait']:.3f}"
    assert product in capsys.readouterr().out


def test_a_run_says_that_its_model_will_remember_less(run, capsys):
    """Catches a model that forgets after a short conversation, since it was trained on with the
    default length, and nobody was told; and a note where nothing is lost."""
    start = model_files.load(run.init)
    start.config = replace(SMALL, trained_frames=128)
    model_files.save(start, run.init)
    train.train(replace(run, epochs=1))
    note = "trained on sequences of 128 frames, and this run has sequences of 64"
    assert note in capsys.readouterr().out
    train.train(replace(run, epochs=1, length=128, out=f"{run.out}-long"))
    assert "trained on sequences" not in capsys.readouterr().out


def test_a_sample_that_is_too_long_is_said_before_the_model_is_built(run, monkeypatch):
    """Catches an hour of reading weights before a sentence that could have been said at once."""
    monkeypatch.setattr(train, "build", None)
    with pytest.raises(batches.BatchError, match="grid [0-9]+: this sample of .* raise --length"):
        train.train(replace(run, length=9))


def test_a_stage_names_formats_that_exist():
    """Catches a new stage with a format misspelt, which would only ever warn."""
    with pytest.raises(ValueError, match="no 'asr-tts'"):
        train.Stage(("tts", "asr-tts"), 1, (1e-4, 1e-5), {"two people": 1})


def test_bench_measures_both(monkeypatch, capsys):
    """Catches a bench that compares two different losses, or that fails; and operations that are
    counted for sequences of another length."""
    lengths = []

    def count_flops(config, frames, length, code_frames):
        lengths.append(length)
        return 1e9
    monkeypatch.setattr(costs, "peak", lambda device: 1e12)
    monkeypatch.setattr(costs, "flops", count_flops)
    small = replace(SMALL, vocab_size=1024)  # made-up words are ids below 1000
    monkeypatch.setitem(flm.PRESETS, "small", small)
    train.main(["bench", "small", "--length", "300", "--steps", "1"])
    output = capsys.readouterr().out.splitlines()
    packed, straightforward = output[1:]
    assert "frames/s" in straightforward and "frames/s" in packed
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in (straightforward, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    longest = int(output[0].split("at most ")[1].split()[0])
    assert lengths == [300, longest]


def test_errors_are_one_sentence(run, tmp_path):
    """Catches tracebacks where a path, a tokenizer, a model or a setting is wrong, and a run that
    goes on after NaN."""
    other = flm.FLM(replace(SMALL, vocab_size=16, wait_token=5))
    model_files.save(flm.init_weights(other), tmp_path / "other")
    model_files.save(model(), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors")
    model_files.save(model(), tmp_path / "huge")
    weights["model.norm.weight"][0] = 3e38  # finite, and what is computed with it is not
    save_file(weights, tmp_path / "huge" / "model.safetensors")
    grids = run.grids
    long_grids = str(tmp_path / "long")
    Path(long_grids).mkdir()
    turn = Turn(70, 70, [4], [5])
    script = stream.write("asr", [turn], [0, 2], IDS)
    shards.save([script.grid(None, torch.zeros(len(script), K, dtype=torch.long))],
                Path(long_grids) / "shard-00000.safetensors")
    length = ["--length", "64"]
    out = ["--out", str(tmp_path / "o")]
    start = ["--init", run.init, *length]
    usual = ["run", *grids, *start, *out]
    for arguments, sentence in [
        (["run", str(tmp_path / "none"), *start, *out], "holds no grids"),
        (["run", *grids, "--init", str(tmp_path / "none"), *out], "none does not exist"),
        (["run", *grids, "--init", str(tmp_path / "other"), *out], "another tokenizer or codec"),
        (["run", *grids, "--init", str(tmp_path / "broken"), *length, *out],
         "model.norm.weight holds values that are no"),
        (["run", *grids, "--init", str(tmp_path / "huge"), *length, *out], "step 1 has loss"),
        ([*usual, "--lr", "nan", "1e-5"], "--lr must be from 0 to 1000, not nan"),
        ([*usual, "--lr", "0", "0"], "--lr 0 0 trains nothing"),
        ([*usual, "--lr", "1e-4", "-1"], "--lr must be from 0 to 1000, not -1.0"),
        ([*usual, "--wait-weight", "inf"], "--wait-weight must be from 0 to 1e+06, not inf"),
        ([*usual, "--acoustic-weight", "-1"], "--acoustic-weight must be from 0 to 1e+06, not -1"),
        ([*usual, "--epochs", "nan"], "--epochs must be from"),
        (["run", *grids, *start], "--out must be given"),
        ([*usual, "--depth-share", "2"], "--depth-share must be from 0 to 1, not 2.0"),
        ([*usual, "--qwen", "q"], "--qwen fills a model without weights"),
        (["run", *grids, *start, "--out", f"{run.init}/../start"], "is the folder of --init"),
        ([*usual, "--lora", "0"], "--lora must be 1 or more"),
        ([*usual, "--seed", "9" * 30], "--seed must be from 0 to 9.223e+18"),
        ([*usual, "--patience", "2"], "--patience needs something to validate on"),
        ([*usual, "--valid-every", "2"], "--valid-every needs something to validate on"),
        ([*usual, "--valid", grids[0], "--hold-out", "0.1"], "--valid and --hold-out exclude"),
        ([*usual, "--forget", "-1"], "--forget must be 0 or more"),
        ([*usual, "--freeze", "head"], "--freeze takes embeddings, backbone, heads, depth, not"),
        ([*usual, "--freeze", *lora.PARTS], "nothing is left to train"),
        ([*usual, "--lora-full-audio"], "no effect without --lora"),
        (["run", *grids, "--init", "tiny", *out, "--lora", "2"], "has random weights, and --lora"),
        ([*usual, "--length", "9"], "shard-00000.safetensors, grid"),
        (["run", grids[0], *start, *out, "--valid", long_grids], "--valid " + long_grids),
        (["run", *start, *out, "--valid", *grids], f"--valid took {', '.join(grids)}"),
        ([*usual, "--paper", "--length", "9999"], "more than the model's 8192 positions"),
        (["run", *start, *out], "no samples"),
        ([*usual, "--beside", str(tmp_path / "none")], "none does not exist"),
        ([*usual, "--valid", str(tmp_path / "none")], "holds no grids"),
        (["run", *start, *out, "--plan", "--gpus", "0"], "--gpus must be 1 or more"),
        (["run", *start, *out, "--plan", "--hours", "inf"], "--hours must be from"),
        (["run", *start, *out, "--plan", "--hours", "nan"], "--hours must be from"),
        (["run", *start, *out, "--plan", "--hours", "-5"], "--hours must be from"),
        (["run", *start, *out, "--plan"], "--plan needs grids, or --hours"),
        ([*usual, "--plan", "--hours", "5"], "--hours is for a plan without grids"),
        ([*usual, "--hours", "5"], "--hours has no effect without --plan"),
        ([*usual, "--gpu", "H100"], "--gpu has no effect without --plan"),
        ([*usual, "--gpus", "2"], "--gpus has no effect without --plan"),
        ([*usual, "--keep-knowing", "--paper"], "--keep-knowing and --paper exclude"),
        (["run", *grids, "--init", "tiny", *out, "--keep-knowing"], "--init tiny has no weights"),
        (["bench", "tiny", "--steps", "0"], "--steps must be 1 or more"),
        (["export", str(tmp_path), str(tmp_path / "m")], "is no checkpoint"),
        (["plot", str(tmp_path)], "no log.jsonl"),
        (["bench", "tiny", "--length", "3"], "--length 3 is too short"),
    ]:
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        assert sentence in end.value.code and "\n" not in end.value.code


def test_errors_of_the_machine_are_one_sentence(run, monkeypatch):
    """Catches a traceback where there is no C++ compiler, where memory is full, and where torchrun
    starts more processes than there are GPUs."""
    from torch._dynamo.exc import BackendCompilerFailed
    no_compiler = BackendCompilerFailed.__new__(BackendCompilerFailed)
    RuntimeError.__init__(no_compiler, "InvalidCxxCompiler: No working C++ compiler found")
    full = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    for error, sentence in [(no_compiler, "--compile does not work here .InvalidCxx.* such as g"),
                            (MemoryError(), "this machine's memory is full: take --recompute"),
                            (RuntimeError(full), "this machine's memory is full: take"),
                            (torch.OutOfMemoryError("CUDA"), "the GPU's memory is full: take")]:
        def fail(settings):
            raise error
        monkeypatch.setattr(train, "train", fail)
        with pytest.raises(SystemExit, match=sentence) as end:
            train.main(["run", *run.grids, "--init", run.init, "--out", run.out])
        assert "\n" not in end.value.code
    monkeypatch.setattr(train, "train", lambda settings: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):  # a fault, whose place is to be seen
        train.main(["run", *run.grids, "--init", run.init, "--out", run.out])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(processes.ProcessError, match="started 4 processes here, .* sees 2 GPUs"):
        processes.connect("cuda")


def test_proposed_rates_have_a_ceiling():
    """Catches a note that proposes rates which spoil a model, because a run has few steps."""
    assert training_notes.enough(30, 2.4e-4) == "take 25 times the --epochs, or --lr 4e-04 4e-05"
    assert training_notes.enough(2, 1e-5) == "take 14 times the --epochs and --lr 0.0004 4e-05"


def test_an_index_that_is_damaged_is_made_again(run):
    """Catches "Unterminated string" without the name of a file: what index.json holds is known from
    the shards, and grids.json is named."""
    folder = Path(run.grids[0])
    lengths = training_set.Grids([folder]).lengths
    (folder / "index.json").write_text('{"shard-00')
    assert training_set.Grids([folder]).lengths.tolist() == lengths.tolist()
    json.loads((folder / "index.json").read_text())
    (folder / "grids.json").write_text('{"format')
    with pytest.raises(ValueError, match="asr/grids.json is not JSON"):
        training_set.Grids([folder])


def test_a_gpu_is_known_by_its_whole_name(monkeypatch):
    """Catches an MFU of an RTX A1000 by the numbers of an A100."""
    for name, tera in [("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA RTX A1000", None)]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        assert costs.peak(torch.device("cuda")) == tera


def test_a_flipped_byte_is_told_by_file_and_grid(run, capsys):
    """Catches a bit that flipped on disk and ends in a failed look-up within the model, or is
    trained on without a word; and a check that does not look at the payload."""
    shard = Path(run.grids[0]) / "shard-00000.safetensors"
    whole = shard.read_bytes()
    for name, value in (("text", -3), ("listen", 999), ("speak", -1), ("loss", 7),
                        ("loss", int(Loss.ACOUSTIC))):
        tensors = load_file(shard)
        tensors[name].view(-1)[0] = value
        save_file(tensors, shard, metadata={"digest": "of other bytes"})
        training_set.open_shard.cache_clear()  # a run is a process of its own
        with pytest.raises(SystemExit) as end:
            train.main(["run", run.grids[0], "--init", run.init, "--out", run.out,
                        "--length", "64"])
        assert "shard-00000.safetensors, grid 0" in end.value.code and "\n" not in end.value.code
        with pytest.raises(SystemExit, match="its payload is not what was written"):
            data.main(["check", run.grids[0]])
        shard.write_bytes(whole)
    training_set.open_shard.cache_clear()
    data.main(["check", run.grids[0]])
    assert "1 whole" in capsys.readouterr().out
    save_file(load_file(shard), shard)  # as older versions wrote it
    data.main(["check", run.grids[0]])
    assert "1 without a digest" in capsys.readouterr().out


def test_plan_counts_without_starting(capsys):
    """Catches a plan of another size than the model, and a unit mistaken: 3.3 passes over a million
    hours at 12.5 frames of 17 tokens a second, and what a 7B model needs for weights, gradients and
    moments on 8 GPUs."""
    train.main(["run", "--init", "7b", "--paper", "--plan", "--hours", "1e6", "--gpus", "8",
                "--recompute"])
    plan = capsys.readouterr().out
    size = sum(parameters.count_parameters(flm.FLM(flm.PRESETS["7b"])).values())
    assert f"{size / 1e9:.3f} G parameters" in plan
    assert f"{3.3e6 * 3600 * 12.5 * 17 / 1e6:,.1f} M tokens" in plan
    assert f"{16 * size / 8 / 1e9:.1f}  weights" in plan
    assert "days at 45% MFU" in plan
    # Three numbers of 4 bytes for each weight; 2 stay, and 3 more may be there at once.
    assert f"disk: {12 * size / 1e9:,.1f} GB a checkpoint, 2 to 5 of them" in plan
    logits = 12 * 8192 * (152_064 + 8 * 2049)
    assert f"{logits / 1e9:.1f}  logits" in plan


def test_plan_reads_a_source_as_often_as_it_weighs(run, capsys):
    """Catches hours and days of a mixture without its weights."""
    grids = [f"{run.grids[0]}:5", f"{run.grids[1]}:0.5"]
    train.main(["run", *grids, "--init", run.init, "--plan", "--epochs", "1", "--length", "64"])
    lengths = [sum(training_set.Grids([folder]).lengths) for folder in run.grids]
    frames = 5 * lengths[0] + 0.5 * lengths[1]
    assert f"{frames * 17 / 1e6:,.1f} M tokens" in capsys.readouterr().out
    train.main(["run", *grids, "--init", run.init, "--plan", "--epochs", "1000", "--length", "64",
                "--hold-out", "0.5"])
    assert f"{500 * frames * 17 / 1e6:,.1f} M tokens" in capsys.readouterr().out


def test_a_plan_needs_no_weights(run, monkeypatch, capsys):
    """Catches a plan that fetches the weights of a Hub id, or reads those of a folder."""
    (Path(run.init) / "model.safetensors").write_bytes(b"damaged")
    train.main(["run", "--init", run.init, "--plan", "--hours", "1"])
    assert "days at 45% MFU" in capsys.readouterr().out
    fetched = []

    def download(name, allow_patterns):
        fetched.append(allow_patterns)
        return run.init
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    train.main(["run", "--init", "somebody/model", "--plan", "--hours", "1"])
    assert fetched == [["config.json"]]


def test_plan_with_adapters_fits_a_small_gpu(capsys):
    """Catches a plan that reckons with moments of weights that stay, or forgets these weights: the
    7B model on one GPU of 24 GB."""
    train.main(["run", "--init", "7b", "--lora", "16", "--plan", "--hours", "100", "--gpus", "1",
                "--gpu", "4090", "--micro", "1", "--length", "512", "--recompute"])
    lines = capsys.readouterr().out.splitlines()
    net = flm.FLM(flm.PRESETS["7b"])
    lora.adapt(net, lora.Selection(rank=16))
    trained_count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    stays = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    sizes = {line.split("  ")[-1]: float(line.split()[0]) for line in lines if line[:1] == " "}
    assert sizes["weights that stay, sharded"] == pytest.approx(2 * stays / 1e9, abs=0.1)
    moments = sizes["weights, gradients and two moments in float32, sharded"]
    assert moments == pytest.approx(16 * trained_count / 1e9, abs=0.1)
    assert sizes["in all"] < 24


def test_plot(run, monkeypatch):
    """Catches a picture that fails on real logs, and a traceback where matplotlib is missing."""
    train.train(replace(run, epochs=1, hold_out=0.1))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        train.main(["plot", run.out])
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    train.main(["plot", run.out])
    assert (Path(run.out) / "curves.png").stat().st_size > 10_000
