"""The token grid against answers worked by hand, what must hold for any grid, and the pictures."""
import random
import re
from pathlib import Path

import pytest
import torch

import chat
import stream
from conftest import assert_same
from stream import FORMATS, K, GridError, Ids, Loss, Turn, delay, undelay, write
from workshop import model_files, pictures, shards
from workshop.drawing import MARGIN, draw, example

ROOT = Path(__file__).parent.parent
IDS = Ids(wait=0, asr=1, answer=2, empty=98, pad=99)


def random_turn(rng):
    """A turn of any lengths and words."""
    starts = sorted(rng.sample(range(6), 2))
    return Turn(
        listen_frames=rng.randint(1, 6),
        speak_frames=rng.randint(1, 6),
        transcript=[rng.randint(3, 9)] * rng.randint(1, 4),
        response=[rng.randint(3, 9)] * rng.randint(1, 9),
        words=[(start, [rng.randint(3, 9)] * rng.randint(1, 3)) for start in starts])


def random_grid(rng):
    """Any format, any turns, codes drawn at random."""
    format = rng.choice(list(FORMATS))
    turns = [random_turn(rng) for _ in range(rng.randint(1, 3))]
    if format == "response-tts-free":
        stream.draw_interruptions(turns, [rng.randint(0, 2) for _ in turns], rng)
    silences = [rng.randint(0, 4) for _ in range(len(turns) + 1)]
    script = write(format, turns, silences, IDS)
    generator = torch.Generator().manual_seed(rng.randint(0, 999))
    speak, listen = torch.randint(0, 98, (2, len(script), K), generator=generator)
    return script.grid(speak if format in stream.SPEAKS else None,
                       listen if format in stream.LISTENS else None)


def cells(drawing, name):
    """The cells of one line of a drawing that was not wrapped."""
    line = next(line for line in drawing.splitlines() if line.startswith(name))
    return line[MARGIN:].split()


# --- formats ---

@pytest.mark.parametrize("format, text, speak, listen, loss", [
    # By hand from section 3.1: words at 2, sound two frames later; the user's channel is empty.
    ("tts", "~ ~ All is fine. ~ ~ ~ ~ ~", "# 0 0 0 1 2 3 4 5 0", ". . . . . . . . . .",
     "W M M M W W W W W"),
    # Section 3.1: the words right after what the user says; the model's channel is empty.
    ("asr", "~ ~ ~ ~ ~ ~ What's up? ~", "# . . . . . . . .", "0 0 1 2 3 4 0 0 0",
     "W W W W W M M W"),
    # Section 3.2.2: <asr> words <answer> words, sound two frames after the response's first word.
    ("asr-response-tts", "~ ~ ~ ~ ~ ~ <asr> What's up? <answer> All is fine. ~ ~ ~ ~ ~",
     "# 0 0 0 0 0 0 0 0 0 0 0 1 2 3 4 5 0", "0 0 1 2 3 4 0 0 0 0 0 0 0 0 0 0 0 0",
     "W W W W W M M M M M M M W W W W W"),
    # Section 3.2.2: the same without the transcript.
    ("response-tts", "~ ~ ~ ~ ~ ~ All is fine. ~ ~ ~ ~ ~", "# 0 0 0 0 0 0 0 1 2 3 4 5 0",
     "0 0 1 2 3 4 0 0 0 0 0 0 0 0", "W W W W W M M M W W W W W"),
    # Section 3.2.2: a back-channel in frame 7 changes nothing. The user's speech in the frames
    # 9 .. 15 ends the answer's 12 frames of sound after its 9th, 6 frames (0.5 s) after the
    # user's first sound. Silence while the user speaks; then a new answer.
    ("response-tts-free", "~ ~ ~ ~ All is fine. ~ ~ ~ ~ ~ ~ ~ ~ ~ fine. ~ ~ ~ ~ ~",
     "# 0 0 0 0 0 1 2 3 4 5 6 7 8 9 0 0 0 1 2 3 0", "0 0 1 2 0 0 0 1 0 1 2 3 4 5 6 7 0 0 0 0 0 0",
     "W W W M M M W W W W W W W W W M W W W W W"),
    # Section 4.2: a reference is heard; then a text and, two frames later, its sound. No word of
    # the reference is written.
    ("reference-tts", "~ ~ ~ ~ ~ ~ All is fine. ~ ~ ~ ~ ~", "# 0 0 0 0 0 0 0 1 2 3 4 5 0",
     "0 0 1 2 3 4 0 0 0 0 0 0 0 0", "W W W W W M M M W W W W W"),
    # Section 2.2, Figure 2 left: words in the frames 2, 3, 6 in which they sound, and <answer>,
    # which stands for end-of-pad, before those with room.
    ("word-aligned", "~ <answer> All is ~ <answer> fine. ~", "# 0 1 2 3 4 5 0",
     ". . . . . . . .", "M M M W M M W"),
])
def test_format_by_hand(format, text, speak, listen, loss):
    """Catches words, sound or loss in a frame where the paper does not put them."""
    grid, ids, names = example(format)
    drawing = draw(grid, ids, names, width=999)
    assert cells(drawing, "text") == text.split(), drawing
    assert cells(drawing, "listen 7") == listen.split(), drawing
    assert cells(drawing, "speak 0") == speak.split(), drawing
    assert cells(drawing, "loss text") == loss.split(), drawing


