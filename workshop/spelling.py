"""Texts as lists of words, as published error rates are made.

What this is: the normalisation of an error rate, and of an answer that must stand in a text. To
compare with published numbers it needs the packages that those were made with:

    pip install whisper-normalizer        # English, and other languages: as in Whisper's tables
    pip install opencc cn2an              # Chinese: traditional to simplified, numbers as read

Without them `measures.words` stands in, and the name of a number says so. What this is not: the
errors themselves (measures.py). Serves eval.py.

    Spelling("en").words("Don't pay forty-two dollars!")  -> do not pay $42
    Spelling("zh").words("我有２個 iPhone。")               -> 我 有 二 个 iphone

Decision: whether an answer is right word by word is decided by `measures.words`. It needs no
package, so that a number of right answers is the same everywhere.
"""
import re
from functools import lru_cache, partial

from workshop.measures import chinese_words, folded, words
from workshop.packages import is_there

# The modules that the normalisation of a language needs; any other language needs Whisper's.
PACKAGES = {"zh": ("opencc", "cn2an")}
WHISPER = ("whisper_normalizer",)


class Spelling:
    """The normalisation of a language. missing: packages that are not installed. label: what stands
    behind the name of a number that does not compare with published ones, or ""."""

    def __init__(self, language):
        packages = PACKAGES.get(language, WHISPER)
        self.language = language
        self.missing = [name.replace("_", "-") for name in packages if not is_there(name)]
        self.label = " (own spelling)" if self.missing else ""
        if self.missing:
            split = partial(words, language=language)
        else:
            split = published(language)
        self.words = lru_cache(maxsize=10_000)(split)

    @property
    def rate(self):
        """The name of the error rate: characters in Chinese, words elsewhere."""
        return ("CER" if self.language == "zh" else "WER") + self.label

    def contains(self, text, answer):
        """Whether the words of an answer stand, one after the other, in those of a text."""
        there = self.words(text)
        answer_words = self.words(answer)
        n = len(answer_words)
        places = range(len(there) - n + 1)
        return n > 0 and any(there[i:i + n] == answer_words for i in places)


@lru_cache
def spelling_of(language):
    """The Spelling of a language, made once."""
    return Spelling(language)


def published(language):
    """A language -> its function text -> words, from the packages."""
    if language == "zh":
        return chinese()
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer
        normalise = EnglishTextNormalizer()
    else:
        from whisper_normalizer.basic import BasicTextNormalizer
        normalise = BasicTextNormalizer()
    return lambda text: normalise(folded(text)).split()


def chinese():
    """Chinese: half width, simplified, numbers as they are read.

    Decision: a number is read as a number ("20" is 二十) and a year digit by digit ("2024年"), as
    cn2an reads them. Published tables do not say how theirs were read."""
    import cn2an
    import opencc
    to_simplified = opencc.OpenCC("t2s")

    def split(text):
        text = to_simplified.convert(folded(text))
        text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
        try:
            text = cn2an.transform(text, "an2cn")
        except ValueError:  # a number that cn2an cannot read stays as it is
            pass
        return chinese_words(text)
    return split
