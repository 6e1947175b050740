"""What people have -> manifests: the layouts of well-known data sets.

What this is: `data.py import`. One function a layout, which gives the lines of a manifest one after
the other. A line that cannot be used is named, counted and left out. The others stay. What this
is not: a check of the sound (check.py). Serves data.py.

    python data.py import librispeech LibriSpeech/train-clean-100 pairs.jsonl
    python data.py import table recordings.csv pairs.jsonl   # columns audio and text
"""
import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from workshop.conversations import moshi_finetune, stereo
from workshop.files import check_place
from workshop.manifests import (IDEOGRAPH, DataError, Problem, Skipped, not_utf8, open_text,
                                problems_of, read_rows, text_lines, write_lines)
from workshop.sound_file import FOREIGN, READABLE

SEPARATORS = (",", ";", "\t")
LONGEST_CELL = 2 ** 24  # characters of a cell in a table


# --- layouts of recordings with their texts ---

def librispeech(source, clips):
    """Folders with NAME.trans.txt: "NAME TEXT IN CAPITALS" a line, beside NAME.flac."""
    for file in sorted(source.rglob("*.trans.txt")):
        for number, line in text_lines(file):
            name, _, text = line.partition(" ")
            if not text.strip():
                yield Skipped(f"{file}, line {number}: no text")
                continue
            # Decision: nobody writes in capitals.
            yield {"audio": file.parent / f"{name}.flac", "text": text.lower()}


def ljspeech(source, clips):
    """metadata.csv: "NAME|text|normalised text" a line; wavs/NAME.wav."""
    for number, line in text_lines(source / "metadata.csv"):
        name, *texts = line.split("|")
        if not texts:
            yield Skipped(f"{source / 'metadata.csv'}, line {number}: no text")
            continue
        yield {"audio": source / "wavs" / f"{name}.wav", "text": texts[-1]}


def aishell_3(source, clips):
    """content.txt: "NAME.wav character pinyin character pinyin ..." a line;
    wav/SPEAKER/NAME.wav."""
    for file in sorted(source.rglob("content.txt")):
        for number, line in text_lines(file):
            words = line.split()
            if len(words) < 2:
                yield Skipped(f"{file}, line {number}: no text")
                continue
            name = words[0]
            characters = words[1::2]  # between them stands how each is read
            yield {"audio": file.parent / "wav" / name[:7] / name, "text": "".join(characters)}


def st_cmds(source, clips):
    """ST-CMDS-20170001_1-OS (openslr.org/38): NAME.wav, and beside it NAME.txt, which holds the
    text in one line. (NAME.metadata says who spoke.)"""
    for file in sorted(source.rglob("*.txt")):
        recording = file.with_suffix(".wav")
        if recording.exists():
            yield pair_of(recording, first_line(file), file)


def magicdata(source, clips):
    """The sets train, dev and test of openslr.org/68, each with a TRANS.txt: a line of column
    names, then "NAME.wav SPEAKER text" a line with tabs between; SPEAKER/NAME.wav beside it.

    [FIL] and [SPK] in a text are noises of the speaker, and are left out."""
    for file in sorted(source.rglob("TRANS.txt")):
        for number, line in text_lines(file):
            name, _, rest = line.partition("\t")
            speaker, _, text = rest.partition("\t")
            if name != "UtteranceID":
                text = text.replace("[FIL]", " ").replace("[SPK]", " ")
                yield pair_of(file.parent / speaker / name, text, f"{file}, line {number}")


