"""Evaluating an encoder: never by its pretext loss, always beside its untrained network and the raw input.

    model, train split, test split -> features of every layer -> probes -> Evaluation (JSON) and Evidence (for figures)

The best layer is chosen by leave-one-out kNN on the training split, so the choice never uses the test split.
Without a labelled set only the label-free measures remain: RankMe, alignment, uniformity and the collapse gate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.evaluation.factors import FactorTable, match_factors, score_factors
from components.evaluation.features import (
    Features,
    Ids,
    Split,
    batches,
    encoder_layers,
    labelled,
    random_subset,
    read_images,
    represent,
    uris,
)
from components.evaluation.metrics import ALIGNMENT, KNN, LINEAR, LOSS, RANK_ME, UNIFORMITY, k_shot
from components.evaluation.notes import notes
from components.evaluation.references import ENCODER, RANDOM, raw_input
from components.evaluation.result import Correct, Evaluation, Pretext, Row, best_row
from ssl_core.data.shards import class_names
from ssl_core.errors import InputError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.probes.intervals import Interval, normal_mean, over_draws, wilson
from ssl_core.probes.knn import knn, leave_one_out, neighbours
from ssl_core.probes.linear import draw_shots, few_shot, linear_probe
from ssl_core.probes.rank import alignment, collapse, rank_me, uniformity
from ssl_core.task import PretextTask, TaskModel
from ssl_core.types import Panel, Raw, media

Pictures = npt.NDArray[np.uint8]
_PRETEXT_BATCH = 256  # fixed, since a contrastive task is harder in a larger batch


@dataclass(frozen=True)
class Settings:
    """How the probes are run.

    Attributes:
        draws: draws of labels for each k-shot probe, at most 255.
        shots: labels per class, a k-shot probe for each number.
        neighbours: k of kNN.
        temperature: of kNN's votes.
        holdout: share of the training split on which the linear probe's strength is chosen.
        most: labelled samples used of each split, a random choice if there are more.
        views: samples that alignment is measured on.
        seed: of every choice above.
        batch_size: samples in a forward pass.
    """

    draws: int = 20
    shots: tuple[int, ...] = (1, 5)
    neighbours: int = 20
    temperature: float = 0.07
    holdout: float = 0.2
    most: int = 100_000
    views: int = 2048
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.draws <= 255:
            raise InputError(f"evaluate: draws is {self.draws}; it must be between 2 and 255.")
        if min(self.neighbours, self.most, self.views, self.batch_size, *self.shots) < 1:
            raise InputError("evaluate: neighbours, shots, most, views and batch_size must be at least 1.")
        if not 0 < self.holdout < 1 or self.temperature <= 0:
            raise InputError("evaluate: holdout must be between 0 and 1, and temperature above 0.")


@dataclass(frozen=True)
class Evidence:
    """What the figures are drawn from; pictures are [n, h, w, 3].

    Attributes:
        layer: the best layer.
        features: [m, d] of up to 1,000 test samples.
        labels: of those samples; empty without labels.
        queries: test pictures.
        neighbours: [queries, 5] pictures of each query's nearest training samples, nearest first.
        captions: query and neighbours -> label, or cosine without labels.
        panel: what the pretext task saw and answered on test samples.
    """

    layer: str
    features: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    queries: Pictures
    neighbours: Pictures
    captions: tuple[tuple[str, ...], ...]
    panel: Panel


@dataclass(frozen=True)
class _Labels:
    """Class indices of both splits on the device, and the draws that all representations share."""

    names: tuple[str, ...]
    train: Tensor
    test: Tensor
    draws: Mapping[int, Tensor]


def untrained(task: PretextTask, encoder: EncoderSpec, seed: int) -> TaskModel:
    """The model with exactly the weights that a run with this seed starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build(encoder.build)


