"""What every pretext task promises. A new task is tried by adding its form to small_tasks.SMALL."""

import dataclasses
import json
import pickle
import re

import pytest
import torch
from small_tasks import SMALL, artefact_of, encoder_for, generator, noise, scenes, small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core import artefact
from ssl_core.nn.contrast import Positives
from ssl_core.probes.audit import CUES
from ssl_core.task import PretextTask, TaskModel, cue_pairs, matching_of
from ssl_core.tasks import TASKS
from ssl_core.train.checkpoint import task_name
from ssl_core.types import Choice


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small only lose time to waking a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(TASKS))
def task(request) -> PretextTask:
    return small(request.param)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_called_like_its_module(name):
    """Saved models and run keys name it so, without a look at the list of all tasks."""
    assert TASKS[name].__module__ == f"ssl_core.tasks.{name}"
    assert task_name(small(name)) == name


def leaves(batch) -> list[Tensor]:
    """The tensors of inputs and targets, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict):
        batch = batch.values()
    return [leaf for part in batch or () for leaf in leaves(part)]


def mapped(change, batch):
    """`batch` with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: mapped(change, part) for name, part in batch.items()}
    parts = [mapped(change, part) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)


def task_loss(task: PretextTask) -> Tensor:
    """The losses of a fresh model on a few scenes."""
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    return task.loss(model_of(task)(**inputs), targets)[0]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def model_of(task: PretextTask, seed: int = 0) -> TaskModel:
    torch.manual_seed(seed)
    return task.build(encoder_for(task))


def scrambled(task, inputs, targets, rng, images: int):
    """The same batch with wrong answers: targets permuted or, where images are matched, their views."""
    if targets is not None:
        (n,) = {len(leaf) for leaf in leaves(targets)}
        wrong = torch.randperm(n, generator=rng)
        return inputs, mapped(lambda leaf: leaf[wrong], targets)
    answers = matching_of(task).answers
    views = [view[torch.randperm(images, generator=rng)] for view in inputs[answers].split(images)]
    return {**inputs, answers: torch.cat(views)}, None


def filled(task, model, n: int, batch_of) -> TaskModel:
    """The model after a few batches without learning: what a queue holds at first is no picture's key."""
    for step in range(3):
        with torch.no_grad():
            model(**task.make_batch(batch_of(task, n, seed=1000 + step), generator(step))[0])
            model.after_step()
    return model


def train(task, model, steps: int, n: int, batch_of, scramble: bool = False):
    """Short training; -> losses [steps] and the metrics of each step."""
    optimizer = torch.optim.AdamW(filled(task, model, n, batch_of).parameters(), 2e-3)
    losses, metrics = [], []
    for step in range(steps):
        inputs, targets = task.make_batch(batch_of(task, n, seed=step), generator(step))
        if scramble:
            inputs, targets = scrambled(task, inputs, targets, generator(1000 + step), n)
        outputs = model(**inputs)
        each, values = task.loss(outputs, targets)
        loss = each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(loss.item())
        metrics.append({name: value.mean().item() for name, value in values.items()})
    return losses, metrics


def no_better(name: str, seen: float, chance: float, answers: int) -> bool:
    """Whether a metric is at its chance level: a share within five standard errors, R² not above."""
    if name == "accuracy":
        return abs(seen - chance) < 5 * (chance * (1 - chance) / answers) ** 0.5
    return seen < chance + 0.02


def test_every_task_is_tried_at_test_size():
    assert set(SMALL) == set(TASKS)


def test_it_is_a_pretext_task_that_names_its_paper(task):
    assert isinstance(task, PretextTask)
    assert re.search(r"\d{4}, (arXiv:\d{4}\.\d{4,5}|doi:10\.\S+)$", task.paper)


def test_its_fields_hash_pickle_and_survive_json(task):
    assert hash(task) == hash(dataclasses.replace(task))
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert type(task)(**json.loads(json.dumps(dataclasses.asdict(task)))) == task
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.canvas = 1


def test_its_default_fields_are_valid_and_every_field_is_documented(task):
    cls = type(task)
    cls()
    attributes = (cls.__doc__ or "").partition("Attributes:")[2]
    for field in dataclasses.fields(cls):
        assert re.search(rf"^\s+{field.name}: \S", attributes, re.MULTILINE), f"{field.name} is not documented"


