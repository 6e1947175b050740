"""What can differ on a GPU: graphs, packed weights, the codec, FSDP, checkpoints, and --device of
every command.

Skipped without a GPU. `FLM_DEVICE=cpu python -m pytest tests/test_cuda.py` runs the same code on a
CPU, where frames are traced as for the compiler but not captured, and a group of one process is
gloo's: it shows that the tests themselves run."""
import functools
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import chat
import flm
import mimi
import stream
import train
from chat import Duplex, Sampling
from stream import Ids, K
from workshop import batches, codec_files, graphs, model_files, processes, quantize, shards
from workshop.training_log import read_log

DEVICE = os.environ.get("FLM_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"
QUESTION = ROOT / "examples" / "question.wav"
RANDOM = Sampling(temperature_text=1.0, temperature_audio=1.0)

pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="there is no GPU")
on_gpu = pytest.mark.skipif(not ON_GPU, reason="CUDA alone has this")


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    """On a CPU: the compiler's front half alone."""
    if not ON_GPU:
        aot_eager = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", aot_eager)


@pytest.fixture
def reference():
    """A small model of the release's own code, and what that code said to some codes."""
    folder = REFERENCE / "flm_small"
    return model_files.load(folder, DEVICE), load_file(folder / "golden.safetensors")


def session(duplex, listen, seed=3):
    """Codes heard [T, 8] -> [T, 9] of text and codes, -1 where nothing was returned."""
    duplex.reset(seed=seed)
    rows = []
    for codes in listen:
        frame = duplex.step(codes)
        rows.append([-1] * (1 + K) if frame is None else [frame[0], *frame[1]])
    return torch.tensor(rows)


def relative(values, expected):
    """The norm of the difference, in norms of what is expected."""
    values = values.detach().float().cpu()
    expected = expected.detach().float().cpu()
    return ((values - expected).norm() / expected.norm().clamp(min=1e-6)).item()


# --- frames ---

@pytest.mark.parametrize("fast", (False, True))
@pytest.mark.parametrize("golden, sampling", [
    ("stream_greedy", Sampling.greedy()),
    ("stream_greedy_rep", Sampling.greedy(penalty_text=1.03, penalty_audio=1.2)),
])
def test_a_session_is_the_release_s(reference, golden, sampling, fast):
    """Catches any difference between the release's tokens on a CPU and ours on this device, as the
    frame stands and captured."""
    model, tensors = reference
    tokens = session(Duplex(model, sampling, fast=fast), tensors["stream_listen"])
    different = (tokens != tensors[golden].long()).any(1).nonzero()
    assert not len(different), f"first difference in frame {different[0].item()}"


@pytest.mark.parametrize("sampling", (Sampling(), RANDOM,
                                      Sampling(top_p_audio=0, top_k_audio=5, temperature_text=1)))
def test_a_captured_frame_says_what_the_frame_says(reference, sampling):
    """Catches a graph that reads another buffer than it is fed, random numbers that were captured
    with it, and a state that it does not carry on, also when the ring has turned."""
    model, tensors = reference
    listen = torch.cat([tensors["stream_listen"]] * 10)[:100]
    eager = session(Duplex(model, sampling, 24), listen)
    fast = session(Duplex(model, sampling, 24, fast=True), listen)
    assert torch.equal(eager, fast)


def test_a_frame_is_that_of_the_cpu(reference):
    """Catches a sampler that draws other tokens here than on a CPU."""
    model, tensors = reference
    here = session(Duplex(model, RANDOM, 24), tensors["stream_listen"])
    on_cpu = model_files.load(REFERENCE / "flm_small")
    there = session(Duplex(on_cpu, RANDOM, 24), tensors["stream_listen"])
    assert torch.equal(here, there)


