"""What other models and people say of answers: the judge, the voices' likeness, blind pairs."""
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import data
import eval as evaluation
from workshop import judge, measures, recogniser, report, results, similarity, spelling


# --- the judge ---

class Endpoint:
    """An endpoint of OpenAI's style on this machine. replies: what it says, in this order, and then
    the last of them again; a number is an HTTP state. asked: the requests' bodies."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.asked = []
        self.keys = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.asked.append(json.loads(body) | {"path": self.path})
                endpoint.keys.append(self.headers["Authorization"])
                reply = endpoint.replies[0]
                if len(endpoint.replies) > 1:
                    del endpoint.replies[0]
                content = {"choices": [{"message": {"content": reply}}]}
                text = json.dumps(content).encode()
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint(monkeypatch):
    """endpoint(*replies) -> Endpoint. Nobody waits between two attempts, and one question is asked
    at a time."""
    monkeypatch.setattr(judge, "PAUSE", 0)
    monkeypatch.setattr(judge, "AT_ONCE", 1)
    endpoints = []

    def open_one(*replies):
        endpoints.append(Endpoint(*replies))
        return endpoints[-1]
    yield open_one
    for one in endpoints:
        one.server.shutdown()
        one.server.server_close()


def test_the_judge_is_asked_once(endpoint, tmp_path, monkeypatch):
    """Catches answers that are paid for twice, a key that is not sent, and points that go to
    another answer."""
    monkeypatch.setenv(judge.KEY, "secret")
    server = endpoint("7", "Score: 2.5")
    cache = tmp_path / "judge.jsonl"
    answers = [("Who?", "Joe.", "It is Joe."), ("Why?", "So.", ""), ("Who?", "Joe.", "It is Joe.")]
    one = judge.Judge(server.url, "m", None, cache)
    assert one.scores(answers) == [7, 2.5, 7]
    assert judge.Judge(server.url, "m", None, cache).scores(answers) == [7, 2.5, 7]
    assert len(server.asked) == 2
    assert server.keys == ["Bearer secret"] * 2
    assert server.asked[0]["path"] == "/v1/chat/completions"
    assert server.asked[0]["temperature"] == 0
    text = server.asked[0]["messages"][0]["content"]
    assert "Question: Who?" in text and "It is Joe." in text and "{" not in text
    assert "(silence)" in server.asked[1]["messages"][0]["content"]
    judge.Judge(server.url, "another", None, cache).scores(answers)
    assert len(server.asked) == 4


def test_a_busy_endpoint_is_asked_again(endpoint, tmp_path):
    """Catches a run of hours that ends because the endpoint was busy for a moment."""
    server = endpoint(429, 503, "5")
    assert judge.Judge(server.url, "m", None, tmp_path / "c").scores([("a", "b", "c")]) == [5]


@pytest.mark.parametrize("reply, sentence", [
    (401, "is OPENAI_API_KEY set, and right"), (429, "429"), ("No idea.", "no number 0 .. 10"),
    ("11", "no number 0 .. 10")])
def test_what_the_judge_said_before_a_failure_is_kept(endpoint, tmp_path, reply, sentence):
    """Catches replies that are lost when the endpoint fails, and a reply without points counted as
    points."""
    server = endpoint("3", reply)
    cache = tmp_path / "c"
    answers = [("a", "b", "c"), ("d", "e", "f")]
    with pytest.raises(ValueError, match=sentence) as error:
        judge.Judge(server.url, "m", None, cache).scores(answers)
    assert "\n" not in str(error.value)
    again = endpoint("4")
    assert judge.Judge(again.url, "m", None, cache).scores(answers) == [3, 4]
    assert len(again.asked) == 1


def test_nobody_judges(tmp_path, monkeypatch):
    """Catches a traceback where no endpoint is there, or the prompt has no place for the answer."""
    monkeypatch.setattr(judge, "PAUSE", 0)
    nowhere = judge.Judge("http://127.0.0.1:9/v1", "m", None, tmp_path / "c")
    with pytest.raises(ValueError, match="gives no score"):
        nowhere.scores([("a", "b", "c")])
    (tmp_path / "prompt").write_text("{question} {reference}")
    with pytest.raises(ValueError, match="has no {answer}"):
        judge.Judge("http://x", "m", tmp_path / "prompt", tmp_path / "c")


def test_points_and_cosines_are_means():
    """Catches a median where tables have a mean, and the points of two judges added up."""
    grades = [evaluation.grade({"models": {"score by m": points}}, "en") for points in (0, 0, 9)]
    numbers = measures.numbers_of([], grades, None)
    assert numbers["score by m"]["value"] == 3
    assert numbers["score by m"]["unit"] == "points"
    grades = [evaluation.grade({"models": {"SIM by w": value}}, "en") for value in (0.5, 0.6)]
    assert measures.numbers_of([], grades, None)["SIM by w"]["value"] == pytest.approx(0.55)


# --- voices ---

def test_how_like_two_voices_are(tmp_path, monkeypatch):
    """Catches a cosine of vectors that are not of length 1, and a reference of another rate. (The
    embedding is made up: the mean of the samples above and below 0.)"""
    class Encoder:
        def __init__(self, *_, **__):
            pass

        def embed_utterance(self, wave):
            return np.array([wave.clip(min=0).mean(), -wave.clip(max=0).mean()])
    monkeypatch.setitem(sys.modules, "resemblyzer", SimpleNamespace(VoiceEncoder=Encoder))
    reference = tmp_path / "r.wav"
    soundfile.write(reference, np.full((8000, 2), 0.5), 8000)
    compare = similarity.Similarity("resemblyzer").compare
    assert compare(np.full(24_000, 0.1, np.float32), 24_000, reference) == pytest.approx(1)
    assert compare(np.full(24_000, -0.1, np.float32), 24_000, reference) == pytest.approx(0)


@pytest.mark.parametrize("name, module", [("resemblyzer", "resemblyzer"), ("x/y", "transformers")])
def test_a_missing_embedding_is_one_sentence(monkeypatch, name, module):
    """Catches a traceback where a package is not installed."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="--similarity lacks a package"):
        similarity.Similarity(name)


