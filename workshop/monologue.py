"""What a monologue says: text ids, one a frame, as lines with times.

What this is: the lines that the model says and, between <asr> and <answer> (section 3.2.2), what it
says that the user said. What this is not: printing while it is written (chat.Monologue). Serves
eval.py.

    ids   ~ ~ <asr> What's up? <answer> All is fine. ~ ~   (~ is <wait>; a frame is 0.08 s)
    ->    lines [(0.48, "All is fine.")], transcripts [(0.24, "What's up?")]
"""


def read_monologue(text, tokenizer, config, frame_rate):
    """Text ids [T] -> (lines, transcripts), both [(seconds of the first word, text)].

    <wait>, <asr> and <answer> each end a line. Their ids tell them, and not their spellings: a
    tokenizer may have none for them. config: flm.Config, of which asr_token and answer_token may
    be None."""
    special = (config.wait_token, config.asr_token, config.answer_token)
    lines = []
    transcripts = []
    quotes = False  # between <asr> and <answer>
    ids = None      # of the line that is being written
    for t, token in enumerate(text):
        if token in special:
            ids = None
            if token != config.wait_token:
                quotes = token == config.asr_token
            continue
        if ids is None:
            ids = []
            target = transcripts if quotes else lines
            target.append((t / frame_rate, ids))
        ids.append(token)

    def spelled(written):
        return [(seconds, tokenizer.decode(ids, skip_special_tokens=False).strip())
                for seconds, ids in written]
    return spelled(lines), spelled(transcripts)