def test_conversations_with_sound_begin_again_and_stand_still(untrained):
    """Catches a captured frame with codec in which one conversation disturbs another, in which a
    reset is forgotten, or forced text is lost."""
    partner = chat.Partner(untrained, RANDOM, DEVICE, batch=2)
    user_audio = 0.1 * torch.randn(20, 1920, generator=torch.Generator().manual_seed(0))

    def answers(duplex):
        duplex.reset(0, seed=1)
        duplex.reset(1, seed=2)
        rows = []
        for t, frame in enumerate(user_audio):
            if t == 11:
                duplex.reset(1, seed=3)
            users = {0: frame, 1: frame} if t % 3 else {0: frame}
            rows.append(duplex.steps(users, force_text={0: 5} if t == 4 else None))
        return rows
    shape = dict(context=8, batch=2, codec=partner.codec)
    fast = answers(Duplex(partner.model, RANDOM, fast=True, **shape))
    eager = answers(Duplex(partner.model, RANDOM, **shape))
    for one, other in zip(eager, fast):
        assert one.keys() == other.keys()
        for i in one:
            assert one[i][:2] == other[i][:2]
            assert torch.allclose(one[i][2], other[i][2], atol=1e-3)


def test_conversations_of_a_batch_are_as_alone(reference):
    """Catches a batch of sixteen whose conversations meet."""
    model, _ = reference
    generator = torch.Generator().manual_seed(0)
    listen = torch.randint(0, model.config.empty_token, (16, 30, K), generator=generator)
    together = Duplex(model, RANDOM, 24, batch=16, fast=True)
    for i in range(16):
        together.reset(i, seed=i)
    frames = [together.steps({i: listen[i, t] for i in range(16)}) for t in range(30)]
    alone = Duplex(model, RANDOM, 24, fast=True)
    for i in (0, 7, 15):
        expected = session(alone, listen[i], seed=i)[1:]
        assert [frame[i][:2] for frame in frames[1:]] == [
            (row[0], row[1:]) for row in expected.tolist()]


def test_an_older_conversation_goes_on_beside_a_newer_one(reference):
    """Catches a graph whose kernels or memory go away when another frame is compiled, as when the
    sampling is changed on a server."""
    model, tensors = reference
    listen = tensors["stream_listen"]
    older = Duplex(model, RANDOM, 24, fast=True)
    before = session(older, listen)
    newer = Duplex(model, Sampling.greedy(), 24, fast=True)
    session(newer, listen)
    assert torch.equal(session(older, listen), before)


def test_a_frame_may_run_in_another_thread(reference):
    """Catches a graph that depends on the thread that captured it: a server steps in others."""
    model, tensors = reference
    listen = tensors["stream_listen"]
    duplex = Duplex(model, RANDOM, 24, fast=True)
    before = session(duplex, listen)
    results = []
    thread = threading.Thread(target=lambda: results.append(session(duplex, listen)))
    thread.start()
    thread.join()
    assert torch.equal(results[0], before)


@on_gpu
@pytest.mark.parametrize("fast", (False, True))
def test_a_frame_does_not_wait_for_the_gpu(untrained, fast):
    """Catches an operation within a frame that waits until the GPU is done."""
    partner = chat.Partner(untrained, RANDOM, DEVICE, batch=2)
    duplex = Duplex(partner.model, RANDOM, 8, batch=2, fast=fast, codec=partner.codec)
    duplex.steps({0: torch.zeros(1920)})
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            duplex.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_frames_take_no_more_memory(untrained):
    """Catches a conversation whose memory grows."""
    partner = chat.Partner(untrained, RANDOM, DEVICE)
    for fast in (False, True):
        duplex = Duplex(partner.model, RANDOM, 8, fast=fast, codec=partner.codec)
        sizes = []
        for _ in range(60):
            duplex.steps({0: torch.zeros(1920)})
            sizes.append(torch.cuda.memory_allocated())
        assert sizes[-1] == sizes[20], (fast, sizes)


@pytest.mark.parametrize("how", (Sampling().text, Sampling().audio, RANDOM.text,
                                 Sampling(top_p_text=0, top_k_text=50, temperature_text=1).text))