def test_wavlm_is_asked_as_transformers_wants_it(tmp_path, monkeypatch):
    """Catches a rate that the extractor is not told, samples that are no batch, and an embedding of
    another length than 1. (The package is made up: an utterance's embedding is its mean and its
    peak; the real weights are not at hand.)"""
    class Extractor:
        @classmethod
        def from_pretrained(cls, name):
            assert name == "x/wavlm-sv"
            return cls()

        def __call__(self, audio, sampling_rate, return_tensors):
            assert (sampling_rate, return_tensors) == (16_000, "pt")
            return {"input_values": torch.from_numpy(audio)[None]}

    class Model(Extractor):
        def eval(self):
            return self

        def __call__(self, input_values):
            assert not torch.is_grad_enabled()
            vectors = torch.stack([input_values.mean(1), input_values.abs().amax(1)], 1)
            return SimpleNamespace(embeddings=vectors)
    stub = SimpleNamespace(AutoFeatureExtractor=Extractor, AutoModelForAudioXVector=Model)
    monkeypatch.setitem(sys.modules, "transformers", stub)
    reference = tmp_path / "r.wav"
    soundfile.write(reference, np.full((8000, 2), 0.5), 16_000)
    compare = similarity.Similarity("x/wavlm-sv").compare
    assert compare(np.full(8000, 0.1, np.float32), 16_000, reference) == pytest.approx(1)
    assert compare(np.full(8000, -0.1, np.float32), 16_000, reference) == pytest.approx(0, abs=1e-6)


# --- Paraformer ---

@pytest.fixture
def funasr(monkeypatch):
    """A made-up package: it understands as many words as it is given seconds, once for each
    sentence."""
    class AutoModel:
        def __init__(self, model, device, **options):
            if model == "paraformer-none":
                raise RuntimeError("no such model\nsecond line")
            self.device = device

        def generate(self, input):
            return [{"key": "a", "text": "字 " * round(len(input) / 16_000)}, {"text": self.device}]
    monkeypatch.setitem(sys.modules, "funasr", SimpleNamespace(AutoModel=AutoModel))


def test_paraformer_hears(funasr):
    """Catches sound of another rate than its own, and sentences behind the first that are lost."""
    hear = recogniser.load("paraformer-zh", "cpu", "zh").transcribe
    assert hear(np.zeros(48_000, np.float32), 24_000) == "字 字 cpu"
    with pytest.raises(ValueError, match="paraformer-none cannot be loaded: .*no such") as error:
        recogniser.load("paraformer-none", "cpu", "zh")
    assert "\n" not in str(error.value)


def test_without_funasr_it_is_one_sentence(monkeypatch, tmp_path):
    """Catches hours of conversations before the missing package is noticed, and a name of
    Whisper's that is taken for Paraformer's."""
    monkeypatch.setitem(sys.modules, "funasr", None)
    with pytest.raises(ValueError, match="lacks the package funasr: pip install funasr"):
        recogniser.check_packages("paraformer-zh")
    with pytest.raises(ValueError, match="lacks a package"):
        recogniser.load("funasr/paraformer-zh", "cpu", "zh")
    assert not recogniser.is_paraformer("large-v3")
    assert recogniser.title("large-v3") == "Whisper large-v3 (faster-whisper)"
    (tmp_path / "a.wav").touch()
    with pytest.raises(SystemExit, match="does not say how sure it is"):
        data.main(["transcribe", str(tmp_path), str(tmp_path / "out.jsonl"), "--whisper",
                   "paraformer-zh"])


