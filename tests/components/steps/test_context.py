"""What a run is: pinned to corpora as they are, named by its key, found again under another recipe's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_corpus import make_corpus

from components.cluster.connect import Cluster
from components.corpus import delta
from components.corpus.corpus import CorpusError
from components.evaluation.evaluate import Settings
from components.steps.context import CorpusSpec, RunSpec, StepError, resolve
from components.training.run_folder import MODEL
from ssl_core.data.decode import Limits, SampleFormat
from ssl_core.folder import write_folder
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.tasks.rotation import Rotation
from ssl_core.train.run import Run


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    make_corpus(tmp_path / "corpus")
    return RunSpec(
        name="turned",
        task_name="rotation",
        run=Run(Rotation(canvas=16), EncoderSpec("resnet18")),
        corpus=CorpusSpec(str(tmp_path / "corpus")),
        probe_train=CorpusSpec(str(tmp_path / "labelled")),
        probe_test=None,
        sample_format=SampleFormat(size=16),
        limits=Limits(),
        settings=Settings(),
        cluster=Cluster(storage=str(tmp_path / "runs")),
    )


def give_model(folder: str) -> None:
    write_folder(Path(folder) / MODEL, {}, {"config.json": {}})


def test_a_run_is_pinned_to_the_version_that_is_there_and_a_later_one_is_another_run(
    spec: RunSpec, tmp_path: Path
) -> None:
    first = resolve(spec)
    assert (first.corpus.version, first.corpus.samples) == (1, 64)
    assert first.name == f"turned-{first.key[:10]}" and first.folder.uri == f"{tmp_path}/runs/{first.name}"
    table = delta.open_table(str(tmp_path / "corpus"))
    assert table is not None
    shard = tmp_path / "corpus" / "ingest-1" / "part-fedcba9876543210.parquet"
    shard.parent.mkdir()
    shard.write_bytes((tmp_path / "corpus" / "ingest-0" / "part-0123456789abcdef.parquet").read_bytes())
    delta.append(table, [delta.DataFile(f"ingest-1/{shard.name}", 64, shard.stat().st_size)], {})
    later = resolve(spec)
    assert (later.corpus.version, later.corpus.samples) == (2, 128) and later.key != first.key
    pinned = resolve(replace(spec, corpus=replace(spec.corpus, version=1)))
    assert pinned == replace(first, spec=pinned.spec)


def test_a_probe_s_corpus_that_is_not_there_stops_no_training_and_that_of_the_training_does(
    spec: RunSpec, tmp_path: Path
) -> None:
    assert resolve(spec).probe_train is None
    labelled = make_corpus(tmp_path / "labelled")
    assert resolve(spec).probe_train == labelled.pinned()
    with pytest.raises(CorpusError, match="There is no corpus at"):
        resolve(replace(spec, corpus=CorpusSpec(str(tmp_path / "absent"))))


def test_a_renamed_recipe_keeps_its_run(spec: RunSpec) -> None:
    first = resolve(spec)
    give_model(first.folder.uri)
    renamed = resolve(replace(spec, name="round"))
    assert (renamed.name, renamed.trained) == (first.name, True)


def test_a_run_of_other_settings_is_named_with_the_command_that_uses_it(spec: RunSpec) -> None:
    first, other = resolve(spec), resolve(replace(spec, cluster=replace(spec.cluster, workers=2)))
    assert first.trained_otherwise() == "" and first.key != other.key
    with pytest.raises(StepError, match=rf"^run {other.name} has no trained model; `pretext pretrain` comes first$"):
        other.require_model()
    give_model(first.folder.uri)
    command = f"`pretext embed --model {first.folder.uri}/model SOURCE -o OUT` uses it as it is"
    with pytest.raises(StepError, match=f"{first.name} was trained with another recipe") as told:
        other.require_model()
    assert command in str(told.value)
    first.require_model()