def test_tokens_are_drawn_as_on_the_cpu(how):
    """Catches another order of equal tokens, sum or search, over the vocabulary of the 7B."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 152_064, generator=generator)
    chance = torch.rand(64, generator=generator).clamp(max=chat.HIGHEST)
    recent = torch.randint(0, 152_064, (64, 50), generator=generator)
    is_first = torch.arange(64) < 8
    expected = chat.sample(how, logits, chance, recent, is_first)
    tensors = [tensor.to(DEVICE) for tensor in (logits, chance, recent, is_first)]
    tokens = chat.sample(how, *tensors)
    assert (tokens.cpu() == expected).float().mean() > 0.98


# --- weights of 8 and 4 bits ---

@pytest.mark.parametrize("bits", (8, 4))
@pytest.mark.parametrize("rows, columns", ((70, 300), (513, 1024), (2730, 1024), (1024, 2730)))
def test_a_packed_layer_computes_what_its_numbers_say(bits, rows, columns):
    """Catches packed weights in another order than this device's product reads them, and a bias or
    padding that is lost: against the same numbers unpacked, by hand."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(columns, rows).to(torch.bfloat16)
    weight = linear.weight.detach().float()
    if bits == 8:
        ids, scale = quantize.pack_8(weight)
        weight = ids.float() * scale[:, None].bfloat16().float()
    else:
        padded = torch.nn.functional.pad(weight, (0, -columns % 128))
        groups = padded.unflatten(1, (-1, 128))
        low = groups.amin(-1, keepdim=True)
        scale = ((groups.amax(-1, keepdim=True) - low).clamp(min=1e-8) / 15)
        ids = ((groups - low) / scale).round().clamp(0, 15)
        offset = (low + 8 * scale).bfloat16().float()
        whole = (ids - 8) * scale.bfloat16().float() + offset
        weight = whole.flatten(1)[:, :columns]
    packed = quantize.Packed(linear.to(DEVICE), bits)
    for count in (1, 3, 70):
        x = torch.randn(count, columns, dtype=torch.bfloat16)
        expected = x.float() @ weight.T + linear.bias.float().cpu()
        assert relative(packed(x.to(DEVICE)), expected) < 0.01, count


@pytest.mark.parametrize("bits", (8, 4))
def test_a_packed_layer_compiles(bits):
    """Catches a product with one vector that is another when it is compiled."""
    torch.manual_seed(0)
    packed = quantize.Packed(torch.nn.Linear(1024, 513).to(DEVICE, torch.bfloat16), bits)
    for count in (1, 4):
        x = torch.randn(count, 1024, dtype=torch.bfloat16, device=DEVICE)
        with torch.inference_mode():
            compiled = torch.compile(packed, fullgraph=True, dynamic=False)(x)
        assert relative(compiled, packed(x)) < 0.01


def test_the_product_with_a_vector_is_that_of_8_bits():
    """Catches a fused product, for the compiler on a GPU, that is another than the kernel's."""
    torch.manual_seed(0)
    packed = quantize.Packed(torch.nn.Linear(300, 70, bias=False).to(DEVICE, torch.bfloat16), 8)
    x = torch.randn(1, 300, dtype=torch.bfloat16, device=DEVICE)
    row = torch.nn.functional.pad(x, (0, packed.weight.shape[1] - 300))
    product = quantize.product_with_a_vector(row, packed.weight, packed.scale)
    assert relative(product[:, :70], packed(x)) < 0.01


@pytest.mark.parametrize("bits", (16, 8, 4))
def test_a_model_of_few_bits_talks_in_captured_frames(untrained, bits):
    """Catches packed layers that cannot be captured, and ids that no vocabulary has."""
    model = model_files.load(untrained, DEVICE, torch.bfloat16, quantize.packing(bits)).eval()
    duplex = Duplex(model, Sampling(), 16, fast=True)
    tokens = session(duplex, torch.randint(0, 512, (20, K)))[1:]
    assert tokens.min() >= 0 and tokens[:, 0].max() < 1024 and tokens[:, 1:].max() < 513


# --- the codec ---

def sound(seconds):
    audio, _ = soundfile.read(QUESTION, dtype="float32")
    return torch.from_numpy(audio[:round(24_000 * seconds)])[None, None]