def test_the_table_names_the_recogniser(tmp_path):
    """Catches an error rate of which nobody knows who recognised."""
    row = {"lines": [[0, "是"]], "recognised": "是", "audio": "a.wav"}
    parts = {"tts": (measures.numbers_of([row], [{}], spelling.Spelling("zh")), [row], [{}])}
    run = SimpleNamespace(args=SimpleNamespace(whisper="paraformer-zh"))
    text = report.write(parts, tmp_path, results.Run.note(run))
    assert text.endswith("What the model says was recognised by paraformer-zh (funasr).\n")
    assert (tmp_path / "results.txt").read_text() == text


# --- blind pairs ---

def results_of(folder, level, question="Who?"):
    """A folder of results with three conversations."""
    (folder / "questions").mkdir(parents=True)
    for i in range(3):
        file = folder / "questions" / f"000{i}.json"
        file.write_text(json.dumps({"turns": [{"question": f"{question} {i}"}]}))
        soundfile.write(file.with_suffix(".wav"), np.full((2400, 2), level), 24_000)


@pytest.fixture
def page(tmp_path):
    """A page of pairs of two models: A's recordings are louder."""
    results_of(tmp_path / "a", 0.5)
    results_of(tmp_path / "b", 0.1)
    evaluation.main(["--ab", str(tmp_path / "a"), str(tmp_path / "b"), "--out",
                     str(tmp_path / "out")])
    return tmp_path / "out"


def test_pairs_are_blind_and_shuffled(page):
    """Catches a page that tells which model is which, one that always plays A first, and a key that
    does not fit the recordings."""
    text = (page / "page" / "index.html").read_text()
    assert "/a" not in text.split("<script>")[1].split("</script>")[0].replace("/audio", "")
    assert "__" not in text
    assert len(list((page / "page").glob("*.wav"))) == 6
    assert not (page / "page" / "key.json").exists()
    key = json.loads((page / "key.json").read_text())
    orders = [entry["order"] for entry in key["pairs"]]
    assert ["B", "A"] in orders and ["A", "B"] in orders
    for entry in key["pairs"]:
        for place, model in enumerate(entry["order"], 1):
            audio, _ = soundfile.read(page / "page" / f"{entry['pair']:03d}-{place}.wav")
            assert (audio.max() > 0.3) == (model == "A")


def test_sheets_are_read_back_by_hand(page, tmp_path, capsys):
    """Catches points that go to the model that was played first in place of A, ties counted as a
    preference, and a dimension's points in another."""
    orders = {entry["pair"]: entry["order"]
              for entry in json.loads((page / "key.json").read_text())["pairs"]}
    points = {0: (8, 4), 1: (6, 6), 2: (7, 9)}  # of A and B
    ratings = []
    for pair, (a, b) in points.items():
        placed = [a if model == "A" else b for model in orders[pair]]
        ratings.append({"pair": pair, "dimension": "naturalness", "points": placed})
    sheet = tmp_path / "sheet.json"
    sheet.write_text(json.dumps({"rater": "x", "ratings": ratings}))
    evaluation.main(["--ab-sheets", str(sheet), "--out", str(page)])
    numbers = json.loads((page / "results.json").read_text())
    natural = numbers["naturalness"]
    assert (natural["A"]["value"], natural["B"]["value"]) == (7, pytest.approx(19 / 3))
    assert natural["A - B"]["value"] == pytest.approx(2 / 3)
    assert natural["A - B"]["low"] < natural["A - B"]["value"] < natural["A - B"]["high"]
    assert (natural["A preferred"]["value"], natural["A preferred"]["n"]) == (0.5, 2)
    assert numbers["robustness"]["A"]["n"] == 0
    assert "naturalness" in capsys.readouterr().out


@pytest.mark.parametrize("sheet, sentence", [
    (None, "cannot be read"), ("", "is no sheet"), ("{}", "is no sheet"),
    ('{"ratings": [{"pair": 9, "dimension": "naturalness", "points": [1, 2]}]}', "does not have"),
    ('{"ratings": [{"pair": 0, "dimension": "naturalness", "points": [1, 20]}]}', "not 0 .. 10")])
def test_another_pages_sheet_is_refused(page, tmp_path, sheet, sentence):
    """Catches points of another page counted for this one."""
    if sheet is not None:
        (tmp_path / "sheet.json").write_text(sheet)
    with pytest.raises(SystemExit, match=sentence):
        evaluation.main(["--ab-sheets", str(tmp_path / "sheet.json"), "--out", str(page)])


def test_results_that_cannot_be_compared(page, tmp_path):
    """Catches pairs of two different questions, and a second page over the first."""
    results_of(tmp_path / "c", 0.1, question="Why?")
    with pytest.raises(SystemExit, match="no conversation in common"):
        evaluation.main(["--ab", str(tmp_path / "a"), str(tmp_path / "c"), "--out",
                         str(tmp_path / "out2")])
    with pytest.raises(SystemExit, match="exists: choose another --out"):
        evaluation.main(["--ab", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(page)])
    with pytest.raises(SystemExit, match="has no key.json"):
        evaluation.main(["--ab-sheets", "x", "--out", str(tmp_path)])
