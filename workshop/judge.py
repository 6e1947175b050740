"""A language model that grades answers from 0 to 10: the automatic score of Table 6.

What this is: a prompt, an endpoint of OpenAI's style, and a file of what it replied, so that
nothing is asked twice. What this is not: the model. Serves eval.py --judge.

    OPENAI_API_KEY=... python eval.py --dialogs test.jsonl --only questions --out results \\
        --judge https://api.deepseek.com/v1 deepseek-chat

Decision: the paper names its judge (DeepSeek-V3) and its scale, and not its prompt.
judge_prompt.txt is ours; --judge-prompt FILE takes another, with {question}, {reference} and
{answer}.
"""
import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

PROMPT = Path(__file__).with_name("judge_prompt.txt")
KEY = "OPENAI_API_KEY"      # the variable of the environment that holds the key
HIGHEST = 10                # points
AT_ONCE = 8                 # questions to the endpoint
ATTEMPTS = 4                # for one answer, where the endpoint is busy
PAUSE = 2.0                 # seconds before the second attempt; then twice as long each time
PATIENCE = 120              # seconds that a reply may take
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP states after which it is asked again


class Judge:
    """url: of the endpoint, without /chat/completions; cache: a JSONL of replies. Raises ValueError
    for a prompt that cannot be used."""

    def __init__(self, url, model, prompt, cache):
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.cache = cache
        self.prompt = Path(prompt or PROMPT).read_text(encoding="utf-8")
        for name in ("{question}", "{reference}", "{answer}"):
            if name not in self.prompt:
                raise ValueError(f"the prompt {prompt} has no {name}")
        self.replies = {}
        if cache.exists():
            for line in cache.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.replies[entry["key"]] = entry["reply"]

    def scores(self, answers):
        """[(question, reference, answer)] -> [points]. Raises ValueError; what was replied until
        then is kept."""
        prompts = [self.fill(*answer) for answer in answers]
        new = list(dict.fromkeys(text for text in prompts if self.key(text) not in self.replies))
        bar = tqdm(total=len(new), desc=f"judged by {self.model}", unit="answer", disable=not new)
        with ThreadPoolExecutor(AT_ONCE) as pool, open(self.cache, "a", encoding="utf-8") as file:
            for text, reply in zip(new, pool.map(self.ask, new)):
                points_of(reply)  # a reply without a number is not kept
                self.replies[self.key(text)] = reply
                entry = {"key": self.key(text), "model": self.model, "reply": reply}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                bar.update()
        bar.close()
        return [points_of(self.replies[self.key(text)]) for text in prompts]

    def fill(self, question, reference, answer):
        """The prompt of an answer."""
        text = self.prompt.replace("{question}", question).replace("{reference}", reference)
        return text.replace("{answer}", answer or "(silence)")

    def key(self, text):
        return hashlib.sha256(f"{self.model}\n{text}".encode()).hexdigest()

    def ask(self, text):
        """A prompt -> the reply. Raises ValueError."""
        body = {"model": self.model, "temperature": 0,
                "messages": [{"role": "user", "content": text}]}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                    reply = json.load(response)["choices"][0]["message"]["content"]
                if isinstance(reply, str):
                    return reply
                reason = "its reply has no text"
            except urllib.error.HTTPError as error:
                reason = f"it says {error.code} {error.reason}"
                if error.code in (401, 403):
                    reason += f": is {KEY} set, and right?"
                if error.code not in BUSY:
                    break
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = str(error)
            if attempt + 1 < ATTEMPTS:
                time.sleep(PAUSE * 2 ** attempt)
        raise ValueError(f"the judge at {self.url} gives no score: {reason}; the same command goes "
                         "on")


def points_of(reply):
    """The first number of a reply, 0 .. HIGHEST. Raises ValueError."""
    number = re.search(r"-?\d+(?:\.\d+)?", reply)
    if not number or not 0 <= float(number[0]) <= HIGHEST:
        raise ValueError(f"the judge's reply has no number 0 .. {HIGHEST}: {reply[:60]!r}; change "
                         "--judge-prompt")
    return float(number[0])
