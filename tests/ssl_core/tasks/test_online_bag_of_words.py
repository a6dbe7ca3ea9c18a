"""OBoW against a naive writing of its steps, in one process and over ranks."""

import math
from copy import deepcopy

import pytest
import torch
from ranks import over_ranks
from small_tasks import ThreeLayers, as_raw, generator
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ssl_core.nn.encoders import Encoder
from ssl_core.ops import images
from ssl_core.tasks.online_bag_of_words import OnlineBagOfWords
from ssl_core.types import Field

N, STEPS, RATE = 6, 4, 0.3
CROPS = {"crops": 3, "crop": 12, "min_area": 0.4, "max_area": 0.9, "flip": 0.5, "blur": 0.0}
PATCHES = {"patches": 2, "patch": 8, "frame": 16, "shift": 2}


def task_of(**fields) -> OnlineBagOfWords:
    small = {"canvas": 20, "size": 20, "words": 15, "lower": "stage2", "layer": "stage3", "momentum": 0.7, "horizon": 6}
    return OnlineBagOfWords(**{**CROPS, **PATCHES, **small, "decay": 0.6, **fields})


def encoder(field: Field, width: float = 1.0) -> Encoder:
    """Without norms, so that each picture is seen alone and ranks see what one process sees."""
    layers = ThreeLayers(field.shape[0], width)
    for name in layers.dims:
        layers.get_submodule(name)[1] = nn.Identity()
    return layers


def batch(task: OnlineBagOfWords, step: int) -> dict[str, torch.Tensor]:
    raw = as_raw(task, torch.rand(N, 3, 20, 20, generator=generator(step)))
    return task.make_batch(raw, generator(step))[0]


def model_of(task: OnlineBagOfWords):
    torch.manual_seed(0)
    return task.build(encoder)


def one_step(task, model, optimizer, inputs, forward=None) -> torch.Tensor:
    optimizer.zero_grad()
    loss = task.loss((forward or model)(**inputs), None)[0]
    loss.mean().backward()
    optimizer.step()
    with torch.no_grad():
        model.after_step()
    return loss.detach()


def optimizer_of(model) -> torch.optim.Optimizer:
    return torch.optim.SGD([w for w in model.parameters() if w.requires_grad], RATE)


def naive_bag(places: torch.Tensor, words: list[torch.Tensor], sharpness: float) -> tuple[torch.Tensor, float]:
    """Places [h, w, d] -> the bag, and the mean least squared distance."""
    codes, least = [], []
    for place in places.flatten(0, 1):
        distances = [float((place - word).square().sum()) for word in words]
        weights = [math.exp(-sharpness * (distance - min(distances))) for distance in distances]
        codes.append([weight / sum(weights) for weight in weights])
        least.append(min(distances))
    strongest = [max(code[k] for code in codes) for k in range(len(words))]
    return torch.tensor([share / sum(strongest) for share in strongest]), sum(least) / len(least)


def naive_word(places: torch.Tensor, pick: float) -> torch.Tensor:
    h, w, _ = places.shape
    corners = [(i, j) for i in range(h - 2) for j in range(w - 2)]
    i, j = corners[int(pick * len(corners))]
    return places[i : i + 3, j : j + 3].mean((0, 1))