def primewords(source, clips):
    """primewords_md_2018_set1 (openslr.org/47): set1_transcript.json, a list of objects with "file"
    and "text"; the recording stands in audio_files/, in a folder of the first character of its name
    and in that one in a folder of the first two."""
    file = source / "set1_transcript.json"
    try:
        entries = json.loads("".join(line for _, line in text_lines(file)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    for number, entry in enumerate(entries, 1):
        try:
            name = entry["file"]
            text = entry["text"]
            recording = source / "audio_files" / name[0] / name[:2] / name
        except (LookupError, TypeError):
            yield Skipped(f"{file}, entry {number}: file and text are needed")
            continue
        yield pair_of(recording, text, f"{file}, entry {number}")


def thchs_30(source, clips):
    """data_thchs30 (openslr.org/18): data/NAME.wav with data/NAME.wav.trn, whose first line is the
    text, with spaces between words. In train/, dev/ and test/ a .trn holds the path of the one in
    data/ instead."""
    folder = source / "data" if (source / "data").is_dir() else source
    for file in sorted(folder.rglob("*.wav.trn")):
        text = first_line(file)
        if text.strip().endswith(".trn"):
            text = first_line(file.parent / text.strip())
        yield pair_of(file.with_suffix(""), text, file)


def fleurs(source, clips, parts=("train", "dev", "test")):
    """A language of FLEURS: train.tsv, dev.tsv, test.tsv, without column names; the second column
    is the name of a .wav in audio/train/ (or in train/, where its archive is unpacked beside), the
    third the text as it is written.

    Decision: the text as it is written is the truth, and not the fourth column, which has it in
    lower case and without punctuation. An error rate makes one of both."""
    files = [source / f"{part}.tsv" for part in parts]
    tables = [file for file in files if file.exists()]
    if not tables:
        raise DataError(f"{source} is not laid out as fleurs: there is no train.tsv, dev.tsv or "
                        "test.tsv")
    for file in tables:
        folder = source / "audio" / file.stem
        if not folder.is_dir():
            folder = source / file.stem
        for number, line in text_lines(file):
            cells = line.split("\t")
            if len(cells) < 3:
                yield Skipped(f"{file}, line {number}: {len(cells)} columns, and three are needed")
            else:
                yield pair_of(folder / cells[1], cells[2], f"{file}, line {number}")


def pair_of(recording, text, place):
    """A line of the manifest, or Skipped where it has no text. Spaces between ideographs, which
    some data sets set between words, are left out."""
    text = re.sub(f"(?<={IDEOGRAPH}) +(?={IDEOGRAPH})", "", " ".join(str(text).split()))
    if not text:
        return Skipped(f"{place}: no text")
    return {"audio": recording, "text": text}


def first_line(file):
    """The first line of a text file; "" where it is empty."""
    for _, line in text_lines(file):
        return line
    return ""


def common_voice(source, clips):
    """validated.tsv with columns path and sentence; clips/."""
    file = source / "validated.tsv"
    for row in table_rows(file, ("path", "sentence"), separator="\t", quoting=csv.QUOTE_NONE):
        if isinstance(row, Skipped):
            yield row
        else:
            yield {"audio": source / "clips" / row["path"], "text": row["sentence"]}


def table(source, clips):
    """A .jsonl, .csv or .tsv file with columns audio, a path relative to the file, and text; start
    and end, in seconds, where a row uses a part of its recording."""
    if source.suffix == ".jsonl":
        rows = jsonl_rows(source)
    else:
        rows = table_rows(source, ("audio", "text"), optional=("start", "end"))
    for row in rows:
        if not isinstance(row, Skipped):
            row = with_numbers({**row, "audio": source.parent / row["audio"]})
        yield row


def with_numbers(row):
    """A row whose start and end are numbers, or Skipped where they are none."""
    for column in ("start", "end"):
        if isinstance(row.get(column), str):
            try:
                row[column] = float(row[column])
            except ValueError:
                return Skipped(f"{row['audio']}: {column} must be seconds, not {row[column]!r}")
    return row


def jsonl_rows(file):
    for number, row in read_rows(file):
        if isinstance(row, Problem):
            yield Skipped(f"{file}, line {number}: {row.detail}")
        elif not isinstance(row.get("audio"), str) or not isinstance(row.get("text"), str):
            yield Skipped(f"{file}, line {number}: audio and text are needed")
        else:
            yield row


# --- tables ---

def sniff(file, columns):
    """The separator of a table, by its first line: the one that gives the columns. Raises DataError
    that names those there are."""
    with open_text(file) as text:
        header = text.readline().rstrip("\r\n")
    most = []
    for separator in SEPARATORS:
        names = next(csv.reader([header], delimiter=separator), [])
        names = [name.strip() for name in names]
        if set(columns) <= set(names):
            return separator
        if len(names) > len(most):
            most = names
    header_names = ", ".join(most) or "none"
    raise DataError(f"{file} needs the columns {' and '.join(columns)} in its first line, "
                    f"and has: {header_names}")


def table_rows(file, columns, separator=None, quoting=csv.QUOTE_MINIMAL, optional=()):
    """The rows of a table, as dicts of `columns`, and of those of `optional` that are there and not
    empty; Skipped for a row that has too many cells, too few, or an empty one of `columns`. Texts
    are as they stand there, but a line break within quotation marks is a space.

    Raises DataError for a quotation mark that nothing closes: it would swallow the rows after
    it."""
    csv.field_size_limit(LONGEST_CELL)  # the module's own limit is 131,072
    try:
        separator = separator or sniff(file, columns)
        with open_text(file) as text:
            reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
            names = [name.strip() for name in next(reader)]
            if not set(columns) <= set(names):
                raise DataError(f"{file} needs the columns {' and '.join(columns)}, "
                                f"and has: {', '.join(names)}")
            yield from checked_rows(file, reader, names, columns, separator, optional)
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(f"{file}, before line {reader.line_num + 1}: a cell has more than "
                            f"{LONGEST_CELL:,} characters, or a quotation mark before it is never "
                            "closed") from None
        raise DataError(f"{file}, before line {reader.line_num + 1}: the quotation marks do not "
                        f"match ({error}): a mark within a quoted text is written twice") from None


def checked_rows(file, reader, names, columns, separator, optional):
    before = reader.line_num
    texts_with_breaks = 0
    for cells in reader:
        first = before + 1
        before = reader.line_num
        if not cells:
            continue
        for cell in cells:
            if swallows_rows(cell, names.index(columns[0]), separator):
                raise DataError(f"{file}, line {first}: a quotation mark opens here and the rows "
                                "after it are within it: remove it, or write it twice within a "
                                "quoted text")
        if len(cells) != len(names):
            yield Skipped(f"{file}, line {first}: {len(cells)} cells in a table of {len(names)} "
                          f"columns; a text that holds {separator!r} must be quoted")
            continue
        all_cells = dict(zip(names, cells))
        row = {column: without_line_breaks(all_cells[column]) for column in columns}
        for column in optional:
            if all_cells.get(column, "").strip():
                row[column] = all_cells[column].strip()
        if before > first:  # the row ends in another line than the one it starts in
            texts_with_breaks += 1
        empty = [column for column in columns if not row[column].strip()]
        if empty:
            yield Skipped(f"{file}, line {first}: no {' and no '.join(empty)}")
            continue
        yield row
    if texts_with_breaks:
        tqdm.write(f"note: {file}: in {texts_with_breaks} quoted texts a line break became a "
                   "space", file=sys.stderr)


def without_line_breaks(cell):
    """A quoted cell may hold line breaks, which are spaces in a text that is spoken."""
    return cell.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def swallows_rows(cell, path_column, separator):
    """Whether a quoted cell holds further rows: lines with the path of a recording where a row has
    it."""
    lines = cell.replace("\r\n", "\n").split("\n")
    for line in lines[1:]:
        cells = line.split(separator)
        if len(cells) <= path_column:
            continue
        name = cells[path_column].strip(' "').lower()
        if name.endswith((*READABLE, *FOREIGN)):
            return True
    return False


# --- the command ---

LAYOUTS = {
    "librispeech": librispeech,
    "ljspeech": ljspeech,
    "aishell-3": aishell_3,
    "common-voice": common_voice,
    "st-cmds": st_cmds,
    "magicdata": magicdata,
    "primewords": primewords,
    "thchs-30": thchs_30,
    "fleurs": fleurs,
    "moshi-finetune": moshi_finetune,
    "stereo": stereo,
    "table": table,
}


def bring_in(layout, source, out, overwrite=False):
    """Write the manifest `out` of a data set, line by line. Returns (lines written, reasons why
    something was left out, counted). overwrite: a file at `out` is replaced.

    Raises ValueError, one sentence, where nothing is left or nothing is there; what stood at `out`
    is then kept."""
    if layout not in LAYOUTS:
        raise DataError(f"there is no layout {layout}, only {', '.join(LAYOUTS)}")
    source = Path(source).resolve()
    out = Path(out)
    if not source.exists():
        raise DataError(f"{source} does not exist")
    check_place(out, overwrite, [source])
    counts = Counter()
    rows = LAYOUTS[layout](source, out.resolve().with_suffix(""))
    try:
        write_lines(out, usable(rows, counts, source, layout))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(f"{source} is not laid out as {layout}: {error}") from None
    return counts["lines"], counts["left out"]


def usable(rows, counts, source, layout):
    """The lines whose recordings are there; what is left out is named on the screen and counted.
    Raises DataError where no line is left."""
    for row in tqdm(rows, unit="line"):
        if not isinstance(row, Skipped):
            row = json.loads(json.dumps(row, default=str))  # as it will be read again
            problems = problems_of(row, source.parent)
            if not problems:
                counts["lines"] += 1
                yield row
                continue
            row = Skipped("; ".join(problem.detail for problem in problems))
        counts["left out"] += 1
        tqdm.write(f"SKIPPED: {row}", file=sys.stderr)
    if not counts["lines"]:
        raise DataError(f"{source} holds nothing that can be used as {layout}: "
                        f"{counts['left out']} things were left out")


def add_command(commands):
    """The command `import` of data.py."""
    about = "Write the manifest of a data set."
    parser = commands.add_parser("import", help=about, description=about)
    parser.add_argument("layout", help=f"{', '.join(LAYOUTS)} (JSONL or CSV with columns audio "
                        "and text)")
    parser.add_argument("source", help="the data set's folder, or the file of table, "
                        "moshi-finetune and stereo")
    parser.add_argument("out", help="manifest to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")

    def run(args):
        lines, left_out = bring_in(args.layout, args.source, args.out, args.overwrite)
        return f"{lines} lines, {left_out} things left out"
    parser.set_defaults(run=run)
