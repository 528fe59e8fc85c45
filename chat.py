"""The tokenizer and the chat template of an ordinary Hugging Face folder: tokenizer.json, and what is said around it.

`read_encoding` makes a tiktoken.Encoding of a byte-level BPE, which cuts every text as the folder's own library does,
or refuses the file. `ChatTokenizer` adds the chat template, and has the methods of data.WordTokenizer. Left out:
SentencePiece, WordPiece, Unigram, and the tokens that a tokenizer.json puts around a text that stands in no chat.
"""
import contextlib
import datetime
import functools
import json
import os
import re
import unicodedata

import tiktoken

from runs import BadInput, quoted, read_json

# ---------------------------------------------------------------------------------------------------------------------
# tokenizer.json.

# How a text is cut into pieces, none of which shares a token with another, where the file names no expression itself.
GPT2_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Each digit a piece: in front of it white space ends as it does in front of the end of the text.
DIGIT_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# The file spells bytes as characters: 188 bytes as themselves, the other 68, in their order, as U+0100, U+0101, ...
AS_THEMSELVES = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in AS_THEMSELVES]
BYTE = {chr(b): b for b in AS_THEMSELVES} | {chr(256 + i): b for i, b in enumerate(OTHERS)}


@contextlib.contextmanager
def about(folder, file):
    """An error within becomes one line that names the file."""
    path = os.path.join(folder, file)
    try:
        yield
    except BadInput as e:
        raise BadInput(f"{path}: {e}")
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror}); name a folder that holds this file")
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as e:
        # a damaged file may be anything
        raise BadInput(f"{path}: is not of the form that is known here ({type(e).__name__}: {quoted(str(e))}); "
                       "fetch or make it again")


def read_encoding(folder) -> tuple[tiktoken.Encoding, int, str | None, dict[str, bool]]:
    """The byte-level BPE of tokenizer.json: (encoding, n_vocab, form, added).

    n_vocab: largest id of the file + 1. The encoding has ids from there on for bytes that are no tokens: whoever
    encodes drops them, as the `tokenizers` library does. (What stood on both sides of such a byte may be one token
    there, and is not here.) form: of Unicode, to be applied to a text first, or None. added: {spelling: is it special?}
    of the tokens that are not made by merging. BadInput, one line, for what tiktoken would encode otherwise.
    """
    with about(folder, "tokenizer.json"):
        file = read_json(os.path.join(folder, "tokenizer.json"))
        bpe, form = file["model"], (file.get("normalizer") or {"type": None})["type"]
        added = {token["content"]: token["id"] for token in file["added_tokens"]}
        refuse_other_settings(bpe, form, file["added_tokens"])
        spelled = {token: i for token, i in bpe["vocab"].items() if token not in added}
        if strange := [token for token in spelled if not token or not set(token) <= BYTE.keys()]:
            raise BadInput(f"the token {quoted(strange[0])} is not spelled in bytes; choose a model with a byte-level "
                           "BPE, such as Llama 3, SmolLM2 or Qwen")
        ranks = {bytes(BYTE[c] for c in token): i for token, i in spelled.items()}
        check_merges(bpe, spelled)
        n_vocab = max([*ranks.values(), *added.values()]) + 1
        missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        if missing and bpe.get("unk_token") is not None:
            raise BadInput(f"{len(missing)} bytes are no tokens and become {quoted(bpe['unk_token'])}; choose a model "
                           "whose vocabulary has all 256")
        # tiktoken panics at a byte that is no token
        ranks |= {byte: n_vocab + i for i, byte in enumerate(missing)}
        pieces = pieces_of(file["pre_tokenizer"])
        encoding = tiktoken.Encoding("folder", pat_str=pieces, mergeable_ranks=ranks, special_tokens=added)
        # tiktoken leaves out what lies between the pieces, `tokenizers` does not
        sample = "".join(map(chr, range(0x3000)))
        if encoding.decode(encoding.encode_ordinary(sample)) != sample:
            raise BadInput(f"the pieces of {quoted(pieces)} leave out parts of a text; choose another model")
        return encoding, n_vocab, form, {token["content"]: token["special"] for token in file["added_tokens"]}


