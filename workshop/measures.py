"""Numbers of an evaluation: errors of words, and how sure a number is.

What this is: the words of a text, errors against a true text (word error rate, character error
rate), and a number with its count and its 95 % interval. What this is not: what is measured
(eval.py), or how it is shown (report.py). Serves eval.py.

    word_errors(words("It is 7."), words("It was seven")) -> 1
    number([True, True, False], "share") -> value 0.67, n 3, low 0.21, high 0.94
"""
import re
import unicodedata

import numpy as np

UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
LARGEST_NUMBER = 999_999  # that is written out
TITLES = dict(dr="doctor", mr="mister", mrs="missus", prof="professor")
APOSTROPHES = "’‘ʼ＇`´"
CHARACTER = "\u3400-\u9fff\uf900-\ufaff"  # of Chinese, within brackets of an expression
NORMAL_95 = 1.96   # standard deviations around the mean that hold 95 % of a normal distribution
RESAMPLES = 1000   # of the bootstrap
MEANS = {"score": "points", "SIM": "cosine", "JSD": "distance"}  # in a measure's name -> its unit


def words(text, language="en"):
    """The words of a text: lower case, without punctuation; in English numbers and titles are
    written out. A Chinese word is a character, or a whole word of Latin letters."""
    text = folded(text)
    if language == "zh":
        return chinese_words(text)
    if language == "en":
        text = text.replace("+", " plus ").replace("=", " is ")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    parts = re.sub(r"[^\w' ]+", " ", text).split()
    if language != "en":
        return parts
    return [word for part in parts for word in spelled_out(part)]


def folded(text):
    """A text in lower case and half width, with one sort of apostrophe."""
    text = re.sub(f"[{APOSTROPHES}]", "'", text)  # NFKC makes a space and an accent of "´"
    return unicodedata.normalize("NFKC", text).lower()


def spelled_out(word):
    """"42" -> ["forty", "two"], "dr" -> ["doctor"]; any other word stays as it is."""
    if word.isascii() and word.isdecimal() and int(word) <= LARGEST_NUMBER:
        return number_words(int(word))
    return [TITLES.get(word, word)]


def number_words(n):
    """A whole number of at most LARGEST_NUMBER in English words, without "and"."""
    if n < 20:
        return [UNITS[n]]
    if n < 100:
        start = [TENS[n // 10 - 2]]
        rest = n % 10
    elif n < 1000:
        start = [UNITS[n // 100], "hundred"]
        rest = n % 100
    else:
        start = [*number_words(n // 1000), "thousand"]
        rest = n % 1000
    if rest:
        return start + number_words(rest)
    return start


def chinese_words(text):
    """Characters, and whole words of Latin letters and digits; punctuation is left out."""
    return re.findall(rf"[{CHARACTER}]|[^\W_{CHARACTER}]+(?:'[a-z]+)?", text)


def word_errors(guess, truth):
    """The fewest substitutions, insertions and deletions that turn one list of words into the other
    (Levenshtein's distance)."""
    # distances[j] is the distance between the words of `truth` so far and the first j of `guess`.
    distances = list(range(len(guess) + 1))
    for i, true_word in enumerate(truth, 1):
        diagonal = distances[0]
        distances[0] = i
        for j, word in enumerate(guess, 1):
            substituted = diagonal + (word != true_word)
            diagonal = distances[j]
            distances[j] = min(substituted, distances[j] + 1, distances[j - 1] + 1)
    return distances[-1]


def number(values, unit):
    """Measurements -> dict of value, n, low, high (the 95 % interval) and unit.

    unit "share": values are booleans, the value is the share of True. unit "s": values are seconds,
    the value is their median. Units of MEANS: the value is their mean. Any other unit: values are
    pairs (part, whole), the value is the sum of the parts divided by the sum of the wholes. Without
    values, value, low and high are None."""
    if not values:
        return dict(value=None, n=0, low=None, high=None, unit=unit)
    interval = wilson if unit == "share" else bootstrap
    value, low, high = interval(values, unit)
    return dict(value=value, n=len(values), low=low, high=high, unit=unit)


def wilson(values, unit):
    """Booleans -> (share, low, high). Wilson's interval has a width even where all are False."""
    n = len(values)
    z = NORMAL_95
    share = sum(values) / n
    middle = share + z * z / 2 / n
    half = z * (share * (1 - share) / n + (z / 2 / n) ** 2) ** 0.5
    scale = 1 + z * z / n
    return share, max(0, (middle - half) / scale), min(1, (middle + half) / scale)


def bootstrap(values, unit):
    """Numbers or pairs -> (value, low, high). The interval holds the middle 95 % of the values of
    RESAMPLES resamples, which are the same in every run."""
    n = len(values)
    resamples = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    # The first row is the measurement itself, in its own order.
    samples = np.asarray(values, float)[np.vstack([np.arange(n), resamples])]
    if unit == "s":
        estimates = np.median(samples, 1)
    elif unit in MEANS.values():
        estimates = samples.mean(1)
    else:
        estimates = samples[..., 0].sum(1) / samples[..., 1].sum(1).clip(1)
    low, high = np.percentile(estimates[1:], (2.5, 97.5)).tolist()
    return float(estimates[0]), low, high


def unit_of(measure, values):
    """The unit of a measure's values, as `number` takes it."""
    for name, unit in MEANS.items():
        if name in measure.split():
            return unit
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "share"
    if kinds == {tuple}:
        return "a second"
    return "s"


def numbers_of(rows, grades, spelling):
    """The rows of a part and their grades (dicts of booleans, seconds, pairs, None) -> {measure:
    number}, and the errors of `recognised` against the text of a pair or else the monologue.
    spelling: spelling.Spelling."""
    numbers = {}
    for measure in dict.fromkeys(measure for one in grades for measure in one):
        values = [one[measure] for one in grades if one.get(measure) is not None]
        numbers[measure] = number(values, unit_of(measure, values))
    errors = []
    for row in rows:
        if "recognised" not in row:
            continue
        truth = row.get("expected") or " ".join(text for _, text in row["lines"])
        true_words = spelling.words(truth)
        words = spelling.words(row["recognised"])
        errors.append((word_errors(words, true_words), len(true_words)))
    if errors:
        numbers[spelling.rate] = number(errors, "rate")
    return numbers


def spaced(things, most):
    """At most so many things of a list, evenly spaced."""
    step = -(-len(things) // most)
    return things[::step]