def test_words_longer_than_their_sound():
    """Catches a response whose words outlast its speech being cut."""
    script = write("tts", [Turn(speak_frames=1, response=[5] * 8)], [0, 0], IDS)
    assert script.text == [0] + [5] * 8
    assert script.speak_spans == [(3, 4)]


def test_an_interruption_cuts_words_that_are_being_written():
    """Catches a monologue that goes on beneath the user, a cut that counts the recording's leading
    quiet as speech, and an answer that starts before the model has fallen silent."""
    first = Turn(listen_frames=2, speak_frames=9, response=[5] * 14)
    second = Turn(listen_frames=3, speak_frames=2, response=[6], interrupts=1, onset=2)
    script = write("response-tts-free", [first, second], [0, 2, 0], IDS)
    # Words from 3 and sound from 5 on. The user's recording starts at 6, its first sound is at 8.
    # So both channels of the model end before 14, and the answer is at 14.
    assert script.text == [0] * 3 + [5] * 11 + [6] + [0] * 3
    assert script.speak_spans == [(5, 14), (16, 18)]
    assert script.listen_spans == [(1, 3), (6, 9)]


def test_a_shorter_reaction_cuts_earlier():
    """Catches a reaction that is always the paper's."""
    first = Turn(listen_frames=2, speak_frames=9, response=[5] * 14)
    second = Turn(listen_frames=3, speak_frames=2, response=[6], interrupts=1, reaction=0.16)
    script = write("response-tts-free", [first, second], [0, 2, 0], IDS)
    # The user's first sound is at 6; two frames later the model is silent.
    assert script.speak_spans[0] == (5, 8)
    assert script.text[8] == IDS.wait


def test_users_interrupt_as_often_and_wherever_the_paper_says():
    """Catches another probability than 0.7, an interruption outside the sound or always in one
    place, and a back-channel that runs into the interruption."""
    rng = random.Random(3)
    interruptions = []
    backchannels = 0
    for _ in range(1000):
        turns = [Turn(listen_frames=5, speak_frames=20) for _ in range(3)]
        stream.draw_interruptions(turns, [3, 3, 21], rng)
        assert turns[0].interrupts is None  # nothing stands before it
        assert turns[2].backchannel is None      # it has no room
        for turn, after in zip(turns, turns[1:]):
            end = turn.speak_frames if after.interrupts is None else after.interrupts
            if turn.backchannel:
                start, length = turn.backchannel
                assert 0 <= start <= end - length
                backchannels += 1
            if after.interrupts is not None:
                interruptions.append(after.interrupts)
    assert len(interruptions) == pytest.approx(1400, abs=80)
    assert set(interruptions) == set(range(20))
    assert backchannels > 1500


