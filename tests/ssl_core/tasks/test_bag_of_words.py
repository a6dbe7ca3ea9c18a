import itertools
import math
from pathlib import Path

import pytest
import torch
from small_tasks import fitted, generator, noise, scenes, small

from ssl_core import artefact
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.visual_words import fit_vocabulary
from ssl_core.ops import images
from ssl_core.tasks.bag_of_words import BagOfWords
from ssl_core.tasks.spatial_bag_of_words import SpatialBagOfWords
from ssl_core.train.checkpoint import save_model
from ssl_core.train.saved_model import load_model

BOTH = ["bag_of_words", "spatial_bag_of_words"]
SPEC = EncoderSpec("resnet18", width=0.125, stem="cifar")


def features(task, pictures: torch.Tensor) -> torch.Tensor:
    """What the teacher says of each place, straight from its artefact: [n, h, w, d]."""
    from ssl_core.nn.frozen import unpack

    teacher = unpack(artefact.load(task.vocabulary), task.field).network
    with torch.no_grad():
        return teacher.stages(pictures)[task.layer].permute(0, 2, 3, 1)


def nearest_words(task, pictures: torch.Tensor) -> list[list[int]]:
    """Image by image, place by place, word by word."""
    words = artefact.load(task.vocabulary)["words"].double()
    return [
        [int(((words - place) ** 2).sum(1).argmin()) for place in maps.flatten(0, 1).double()]
        for maps in features(task, pictures)
    ]


def test_a_bag_counts_the_nearest_words_of_the_undisturbed_image():
    task = small("bag_of_words", cutmix=0.0)
    inputs, _ = task.make_batch(scenes(task, 5), generator())
    assert torch.equal(inputs["originals"], images.normalise(images.resize(scenes(task, 5)["image"], task.size)))
    assert not torch.allclose(inputs["views"], inputs["originals"])
    bags = task.build(SPEC.build)(**inputs).bags
    for bag, found in zip(bags, nearest_words(task, inputs["originals"])):
        assert torch.allclose(bag, torch.bincount(torch.tensor(found), minlength=task.words) / len(found))


def test_a_binary_bag_holds_each_word_once():
    task = small("bag_of_words", cutmix=0.0, binary=True)
    inputs, _ = task.make_batch(scenes(task, 5), generator())
    bags = task.build(SPEC.build)(**inputs).bags
    counted = nearest_words(task, inputs["originals"])
    assert any(len(set(found)) < len(found) for found in counted)
    for bag, found in zip(bags, map(set, counted)):
        assert torch.allclose(bag, torch.tensor([float(word in found) / len(found) for word in range(task.words)]))


@pytest.mark.parametrize("name", BOTH)
def test_k_means_gets_as_many_places_for_each_word_as_the_task_says(name):
    read = []
    for vectors in (8, 100):
        task = type(small(name))(**{**vars(small(name)), "vectors": vectors, "teacher": str(untrained())})
        batches = ((read.append(vectors), scenes(task, 2, seed))[1] for seed in itertools.count())
        artefact.fit_functions(task)["vocabulary"](task, batches, generator())
    places = 2 * features(small(name), small(name).plain(scenes(task, 1)["image"]))[0, ..., 0].numel()
    assert read.count(8) == math.ceil(8 * 12 / places) and read.count(100) == math.ceil(100 * 12 / places)


@pytest.mark.parametrize("name", BOTH)
def test_bags_sum_to_one_whatever_is_pasted(name):
    task = small(name, cutmix=1.0)
    outputs = task.build(SPEC.build)(**task.make_batch(scenes(task, 6), generator())[0])
    assert torch.allclose(outputs.bags.sum(-1), torch.ones(outputs.bags.shape[:-1]), atol=1e-5)
    assert outputs.bags.min() >= 0 and outputs.bags.shape == outputs.logits.shape


def test_a_pasted_image_brings_its_bag_for_its_share_of_the_view():
    task = small("bag_of_words", cutmix=1.0)
    inputs, _ = task.make_batch(scenes(task, 6), generator())
    model = task.build(SPEC.build)
    alone = model.teacher.bags(inputs["originals"])
    own = inputs["own"]
    assert own.min() < 0.9
    expected = [own[i] * alone[i] + (1 - own[i]) * alone[i - 1] for i in range(6)]
    assert torch.allclose(model(**inputs).bags, torch.stack(expected), atol=1e-6)


def test_each_place_of_the_student_gets_the_words_that_the_teacher_sees_there():
    task = small("spatial_bag_of_words", cutmix=0.0, jitter=0.0, grey=0.0, sharpness=1e6)
    inputs, _ = task.make_batch(scenes(task, 3), generator())
    assert torch.equal(inputs["views"], inputs["originals"])  # the same crop
    model = task.build(SPEC.build)
    bags = model(**inputs).bags
    teacher_side = features(task, inputs["originals"]).shape[1]
    side = int(bags.shape[1] ** 0.5)
    cell = teacher_side // side
    for bag, found in zip(bags, nearest_words(task, inputs["originals"])):
        grid = torch.tensor(found).view(teacher_side, teacher_side)
        for place, (row, column) in enumerate(itertools.product(range(side), repeat=2)):
            there = grid[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].flatten()
            assert torch.allclose(bag[place], torch.bincount(there, minlength=task.words) / len(there), atol=1e-4)