def evaluate(
    task: PretextTask,
    model: TaskModel,
    start: TaskModel,
    train: Split,
    test: Split | None = None,
    settings: Settings | None = None,
    device: torch.device | str | None = None,
    factors: FactorTable | None = None,
) -> tuple[Evaluation, Evidence]:
    """Evaluate `model` beside `start`, its untrained network (see `untrained`), and the raw input of its modality.

    train, test: labelled corpora. Without `test`, train may be any corpus and only label-free measures are taken.
    device: the GPU if there is one, else the CPU.
    factors: of the samples of both splits; each is read from every layer.

    Raises:
        InputError: the labelled corpora cannot be used: too few classes, or classes that only the test split has.
        FactorsError: samples have no factors, or a factor does not vary.
    """
    settings = settings or Settings()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    splits, ids, labels = _choose(train, test, settings, where)
    targets = match_factors(factors, *(uris(*part) for part in zip(splits, ids))) if factors else None
    models = {ENCODER: encoder_layers(model.to(where)), RANDOM: encoder_layers(start.to(where))}
    raw = raw_input(task.sample)
    if raw:
        models[raw.name] = raw.features
    features = [
        represent(models, _read(task, split, some_ids, settings, where), media(task.sample), settings.views)
        for split, some_ids in zip(splits, ids)
    ]
    if raw:
        features[0][raw.name], features[1][raw.name] = raw.condense(*(part[raw.name] for part in features))
    rows, right = _rows(features[0], features[1], labels, settings)
    rows, known = score_factors(rows, features[0], features[1], targets, settings.seed) if targets else (rows, {})
    chosen = best_row(rows, ENCODER)
    assert chosen is not None
    best = chosen.layer
    pretext, panel = _pretext(task, model, splits, ids[1], settings, where)
    layer = features[1][ENCODER].layers[best]
    gate = collapse(layer)
    evaluation = Evaluation(
        rows=tuple(rows),
        best=best,
        samples={"train": len(ids[0]), "test": len(ids[1])},
        classes=labels.names if labels else (),
        evaluation_set=evaluation_set(train, test, settings, factors),
        settings={key: value for key, value in asdict(settings).items() if key != "batch_size"},
        pretext=pretext,
        collapse=gate.reason,
        notes=tuple(notes(rows, pretext, known, test is not None)),
        correct={probe: Correct.of(value) for probe, value in right.get(best, {}).items()},
        factors=known,
        corpora={"train": train.corpus} | ({"test": test.corpus} if test else {}),
    )
    return evaluation, _evidence(task, splits, ids, features, labels, best, panel)


def _read(task: PretextTask, split: Split, ids: Ids, settings: Settings, device: torch.device) -> Iterator[Raw]:
    return batches(split, media(task.sample), ids, settings.batch_size, device)


def _choose(
    train: Split, test: Split | None, settings: Settings, device: torch.device
) -> tuple[tuple[Split, Split], tuple[Ids, Ids], _Labels | None]:
    """Splits, ids and labels. Without a test split, a random subset of `train` is halved into both parts."""
    if test is None:
        chosen = random_subset(np.arange(len(train.shards), dtype=np.int64), min(settings.most, 20_000), settings.seed)
        return (train, train), (chosen[::2], chosen[1::2] if len(chosen) > 1 else chosen), None
    (train_ids, train_labels), (test_ids, test_labels) = (
        labelled(split, settings.most, settings.seed) for split in (train, test)
    )
    names = class_names(train_labels)
    _check_labels(names, test_labels)
    place = {name: index for index, name in enumerate(names)}
    train_y, test_y = (torch.tensor([place[name] for name in split]) for split in (train_labels, test_labels))
    draws = {k: draw_shots(train_y, len(names), k, settings.draws, settings.seed) for k in settings.shots}
    return (train, test), (train_ids, test_ids), _Labels(names, train_y.to(device), test_y.to(device), draws)


def _check_labels(names: tuple[str, ...], test_labels: list[str]) -> None:
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise InputError(
            f"The labelled training corpus has {found} as a label; evaluating needs at least two classes. "
            "Ingest it with labels, for example from one folder per class, or evaluate without a labelled set."
        )
    if not test_labels:
        raise InputError("The labelled test corpus has no labelled sample; ingest it with labels.")
    unknown = sorted(set(test_labels) - set(names))
    if unknown:
        raise InputError(
            f"The labelled test corpus has the class {unknown[0]!r} ({len(unknown)} such), which the training corpus "
            "lacks, so no probe can predict it; add samples of it to the training corpus or leave it out."
        )


def _rows(
    train: Mapping[str, Features], test: Mapping[str, Features], labels: _Labels | None, settings: Settings
) -> tuple[list[Row], dict[str, dict[str, Tensor]]]:
    """All rows, and which test samples each probe classified rightly: the encoder's layer -> probe -> [draws, m]."""
    rows, right = [], {}
    for source in train:
        for layer, x in train[source].layers.items():
            test_x, view = test[source].layers[layer], test[source].views.get(layer)
            correct = _probe(x, test_x, labels, settings) if labels else {}
            loo = _leave_one_out(x, labels, settings) if labels else None
            rows.append(Row(source, layer, x.shape[1], _scores(correct), _measures(test_x, view), loo))
            if source == ENCODER:
                right[layer] = correct
    return rows, right


def _probe(x: Tensor, test_x: Tensor, labels: _Labels, settings: Settings) -> dict[str, Tensor]:
    """Probe name -> [draws, m] bool, right or not."""
    n = len(labels.names)
    linear = linear_probe(x, labels.train, test_x, classes=n, holdout=settings.holdout, seed=settings.seed).predictions
    near = knn(x, labels.train, test_x, classes=n, k=settings.neighbours, temperature=settings.temperature)
    answers = {LINEAR.key: linear[None], KNN.key: near[None]}
    for shots, chosen in labels.draws.items():
        answers[k_shot(shots).key] = few_shot(x, labels.train, test_x, chosen, classes=n)
    return {name: answer == labels.test for name, answer in answers.items()}