def test_crowded_words_follow_one_another():
    """Catches aligned words that overwrite each other or the row that the loop starts from, and
    sound longer than its words."""
    words = [(0, [5, 6, 7]), (1, [8]), (3, [9])]
    script = write("word-aligned", [Turn(speak_frames=4, words=words)], [0, 0], IDS)
    assert script.text == [0, 5, 6, 7, 8, 9]
    assert script.speak_spans == [(1, 5)]


def test_a_clip_must_fit_its_span():
    """Catches a clip that is cut, or leaves a hole, without a word."""
    with pytest.raises(GridError, match="a clip of 3 frames does not fit the span 2 .. 4"):
        stream.place([(2, 4)], [torch.zeros(3, K)], torch.zeros(K), 5)


# --- delays and loss ---

def test_delay_by_hand():
    """Catches a delay of the wrong channels, direction or size: sound i has its acoustic codes one
    row later, in both channels."""
    grid, ids, names = example("response-tts")
    drawing = draw(delay(grid, ids), ids, names, width=999)
    assert cells(drawing, "speak 0") == "# 0 0 0 0 0 0 0 1 2 3 4 5 0 #".split(), drawing
    for c in range(1, K):
        assert cells(drawing, f"speak {c}") == "# 0 0 0 0 0 0 0 0 1 2 3 4 5 0".split(), drawing
        assert cells(drawing, f"listen {c}") == "# 0 0 1 2 3 4 0 0 0 0 0 0 0 0".split(), drawing


def test_undelay_takes_delay_back():
    """Catches a frame that either loses or moves: undelay after delay changes nothing, loss classes
    included."""
    rng = random.Random(0)
    for _ in range(50):
        grid = random_grid(rng)
        assert_same(undelay(delay(grid, IDS)), grid, IDS)


def test_loss_covers_what_is_written_and_nothing_else():
    """Catches loss on empty codes, on what the user says, or on the frame that the loop starts from
    (section 3.1)."""
    rng = random.Random(1)
    for _ in range(50):
        grid = random_grid(rng)
        assert (grid.loss[0, :2] == Loss.NONE).all()
        assert ((grid.loss[1:, 0] == Loss.WAIT) == (grid.text[1:] == IDS.wait)).all()
        assert ((grid.loss[1:, 0] == Loss.MONOLOGUE) == (grid.text[1:] != IDS.wait)).all()
        is_speech = (grid.speak != IDS.empty) & (grid.speak != IDS.pad)
        assert ((grid.loss[:, 1:] != Loss.NONE) == is_speech).all(), draw(grid, IDS)
        assert set(grid.loss[:, 1].tolist()) <= {Loss.NONE, Loss.SEMANTIC}
        assert set(grid.loss[:, 2:].flatten().tolist()) <= {Loss.NONE, Loss.ACOUSTIC}


# --- drawings ---

def test_long_drawings_wrap():
    """Catches a drawing that a terminal breaks."""
    grid, ids, names = example("asr-response-tts")
    drawing = draw(grid, ids, names, width=60)
    assert max(map(len, drawing.splitlines())) <= 60
    assert sum(line.startswith("text") for line in drawing.splitlines()) > 1


def test_the_figure_that_opens_the_file_is_what_it_draws():
    """Catches a figure in stream.py that has drifted from the code."""
    grid, ids, names = example("response-tts")
    lines = ("frame", "text", "speak 0", "listen 0", "loss text", "  semantic", "  acoustic")
    for line in draw(grid, ids, names, width=96, only=lines).splitlines():
        assert line in stream.__doc__


def test_a_grid_of_a_file_is_drawn(tmp_path, untrained, capsys):
    """Catches a command line that draws another grid of a file, or ends in a traceback where there
    is none."""
    ids = Ids.of(model_files.read_config(untrained))
    grids = []
    for response in ([5], [6, 7]):
        script = write("tts", [Turn(speak_frames=2, response=response)], [0, 0], ids)
        grids.append(script.grid(torch.zeros(len(script), K, dtype=torch.int64)))
    path = tmp_path / "x.safetensors"
    shards.save(grids, path)
    pictures.main(["--grid", str(path), "--index", "1", "--model", str(untrained)])
    assert "~ w6 w7" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="holds 2 grids, and there is no number 2"):
        pictures.main(["--grid", str(path), "--index", "2", "--model", str(untrained)])


