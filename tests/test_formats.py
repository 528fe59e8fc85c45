"""Formats: a file of each form that people have, sound and damaged; places, remedies, and what is not used."""
import doctest
import json
import os

import pytest

import formats
from formats import FORMS, READS, call_of, conversation_of, read_conversations, read_rows, recognise, report
from runs import BadInput

TOOLS = [{"type": "function", "function": {"name": "get_price", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "get_price", "arguments": '{"id": 3}'}}
# arguments as chat templates want them
CALLED = {"type": "function", "function": {"name": "get_price", "arguments": {"id": 3}}}


def user(content):
    return {"role": "user", "content": content}


def said(content):
    return {"role": "assistant", "content": content}


def write(folder, content, name="rows.jsonl"):
    """A file of bytes, of text, or of rows in the way that its name says."""
    path = folder / name
    if isinstance(content, list):
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in content]
        content = f"[{', '.join(lines)}]" if name.endswith(".json") else "\n".join(lines) + "\n"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path):
    """(name of the form, conversations, fields not used) of a sound file."""
    problems = []
    form, rows, unused = read_conversations(path, problems)
    assert problems == []
    return form.name, [conversation for _, _, conversation in rows], unused


def refusals(path):
    """What is wrong with a file: each is one line, a problem and then a remedy."""
    problems = []
    read_conversations(path, problems)
    for message in problems:
        assert len(message.splitlines()) == 1 and message.isprintable(), message
        assert "; " in message and all(part.strip() for part in message.split("; ")), message
    return problems


def refusal(path):
    problems = refusals(path)
    assert len(problems) == 1, problems
    return problems[0]


def test_examples_in_docstrings():
    assert doctest.testmod(formats).failed == 0


# ---------------------------------------------------------------------------------------------------------------------
# Each form, sound: a row, the name of its form, and the conversation's parts that are not empty.