def test_the_codec_hears_and_says_what_it_does_on_a_cpu(shipped):
    """Catches convolutions of less than float32, which choose other codes."""
    here = codec_files.load(shipped, DEVICE)
    there = codec_files.load(shipped)
    audio = sound(1.6)
    codes = here.encode(audio.to(DEVICE)).cpu()
    expected = there.encode(audio)
    assert (codes == expected).float().mean() > 0.99
    assert relative(here.decode(expected.to(DEVICE)), there.decode(expected)) < 1e-3


@pytest.mark.parametrize("ends", ("tiny", "released"))
def test_a_compiled_codec_is_the_codec(ends):
    """Catches a compiled frame of the codec that hears or says something else than the codec does
    for the whole clip at once."""
    torch.manual_seed(0)
    codec = mimi.Mimi(mimi.PRESETS[ends]).eval().requires_grad_(False).to(DEVICE)
    audio = sound(1.6).to(DEVICE)
    codes = codec.encode(audio)
    expected = codec.decode(codes)
    torch.compiler.reset()

    def encode(tools, samples):
        return (codec.encode_chunk(samples),)

    def decode(tools, one):
        return (codec.decode_chunk(one),)
    with torch.inference_mode(), codec.streaming(1):
        runner = graphs.Runner(True, DEVICE)
        # A part's first call compiles it, with all streams standing still.
        codec.active.fill_(0)
        runner.run(encode, None, audio[..., :1920].clone())
        runner.run(decode, None, codes[..., :1].clone())
        codec.active.fill_(1)
        heard = [runner.run(encode, None, part)[0].clone() for part in audio.split(1920, -1)]
        said = [runner.run(decode, None, part)[0].clone() for part in codes.split(1, -1)]
    assert (torch.cat(heard, -1) == codes).float().mean() > 0.98
    assert relative(torch.cat(said, -1), expected) < 1e-3


# --- training ---

SMALL = replace(flm.PRESETS["tiny"], vocab_size=1024, num_hidden_layers=2, depth_layers=1)


@pytest.fixture
def run(tmp_path):
    """Made-up grids, a model to start from, and the settings of a short run on this device."""
    for format in ("asr", "tts"):
        grids = []
        generator = torch.Generator().manual_seed(len(format))
        for _ in range(12):
            turn = stream.Turn(20, 20, [4, 5], [6, 7, 8])
            script = stream.write(format, [turn], [2, 2], Ids.of(SMALL))
            speak, listen = torch.randint(0, 512, (2, len(script), K), generator=generator)
            one = script.grid(None, listen) if format == "asr" else script.grid(speak, None)
            grids.append(one)
        (tmp_path / format).mkdir()
        shards.save(grids, tmp_path / format / "shard-00000.safetensors")
        (tmp_path / format / "grids.json").write_text(json.dumps({"format": format}))
    torch.manual_seed(0)
    model_files.save(flm.init_weights(flm.FLM(SMALL)), tmp_path / "start")
    yield train.Settings(
        grids=(str(tmp_path / "asr"), str(tmp_path / "tts")), init=str(tmp_path / "start"),
        out=str(tmp_path / "out"), epochs=2, lr=(3e-3, 1e-3), batch=4, length=128, save_every=2,
        device=DEVICE)
    processes.leave()


def join_group():
    """This process alone as a group, as train.py does on a GPU."""
    if ON_GPU:
        return processes.connect(DEVICE)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return torch.device(DEVICE)


def gradient(settings, device):
    """Terms of equation 3 and the whole gradient of a run's first step."""
    equation, _ = train.build(settings, device)
    first_step = batches.Batches(settings.resolve(equation.flm.config), equation.flm.config).step(0)
    terms, _ = train.gradients(equation, first_step, settings.weights())
    parts = []
    for parameter in equation.parameters():
        if parameter.requires_grad:
            parts.append(processes.gather(parameter.grad).float().cpu().flatten())
    return terms, torch.cat(parts)


def log_of(folder):
    """[(step, loss, norm)] of a run."""
    lines = [line for line in read_log(folder) if "loss" in line]
    return [(line["step"], line["loss"], line["norm"]) for line in lines]