def test_its_artefacts_are_fields_that_are_empty_until_made_and_the_same_whenever_made(task):
    for field, digest in artefact.digests(task).items():
        assert getattr(type(task)(), field) == ""
        again = artefact_of(dataclasses.replace(task, **{field: ""}), field)
        assert artefact.digest_of(again) == digest
    if artefact.fit_functions(task):
        bare = dataclasses.replace(task, **dict.fromkeys(artefact.fit_functions(task), ""))
        with pytest.raises(artefact.MissingArtefactError, match="is not fitted yet"):
            task_loss(bare)


def test_its_sample_names_what_make_batch_needs_and_nothing_else(task):
    raw = scenes(task, 4)
    for name, field in task.sample.items():
        assert raw[name].shape[1:] == field.shape
    inputs, targets = task.make_batch(raw, generator())
    with_label = {**raw, "label": raw.get("label", torch.arange(4))}
    assert equal((inputs, targets), task.make_batch(with_label, generator()))
    assert set(raw) == set(task.sample)
    for name in task.sample:
        with pytest.raises(KeyError, match=name):
            task.make_batch({other: value for other, value in raw.items() if other != name}, generator())


def test_the_seed_makes_the_batch(task):
    raw = scenes(task, 6)
    batch = task.make_batch(raw, generator(1))
    torch.manual_seed(123)  # the global generator has no say
    assert equal(batch, task.make_batch(raw, generator(1)))
    assert not equal(batch, task.make_batch(raw, generator(2)))


def test_the_memory_layout_of_raw_does_not_matter(task):
    raw = scenes(task, 6)
    planar = {name: value.contiguous() for name, value in raw.items()}
    assert equal(task.make_batch(raw, generator()), task.make_batch(planar, generator()))


def test_raw_is_left_as_it_was(task):
    raw = scenes(task, 6)
    before = {name: value.clone() for name, value in raw.items()}
    task.make_batch(raw, generator())
    model_of(task).eval().represent(raw)
    assert equal(raw, before)


def test_its_inputs_are_float32_and_finite(task):
    inputs, _ = task.make_batch(scenes(task, 6), generator())
    pictures = [value for value in inputs.values() if value.is_floating_point()]
    assert pictures
    for value in pictures:
        assert value.dtype == torch.float32 and value.isfinite().all()


def test_its_answer_is_in_its_targets_or_it_says_which_images_are_matched(task):
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    matching = matching_of(task)
    assert (targets is None) == (matching is not None)
    if matching is not None:
        assert len(inputs[matching.answers]) % 6 == 0


def test_it_says_which_pictures_its_answers_hang_on(task):
    """As many as there are answers; where pictures are the answer, all of them, view by view."""
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    pictures, partners = cue_pairs(task, inputs)
    assert pictures.shape == partners.shape and pictures.ndim in (4, 5)
    if targets is None:
        assert pictures.ndim == 4 and len(pictures) % 6 == 0
    elif isinstance(targets, Positives):
        assert max(targets.query.max(), targets.key.max()) < len(pictures)
    else:
        assert {len(leaf) for leaf in leaves(targets)} == {len(pictures)}


