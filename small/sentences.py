"""Open English: sentences of a few words about anything, for ears that must not know the world.

What this is: the example sentences of WordNet (Debian's wordnet-base) and short sayings (fortunes),
written as they are said. Some are held out by their words, once and for all. What this is not:
questions and answers; those are dialogs.py's and facts.py's.

    apt install wordnet-base fortunes
    python small/sentences.py        # counts and samples
"""
import hashlib
import random
import re
from pathlib import Path

from spoken import spoken

WORDNET = Path("/usr/share/wordnet")
FORTUNES = Path("/usr/share/games/fortunes")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
SAYINGS = ("wisdom", "people", "work", "food", "kids", "science", "education", "humorists",
           "men-women", "definitions", "fortunes", "cookie", "literature", "platitudes", "sports",
           "medicine", "pets")
FEWEST_WORDS, MOST_WORDS = 3, 15
LONGEST = 80            # letters; at a normal rate six seconds
LONGEST_SAYING = 200    # letters
HELD_OUT_SHARE = 0.06


def held_out(text):
    """Whether a sentence is kept for tests. Only its letters count, so that no spelling of it and
    no order of the sources moves it."""
    letters = re.sub("[^a-z ]", "", text.lower())
    digest = hashlib.sha1(letters.encode()).hexdigest()
    draw = int(digest[:8], 16) / 16 ** 8
    return draw < HELD_OUT_SHARE


def as_sentence(text):
    """A text in the form of a sentence as it is said, or None where it is none: too short, too
    long, full of rare signs or of capitals."""
    try:
        text = spoken(text).strip(" ,;:-")
    except ValueError:
        return None
    words = text.split()
    fits = FEWEST_WORDS <= len(words) <= MOST_WORDS and len(text) <= LONGEST
    if not fits or re.search(r"[A-Z]{3}|\.\.|--|[^aeiouyAEIOUY\W]{7}", text):
        return None
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else f"{text}."


def wordnet_examples(folder=WORDNET):
    """The quoted examples of every entry, most of them clauses or sentences. Raises OSError."""
    for part in PARTS_OF_SPEECH:
        for line in (folder / f"data.{part}").read_text().splitlines():
            _, _, gloss = line.partition(" | ")
            yield from re.findall(r'"([^"]+)"', gloss)


def sayings(folder=FORTUNES):
    """The sentences of short fortunes, without those that name an author. Raises OSError."""
    for name in SAYINGS:
        for saying in (folder / name).read_text(errors="replace").split("\n%\n"):
            saying = re.sub(r"\s+", " ", saying).strip()
            if saying and "--" not in saying and len(saying) < LONGEST_SAYING:
                yield from re.split(r"(?<=[.?!]) ", saying)


def all_sentences():
    """Every sentence once, in an order that is the same on every machine."""
    texts = {}
    for text in [*wordnet_examples(), *sayings()]:
        sentence = as_sentence(text)
        if sentence:
            texts.setdefault(sentence.lower(), sentence)
    ordered = [texts[key] for key in sorted(texts)]
    random.Random(0).shuffle(ordered)
    return ordered


def split():
    """(sentences to train on, sentences held out)"""
    texts = all_sentences()
    kept_out = [text for text in texts if held_out(text)]
    return [text for text in texts if not held_out(text)], kept_out


if __name__ == "__main__":
    train, test = split()
    words = {word for text in train for word in re.findall("[a-z']+", text.lower())}
    print(f"{len(train)} sentences, {len(words)} different words; {len(test)} held out")
    print("\n".join(train[:20]))
