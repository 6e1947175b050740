"""The world that the small model lives in: what may be asked of it, and what it answers.

What this is: a generator of (question, answer) texts, small enough to be learnt by a few million parameters in an
evening and large enough not to be a lookup: the sums and the word sequences are composed, so that combinations which
no training example asks for can be asked (`Asked.held_out`). What this is not: speech; tiny/voices.py says the words.

    python tiny/world.py            # counts, and a few questions of each kind
"""
import random
from dataclasses import dataclass

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "England": "London", "Greece": "Athens",
    "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Canada": "Ottawa", "Cuba": "Havana",
    "Peru": "Lima", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Portugal": "Lisbon", "Ireland": "Dublin",
    "Turkey": "Ankara", "India": "New Delhi", "Kenya": "Nairobi", "Vietnam": "Hanoi", "Brazil": "Brasilia",
    "Australia": "Canberra", "Belgium": "Brussels", "Ukraine": "Kyiv",
}
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("light", "dark"), ("happy", "sad"),
    ("open", "closed"), ("early", "late"), ("rich", "poor"), ("strong", "weak"), ("clean", "dirty"), ("full", "empty"),
    ("high", "low"), ("hard", "soft"), ("near", "far"), ("wet", "dry"), ("good", "bad"), ("left", "right"),
    ("day", "night"), ("up", "down"),
]
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "a banana": "yellow",
    "a carrot": "orange", "chocolate": "brown", "an elephant": "gray", "a lemon": "yellow", "a tomato": "red",
    "milk": "white",
}
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "lion": "roar", "pig": "oink",
          "bee": "buzz"}
WORDS = ("apple river window garden dragon silver table mountain candle pencil yellow monkey paper rocket butter island "
         "guitar pepper summer winter ocean castle basket hammer button ticket flower doctor market kitchen").split()
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
    "capital": ["What is the capital of {}?", "Tell me the capital of {}.", "Do you know the capital of {}?",
                "Which city is the capital of {}?"],
    "sum": ["What is {} plus {}?", "How much is {} plus {}?", "Please add {} and {}."],
    "opposite": ["What is the opposite of {}?", "Tell me the opposite of {}.", "Do you know the opposite of {}?"],
    "after": ["What comes after {}?", "Tell me what comes after {}."],
    "before": ["What comes before {}?", "Tell me what comes before {}."],
    "color": ["What color is {}?", "Tell me the color of {}.", "Do you know the color of {}?"],
    "sound": ["What does a {} say?", "What sound does a {} make?"],
    "repeat": ["Repeat after me: {}.", "Please say: {}.", "Say after me: {}."],
    "count": ["Count to {}.", "Please count to {}.", "Can you count to {}?"],
    "spell": ["How do you spell {}?", "Please spell {}.", "Spell the word {}."],
}
# How often a kind is drawn: the composed kinds are the largest worlds.
WEIGHTS = {"capital": 20, "sum": 22, "opposite": 14, "after": 10, "before": 8, "color": 6, "sound": 4, "repeat": 22,
           "count": 4, "spell": 8, "greeting": 5, "self": 6}
MAX_ADDEND, HELD_OUT_SHARE = 10, 0.1


@dataclass(frozen=True)
class Asked:
    """One question and its answer. `held_out`: a combination that is kept for evaluation and never asked in training."""
    kind: str
    question: str
    answer: str
    held_out: bool = False


def _held_out(*parts):
    """A fixed tenth of all combinations, drawn by their words alone and so the same in every run."""
    return random.Random(" ".join(parts)).random() < HELD_OUT_SHARE


def _neighbours():
    rows = [DAYS + DAYS[:1], MONTHS + MONTHS[:1], NUMBERS[1:]]
    return [(a, b) for row in rows for a, b in zip(row, row[1:])]


def draw(rng, kind=None):
    """One random `Asked`. rng: random.Random; kind: a key of WEIGHTS, or None for any by weight."""
    kind = kind or rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
    held = False
    if kind in FIXED:
        wordings, answer = rng.choice(FIXED[kind])
        return Asked(kind, rng.choice(wordings), answer)
    if kind == "capital":
        country = rng.choice(list(CAPITALS))
        slots, answer = (country,), f"The capital of {country} is {CAPITALS[country]}."
    elif kind == "sum":
        a, b = rng.randint(1, MAX_ADDEND), rng.randint(1, MAX_ADDEND)
        slots, answer = (NUMBERS[a], NUMBERS[b]), f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}."
        held = _held_out("sum", *slots)
    elif kind == "opposite":
        pair = rng.choice(OPPOSITES)
        a, b = pair if rng.random() < 0.5 else pair[::-1]
        slots, answer = (a,), f"The opposite of {a} is {b}."
    elif kind in ("after", "before"):
        a, b = rng.choice(_neighbours())
        a, b = (a, b) if kind == "after" else (b, a)
        slots, answer = (a,), f"{b.capitalize()} comes {kind} {a}."
    elif kind == "color":
        thing = rng.choice(list(COLORS))
        slots, answer = (thing,), f"{thing.capitalize()} is {COLORS[thing]}."
    elif kind == "sound":
        animal = rng.choice(list(SOUNDS))
        slots, answer = (animal,), f"A {animal} says {SOUNDS[animal]}."
    elif kind == "repeat":
        words = rng.sample(WORDS, rng.choice((2, 3, 3)))
        slots, answer = (", ".join(words),), ", ".join(words).capitalize() + "."
        held = _held_out("repeat", *words)
    elif kind == "count":
        n = rng.randint(3, 8)
        slots, answer = (NUMBERS[n],), ", ".join(NUMBERS[1:n + 1]).capitalize() + "."
    elif kind == "spell":
        word = rng.choice(SPELLED)
        slots, answer = (word,), f"{word.capitalize()} is spelled {', '.join(word.upper())}."
    else:
        raise ValueError(f"no kind {kind!r} in this world; the kinds are {', '.join(WEIGHTS)}")
    wording = rng.choice(WORDINGS[kind])
    if kind == "sum" and wording == random.Random(answer).choice(WORDINGS["sum"]):
        held = False  # Decision: a sum is a fact, and nobody knows what he was never told: each is asked in one wording at least
    return Asked(kind, wording.format(*slots), answer, held)


def sample(n, seed, held_out=None, kind=None):
    """n random questions, of one kind or all. held_out: True for composed combinations never trained on, False for the rest,
    None for all."""
    rng, out = random.Random(seed), []
    while len(out) < n:
        asked = draw(rng, kind)
        if held_out is None or asked.held_out == held_out:
            out.append(asked)
    return out


if __name__ == "__main__":
    many = sample(200_000, seed=0)
    fixed = {a.question for a in many if a.kind != "repeat"}
    print(f"{len(fixed)} distinct questions beside {len({a.question for a in many}) - len(fixed)} drawn word sequences")
    for kind in WEIGHTS:
        rng = random.Random(1)
        print(f"\n{kind}: {len({a.answer for a in many if a.kind == kind})} answers drawn")
        for asked in [draw(rng, kind) for _ in range(3)]:
            print(f"  {asked.question:44} {asked.answer}{'   (held out)' if asked.held_out else ''}")
