"""What a run says at its validations."""
import json

import pytest
import soundfile
import torch
import torch.distributed as dist

import chat
import stream
import train
from stream import Ids, K, Turn
from workshop import model_files, processes, shards, spoken_samples

FRAMES = 30  # of a sample


@pytest.fixture
def run(untrained, tmp_path):
    """Grids of some questions with answers, and what train.py gets on its command line."""
    ids = Ids.of(model_files.read_config(untrained))
    torch.manual_seed(1)
    grids = []
    for _ in range(6):
        turn = Turn(8, 10, response=[5, 6])
        script = stream.write("response-tts", [turn], [2, 6], ids)
        speak, listen = torch.randint(0, 512, (2, len(script), K))
        grids.append(script.grid(speak, listen))
    (tmp_path / "grids").mkdir()
    shards.save(grids, tmp_path / "grids" / "shard-00000.safetensors")
    (tmp_path / "grids" / "grids.json").write_text(json.dumps({"format": "response-tts"}))
    return ["run", str(tmp_path / "grids"), "--init", str(untrained), "--out",
            str(tmp_path / "out"), "--stage", "fine-tuning-2", "--epochs", "1", "--batch", "4",
            "--length", "40", "--hold-out", "0.34", "--speak", "2"]


def test_a_run_says_what_it_has_learned(run, tmp_path):
    """Catches sound files that are missing at a validation, of another length or channel, and
    words that are not beside them."""
    train.main(run)
    folder = tmp_path / "out" / "spoken"
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = sorted({line["step"] for line in log if "valid" in str(line)})
    assert steps[0] == 0 and len(steps) == 2
    names = [f"step-{step:06d}{end}" for step in steps for end in ("-1.wav", "-2.wav", ".txt")]
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    sound, rate = soundfile.read(folder / names[0])
    frames = len(stream.write("response-tts", [Turn(8, 10, response=[5, 6])], [2, 6],
                              Ids(0, 1, 2, 3, 4)))
    assert rate == 24_000
    assert sound.shape == (frames * 1920, 2)
    lines = (folder / names[2]).read_text().splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "step-000000-1.wav", "to be written", "written",
        "step-000000-2.wav", "to be written", "written"]


def test_a_lone_gpu_says_it_too(run, tmp_path):
    """Catches a model that cannot speak where FSDP holds it, in parts and in two kinds of numbers.
    A lone GPU trains as a group of one process, which is one on a CPU here."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train.main([*run, "--bfloat16", "--recompute"])
    finally:
        processes.leave()
    assert len(list((tmp_path / "out" / "spoken").glob("*.wav"))) == 4


def test_it_says_what_chat_py_would_say(untrained):
    """Catches a loop that drifted from the live one: a code in the wrong row, a cache too short."""
    model = model_files.load(untrained).eval()
    ids = Ids.of(model.config)
    torch.manual_seed(2)
    codes = torch.randint(0, 512, (FRAMES, K))
    listen = stream.delay_columns(codes, 1, ids.pad)
    text, speak = spoken_samples.answer(model, listen, ids, temperature=0, seed=0)
    duplex = chat.Duplex(model, chat.Sampling.greedy(), lean=False)
    expected = [duplex.step(frame) for frame in codes]
    spoken = stream.advance_columns(speak, 1)
    for t in range(1, FRAMES):
        assert text[t] == expected[t][0]
        assert spoken[t].tolist() == expected[t][1]


def test_a_run_that_can_say_nothing_is_refused(run, tmp_path):
    """Catches a run that trains for hours before it finds that nothing is there to be asked."""
    with pytest.raises(SystemExit, match="--speak needs something to validate on"):
        train.main([word for word in run if word not in ("--hold-out", "0.34")])
    (tmp_path / "grids" / "grids.json").write_text(json.dumps({"format": "tts"}))
    grids = shards.Shard(tmp_path / "grids" / "shard-00000.safetensors")
    unheard = []
    for grid in grids:
        grid.listen[:] = 512
        unheard.append(grid)
    shards.save(unheard, tmp_path / "grids" / "shard-00000.safetensors")
    (tmp_path / "grids" / "index.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit, match="--speak needs held-out samples in which somebody"):
        train.main(run)