CODE = "```\n\tdef f():\r\n\treturn {} + '\\n$x' # \\boxed{1} <s>x</s>!\n```"
SYSTEM = {"role": "system", "content": "be brief"}
SOUND = {
    "chat": ({"messages": [user("2 + 2"), said("four")]}, "chat", {"messages": [user("2 + 2")], "response": "four"}),
    "chat with a system message and turns": (
        {"messages": [SYSTEM, user("a"), said("b"), user("c"), user("d"), said("e")]}, "chat",
        {"messages": [SYSTEM, user("a"), said("b"), user("c"), user("d")], "response": "e"}),
    "chat in parts": (
        {"messages": [user([{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2"}]), said("four")]}, "chat",
        {"messages": [user("2 + 2")], "response": "four"}),
    "chat that ends with a user, behind a context": (
        {"messages": [user("a"), said("b"), user("c")], "privileged_context": "long", "answer": "d"}, "chat",
        {"messages": [user("a"), said("b"), user("c")], "response": "d", "answer": "d", "demo": "long"}),
    "chat with nulls": (
        {"messages": [user("a") | {"tool_calls": None}, said("b") | {"tool_calls": []}], "tools": None, "system": None},
        "chat", {"messages": [user("a")], "response": "b"}),
    "chat with the keys of ShareGPT": (
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "chat",
        {"messages": [user("a")], "response": "b"}),
    "tools": (
        {"messages": [user("price of 3?"), {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
                      {"role": "tool", "tool_call_id": "x", "content": "42"}, said("It is 42.")],
         "tools": TOOLS}, "chat",
        {"messages": [user("price of 3?"), {"role": "assistant", "content": "", "tool_calls": [CALLED, CALLED]},
                      {"role": "tool", "content": "42", "tool_call_id": "x"}],
         "response": "It is 42.", "tools": TOOLS}),
    "tools as JSON": (
        {"prompt": "price of 3?", "response": "call", "tools": json.dumps(TOOLS)}, "prompt/response",
        {"messages": [user("price of 3?")], "response": "call", "tools": TOOLS}),
    "prompt that ends with a tool": (
        {"prompt": [user("a"), {"role": "tool", "content": "42"}], "completion": "b"}, "prompt/completion",
        {"messages": [user("a"), {"role": "tool", "content": "42"}], "response": "b"}),
    "prompt/completion": ({"prompt": "a", "completion": "b"}, "prompt/completion",
                          {"messages": [user("a")], "response": "b"}),
    "prompt/completion in messages": (
        {"prompt": [SYSTEM, user("a")], "completion": [said("b")]}, "prompt/completion",
        {"messages": [SYSTEM, user("a")], "response": "b"}),
    "prompt/response": (
        {"prompt": "a", "response": "it is b", "answer": "b", "system": "be brief", "task": "t", "split": "test",
         "grader": "contains"}, "prompt/response",
        {"messages": [SYSTEM, user("a")], "response": "it is b", "answer": "b"}),
    "prompt/response in messages": ({"prompt": [user("a")], "response": [said("b")]}, "prompt/response",
                                    {"messages": [user("a")], "response": "b"}),
    "returns": ({"prompt": "a", "response": "buy", "answer": [{"buy": 2}], "grader": "return"}, "prompt/response",
                {"messages": [user("a")], "response": "buy", "answer": [{"buy": 2}]}),
    "Alpaca": ({"instruction": "add", "input": "2, 3", "output": "5", "system": "be brief"},
               "instruction/output (Alpaca)", {"messages": [SYSTEM, user("add\n\n2, 3")], "response": "5"}),
    "Alpaca without input": ({"instruction": "add", "input": "", "output": "5", "system": ""},
                             "instruction/output (Alpaca)", {"messages": [user("add")], "response": "5"}),
    "ShareGPT": (
        {"conversations": [{"from": "system", "value": "be brief"}, {"from": "human", "value": "a"},
                           {"from": "gpt", "value": "b"}, {"from": "user", "value": "c"},
                           {"from": "tool", "value": "42"}, {"from": "assistant", "value": "d"}]}, "chat (ShareGPT)",
        {"messages": [SYSTEM, user("a"), said("b"), user("c"), {"role": "tool", "content": "42"}], "response": "d"}),
    "ShareGPT of mixed keys": (
        {"conversations": [{"from": "human", "content": "a"}, {"role": "assistant", "value": "b"}]}, "chat (ShareGPT)",
        {"messages": [user("a")], "response": "b"}),
    "question/answer": ({"question": "a", "answer": "steps\n#### 12"}, "question/answer",
                        {"messages": [user("a")], "response": "steps\n#### 12"}),
    "TRL": ({"prompt": [user("a")], "privileged_context": "long"}, "prompt with privileged context (TRL)",
            {"messages": [user("a")], "response": "long", "demo": "long"}),
    "TRL with an answer": ({"prompt": "a", "privileged_context": "long", "answer": "b"},
                           "prompt with privileged context (TRL)",
                           {"messages": [user("a")], "response": "b", "answer": "b", "demo": "long"}),
    "TRL with a completion": ({"prompt": "a", "privileged_context": "long", "answer": "b", "completion": [said("c")]},
                              "prompt with privileged context (TRL)",
                              {"messages": [user("a")], "response": "c", "answer": "b", "demo": "long"}),
    "SDFT": ({"prompt": "a", "golden_response": "b"}, "prompt with golden response (SDFT)",
             {"messages": [user("a")], "response": "b"}),
    "SDFT in parts": ({"prompt": "a", "golden_response": ["b", "c"]}, "prompt with golden response (SDFT)",
                          {"messages": [user("a")], "response": "b\nc"}),
    "code": ({"prompt": "f?", "response": CODE}, "prompt/response", {"messages": [user("f?")], "response": CODE}),
    "other scripts": ({"prompt": "số mấy？ ٣ 👩‍👩‍👧", "response": "三\u2028四"}, "prompt/response",
                      {"messages": [user("số mấy？ ٣ 👩‍👩‍👧")], "response": "三\u2028四"}),
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("row, form, parts", SOUND.values(), ids=SOUND)
def test_row_of_each_form(tmp_path, row, form, parts, name):
    kind, conversations, unused = read(write(tmp_path, [row, row], name))
    assert (kind, len(conversations), unused) == (form, 2, [])
    assert {k: v for k, v in vars(conversations[0]).items() if v is not None} == parts
    assert conversation_of(row, recognise(row)) == conversations[1]


@pytest.mark.parametrize("arguments", [{"id": 3}, "no JSON", "3", None])
def test_other_arguments_of_a_call_stay(arguments):
    call = {"type": "function", "function": {"name": "get_price", "arguments": arguments}}
    assert call_of(call) == call and call_of({"name": "f", "arguments": "{}"}) == {"name": "f", "arguments": {}}


def test_every_form_is_tried():
    assert {form for _, form, _ in SOUND.values()} == {form.name for form in FORMS}


@pytest.mark.parametrize("header", ["prompt,response", "question,answer", "instruction,output"])
def test_csv_of_each_header(tmp_path, header):
    path = write(tmp_path, f'\ufeff{header}\r\na,b\r\n\r\n"a, ""c""\nd\u2028",e\r\n', "rows.csv")
    _, conversations, unused = read(path)
    assert [(c.messages, c.response) for c in conversations] == [([user("a")], "b"), ([user('a, "c"\nd\u2028')], "e")]
    assert unused == [] and [place for place, _ in read_rows(path, [])] == [f"{path}:row 2", f"{path}:row 4"]


@pytest.mark.parametrize("between", [";", "\t"])
def test_csv_as_spreadsheets_write_it(tmp_path, between):
    path = write(tmp_path, f'Prompt{between} Response \n"a{between} a"{between}b, c\n', "rows.csv")
    assert read_rows(path, []) == [(f"{path}:row 2", {"prompt": f"a{between} a", "response": "b, c"})]


def test_csv_whose_header_holds_other_signs_in_quotes(tmp_path):
    path = write(tmp_path, 'prompt,response,"why; when; who"\na,b,c\n', "rows.csv")
    assert read_rows(path, []) == [(f"{path}:row 2", {"prompt": "a", "response": "b", "why; when; who": "c"})]


def test_empty_cell_of_csv_is_no_field(tmp_path):
    path = write(tmp_path, "instruction,input,output,task,system\nadd,,5,,\nadd,1,2,sums,be brief\n", "rows.csv")
    assert [row for _, row in read_rows(path, [])] == [
        {"instruction": "add", "output": "5"},
        {"instruction": "add", "input": "1", "output": "2", "task": "sums", "system": "be brief"}]
    assert read(path)[1][0].messages == [user("add")]


# ---------------------------------------------------------------------------------------------------------------------
# Each form, damaged. The row stands behind two sound ones.

def pair(prompt="a", response="b", **more):
    return {"prompt": prompt, "response": response} | more


HALF = "half \ud83d"
CHAT = {"messages": [user("a"), said("b")]}
GPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
WRONG = {                         # a sound row, the damaged one, what is said, and a word of the remedy
    "no list": (CHAT, {"messages": "hello"}, "\"messages\" is 'hello'", "put a list of messages"),
    "no messages": (CHAT, {"messages": []}, '"messages" is []', "put a list of messages"),
    "a message no object": (CHAT, {"messages": ["a"]}, "\"messages\" is ['a']", "put a list of messages"),
    "unknown role": (CHAT, {"messages": [{"role": "bot", "content": "a"}]}, "\"messages[0].role\" is 'bot'",
                     "choose one of system, user, human, assistant, gpt, tool"),
    "no role": (CHAT, {"messages": [{"content": "a"}]}, '"messages[0].from" is None', "choose one of"),
    "role a list": (CHAT, {"messages": [{"role": [], "content": "a"}]}, '"messages[0].role" is []', "choose one of"),
    "null content": (CHAT, {"messages": [user("a"), said(None)]}, '"messages[1].content" is None', "put a string"),
    "no parts": (CHAT, {"messages": [user([]), said("b")]}, '"messages[0].content" is []', "put a string"),
    "empty content": (CHAT, {"messages": [user("a"), said(" ")]}, "\"messages[1].content\" is empty (' ')",
                      "fill it in"),
    "image": (CHAT, {"messages": [user([{"type": "text", "text": "what?"}, {"type": "image_url"}]), said("b")]},
              "\"messages[0].content[1]\" is of type 'image_url'", "leave it out"),
    "part without text": (CHAT, {"messages": [user([{"type": "text"}]), said("b")]},
                          "\"messages[0].content[0]\" is {'type': 'text'}", 'write {"type": "text"'),
    "part a string": (CHAT, {"messages": [user(["x"]), said("b")]}, "\"messages[0].content\" is ['x']",
                      "list of parts"),
    "no assistant": (CHAT, {"messages": [SYSTEM, user("a")]}, "no assistant message (roles: system, user)",
                     "add the demonstration"),
    "user behind the answer": (CHAT, {"messages": [user("a"), said("b"), user("c")]},
                               "\"messages[2]\", 'c', stands after the last assistant", "delete it"),
    "assistant alone": (CHAT, {"messages": [said("b")]}, "before the answer are none", "put a user message"),
    "two answers": (CHAT, {"messages": [user("a"), said("b"), said("c")]}, "before the answer are user, assistant",
                    "as the last"),
    "system not first": (CHAT, {"messages": [user("a"), SYSTEM, said("b")]}, "'be brief', is message 2",
                         "as the first"),
    "two system messages": (CHAT, {"messages": [SYSTEM, user("a"), said("b")], "system": "x"},
                            "'be brief', is message 2",
                            "put one there"),
    "calls alone": (CHAT, {"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
                    '"messages[1]" demonstrates tool_calls', 'write the call as text in "content"'),
    "calls beside text": (CHAT, {"messages": [user("a"), said("b") | {"tool_calls": [CALL]}]},
                          '"messages[1]" demonstrates tool_calls', "as text"),
    "calls as text": (CHAT, {"messages": [user("a"), said("b") | {"tool_calls": "f()"}]},
                      "\"messages[1].tool_calls\" is 'f()'", "put a list of calls"),
    "half a pair in a call": (CHAT, {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"name": HALF}]}]},
                              "half a surrogate pair", "write the character itself"),
    "empty tool result": (CHAT, {"messages": [user("a"), {"role": "tool", "tool_results": [42]}, said("b")]},
                          '"messages[1].value" is None', "put a string"),
    "tools no list": (CHAT, CHAT | {"tools": {"name": "f"}}, "\"tools\" is {'name': 'f'}", "put a list of tools"),
    "tools no JSON": (CHAT, CHAT | {"tools": "get_price"}, "\"tools\" is 'get_price'", "or the JSON of one"),
    "ShareGPT role": (GPT, {"conversations": [{"from": "bing", "value": "a"}]}, "\"conversations[0].from\" is 'bing'",
                      "choose one of"),
    "ShareGPT null": (GPT, {"conversations": [{"from": "human", "value": None}]}, '"conversations[0].value" is None',
                      "put a string"),
    "ShareGPT without an answer": (GPT, {"conversations": [{"from": "human", "value": "a"}]}, "(roles: user)", "add"),
    "prompt a number": (pair(), pair(17), '"prompt" is 17', "put a string"),
    "empty prompt": (pair(), pair(" \n"), "\"prompt\" is empty (' \\n')", "fill it in or delete the row"),
    "null response": (pair(), pair(response=None), '"response" is None', "put a string"),
    "half a pair": (pair(), '{"prompt": "a\\ud83d", "response": "b"}', "\"prompt\" is 'a\\ud83d' with half",
                    "write the"),
    "response of two messages": (pair(), pair(response=[user("x"), said("b")]),
                                 "\"response\" is of the roles user, assis",
                                 "put one assistant message"),
    "prompt ends with the assistant": (pair(), pair([user("a"), said("b")]), "are user, assistant", "as the last"),
    "system a number": (pair(), pair(system=3), '"system" is 3', "put a string"),
    "answer a number": (pair(), pair(answer=4), '"answer" is 4', "put a string"),
    "answer null": (pair(), pair(answer=None), '"answer" is None', "put a string"),
    "blank task": (pair(), pair(task="\t"), '"task" is empty', "fill it in"),
    "empty completion": ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}, '"completion" is empty',
                         "fill it in"),
    "empty output": ({"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}, '"output" is empty',
                     "fill"),
    "input a list": ({"instruction": "a", "output": "b"}, {"instruction": "a", "input": [1], "output": "b"},
                     '"input" is [1]', "put a string"),
    "empty question": ({"question": "a", "answer": "b"}, {"question": "", "answer": "b"}, '"question" is empty',
                       "fill"),
    "answer of a question a number": ({"question": "a", "answer": "b"}, {"question": "a", "answer": 4}, '"answer" is 4',
                                      "put a string"),
    "context in messages": ({"prompt": "a", "privileged_context": "b"}, {"prompt": "a",
                            "privileged_context": [said("b")]},
                            "\"privileged_context\" is [{'", "put a string"),
    "no golden response": ({"prompt": "a", "golden_response": "b"}, {"prompt": "a", "golden_response": []},
                           '"golden_response" is empty', "fill it in"),
    "golden response a number": ({"prompt": "a", "golden_response": "b"}, {"prompt": "a", "golden_response": ["b", 3]},
                                 '"golden_response[1]" is 3', "put a string"),
}


@pytest.mark.parametrize("sound, wrong, told, remedy", WRONG.values(), ids=WRONG)
def test_damaged_row_is_named(tmp_path, sound, wrong, told, remedy):
    wrong = wrong if isinstance(wrong, str) else json.dumps(wrong)       # half a pair is spelled \ud83d
    for name, place in (("rows.jsonl", ":3"), ("rows.json", ":[2]")):
        path = write(tmp_path, [sound, sound, wrong], name)
        message = refusal(path)
        assert message.startswith(f"{path}{place}: ") and told in message, message
        assert remedy in message.split("; ", 1)[1] and len(message) < len(path) + 300, message


def test_message_that_is_nested_too_deeply():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadInput, match='"prompt" is .*nested too deeply; put a string'):
        conversation_of({"prompt": [user("a") | {"x": deep}], "response": "b"}, FORMS[-1])


@pytest.mark.parametrize("marker", ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "[INST]",
                                    "[/INST]", "<<SYS>>", "<|endoftext|>", "<start_of_turn>"])
def test_rendered_text_is_refused(tmp_path, marker):
    for row, where in ((pair(f"x{marker}y"), "prompt"), (pair(response=f"x{marker}"), "response"),
                       ({"messages": [user(f"{marker} a"), said("b")]}, "messages[0].content"),
                       ({"conversations": [{"from": "human", "value": marker}]}, "conversations[0].value"),
                       ({"prompt": "a", "privileged_context": marker}, "privileged_context"),
                       ({"instruction": "a", "input": marker, "output": "b"}, "input")):
        path = write(tmp_path, [row])
        assert refusal(path) == (f'{path}:1: "{where}" holds {marker!r}, so it is rendered already; give the plain '
                                 "messages")


def test_marks_of_begin_and_end_are_refused_at_the_ends(tmp_path):
    assert "holds '<s>', so it" in refusal(write(tmp_path, [pair("<s> a")]))
    assert "holds '</s>', so it" in refusal(write(tmp_path, [pair(response="b</s>\n")]))
    assert read(write(tmp_path, [pair(response="in HTML <s>b</s> is struck out")]))[2] == []


def test_prompt_rendered_for_alpaca_is_refused(tmp_path):
    rendered = "Below is an instruction.\n\n### Instruction:\nadd\n\n### Response:\n"
    for row in (pair(rendered), {"messages": [user(rendered), said("b")]}, {"instruction": rendered, "output": "b"}):
        assert "holds '### Instruction:', so it is rendered already; give" in refusal(write(tmp_path, [row]))


# ---------------------------------------------------------------------------------------------------------------------
# Recognising.


@pytest.mark.parametrize("row, missing, found", [
    ({"prompt": "a", "respones": "b"}, "response", "respones"), ({"Prompt": "a", "Response": "b"}, "prompt", "Prompt"),
    ({"prompt": "a", "completon": "b"}, "completion", "completon"), ({"mesages": []}, "messages", "mesages"),
    ({"conversation": []}, "conversations", "conversation"),
    ({"prompt": "a", "response ": "b"}, "response", "response "),
    ({"instruction": "a", "outputs": "b"}, "output", "outputs"),
    ({"questions": "a", "answer": "b"}, "question", "questions"),
    ({"prompt": "a", "privilegedcontext": "b"}, "privileged_context", "privilegedcontext"),
    ({"prompt": "a", "golden_responses": "b"}, "golden_response", "golden_responses")])
def test_misspelled_field_is_asked_about(tmp_path, row, missing, found):
    path = write(tmp_path, [row | {"id": 1}])
    message = refusal(path)
    assert message.startswith(f'{path}:1: no "{missing}" among the fields (') and f"{found!r}" in message
    assert message.endswith(f"; did you mean it by {found!r}? rename that")


@pytest.mark.parametrize("row, told", [({}, 'no "prompt" among the fields (none); write {"prompt"'),
                                       ({"prompt": "a"}, "no \"response\" among the fields ('prompt'); write {"),
                                       ({"output": "a"}, "no \"instruction\" among the fields ('output'); write {"),
                                       (dict.fromkeys("uvwxyz"), "('u', 'v', 'w', 'x', 'y', ...); write {")])
def test_row_of_no_form_is_refused(tmp_path, row, told):
    path = write(tmp_path, [row])
    assert refusal(path).startswith(f"{path}:1: ") and told in refusal(path)


def test_mixed_forms_name_both_lines(tmp_path):
    path = write(tmp_path, [pair(), pair(), CHAT, CHAT, {"prompt": "a", "completion": "b"}])
    assert refusals(path) == [f"{path}:{at}: the form is {name}, but prompt/response at {path}:1; put each form into a "
                              "file of its own" for at, name in ((3, "chat"), (5, "prompt/completion"))]


def test_what_is_not_used_is_told_once(tmp_path):
    path = write(tmp_path, [pair(id=1), pair(source="x", id=2, grade="exact")])
    problems = []
    form, rows, unused = read_conversations(path, problems)
    assert unused == ["id", "source", "grade"] and problems == []
    assert report(path, form, rows, unused) == (f"{path}: 2 rows, prompt/response; fields not used: 'id', 'source', "
                                                "'grade' (did you mean grader?)")


def test_report_counts_turns_and_tools(tmp_path):
    path = write(tmp_path, [CHAT, {"messages": [SYSTEM, user("a"), said("b"), user("c"), said("d")], "tools": TOOLS}])
    assert report(path, *read_conversations(path, [])) == f"{path}: 2 rows, chat, 4 turns at most, tools"
    path = write(tmp_path, [GPT], "one.json")
    assert report(path, *read_conversations(path, [])) == f"{path}: 1 row, chat (ShareGPT)"


# ---------------------------------------------------------------------------------------------------------------------
# Files.


@pytest.mark.parametrize("content", [
    b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d\xe2\x80\xa8e"}\n\n',
    b'\r\n{"prompt": "a", "response": "b"}\r\n  \r\n{"prompt": "c", "response": "d\\u2028e"}'])
def test_byte_order_mark_and_line_ends(tmp_path, content):
    assert [row for _, row in read_rows(write(tmp_path, content), [])] == [pair(), pair("c", "d\u2028e")]


def test_places_count_from_where_an_editor_does(tmp_path):
    rows = [json.dumps(pair()), "", json.dumps(pair("c"))]
    for name, content, places in (("a.jsonl", rows, [":1", ":3"]), ("a.txt", rows, [":1", ":3"]),
                                  ("a.json", [rows[0], rows[2]], [":[0]", ":[1]"]),
                                  ("a.JSON", "\ufeff" + json.dumps({"data": [pair(), pair("c")], "version": 1}),
                                   [":[0]", ":[1]"]),
                                  ("a.csv", "prompt,response\na,b\n\nc,b\n", [":row 2", ":row 4"])):
        path = write(tmp_path, content, name)
        assert read_rows(path, []) == [(path + places[0], pair()), (path + places[1], pair("c"))]


def test_object_of_json_that_is_a_row_is_not_taken_for_a_list_of_rows(tmp_path):
    path = write(tmp_path, json.dumps(CHAT, indent=1), "one.json")
    assert read_rows(path, []) == [(f"{path}:[0]", CHAT)]


LINE = json.dumps(pair())
BROKEN = {                        # name, content, where, what is said, a word of the remedy
    "JSONL that is no JSON": ("a.jsonl", f"{LINE}\n\nprompt", ":3",
                              "'prompt' is not JSON that can be read (Expecting value,"
                              " character 1)", "write {"),
    "JSONL without a comma": ("a.jsonl", '{"prompt": "a" "response": "b"}', ":1", "delimiter, character 16)",
                              "write {"),
    "JSONL of a list": ("a.jsonl", "[1]", ":1", "[1] is not an object", "write {"),
    "JSONL with a field twice": ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ":1", "a field occurs twice: 'prompt'",
                                 "write {"),
    "JSONL nested too deeply": ("a.jsonl", "[" * 100_000, ":1", "recursion", "write {"),
    "JSONL with a long number": ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", ":1", "4300 digits", "write {"),
    "JSONL not UTF-8": ("a.jsonl", b'{"prompt": "caf\xe9"}', ":1", "byte 16 of the line, 0xe9, is not UTF-8",
                        "save the"),
    "JSON not UTF-8": ("a.json", b'[\n{"prompt": "caf\xe9"}]', ":2", "byte 16 of the line, 0xe9, is not UTF-8",
                       "save the"),
    "JSON cut off": ("a.json", f"[{LINE},\n {LINE}", ":2", "Expecting ',' delimiter, character 34)", "several in [ ]"),
    "JSON that is JSONL": ("a.json", f"{LINE}\n{LINE}\n", ":2", "Extra data, character 1", "is named .jsonl"),
    "JSON with a field twice": ("a.json", '[{"prompt": "a", "prompt": "b"}]', ":1", "twice: 'prompt'", "write {"),
    "JSON of a text": ("a.json", '"a"', "", "'a' is not a list of objects", "write [{...}, {...}]"),
    "JSON of two lists": ("a.json", '{"train": [], "test": []}', "", "is not a list of objects", "write [{"),
    "JSON with no object": ("a.json", f"[{LINE}, 3]", ":[1]", "3 is not an object", "write {"),
    "CSV not UTF-8": ("a.csv", b"prompt,response\ncaf\xe9,b", ":2", "byte 4 of the line, 0xe9",
                      "save the file as UTF-8"),
    "CSV with too many fields": ("a.csv", "prompt,response\na,b\nc,d,e\n", ":row 3",
                                 "3 fields beginning with 'c', but 2 in the header", 'in "quotes"'),
    "CSV with too few fields": ("a.csv", "prompt,response\nc\n", ":row 2", "1 fields beginning with 'c', but 2", "put"),
    "CSV with a field twice": ("a.csv", "prompt,prompt\na,b\n", ":row 1", "the field 'prompt' occurs twice", "rename"),
    "CSV with a quote left open": ("a.csv", 'prompt,response\na,"b\n', ":row 2",
                                   "is not CSV that can be read (unexpected",
                                   "twice"),
    "CSV with a quote inside": ("a.csv", 'prompt,response\na,"b"c\n', ":row 2", "'a,\"b\"c' is not CSV", "twice"),
    "CSV with an empty response": ("a.csv", "prompt,response\na,\n", ":row 2", "\"response\" is empty ('')",
                                   "fill it in"),
    "CSV with an empty answer": ("a.csv", "question,answer\na,\n", ":row 2", "\"answer\" is empty ('')", "fill it in"),
    "CSV of another header": ("a.csv", "prompt|response\na|b\n", ":row 2", "fields ('prompt|response')", ""),
    "empty JSONL": ("a.jsonl", "\n\r\n  \n", "", "empty", "one a line"),
    "empty JSON": ("a.json", "\ufeff", "", "empty", READS[".json"]),
    "JSON of no rows": ("a.json", "[]", "", "empty", READS[".json"]),
    "CSV of a header": ("a.csv", "prompt,response\n", "", "empty", READS[".csv"]),
}


@pytest.mark.parametrize("name, content, where, told, remedy", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_named(tmp_path, name, content, where, told, remedy):
    path = write(tmp_path, content, name)
    message = refusal(path)
    assert message.startswith(f"{path}{where}: ") and told in message, message
    assert remedy in message.split("; ", 1)[1] and len(message) < len(path) + 300, message


def test_all_that_is_wrong_with_a_file_is_told(tmp_path):
    path = write(tmp_path, b'[]\n{"prompt": ""}\n\xff\n{"prompt": "a", "response": ""}')
    assert [message.split(": ")[0] for message in refusals(path)] == [f"{path}:{i}" for i in (1, 3, 2, 4)]


def test_file_that_cannot_be_read_is_named(tmp_path):
    os.mkdir(tmp_path / "new\nline")
    for path, told in ((f"{tmp_path}/no.jsonl", f"{tmp_path}/no.jsonl: cannot be read (No such file"),
                       (str(tmp_path), "cannot be read (Is a directory"), ("", "'': cannot be read ("),
                       (f"{tmp_path}/new\nline", "new\\nline': cannot be read ("), ("a\0b",
                        "'a\\x00b': cannot be read ("),
                       ("a\ud800.csv", "'a\\ud800.csv': cannot be read (")):
        message = refusal(path)
        assert told in message and message.endswith("; give a file that exists and may be read")


def test_terminal_codes_do_not_reach_the_terminal(tmp_path):
    for value in ("\x1b[2J", "\u202eevil", "a\u2028b"):
        assert repr(value)[1:-1] in refusal(write(tmp_path, [{"prompt": "a", value: "b"}]))
        assert repr(value) in refusal(write(tmp_path, [{"messages": [{"role": value, "content": "a"}]}]))
        path = write(tmp_path, [pair() | {value: 1}])
        assert report(path, *read_conversations(path, [])).isprintable()
