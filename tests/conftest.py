"""Small models and batches that the tests share."""
import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from data import VOCAB_SIZE, World, collate  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

torch.set_num_threads(1)                                   # on tensors this small two threads wait for one another: minutes on a busy machine


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def random_gpt(seed=0, vocab=VOCAB_SIZE, **config):
    """A GPT whose every weight matters: the zero initialisation of heads and outputs would hide mistakes."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab, **{"n_layer": 2, "n_head": 2, "n_embd": 32} | config)).eval()
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(scope="session")
def world():
    return World(0)


@pytest.fixture
def batch(world):
    """Eight examples of three families, so that prompts and answers have several lengths."""
    return collate([task.train[i] for task in world.stream(4, 8, 8) for i in range(2)])


def small_probes(patch):
    """`patch` is monkeypatch.setattr: runs are measured on a few examples, which takes most of the time of a tiny run."""
    import train

    lessons = train.world_lessons

    def few(*args):
        has = lessons(*args)
        for task in has.stream:
            task.test = task.test[:4]
        return train.Lessons(has.stream, has.base[:8], has.kinds[:8], has.shown[:8], has.neighbours[:8])

    patch(train, "world_lessons", few)
