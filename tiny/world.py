"""The world that the small model lives in: what may be asked of it, and what it answers.

What this is: a generator of (question, answer) texts. The world is small enough to be learnt by a
few million parameters in an evening. It is too large for a lookup: sums and word sequences are
composed, so that evaluation can ask combinations that no training example has (`Asked.held_out`).
What this is not: speech; tiny/voices.py says the words.

    python tiny/world.py            # counts, and a few questions of each kind
"""
import random
from dataclasses import dataclass

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
    "England": "London", "Greece": "Athens", "Russia": "Moscow", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Portugal": "Lisbon",
    "Ireland": "Dublin", "Turkey": "Ankara", "India": "New Delhi", "Kenya": "Nairobi",
    "Vietnam": "Hanoi", "Brazil": "Brasilia", "Australia": "Canberra", "Belgium": "Brussels",
    "Ukraine": "Kyiv",
}
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("light", "dark"),
    ("happy", "sad"), ("open", "closed"), ("early", "late"), ("rich", "poor"), ("strong", "weak"),
    ("clean", "dirty"), ("full", "empty"), ("high", "low"), ("hard", "soft"), ("near", "far"),
    ("wet", "dry"), ("good", "bad"), ("left", "right"), ("day", "night"), ("up", "down"),
]
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red",
    "a banana": "yellow", "a carrot": "orange", "chocolate": "brown", "an elephant": "gray",
    "a lemon": "yellow", "a tomato": "red", "milk": "white",
}
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "lion": "roar",
    "pig": "oink", "bee": "buzz",
}
WORDS = (
    "apple river window garden dragon silver table mountain candle pencil yellow monkey paper "
    "rocket butter island guitar pepper summer winter ocean castle basket hammer button ticket "
    "flower doctor market kitchen"
).split()
SPELLED = "dog cat sun map box fish bird tree milk book lamp rain snow moon star hand".split()
FIXED = {  # kind -> list of (wordings, answer)
    "greeting": [
        (["Hello.", "Hello there."], "Hello. How can I help you?"),
        (["Good morning."], "Good morning to you."),
        (["Good evening."], "Good evening to you."),
        (["How are you?", "How are you today?"], "I am fine, thank you."),
        (["Thank you.", "Thank you very much."], "You are welcome."),
        (["Goodbye.", "Goodbye for now."], "Goodbye. See you soon."),
    ],
    "self": [
        (["Who are you?", "Tell me who you are."], "I am a small voice model."),
        (["What is your name?", "Tell me your name."], "My name is Joe."),
        (["Can you hear me?"], "Yes, I can hear you."),
        (["What can you do?", "Tell me what you can do."], "I can answer small questions."),
        (["Where do you live?"], "I live in your computer."),
        (["Are you a human?", "Are you a person?"], "No, I am a small model."),
    ],
}
WORDINGS = {
    "capital": ["What is the capital of {}?", "Tell me the capital of {}.",
                "Do you know the capital of {}?", "Which city is the capital of {}?"],
    "sum": ["What is {} plus {}?", "How much is {} plus {}?", "Please add {} and {}."],
    "opposite": ["What is the opposite of {}?", "Tell me the opposite of {}.",
                 "Do you know the opposite of {}?"],
    "after": ["What comes after {}?", "Tell me what comes after {}."],
    "before": ["What comes before {}?", "Tell me what comes before {}."],
    "color": ["What color is {}?", "Tell me the color of {}.", "Do you know the color of {}?"],
    "sound": ["What does a {} say?", "What sound does a {} make?"],
    "repeat": ["Repeat after me: {}.", "Please say: {}.", "Say after me: {}."],
    "count": ["Count to {}.", "Please count to {}.", "Can you count to {}?"],
    "spell": ["How do you spell {}?", "Please spell {}.", "Spell the word {}."],
}
# How often a kind is drawn: the composed kinds are the largest worlds.
WEIGHTS = {
    "capital": 20, "sum": 22, "opposite": 14, "after": 10, "before": 8, "color": 6, "sound": 4,
    "repeat": 22, "count": 4, "spell": 8, "greeting": 5, "self": 6,
}
MAX_ADDEND = 10
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Asked:
    """One question and its answer. held_out: a combination that is kept for evaluation and never
    asked in training."""
    kind: str
    question: str
    answer: str
    held_out: bool = False


