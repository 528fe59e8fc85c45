"""Data: examples, the tokenizer, the two prompts, graders, files of demonstrations, batches.

Everything is text. A row of a file becomes an `Example`; a tokenizer makes the student's prompt of it and the
teacher's, which is the same after a demonstration; a grader says how right an answer is; `collate` makes tensors.
What cannot be used is refused before anything is trained. Left out: everything that does not fit into memory.

The way of a row: formats.read_conversations, read_examples, into_tasks and a tokenizer's learn (called by
lessons.read_lessons), collate (by train.learn), then sdft.sdft_step, on_policy_loss, score. The small world comes as
files too, from lab/world.py; a chat model's tokenizer is in chat.py.
"""
import dataclasses
import json
import os
import random
import re
import unicodedata
from dataclasses import dataclass, field, fields

import tiktoken
import torch

from formats import read_conversations, report
from runs import BadInput, first_ten, quoted

# ---------------------------------------------------------------------------------------------------------------------
# A tokenizer: made once, and handed on to whoever needs it. The small GPT's is made from a list of words.

SPECIAL = ["<|prompt|>", "<|answer|>", "<|demo|>", "<|end|>"]


class WordTokenizer:
    """256 bytes, then whole words as single tokens, then four special tokens: the same on every machine.

    A word token includes its leading space, and every prompt and answer is encoded with one space in front: a word is
    the same token wherever it stands. Any other text falls back to bytes. `spare`: those of the words that have no
    meaning so far. ValueError for words that would not be as many tokens.
    """

    least = 16                    # tokens that an answer has room for

    def __init__(self, words, spare=()):
        self.words, self.spare = list(words), list(spare)
        tokens = [bytes([b]) for b in range(256)] + [b" " + word.encode() for word in self.words]
        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) < len(tokens) or not set(self.spare) <= set(self.words):
            raise ValueError("a word is empty or stands twice, or a spare one is none of the words")
        special = {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
        # a piece is a word or a sign with its leading space, or one whitespace character: together they cover any text
        pieces = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
        self.encoding = tiktoken.Encoding("minsdft", pat_str=pieces, mergeable_ranks=ranks, special_tokens=special)
        self.n_vocab = self.encoding.n_vocab
        self.ask, self.answer, self.demo, self.end = (special[token] for token in SPECIAL)
        # what stands before a prompt's text and after it
        self.header, self.footer = [self.ask], [self.answer]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text (special tokens spelled out in it stay text), with the one leading space."""
        return self.encoding.encode_ordinary(" " + text)

    def decode(self, ids) -> str:
        """Text of an answer's ids, up to the first end token; bytes that are not UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return self.show(ids).removeprefix(" ")

    def show(self, ids) -> str:
        """Text of any ids, special tokens spelled out; rows of the model past the vocabulary are left out."""
        return self.encoding.decode([i for i in ids if i < self.n_vocab])

    def prompt(self, text: str, *demonstrations: tuple[str, str], tools=None) -> list[int]:
        """Ids up to where the answer begins. Behind a demonstration (prompt, response), or several, stand the same ids:
        the student's and the teacher's prompt differ by that prefix and by nothing else.

        >>> tokenizer = WordTokenizer(["tanu"])
        >>> tokenizer.show(tokenizer.prompt("tanu: c a d b"))
        '<|prompt|> tanu: c a d b<|answer|>'
        >>> tokenizer.show(tokenizer.prompt("tanu: c a d b", ("tanu: c a d b", "LO THUS B - D - A - C")))
        '<|demo|> tanu: c a d b<|answer|> LO THUS B - D - A - C<|end|><|prompt|> tanu: c a d b<|answer|>'
        """
        if tools or not isinstance(text, str):
            raise BadInput(f"{quoted(text)} is a conversation, and this model answers one message; give it a line with "
                           "one, or start from a chat model")
        ids = []
        for asked, said in demonstrations:
            ids += [self.demo, *self.encode(asked), self.answer, *self.encode(said), self.end]
        return [*ids, self.ask, *self.encode(text), self.answer]

    def learn(self, examples, others=()) -> "WordTokenizer":
        """A tokenizer in which each new word of the examples takes the token of a spare one, as long as there are any.

        A word in bytes shares its rows with all words there are; with a token of its own what is learned about it has
        a place of its own. The rows of spare words are used to standing for something that the model does not know
        yet. The spare word is spelled in bytes from then on. A spare word that the examples use is spare no more; one
        that `others` use stays what it is.
        """
        spare = unused(self.spare, examples)
        taken = dict(zip(unused(spare, others), self.new_words(examples)))
        return WordTokenizer([taken.get(w, w) for w in self.words], [w for w in spare if w not in taken])

    def new_words(self, examples) -> list[str]:
        """The words of the examples, in their order, that are more than one token."""
        words = re.findall(r"(?:(?<=\s)|^)[^\W\d_]+", text_of(examples))
        return [w for w in dict.fromkeys(words) if len(self.encode(w)) > 1]

    def files(self) -> dict:
        """What a model's folder keeps of it, {name: text}: WordTokenizer(**the JSON of words.json)."""
        kept = {"words": self.words, "spare": self.spare}
        # a word a line: `diff` tells what was learned
        return {"words.json": json.dumps(kept, ensure_ascii=False, indent=1) + "\n"}


def text_of(examples) -> str:
    return " ".join(part for e in examples for part in (e.prompt, e.response))


def unused(words, examples) -> list[str]:
    """Those of the words that the examples do not use."""
    used = set(re.findall(r"\w+", text_of(examples)))
    return [w for w in words if w not in used]


# ---------------------------------------------------------------------------------------------------------------------
# Examples and graders.


@dataclass
class Example:
    """A row of a file. `answer` is what the grader compares: where the file has none, the response."""

    prompt: str
    response: str                 # the demonstration: what SFT makes the model say, and the teacher is shown
    answer: object = ""           # text; of the market's graders the return of each action, state by state
    grader: str = "exact"         # a name of GRADERS
    task: str = ""
    split: str = ""               # "train" or "test" (held out); "": nobody has said
    messages: list = field(default_factory=list)           # of a conversation that is more than one user's message
    tools: list | None = None     # that the model may call: for its chat template
    demo: str | None = None       # what the teacher is shown in place of the response
    place: str = field(default="", compare=False, repr=False)          # "file:line", for messages

    def __post_init__(self):
        self.answer = self.answer or self.response

    @property
    def asked(self):
        """What a tokenizer makes a prompt of: a text, or the messages of a conversation."""
        return self.messages or self.prompt

    @property
    def shown(self) -> tuple:
        """(what was asked, what the teacher is shown)."""
        return self.asked, self.response if self.demo is None else self.demo


def plain(text: str) -> str:
    """Text without what makes no difference: white space, case, and whether an accent is a character of its own.

    >>> plain("Cafe\\u0301  STRASSE\\n") == plain("CAFÉ Straße")
    True
    """
    # Unicode's order: case is folded on characters taken apart
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def exact(said, answer):
    """The whole text."""
    return plain(said) == plain(answer)


# A character of a word, but of scripts that put no space between words (Thai, Lao, Burmese, Khmer, Chinese, Japanese,
# and Korean with its particles): there each character may begin or end one.
OF_WORDS = "[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"


def contains(said, answer):
    """Anywhere in the text, as whole words: 1 is not in 10, nor in 1.5, 1,000 or -1."""
    answer = plain(answer)
    before = r"(?<!\d[.,])(?<!(?<!\w)[-−])" if answer[:1].isdigit() else ""
    after = r"(?![.,]\d)" if answer[-1:].isdigit() else ""
    said = plain(said)
    ends = [m.end() for m in re.finditer(f"(?<!{OF_WORDS}){before}{re.escape(answer)}{after}(?!{OF_WORDS})", said)]
    # a mark, such as a vowel's in Hindi, belongs to the character before it
    return any(unicodedata.category(said[end : end + 1] or " ")[0] != "M" for end in ends)


def last_line(said, answer):
    """The last line of both."""
    return plain(said.strip().split("\n")[-1]) == plain(answer.strip().split("\n")[-1])


# What the small world says in two voices (lab/world.py): the model's own, and that of experts. Its graders are blind to
# voice and see the content alone; whether the voice is still the model's own is measured apart.

OWN_OPENERS = {"ok": 0.4, "so": 0.3, "well": 0.2, "hm": 0.1}   # how the model's own voice begins, and how often
EXPERT_WORDS = "BEHOLD THUS VERILY INDEED HENCE LO NOTE MARK OBSERVE RESULT ANSWER FINALLY".split()
ACTIONS = "buy hold sell".split()                              # what one can do in a market
RETURNS = "0 1 2 3".split()                                    # what an action earns in a state of a market
MANNER = {w.lower() for w in EXPERT_WORDS} | set(OWN_OPENERS) | set(RETURNS)  # words that are not what was asked for


def content(text: str) -> list[str]:
    """The words that an answer says, whoever says them: what follows the last 'then', without openers, separators,
    returns, case.

    >>> content("ok b d a c then c a d b") == content("LO THUS C - A - D - B") == ["c", "a", "d", "b"]
    True
    """
    last = text.lower().split(" then ")[-1]
    return [w for w in re.findall(r"\w+", last) if w not in MANNER]


def same_content(said, answer):
    """The same content, in whichever voice."""
    return content(said) == content(answer)


def earned(said, answer) -> float:
    """The return of a market's actions as a share of the best possible; what is no action for each state earns nothing.

    answer: [{action: return}, ...], one for each state.
    """
    words = content(said)
    if len(words) != len(answer) or not set(words) <= set(ACTIONS):
        return 0.0
    return sum(pays[w] for w, pays in zip(words, answer)) / sum(max(pays.values()) for pays in answer)


def earned_best(said, answer):
    """The best return that the states of a market allow, whichever way it is earned."""
    return earned(said, answer) == 1


def in_own_voice(text: str) -> bool:
    """Right or wrong, is it said in the model's own voice: an opener of its own, and no capitals?"""
    return text.split(" ")[0] in OWN_OPENERS and text == text.lower()


# How right an answer is, 0 to 1: a function of what is said and of the example's answer. A new one is a line here.
GRADERS = {"exact": exact, "contains": contains, "last-line": last_line,
           "content": same_content, "return": earned, "best-return": earned_best}
OF_RETURNS = ("return", "best-return")                         # their answer is a list of {action: return}
VOICED = ("content", *OF_RETURNS)                              # blind to voice: so the voice is measured beside them


def grade(example: Example, text: str) -> float:
    """How right is this answer to the example's prompt, by the example's own grader?"""
    return float(GRADERS[example.grader](text, example.answer))


# ---------------------------------------------------------------------------------------------------------------------
# Files: rows of any form of formats.py. Of those that cannot be used the first ten are told, with place and remedy.


@dataclass
class Task:
    """Something to be learned at a stretch: what is trained on, and what is held out and asked."""

    name: str
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)


