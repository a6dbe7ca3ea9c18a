"""What tests share: one Ray, one S3, a home for each test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; small tensors lose by being shared out


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretext home of the test's own; tracking and clusters of the developer's shell are out of reach."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PRETEXT_HOME", str(folder))
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def s3_environment() -> str:
    """Endpoint and credentials in the environment, set before Ray starts: its workers inherit them then or never."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint,
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )
    return endpoint


@pytest.fixture(scope="session")
def s3(s3_environment: str) -> Iterator[str]:
    """Endpoint of a real S3-compatible server."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port = s3_environment.removeprefix("http://").split(":")
    server = ThreadedMotoServer(ip_address=host, port=int(port), verbose=False)
    server.start()
    yield s3_environment
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_environment: str) -> Iterator[None]:
    """A local Ray of two CPUs, started once; code that calls `components.cluster.connect.connect` joins it."""
    from components.cluster import connect as cluster  # sets what Ray reads at import

    with cluster.connect():
        yield