def _held_out(*parts):
    """Whether a combination belongs to the tenth that is kept. Its words alone decide, so it is the
    same in every run."""
    return random.Random(" ".join(parts)).random() < HELD_OUT_SHARE


def _neighbours():
    """All pairs (a, b) in which b comes right after a."""
    pairs = []
    for row in (DAYS + DAYS[:1], MONTHS + MONTHS[:1], NUMBERS[1:]):
        pairs += zip(row, row[1:])
    return pairs


# --- the kinds: each draws what its wordings need -> (slots, answer, held_out) ---

def draw_capital(rng):
    country = rng.choice(list(CAPITALS))
    return (country,), f"The capital of {country} is {CAPITALS[country]}.", False


def draw_sum(rng):
    a = rng.randint(1, MAX_ADDEND)
    b = rng.randint(1, MAX_ADDEND)
    slots = NUMBERS[a], NUMBERS[b]
    answer = f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}."
    return slots, answer, _held_out("sum", *slots)


def draw_opposite(rng):
    pair = rng.choice(OPPOSITES)
    if rng.random() >= 0.5:
        pair = pair[::-1]
    word, opposite = pair
    return (word,), f"The opposite of {word} is {opposite}.", False


def draw_after(rng):
    word, next_word = rng.choice(_neighbours())
    return (word,), f"{next_word.capitalize()} comes after {word}.", False


def draw_before(rng):
    previous, word = rng.choice(_neighbours())
    return (word,), f"{previous.capitalize()} comes before {word}.", False


def draw_color(rng):
    thing = rng.choice(list(COLORS))
    return (thing,), f"{thing.capitalize()} is {COLORS[thing]}.", False


def draw_sound(rng):
    animal = rng.choice(list(SOUNDS))
    return (animal,), f"A {animal} says {SOUNDS[animal]}.", False


def draw_repeat(rng):
    words = rng.sample(WORDS, rng.choice((2, 3, 3)))
    sequence = ", ".join(words)
    return (sequence,), sequence.capitalize() + ".", _held_out("repeat", *words)


def draw_count(rng):
    n = rng.randint(3, 8)
    return (NUMBERS[n],), ", ".join(NUMBERS[1:n + 1]).capitalize() + ".", False


def draw_spell(rng):
    word = rng.choice(SPELLED)
    return (word,), f"{word.capitalize()} is spelled {', '.join(word.upper())}.", False


KINDS = {
    "capital": draw_capital, "sum": draw_sum, "opposite": draw_opposite, "after": draw_after,
    "before": draw_before, "color": draw_color, "sound": draw_sound, "repeat": draw_repeat,
    "count": draw_count, "spell": draw_spell,
}


def draw(rng, kind=None):
    """One random `Asked`. rng: random.Random; kind: a key of WEIGHTS, or None for any by weight.
    Raises ValueError for a kind that this world does not have."""
    kind = kind or rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
    if kind in FIXED:
        wordings, answer = rng.choice(FIXED[kind])
        return Asked(kind, rng.choice(wordings), answer)
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r} in this world; the kinds are {', '.join(WEIGHTS)}")
    slots, answer, held_out = KINDS[kind](rng)
    wording = rng.choice(WORDINGS[kind])
    # Decision: a sum is a fact, and a model cannot know a fact that it was never told. So each sum
    # is asked in training in one wording at least.
    if kind == "sum" and wording == random.Random(answer).choice(WORDINGS["sum"]):
        held_out = False
    return Asked(kind, wording.format(*slots), answer, held_out)


def sample(n, seed, held_out=None, kind=None):
    """n random questions, of one kind or of all.

    held_out: True for composed combinations that are never trained on, False for the rest, None for
    all."""
    rng = random.Random(seed)
    questions = []
    while len(questions) < n:
        pair = draw(rng, kind)
        if held_out is None or pair.held_out == held_out:
            questions.append(pair)
    return questions


def main():
    questions = sample(200_000, seed=0)
    sequences = {pair.question for pair in questions if pair.kind == "repeat"}
    others = {pair.question for pair in questions} - sequences
    print(f"{len(others)} distinct questions beside {len(sequences)} word sequences")
    for kind in WEIGHTS:
        rng = random.Random(1)
        answers = {pair.answer for pair in questions if pair.kind == kind}
        print(f"\n{kind}: {len(answers)} answers drawn")
        for _ in range(3):
            pair = draw(rng, kind)
            print(f"  {pair.question:44} {pair.answer}")


if __name__ == "__main__":
    main()