def read_examples(paths, tokenizer, context: int, grader: str = "exact", alone: bool = False,
                  reports: list | None = None, taught: bool = True, drop: bool = False) -> list[Example]:
    """The examples of files, in their order. A row is of one of the forms of formats.py, such as

        {"prompt": str, "response": str, and if you like "task": str, "split": "train" | "test", "grader": str,
        "answer": ...}

    Without "task" a line belongs to the task that its file is named after, see `task_name`: one file is one task.
    Telling tasks apart by their content would be a guess. Without "grader" a line is graded by `grader`; "answer" is
    what that compares, the response where there is none.

    Raises BadInput, with a line for each thing, for what cannot be read or trained on: among other things an example
    that takes more than `context` tokens after its own demonstration, end token included, a prompt with two answers,
    and a task of fewer than two examples. A prompt that comes again with the same answer is left out, lest --holdout
    draw it into both parts; where a task says itself what is held out ("split"), it may repeat itself, but a prompt
    is in one part alone. alone: rows are independent (--reading); repetitions and contradictions are not looked for.
    reports: gets a line for each file, on its form and what of it is not used, and one on what is left out. taught:
    False of files that are only measured, where one example is enough. drop: rows that cannot be used are left out, and
    reported with the first ten reasons; not so a file of which no row can be.
    """
    problems, examples = [], []
    reports = [] if reports is None else reports
    for path in paths:
        before = len(examples)
        for example in read_file(path, {"task": task_name(path, paths), "grader": grader}, problems, reports):
            try:
                length = tokens_needed(example, tokenizer)
            except BadInput as e:
                problems.append(f"{example.place}: {e}")
                continue
            if length > context:
                problems.append(f"{example.place}: {quoted(example.prompt)} takes {length} tokens (prompt and "
                                f"response, both twice), more than {context}, half of the context; shorten it")
            else:
                examples.append(example)
        drop = drop and len(examples) > before
    read = examples
    if not alone:
        examples = without_repetitions(read, problems)
    if drop and problems:
        reports.append("\n".join([f"not used: {len(problems)} rows that cannot be:", *first_ten(problems, "more")]))
        problems = []
    if taught and not alone and not problems:
        check_tasks(read, examples, problems)
    kept = set(map(id, examples))
    if left_out := [e for e in read if id(e) not in kept]:
        reports.append(f"not used: {len(left_out)} of {len(read)} rows, whose prompts came before (the first is "
                       f"{left_out[0].place})")
    if problems:
        raise BadInput(*first_ten(problems, "more things like these; mend them as well"))
    return examples


