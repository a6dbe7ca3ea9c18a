"""The alias `champion` under promoters that race."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.registry.champion import LEASE, champion_of, model_lock, promote, set_champion
from components.storage.locks import Busy
from components.tracking.store import connect_tracking
from ssl_core.probes.intervals import Interval


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    connect_tracking(uri)
    return uri


def versions(client: MlflowClient, name: str, count: int) -> list[int]:
    client.create_registered_model(name)
    return [int(client.create_model_version(name, f"file:///m/{i}").version) for i in range(count)]


def sure(gain: float) -> Interval:
    return Interval(gain, gain - 0.1, gain + 0.1)


def test_of_promoters_that_race_the_best_version_stays(store: str) -> None:
    client, _ = connect_tracking(store)
    for round_ in range(6):
        name = f"race-{round_}"
        numbers = versions(client, name, 4)
        quality = {number: random.Random(round_ * 10 + number).random() * 100 for number in numbers}

        def run(version: int, name: str = name, quality: dict[int, float] = quality) -> None:
            def gain_over(champion: int) -> Interval:
                time.sleep(random.uniform(0, 0.05))  # evaluating takes its time, and the champion may change meanwhile
                return sure(quality[version] - quality[champion])

            promote(connect_tracking(store)[0], store, name, version, gain_over)

        threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert champion_of(client, name) == max(numbers, key=lambda number: quality[number])


def test_a_promoter_that_evaluated_against_a_past_champion_changes_nothing(store: str) -> None:
    client, _ = connect_tracking(store)
    one, two, three = versions(client, "past", 3)
    assert champion_of(client, "past") is None and champion_of(client, "no such model") is None
    assert set_champion(client, store, "past", one, None)
    assert set_champion(client, store, "past", two, one)
    assert not set_champion(client, store, "past", three, one)
    assert champion_of(client, "past") == two


def test_the_champion_is_evaluated_again_where_it_changed_meanwhile(store: str) -> None:
    client, _ = connect_tracking(store)
    one, two, three = versions(client, "meanwhile", 3)
    set_champion(client, store, "meanwhile", one, None)
    evaluated: list[int] = []

    def gain_over(champion: int) -> Interval:
        evaluated.append(champion)
        if champion == one:
            set_champion(client, store, "meanwhile", two, one)
        return sure(5.0 if champion == one else -5.0)

    decision = promote(client, store, "meanwhile", three, gain_over)
    assert evaluated == [one, two] and decision.verdict == "keep" and champion_of(client, "meanwhile") == two


def test_on_a_server_a_lease_admits_one_and_outlives_no_dead_holder(store: str) -> None:
    """The lease is a registered model; SQLite keeps it like a server, only its URI would have chosen a file."""
    client, _ = connect_tracking(store)
    first = model_lock(client, "https://server", "leased")
    second = model_lock(client, "https://server", "leased", wait=0.3)
    with first, pytest.raises(Busy, match="leased"), second:
        pass
    with model_lock(client, "https://server", "leased", wait=0.3):
        pass
    client.create_registered_model("leased.promotion", tags={LEASE: f"dead {time.time() - 1:.0f}"})
    with model_lock(client, "https://server", "leased", wait=5.0):
        pass
    assert not [model.name for model in client.search_registered_models() if model.name.startswith("leased")]


def test_lock_files_lie_beside_the_database(store: str) -> None:
    client, _ = connect_tracking(store)
    with model_lock(client, store, "a model"):
        assert list(Path(store.removeprefix("sqlite:///")).parent.glob("*a model.lock"))
