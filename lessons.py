"""What a run is taught and asked: the model of --init and the files of --demos, --keep, ..., read and checked.

`read_lessons` refuses what cannot be used before anything is trained or written. Left out: how files are read (data.py,
formats.py), and how a model is (model.py, chat.py).
"""
import hashlib
import itertools
import os
from collections import Counter
from dataclasses import dataclass

import torch

from chat import ChatTokenizer, template_of
from data import WordTokenizer, collate, held_out, into_tasks, read_examples
from eval import both_prompts, is_chat, load_model, model_folder
from model import GPT
from runs import OF_A_RUN, BadInput


@dataclass
class Lessons:
    """What goes in: a model, what it is taught, and what is measured besides."""

    model: GPT
    tokenizer: WordTokenizer | ChatTokenizer               # with the new words of the files
    handed_on: dict               # what the model's folder says of its pretraining
    tasks: list
    keep: list
    reading: list
    neighbours: list
    open_prompts: list
    folder: str                   # that the model was read from
    chat: bool                    # whether it is not the small GPT
    reports: list                 # a line for each file: its rows, their form, and the fields that are not used

    def fingerprint(self) -> str:
        files = self.tasks, self.keep, self.reading, self.neighbours, self.open_prompts
        # tokenizer and templates are files as well
        prompts = [both_prompts(task, self.tokenizer) for task in self.tasks]
        found = hashlib.sha256(repr((files, prompts, self.tokenizer.files())).encode())
        for numbers in (*self.model.state_dict().values(), self.handed_on.get("frequency", torch.zeros(0))):
            found.update(numbers.cpu().numpy().tobytes())
        return found.hexdigest()[:16]


def read_lessons(config) -> Lessons:
    """The model of --init and the files. Raises BadInput for all that cannot be used; nothing is written. --resume
    needs them as they were."""
    model, tokenizer, handed_on = load_model(config.init, template_of(config.template), config.context)
    folder, chat = model_folder(config.init), is_chat(config.init)
    if not chat and (config.template or config.helped_only):
        raise BadInput(f"--init {config.init}: --template and --helped-only are for chat models; leave them out")
    defaults = type(config)
    if chat and (config.embed_lr, config.f0) != (defaults.embed_lr, defaults.f0):
        raise BadInput(f"--init {config.init}: --embed-lr and --f0 are for the small GPT; a chat model's weights all "
                       "move at --lr; leave them out")
    if config.max_new_tokens > model.config.context // 2:
        raise BadInput(f"--max-new-tokens {config.max_new_tokens}: more than half of the model's context of "
                       f"{model.config.context}; ask for fewer")
    if chat and config.penalty in ("l2", "ewc"):
        raise BadInput(f"--penalty {config.penalty}: its step is made for SGD, and a chat model is trained by AdamW; "
                       "choose replay, self-replay or lwf")
    start, out, there = map(os.path.realpath, (folder, config.out, os.path.join(config.out, "model")))
    if start == out or os.path.commonpath([start, there]) == there:
        raise BadInput(f"--out {config.out}: the new model would be written over the old one (--init); choose another "
                       "folder")
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise BadInput(f"--init {config.init}: some of its weights are not finite; start from a model before they were")

    # half of the model's context: the longest prompt of a batch may meet its longest answer
    reports = []
    options = {"tokenizer": tokenizer, "context": model.config.context // 2, "grader": config.grader,
               "reports": reports, "drop": config.drop_unusable}
    demos = read_examples(config.demos, **options)
    keep, neighbours, open_prompts = (held_out(read_examples(files, **options, taught=False)) for files in
                                      (config.keep, config.neighbours, config.open_prompts))
    reading = read_examples(config.reading, **options, alone=True)
    for file in (*config.demos, *config.keep, *config.reading, *config.neighbours, *config.open_prompts):
        folder_of, name = os.path.split(os.path.realpath(file))
        if folder_of == out and name in OF_A_RUN:
            raise BadInput(f"--out {config.out}: {file} is among the files that a run writes anew; choose another "
                           "folder, or give the file another name")
    tasks = into_tasks(demos, config.holdout, config.seed, config.task_order)
    taught = {e.prompt for task in tasks for e in task.train}
    for name, asked in (("keep", keep), ("neighbours", neighbours), ("open-prompts", open_prompts)):
        if both := [e for e in asked if e.prompt in taught]:
            reports.append(f"--{name}: {len(both)} of {len(asked)} prompts are taught as well (the first is "
                           f"{both[0].place}), so that their answers do not tell what is kept")
    tokenizer = tokenizer.learn(demos + keep + neighbours, reading + open_prompts)
    check_others(tasks, config, tokenizer, model.config.context)
    return Lessons(model, tokenizer, handed_on, tasks, keep, reading, neighbours, open_prompts, folder, chat, reports)


