"""Formats: the rows that people have, of whichever of the usual forms, become conversations.

    form, read, unused = read_conversations("chats.jsonl", problems := [])
    print(report("chats.jsonl", form, read, unused))

A file is JSONL (an object a line), JSON (an array of objects) or CSV (a header, then rows). All rows of a file are of
one form of FORMS, which is told by their fields; a new form is a line there. What cannot be used is refused with its
place, its value and the way out; nothing is guessed or cut. Left out: images, and demonstrations that call tools in
other ways than in text.
"""
import codecs
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from runs import BadInput, quoted

WRITE = 'write {"prompt": "...", "response": "..."}'

# ---------------------------------------------------------------------------------------------------------------------
# Files: rows with their places.


def read_rows(path: str, problems: list) -> list[tuple[str, dict]]:
    """(place, row) of each row of a file. Adds to `problems`, a line each.

    A place is "file:line" of JSONL, "file:[index]" of an array (from 0) and "file:row n" of CSV (the header is row 1,
    as a spreadsheet counts). A file is UTF-8 with or without a byte order mark. Its lines end with \\n or \\r\\n and
    with nothing else: a string may hold U+2028. Blank lines are skipped.
    """
    name = path if path and path.isprintable() else repr(path)
    try:
        with open(path, "rb") as file:
            lines = file.read().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except (OSError, ValueError) as e:
        # ValueError: a path that no file can have
        why = getattr(e, "strerror", None) or e
        problems.append(f"{name}: cannot be read ({why}); give a file that exists and may be read")
        return []
    before, extension = len(problems), os.path.splitext(path)[1].lower()
    if extension in (".json", ".csv"):
        text = "\n".join(decoded(line, f"{name}:{number}", problems) for number, line in enumerate(lines, 1))
        reader = rows_of_json if extension == ".json" else rows_of_csv
        rows = reader(text, name, problems) if text.strip() and len(problems) == before else []
    else:
        rows = rows_of_lines(lines, name, problems)
    if not rows and len(problems) == before:
        problems.append(f"{name}: empty; {WRITE}, {READS.get(extension, 'one a line')}")
    return rows


READS = {".json": "several in [ ] with commas between", ".csv": "or of CSV a header and a row"}


