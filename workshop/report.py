"""What an evaluation writes: a table, the conversations that went wrong, and plots.

What this is: results.txt, failures.md and results.png of eval.py. What this is not: the measures
(eval.py) or their intervals (measures.py). Serves eval.py.

    python eval.py --dialogs test.jsonl --out results    # results/results.txt, ...

`parts` is {name of a part: (numbers, rows, grades)}: numbers are {measure: dict of
measures.number}, rows are the conversations, grades the measures of each. A part whose name has a
comma is a group of another part's conversations.
"""
import sys

import numpy as np

# Measures whose share should be 0.
BAD = {"false start", "false stop", "says more", "pause takeover", "backchannel takeover"}
# Shares that are too strict, or too much alike, to list the conversations that fail them.
COUNTED = {"exact", "right at last", "takeover", "spoken right", "spoken exact"}
GROUP_MEASURES = ("right", "exact", "score", "WER", "CER")  # what the table shows of a group
FORMS = {"share": "{:.0%}", "s": "{:.2f} s", "points": "{:.2f}"}  # unit -> how a number is printed
LONGEST_TIME = 3                                   # seconds, right edge of the plot of times


def write(parts, folder, note=""):
    """Write results.txt, failures.md and results.png -> the text of the table. note: a line below
    it, or ""."""
    text = table(parts) + note
    (folder / "results.txt").write_text(text)
    (folder / "failures.md").write_text(failures(parts))
    draw(parts, folder / "results.png")
    return text


def table(parts):
    """A line for each number."""
    lines = [f"{'part':<48}{'measure':<22}{'n':>5}{'value':>9}   95 % interval"]
    for part, (numbers, _, _) in parts.items():
        group = part.startswith(("questions,", "talk,"))
        for measure, number in numbers.items():
            if group and not measure.startswith(GROUP_MEASURES):
                continue
            value, low, high = printed(number)
            lines.append(f"{part:<48}{measure:<22}{number['n']:>5}{value:>9}   {low} .. {high}")
    return "\n".join(lines) + "\n"


def printed(number):
    """The texts of value, low and high; "-" where nothing was measured."""
    if not number["n"]:
        return "-", "-", "-"
    form = FORMS.get(number["unit"], "{:.3f}")
    return tuple(form.format(number[key]) for key in ("value", "low", "high"))


def faults(grades):
    """What went wrong in one conversation: names of measures, with "not" before what should be."""
    names = []
    for measure, value in grades.items():
        if not isinstance(value, bool) or measure.split(",")[0] in COUNTED:
            continue
        if measure in BAD and value:
            names.append(measure)
        if measure not in BAD and not value:
            names.append(f"not {measure}")
    return names


def failures(parts):
    """Markdown: what went wrong in each part, with recordings to listen to."""
    text = ["# What went wrong\n\nIn each recording the user is left, the model right.\n"]
    for part, (_, rows, grades) in parts.items():
        wrong = [(row, faults(one)) for row, one in zip(rows, grades)]
        wrong = [(row, names) for row, names in wrong if names]
        text.append(f"\n## {part}: {len(wrong)} of {len(rows)}\n\n")
        if "," not in part:
            text += [failure(row, names) for row, names in wrong]
    return "".join(text)


def failure(row, names):
    """One conversation of failures.md."""
    turns = row.get("turns") or [row]
    questions = " / ".join(turn.get("question", "") for turn in turns)
    expected = " / ".join(turn.get("expected", "") for turn in turns)
    thoughts = " / ".join(f"{at:.2f} s {line}" for at, line in row["lines"])
    return (f"- [{row['audio']}]({row['audio']}): {', '.join(names)}. "
            f"Asked: {questions} Expected: {expected} Thought: {thoughts}\n")


def draw(parts, file):
    """Draw shares with their intervals, and how soon the model speaks and stops. Without
    matplotlib, print that nothing is drawn."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"eval.py: {file} is not drawn: pip install matplotlib", file=sys.stderr)
        return
    shares = shares_of(parts)
    figure = Figure(figsize=(14, max(4, 0.2 * len(shares))), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_shares(left, shares)
    draw_times(right, parts)
    figure.savefig(file, dpi=110)


def shares_of(parts):
    """[(part, measure, number)] of every share; of a group, right answers alone."""
    shares = []
    for part, (numbers, _, _) in parts.items():
        for measure, number in numbers.items():
            is_plotted = "," not in part or measure == "right"
            if is_plotted and number["unit"] == "share" and number["n"]:
                shares.append((part, measure, number))
    return shares


def draw_shares(axes, shares):
    """A line for each share: a dot and its interval."""
    for y, (_, measure, number) in enumerate(shares):
        colour = "C3" if measure in BAD else "C0"
        x = [number["low"], number["value"], number["high"]]
        axes.plot(x, [-y] * 3, f"{colour}.-", markevery=[1], markersize=9)
    axes.set(yticks=[-y for y in range(len(shares))],
             yticklabels=[f"{part}: {measure}" for part, measure, _ in shares],
             xlim=(0, 1), xlabel="share (red: should be 0)")


def draw_times(axes, parts):
    """A step curve of each measure: the share of conversations in which it took so long or less."""
    for part, (_, _, grades) in parts.items():
        if "," in part:
            continue
        for measure in ("speaks after", "stops after"):
            times = sorted(one[measure] for one in grades if one.get(measure) is not None)
            if times:
                share = np.arange(1, len(times) + 1) / len(times)
                axes.step(times, share, where="post", label=f"{part}: {measure}")
    axes.set(xlabel="seconds", ylabel="share of conversations", xlim=(0, LONGEST_TIME))
    if axes.lines:
        axes.legend()