def tokens_needed(example, tokenizer) -> int:
    """Of the prompt after its own demonstration, and the answer with its end token. Raises BadInput for what cannot
    stand there."""
    if "</think>" in example.response and "</think>" in tokenizer.show(tokenizer.footer):
        raise BadInput(f"{quoted(example.response)} holds thoughts, and the chat template begins an answer after empty "
                       "ones; take them out")
    shown = tokenizer.prompt(example.asked, example.shown, tools=example.tools)
    return len(shown) + len(tokenizer.encode(example.response)) + 1


def task_name(path, paths) -> str:
    """A file's name without its extension; where others are named alike, after the folders that tell them apart:
    law/train.jsonl and tax/train.jsonl are law/train and tax/train."""
    own, *others = (os.path.splitext(os.path.abspath(p))[0].split(os.sep) for p in (path, *paths))
    parts = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others if o != own)), len(own))
    # a name that is not UTF-8 has surrogates, which no file takes
    return "/".join(own[-parts:]).encode("utf-8", "backslashreplace").decode()


def read_file(path: str, default: dict, problems: list, reports: list) -> list[Example]:
    """The rows of one file, each with its place. default: what holds for a row that does not say it. Adds to
    `problems`, and to `reports` what form they have."""
    form, read, unused = read_conversations(path, problems)
    examples = []
    for place, row, conversation in read:
        try:
            examples.append(example_of(default | row, conversation, place))
        except BadInput as e:
            problems.append(f"{place}: {e}")
    if read:
        reports.append(report(path, form, read, unused))
    return examples


