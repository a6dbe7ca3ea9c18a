"""Decoders: each against the same thing written slowly."""

from __future__ import annotations

import pytest
import torch

from ssl_core.nn.decoders import ChannelwiseLinear, PatchDecoder, PixelDecoder, last_map
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.encoders.vit import sincos_positions
from ssl_core.types import Field


@pytest.mark.parametrize("front", [0, 1])
def test_a_patch_decoder_puts_each_seen_patch_in_its_place(front):
    torch.manual_seed(0)
    decoder = PatchDecoder(12, (3, 4), 5, width=16, depth=2, heads=2)
    encoded = torch.randn(2, front + 3, 12)
    seen = torch.tensor([[7, 0, 4], [11, 2, 3]])
    out = decoder(encoded, seen)
    assert out.shape == (2, 12, 5)
    positions = sincos_positions(16, 3, 4)
    for vectors, places, got in zip(encoded, seen.tolist(), out, strict=True):
        sequence = [decoder.hidden[0, 0] + positions[place] for place in range(12)]
        for vector, place in zip(vectors[front:], places, strict=True):
            sequence[place] = decoder.embed(vector) + positions[place]
        tokens = torch.stack([decoder.embed(vector) for vector in vectors[:front]] + sequence)[None]
        slowly = decoder.predict(decoder.blocks(tokens))[0, front:]
        torch.testing.assert_close(got, slowly)


@pytest.mark.parametrize(("side", "size"), [(7, 224), (1, 16), (3, 96), (1, 20), (8, 8), (4, 6)])
def test_a_pixel_decoder_reaches_any_size(side, size):
    decoder = PixelDecoder(40, side, size)
    assert decoder(torch.randn(2, 40, side, side)).shape == (2, 3, size, size)


def test_a_pixel_decoder_keeps_places():
    """A change in one corner of the map changes that corner of the picture and nothing far from it."""
    torch.manual_seed(0)
    decoder, maps = PixelDecoder(16, 4, 32).eval(), torch.randn(1, 16, 4, 4)
    changed = maps.clone()
    changed[:, :, 0, 3] += 1
    difference = (decoder(changed) - decoder(maps)).abs().amax((0, 1))
    assert difference[:8, -8:].min() > 0 and difference[16:].max() == difference[:, :16].max() == 0


def test_the_last_map_is_measured_without_a_trace():
    encoder = EncoderSpec("resnet18", width=0.25)
    model = encoder.build(Field("image", (3, 64, 64)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert last_map(model, (3, 64, 64)) == (128, 2)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_channelwise_layer_mixes_the_places_of_each_channel_alone():
    torch.manual_seed(0)
    layer, maps = ChannelwiseLinear(3, 2), torch.randn(5, 3, 2, 2)
    out = layer(maps)
    for sample in range(5):
        for channel in range(3):
            places = maps[sample, channel].flatten() @ layer.weight[channel] + layer.bias[channel]
            torch.testing.assert_close(out[sample, channel].flatten(), places)