def naive(task: OnlineBagOfWords, model) -> tuple[list[list[float]], nn.Module, list[list[torch.Tensor]], list[float]]:
    """By loops: losses, the teacher, each layer's words from the oldest to the newest, and its spread."""
    student, teacher = deepcopy(model.encoder), deepcopy(model.encoder)
    heads = [deepcopy(layer.head) for layer in model.words]
    words = [list(layer.late.queue.keys.clone()) for layer in model.words]
    spread, losses = [0.5, 0.5], []
    for step in range(STEPS):
        inputs = batch(task, step)
        with torch.no_grad():
            stages = teacher.stages(inputs["originals"])
            maps = [stages[name][:, :, 1:-1, 1:-1].permute(0, 2, 3, 1) for name in task.layers]
        found = [
            [naive_bag(places, words[k], task.sharpness / spread[k]) for places in maps[k]] for k in range(len(words))
        ]
        weights = [
            task.scale * F.normalize(head.mlp(F.normalize(torch.stack(ws), dim=1))) for head, ws in zip(heads, words)
        ]
        each = []
        for i in range(N):
            of_kind = []
            for kind, count in (("views", task.crops), ("patches", task.patches)):
                said = [student(inputs[kind][i + N * j][None])[0] for j in range(count)]
                of_kind += [
                    -(found[k][i][0] * (weights[k] @ x).log_softmax(0)).sum() / count / len(words)
                    for k in range(len(words))
                    for x in said
                ]
            each.append(torch.stack(of_kind).sum())
        learnt = [*student.parameters(), *(w for head in heads for w in head.parameters())]
        gradients = torch.autograd.grad(torch.stack(each).mean(), learnt, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(learnt, gradients):
                if gradient is not None:
                    weight -= RATE * gradient
            share = 1 - (1 - task.momentum) * (1 + math.cos(math.pi * (step + 1) / task.horizon)) / 2
            for slow, fast in zip(teacher.parameters(), student.parameters()):
                slow.copy_(share * slow + (1 - share) * fast)
        for k, maps_k in enumerate(maps):
            new = [naive_word(places, pick) for places, pick in zip(maps_k, inputs["pick"][:, k].tolist())]
            words[k] = (words[k] + new)[-task.words :]
            kept = min(task.decay, step / (step + 1))
            spread[k] = kept * spread[k] + (1 - kept) * sum(least for _, least in found[k]) / N
        losses.append([loss.item() for loss in each])
    return losses, teacher, words, spread


def test_every_step_is_the_papers():
    task = task_of()
    model = model_of(task)
    losses, teacher, words, spread = naive(task, model)
    optimizer = optimizer_of(model)
    for step, expected in enumerate(losses):
        mine = one_step(task, model, optimizer, batch(task, step))
        torch.testing.assert_close(mine, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(model.slow.parameters(), teacher.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    for layer, newest, mean in zip(model.words, words, spread):
        rows = torch.arange(task.words).roll(-int(layer.late.queue.place))
        torch.testing.assert_close(layer.late.queue.keys[rows], torch.stack(newest), atol=1e-4, rtol=1e-3)
        assert layer.late.spread.item() == pytest.approx(mean, rel=1e-3)


def _trained_by(rank: int, world: int) -> dict[str, torch.Tensor]:
    task = task_of()
    model = model_of(task)
    forward, optimizer = DistributedDataParallel(model, find_unused_parameters=True), optimizer_of(model)
    mine = range(rank * N // world, (rank + 1) * N // world)
    for step in range(STEPS):
        inputs = batch(task, step)
        part = {name: value[[i for i in range(len(value)) if i % N in mine]] for name, value in inputs.items()}
        one_step(task, model, optimizer, part, forward)
    return model.state_dict()


def test_ranks_hold_the_same_words_and_learn_as_one_process(tmp_path):
    first, *others = over_ranks(_trained_by, 3, tmp_path)
    task = task_of()
    model = model_of(task)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        one_step(task, model, optimizer, batch(task, step))
    alone = model.state_dict()
    for name in alone:
        torch.testing.assert_close(first[name], alone[name], atol=1e-4, rtol=1e-3)
        assert all(torch.equal(other[name], first[name]) for other in others), name


def test_a_resumed_model_goes_on_bit_for_bit():
    task = task_of()
    models = [model_of(task), model_of(task)]
    optimizers = [optimizer_of(model) for model in models]
    for step in range(2):
        one_step(task, models[0], optimizers[0], batch(task, step))
    with torch.no_grad():
        for own, saved in zip(models[1].state_dict().values(), models[0].state_dict().values(), strict=True):
            own.copy_(saved)
    for step in range(2, 4):
        losses = [one_step(task, *each, batch(task, step)) for each in zip(models, optimizers)]
        assert torch.equal(*losses)
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_micro_batches_wait_and_become_words_together():
    task = task_of()
    model = model_of(task)
    late = model.words[0].late
    before = late.queue.keys.clone()
    for step in range(2):
        model(**batch(task, step))
    assert torch.equal(late.queue.keys, before) and late.spread == 0.5
    model.after_step()
    assert int(late.queue.place) == 2 * N and int(late.counted) == 1
    assert not (late.queue.keys[: 2 * N] == before[: 2 * N]).all(1).any()


def test_looking_at_answers_leaves_words_and_spread_alone():
    task = task_of()
    model = model_of(task).eval()
    before = deepcopy(model.words.state_dict())
    model(**batch(task, 0))
    model.after_step()
    assert all(torch.equal(value, before[name]) for name, value in model.words.state_dict().items())


def test_bags_sum_to_one_and_are_the_same_for_all_pictures_of_an_image():
    task = task_of()
    crops, patches = model_of(task)(**batch(task, 0))
    for layers, pictures in ((crops, 3), (patches, 2)):
        assert len(layers) == 2
        for bags in layers:
            assert bags.logits.shape == bags.bags.shape == (N, pictures, task.words)
            assert torch.allclose(bags.bags.sum(-1), torch.ones(N, pictures)) and bags.bags.min() >= 0
    for first, second in zip(crops, patches):
        assert torch.equal(first.bags[:, 0], second.bags[:, 1])


def test_pictures_are_of_their_image_and_the_teacher_sees_all_of_it():
    task = task_of(flip=0.0, jitter=0.0, grey=0.0)
    colours = torch.rand(N, 3, 1, 1, generator=generator())
    inputs, _ = task.make_batch(as_raw(task, colours.expand(N, 3, 20, 20)), generator())
    shapes = {"views": (3 * N, 3, 12, 12), "patches": (2 * N, 3, 8, 8), "originals": (N, 3, 20, 20)}
    for name, shape in shapes.items():
        assert inputs[name].shape == shape
        shown = images.denormalise(inputs[name])
        assert torch.allclose(shown, colours.repeat(len(shown) // N, 1, 1, 1).expand_as(shown), atol=3e-3)
    assert inputs["pick"].shape == (N, 2) and inputs["pick"].min() >= 0 and inputs["pick"].max() < 1


def test_a_teacher_s_picture_is_mirrored_by_chance_and_otherwise_the_canvas():
    task = task_of(flip=0.5)
    raw = as_raw(task, torch.rand(40, 3, 20, 20, generator=generator()))
    shown = images.denormalise(task.make_batch(raw, generator())[0]["originals"])
    plain = raw["image"] / 255
    same = [torch.allclose(one, other, atol=1e-4) for one, other in zip(shown, plain)]
    mirrored = [torch.allclose(one, other.flip(2), atol=1e-4) for one, other in zip(shown, plain)]
    assert 10 < sum(same) < 30 and sum(same) + sum(mirrored) == 40


def test_the_plain_form_has_crops_only_and_words_of_one_layer():
    task = task_of(patches=0, lower="")
    outputs = model_of(task)(**batch(task, 0))
    assert [[bags.bags.shape for bags in layers] for layers in outputs] == [[(N, 3, 15)]]
    assert set(task.show(batch(task, 0), outputs, None).columns) == {"view", "original"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"crop": 4}, "must be at least 8 px"),
        ({"patches": 10}, "patches is 10; the grid has 0 to 9"),
        ({"frame": 8}, "do not fit the frame of 8; raise frame"),
        ({"min_area": 0.95}, "min_area must be at most max_area"),
        ({"words": 1}, "words must be at least 2"),
        ({"sharpness": 0.0}, "sharpness and scale must be above 0"),
        ({"lower": "stage3"}, "lower another one or none"),
        ({"momentum": 1.1}, "momentum is 1.1; it must be between 0 and 1"),
        ({"shear": 90}, "shear is 90; it must be at least 0"),
    ],
)
def test_a_bad_field_is_answered_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        task_of(**fields)


def test_a_layer_that_the_encoder_has_not_is_named():
    with pytest.raises(
        ValueError, match=r"no layer 'stage9'; set task.layer and task.lower to some of stage1, stage2, stage3"
    ):
        model_of(task_of(layer="stage9"))
