"""The token grid against answers worked by hand, and what must hold for any grid."""
import random

import pytest
import torch

import stream
from conftest import assert_same
from stream import FORMATS, K, GridError, Ids, Loss, Turn, delay, draw, example, undelay, write

IDS = Ids(wait=0, asr=1, answer=2, empty=98, pad=99)


def random_grid(rng):
    """Any format, any turns, codes drawn at random."""
    format = rng.choice(list(FORMATS))
    turns = [Turn(rng.randint(1, 6), rng.randint(1, 6), [rng.randint(3, 9)] * rng.randint(1, 4), [rng.randint(3, 9)] * rng.randint(1, 9),
                  [(start, [rng.randint(3, 9)] * rng.randint(1, 3)) for start in sorted(rng.sample(range(6), 2))])
             for _ in range(rng.randint(1, 3))]
    if format == "response-tts-free":
        stream.draw_interruptions(turns, [rng.randint(0, 2) for _ in turns], rng)
    script = write(format, turns, [rng.randint(0, 4) for _ in range(len(turns) + 1)], IDS)
    codes = torch.randint(0, 98, (2, len(script), K), generator=torch.Generator().manual_seed(rng.randint(0, 999)))
    return script.grid(codes[0] if format in stream.SPEAKS else None, codes[1] if format in stream.LISTENS else None)


def cells(drawing, row):
    """The cells of one row of a drawing that was not wrapped."""
    line = next(line for line in drawing.splitlines() if line.startswith(row))
    return line[10:].split()


@pytest.mark.parametrize("format, text, speak, listen, loss", [
    # worked by hand from section 3.1: words at 2, sound two frames later; nothing is heard
    ("tts", "~ ~ All is fine. ~ ~ ~ ~ ~", "# 0 0 0 1 2 3 4 5 0", ". . . . . . . . . .", "W M M M W W W W W"),
    # section 3.1: the words right after what was heard; nothing is said
    ("asr", "~ ~ ~ ~ ~ ~ What's up? ~", "# . . . . . . . .", "0 0 1 2 3 4 0 0 0", "W W W W W M M W"),
    # section 3.2.2: <asr> words <answer> words, sound two frames after the response's first word
    ("asr-response-tts", "~ ~ ~ ~ ~ ~ <asr> What's up? <answer> All is fine. ~ ~ ~ ~ ~",
     "# 0 0 0 0 0 0 0 0 0 0 0 1 2 3 4 5 0", "0 0 1 2 3 4 0 0 0 0 0 0 0 0 0 0 0 0", "W W W W W M M M M M M M W W W W W"),
    # section 3.2.2: the same without the transcript
    ("response-tts", "~ ~ ~ ~ ~ ~ All is fine. ~ ~ ~ ~ ~", "# 0 0 0 0 0 0 0 1 2 3 4 5 0", "0 0 1 2 3 4 0 0 0 0 0 0 0 0",
     "W W W W W M M M W W W W W"),
    # section 3.2.2: a back-channel over frame 7 changes nothing; speech over frames 9 .. 15 ends the answer's 12 frames of
    # sound after its 9th, 6 frames (0.5 s) behind its own first; silence while it lasts; then a new answer
    ("response-tts-free", "~ ~ ~ ~ All is fine. ~ ~ ~ ~ ~ ~ ~ ~ ~ fine. ~ ~ ~ ~ ~",
     "# 0 0 0 0 0 1 2 3 4 5 6 7 8 9 0 0 0 1 2 3 0", "0 0 1 2 0 0 0 1 0 1 2 3 4 5 6 7 0 0 0 0 0 0", "W W W M M M W W W W W W W W W M W W W W W"),
    # section 2.2, Figure 2 left: words in the frames 2, 3, 6 where they sound, <answer> for end-of-pad before those with room
    ("word-aligned", "~ <answer> All is ~ <answer> fine. ~", "# 0 1 2 3 4 5 0", ". . . . . . . .", "M M M W M M W"),
])
def test_format_by_hand(format, text, speak, listen, loss):
    """Catches words, sound or loss in a frame where the paper does not put them."""
    grid, ids, names = example(format)
    drawing = draw(grid, ids, names, width=999)
    assert cells(drawing, "text") == text.split(), drawing
    assert cells(drawing, "listen 7") == listen.split(), drawing
    assert cells(drawing, "speak 0") == speak.split(), drawing
    assert cells(drawing, "loss text") == loss.split(), drawing


def test_delay_by_hand():
    """Catches a delay of the wrong channels, direction or size: sound i has its acoustics one row later, in both streams."""
    grid, ids, names = example("response-tts")
    drawing = draw(delay(grid, ids), ids, names, width=999)
    assert cells(drawing, "speak 0") == "# 0 0 0 0 0 0 0 1 2 3 4 5 0 #".split(), drawing
    for c in range(1, K):
        assert cells(drawing, f"speak {c}") == "# 0 0 0 0 0 0 0 0 1 2 3 4 5 0".split(), drawing
        assert cells(drawing, f"listen {c}") == "# 0 0 1 2 3 4 0 0 0 0 0 0 0 0".split(), drawing


