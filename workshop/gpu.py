"""What half an hour on a lent GPU is used for: jobs, one after the other, each within its time.

What this is: the list of jobs of gpu.sh (tests on the GPU, benches, a run of training), what runs
them and remembers which are done, and the tables for the README that follow from what they print.
It serves all root files. What this is not: a benchmark of its own, but for many conversations at
once, adapters of the 7B, and how fast batches are read; all else calls the project's commands.

    sh workshop/gpu.sh                       # runs this file; its head says how
    DEVICE=cpu sh workshop/gpu.sh            # a rehearsal with small shapes
    python -m workshop.gpu list              # the jobs, and which are done

Unusual here:
- A job that the end of a call cuts off begins again in the next call, once. Of the tests, those
  begin again that had not ended. A failure is written down and stops nothing. The run of training
  gets a Ctrl-C instead, and goes on.
- Random weights are drawn on the GPU, in seconds; flm.py draws those of the 7B in minutes.
"""
import argparse
import functools
import gc
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DEVICE = os.environ.get("DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
WORK = Path(os.environ.get("WORK", "/tmp/flm-gpu"))     # survives a call, not the machine
LOAD = Path(os.environ.get("LOAD", ROOT / ".gpu"))      # what gpu.sh prepare made
TO_END = 15      # seconds before the end of a call in which nothing begins
TO_STOP = 45     # seconds that a run of training has for its last checkpoint
LEAST_IN_A_REHEARSAL = 5
THIS = ["-m", "workshop.gpu"]


# --- the jobs ---

class Job(NamedTuple):
    name: str
    stage: str         # tests, bench or train
    least: int         # seconds that must be left for it to begin
    most: int          # seconds after which it has failed
    arguments: list    # of python
    goes_on: bool = False   # a Ctrl-C stops it, and the same command goes on
    tries: int = 2          # calls that may cut it off


def jobs():
    """All jobs, the most important of each stage first."""
    return [tests(), *frames(), *training(), *conversations(), data_rate(), *the_run()]


def tests():
    arguments = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    if ON_GPU and has_package("xdist"):
        arguments += ["-n", "4"]
    if ON_GPU and has_package("pytest_timeout"):
        arguments += ["--timeout", "240"]
    return Job("tests", "tests", 60, 10**6, arguments, tries=4)


def shape(name):
    """A preset, or the smallest one in a rehearsal."""
    return name if ON_GPU else "tiny"


def frames():
    """chat.py --bench: a frame's parts, beside the straightforward loop."""
    def bench(name, *options, least=60, most=280, how=()):
        count = 200 if ON_GPU else 3
        return Job(name, "bench", least, most,
                   [*THIS, "chat", *how, "--bench", "--device", DEVICE, "--frames", str(count),
                    *options])

    def random_weights(name):
        return "--random-weights", shape(name)
    return [
        bench("frame shipped"),
        bench("frame 7b bfloat16", *random_weights("7b"), "--bfloat16", least=120),
        bench("frame 7b 4 bits", *random_weights("7b"), "--bits", "4", least=120),
        bench("frame 7b 8 bits", *random_weights("7b"), "--bits", "8", least=120),
        bench("frame 0.5b bfloat16", *random_weights("0.5b"), "--bfloat16"),
        bench("frame 0.5b 8 bits", *random_weights("0.5b"), "--bits", "8"),
        bench("frame 7b bfloat16, not captured", *random_weights("7b"), "--bfloat16", "--eager"),
        # Two ways in which PyTorch may read weights and caches faster, to be tried.
        bench("frame 7b bfloat16, attention by the compiler", *random_weights("7b"), "--bfloat16",
              how=["--plain-attention"], least=150),
        bench("frame 7b bfloat16, vectors by the compiler", *random_weights("7b"), "--bfloat16",
              how=["--fused-vectors"], least=200),
    ]


def training():
    """train.py bench in sequences as long as the paper's, with all options and with each left out;
    adapters."""
    options = ["--bfloat16", "--recompute", "--compile"]
    length, steps = ("8192", "10") if ON_GPU else ("300", "1")
    if not ON_GPU:
        options.remove("--compile")

    def bench(preset, without=None, least=60):
        chosen = [option for option in options if option != without]
        name = f"train {preset}" + (f", without {without}" if without else "")
        return Job(name, "bench", least, 240,
                   [*THIS, "train", "bench", shape(preset), "--length", length, "--steps", steps,
                    "--device", DEVICE, *chosen])
    return [
        bench("0.5b"),
        bench("1.5b", least=90),
        Job("adapters of the 7b", "bench", 120, 400, [*THIS, "adapters"]),
        *(bench("0.5b", option) for option in options),
        *(bench("1.5b", option, least=90) for option in options[1:]),
    ]


def conversations():
    """Many in one batch."""
    jobs = []
    for preset, counts in (("7b", (64, 16, 4)), ("0.5b", (64, 16, 4, 1))):
        for count in counts:
            jobs.append(Job(f"{count} conversations {preset}", "bench", 120, 280,
                            [*THIS, "conversations", shape(preset), str(count)]))
    return jobs


def data_rate():
    return Job("data", "bench", 20, 120, [*THIS, "data"])


def the_run():
    """The run of training whose options stand in LOAD/train; those of train.py run but --out."""
    file = LOAD / "train"
    if not file.exists():
        return []
    options = shlex.split(file.read_text())
    # A path that is not here stands in LOAD, or in what was carried there in pieces.
    for i, option in enumerate(options):
        for folder in (LOAD, WORK / "carried"):
            name, weight, times = option.partition(":")
            if not Path(option).exists() and (folder / name).exists():
                options[i] = str(folder / name) + weight + times
    arguments = ["train.py", "run", *options, "--device", DEVICE, "--out", str(WORK / "run")]
    return [Job("run", "train", 90, 10**6, arguments, goes_on=True)]


def has_package(name):
    from importlib.util import find_spec
    return find_spec(name) is not None


# --- running them ---

class Record:
    """Which jobs are done, WORK/done.json: {name: {"tries", "state", "seconds"}}."""

    def __init__(self):
        self.path = WORK / "done.json"
        self.jobs = {}
        for path in (LOAD / "done.json", self.path):  # the first is of an earlier machine
            if path.exists():
                self.jobs |= json.loads(path.read_text())

    def waits(self, job):
        """Whether a job has not ended yet."""
        entry = self.jobs.get(job.name, {})
        return entry.get("state") not in ("done", "failed")

    def tries(self, job):
        return self.jobs.get(job.name, {}).get("tries", 0)

    def write(self, job, state, seconds):
        tries = self.tries(job) + 1
        if state == "cut off" and tries >= job.tries and not job.goes_on:
            state = "failed"
        self.jobs[job.name] = {"state": state, "tries": tries, "seconds": round(seconds)}
        self.path.write_text(json.dumps(self.jobs, indent=1))
        return state


def log_of(job):
    return WORK / "logs" / (re.sub(r"\W+", "-", job.name) + ".log")


def run_jobs(stages, end):
    """Run what is not done of some stages, until the second `end` of time.time()."""
    record = Record()
    (WORK / "logs").mkdir(parents=True, exist_ok=True)
    for job in jobs():
        left = end - time.time() - TO_END
        if job.stage not in stages or not record.waits(job):
            continue
        if left < (job.least if ON_GPU else LEAST_IN_A_REHEARSAL):
            print(f"      {job.name}: waits for the next call, {left:.0f} s are left")
            continue
        began = time.time()
        print(f"  ..  {job.name}", flush=True)
        code = run(job, min(left, job.most))
        seconds = time.time() - began
        state = {0: "done", None: "cut off"}.get(code, "failed")
        if code is None and left > job.most:
            state = "failed"  # it had its time
        state = record.write(job, state, seconds)
        print(f"{state:>8}  {job.name}, {seconds:.0f} s", flush=True)
        if state == "failed":
            lines = log_of(job).read_text(errors="replace").splitlines()
            print("\n".join(f"          | {line[:160]}" for line in lines[-12:]), flush=True)


def run(job, seconds):
    """Run a job for so many seconds -> its exit code, or None where it was stopped."""
    arguments = [sys.executable, *job.arguments]
    if job.name == "tests":
        for test in tests_that_ran():
            arguments += ["--deselect", test]
    environment = os.environ | {"FLM_DEVICE": DEVICE, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    with open(log_of(job), "a") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if not job.goes_on:
                return process.wait(seconds)
            try:
                return process.wait(max(1, seconds - TO_STOP))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            process.wait(TO_STOP)
            return None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def tests_that_ran():
    """Their names, which the next call leaves out."""
    log = log_of(tests())
    text = log.read_text(errors="replace") if log.exists() else ""
    names = set()
    for line in text.splitlines():
        test = re.search(r"tests/test_cuda\.py::\S+", line)
        if test and re.search(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", line):
            names.add(test[0])
    return sorted(names)


# --- jobs that are no command of the project ---

def quick_weights(model, device="cpu", dtype=None):
    """In place of flm.init_weights: the values that are missing, drawn where they are quickest."""
    import torch
    values = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            value = torch.empty(parameter.shape, device=DEVICE)
            if parameter.ndim > 1:
                value.normal_(0, 0.02)
            else:
                value.fill_(name.endswith("weight"))
            values[name] = value.to(device, dtype or torch.float32)
    model.load_state_dict(values, strict=False, assign=True)
    return model


def run_chat(options):
    """chat.py, perhaps with another attention or product than it has."""
    from contextlib import nullcontext

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    import chat
    import flm
    flm.init_weights = quick_weights
    attention = nullcontext()
    if "--plain-attention" in options:
        options.remove("--plain-attention")
        attention = sdpa_kernel(SDPBackend.MATH)
    if "--fused-vectors" in options:
        options.remove("--fused-vectors")
        torch._inductor.config.coordinate_descent_tuning = True
    with attention:
        chat.main(options)


def run_train(options):
    import flm
    import train
    flm.init_weights = quick_weights
    train.main(options)


def conversations_at_once(preset, count):
    """Frames of so many conversations in one batch, as a server computes them -> JSON."""
    import torch

    import chat
    import flm
    import mimi
    from workshop import devices
    device = torch.device(DEVICE)
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    model = quick_weights(flm.FLM(flm.PRESETS[preset]), device, dtype).eval()
    devices.convolve_exactly()
    codec = mimi.Mimi(mimi.PRESETS["tiny" if preset == "tiny" else "released"])
    codec = codec.eval().requires_grad_(False).to(device)
    began = time.time()
    duplex = chat.Duplex(model, chat.Sampling(), batch=count, codec=codec, fast=ON_GPU)
    preparing = time.time() - began
    times = []
    for _ in range(103 if ON_GPU else 5):
        user = {i: 0.1 * torch.randn(1920) for i in range(count)}
        began = time.perf_counter()
        duplex.steps(user)
        times.append(1000 * (time.perf_counter() - began))
    times = sorted(times[3:])
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else None
    print(json.dumps({
        "preset": preset, "conversations": count, "median_ms": median(times),
        "p99_ms": times[int(0.99 * len(times))], "frames_per_s": 1000 * count / median(times),
        "gigabytes": gigabytes, "seconds_to_prepare": preparing}))


def training_step(equation, optimizer, weights, batch):
    """One step on one micro-batch -> its tokens by class."""
    import train
    _, counts = train.gradients(equation, [batch], weights)
    optimizer.step()
    optimizer.zero_grad()
    return counts


def adapters_of_7b():
    """The memory and the speed of adapters beside a frozen 7B, in sequences of several lengths,
    until the memory is full -> a line of JSON each."""
    import torch

    import flm
    import train
    from stream import Ids, Loss
    from workshop import costs, lora, starting
    from workshop.batches import collate
    config = flm.PRESETS[shape("7b")]
    device = torch.device(DEVICE)
    sizes = [(32, 512), (32, 1024), (32, 2048), (32, 8192), (256, 8192)]
    if not ON_GPU:
        sizes = [(4, 300), (8, 300)]
    for rank, length in sizes:
        settings = train.Settings(init=shape("7b"), out="-", lora=rank, bfloat16=True,
                                  recompute=True, compile=ON_GPU, device=DEVICE)
        selection = lora.Selection.of(vars(settings))
        model = quick_weights(flm.FLM(config), device, torch.bfloat16)
        lora.adapt(model, selection, bfloat16=True)
        starting.model_to_train = lambda settings, model=model: (model, None)
        equation, _ = train.build(settings, device)
        optimizer = train.make_optimizer(equation)
        batch = collate([costs.made_up_pairs(config, length)], length, Ids.of(config))
        step = functools.partial(training_step, equation, optimizer, settings.weights())
        line = {"rank": rank, "frames": length}
        torch.compiler.reset()
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds, counts = costs.seconds_a_step(step, batch, 3, device)
            kinds = counts[Loss.MONOLOGUE] + counts[Loss.WAIT]
            line["frames_per_s"] = kinds.item() / seconds
            line["gigabytes"] = costs.memory(device) / 1e9
            if costs.peak(device):
                work = costs.flops(config, kinds.item(), length, counts[Loss.SEMANTIC].item(),
                                   selection)
                line["mfu"] = work / seconds / costs.peak(device)
        except torch.OutOfMemoryError:
            line["gigabytes"] = "more than there are"
        print(json.dumps(line), flush=True)
        # All that holds the model, before the next one is made.
        del model, equation, optimizer, step
        starting.model_to_train = None
        if ON_GPU:
            gc.collect()
            torch.cuda.empty_cache()


def rate_of_batches(seconds=8):
    """Frames a second that workshop/batches.py reads in one thread, of long samples (the dialogs of
    tiny/replay) and of short ones (pairs of 1 to 10 seconds, made up), beside those that a GPU at
    EXPECTED_MFU trains on -> a line of JSON each."""
    import tempfile

    import torch

    import flm
    import train
    from workshop import costs, shards
    from workshop.batches import Batches
    torch.set_num_threads(1)
    config = flm.PRESETS["tiny"]
    with tempfile.TemporaryDirectory() as short:
        for i in range(8):
            pairs = costs.made_up_pairs(config, 20_000)
            shards.save(pairs, Path(short) / f"shard-{i:05d}.safetensors")
        (Path(short) / "grids.json").write_text('{"format": "tts"}')
        thinned = dict(depth_share=0.5, repeats=0.2, hide=0.1)
        for name, folder, more in (("long samples", ROOT / "tiny" / "replay", {}),
                                   ("short samples", short, {}),
                                   ("short samples, some codes hidden or thinned", short, thinned)):
            settings = train.Settings(grids=(str(folder),), init="tiny", out="-", batch=8,
                                      length=8192, micro=1, epochs=10**6, **more)
            batches = Batches(settings.resolve(config), config)
            frames = 0
            began = time.perf_counter()
            busy = time.thread_time()
            step = 0
            while time.perf_counter() - began < seconds:
                for batch in batches.step(step):
                    frames += batch.text.numel()
                step += 1
            by_the_clock = frames / (time.perf_counter() - began)
            busy = time.thread_time() - busy  # beside other programs the clock counts theirs too
            print(json.dumps({"read": name, "frames_per_s": frames / busy,
                              "frames_per_s_by_the_clock": by_the_clock}), flush=True)
    tera = costs.GPUS["H100"][1]
    for preset in ("0.5b", "1.5b", "7b"):
        length = 8192
        work = costs.flops(flm.PRESETS[preset], length, length, length) / length
        print(json.dumps({
            "needed": preset, "flop_per_frame": work, "tera": tera, "mfu": costs.EXPECTED_MFU,
            "frames_per_s": costs.EXPECTED_MFU * tera * 1e12 / work}))


# --- what goes into the README ---

def json_lines(name):
    """The lines of JSON that a job printed."""
    for job in jobs():
        if job.name == name and log_of(job).exists():
            for line in log_of(job).read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    yield json.loads(line)


def summary():
    """Markdown of all that was measured."""
    record = Record()
    lines = [f"Measured by workshop/gpu.sh on {hardware()}.", ""]
    lines += table(("a frame", "median", "p99", "encode", "backbone", "depth", "decode",
                    "straightforward loop", "of the bandwidth", "memory"), frame_rows())
    lines += table(("conversations at once", "median", "p99", "frames a second",
                    "in real time (80 ms)", "memory", "to compile"), conversation_rows())
    lines += table(("training", "", "frames/s", "", "memory", "MFU"), training_rows())
    lines += table(("adapters of the 7B", "row", "frames/s", "memory", "MFU"), adapter_rows())
    lines += table(("frames a second", "", ""), data_rows())
    states = [(name, entry["state"], f"{entry['seconds']} s")
              for name, entry in record.jobs.items()]
    lines += table(("job", "state", "took"), states)
    log = log_of(tests())
    if log.exists():
        text = log.read_text(errors="replace")
        lines += ["Tests:", *re.findall(r"^=+ (.* in .*) =+$", text, re.M), ""]
        lines += sorted(set(re.findall(r"^(?:FAILED|ERROR) tests\S*.*$", text, re.M)))
    return "\n".join(lines) + "\n"


def hardware():
    try:
        import torch
        from workshop import bench
        return f"{bench.hardware(DEVICE)}, PyTorch {torch.__version__}"
    except (ImportError, RuntimeError, AssertionError) as error:
        return f"{DEVICE} ({error})"


def table(head, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    if not rows:
        return []
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, ""]


def ms(value):
    return f"{value:.2f} ms"


def gb(value):
    return f"{value:.1f} GB" if isinstance(value, (int, float)) else str(value or "")


def frame_rows():
    for job in frames():
        for one in json_lines(job.name):
            frame, split = one["ms_per_frame"], one["split_ms"]
            yield (job.name.removeprefix("frame "), ms(frame["median"]), ms(frame["p99"]),
                   *(ms(split.get(part, 0)) for part in ("encode", "backbone", "depth", "decode")),
                   f"{ms(one['straightforward_ms'])} ({one['speedup']:.2f} x)",
                   f"{one['bandwidth_share']:.0%} of {one['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s",
                   gb(one.get("gigabytes")))


def conversation_rows():
    for job in conversations():
        for one in json_lines(job.name):
            count = one["conversations"]
            yield (f"{one['preset']}, {count}", ms(one["median_ms"]), ms(one["p99_ms"]),
                   f"{one['frames_per_s']:.0f}", "yes" if one["p99_ms"] < 80 else "no",
                   gb(one["gigabytes"]), f"{one['seconds_to_prepare']:.0f} s")


def training_rows():
    for job in training():
        text = log_of(job).read_text(errors="replace") if log_of(job).exists() else ""
        for line in re.findall(r"^  ((?:train\.py|straightforward) .*)$", text, re.M):
            variant, *cells = re.split(r"\s{2,}|, ", line.replace(" frames/s", ""))
            yield (job.name.removeprefix("train "), variant, *cells)


def adapter_rows():
    for one in json_lines("adapters of the 7b"):
        rate = f"{one['frames_per_s']:.0f}" if "frames_per_s" in one else ""
        mfu = f"{one['mfu']:.1%}" if "mfu" in one else ""
        yield f"rank {one['rank']}", f"{one['frames']} frames", rate, gb(one["gigabytes"]), mfu


def data_rows():
    for one in json_lines("data"):
        if "read" in one:
            yield "read by one thread", one["read"], f"{one['frames_per_s']:,.0f}"
        else:
            how = (f"{one['tera']} TFLOP/s x {one['mfu']:.0%} / "
                   f"{one['flop_per_frame'] / 1e9:.2f} GFLOP")
            yield f"trained on, {one['needed']}", how, f"{one['frames_per_s']:,.0f}"


# --- command line ---

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("jobs", "list", "summary", "chat", "train", "data",
                                            "conversations", "adapters"))
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    rest = args.rest
    if args.command == "jobs":  # seconds, stages
        run_jobs(rest[1:], time.time() + float(rest[0]))
    elif args.command == "list":
        record = Record()
        for job in jobs():
            print(f"{job.stage:<8}{record.jobs.get(job.name, {}).get('state', ''):<10}{job.name}")
    elif args.command == "summary":
        print(summary(), end="")
    elif args.command == "chat":
        run_chat(rest)
    elif args.command == "train":
        run_train(rest)
    elif args.command == "conversations":
        conversations_at_once(rest[0], int(rest[1]))
    elif args.command == "adapters":
        adapters_of_7b()
    else:
        rate_of_batches()


if __name__ == "__main__":
    main()