def refuse_other_settings(bpe, form, added):
    """Raises BadInput for what a tiktoken.Encoding does not do."""
    for what, value, known in (
        ("model.type", bpe["type"], ("BPE",)),
        ("model.dropout", bpe.get("dropout"), (None, 0)),
        ("model.byte_fallback", bpe.get("byte_fallback"), (None, False)),
        ("model.continuing_subword_prefix", bpe.get("continuing_subword_prefix"), (None, "")),
        ("model.end_of_word_suffix", bpe.get("end_of_word_suffix"), (None, "")),
        ("normalizer", form, (None, "NFC")),
        *((f"{trait} of the token {quoted(token['content'])}", token.get(trait), (None, False))
          for token in added for trait in ("lstrip", "rstrip", "single_word")),
    ):
        if value not in known:
            raise BadInput(f"{what} is {quoted(value)}, and can be {' or '.join(map(str, known))} here; choose a model "
                           "with a plain byte-level BPE, such as Llama 3, SmolLM2 or Qwen")


def check_merges(bpe, ids):
    """Raises BadInput where tiktoken, which merges the neighbours whose union has the least id, would merge otherwise.

    The same tokens come out if ids rise with the merges, and if each token's own bytes merge into it: until two
    neighbours that make up the token meet, nothing but these bytes was merged. A token that merging never makes, and
    is found whole all the same (ignore_merges), must be listed as the union of whichever two tokens make it up.
    """
    # ["a", "b"], or "a b"
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in bpe["merges"]]
    if strange := [pair for pair in pairs if len(pair) != 2 or "".join(pair) not in ids]:
        raise BadInput(f"the merge {quoted(' '.join(strange[0]))} makes no token of the vocabulary; fetch it again")
    made = [ids[a + b] for a, b in pairs]
    if made != sorted(made):
        raise BadInput("the ids of tokens do not rise in the order of the merges; choose a model where they do, such "
                       "as Llama 3, SmolLM2 or Qwen")
    rank = {pair: i for i, pair in enumerate(pairs)}
    for token in ids:
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        if bpe.get("ignore_merges") and all(s in rank for s in splits if s[0] in ids and s[1] in ids):
            continue
        if merge(token, rank) != [token]:
            raise BadInput(f"the merges never make the token {quoted(token)}; choose a model whose tokens are all made "
                           "by merges")