def test_undelay_takes_delay_back():
    """Catches a frame lost or moved by either: undo after apply is the identity, loss classes included."""
    rng = random.Random(0)
    for _ in range(50):
        grid = random_grid(rng)
        assert_same(undelay(delay(grid, IDS)), grid, IDS)


def test_loss_covers_what_is_written_and_nothing_else():
    """Catches loss on empties, on what was heard, or on the frame that the loop starts from (section 3.1)."""
    rng = random.Random(1)
    for _ in range(50):
        grid = random_grid(rng)
        assert (grid.loss[0, :2] == Loss.NONE).all()
        assert ((grid.loss[1:, 0] == Loss.WAIT) == (grid.text[1:] == IDS.wait)).all()
        assert ((grid.loss[1:, 0] == Loss.MONOLOGUE) == (grid.text[1:] != IDS.wait)).all()
        said = (grid.speak != IDS.empty) & (grid.speak != IDS.pad)
        assert ((grid.loss[:, 1:] != Loss.NONE) == said).all(), draw(grid, IDS)
        assert set(grid.loss[:, 1].tolist()) <= {Loss.NONE, Loss.SEMANTIC} and set(grid.loss[:, 2:].flatten().tolist()) <= {Loss.NONE, Loss.ACOUSTIC}


def test_words_longer_than_their_sound():
    """Catches a response whose words outlast its speech being cut."""
    script = write("tts", [Turn(spoken=1, response=[5] * 8)], [0, 0], IDS)
    assert script.text == [0] + [5] * 8 and script.says == [(3, 4)]


def test_an_interruption_cuts_words_that_are_being_written():
    """Catches a monologue that goes on beneath the user, a cut that counts the recording's leading quiet as speech, and an
    answer that begins before the model has fallen silent."""
    script = write("response-tts-free", [Turn(2, 9, response=[5] * 14), Turn(3, 2, response=[6], interrupts=1, onset=2)], [0, 2, 0], IDS)
    # words from 3, sound from 5; heard from 6, its first sound at 8, so both channels end before 14; the answer is at 14
    assert script.text == [0] * 3 + [5] * 11 + [6] + [0] * 3 and script.says == [(5, 14), (16, 18)] and script.hears == [(1, 3), (6, 9)]
    soon = write("response-tts-free", [Turn(2, 9, response=[5] * 14), Turn(3, 2, response=[6], interrupts=1, reaction=0.16)], [0, 2, 0], IDS)
    assert soon.says[0] == (5, 8) and soon.text[8] == 0  # heard from 6, and two frames later it is quiet


def test_users_break_in_as_often_and_wherever_the_paper_says():
    """Catches another probability than 0.7, an interruption outside the sound or always in one place, and a back-channel that
    runs into the interruption."""
    rng, starts, murmurs = random.Random(3), [], 0
    for _ in range(1000):
        turns = [Turn(heard=5, spoken=20) for _ in range(3)]
        stream.draw_interruptions(turns, [3, 3, 21], rng)
        assert turns[0].interrupts is None and turns[2].murmur is None
        for turn, after in zip(turns, turns[1:]):
            if turn.murmur:
                murmurs += 1
                assert 0 <= turn.murmur[0] <= (20 if after.interrupts is None else after.interrupts) - 3
        starts += [turn.interrupts for turn in turns[1:] if turn.interrupts is not None]
    assert len(starts) == pytest.approx(1400, abs=80) and set(starts) == set(range(20)) and murmurs > 1500


def test_crowded_words_follow_one_another():
    """Catches aligned words that overwrite each other or the row that the loop starts from, and sound longer than its words."""
    script = write("word-aligned", [Turn(spoken=4, words=[(0, [5, 6, 7]), (1, [8]), (3, [9])])], [0, 0], IDS)
    assert script.text == [0, 5, 6, 7, 8, 9] and script.says == [(1, 5)]


def test_files_give_the_grids_back(tmp_path):
    """Catches ids that do not fit the stored types, and frames given to the wrong grid."""
    rng = random.Random(2)
    grids = [random_grid(rng) for _ in range(5)]
    grids[0].text[0] = 152_063
    stream.save(grids, tmp_path / "x.safetensors")
    loaded = stream.Shard(tmp_path / "x.safetensors")
    assert len(loaded) == 5
    for a, b in zip(loaded, grids):
        assert_same(a, b, IDS)


def test_bad_files_are_one_sentence(tmp_path):
    """Catches a traceback for a missing or damaged file of grids."""
    for content in (None, b"", b"not safetensors at all"):
        file = tmp_path / "bad.safetensors"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(GridError, match="bad.safetensors is no file of token grids"):
            stream.Shard(file)


def test_a_clip_must_fit_its_span():
    with pytest.raises(GridError, match="a clip of 3 frames does not fit the span 2 .. 4"):
        stream.place([(2, 4)], [torch.zeros(3, K)], torch.zeros(K), 5)


def test_long_drawings_wrap():
    """Catches a drawing that a terminal breaks."""
    grid, ids, names = example("asr-response-tts")
    drawing = draw(grid, ids, names, width=60)
    assert max(map(len, drawing.splitlines())) <= 60
    assert sum(line.startswith("text") for line in drawing.splitlines()) > 1
