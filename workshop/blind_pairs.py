"""People compare two models: the human part of Table 6.

What this is: a static page of blind pairs, each rated from 0 to 10 in the four dimensions of
section 4.3, and what the sheets of several raters say together. What this is not: a server. The
page is opened as a file, and each rater sends back the sheet that it saves. Serves eval.py --ab.

    python eval.py --ab results-ours results-other --out compare     # compare/page/index.html
    python eval.py --ab-sheets anna.json bo.json --out compare       # the table

Both folders must hold the same conversations: eval.py with the same options, and two models. In a
pair the order is drawn. compare/key.json knows it, and raters must not have that file.
"""
import json
import random
import shutil
from pathlib import Path

from workshop.manifests import write_lines
from workshop.measures import number

PAGE = Path(__file__).with_name("blind_pairs.html")
# Section 4.3, with what each stands for.
DIMENSIONS = {"helpfulness": "the content is informative and relevant",
              "naturalness": "the tone is conversational, the language fluent",
              "responsiveness": "it reacts fast to interruptions and to what the user does",
              "robustness": "it stays stable in noise"}
HIGHEST = 10  # points


def write(a, b, out, most, seed):
    """Two folders of results -> out/page and out/key.json; returns what to do next. most: pairs,
    evenly drawn from all (None: 100). Raises ValueError."""
    page = Path(out) / "page"
    if page.exists():
        raise ValueError(f"{page} exists: choose another --out, or its raters' sheets would belong "
                         "to two pages")
    pairs = common(Path(a), Path(b))
    rng = random.Random(seed)
    rng.shuffle(pairs)
    page.mkdir(parents=True)
    key = []
    pairs_on_page = []
    for i, (one, other, name) in enumerate(pairs[:most or 100]):
        order = [("A", one), ("B", other)]
        rng.shuffle(order)
        files = []
        for place, (_, file) in enumerate(order, 1):
            files.append(f"{i:03d}-{place}.wav")
            shutil.copyfile(file, page / files[-1])
        pairs_on_page.append({"pair": i, "files": files})
        key.append({"pair": i, "conversation": name, "order": [model for model, _ in order]})
    text = PAGE.read_text(encoding="utf-8")
    text = text.replace("__PAIRS__", json.dumps(pairs_on_page))
    text = text.replace("__DIMENSIONS__", json.dumps(DIMENSIONS))
    (page / "index.html").write_text(text, encoding="utf-8")
    about = {"A": str(a), "B": str(b), "pairs": key}
    file = Path(out) / "key.json"
    write_lines(file, [about])
    return (f"{len(pairs_on_page)} pairs: give {page} to raters, keep {file} from them, and read "
            "their sheets with --ab-sheets\n")


def common(a, b):
    """[(recording of A, of B, name)] of the conversations that both folders hold. Raises
    ValueError."""
    pairs = []
    for file in sorted(a.glob("*/*.wav")):
        name = file.relative_to(a)
        if (b / name).is_file() and same_user(a / name, b / name):
            pairs.append((a / name, b / name, str(name)))
    if not pairs:
        raise ValueError(f"{a} and {b} have no conversation in common: measure both models with "
                         "the same options first")
    return pairs


def same_user(one, other):
    """Whether two conversations have the same questions."""
    questions = []
    for file in (one, other):
        row = json.loads(file.with_suffix(".json").read_text())
        turns = [turn["question"] for turn in row.get("turns", ())]
        questions.append((turns, row.get("question"), row.get("expected")))
    return questions[0] == questions[1]


# --- the sheets ---

def read(sheets, out):
    """Sheets of raters -> the table: what A and B got in each dimension, A's points above B's, and
    how often A is preferred where they differ. Raises ValueError."""
    try:
        key = json.loads((Path(out) / "key.json").read_text())
    except OSError:
        raise ValueError(f"{out} has no key.json: it is the --out of --ab") from None
    orders = {entry["pair"]: entry["order"] for entry in key["pairs"]}
    points = {name: [] for name in DIMENSIONS}  # (of A, of B) in each dimension
    for sheet in sheets:
        for rating in read_sheet(sheet, orders):
            scores = dict(zip(orders[rating["pair"]], rating["points"]))
            points[rating["dimension"]].append((scores["A"], scores["B"]))
    lines = [f"A is {key['A']}, B is {key['B']}; {len(sheets)} raters",
             f"{'dimension':<16}{'n':>5}{'A':>7}{'B':>7}{'A - B':>8}   95 % interval   "
             f"{'A preferred':>12}   95 % interval"]
    numbers = {}
    for name, pairs in points.items():
        numbers[name] = numbers_of(pairs)
        lines.append(line_of(name, numbers[name]))
    write_lines(Path(out) / "results.json", [numbers])
    return "\n".join(lines) + "\n"


def numbers_of(pairs):
    """[(points of A, points of B)] -> {name: number}."""
    preferred = [a > b for a, b in pairs if a != b]
    return {"A": number([a for a, _ in pairs], "points"),
            "B": number([b for _, b in pairs], "points"),
            "A - B": number([a - b for a, b in pairs], "points"),
            "A preferred": number(preferred, "share")}


def line_of(name, numbers):
    """A dimension as a line of the table."""
    if not numbers["A"]["n"]:
        return f"{name:<16}{0:>5}"
    difference = numbers["A - B"]
    line = (f"{name:<16}{numbers['A']['n']:>5}{numbers['A']['value']:>7.2f}"
            f"{numbers['B']['value']:>7.2f}{difference['value']:>8.2f}"
            f"   {difference['low']:5.2f} .. {difference['high']:<5.2f}")
    preferred = numbers["A preferred"]
    if preferred["n"]:
        line += (f"{preferred['value']:>15.0%}   {preferred['low']:.0%} .. "
                 f"{preferred['high']:.0%} of {preferred['n']}")
    return line


def read_sheet(file, orders):
    """A sheet -> its ratings: dicts of pair, dimension and points [first, second]. Raises
    ValueError."""
    try:
        ratings = json.loads(Path(file).read_text(encoding="utf-8"))["ratings"]
        for rating in ratings:
            first, second = rating["points"]
            if rating["pair"] not in orders or rating["dimension"] not in DIMENSIONS:
                raise ValueError("a pair or a dimension that this page does not have")
            if not (0 <= first <= HIGHEST and 0 <= second <= HIGHEST):
                raise ValueError(f"points that are not 0 .. {HIGHEST}")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no sheet of this page: {error}") from None
    return ratings
