"""Penalties: what each adds to the loss, what it does behind the optimiser's step, what it remembers."""
import copy
import random

import pytest
import torch

import eval as evaluate
import penalties
import train
from conftest import VOCAB_SIZE, random_gpt
from data import collate
from model import Sampler
from penalties import PENALTIES
from runs import BadInput
from test_train import run, saved_by, tiny_base


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(penalties, "FISHER", 4)
    return tmp_path


def made(kind, tasks, tokenizer, strength=None, scale=None):
    """A penalty as train.py makes it, for batches of eight."""
    scale = torch.ones(VOCAB_SIZE) if scale is None else scale
    strength = PENALTIES[kind].strength if strength is None else strength
    return PENALTIES[kind](strength=strength, batch_size=8, tasks=tasks, tokenizer=tokenizer,
                           sample=Sampler(tokenizer.end), scale=scale, rng=random.Random(0))


def trained_to_write(document, steps=60):
    torch.manual_seed(0)
    gpt = random_gpt()
    adam = torch.optim.Adam(gpt.parameters(), lr=0.01)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(gpt(document[:, :-1])[0], document[0, 1:])
        adam.zero_grad(), loss.backward(), adam.step()
    return gpt


def test_dreams_are_prompts(tokenizer):
    """A model that was trained to write one document, over and over, dreams its prompt and its answer."""
    document = torch.tensor([[tokenizer.ask, 300, 301, tokenizer.answer, 302, tokenizer.end]])
    gpt, sample = trained_to_write(document), Sampler(tokenizer.end)
    prompt, length, response, mask = penalties.dream(gpt, tokenizer, sample, 64, 16)
    assert len(prompt) == len(length) == len(response) == len(mask) <= 64
    rows = [row[:n] for row, n in zip(prompt.tolist(), length.tolist())]
    assert rows.count(document[0, :4].tolist()) > 40
    assert all(row[0] == tokenizer.ask and row[-1] == tokenizer.answer for row in rows)
    assert response[0, 0] == 302
    assert sample.tokens >= mask.sum() + (length - 1).sum()         # what is generated for the loss is counted


def test_a_model_that_dreams_no_prompt_is_refused_in_one_line(tokenizer):
    gpt = trained_to_write(torch.tensor([[tokenizer.ask, *[300] * 20]]))
    with pytest.raises(BadInput) as e:
        penalties.dream(gpt, tokenizer, Sampler(tokenizer.end), 8, 16)
    assert len(e.value.args) == 1 and "none of the model's dreams is a prompt; " in str(e.value).replace(": ", "; ")


def penalty(previous, world, kind, strength=None, task=1):
    tasks = world.stream(2, 8, 8)
    found = made(kind, tasks, world.tokenizer, strength)
    found.begin(previous, task)
    return found.loss(collate(tasks[task].train, world.tokenizer))


@pytest.mark.parametrize("kind", ["self-replay", "lwf"])
def test_a_penalty_is_nothing_for_an_unchanged_model_and_something_for_another(world, monkeypatch, kind):
    gpt, other, tokenizer = random_gpt(), random_gpt(1), world.tokenizer
    prompt, length = torch.tensor([[tokenizer.ask, 300, tokenizer.answer]] * 4), torch.full((4,), 3)

    def dream(model, *_):
        return prompt, length, *model.generate(prompt, length, 5, end=-1)

    monkeypatch.setattr(penalties, "dream", dream)
    torch.manual_seed(0)
    assert penalty(gpt, world, kind)(gpt).item() == 0.0
    found = []
    for strength in (1, 2):
        torch.manual_seed(0)
        found.append(penalty(gpt, world, kind, strength)(other).item())
    assert found[0] > 1e-3 and found[1] == pytest.approx(2 * found[0])