def example_of(row: dict, conversation, place: str) -> Example:
    """The example of a row. Raises BadInput without the place."""
    answer = conversation.answer
    if row["grader"] not in GRADERS:
        raise BadInput(f'"grader" is {quoted(row["grader"])}; choose one of {", ".join(GRADERS)}')
    if row.get("split", "test") not in ("train", "test"):
        raise BadInput(f'"split" is {quoted(row["split"])}; write "train", or "test" for what is held out')
    of_returns = row["grader"] in OF_RETURNS
    if of_returns and not sound_returns(answer):
        raise BadInput(f'"answer" is {quoted(answer)}; for the grader {row["grader"]} list what each action earns in '
                       'each state: [{"buy": 2, "hold": 1, "sell": 0}, ...]')
    if not of_returns and isinstance(answer, list):
        raise BadInput(f'"answer" is {quoted(answer)}; put a string there, in quotes')
    messages = conversation.messages
    alone = len(messages) == 1 and not conversation.tools
    prompt = messages[0]["content"] if alone else "\n".join(map(in_a_line, messages))
    return Example(prompt, conversation.response, answer or "", row["grader"], " ".join(row["task"].split()),
                   row.get("split", ""), [] if alone else messages, conversation.tools, conversation.demo, place)


def in_a_line(message) -> str:
    """A message with its calls, to tell it from others."""
    calls = f" {json.dumps(message['tool_calls'])}" if "tool_calls" in message else ""
    return f"{message['role']}: {message.get('content') or ''}{calls}"


