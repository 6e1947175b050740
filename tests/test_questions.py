"""The arms of tiny/questions.py: each must change the one thing that it says, and nothing else."""
import sys
from pathlib import Path

import pytest
import torch

import stream

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tiny"))
questions = pytest.importorskip("questions")
import moshi  # noqa: E402


@pytest.mark.parametrize("arm", [arm for arm, change in questions.ARMS.items() if change])
def test_an_arm_changes_one_thing(arm):
    """Catches an arm that trains for other steps, at other rates, or with a second setting changed, and one that changes nothing."""
    mine, other = questions.stages(arm), questions.stages(questions.ARMS[arm].like)
    assert list(mine) == list(other) == list(questions.BASE)
    changed = {(name, key) for name in mine for key, value in vars(mine[name]).items() if value != vars(other[name])[key]}
    assert {key for _, key in changed} == {questions.ARMS[arm].field} and questions.ARMS[arm].field != "steps"
    assert {name for name, _ in changed} == questions.ARMS[arm].values.keys()


def test_arms_share_what_they_have_in_common_and_nothing_else():
    """Catches two arms, or two seeds, that train into one folder, and a shared beginning that is trained twice."""
    stages = [(arm, name, seed) for arm in questions.ARMS for name in questions.BASE for seed in (0, 1)]
    places = {}
    for arm, name, seed in stages:
        course = [vars(questions.stages(arm)[n]) for n in list(questions.BASE)[:list(questions.BASE).index(name) + 1]]
        places.setdefault(questions.folder(Path("work"), arm, name, seed), []).append((name, seed, course))
    assert all(same == found[0] for found in places.values() for same in found)
    first = {questions.folder(Path("work"), arm, "fine-tuning-1", 0) for arm in ("base", "no interruptions", "γ 0.5", "γ 0.01", "α₁ 100")}
    assert len(first) == 1


def test_letters_of_codes_are_found():
    """Catches halves of a frame in the wrong order, and a blank that is taken for a letter: a code that spells two letters, one that
    spells one, and one that is silence, heard in random order."""
    spells, drawn = ["ab", "c", ""], torch.Generator().manual_seed(0)
    codes = [torch.randint(3, (12,), generator=drawn) for _ in range(100)]
    table = moshi.fit(codes, [moshi.spelled("".join(spells[c] for c in row)) for row in codes])
    a, b, c = moshi.spelled("abc")
    assert table[0].argmax(-1).tolist() == [a, b] and c in table[1].argmax(-1).tolist() and table[2].argmax(-1).tolist() == [0, 0]


def test_the_aligned_monologue_has_the_same_words_and_sounds():
    """Catches a baseline of RQ1 that differs in more than where its words stand: letters of a made-up alphabet sound for two
    frames each, and every word must be written in the frame where its first letter begins."""
    words, sounds = [5, 6, 7], [1, 1, 2, 2, 3, 3, 4, 4]
    ids = stream.Ids(wait=0, asr=1, answer=2, empty=9, pad=9)
    aligner = object.__new__(moshi.Aligner)
    aligner.ids = ids

    class Tokenizer:
        id_to_token = staticmethod({5: "a", 6: "Ġb", 7: "Ġc"}.get)
        decode = staticmethod(lambda tokens: "".join({5: "a", 6: " b", 7: " c"}[t] for t in tokens))
    aligner.tokenizer = Tokenizer
    letters = [0, *(moshi.LETTERS.index(c) + 1 for c in "abc ")]  # code -> letter; code 0 is silence, the blank
    aligner.scores = torch.full((9, 2, len(moshi.LETTERS) + 1), -9.0)
    for code, letter in enumerate(letters):
        aligner.scores[code, :, letter] = 0
    turn = stream.Turn(listen_frames=4, speak_frames=len(sounds), response=words)
    script = stream.write("response-tts", [turn, turn], [2, 3, 1], ids)
    codes = [torch.tensor(sounds)[:, None].expand(-1, stream.K)] * 2
    natural = script.grid(stream.place(script.speak_spans, codes, torch.zeros(stream.K, dtype=torch.int64), len(script)), torch.zeros(len(script), stream.K))
    found = aligner.aligned(natural, "response-tts")
    assert torch.equal(found.speak, natural.speak) and torch.equal(found.listen, natural.listen) and torch.equal(found.loss[:, 1:], natural.loss[:, 1:])
    expected = natural.text.clone().fill_(ids.wait)
    for start, _ in script.speak_spans:
        for word, code in zip(words, (1, 2, 3)):
            at = start + sounds.index(code)
            expected[at - 1:at + 1] = torch.tensor([ids.answer, word])
    assert found.text.tolist() == expected.tolist()
    assert (found.loss[1:, 0] == torch.where(expected[1:] == ids.wait, stream.Loss.WAIT, stream.Loss.MONOLOGUE)).all()