def test_the_gradient_is_that_of_the_cpu(run):
    """Catches a loss or gradient that is another one on this device."""
    terms, here = gradient(run, torch.device(DEVICE))
    expected, there = gradient(run, torch.device("cpu"))
    assert torch.allclose(terms, expected, rtol=1e-4)
    assert relative(here, there) < 1e-3


def test_fsdp_of_one_process_is_the_plain_run(run):
    """Catches weights or gradients that sharding over a group of one changes."""
    terms, plain = gradient(run, torch.device(DEVICE))
    sharded_terms, sharded = gradient(run, join_group())
    assert torch.allclose(terms, sharded_terms, rtol=1e-5)
    assert relative(sharded, plain) < 1e-4


@pytest.mark.parametrize("options", (
    dict(bfloat16=True), dict(recompute=True), dict(compile=True),
    dict(bfloat16=True, recompute=True, compile=True)))
@pytest.mark.parametrize("grouped", (False, True))
def test_options_of_speed_change_no_gradient(run, options, grouped):
    """Catches a gradient that bfloat16 ruins, or that recomputation or the compiler change, each
    alone and together, with FSDP and without."""
    _, plain = gradient(run, torch.device(DEVICE))
    device = join_group() if grouped else torch.device(DEVICE)
    _, fast = gradient(replace(run, **options), device)
    assert relative(fast, plain) < (0.1 if "bfloat16" in options else 1e-3)


@pytest.mark.parametrize("part", (dict(), dict(lora=4)))
def test_a_run_resumes_from_what_was_written_in_the_background(run, part, monkeypatch):
    """Catches a checkpoint whose weights or moments have moved on while they were written, and a
    run that goes on from something else."""
    run = replace(run, bfloat16=True, recompute=True, **part)
    if not ON_GPU:
        join_group()
    train.train(replace(run, out=f"{run.out}-whole"))
    anywhere = processes.StopRequest.anywhere
    calls = []

    def at_the_third_step(request):
        calls.append(1)
        return len(calls) == 3
    monkeypatch.setattr(processes.StopRequest, "anywhere", at_the_third_step)
    with pytest.raises(train.TrainError, match="stopped at step 3"):
        train.train(run)
    monkeypatch.setattr(processes.StopRequest, "anywhere", anywhere)
    train.train(run)
    whole = log_of(f"{run.out}-whole")
    resumed = log_of(run.out)
    assert len(whole) == len(resumed) > 3
    for one, other in zip(whole, resumed):
        assert one == pytest.approx(other, rel=2e-2)
    weights = model_files.load(run.out).state_dict()
    for name, value in model_files.load(f"{run.out}-whole").state_dict().items():
        assert relative(weights[name], value) < 0.05, name


def test_a_step_teaches(run):
    """Catches an optimizer that gets no gradients, in the mode in which a GPU trains."""
    train.train(replace(run, bfloat16=True, recompute=True, compile=True, epochs=8))
    losses = [loss for _, loss, _ in log_of(run.out)]
    assert losses[-1] < 0.95 * losses[0], losses


def test_the_depth_transformer_takes_as_many_frames_as_fit_the_memory():
    """Catches a kernel that takes no more than 65,535 frames at once, forward or backward."""
    N = 70_000
    config = replace(SMALL, depth_dim=32, depth_heads=2, hidden_size=32, head_dim=8)
    depth = flm.init_weights(flm.FLM(config), DEVICE, torch.bfloat16).aud_output_layers
    h = torch.randn(N, 32, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    inputs = torch.randint(0, 512, (N, K), device=DEVICE)
    whole = depth(h, inputs)
    whole[-10:].float().square().sum().backward()
    assert relative(whole[-10:], depth(h[-10:], inputs[-10:])) < 0.01
    assert h.grad[-1].abs().sum() > 0 and h.grad[0].abs().sum() == 0


# --- commands ---

def command(*arguments, timeout=300):
    """python ARGUMENTS in the repository -> what it printed."""
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, text=True,
                            capture_output=True, timeout=timeout)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture
def short(tmp_path):
    """A second of a question."""
    path = tmp_path / "short.wav"
    soundfile.write(path, sound(1)[0, 0].numpy(), 24_000)
    return path


