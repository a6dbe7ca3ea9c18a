"""MoCo against a naive writing of its algorithm 1, in one process and over ranks."""

from copy import deepcopy

import pytest
import torch
from ranks import over_ranks
from small_tasks import as_raw, encoder, generator
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ssl_core.ops import images
from ssl_core.tasks.moco import MoCo
from ssl_core.types import Field

N, STEPS, RATE = 12, 4, 0.3


def task_of(**fields) -> MoCo:
    small = {"canvas": 20, "size": 16, "queue": 30, "splits": 2, "hidden": 16, "out": 8, "momentum": 0.7}
    return MoCo(**{**small, **fields})


def raw_of(n: int = N, seed: int = 0) -> dict[str, torch.Tensor]:
    return as_raw(task_of(), torch.rand(n, 3, 20, 20, generator=generator(seed)))


def model_of(task: MoCo):
    torch.manual_seed(0)
    return task.build(encoder)


def batch(task: MoCo, step: int, shuffled: bool = True) -> dict[str, torch.Tensor]:
    inputs = task.make_batch(raw_of(seed=step), generator(step))[0]
    if not shuffled:
        inputs["groups"][N:] = inputs["groups"][:N] + task.splits
    return inputs


def trained(task: MoCo, model, shuffled: bool = True) -> list[torch.Tensor]:
    """STEPS steps of plain gradient descent; the losses of each."""
    optimizer, losses = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], RATE), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(model(**batch(task, step, shuffled)), None)[0]
        loss.mean().backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
        losses.append(loss.detach())
    return losses


def naive(task: MoCo, model) -> tuple[list[list[float]], nn.Module, nn.Module, list[torch.Tensor]]:
    """Algorithm 1 by loops: losses, the query network, the key network, the queue from the oldest key to the newest.

    Plain batch norm, and each part of the batch goes through the networks alone.
    """
    plain = encoder(Field("image", (3, 16, 16)))
    plain.load_state_dict(model.encoder.state_dict())
    of_query = nn.Sequential(plain, deepcopy(model.head))
    of_key = deepcopy(of_query)
    queue, losses = list(model.queue.keys.clone()), []
    for step in range(STEPS):
        views, groups = batch(task, step).values()
        made = [None] * len(views)
        for group in groups.unique().tolist():
            rows = (groups == group).nonzero()[:, 0].tolist()
            out = (of_query if rows[0] < N else of_key)(views[rows])
            for row, vector in zip(rows, out, strict=True):
                made[row] = vector / vector.norm() if row < N else (vector / vector.norm()).detach()
        each = []
        for i in range(N):
            scores = [made[i] @ key / task.temperature for key in [made[N + i], *queue]]
            each.append(-torch.log(scores[0].exp() / sum(score.exp() for score in scores)))
        of_query.zero_grad()
        torch.stack(each).mean().backward()
        with torch.no_grad():
            for q, k in zip(of_query.parameters(), of_key.parameters()):
                q -= RATE * q.grad
                k.copy_(task.momentum * k + (1 - task.momentum) * q)
        queue = (queue + made[N:])[-task.queue :]
        losses.append([loss.item() for loss in each])
    return losses, of_query, of_key, queue


