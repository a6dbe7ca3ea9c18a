"""The alias `champion`, moved by compare-and-set, although MLflow itself overwrites an alias blindly.

A promoter may write only while it holds the model's lock and the champion is still the one that it was evaluated
against; afterwards it reads the alias back. The lock is a file beside an embedded database. On a server it is a
registered model named <name>.promotion: creating it succeeds for one client only, and its tag has the time after which
others may delete it.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.registry.promotion import Gain, Promotion, promotion
from components.storage.locks import Busy, exclusive

CHAMPION = "champion"
LEASE_SECONDS = 60.0
LEASE = "pretext.lease"
ALREADY_EXISTS = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")
MISSING = "RESOURCE_DOES_NOT_EXIST"
ATTEMPTS = 5


def champion_of(client: MlflowClient, name: str) -> int | None:
    """The version that is the champion; None if there is none, or no such model."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == MISSING:
            return None
        raise
    return int(aliases[CHAMPION]) if CHAMPION in aliases else None


def set_champion(client: MlflowClient, uri: str, name: str, version: int, expected: int | None) -> bool:
    """Makes `version` the champion if `expected` still is; False if another promoter was faster: nothing is changed."""
    with model_lock(client, uri, name):
        if champion_of(client, name) != expected:
            return False
        client.set_registered_model_alias(name, CHAMPION, str(version))
        return champion_of(client, name) == version


def promote(
    client: MlflowClient,
    uri: str,
    name: str,
    version: int,
    gain_over: Callable[[int], Gain | None],
    *,
    margin: float = 0.0,
    collapse: str = "",
) -> Promotion:
    """Decides by `components.registry.promotion` and acts on it; decides again if the champion changes meanwhile.

    `gain_over(champion)`: the gain of `version` over that version; None if it was not measured.
    """
    for _ in range(ATTEMPTS):
        champion = champion_of(client, name)
        measured = champion is not None and champion != version and not collapse
        gain = gain_over(champion) if measured and champion is not None else None
        decision = promotion(version, champion, gain, margin, collapse)
        if not decision.promoted or set_champion(client, uri, name, version, champion):
            return decision
    return Promotion(
        "keep", f"the champion changed {ATTEMPTS} times while this version was evaluated; register it again"
    )


@contextlib.contextmanager
def model_lock(
    client: MlflowClient, uri: str, name: str, wait: float = 900.0, lease: float = LEASE_SECONDS
) -> Iterator[None]:
    """One writer of the model's versions and aliases at a time; raises Busy after `wait` seconds.

    `lease`: seconds after which others may take this holder for dead (only on a server; a file lock is released).
    """
    if uri.startswith("sqlite"):
        database = Path(uri.split(":///", 1)[1])
        with exclusive(database.with_name(f"{database.name}.{name.replace('/', '_')}.lock"), wait):
            yield
        return
    owner = _acquire_lease(client, f"{name}.promotion", wait, lease)
    try:
        yield
    finally:
        _release(client, f"{name}.promotion", owner)


def _acquire_lease(client: MlflowClient, lease: str, wait: float, seconds: float) -> str:
    owner, deadline = uuid.uuid4().hex, time.monotonic() + wait
    while time.monotonic() < deadline:
        try:
            client.create_registered_model(lease, tags={LEASE: f"{owner} {time.time() + seconds:.0f}"})
            return owner
        except MlflowException as error:
            if error.error_code not in ALREADY_EXISTS:
                raise
        if _holder(client, lease)[1] < time.time():  # its holder died
            _delete(client, lease)
        time.sleep(random.uniform(0.05, 0.3))
    raise Busy(
        f"the model lease {lease} has been held for {wait:.0f} s; delete that registered model if nobody uses it"
    )


def _holder(client: MlflowClient, lease: str) -> tuple[str, float]:
    """Owner and end of a lease; one that has just disappeared never ends, so that its successor's is not deleted."""
    try:
        owner, _, until = str(client.get_registered_model(lease).tags.get(LEASE, " 0")).partition(" ")
    except MlflowException:
        return "", float("inf")
    return owner, float(until)


def _release(client: MlflowClient, lease: str, owner: str) -> None:
    if _holder(client, lease)[0] == owner:
        _delete(client, lease)


def _delete(client: MlflowClient, lease: str) -> None:
    with contextlib.suppress(MlflowException):
        client.delete_registered_model(lease)
