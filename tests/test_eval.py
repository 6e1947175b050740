"""Scores against answers worked by hand."""
import pytest

import eval as evaluation


@pytest.mark.parametrize("found, expected, errors", [
    ("a b c", "a b c", 0), ("a x c", "a b c", 1), ("a c", "a b c", 1), ("a b b c", "a b c", 1), ("", "a b c", 3), ("b c d", "a b c", 2)])
def test_word_errors_by_hand(found, expected, errors):
    """Catches a distance that counts a substitution twice or an insertion never."""
    assert evaluation.word_errors(found.split(), expected.split()) == errors


def test_words_are_what_two_spellings_share():
    """Catches right answers counted wrong for a digit, a comma or a capital."""
    assert evaluation.words("3 plus 4 is 7.") == evaluation.words("Three plus four is seven")
    assert evaluation.words("D-O-G") == evaluation.words("d, o, g")


def test_summary_by_hand():
    """Catches a transcript taken for the answer, and an answer with something after it taken for an exact one."""
    base = dict(expected="It is seven.", seconds=4.0, took=1.0, slowest=0.02, thinks_after=0.2, speaks_after=0.5)
    results = [dict(base, monologue=["It is seven."], heard="It is 7"),
               dict(base, monologue=["<asr>What?<answer>it is seven"], heard="what it is seven"),
               dict(base, monologue=["It is seven.", "It is nine."], heard="it is seven it is mine"),
               dict(base, monologue=[], heard="")]
    found = evaluation.summary(results)
    assert found["right"] == 0.75 and found["exact"] == 0.5 and found["real_time"] == 4
    # 3 + 4 words (the special tokens count as asr and answer here) + 6 were thought
    assert found["wer"] == pytest.approx((0 + 2 + 1) / (3 + 6 + 6))
