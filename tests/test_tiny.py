"""The shipped model through the command that people run, the world that it lives in, what is recorded to make it, its codec's training."""
import asyncio
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import chat

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tiny"))
import codec as trainer  # noqa: E402
import make  # noqa: E402
import voices  # noqa: E402
import world  # noqa: E402
from workshop import codec_files, model_files, parameters


def ask(capsys, source, target, *more):
    chat.main(["--in", str(source), "--out", str(target), *map(str, more)])
    return capsys.readouterr().out


def test_the_example_is_answered(tmp_path, capsys):
    """Catches anything that breaks the main job, from reading the file to the sound of the answer."""
    said = ask(capsys, ROOT / "examples" / "question.wav", tmp_path / "a.wav", "--tail", 4)
    assert "The capital of France is Paris." in said
    answer, rate = soundfile.read(tmp_path / "a.wav")
    asked = soundfile.info(ROOT / "examples" / "question.wav").frames
    assert rate == 24_000 and len(answer) == asked + 4 * rate
    assert np.abs(answer[asked:]).max() > 0.05 and np.abs(answer[:asked // 2]).max() < 0.05, "it must listen first and speak then"


def test_any_file_is_heard(tmp_path, capsys):
    """Catches a rate, a format or a channel that changes what is heard: stereo mp3 at 44.1 kHz, and the stereo output."""
    import soxr
    audio, rate = soundfile.read(ROOT / "examples" / "question.wav")
    again = soxr.resample(audio, rate, 44_100)
    soundfile.write(tmp_path / "q.mp3", np.stack([again, again], 1), 44_100)
    assert "Paris" in ask(capsys, tmp_path / "q.mp3", tmp_path / "a.flac", "--tail", 4, "--stereo")
    both, _ = soundfile.read(tmp_path / "a.flac")
    assert both.shape[1] == 2 and np.abs(both[:len(audio) // 2, 0]).max() > 0.05 and np.abs(both[len(audio):, 1]).max() > 0.05


def test_an_answer_has_the_length_of_its_question(tmp_path, capsys):
    """Catches padding to whole frames that ends up in the file."""
    audio, rate = soundfile.read(ROOT / "examples" / "question.wav")
    soundfile.write(tmp_path / "q.wav", audio[:12_345], rate)
    ask(capsys, tmp_path / "q.wav", tmp_path / "a.wav", "--tail", 0)
    assert soundfile.info(tmp_path / "a.wav").frames == 12_345


def test_silence_is_answered_with_silence(tmp_path, capsys):
    """Catches a model that talks into a quiet room."""
    soundfile.write(tmp_path / "q.wav", np.zeros(6 * 24_000), 24_000)
    ask(capsys, tmp_path / "q.wav", tmp_path / "a.wav")
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() < 0.05


@pytest.fixture(scope="module")
def partner():
    return chat.Partner(chat.SHIPPED, chat.Sampling.of(chat.SHIPPED))


def example_frames(tail=4):
    """The example question and some silence, in frames of 1920 samples."""
    audio, rate = soundfile.read(ROOT / "examples" / "question.wav", dtype="float32")
    audio = np.concatenate([audio, np.zeros(tail * rate, np.float32)])
    return audio[:len(audio) // 1920 * 1920].reshape(-1, 1920)


def test_the_page_s_protocol(partner):
    """Catches a server that loses samples between messages or answers late."""
    pytest.importorskip("aiohttp")
    from aiohttp.test_utils import TestClient, TestServer

    from workshop.server import AUDIO, HANDSHAKE, TEXT, make_app

    async def visit():
        frames, text, sound = example_frames(), "", []
        async with TestClient(TestServer(make_app(partner))) as client:
            assert "Start talking" in await (await client.get("/")).text()
            async with client.ws_connect("/api/pcm") as socket:
                assert await socket.receive_bytes() == HANDSHAKE
                for part in np.array_split(frames.ravel(), 999):  # messages are not frames
                    await socket.send_bytes(AUDIO + part.tobytes())
                while len(sound) < len(frames):
                    message = await socket.receive_bytes()
                    if message[:1] == AUDIO:
                        sound.append(np.frombuffer(message[1:], np.float32))
                    elif message[:1] == TEXT:
                        text += message[1:].decode()
        return text, np.stack(sound)
    text, sound = asyncio.run(visit())
    assert "The capital of France is Paris." in text
    assert sound.shape == example_frames().shape and np.abs(sound).max() > 0.05


def test_a_moshi_client_is_answered(partner):
    """Catches Opus that changes what is heard: sphn's stream over aiohttp, as Moshi's own client does it."""
    sphn = pytest.importorskip("sphn")
    pytest.importorskip("aiohttp")
    from aiohttp.test_utils import TestClient, TestServer

    from workshop.server import make_app

    async def visit():
        writer, reader, text, sound = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000), "", []
        async with TestClient(TestServer(make_app(partner))) as client, client.ws_connect("/api/chat") as socket:
            assert await socket.receive_bytes() == b"\0"
            for frame in example_frames():
                await socket.send_bytes(b"\1" + writer.append_pcm(frame))
            while sum(map(len, sound)) < (len(example_frames()) - 5) * 1920:
                message = await socket.receive_bytes()
                if message[:1] == b"\1":
                    sound.append(reader.append_bytes(message[1:]))
                else:
                    text += message[1:].decode()
        return text, np.concatenate(sound)
    text, sound = asyncio.run(visit())
    assert "The capital of France is Paris." in text and np.abs(sound).max() > 0.05


def test_microphone(monkeypatch, capsys, sound_card):
    """Catches a microphone loop that does not run. The sound card is a made-up module: what a real one does is not tested."""
    system = sound_card(example_frames().reshape(-1, 1))
    with pytest.raises(SystemExit, match="gives nothing any more"):
        chat.main([])
    assert "The capital of France is Paris." in capsys.readouterr().out
    assert np.abs(np.concatenate(system.played)).max() > 0.05


def test_no_sound_card_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SystemExit, match="chat.py: a microphone needs the sounddevice package"):
        chat.main([])


def test_shipped_files_are_small():
    """Catches weights that outgrow the repository: all of tiny/ is at most 60 MB."""
    assert sum(f.stat().st_size for f in (ROOT / "tiny").rglob("*") if f.is_file() and "work" not in f.relative_to(ROOT / "tiny").parts) < 60e6
    counts = parameters.count_parameters(model_files.load(ROOT / "tiny" / "model"))
    assert 4e6 <= counts["backbone"] <= 20e6


def test_held_out_combinations_are_the_same_in_every_run():
    """Catches training on what evaluation asks: the held-out tenth depends on the words alone."""
    many = world.sample(20_000, seed=0)
    held, asked = ({a.answer if a.kind == "repeat" else a.question for a in some}
                   for some in ([a for a in many if a.held_out], world.sample(20_000, seed=1, held_out=False)))
    assert held and not held & asked
    assert {a.kind for a in many if a.held_out} == {"sum", "repeat"}
    sums = {a.answer: set() for a in many if a.kind == "sum"}
    for one in (a for a in many if a.kind == "sum" and not a.held_out):
        sums[one.answer].add(one.question)
    assert len(sums) == world.MAX_ADDEND ** 2 and {len(questions) for questions in sums.values()} == {1, 3}, "each sum in one wording at least"
    assert len({a.question for a in many if a.kind != "repeat"}) >= 300


def test_what_is_kept_for_evaluation_is_not_recorded_for_training():
    """Catches a voice, a mix of it, or a combination of words of the test among the recordings to train on; a test without them."""
    lists = world.sample(200, 2, held_out=False, kind="repeat")
    trained = make.plan_speech(make.RECORDINGS, 0, 0.05) + make.plan_speech(make.MORE_RECORDINGS, 1, 0.01)
    trained += make.plan_speech(make.LIST_RECORDINGS, 3, 0.02, lists)
    speakers = {name for job in trained for name in [job["voice"], *job["voice"].split(":", 1)[-1].split(":")[0].split("+")]}
    assert not speakers & {name for voice in voices.HELD_OUT for name in (voice, voice.removeprefix("kokoro:"))}
    assert len({job["voice"] for job in trained if "~" in job["voice"]}) > 10 and all(job["text"] and job["answer"] for job in trained)
    asked, kept = {job["text"] for job in trained}, make.plan_test(1)
    assert {job["voice"] for job in kept} == set(voices.HELD_OUT)
    assert not asked & {job["text"] for job in kept if job["unseen_words"]} and sum(job["unseen_words"] for job in kept) == len(kept) // 2


@pytest.mark.parametrize("kind", world.WEIGHTS)
def test_answers_are_true(kind):
    """Catches a world that teaches falsehoods where they can be checked."""
    for seed in range(50):
        asked = world.draw(random.Random(seed), kind)
        question, words = asked.question.lower(), asked.answer.lower().replace(",", "").rstrip(".").split()
        if kind == "sum":
            a, b, total = (world.NUMBERS.index(words[i]) for i in (0, 2, 4))
            assert a + b == total
        if kind == "repeat":
            assert question.replace(",", "").rstrip(".").endswith(" ".join(words))
        if kind == "capital":
            country = next(c for c in world.CAPITALS if c in asked.question)
            assert asked.answer == f"The capital of {country} is {world.CAPITALS[country]}."
        if kind == "count":
            assert words == world.NUMBERS[1:len(words) + 1] and words[-1] in question
        if kind == "opposite":
            assert words[3] in question and any({words[3], words[5]} == set(pair) for pair in world.OPPOSITES)
        if kind in ("after", "before"):
            row = next(row for row in ([w.lower() for w in row] for row in (world.DAYS, world.MONTHS, world.NUMBERS)) if words[0] in row)
            assert words[3] in question and (row.index(words[0]) - row.index(words[3])) % len(row) == (1 if kind == "after" else len(row) - 1)
        if kind == "color":
            thing = " ".join(words[:-2])
            assert thing in question and world.COLORS[thing] == words[-1]
        if kind == "sound":
            assert words[1] in question and world.SOUNDS[words[1]] == words[-1]
        if kind == "spell":
            assert words[0] in question and "".join(words[3:]) == words[0]
        if kind in world.FIXED:
            assert any(asked.question in wordings and asked.answer == answer for wordings, answer in world.FIXED[kind])


def test_each_part_of_the_codec_s_training_moves_its_own(tmp_path, monkeypatch):
    """Catches codes that change while the decoder is polished, an encoder that learns to hear and takes codebooks or decoder along,
    of which the language model has learnt every code, and a stopped run that begins anew."""
    monkeypatch.setattr(trainer, "FRAMES", 24)
    for name in ("heard", "spoken"):
        shutil.copy(ROOT / "examples" / "question.wav", tmp_path / name)
    turn = dict(heard="heard", transcript="What is the capital of France?", spoken="spoken", response="It is Paris.")
    (tmp_path / "train.jsonl").write_text(json.dumps({"turns": [turn]}))

    def after(*steps):
        trainer.train(tmp_path, tmp_path / "start", *steps)
        return torch.load(tmp_path / "codec.pt")["codec"]

    def moved(a, b):
        return {name.split(".")[0] if "quantizer" not in name else name.split(".")[2] for name in a if not torch.equal(a[name], b[name])}
    learnt, polished = after(1, 0), after(1, 1)
    assert moved(learnt, polished) == {"decoder", "decoder_transformer", "upsample", "output_proj"}
    trainer.train_hearing(tmp_path, tmp_path / "start", tmp_path / "hearing", 1)
    before, heard = (codec_files.load(tmp_path / name).state_dict() for name in ("start", "hearing"))
    assert moved(before, heard) == {"encoder", "encoder_transformer", "downsample"}


def test_an_encoder_that_hears_what_its_teacher_hears_has_nothing_to_learn():
    """Catches distances that are not between the same things."""
    codec, clean = codec_files.load(chat.SHIPPED), torch.from_numpy(example_frames(0).ravel())[None, None]
    same, noisy = (trainer.hear(codec, codec, clean + level * torch.randn_like(clean), clean) for level in (0, 0.05))
    assert same["semantic"] == same["acoustic"] == 0
    assert all(noisy[name] > same[name] for name in ("choice", "semantic", "acoustic"))