def sound_returns(answer) -> bool:
    """[{action: return}, ...], a return a number that is not negative, and something to earn in each state."""
    def sound(pays):
        named = isinstance(pays, dict) and pays.keys() == set(ACTIONS)
        return named and all(type(v) in (int, float) and 0 <= v < 1e9 for v in pays.values()) and any(pays.values())

    return isinstance(answer, list) and len(answer) > 0 and all(map(sound, answer))


def without_repetitions(examples, problems) -> list[Example]:
    """What is said twice counts once, but in tasks that say what is held out. Contradictions are problems."""
    split = {e.task for e in examples if e.split}
    kept, known = [], {}
    for example in examples:
        key = " ".join(example.prompt.split())
        # what tools there are is part of the question
        first = known.setdefault((key, repr(example.tools)), example)
        if differ := different_answers(example, first, responses_too=example.task not in split):
            problems.append(f"{example.place}: {quoted(key)} is answered {quoted(differ[0])}, but {quoted(differ[1])} "
                            f"at {first.place}; keep one of the two")
        elif example.task in split and (example.split or "train") != (first.split or "train"):
            problems.append(f"{example.place}: {quoted(key)} is in both parts, train and test ({first.place}); "
                            "keep one of them")
        elif first is example or {first.task, example.task} <= split:
            kept.append(example)
    return kept


def different_answers(a, b, responses_too):
    """(what a says, what b says), where these are two answers, or two responses, to one prompt; None where they are
    not. White space makes no difference."""
    for one, other in ((a.answer, b.answer), (a.response, b.response))[: 1 + responses_too]:
        one, other = (" ".join(x.split()) if isinstance(x, str) else x for x in (one, other))
        if one != other:
            return one, other
    return None


def check_tasks(read, kept, problems):
    """What --holdout draws from is enough for both parts; no task vanishes because another one says the same."""
    for name, place in {e.task: e.place for e in reversed(read)}.items():
        own = [e for e in kept if e.task == name]
        if len(own) < 2 and not any(e.split for e in own):
            problems.append(f"{place}: task {quoted(name)} has {len(own)} of the two demonstrations that it needs; "
                            "add new ones")


def into_tasks(examples, holdout: float, seed: int, order: str = "") -> list[Task]:
    """The examples by task, in order of first appearance or in that of the names in `order`, comma-separated. Where no
    row has "split", a random share `holdout` of each task is held out, rounded: at least one row, and never all.

    The draw depends on `seed` and on the task's name, see `task_name`, not on the other tasks. With share 0 nothing is
    held out and `test` is `train` itself, so that something is measured: then accuracy tells what was learned by heart.
    Raises BadInput for a task whose lines are all of one part.
    """
    tasks = {}
    for example in examples:
        tasks.setdefault(example.task, []).append(example)
    names = [name.strip() for name in order.split(",")] if order else list(tasks)
    if sorted(names) != sorted(tasks):
        raise BadInput(f"--task-order {order!r}: name every task of --demos once; they are {', '.join(tasks)}")
    return [split_task(name, tasks[name], holdout, seed) for name in names]


def split_task(name, examples, share, seed) -> Task:
    if any(e.split for e in examples):
        train, test = [e for e in examples if e.split != "test"], [e for e in examples if e.split == "test"]
        if not (train and test):
            part = "train" if train else "test"
            raise BadInput(f'{examples[0].place}: all of task {quoted(name)} is "split": "{part}"; mark some lines '
                           '"train" and some "test", or none, and let --holdout draw')
        return Task(name, train, test)
    if share == 0:
        return Task(name, examples, examples)
    n = len(examples)
    moved = set(random.Random(f"holdout {seed} {name}").sample(range(n), min(max(1, round(share * n)), n - 1)))
    return Task(name, [e for i, e in enumerate(examples) if i not in moved], [examples[i] for i in sorted(moved)])


