"""The architectures that a recipe can name: one family, one file; `ARCHITECTURES` is the whole list."""

from __future__ import annotations

from collections.abc import Mapping

from ssl_core.nn.encoders.resnet import ResNet
from ssl_core.nn.encoders.vit import ViT

ARCHITECTURES: Mapping[str, type[ResNet] | type[ViT]] = {
    "resnet18": ResNet,
    "resnet50": ResNet,
    "vit_tiny": ViT,
    "vit_small": ViT,
    "vit_base": ViT,
}
"""`EncoderSpec.name` -> encoder class; its `options` names the other fields of a spec that it reads."""
