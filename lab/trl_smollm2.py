"""The same lessons by another trainer: TRL's SDFTTrainer, measured with the ruler of train.py.

    python lab/trl_smollm2.py --init out/smollm2 --demos F/teach.jsonl --keep F/general.jsonl
        --neighbours F/neighbours.jsonl --open-prompts F/open.jsonl --steps 80 --batch-size 16 --max-new-tokens 24
        --lr 5e-5 --warmup 10 --measure-every 20 --out out/trl [--paper]

The other options are those of train.py, and so are the files, the batches (`train.py --contrast 0` draws the same),
what is measured and when, and the result: OUT/result.json and OUT/model. Needed beside the requirements, tried with
TRL 1.16.0:

    pip install trl==1.16.0 transformers datasets

Made equal to train.py is the budget: batch, steps, one sample a prompt of so many tokens, peak rate, warm-up, seed; and
bf16 products of fp32 weights (fp32 ones where they are faster), prompts of any length, no gradient checkpointing. All
else is as TRL has it:

    the Jensen-Shannon divergence of equal weights over the student's 100 likeliest tokens, renormalised; a frozen
    teacher; rates that fall linearly to 0; and the template "{prompt}\\n\\n{demo}", the demonstration behind the
    question without a word about what it is. (Ours, the official code's, calls it an example for a response, and asks
    for a response of one's own, including the thinking process.)

--paper: KL(teacher ‖ student) over the vocabulary, an EMA teacher that takes 0.02 of the student a step, the official
template, and a constant rate, as in train.py. What differs still: TRL takes the mean of each sample's loss first and
then that of the samples, its AdamW has beta2 = 0.999 (ours: 0.95), the first step of its warm-up has rate 0, and no
guard looks at the teacher. Left out: earlier turns, which TRL's template cannot make, several tasks, tools, --resume.
"""
import argparse
import json
import os
import random
import sys
import tempfile
import time

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# all that is needed is here: nothing is asked of a hub
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
try:
    import datasets
    import transformers
    import trl
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    MISSING = ""
except ImportError as e:
    # `main` says so
    MISSING, TrainerCallback = str(e), object
import torch

import train
from chat import EARLIER, messages_of, template_of
from eval import Probe, accuracy, changes, is_chat, model_folder
from model import bf16_copy, their_weights
from runs import (BadInput, Log, ends_in_one_line, flag, given_options, locked, peak_mb, provenance, quoted,
                  remove_run, write_json, write_rows)

# The options of train.py that mean something here.
TAKEN = ("init", "demos", "keep", "neighbours", "open_prompts", "holdout", "grader", "template", "steps",
         "max_new_tokens", "batch_size", "lr", "warmup", "measure_every", "out", "seed", "device", "threads")
TEMPLATE = "{prompt}\n\n{demo}"                             # TRL's own, in our words
PAPER = {"distillation_mode": "full_logits", "distillation_alpha": 0.0, "teacher_model_kind": "ema",
         "teacher_update_rate": 0.02, "temperature": 1.0, "weight_decay": 0.0,
         "lr_scheduler_type": "constant_with_warmup"}