def assert_close(model, of_query: nn.Module, of_key: nn.Module) -> None:
    for mine, theirs in zip([*model.encoder.parameters(), *model.head.parameters()], of_query.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    for mine, theirs in zip(model.slow.parameters(), of_key.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("queue", [30, 36])
def test_every_step_is_the_papers(queue):
    task = task_of(queue=queue)
    model = model_of(task)
    losses, of_query, of_key, newest = naive(task, model)
    for mine, theirs in zip(trained(task, model), losses):
        torch.testing.assert_close(mine, torch.tensor(theirs), atol=1e-4, rtol=1e-4)
    assert_close(model, of_query, of_key)
    rows = torch.arange(queue).roll(-int(model.queue.place))
    torch.testing.assert_close(model.queue.keys[rows], torch.stack(newest), atol=1e-4, rtol=1e-3)


def _trained_by(rank: int, world: int) -> dict[str, torch.Tensor]:
    """A rank's part of each batch under DDP, batch norm over the whole part."""
    whole, own = task_of(splits=world), task_of(splits=1)
    model = model_of(own)
    forward = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], RATE)
    mine = torch.arange(rank * N // world, (rank + 1) * N // world)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs = batch(whole, step, shuffled=False)
        part = {name: value[torch.cat([mine, N + mine])] for name, value in inputs.items()}
        own.loss(forward(**part), None)[0].mean().backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    return model.state_dict()


def test_ranks_hold_the_same_queue_and_learn_as_one_process_with_as_many_parts(tmp_path):
    world = 3
    first, *others = over_ranks(_trained_by, world, tmp_path)
    task = task_of(splits=world)
    model = model_of(task)
    trained(task, model, shuffled=False)
    alone = model.state_dict()
    for name in alone:
        if "running" in name:
            continue  # each rank's own
        torch.testing.assert_close(first[name], alone[name], atol=1e-4, rtol=1e-3)
        assert all(torch.equal(other[name], first[name]) for other in others), name


def test_groups_cut_the_batch_evenly_and_shuffle_the_keys():
    task = task_of(splits=4)
    groups = task.make_batch(raw_of(), generator())[0]["groups"]
    assert groups[:N].tolist() == [i // 3 for i in range(N)]
    assert groups[N:].bincount().tolist() == [0] * 4 + [3] * 4
    assert groups[N:].tolist() != sorted(groups[N:].tolist())
    others = [task.make_batch(raw_of(), generator(seed))[0]["groups"][N:].tolist() for seed in range(5)]
    assert len(set(map(tuple, others))) > 1


def test_micro_batches_wait_and_enter_the_queue_together():
    task = task_of()
    model = model_of(task)
    before = model.queue.keys.clone()
    outputs = [model(**batch(task, step)) for step in range(2)]
    assert torch.equal(model.queue.keys, before)
    model.after_step()
    assert torch.equal(model.queue.keys[: 2 * N], torch.cat([out.key for out in outputs]))


def test_looking_at_answers_leaves_the_queue_alone():
    task = task_of()
    model = model_of(task).eval()
    before = model.queue.keys.clone()
    model(**batch(task, 0))
    model.after_step()
    assert torch.equal(model.queue.keys, before)


def test_keys_of_the_same_batch_are_no_negatives():
    task = task_of(temperature=0.1)
    query = F.normalize(torch.randn(5, 8, generator=generator()), dim=1)
    queue = F.normalize(torch.randn(30, 8, generator=generator(1)), dim=1)
    same = query[:1].expand(5, -1)  # every key of the batch is the first query's
    loss, metrics = task.loss((query, same, queue), None)
    expected = F.cross_entropy(torch.cat([query @ same[:1].T, query @ queue.T], 1) / 0.1, torch.zeros(5).long())
    torch.testing.assert_close(loss.mean(), expected)
    assert metrics["accuracy"][0] == 1


def test_its_representation_is_of_the_whole_image():
    task = task_of()
    model, raw = task.build(encoder).eval(), raw_of()
    whole = images.normalise(images.resize(images.to_float(raw["image"]), 16))
    with torch.no_grad():
        assert torch.allclose(model.represent(raw)["stage3"], model.encoder(whole))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 2}, "canvas and size must be at least 8 px"),
        ({"queue": 0}, "queue, splits, hidden, out and layers at least 1"),
        ({"min_area": 1.5}, "min_area is 1.5; it is a share"),
        ({"momentum": 1.1}, "momentum is 1.1; it must be between 0 and 1"),
        ({"hue": 0.7}, "hue is 0.7; it must be between 0 and 0.5"),
        ({"zoom": 0.5}, "zoom is 0.5; it is a factor and must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        MoCo(**fields)