def decoded(line: bytes, place: str, problems: list) -> str:
    """The text of a line; an empty one, and a problem more, where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as e:
        problems.append(f"{place}: byte {e.start + 1} of the line, {line[e.start]:#04x}, is not UTF-8; save the file "
                        "as UTF-8")
        return ""


def rows_of_lines(lines: list[bytes], name: str, problems: list) -> list[tuple[str, dict]]:
    rows = []
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        text = decoded(line, place, problems)
        if not text.strip():
            continue
        try:
            rows.append((place, an_object(parsed(text))))
        except BadInput as e:
            problems.append(f"{place}: {e}")
        except (ValueError, RecursionError) as e:
            problems.append(f"{place}: {unreadable(text, e)}")
    return rows


def rows_of_json(text: str, name: str, problems: list) -> list[tuple[str, dict]]:
    """Of an array; of an object that holds one list, such as {"data": [...]}; or of an object that is a row itself."""
    try:
        value = parsed(text)
    except (ValueError, RecursionError) as e:
        number = getattr(e, "lineno", 1)
        line = text.split("\n")[number - 1]
        problems.append(f"{name}:{number}: {unreadable(line, e)}, several in [ ] with commas between; a file of one "
                        "object a line is named .jsonl")
        return []
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        is_row = any(form.fits(value) for form in FORMS)
        value = [value] if is_row else lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        problems.append(f"{name}: {quoted(value)} is not a list of objects; write [{{...}}, {{...}}]")
        return []
    rows = []
    for index, row in enumerate(value):
        try:
            rows.append((f"{name}:[{index}]", an_object(row)))
        except BadInput as e:
            problems.append(f"{name}:[{index}]: {e}")
    return rows


def rows_of_csv(text: str, name: str, problems: list) -> list[tuple[str, dict]]:
    """Spreadsheets also write semicolons or tabs between the fields, and people capitals in a header. An empty cell of
    a field that no form of the header needs is left out: CSV has no other way to say that."""
    rows, header, number, needed = [], None, 0, set()
    between = max(",;\t", key=re.sub(r'"[^"]*"', "", text.lstrip().split("\n", 1)[0]).count)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    try:
        for number, cells in enumerate(reader, 1):
            place = f"{name}:row {number}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if twice := [h for i, h in enumerate(header) if h in header[:i]]:
                    problems.append(f"{place}: the field {quoted(twice[0])} occurs twice; rename one of them")
                    return []
                needed = {key for form in FORMS if form.fits(dict.fromkeys(header)) for key in form.needs}
            elif len(cells) != len(header):
                problems.append(f"{place}: {len(cells)} fields beginning with {quoted(cells[0])}, but {len(header)} in "
                                'the header; put a value that holds commas, quotes or lines in "quotes"')
            else:
                rows.append((place, {k: v for k, v in zip(header, cells) if v.strip() or k in needed}))
    except csv.Error as e:
        lines = text.split("\n")
        line = lines[min(reader.line_num, len(lines)) - 1]
        problems.append(f"{name}:row {number + 1}: {quoted(line)} is not CSV that can be read ({e}); put a value that "
                        'holds commas, quotes or lines in "quotes", and a quote in it twice')
        # what follows is not known
        return []
    return rows


def no_field_twice(pairs: list[tuple]) -> dict:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            # json would keep the last and say nothing
            raise ValueError(f"a field occurs twice: {quoted(key)}")
        seen.add(key)
    return dict(pairs)


def parsed(text: str):
    return json.loads(text, object_pairs_hook=no_field_twice)


def an_object(value) -> dict:
    if not isinstance(value, dict):
        raise BadInput(f"{quoted(value)} is not an object; {WRITE}")
    return value


def unreadable(text: str, e: Exception) -> str:
    """What is wrong with JSON that is broken, holds a number too long, or is nested too deeply."""
    at = f", character {e.colno}" if isinstance(e, json.JSONDecodeError) else ""
    return f"{quoted(text)} is not JSON that can be read ({getattr(e, 'msg', e)}{at}); {WRITE}"


# ---------------------------------------------------------------------------------------------------------------------
# Conversations: the one shape that every form becomes.


@dataclass
class Conversation:
    """What is asked, what an expert said, and what else a row knows."""

    messages: list[dict]          # {"role", "content", ...} before the answer; the last is a user's or a tool's
    response: str                 # the demonstration
    tools: list | None = None     # JSON schemas, for the chat template
    answer: object = None         # what a grader compares: text; a list of returns is for the caller to check
    demo: str | None = None       # what the teacher sees in place of the response

    @property
    def turns(self) -> int:
        """Messages, the answer included and a system message not."""
        return 1 + sum(m["role"] != "system" for m in self.messages)


ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
         "tool": "tool"}

# what chat templates write: a text that holds it would be rendered twice. <s> is HTML too, but for the ends of a text
MARKERS = re.compile(r"<\|(?:im_start|im_end|start_header_id|eot_id|endoftext)\|>|\[/?INST\]|<<SYS>>|<start_of_turn>"
                     r"|\A\s*<s>|</s>\s*\Z")
ALPACA_HEADING = re.compile(r"^### Instruction:", re.MULTILINE)


def sound(value, name: str) -> str:
    """A string that is neither blank nor rendered. `name` says in a message where it stands."""
    if not isinstance(value, str):
        raise BadInput(f'"{name}" is {quoted(value)}; put a string there, in quotes')
    if not value.strip():
        raise BadInput(f'"{name}" is empty ({quoted(value)}); fill it in or delete the row')
    no_half_pair(value, value, name)
    no_marker(MARKERS, value, name)
    return value


def no_half_pair(characters: str, value, name: str):
    if re.search("[\ud800-\udfff]", characters):
        # JSON can spell these, UTF-8 cannot
        raise BadInput(f'"{name}" is {quoted(value)} with half a surrogate pair; write the character itself')


def no_marker(markers, value: str, name: str):
    if found := markers.search(value):
        raise BadInput(f'"{name}" holds {quoted(found[0].strip())}, so it is rendered already; give the plain messages')


def objects(value, name: str, wanted: str) -> list[dict]:
    """A list of objects, kept as it is."""
    if not (isinstance(value, list) and value and all(isinstance(v, dict) for v in value)):
        raise BadInput(f'"{name}" is {quoted(value)}; put {wanted} there')
    try:
        no_half_pair(json.dumps(value, ensure_ascii=False), value, name)
    except RecursionError:
        raise BadInput(f'"{name}" is {quoted(value)}, nested too deeply; put {wanted} there')
    return value


def joined_parts(parts: list, name: str) -> str:
    """The text of a content that is a list of parts: [{"type": "text", "text": "..."}]."""
    for i, part in enumerate(objects(parts, name, wanted="a list of parts")):
        kind = part.get("type", "text")
        if kind != "text":
            raise BadInput(f'"{name}[{i}]" is of type {quoted(kind)}, and text alone is read; leave it out, or put it '
                           "into words")
        if not isinstance(part.get("text"), str):
            raise BadInput(f'"{name}[{i}]" is {quoted(part)}; write {{"type": "text", "text": "..."}}')
    return "".join(part["text"] for part in parts)


def message_of(given: dict, name: str) -> dict:
    """{"role", "content"} of a message that has these, or "from" and "value"; what else it has is kept, but null."""
    role_key, content_key = ("role" if "role" in given else "from"), ("content" if "content" in given else "value")
    role, content = given.get(role_key), given.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        raise BadInput(f'"{name}.{role_key}" is {quoted(role)}; choose one of {", ".join(ROLES)}')
    more = {k: v for k, v in given.items() if k not in ("role", "from", "content", "value") and v is not None}
    if isinstance(content, list) and content:
        content = joined_parts(content, f"{name}.{content_key}")
    if calls := more.pop("tool_calls", None):
        more["tool_calls"] = list(map(call_of, objects(calls, f"{name}.tool_calls", wanted="a list of calls")))
    if not calls or content:
        sound(content, f"{name}.{content_key}")
    if role in ("system", "user", "human"):
        no_marker(ALPACA_HEADING, content or "", f"{name}.{content_key}")
    return {"role": ROLES[role], "content": content or "", **more}


def call_of(call: dict) -> dict:
    """A call whose arguments are an object: OpenAI's are the JSON of one, which a chat template would quote again."""
    if isinstance(call.get("function"), dict):
        return call | {"function": call_of(call["function"])}
    if isinstance(call.get("arguments"), str):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(arguments := parsed(call["arguments"]), dict):
                return call | {"arguments": arguments}
    return call