def check_others(tasks, config, tokenizer, context):
    """Raises BadInput where a task has not the other demonstrations that --shown and --contrast need."""
    check_shown(tasks, config.shown, tokenizer, context, config.max_new_tokens)
    own = config.against == "own"
    for task in tasks if config.contrast else []:
        if len({e.prompt if own else e.shown[1] for e in task.train}) < 2:
            raise BadInput(f"--contrast {config.contrast}: all demonstrations of a task ({task.name}) "
                           f"{'answer the same prompt' if own else 'say the same'}, and a contrast needs another one; "
                           "choose --contrast 0, or add demonstrations")
        if not own:
            check_fits(task.train, task, config, tokenizer, context)


def check_shown(tasks, k, tokenizer, context, room=0):
    """Raises BadInput where a task has not k demonstrations of other prompts for each of its prompts, or where they, a
    prompt and an answer, for which there must be `room`, may take more than `context` tokens."""
    for task in tasks if k else []:
        prompts = Counter(e.prompt for e in task.train)
        if len(task.train) - max(prompts.values()) < k:
            raise BadInput(f"--shown {k}: the {len(task.train)} demonstrations of a task ({task.name}) have only "
                           f"{len(prompts)} different prompts; show fewer, or add some")
        longest = sorted(task.train, key=lambda e: -len(tokenizer.encode(f"{e.prompt} {e.shown[1]}")))
        shown = [list(itertools.islice((d for d in longest if d.prompt != e.prompt), k)) for e in task.train]
        batch = collate(task.train, tokenizer, shown)
        needed = batch.demo_prompt.shape[1] + max(batch.room, room)
        if needed > context:
            raise BadInput(f"--shown {k}: with the {k} longest demonstrations of a task ({task.name}) a prompt and its "
                           f"answer take {needed} tokens, more than {context}; show fewer, or shorten them")


def check_fits(pool, task, config, tokenizer, context):
    """Raises BadInput where a contrast's other demonstration, from this pool, leaves no room for prompt and answer."""
    try:
        for e in pool:
            tokenizer.prompt(e.asked, e.shown, tools=e.tools)
    except BadInput as found:
        # such as thoughts of the model's own, which some templates leave out of earlier turns
        raise BadInput(f"--contrast {config.contrast}: what is shown for a contrast in a task ({task.name}): {found}; "
                       "or choose another --template, --against row, or --contrast 0")
    longest = max(pool, key=lambda e: len(tokenizer.encode(e.shown[1])))
    batch = collate(task.train, tokenizer, against=[longest] * len(task.train))
    if (needed := batch.other_prompt.shape[1] + max(batch.room, config.max_new_tokens)) > context:
        raise BadInput(f"--contrast {config.contrast}: with the longest that is shown for a contrast in a task "
                       f"({task.name}, {longest.place}) a prompt and its answer take {needed} tokens, more than "
                       f"{context}; shorten the demonstrations, or choose --contrast 0")
