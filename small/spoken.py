"""Text as it is said: numbers, dates, money, units and abbreviations in words.

What this is: `spoken`, which every text of the second model goes through before an engine speaks it
and before a model reads it, so that the words written are the words heard. What this is not: a
front end of a speech engine, which knows far more; what these rules cannot say is refused.

    python small/spoken.py "Dr. Smith paid $3.50 on May 5, 1989, at 7:30 p.m."
"""
import re
import sys

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = [(10 ** 12, "trillion"), (10 ** 9, "billion"), (10 ** 6, "million"), (1000, "thousand")]
IRREGULAR_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth",
                      "eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
MONTHS = ("January February March April May June July August September October November "
          "December").split()
MONTH = "|".join(MONTHS)
# Said as the words on the right, wherever they stand. Those with a full stop need it.
ABBREVIATIONS = {
    "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Dr.": "Doctor", "Prof.": "Professor",
    "St.": "Saint", "Jr.": "Junior", "Sr.": "Senior", "Gen.": "General", "Capt.": "Captain",
    "Lt.": "Lieutenant", "Col.": "Colonel", "Gov.": "Governor", "Sen.": "Senator", "No.": "Number",
    "vs.": "versus", "etc.": "et cetera", "e.g.": "for example", "i.e.": "that is",
    "approx.": "approximately", "a.m.": "A M", "p.m.": "P M", "U.S.A.": "U S A", "U.S.": "U S",
    "U.K.": "U K", "U.N.": "U N", "B.C.": "B C", "A.D.": "A D",
}
UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"), "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"), "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"), "m": ("meter", "meters"), "g": ("gram", "grams"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"), "ft": ("foot", "feet"), "ml": ("milliliter", "milliliters"),
    "°C": ("degree Celsius", "degrees Celsius"), "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
}
MONEY = {"$": ("dollar", "dollars", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
         "€": ("euro", "euros", "cent", "cents")}
SYMBOLS = {"&": " and ", "+": " plus ", "=": " equals ", "×": " times ", "÷": " divided by "}
# Signs that the text may keep, beside letters and spaces.
PUNCTUATION = ".,;:?!'-"
NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"


def cardinal(n):
    """42 -> "forty-two", for whole numbers below 10 ** 15. Raises ValueError above."""
    if n < 0:
        return f"minus {cardinal(-n)}"
    if n < 20:
        return ONES[n]
    if n < 100:
        tens = TENS[n // 10]
        return f"{tens}-{ONES[n % 10]}" if n % 10 else tens
    if n < 1000:
        hundreds = f"{ONES[n // 100]} hundred"
        return f"{hundreds} {cardinal(n % 100)}" if n % 100 else hundreds
    for size, name in SCALES:
        if n >= size:
            if n // size >= 1000:
                raise ValueError(f"the number {n} is too large to be said")
            above = f"{cardinal(n // size)} {name}"
            return f"{above} {cardinal(n % size)}" if n % size else above


def ordinal(n):
    """42 -> "forty-second"."""
    words = cardinal(n)
    start, last = re.fullmatch(r"(.*?)([a-z]+)", words).groups()
    if last in IRREGULAR_ORDINALS:
        return start + IRREGULAR_ORDINALS[last]
    if last.endswith("y"):
        return f"{start}{last[:-1]}ieth"
    return f"{words}th"


def year(n):
    """1989 -> "nineteen eighty-nine"; 1905 -> "nineteen oh five"; 2004 -> "two thousand four"."""
    century, rest = divmod(n, 100)
    if n < 1000 or n >= 10_000 or n % 1000 < 10:
        return cardinal(n)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    if rest < 10:
        return f"{cardinal(century)} oh {cardinal(rest)}"
    return f"{cardinal(century)} {cardinal(rest)}"


def whole(digits):
    """The value of digits with or without thousands commas."""
    return int(digits.replace(",", ""))


def decimal(text):
    """"3.14" -> "three point one four"."""
    before, after = text.split(".")
    digits = " ".join(ONES[int(digit)] for digit in after)
    return f"{cardinal(whole(before))} point {digits}"


def number(text):
    """The words of a number as it is written, with or without a fraction."""
    return decimal(text) if "." in text else cardinal(whole(text))


def counted(n_text, names):
    """A number and its unit, in the singular after "one"."""
    return f"{number(n_text)} {names[0] if n_text == '1' else names[1]}"


def _money(match):
    sign = match[1]
    units = match[2]
    cents = match[3]
    scale = match[4]
    coins = MONEY[sign]  # one, many, one cent, many cents
    if scale:
        amount = f"{units}.{cents}" if cents else units
        return f"{number(amount)} {scale} {coins[1]}"
    amount = counted(units, coins[:2])
    if cents and int(cents):
        amount += f" and {counted(str(int(cents)), coins[2:])}"
    return amount


def _clock(match):
    hour, minute, half = match.groups()
    words = cardinal(int(hour))
    if int(minute) == 0:
        words += "" if half else " o'clock"
    elif int(minute) < 10:
        words += f" oh {cardinal(int(minute))}"
    else:
        words += f" {cardinal(int(minute))}"
    return f"{words} {half[0].upper()} M" if half else words


def _month_first(match):
    month, day, year_digits = match.groups()
    words = f"{month} {ordinal(int(day))}"
    return f"{words}, {year(int(year_digits))}" if year_digits else words


def _day_first(match):
    day, month, year_digits = match.groups()
    words = f"the {ordinal(int(day))} of {month}"
    return f"{words}, {year(int(year_digits))}" if year_digits else words


def _decade(match):
    words = year(int(match[1]))
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
# In this order: the first rule that fits takes its digits away from those below.
RULES = [
    (rf"\b({MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?\b(?![:.%]\d)", _month_first),
    (rf"\b(?:the )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({MONTH})(?:,? (\d{{4}}))?\b", _day_first),
    (r"(?<=\d)\s*[*x×]\s*(?=\d)", lambda match: " times "),
    (r"(?<=\d) [-−–] (?=\d)", lambda match: " minus "),
    (r"(?<=\d)[-–](?=\d)", lambda match: " to "),
    (r"(?<![\w])[-−](?=\d)", lambda match: "minus "),
    (r"([$£€])(" + NUMBER + r")(?:\.(\d\d?))?(?: (million|billion|trillion))?\b", _money),
    (r"\b([01]?\d|2[0-3]):([0-5]\d)(?: ?([aApP])(?:\.m\.|m\b))?", _clock),
    (r"\b(\d{1,2}) ?([aApP])(?:\.m\.|m\b)",
     lambda match: f"{cardinal(int(match[1]))} {match[2].upper()} M"),
    (r"\b(1[1-9]\d0|20[1-9]0)'?s\b", _decade),
    (r"\b(\d+)(?:st|nd|rd|th)\b", lambda match: ordinal(int(match[1]))),
    (r"((?:" + NUMBER + r")(?:\.\d+)?) ?%", lambda match: f"{number(match[1])} percent"),
    (r"((?:" + NUMBER + r")(?:\.\d+)?) ?(" + UNIT + r")(?![A-Za-z])",
     lambda match: counted(match[1], UNITS[match[2]])),
    (r"(?<![\w.])(1[1-9]\d\d|20\d\d)(?![\w%]|[.,]\d)", lambda match: year(int(match[1]))),
    (r"\b(\d+)/(\d+)\b", lambda match: f"{number(match[1])} over {number(match[2])}"),
    (r"(?:" + NUMBER + r")(?:\.\d+)?", lambda match: number(match[0])),
]
ABBREVIATION = re.compile(r"(?<![\w.])(?:" + "|".join(
    re.escape(short) for short in sorted(ABBREVIATIONS, key=len, reverse=True)) + r")(?!\w)")


def spoken(text):
    """Text -> the words that are said, with letters, spaces and `PUNCTUATION` alone.

    Raises ValueError where something is left that has no words here, such as an address or code."""
    text = text.replace("’", "'").replace("‘", "'").replace("—", ", ").replace("–", "-")
    text = re.sub(r"[\"“”`*_]", "", text)
    text = re.sub(r"\s*\([^)]*\)", "", text)
    for pattern, words in RULES:
        text = re.sub(pattern, words, text)
    text = ABBREVIATION.sub(lambda match: ABBREVIATIONS[match[0]], text)
    for symbol, words in SYMBOLS.items():
        text = text.replace(symbol, words)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,;:?!])", r"\1", text)
    rest = re.sub(f"[A-Za-z {re.escape(PUNCTUATION)}]", "", text)
    strange = sorted(set(rest))
    if strange:
        raise ValueError(f"no words for {' '.join(strange)} in {text!r}")
    return text


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit('spoken.py: give it one text, in quotes')
    try:
        print(spoken(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"spoken.py: {error}")
