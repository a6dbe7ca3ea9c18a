"""Encoders, built by one factory: `EncoderSpec(...).build(field)`.

EncoderSpec (frozen; travels in recipes and checkpoints) + Field (what the reader delivers) -> Encoder
"""

from ssl_core.nn.encoders.encoder import Encoder
from ssl_core.nn.encoders.spec import EncoderSpec

__all__ = ["Encoder", "EncoderSpec"]