def merge(token: str, rank: dict) -> list[str]:
    """What BPE makes of a piece: again and again the two neighbours of the least rank become one."""
    parts, never = list(token), len(rank)
    while len(parts) > 1:
        ranks = [rank.get(pair, never) for pair in zip(parts, parts[1:])]
        least = min(ranks)
        if least == never:
            break
        i = ranks.index(least)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def pieces_of(pre_tokenizer) -> str:
    """The regular expression of the pieces. Raises BadInput for a pre-tokenizer of a form that is not known here."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    kinds = [step["type"] for step in steps]
    last = steps[-1]
    if kinds[-1:] == ["ByteLevel"] and not last["add_prefix_space"]:
        by_regex = last.get("use_regex", True)
        if kinds == ["Split", "ByteLevel"] and not by_regex and "Regex" in steps[0]["pattern"]:
            if steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
                return steps[0]["pattern"]["Regex"]
        if kinds == ["ByteLevel"] and by_regex:
            return GPT2_PIECES
        if kinds == ["Digits", "ByteLevel"] and by_regex and steps[0]["individual_digits"]:
            return DIGIT_PIECES
    raise BadInput(f"the pre-tokenizer {' + '.join(kinds)}, with these settings, is not known here; choose a model "
                   "that cuts text as Llama 3, SmolLM2, Qwen or GPT-2 does")


# ---------------------------------------------------------------------------------------------------------------------
# The chat template: a program in jinja2, which makes one text of the messages of a conversation.

# What a template takes for today: the same day always, or a run that goes on tomorrow would see other prompts. It is
# the day that Llama 3.2's template names where there is no clock.
TODAY = datetime.datetime(2024, 7, 26)


def read_template(folder):
    """render(messages, add_generation_prompt, tools=None) -> str, of chat_template.jinja or of tokenizer_config.json,
    where of several the one named "default" counts. BadInput: there is none, it is no jinja2, or it refuses."""
    # comes with torch
    import jinja2
    import jinja2.sandbox

    config, file = {}, "tokenizer_config.json"
    with about(folder, file):
        if os.path.exists(os.path.join(folder, file)):
            config = read_json(os.path.join(folder, file))
        source = config.get("chat_template")
        if isinstance(source, list):
            source = {named["name"]: named["template"] for named in source}.get("default")
        # "<s>", or {"content": "<s>", ...}, or null
        names = {name: config.get(name) or "" for name in ("bos_token", "eos_token")}
        names = {name: token if isinstance(token, str) else token["content"] for name, token in names.items()}
    if os.path.exists(os.path.join(folder, "chat_template.jinja")):
        file = "chat_template.jinja"
        with about(folder, file), open(os.path.join(folder, file), encoding="utf-8") as f:
            source = f.read()
    if not source:
        raise BadInput(f"{folder}: a base model, without a chat template; put a chat_template.jinja into the folder")

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own would escape HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    world = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                         extensions=["jinja2.ext.loopcontrols"])
    world.globals |= {"raise_exception": refuse, "strftime_now": TODAY.strftime}
    world.filters["tojson"] = to_json
    compiled = functools.cache(world.from_string)

    def render(messages, add_generation_prompt, tools=None) -> str:
        try:
            # a model that could think first, such as Qwen3, answers at once: a demonstration shows no thoughts
            return compiled(source).render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
                enable_thinking=False, **names)
        except Exception as e:
            # a template is a program of somebody's: it may fail in any way
            raise BadInput(f"{os.path.join(folder, file)}: refuses these messages, or is no chat template "
                           f"({' '.join(str(e).split())}); mend one or the other")

    return render


# ---------------------------------------------------------------------------------------------------------------------
# Both.

# What the teacher is asked in the place of a user's message: {prompt}, and with {demo} the demonstration. Or EARLIER:
# the demonstration as an earlier turn of the conversation, and the message as it is.
OFFICIAL = ("{prompt}\n\nThis is an example for a response to the question:\n{demo}\n\nNow answer with a response of "
            "your own, including the thinking process.")
EARLIER = "earlier-turn"
# Stands for a text of which one wants to know what a template puts around it.
MARK = "{any text}"


def template_of(said: str) -> str:
    """The template that --template says: its text, the file of that name, or nothing, which is OFFICIAL. BadInput."""
    if not os.path.isfile(said):
        return said or OFFICIAL
    try:
        # with a byte order mark or without
        with open(said, encoding="utf-8-sig") as f:
            return f.read().rstrip("\n")
    except (OSError, ValueError) as e:
        raise BadInput(f"--template {said}: cannot be read ({e}); give a text file in UTF-8")


class ChatTokenizer:
    """The tokenizer of a folder, with the same methods as data.WordTokenizer; prompts are conversations.

    n_vocab: largest id + 1 (a model may have more rows). end: id of the token that the chat template writes after an
    answer. header, footer: ids before the user's text and after it, up to the answer, in a conversation of one
    message. BadInput for a folder, a chat template or a template for the teacher that cannot be used.
    """

    least = 32                    # tokens that an answer has room for: a sentence

    def __init__(self, folder, template=OFFICIAL):
        missing = [field for field in ("{prompt}", "{demo}") if field not in template]
        if missing and template != EARLIER:
            raise BadInput(f"the template {quoted(template)} lacks {' and '.join(missing)}; write {{prompt}} for the "
                           f"question and {{demo}} for the demonstration, or {EARLIER}, or name a file")
        self.template = template
        self.encoding, self.n_vocab, self.form, added = read_encoding(folder)
        self.special = [token for token, special in added.items() if special]
        self.added, self.ordinary = any_of(added), any_of(set(added) - set(self.special))
        self.hidden = {self.encoding.encode_single_token(token) for token in self.special}
        ids = map(self.encoding.encode_single_token, [*self.encoding.token_byte_values(), *added])
        self.known = {i for i in ids if i < self.n_vocab}
        self.render = read_template(folder)

        user = {"role": "user", "content": MARK}
        before, found, behind = self.render([user], True).partition(MARK)
        if not found or MARK in behind:
            raise BadInput(f"{folder}: the chat template does not write a user's text once, as it is; choose another")
        self.header, self.footer = self.encode_rendered(before), self.encode_rendered(behind)
        said = self.render([user | {"content": "?"}, {"role": "assistant", "content": MARK}], False)
        behind = said.rpartition(MARK)[2]
        end = self.added.match(behind) if MARK in said else None
        if not end:
            raise BadInput(f"{folder}: the chat template ends an answer with {quoted(behind)}, which does not begin "
                           "with one added token; put another chat_template.jinja into the folder")
        self.end = self.encoding.encode_single_token(end[0])

    def encode(self, text: str) -> list[int]:
        """Ids of somebody's text: the spelling of a special token in it is text as well, that of another added token
        (<think>, <tool_call>) is the token."""
        return self.encode_around(self.ordinary, text)

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of what a template wrote: the spelling of any added token is that token."""
        return self.encode_around(self.added, text)

    def encode_around(self, tokens, text) -> list[int]:
        """Ids of a text in which some tokens are spelled, each of which ends what stands before it."""
        ids = []
        # every other part is a token
        for i, part in enumerate(tokens.split(text)):
            if i % 2:
                ids.append(self.encoding.encode_single_token(part))
            else:
                part = unicodedata.normalize(self.form, part) if self.form else part
                ids += [j for j in self.encoding.encode_ordinary(part) if j < self.n_vocab]
        return ids

    def decode(self, ids) -> str:
        """Text of an answer's ids, up to the first end token, without special tokens and rows of the model that are no
        tokens; bytes that are not UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return self.show(i for i in ids if i not in self.hidden)

    def show(self, ids) -> str:
        """Text of any ids, added tokens spelled out; rows of the model that are no tokens are left out."""
        return self.encoding.decode([int(i) for i in ids if int(i) in self.known])

    def prompt(self, asked, *demonstrations, tools=None) -> list[int]:
        """Ids up to where the answer begins.

        asked: a user's message, or the messages [{"role": str, "content": str, ...}] of a conversation, of which a
        user or a tool had the last. demonstrations: (asked, said) each; after them stand the ids of the teacher's
        prompt, the same conversation with another last user message, or with earlier turns. tools: of the chat
        template, JSON schemas. BadInput: see `check`, for messages that no answer can follow, and for a template that
        leaves out demonstrations, tools or calls.
        """
        messages = messages_of(asked)
        self.check([messages, demonstrations, tools])
        if demonstrations:
            messages = self.shown(messages, demonstrations)
        text = self.render(messages, True, tools)
        calls = [call for message in messages for call in message.get("tool_calls", [])]
        for part in [*(said.strip() for _, said in demonstrations), *names_of([*(tools or []), *calls])]:
            if part not in text:
                raise BadInput(f"the chat template leaves out {quoted(part)}; take it out, write it otherwise, or put "
                               "another chat_template.jinja into the folder")
        return self.encode_rendered(text)

    def shown(self, messages, demonstrations) -> list[dict]:
        """The messages with demonstrations, by the teacher's template."""
        last, question = last_user(messages)
        pairs = [(last_user(messages_of(asked))[1], said) for asked, said in demonstrations]
        if self.template == EARLIER:
            turns = [{"role": role, "content": content}
                     for pair in pairs for role, content in zip(("user", "assistant"), pair)]
            return [*messages[:last], *turns, *messages[last:]]
        demo = "\n\n".join(said if asked == question else f"{asked}\n{said}" for asked, said in pairs)
        fill = {"{prompt}": question, "{demo}": demo}
        # in one pass: a demonstration that holds "{prompt}" stays as it is
        text = re.sub(r"\{prompt\}|\{demo\}", lambda field: fill[field[0]], self.template)
        return [*messages[:last], messages[last] | {"content": text}, *messages[last + 1 :]]

    def check(self, messages):
        """Raises BadInput for a special token's spelling anywhere in the messages, where it would be obeyed."""
        for text in texts_of(messages):
            for token in self.special:
                if token in text:
                    raise BadInput(f"the text {quoted(text)} holds {quoted(token)}, which the model would obey; take "
                                   "it out, or write it otherwise, with a space in it")

    def learn(self, examples, others=()) -> "ChatTokenizer":
        """Itself: its vocabulary spells every word, and needs no new tokens."""
        return self

    def files(self) -> dict:
        """What a model's folder keeps of it, {name: text}, beside what is copied from the folder that it was read from:
        nothing more."""
        return {}