@pytest.mark.parametrize("options", ([], ["--eager"], ["--bits", "8"], ["--bits", "4", "--eager"]))
def test_chat_answers_a_file(untrained, short, tmp_path, options):
    """Catches a way into a conversation that does not run on this device."""
    answer = tmp_path / "answer.wav"
    command("chat.py", "--model", untrained, "--device", DEVICE, "--in", short, "--out", answer,
            "--tail", 1, *options)
    assert soundfile.info(answer).duration == pytest.approx(2, abs=0.1)


def test_chat_answers_as_it_should(shipped, tmp_path):
    """Catches a trained model that says something else here than on a CPU."""
    output = command("chat.py", "--device", DEVICE, "--in", QUESTION, "--out", tmp_path / "a.wav")
    assert "The capital of France is Paris." in output


@pytest.mark.parametrize("bits", (16, 8, 4))
def test_chat_times_a_frame(bits):
    """Catches a bench that does not run on this device."""
    report = command("chat.py", "--bench", "--random-weights", "tiny", "--frames", 3, "--bits",
                     bits, "--device", DEVICE).splitlines()[-1]
    assert json.loads(report)["ms_per_frame"]["median"] > 0


def test_chat_serves(untrained, tmp_path):
    """Catches a server that does not come up on this device."""
    pytest.importorskip("aiohttp")
    process = subprocess.Popen(
        [sys.executable, "chat.py", "--model", untrained, "--device", DEVICE, "--serve", "8997",
         "--sessions", "2"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.time() + 240
        page = None
        while page is None and time.time() < deadline and process.poll() is None:
            try:
                page = urllib.request.urlopen("http://localhost:8997/", timeout=5).read()
            except OSError:
                time.sleep(0.5)
        assert page, "no page came"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_data_encodes(untrained, short, tmp_path):
    """Catches an encoder that does not run on this device, in one process and in two."""
    line = {"audio": str(short), "text": "w5 w6"}
    manifest = tmp_path / "pairs.jsonl"
    manifest.write_text((json.dumps(line) + "\n") * 3)
    for workers in (1, 2):
        out = tmp_path / f"grids-{workers}"
        command("data.py", "encode", manifest, out, "--format", "asr", "--model", untrained,
                "--device", DEVICE, "--workers", workers)
        assert len(list(out.glob("shard-*.safetensors"))) == 1


def test_train_runs_stops_and_exports(run, untrained, tmp_path):
    """Catches train.py's commands where they do not run on this device."""
    command("train.py", "run", *run.grids, "--init", run.init, "--out", run.out, "--device", DEVICE,
            "--batch", 4, "--length", 128, "--epochs", 1, "--bfloat16", "--beside", untrained)
    command("train.py", "export", run.out, tmp_path / "model", "--dtype", "bfloat16")
    assert (tmp_path / "model" / "model.safetensors").exists()
    output = command("train.py", "bench", "tiny", "--length", 300, "--steps", 1, "--device", DEVICE,
                     "--bfloat16", "--recompute")
    assert output.count("frames/s") == 2


def test_torchrun_of_one_process_runs(run):
    """Catches a group that torchrun forms and train.py does not find."""
    command("-m", "torch.distributed.run", "--nproc-per-node", 1, "train.py", "run", *run.grids,
            "--init", run.init, "--out", run.out, "--device", DEVICE, "--batch", 4, "--length",
            128, "--epochs", 1, "--bfloat16", "--recompute")
    assert (Path(run.out) / "model.safetensors").exists()


def test_eval_measures(run, untrained, short, tmp_path):
    """Catches an evaluation that does not run on this device: conversations and losses."""
    dialogs = tmp_path / "dialogs.jsonl"
    turn = {"heard": str(short), "transcript": "w5", "spoken": str(short), "response": "w6"}
    dialogs.write_text(json.dumps({"turns": [turn]}) + "\n")
    command("eval.py", "--model", untrained, "--device", DEVICE, "--grids", *run.grids,
            "--dialogs", dialogs, "--only", "questions", "--talk", 0, "--out", tmp_path / "results")
    assert "loss" in (tmp_path / "results" / "results.txt").read_text()