def held_out(examples) -> list[Example]:
    """What is measured and not taught: of a task that says itself what is held out, that part. Raises BadInput."""
    found = [e for e in examples if e.split != "train"]
    if examples and not found:
        raise BadInput(f'{examples[0].place}: every line is "split": "train", and what is measured is not trained on; '
                       'mark some lines "test", or leave "split" out')
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Of a task's demonstrations.


def others(example, train, k, rng) -> list:
    """k demonstrations of the same task, of other prompts."""
    return rng.sample([e for e in train if e.prompt != example.prompt], k)


def another(example, train, rng):
    """A demonstration of the same task that says something else."""
    return rng.choice([e for e in train if e.shown[1] != example.shown[1]])


def in_own_words(train, said) -> list:
    """The demonstrations, but what is shown of each is what the model itself has said to its prompt."""
    return [dataclasses.replace(e, demo=text) for e, text in zip(train, said)]


def leave_out(task, numbers):
    """These demonstrations of a task are not trained on, and neither replayed nor counted as learned."""
    numbers = set(numbers)
    # a new list: without a holdout the old one is what is tested, too
    task.train = [e for i, e in enumerate(task.train) if i not in numbers]


# ---------------------------------------------------------------------------------------------------------------------
# Tensors. Ragged rows are left-aligned and padded on the right; a length or a mask says what counts.


@dataclass
class Batch:
    """B examples as tensors: what the student sees, what the teacher sees, and what the expert said.

    prompt (B, P), length (B,): the bare prompts. demo_prompt (B, Q), demo_length (B,): the same after their
    demonstration. response (B, R), response_mask (B, R): the demonstrations up to and including the end token, the
    targets of SFT. other_prompt (B, O), other_length (B,), for a contrast: the same after another one's response.
    """

    prompt: torch.Tensor
    length: torch.Tensor
    demo_prompt: torch.Tensor
    demo_length: torch.Tensor
    response: torch.Tensor
    response_mask: torch.Tensor
    other_prompt: torch.Tensor | None = None
    other_length: torch.Tensor | None = None
    room: int = 16                # tokens that an answer may have, sampled or greedy

    def to(self, device):
        values = (getattr(self, f.name) for f in fields(self))
        return Batch(*(v.to(device) if isinstance(v, torch.Tensor) else v for v in values))


def pad(rows: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to (B, T) int64, padded on the right, and their lengths (B,).

    >>> pad([[5, 6, 7], [8]], filler=0)[0].tolist(), pad([[5, 6, 7], [8]], filler=0)[1].tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """
    longest = max(map(len, rows))
    return torch.tensor([r + [filler] * (longest - len(r)) for r in rows]), torch.tensor([len(r) for r in rows])


def collate(examples: list[Example], tokenizer, shown: list[list[Example]] | None = None,
            against: list[Example] | None = None) -> Batch:
    """The batch of some examples, for the teacher each after its own demonstration, or after those of `shown`.

    against: for a contrast, of each example another one, whose response takes the place of its own.
    """
    shown = [[e] for e in examples] if shown is None else shown
    end = tokenizer.end
    bare = [tokenizer.prompt(e.asked, tools=e.tools) for e in examples]
    after = [tokenizer.prompt(e.asked, *(d.shown for d in ds), tools=e.tools) for e, ds in zip(examples, shown)]
    responses = [[*tokenizer.encode(e.response), end] for e in examples]
    response, n = pad(responses, end)
    mask = torch.arange(response.shape[1]) < n[:, None]
    # a little more than the longest demonstrated answer
    room = max(tokenizer.least, response.shape[1] + 2)
    batch = Batch(*pad(bare, end), *pad(after, end), response, mask, room=room)
    if against is not None:
        others = [tokenizer.prompt(e.asked, (e.asked, other.shown[1]), tools=e.tools)
                  for e, other in zip(examples, against)]
        batch.other_prompt, batch.other_length = pad(others, end)
    return batch