def messages_of(value, name: str, wanted="a list of messages") -> list[dict]:
    return [message_of(m, f"{name}[{i}]") for i, m in enumerate(objects(value, name, wanted))]


def asked_in(value, name: str) -> list[dict]:
    """The messages of a prompt: a list of them, or a string, which is a user's."""
    if isinstance(value, str):
        no_marker(ALPACA_HEADING, sound(value, name), name)
        return [{"role": "user", "content": value}]
    return messages_of(value, name, wanted="a string in quotes, or a list of messages,")


def demonstration(message: dict, name: str) -> str:
    """The text of an assistant's message. The student samples text: calls beside it would be lost."""
    if "tool_calls" in message:
        raise BadInput(f'"{name}" demonstrates tool_calls, {quoted(message["tool_calls"])}; write the call as text in '
                       '"content"')
    return message["content"]


def said_in(value, name: str) -> str:
    """The demonstration that a field holds: a string, or a list of one assistant message."""
    if not isinstance(value, list):
        return sound(value, name)
    messages = messages_of(value, name, wanted="a string in quotes, or a list of one assistant message,")
    if [m["role"] for m in messages] != ["assistant"]:
        raise BadInput(f'"{name}" is of the roles {", ".join(m["role"] for m in messages)}; put one assistant message '
                       "there, and those before it into the prompt")
    return demonstration(messages[0], f"{name}[0]")