def _leave_one_out(x: Tensor, labels: _Labels, settings: Settings) -> float:
    right = leave_one_out(
        x, labels.train, classes=len(labels.names), k=settings.neighbours, temperature=settings.temperature
    )
    return float(right.double().mean())


def _scores(correct: Mapping[str, Tensor]) -> dict[str, Interval]:
    """One draw: Wilson's interval over test samples. Several: Student's over draws, within [0, 1]."""
    scores = {}
    for name, right in correct.items():
        found = wilson(int(right.sum()), right.shape[1]) if len(right) == 1 else over_draws(right.double().mean(1))
        scores[name] = Interval(found.mean, max(0.0, found.low), min(1.0, found.high))
    return scores


def _measures(x: Tensor, view: Tensor | None) -> dict[str, float]:
    measures = {RANK_ME.key: rank_me(x)}
    if view is not None:
        measures[ALIGNMENT.key] = alignment(x[: len(view)], view)
    if len(x) > 1:
        measures[UNIFORMITY.key] = uniformity(x)
    return measures


@torch.no_grad()
def _pretext(
    task: PretextTask,
    model: TaskModel,
    splits: tuple[Split, Split],
    ids: Ids,
    settings: Settings,
    device: torch.device,
) -> tuple[dict[str, Pretext], Panel]:
    """The task's own metrics on samples of the test split, in whole batches, and a panel of the first batch."""
    rng = torch.Generator(device).manual_seed(settings.seed)
    ids = random_subset(ids, settings.views, settings.seed)
    size = min(_PRETEXT_BATCH, len(ids))
    values: dict[str, list[Tensor]] = {}
    panel = None
    comparable = _comparable(task, splits)
    for raw in batches(splits[1], task.sample, ids[: len(ids) // size * size], size, device):
        inputs, targets = task.make_batch(raw, rng)
        outputs = model(**inputs)
        if comparable:
            losses, metrics = task.loss(outputs, targets)
            for name, value in {LOSS.key: losses, **metrics}.items():
                values.setdefault(name, []).append(value.float().cpu())
        panel = panel or task.show(inputs, outputs, targets)
    assert panel is not None
    chance = task.chance(size)
    return {name: Pretext(*normal_mean(torch.cat(value)), chance.get(name)) for name, value in values.items()}, panel


def _comparable(task: PretextTask, splits: tuple[Split, Split]) -> bool:
    """Whether an answer of the task means the same on the test split as in training.

    The number of a sample does not. That of a class does if both splits have the same classes, as many as the task.
    """
    kinds = {field.modality: field.limit for field in task.sample.values()}
    if "label" in kinds:
        here, there = (split.shards.classes.names for split in splits)
        return here == there and len(here) == kinds["label"]
    return "index" not in kinds


def evaluation_set(train: Split, test: Split | None, settings: Settings, factors: FactorTable | None = None) -> str:
    """Hash of all that the scores depend on, apart from the encoder."""
    splits = (train, test or train)
    fixed = {key: value for key, value in asdict(settings).items() if key != "batch_size"}
    known = [factors.digest] if factors else []
    text = json.dumps([[split.corpus.digest for split in splits], fixed, *known], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _evidence(
    task: PretextTask,
    splits: tuple[Split, Split],
    ids: tuple[Ids, Ids],
    features: list[dict[str, Features]],
    labels: _Labels | None,
    best: str,
    panel: Panel,
) -> Evidence:
    keys, x = features[0][ENCODER].layers[best], features[1][ENCODER].layers[best]
    rows = _spread_over_classes(labels.test if labels else None, len(x))
    found = neighbours(x[rows], keys, 5)
    names = [labels.names[i] for i in labels.test.tolist()] if labels else []
    captions = [
        (
            names[row] if labels else "",
            *(labels.names[int(labels.train[i])] if labels else f"{s:.2f}" for i, s in zip(*near)),
        )
        for row, near in zip(rows.tolist(), zip(found.ids.tolist(), found.similarity.tolist()))
    ]
    pictures = read_images(splits[0], task.sample, ids[0][found.ids.flatten().cpu().numpy()].tolist())
    shown = random_subset(np.arange(len(x), dtype=np.int64), 1000, 0)
    return Evidence(
        layer=best,
        features=x[torch.from_numpy(shown).to(x.device)].cpu().numpy(),
        labels=tuple(names[i] for i in shown) if labels else (),
        queries=read_images(splits[1], task.sample, ids[1][rows.cpu().numpy()].tolist()),
        neighbours=pictures.reshape(*found.ids.shape, *pictures.shape[1:]),
        captions=tuple(captions),
        panel=panel,
    )


def _spread_over_classes(labels: Tensor | None, n: int, most: int = 8) -> Tensor:
    """Rows to show: the first test sample of each of the first classes; without labels, rows at equal distances."""
    if labels is None:
        return torch.linspace(0, n - 1, min(n, most)).long()
    firsts = [torch.nonzero(labels == label)[0, 0] for label in sorted(set(labels.tolist()))[:most]]
    return torch.stack(firsts)