def test_a_place_where_another_image_was_pasted_gets_that_image_s_words():
    task = small("spatial_bag_of_words", cutmix=0.0)
    inputs, _ = task.make_batch(scenes(task, 3), generator())
    model = task.build(SPEC.build)
    plain = model(**inputs).bags
    inputs["own"][:, :, :8] = 0
    mixed = model(**inputs).bags
    upper = torch.arange(plain.shape[1]) < plain.shape[1] // 2
    assert torch.allclose(mixed[:, ~upper], plain[:, ~upper], atol=1e-6)
    assert torch.allclose(mixed[:, upper], plain.roll(1, 0)[:, upper], atol=1e-6)


def test_the_border_of_the_teacher_s_map_is_left_out():
    task = small("bag_of_words", border=1)
    inputs, _ = task.make_batch(scenes(task, 2), generator())
    maps = task.build(SPEC.build).teacher.maps(inputs["originals"])
    assert torch.equal(maps, features(task, inputs["originals"])[:, 1:-1, 1:-1])


@pytest.mark.parametrize("name", BOTH)
def test_the_student_becomes_the_teacher_of_the_next_round(name, tmp_path):
    task = small(name)
    torch.manual_seed(3)
    student = task.build(SPEC.build)
    save_model(tmp_path / "model", task, SPEC, student.state_dict())
    following = fitted(type(task)(**{**vars(task), "teacher": str(tmp_path / "model"), "vocabulary": ""}))
    assert following.vocabulary != task.vocabulary
    inputs, _ = following.make_batch(scenes(task, 3), generator())
    taught = following.build(SPEC.build).teacher.frozen.network
    with torch.no_grad():
        assert torch.allclose(taught(inputs["originals"]), student.encoder.eval()(inputs["originals"]), atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_a_saved_student_holds_its_teacher_once(name, tmp_path):
    task = small(name)
    model = task.build(SPEC.build)
    assert not any("teacher" in key for key in model.state_dict())
    assert not any("teacher" in key for key, _ in model.named_parameters())
    save_model(tmp_path / "model", task, SPEC, model.state_dict())
    loaded, again = load_model(tmp_path / "model")
    inputs, _ = task.make_batch(noise(task, 3), generator())
    with torch.no_grad():
        assert loaded == task and torch.equal(again(**inputs).bags, model.eval()(**inputs).bags)


def test_words_are_means_of_what_they_are_nearest_to():
    task = small("bag_of_words")
    raws = [scenes(task, 32, seed) for seed in range(3)]
    made = fit_vocabulary(type(task)(**{**vars(task), "teacher": str(untrained())}), itertools.cycle(raws), generator())
    assert made["words"].shape == (12, 16) and made["spread"] > 0
    seen = torch.cat([features(task, task.plain(raw["image"])) for raw in raws]).flatten(0, 2)
    distance = torch.cdist(seen, made["words"]).square().amin(1).mean()
    single = (seen - seen.mean(0)).square().sum(1).mean()
    assert distance == pytest.approx(made["spread"].item(), rel=0.1) and distance < 0.5 * single


def untrained() -> Path:
    from small_tasks import STORE

    return Path(STORE.name) / "untrained"


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        (BagOfWords, {"words": 1}, "bag_of_words: words must be at least 2"),
        (BagOfWords, {"vectors": 0}, "vectors at least 1"),
        (SpatialBagOfWords, {"vectors": 0}, "vectors at least 1"),
        (BagOfWords, {"min_area": 0}, "min_area is 0"),
        (BagOfWords, {"cutmix": 2}, "cutmix is 2"),
        (BagOfWords, {"shear": 90}, "shear is 90; it must be at least 0"),
        (BagOfWords, {"teacher": "models:/encoder@champion"}, "may become another model under the same run key"),
        (SpatialBagOfWords, {"sharpness": 0}, "sharpness must be above 0"),
        (SpatialBagOfWords, {"max_ratio": 0.5}, "max_ratio is 0.5; it is a factor and must be at least 1"),
        (SpatialBagOfWords, {"blur": -1}, "blur is -1"),
        (SpatialBagOfWords, {"teacher": "models:/encoder@champion"}, "may become another model under the same run key"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(kind, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**fields)


@pytest.mark.parametrize("name", BOTH)
def test_a_vocabulary_of_other_words_or_of_another_layer_is_refused(name):
    task = small(name)
    for changed in ({"words": 13}, {"layer": "stage1"}, {"layer": "stage9"}):
        with pytest.raises(ValueError, match="The vocabulary holds 12 words of 16 numbers"):
            type(task)(**{**vars(task), **changed}).build(SPEC.build)
    with pytest.raises(ValueError, match="no layer 'stage9'; set task"):
        fitted(type(task)(**{**vars(task), "layer": "stage9", "vocabulary": ""}))