def conversation(row: dict, messages: list[dict], response: str, demo=None, answer=None) -> Conversation:
    """Of the parts that a form has found, in the order that chat templates can render."""
    if row.get("system") not in (None, ""):
        messages = [{"role": "system", "content": sound(row["system"], "system")}, *messages]
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        at = roles.index("system", 1)
        raise BadInput(f'a system message, {quoted(messages[at]["content"])}, is message {at + 1}; put one there, and '
                       "as the first")
    if "user" not in roles or roles[-1] not in ("user", "tool"):
        raise BadInput(f'the roles before the answer are {", ".join(roles) or "none"}; put a user message there, and '
                       "one of a user or a tool as the last")
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = parsed(tools)
        except (ValueError, RecursionError):
            raise BadInput(f'"tools" is {quoted(tools)}; put a list of tools there, or the JSON of one')
    tools = objects(tools, "tools", wanted="a list of tools") if tools else None
    return Conversation(messages, response, tools, answer, demo)


# ---------------------------------------------------------------------------------------------------------------------
# Forms: by which fields a row is recognised, and what becomes of them.


def of_list(key: str) -> Callable:
    """Of a list of messages the last assistant one is the demonstration, if nothing else is shown to the teacher."""
    def read(row):
        messages = messages_of(row[key], key)
        if "privileged_context" in row and messages[-1]["role"] != "assistant":
            return of_context(row, key, ("answer", "privileged_context"))
        spoken = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not spoken:
            raise BadInput(f'"{key}" has no assistant message (roles: {", ".join(m["role"] for m in messages)}); add '
                           "the demonstration as the last one")
        last = spoken[-1]
        if behind := messages[last + 1:]:
            raise BadInput(f'"{key}[{last + 1}]", {quoted(behind[0]["content"])}, stands after the last assistant '
                           "message; delete it, or add an answer")
        shown = sound(row["privileged_context"], "privileged_context") if "privileged_context" in row else None
        return conversation(row, messages[:last], demonstration(messages[last], f"{key}[{last}]"), shown,
                            row.get("answer"))
    return read


def of_pair(asked: str, answered: str) -> Callable:
    """What is asked in one field and demonstrated in another; each a string or messages."""
    def read(row):
        answer = None if answered == "answer" else row.get("answer")
        return conversation(row, asked_in(row[asked], asked), said_in(row[answered], answered), answer=answer)
    return read


def of_alpaca(row: dict) -> Conversation:
    asked = sound(row["instruction"], "instruction")
    if row.get("input") not in (None, ""):
        asked += "\n\n" + sound(row["input"], "input")
    no_marker(ALPACA_HEADING, asked, "instruction")
    return conversation(row, [{"role": "user", "content": asked}], sound(row["output"], "output"),
                        answer=row.get("answer"))


def of_context(row, asked="prompt", responses=("completion", "response", "answer", "privileged_context")):
    """The teacher sees the context. SFT needs a response: a completion, else the answer, else the context."""
    shown = sound(row["privileged_context"], "privileged_context")
    key = next(k for k in responses if k in row)
    return conversation(row, asked_in(row[asked], asked), said_in(row[key], key), shown, row.get("answer"))


def of_golden(row: dict) -> Conversation:
    """A golden response may be a list: of the parts of one text, a line each, as in the official code."""
    golden = row["golden_response"]
    if isinstance(golden, list):
        golden = "\n".join(sound(g, f"golden_response[{i}]") for i, g in enumerate(golden))
    return conversation(row, asked_in(row["prompt"], "prompt"), sound(golden, "golden_response"),
                        answer=row.get("answer"))


@dataclass(frozen=True)
class Form:
    """A row that has all the fields that it `needs` is of this form; `uses` are those that it may have besides."""

    name: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    read: Callable                # the conversation of a row

    def fits(self, row: dict) -> bool:
        return row.keys() >= set(self.needs)


OF_ALL = ("task", "split", "grader", "answer", "system", "tools")      # what a row of any form may have

# the first that fits: what a few rows have stands before what many have
FORMS = [
    Form("chat", ("messages",), ("privileged_context",), of_list("messages")),
    Form("chat (ShareGPT)", ("conversations",), ("privileged_context",), of_list("conversations")),
    Form("prompt with privileged context (TRL)", ("prompt", "privileged_context"), ("completion", "response"),
         of_context),
    Form("prompt with golden response (SDFT)", ("prompt", "golden_response"), (), of_golden),
    Form("instruction/output (Alpaca)", ("instruction", "output"), ("input",), of_alpaca),
    Form("question/answer", ("question", "answer"), (), of_pair("question", "answer")),
    Form("prompt/completion", ("prompt", "completion"), (), of_pair("prompt", "completion")),
    Form("prompt/response", ("prompt", "response"), (), of_pair("prompt", "response")),
]