# What a reader of the figures should know of an SDFTConfig.
TOLD = ("distillation_mode", "distillation_alpha", "distillation_topk", "distillation_add_tail",
        "num_loss_tokens_to_skip", "teacher_model_kind", "teacher_update_rate", "teacher_prompt_template",
        "generate_from_teacher", "temperature", "top_k", "top_p", "num_generations", "max_completion_length",
        "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "bf16")


# ---------------------------------------------------------------------------------------------------------------------
# What TRL is given.


def trl_settings(config, paper, folder):
    """The SDFTConfig of a run; folder: where the trainer may write."""
    return SDFTConfig(
        output_dir=folder, max_steps=config.steps, per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=1, num_generations=1, max_completion_length=config.max_new_tokens,
        max_prompt_length=None, learning_rate=config.lr, warmup_steps=config.warmup, seed=config.seed, bf16=config.bf16,
        shuffle_dataset=False, teacher_prompt_template=in_trl_words(config.template),
        gradient_checkpointing=False, use_cpu=config.device == "cpu", save_strategy="no", report_to="none",
        disable_tqdm=True, **(PAPER if paper else {}))


def in_trl_words(template) -> str:
    """A template for the teacher as TRL writes it, with str.format.

    >>> in_trl_words("{prompt} {as} {demo}")
    '{prompt} {{as}} {privileged_context}'
    """
    text = template.replace("{", "{{").replace("}", "}}")
    return text.replace("{{prompt}}", "{prompt}").replace("{{demo}}", "{privileged_context}")


def drawn(examples, steps, batch_size, seed) -> list:
    """The examples of all batches, one behind the other, as train.py draws them of a first task with --contrast 0."""
    rng = random.Random(f"training {seed}")
    return [e for _ in range(steps) for e in rng.sample(examples, batch_size)]


def as_row(example) -> dict:
    """A demonstration as a row of TRL's data set. Raises BadInput for what its trainer cannot be asked."""
    messages = messages_of(example.asked)
    if example.tools or messages[-1]["role"] != "user" or not all(isinstance(m.get("content"), str) for m in messages):
        raise BadInput(f"{example.place}: {quoted(example.prompt)} has tools, or ends with no user's text, and TRL's "
                       "trainer takes neither; leave that row out")
    return {"prompt": [{"role": m["role"], "content": m["content"]} for m in messages],
            "privileged_context": example.shown[1]}


@torch.no_grad()
def take_weights(ours, theirs):
    """ours <- theirs: the weights of a transformers model into our GPT of the same folder."""
    weights = theirs.state_dict()
    for name, weight in their_weights(ours).items():
        weight.copy_(weights[name])


class Watch(TrainerCallback):
    """Called by TRL's trainer: it measures every so many steps, and counts what the training takes without that.

    measure(step, model): what is done then. seconds: of the training. tokens: that were sampled.
    """

    def __init__(self, measure, every, log):
        self.measure, self.every, self.log = measure, every, log
        self.seconds, self.tokens = 0.0, 0

    def on_train_begin(self, args, state, control, **_):
        self.began = time.perf_counter()

    def on_self_distillation_batch_prepared(self, *, completion_ids, teacher_attention_mask, **_):
        # the samples stand last in the teacher's rows
        self.tokens += int(teacher_attention_mask[:, -completion_ids.shape[1]:].sum())

    def on_step_end(self, args, state, control, *, model, **_):
        self.log.leave()
        # the end is measured behind the training
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            began = time.perf_counter()
            self.measure(state.global_step, model)
            self.began += time.perf_counter() - began

    def on_train_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.began


# ---------------------------------------------------------------------------------------------------------------------
# The run.


def teach(config, paper, lessons) -> dict:
    """One run, as train.learn of one task: returns the result that is also written to result.json."""
    task, tokenizer, room = lessons.tasks[0], lessons.tokenizer, config.max_new_tokens
    rows = [as_row(e) for e in drawn(task.train, config.steps, config.batch_size, config.seed)]
    name, scratch = "trl paper" if paper else "trl", tempfile.TemporaryDirectory()
    args = trl_settings(config, paper, scratch.name)
    told = {key: getattr(args, key) for key in TOLD}
    settings = {key: getattr(config, key) for key in TAKEN} | {"paper": paper, "bf16": config.bf16, "trl": told}
    origin = provenance()
    origin["versions"] |= {"trl": trl.__version__, "transformers": transformers.__version__}
    log = Log(config.out, name, {"settings": settings} | origin)
    log.say("\n".join([*lessons.reports, *(f"  {key} {json.dumps(value)}" for key, value in told.items())]))

    ours, history = lessons.model.to(config.device), train.History()
    probe = Probe(ours, tokenizer, lessons.tasks, lessons.keep, (), lessons.neighbours, lessons.open_prompts,
                  config.bf16, room=room)
    history.record(before := probe.measure(ours, 0))
    reader = bf16_copy(ours) if config.bf16 else ours
    history.ceiling.append(accuracy(reader, tokenizer, task.train, shown=True, room=room))
    log.say(f"before the first step: {train.in_words(before, 1)}; shown its demonstrations, the model answers "
            f"{history.ceiling[0]:.2f} of them rightly")

    def measure(model) -> dict:
        take_weights(ours, model)
        return probe.measure(ours, 1)

    def measure_within(step, model):
        history.curve.append({"step": step, **(measured := measure(model))})
        log.say(f"step {step}: {train.in_words(measured, 1)}")

    watch = Watch(measure_within, config.measure_every, log)
    with scratch:
        # of a path, as TRL's users give it: it reads the model, fp32, and reads it again for its teacher
        trainer = SDFTTrainer(model=lessons.folder, args=args, train_dataset=datasets.Dataset.from_list(rows),
                              processing_class=transformers.AutoTokenizer.from_pretrained(lessons.folder),
                              callbacks=[watch])
        trainer.train()
    history.record(after := measure(trainer.model))
    history.steps.append(config.steps)
    history.seconds.append(watch.seconds)
    history.generated_tokens.append(watch.tokens)
    ours.save_pretrained(os.path.join(config.out, "model"), lessons.folder, files=tokenizer.files())

    result = {"method": name, "settings": settings, **origin, "gates": {}, "tasks": [task.name],
              "peak_mb": peak_mb(), **train.figures_of(history)}
    write_rows(os.path.join(config.out, "answers.jsonl"), probe.asked)
    write_json(path := os.path.join(config.out, "result.json"), result)
    log.say(f"after {config.steps} steps: {train.in_words(after, 1)}\n{changes(result)}\nwrote {path}")
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def parse(argv=None) -> tuple[train.Config, bool]:
    """The command line as a Config of train.py, and --paper. Raises BadInput, in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        usage="%(prog)s [options]", epilog=f"Options as of train.py: {', '.join(map(flag, TAKEN))}")
    parser.add_argument("--paper", action="store_true", help="the paper's method, as far as TRL's trainer has it")
    own, words = parser.parse_known_args(argv)
    given = given_options(train.Config, __doc__, words)
    refused = "trl_smollm2.py: "
    for name, value in given.items():
        if name not in TAKEN:
            raise BadInput(f"{refused}{flag(name)} {value}: means nothing to TRL's trainer here; leave it out")
    if not given.get("max_new_tokens"):
        raise BadInput(f"{refused}--max-new-tokens is missing: all samples of TRL have one room; such as "
                       "--max-new-tokens 24")
    if given.get("template") == EARLIER:
        raise BadInput(f"{refused}--template {EARLIER}: TRL's template is of one message; give a text or a file with "
                       "{prompt} and {demo} in it")
    if "template" not in given and not own.paper:
        words += ["--template", TEMPLATE]
    config = train.parse(["--bf16", "--contrast", "0", *words])
    if model_folder(config.init) and not is_chat(config.init):
        raise BadInput(f"{refused}--init {config.init}: the small GPT, of which transformers has no tokenizer; name "
                       "the folder of a chat model, such as examples/fetch_smollm2.py makes")
    return config, own.paper


def read_lessons(config):
    """As lessons.read_lessons, of one task; and the batch is no larger than that. Raises BadInput."""
    config.template = template_of(config.template)
    lessons = train.read_lessons(config)
    if len(lessons.tasks) > 1:
        raise BadInput(f"--demos: {len(lessons.tasks)} tasks ({quoted(', '.join(t.name for t in lessons.tasks))}), and "
                       "TRL's trainer is given one; give the files of one task")
    for e in lessons.tasks[0].train:
        as_row(e)
    config.batch_size = min(config.batch_size, len(lessons.tasks[0].train))
    return lessons


def main(argv=None):
    with ends_in_one_line():
        config, paper = parse(argv)
        if MISSING:
            raise BadInput(f"trl_smollm2.py: {MISSING}; pip install trl==1.16.0 transformers datasets")
        train.set_up(config)
        lessons = read_lessons(config)
    with ends_in_one_line(config.out), locked(config.out):
        remove_run(config.out)
        teach(config, paper, lessons)


if __name__ == "__main__":
    # a terminal that does not know a character is no reason to stop
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