class NoSynchronisation(TorchDispatchMode):
    """Fails where a GPU would have to be waited for: values read by Python, shapes that depend on values."""

    FORBIDDEN = re.compile(r"_local_scalar_dense|nonzero|masked_select|is_nonzero|aten\.equal|unique|item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not self.FORBIDDEN.search(str(func)), f"{func} waits for the device"
        if "aten.index" in str(func) and len(args) > 1 and isinstance(args[1], list | tuple):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("expression", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_the_guard_notices_synchronisation(expression):
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits for the device"):
        expression(torch.ones(3))


def test_make_batch_never_waits_for_the_device(task):
    for changed in [{}, *(shortcut.off for shortcut in task.shortcuts)]:
        with NoSynchronisation():
            dataclasses.replace(task, **changed).make_batch(scenes(task, 4), generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_make_batch_never_waits_for_a_gpu(task):
    raw = {name: value.cuda() for name, value in scenes(task, 4).items()}
    rng = torch.Generator("cuda").manual_seed(0)
    task.make_batch(raw, rng)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs, targets = task.make_batch(raw, rng)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.is_cuda for value in leaves((inputs, targets)))


def test_its_loss_is_per_example_and_reaches_the_encoder(task):
    model = model_of(task)
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    loss, _ = task.loss(model(**inputs), targets)
    assert loss.ndim == 1 and len(loss) >= 6 and loss.isfinite().all()
    loss.mean().backward()
    for name, weight in model.encoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert sum(weight.grad.abs().sum() for weight in model.encoder.parameters()) > 0


def test_its_metrics_are_per_example_and_have_a_chance_level(task):
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    outputs = model_of(task)(**inputs)
    loss, metrics = task.loss(outputs, targets)
    assert set(task.chance(6)) <= set(metrics) and set(task.chance(6)) & {"accuracy", "r2"}
    for value in metrics.values():
        assert value.shape == loss.shape and value.isfinite().all() and not value.requires_grad


def test_an_untrained_model_on_noise_is_at_chance(task):
    n, batches = 24, 12
    model, seen = filled(task, model_of(task), n, noise), {}
    for step in range(batches):
        inputs, targets = task.make_batch(noise(task, n, seed=step), generator(step))
        with torch.no_grad():
            for name, value in task.loss(model(**inputs), targets)[1].items():
                seen.setdefault(name, []).append(value)
    for name, chance in task.chance(n).items():
        assert no_better(name, torch.cat(seen[name]).mean().item(), chance, n * batches), name


def test_it_represents_layers_in_order_deterministically_and_per_sample(task):
    model, raw = model_of(task).eval(), scenes(task, 7)
    with torch.no_grad():
        layers = model.represent(raw)
        again = model.represent(raw)
        parts = [
            model.represent({name: value[part] for name, value in raw.items()}) for part in (slice(3), slice(3, 7))
        ]
    names = list(layers)
    assert len(names) >= 2
    numbered = [name for name in names if re.search(r"\d+$", name)]
    assert numbered == sorted(numbered, key=lambda name: int(re.search(r"\d+$", name)[0]))
    for name, vectors in layers.items():
        assert vectors.dtype == torch.float32 and vectors.ndim == 2 and len(vectors) == 7
        assert torch.equal(vectors, again[name])
        assert torch.allclose(vectors, torch.cat([part[name] for part in parts]), atol=1e-4)


def test_its_state_dict_carries_the_whole_model(task):
    model, other, raw = model_of(task, 0), model_of(task, 1), scenes(task, 4)
    inputs, targets = task.make_batch(raw, generator())
    task.loss(model(**inputs), targets)[0].mean().backward()  # moves the running statistics
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert equal(model.eval().represent(raw), other.eval().represent(raw))
        assert equal(model(**inputs), other(**inputs))


def test_it_shows_what_it_saw(task):
    inputs, targets = task.make_batch(scenes(task, 4), generator())
    with torch.no_grad():
        panel = task.show(inputs, model_of(task)(**inputs), targets)
    assert panel.columns and panel.captions and all(panel.captions)
    for pictures in panel.columns.values():
        assert pictures.ndim == 4 and pictures.shape[:2] == (len(panel.captions), 3)
        assert pictures.min() >= 0 and pictures.max() <= 1


def test_its_search_domains_hold_valid_values(task):
    for name, domain in task.search.items():
        values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
        for value in values:
            assert getattr(dataclasses.replace(type(task)(), **{name: value}), name) == value


def test_its_shortcuts_name_a_known_cue_and_fields_that_open_it(task):
    for shortcut in task.shortcuts:
        assert shortcut.cue in CUES
        assert shortcut.countermeasure.endswith(".")
        for chosen in (task, type(task)()):
            assert dataclasses.replace(chosen, **shortcut.off) != chosen


def test_it_learns_an_easy_corpus(task):
    losses, _ = train(task, model_of(task), 40, 16, scenes)
    assert sum(losses[-8:]) / 8 < 0.9 * sum(losses[:4]) / 4


def test_wrong_answers_teach_it_nothing(task):
    n, last = 16, 10
    _, metrics = train(task, model_of(task), 25, n, scenes, scramble=True)
    for name, chance in task.chance(n).items():
        seen = sum(step[name] for step in metrics[-last:]) / last
        assert no_better(name, seen, chance, n * last), name


def test_it_trains_under_bf16_autocast(task):
    model = model_of(task)
    inputs, targets = task.make_batch(scenes(task, 6), generator())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**inputs)
        layers = model.eval().represent(scenes(task, 2))
    loss, _ = task.loss(mapped(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, outputs), targets)
    loss.mean().backward()
    assert loss.isfinite().all() and loss.dtype == torch.float32
    assert all(vectors.dtype == torch.float32 for vectors in layers.values())