@pytest.mark.parametrize("kind", ["self-replay", "lwf"])
def test_what_the_student_becomes_does_not_move_what_it_is_compared_with(world, monkeypatch, kind):
    gpt = random_gpt()
    monkeypatch.setattr(penalties, "dream", lambda model, *_: (
        torch.full((4, 3), 300), torch.full((4,), 3), torch.full((4, 2), 301), torch.ones(4, 2, dtype=torch.bool)))
    torch.manual_seed(0)
    loss = penalty(gpt, world, kind, 1.0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.mul_(1.5)
    assert loss(gpt).item() > 1e-3


def test_replay_begins_with_the_second_task_and_other_penalties_add_no_loss(world):
    assert penalty(random_gpt(), world, "replay", task=0) is None
    loss = penalty(random_gpt(), world, "replay")(random_gpt())
    assert loss.requires_grad and loss.item() > 0
    for kind in ("none", "l2"):
        assert penalty(random_gpt(), world, kind) is None


@pytest.mark.parametrize("kind, strength", [("l2", 0.01), ("l2", 3.0), ("ewc", 0.5), ("ewc", 1e6)])
def test_l2_and_ewc_take_an_implicit_step(tokenizer, kind, strength):
    """θ = argmin of (θ - now)² / (2 rate) + strength / 2 * F (θ - old)²: there the gradient is zero. F is 1 for l2."""
    old, student = random_gpt(), random_gpt(1)
    now, frequency = copy.deepcopy(student), torch.rand(VOCAB_SIZE) / 1000
    scale = train.row_scale(frequency, train.Config.f0, student)
    optimizer = train.sgd(student, 0.1, 20.0, scale)
    importance = [torch.rand_like(p) for p in student.parameters()] if kind == "ewc" else None
    held = made(kind, [], tokenizer, strength, scale)
    held.previous, held.student, held.memory = old, student, importance
    held.pull_back(optimizer)
    for i, ((name, new), was, before) in enumerate(zip(student.named_parameters(), old.parameters(),
                                                       now.parameters())):
        rate = 20.0 / (1 + frequency[:, None] / 0.001) if name == "embed.weight" else torch.tensor(0.1)
        F = importance[i] if importance else 1.0
        expected = (before / rate + strength * F * was) / (1 / rate + strength * F)
        torch.testing.assert_close(new.data, expected, atol=1e-5, rtol=1e-4)


def test_a_penalty_that_rests_pulls_nothing_back(tokenizer):
    student = random_gpt()
    held = made("l2", [], tokenizer, 1e9)
    held.begin(student, 0)
    held.rest()
    with torch.no_grad():
        student.head.weight.add_(1.0)
    now = copy.deepcopy(student.state_dict())
    held.pull_back(train.sgd(student, 0.1, 20.0, torch.ones(VOCAB_SIZE)))
    assert all(torch.equal(v, now[k]) for k, v in student.state_dict().items())
    assert held.state() == {"previous": None, "memory": None}


def test_l2_holds_the_student_as_the_strength_says(here):
    base = evaluate.load_model(tiny_base())[0].state_dict()

    def moved(strength):
        run("--out", "a", "--method", "sft", "--penalty", "l2", "--strength", strength, tasks=1)
        student = saved_by("a", "student")
        return sum((student[k] - base[k]).norm().item() for k in base)

    weak, strong, stiff = map(moved, ("1e-9", "0.3", "1e9"))
    assert weak > 1.2 * strong and strong > 100 * stiff


def test_fisher_is_the_mean_square_of_single_gradients(tokenizer):
    """Two prompts, and answers of one token that are fixed: against gradients taken one by one by the slow way."""
    gpt = random_gpt()
    prompt = torch.tensor([[tokenizer.ask, 300, tokenizer.answer], [tokenizer.ask, 301, tokenizer.answer]])
    answer = torch.tensor([[310], [311]])

    def sample(*_):
        return answer, torch.ones(2, 1, dtype=torch.bool)

    found = penalties.fisher(gpt, prompt, torch.tensor([3, 3]), sample, 16)
    squares = []
    for row in range(2):
        gpt.zero_grad()
        (-gpt(prompt[row : row + 1])[0, -1].log_softmax(-1)[answer[row, 0]]).backward()
        squares.append([p.grad.square() for p in gpt.parameters()])
    for f, a, b in zip(found, *squares):
        torch.testing.assert_close(f, (a + b) / 2)


def test_ewc_sums_the_information_of_all_tasks(world, monkeypatch):
    """First what the base model knows, on its dreams; then that of each task, on its demonstrations."""
    gpt, tasks, asked = random_gpt(), world.stream(2, 8, 8), []
    dreamt = torch.full((3, 4), 300), torch.full((3,), 4)
    monkeypatch.setattr(penalties, "dream", lambda *_: (*dreamt, None, None))

    def ones(model, prompt, *_):
        asked.append(len(prompt))
        return [torch.ones_like(p) for p in model.parameters()]

    monkeypatch.setattr(penalties, "fisher", ones)
    ewc = made("ewc", tasks, world.tokenizer)
    for task in range(2):
        ewc.begin(gpt, task)
    assert asked == [3, 8] and all((f == 2).all() for f in ewc.memory)


def test_regularise_where_needed():
    def forgotten(R, base_accuracy):
        return train.History(R=R, base_accuracy=base_accuracy).forgotten()

    assert forgotten([[0.0, 0.0]], [1.0]) == 0.0
    seen = [[0.0, 0.0], [0.9, 0.0]]
    assert forgotten([*seen, [0.7, 0.8]], [1.0, 0.98, 0.97]) == pytest.approx(0.1)         # 0.2 and 0 on the tasks seen
    assert forgotten([*seen, [0.9, 0.8]], [1.0, 0.98, 0.97]) == pytest.approx(0.03)        # the base skills


def test_penalty_where_needed_runs_on_the_tasks_that_need_it(here, monkeypatch):
    monkeypatch.setattr(train.History, "forgotten", lambda history: 0.5 * (len(history.R) == 2))
    assert run("--out", "a", "--penalty", "l2", "--when", "needed")["regularised"] == [False, True]


def test_replay_stores_the_same_share_of_every_past_task(world):
    stream = world.stream(4, 40, 4)
    stored = penalties.past_demonstrations(stream[:3], 0.1)
    assert stored == penalties.past_demonstrations(stream[:3], 0.1) and len(stored) == 12
    assert [sum(any(e is x for x in t.train) for e in stored) for t in stream] == [4, 4, 4, 0]


@pytest.mark.parametrize("kind", PENALTIES)
def test_what_a_penalty_remembers_goes_through_a_checkpoint(world, monkeypatch, kind):
    """Saved in the middle of a task and loaded into a fresh one, it adds and pulls back the same."""
    monkeypatch.setattr(penalties, "FISHER", 4)
    monkeypatch.setattr(penalties, "dream", lambda model, *_: (
        torch.full((4, 3), 300), torch.full((4,), 3), torch.full((4, 2), 301), torch.ones(4, 2, dtype=torch.bool)))
    tasks, old, student = world.stream(2, 8, 8), random_gpt(), random_gpt(1)
    batch, found = collate(tasks[1].train, world.tokenizer), []
    first, again = (made(kind, tasks, world.tokenizer, 0.5) for _ in range(2))
    first.begin(old, 1)
    again.load_state(first.state(), student, 1)
    for one in (first, again):
        moved = copy.deepcopy(student)
        one.student, one.rng = moved, random.Random(1)
        torch.manual_seed(0)
        loss = one.loss(batch)
        one.pull_back(train.sgd(moved, 0.1, 20.0, torch.ones(VOCAB_SIZE)))
        found.append((loss and loss(student).item(), [p.tolist() for p in moved.parameters()]))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", list(PENALTIES)[1:])
def test_every_penalty_goes_with_every_method(here, kind):
    for method in ("sft", "joint", "sdft"):
        result = run("--steps", "2", "--method", method, "--penalty", kind, "--out", method)
        assert result["regularised"] == [True, True] and result["method"].startswith(f"{method}+{kind}")


def test_the_fisher_information_is_that_of_the_loss_and_not_of_the_scaled_gradient(world):
    """The optimiser scales the gradient of the embedding's rows by a hook on the student: EWC must not see it. (It did
    once, when it was estimated on the student itself, and its pull on frequent words was a hundred times too weak.)"""
    tasks, found = world.stream(2, 8, 8), []
    for scale in (1.0, 0.1):
        gpt = random_gpt()
        train.sgd(gpt, 0.1, 1.0, torch.full((VOCAB_SIZE,), scale))
        penalty = made("ewc", tasks, world.tokenizer)
        torch.manual_seed(0)
        penalty.begin(gpt, 1)
        found.append(penalty.memory)
        assert not any(p.requires_grad for p in penalty.previous.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][0].abs().max() > 0
