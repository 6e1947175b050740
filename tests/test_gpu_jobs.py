"""What runs the jobs of half an hour on a GPU: what is cut off begins again, what failed stops
nothing, and the tables show what was measured. The jobs here are small programs."""
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workshop import gpu
from workshop.gpu import Job

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """bench(jobs): run these jobs for so many seconds -> {name: state}"""
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "LOAD", tmp_path / "load")
    monkeypatch.setattr(gpu, "ON_GPU", False)
    monkeypatch.setattr(gpu, "TO_END", 0)
    (tmp_path / "load").mkdir()

    def run(seconds, *jobs, stages=("bench",), least=0.1):
        monkeypatch.setattr(gpu, "jobs", lambda: jobs)
        monkeypatch.setattr(gpu, "LEAST_IN_A_REHEARSAL", least)
        gpu.run_jobs(stages, time.time() + seconds)
        return {name: entry["state"] for name, entry in gpu.Record().jobs.items()}
    return run


def job(name, program, most=60, stage="bench", **more):
    return Job(name, stage, 0, most, ["-c", program], **more)


def test_a_failure_stops_nothing_and_is_not_repeated(bench, tmp_path, capsys):
    """Catches jobs behind one that failed that never run, and one that fails in each call."""
    broken = job("broken", "print('why'); raise SystemExit(3)")
    count = tmp_path / "count"
    good = job("good", f"open({str(count)!r}, 'a').write('x')")
    other = job("other", "raise SystemExit(1)", stage="train")
    for _ in range(2):
        assert bench(60, broken, good, other) == {"broken": "failed", "good": "done"}
    assert count.read_text() == "x"
    assert "| why" in capsys.readouterr().out


def test_what_a_call_cuts_off_begins_again_and_twice_at_most(bench, capsys):
    """Catches a job that is lost with the end of a call, and one that takes every call."""
    slow = job("slow job", "import time; time.sleep(30)")
    later = job("later", "pass")
    assert bench(1.5, slow, later) == {"slow job": "cut off"}
    assert bench(1.5, slow, later) == {"slow job": "failed"}
    assert bench(60, slow, later) == {"slow job": "failed", "later": "done"}


def test_a_job_has_its_time(bench):
    """Catches a job that hangs until the end of the call."""
    assert bench(60, job("hangs", "import time; time.sleep(60)", most=1)) == {"hangs": "failed"}


def test_a_run_of_training_gets_a_ctrl_c_and_goes_on(bench, tmp_path, monkeypatch):
    """Catches a run that is killed before its last checkpoint, and one that does not go on."""
    monkeypatch.setattr(gpu, "TO_STOP", 5)
    program = ("import pathlib, sys, time\n"
               f"saved = pathlib.Path({str(tmp_path / 'saved')!r})\n"
               "if saved.exists():\n    sys.exit(0)\n"
               "try:\n    time.sleep(60)\n"
               "except KeyboardInterrupt:\n    saved.touch(); sys.exit(130)\n")
    run = job("run", program, most=10**6, goes_on=True)
    assert bench(6.5, run) == {"run": "cut off"}
    assert bench(60, run) == {"run": "done"}


def test_tests_that_ran_are_not_repeated(bench, monkeypatch):
    """Catches a second call that begins with the tests of the first."""
    names = [f"tests/test_cuda.py::test_{name}" for name in ("a[16]", "b", "c")]
    text = f"{names[0]} PASSED [ 1%]\n[gw0] [ 2%] FAILED {names[1]} \n{names[2]} "
    tests = job("tests", "import sys; print(sys.argv[1:])", stage="tests")
    monkeypatch.setattr(gpu, "tests", lambda: tests)
    bench(60)
    gpu.log_of(tests).write_text(text)
    bench(60, tests, stages=("tests",))
    assert gpu.log_of(tests).read_text().endswith(
        f"['--deselect', '{names[0]}', '--deselect', '{names[1]}']\n")


def test_another_machine_knows_what_is_done(bench):
    """Catches benches that are run again after the machine was given back."""
    (gpu.LOAD / "done.json").write_text(json.dumps({"a": {"state": "done", "tries": 1,
                                                          "seconds": 1}}))
    assert bench(60, job("a", "raise SystemExit(1)")) == {"a": "done"}


def test_paths_of_a_run_are_where_they_were_carried(bench, tmp_path):
    """Catches grids that are not found beside the repository, and a weight that is lost."""
    (gpu.LOAD / "grids").mkdir()
    (gpu.LOAD / "train").write_text("grids:0.5 tiny/model --batch 2")
    arguments = gpu.the_run()[0].arguments
    assert arguments[2:6] == [f"{gpu.LOAD / 'grids'}:0.5", "tiny/model", "--batch", "2"]
    (gpu.LOAD / "train").unlink()
    assert gpu.the_run() == []


def test_the_tables_show_what_was_printed(bench):
    """Catches a summary that does not know the lines that the benches print."""
    frame = {"ms_per_frame": {"median": 9.0, "p99": 10.0}, "split_ms": {"depth": 4.5},
             "straightforward_ms": 40.0, "speedup": 3.0, "bandwidth_share": 0.5,
             "bandwidth_bytes_per_s": 3e12, "gigabytes": 17.04}
    train = ("0.5b: 9 samples\n  train.py         57000.1 frames/s, loss 9.0000, 30.1 GB at most, "
             "MFU 45.1%\n")
    rows = {"frame 7b bfloat16": json.dumps(frame), "train 0.5b": train,
            "adapters of the 7b": '{"rank": 32, "frames": 512, "gigabytes": 21.5, "mfu": 0.4}'}
    for one in gpu.jobs():
        if one.name in rows:
            gpu.log_of(one).parent.mkdir(parents=True, exist_ok=True)
            gpu.log_of(one).write_text(rows[one.name])
    text = gpu.summary()
    assert "| 7b bfloat16 | 9.00 ms | 10.00 ms | 0.00 ms | 0.00 ms | 4.50 ms |" in text
    assert "50% of 3000 GB/s | 17.0 GB |" in text
    assert "| 0.5b | train.py | 57000.1 | loss 9.0000 | 30.1 GB at most | MFU 45.1% |" in text
    assert "| rank 32 | 512 frames |  | 21.5 GB | 40.0% |" in text


def test_the_script_can_be_read():
    """Catches a slip of the pen in a script that no test runs, and a command that it does not
    know."""
    script = ROOT / "workshop" / "gpu.sh"
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    result = subprocess.run(["sh", str(script), "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2 and "prepare" in result.stderr


def test_pieces_there_and_back(tmp_path):
    """Catches pieces that cannot be put together again."""
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 40_000)
    script = ROOT / "workshop" / "gpu.sh"
    copy = tmp_path / "copy" / "workshop"
    copy.mkdir(parents=True)
    (copy / "gpu.sh").write_text(script.read_text().replace("PIECE=7m", "PIECE=20k"))
    environment = {"PATH": "/usr/bin:/bin", "WORK": str(tmp_path / "work"),
                   "OUT": str(tmp_path / "out"), "DEVICE": "cpu", "PYTHON": sys.executable}

    def call(*arguments):
        return subprocess.run(["sh", "workshop/gpu.sh", *arguments], cwd=copy.parent, text=True,
                              env=environment, capture_output=True, check=True).stdout
    count = int(call("pack", str(folder)).split()[0])
    assert count > 1
    for n in range(1, count + 1):
        call("take", f".gpu-{n}")
    call("unpack")
    again = tmp_path / "work" / "carried" / "start" / "weights"
    assert again.read_bytes() == (folder / "weights").read_bytes()