def test_the_readme_shows_the_pictures_as_they_are_drawn():
    """Catches a picture in README.md that has drifted from the code."""
    readme = (ROOT / "README.md").read_text()
    for make in pictures.PICTURES:
        picture = make()
        assert f"### {picture.title}\n" in readme
        assert f"```\n{picture.body()}\n```" in readme, (
            "README.md needs what pictures.markdown() returns now")
        assert max(len(line) for line in picture.body().splitlines()) <= 100


def test_the_list_of_the_workshop_has_each_of_its_files():
    """Catches a file of workshop/ that its README does not name, and a line of a file that is
    gone."""
    page = (ROOT / "workshop/README.md").read_text()
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\)", page, re.M)
    files = {path.name for path in (ROOT / "workshop").glob("*.py")} - {"__init__.py"}
    assert sorted(listed) == sorted(files)


@pytest.mark.parametrize("format", stream.FORMATS)
def test_the_table_of_stages_has_a_text_for_each_format(format):
    """Catches a step of a format that writes text and has no name in picture 4."""
    assert pictures.text_of(format)


def test_the_opening_of_the_file_shows_the_loop_as_it_is_drawn():
    """Catches rows or milliseconds at the top of stream.py that have drifted from picture 6."""
    for drawing in (pictures.first_rows(), pictures.latency()):
        for line in drawing.splitlines():
            assert line in stream.__doc__


def replies(model, listen):
    """What a fresh conversation returns at each step for the user's codes, with the same draws."""
    sampling = chat.Sampling(temperature_text=1.0, temperature_audio=1.0)
    duplex = chat.Duplex(model, sampling)
    duplex.reset(seed=0)
    return [duplex.step(codes) for codes in listen]


def test_the_loop_hears_a_code_in_the_step_that_is_drawn(untrained):
    """Catches a picture 6 that says something else than the loop does: what step 0 returns, which
    code of the user stands in which row, and the first word, semantic and acoustic code that can
    depend on it. Codes of the user's frame 3 differ; the same random numbers are drawn."""
    model = model_files.load(untrained).eval()
    listen = torch.randint(500, (7, K), generator=torch.Generator().manual_seed(0))
    other_semantic = listen.clone()
    other_semantic[3, 0] = 511
    other_acoustics = listen.clone()
    other_acoustics[3, 1:] = 511
    plain = replies(model, listen)
    assert plain[0] is None
    # Row s has the semantic code of frame s, row s + 1 its acoustic codes.
    for changed, step in ((other_semantic, 3), (other_acoustics, 4)):
        other = replies(model, changed)
        assert other[:step] == plain[:step]
        text, codes = other[step]
        plain_text, plain_codes = plain[step]
        # Word and semantic code stand in the row that is read; acoustic codes are written now.
        assert (text, codes[0]) == (plain_text, plain_codes[0])
        assert codes[1:] != plain_codes[1:]
        assert other[step + 1] != plain[step + 1]


def test_the_rows_of_a_conversation_by_hand():
    """Catches a row of picture 6 that is not the release's: row t has semantic codes of frame t
    beside acoustic codes of frame t - 1, and row 0 pads."""
    drawing = pictures.first_rows()
    rows = {line[:MARGIN].strip(): line[MARGIN:] for line in drawing.splitlines()}
    assert rows["text"].split() == "<wait> word 1 word 2 word 3".split()
    assert rows["speak 0"].split() == "pad sem 1 sem 2 sem 3".split()
    assert rows["speak 1-7"].split() == "pad ac 0 ac 1 ac 2".split()
    assert rows["listen 0"].split() == "sem 0 sem 1 sem 2 sem 3".split()
    assert rows["listen 1-7"].split() == "pad ac 0 ac 1 ac 2".split()
    assert rows["returns"].split() == "nothing frame 1 frame 2 frame 3".split()