def any_of(spellings) -> re.Pattern:
    """A text split by this has each of these as every other part."""
    # the longest first: one may begin with another
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")


def names_of(functions) -> list[str]:
    """The names in tools or calls: {"function": {"name": str, ...}, ...} or {"name": str, ...}, each."""
    inner = [f["function"] if isinstance(f.get("function"), dict) else f for f in functions]
    return [f["name"] for f in inner if isinstance(f.get("name"), str)]


def messages_of(asked) -> list[dict]:
    """What is asked as the messages of a conversation; raises BadInput for what is none, or leaves nobody to answer."""
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise BadInput(f'{quoted(asked)} is no conversation; write [{{"role": "user", "content": "..."}}]')
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadInput(f"the last message is of {quoted(messages[-1]['role'])}; end with one of the user or of a tool")
    return messages


def last_user(messages) -> tuple[int, str]:
    """Index and text of the last message of the user; raises BadInput where there is none that is text."""
    for i in reversed(range(len(messages))):
        if messages[i]["role"] == "user" and isinstance(messages[i].get("content"), str):
            return i, messages[i]["content"]
    raise BadInput(f"{quoted(messages)} has no text of a user, beside which a demonstration could stand; add one")


def texts_of(value):
    """All strings in lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_of([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts_of(part)
