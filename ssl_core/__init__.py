"""The learning: tasks, networks, the training loop and the probes, on torch and numpy alone.

The public names of the library; each is imported when it is first used:

    from ssl_core import knn, load_model, rank_me
    task, model = load_model(Path("run/model"))     # in eval mode
    layers = model.represent({"image": images})     # uint8 [n, 3, h, w] -> layer name -> [n, d]
    predicted = knn(layers["stage4"], labels, other, classes=10)

`import ssl_core` itself imports nothing, so that the decoder's child process starts without torch. Type checkers read
the names in `__init__.pyi`: imports here, even for type checkers alone, would make every module depend on them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

PUBLIC = {
    "TASKS": "ssl_core.tasks",
    "EncoderSpec": "ssl_core.nn.encoders.spec",
    "Folder": "ssl_core.train.loop",
    "Optim": "ssl_core.train.run",
    "PretextTask": "ssl_core.task",
    "Run": "ssl_core.train.run",
    "Runtime": "ssl_core.train.run",
    "Shards": "ssl_core.data.shards",
    "TaskModel": "ssl_core.task",
    "Train": "ssl_core.train.run",
    "knn": "ssl_core.probes.knn",
    "linear_probe": "ssl_core.probes.linear",
    "load_model": "ssl_core.train.saved_model",
    "pretrain": "ssl_core.train.loop",
    "rank_me": "ssl_core.probes.rank",
    "save_model": "ssl_core.train.checkpoint",
    "write_shard": "ssl_core.data.shards",
}
"""Name -> the module that it is defined in."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'ssl_core' has no attribute {name!r}; public names: {', '.join(PUBLIC)}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