def close_to(key: str, row: dict) -> str | None:
    """The field of a row that may be a misspelled `key`: Respones for response."""
    names = {name.strip().lower(): name for name in row}
    found = get_close_matches(key, names, n=1, cutoff=0.75)
    return names[found[0]] if found else None


def recognise(row: dict) -> Form:
    """The form of a row. Raises BadInput, without the place, that names the field which the likeliest form misses."""
    for form in FORMS:
        if form.fits(row):
            return form

    def likeness(form):
        return sum(1 if key in row else 0.9 * bool(close_to(key, row)) for key in form.needs) / len(form.needs)

    # of equals the last: the commonest
    likeliest = max(reversed(FORMS), key=likeness)
    missing = [key for key in likeliest.needs if key not in row]
    names = ", ".join(map(quoted, list(row)[:5])) + ", ..." * (len(row) > 5) or "none"
    for key in missing:
        if found := close_to(key, row):
            raise BadInput(f'no "{key}" among the fields ({names}); did you mean it by {quoted(found)}? rename that')
    raise BadInput(f'no "{missing[0]}" among the fields ({names}); {WRITE}, or another form of formats.py')


def conversation_of(row: dict, form: Form) -> Conversation:
    """The conversation of a row. Raises BadInput, without the place, for what is empty, of a wrong type or order, or
    rendered already.

    >>> row = {"instruction": "Add.", "input": "2, 3", "output": "5"}
    >>> conversation_of(row, recognise(row)).messages
    [{'role': 'user', 'content': 'Add.\\n\\n2, 3'}]
    """
    for key in ("task", "split", "grader", "answer"):
        # an answer that is a list is for the grader to judge
        if key in row and not (key == "answer" and isinstance(row[key], list)):
            sound(row[key], key)
    return form.read(row)


def read_conversations(path: str, problems: list) -> tuple[Form | None, list[tuple], list[str]]:
    """(form, [(place, row, conversation)], fields not used) of a file whose rows are all of one form. Adds to
    `problems`; where there are any, what is returned is not the whole file."""
    read, seen, unused = [], {}, {}
    for place, row in read_rows(path, problems):
        try:
            form = recognise(row)
            if form.name not in seen:
                seen[form.name] = form, place
                if len(seen) > 1:
                    first, there = next(iter(seen.values()))
                    raise BadInput(f"the form is {form.name}, but {first.name} at {there}; put each form into a file "
                                   "of its own")
            read.append((place, row, conversation_of(row, form)))
            unused |= dict.fromkeys(key for key in row if key not in form.needs + form.uses + OF_ALL)
        except BadInput as e:
            problems.append(f"{place}: {e}")
    form = next(iter(seen.values()))[0] if seen else None
    return form, read, list(unused)


def report(path: str, form: Form, read: list, unused: list[str]) -> str:
    """A line on a file that has been read; a field not used that looks like one of the form's is asked about.

    >>> read = [("a.csv:row 2", {}, Conversation([{"role": "user", "content": "2 + 2"}], "four"))]
    >>> report("a.csv", FORMS[5], read, ["id", "grade"])
    "a.csv: 1 row, question/answer; fields not used: 'id', 'grade' (did you mean grader?)"
    """
    known = dict.fromkeys(form.needs + form.uses + OF_ALL)
    meant = {key: close_to(key.strip().lower(), known) for key in unused}
    names = [quoted(key) + f" (did you mean {meant[key]}?)" * bool(meant[key]) for key in unused]
    turns = max(c.turns for _, _, c in read)
    parts = [f"{len(read)} row" + "s" * (len(read) != 1), form.name]
    parts += [f"{turns} turns at most"] * (turns > 2) + ["tools"] * any(c.tools for _, _, c in read)
    name = path if path and path.isprintable() else repr(path)
    names = names[:10] + ["..."] * (len(names) > 10)
    return f"{name}: {', '.join(parts)}" + f"; fields not used: {', '.join(names)}" * bool(names)
