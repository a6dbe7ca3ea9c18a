"""Encoders: published parameter counts, shapes from shallow to deep, and what each setting promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.encoders.resnet import Residual
from ssl_core.nn.encoders.vit import Attention, DropPath, ViT, sincos_positions
from ssl_core.types import Field

COLOUR = Field("image", (3, 224, 224))
SMALL = Field("image", (3, 32, 32))
SPECS = {
    "resnet18": EncoderSpec("resnet18", width=0.125, stem="cifar"),
    "resnet18-group": EncoderSpec("resnet18", width=0.25, norm="group"),
    "resnet50-none": EncoderSpec("resnet50", width=0.125, stem="cifar", norm="none"),
    "vit-cls": EncoderSpec("vit_tiny", width=0.25, patch=8),
    "vit-mean-sincos": EncoderSpec("vit_tiny", width=0.25, patch=8, positions="sincos", pool="mean"),
    "vit-without-positions": EncoderSpec("vit_tiny", width=0.25, patch=8, positions="none"),
}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11_176_512),
        ("resnet50", 23_508_032),
        ("vit_tiny", 5_524_416),
        ("vit_small", 21_665_664),
        ("vit_base", 85_798_656),
    ],
)
def test_parameter_counts_are_the_published_ones(name, published):
    with torch.device("meta"):
        encoder = EncoderSpec(name).build(COLOUR)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == published


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_stages_run_from_shallow_to_deep_and_layers_end_in_forward(spec):
    encoder = spec.build(SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        stages, layers, pooled = encoder.stages(x), encoder.layers(x), encoder(x)
    assert list(stages) == list(encoder.dims)
    assert [maps.shape[:2] for maps in stages.values()] == [(2, dim) for dim in encoder.dims.values()]
    areas = [math.prod(maps.shape[2:]) for maps in stages.values()]
    assert areas == sorted(areas, reverse=True)
    assert pooled.shape == (2, encoder.dim)
    torch.testing.assert_close(list(layers.values())[-1], pooled)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_bf16_autocast_in_channels_last_reaches_every_parameter(spec):
    encoder = spec.build(SMALL).to(memory_format=torch.channels_last)
    for parameter in encoder.parameters():  # a branch that starts at zero gives its depth no gradient
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = encoder(x)
    (pooled.float() * torch.randn(encoder.dim)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_resnet_keeps_channels_last_through_its_stages():
    encoder = EncoderSpec("resnet18", width=0.25, stem="cifar").build(SMALL).to(memory_format=torch.channels_last)
    maps = encoder.stages(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))["stage3"]
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_width_scales_all_channels_and_the_field_gives_the_input_channels():
    encoder = EncoderSpec("resnet18", width=0.25, stem="cifar").build(Field("image", (1, 28, 28)))
    assert list(encoder.dims.values()) == [16, 32, 64, 128] and encoder.dim == 128
    assert encoder(torch.randn(2, 1, 28, 28)).shape == (2, 128)
    assert EncoderSpec("vit_tiny", width=0.5).build(COLOUR).dim == 96


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_a_task_may_ask_for_half_the_width(name):
    asked, given = EncoderSpec(name, width=0.5).build(COLOUR, width=0.5), EncoderSpec(name, width=0.25).build(COLOUR)
    assert asked.dims == given.dims and asked.dim == given.dim


def test_the_imagenet_stem_shrinks_the_input_four_times_and_the_cifar_stem_keeps_it():
    x = torch.randn(1, 3, 64, 64)
    sides = {
        stem: EncoderSpec("resnet18", width=0.125, stem=stem).build(SMALL).stages(x)["stage1"].shape[-1]
        for stem in ("imagenet", "cifar")
    }
    assert sides == {"imagenet": 16, "cifar": 64}


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_zero_init_makes_every_residual_block_start_as_its_shortcut(norm):
    encoder = EncoderSpec("resnet18", width=0.125, stem="cifar", norm=norm).build(SMALL)
    for block in (module for module in encoder.modules() if isinstance(module, Residual)):
        channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
        x = torch.randn(3, channels, 6, 6)
        torch.testing.assert_close(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize(("norm", "leaks"), [("batch", True), ("group", False), ("none", False)])
def test_only_batch_norm_leaks_between_the_samples_of_a_batch(norm, leaks):
    encoder = EncoderSpec("resnet18", width=0.125, stem="cifar", norm=norm, zero_init=False).build(SMALL)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        together, apart = encoder(x)[:2], encoder(x[:2])
    assert (not torch.allclose(together, apart, atol=1e-4)) == leaks


def test_a_resnet_without_norm_keeps_its_activations_in_range_at_full_depth():
    encoder = EncoderSpec("resnet50", width=0.125, norm="none", zero_init=False).build(SMALL)
    with torch.no_grad():
        maps = encoder.stages(torch.randn(2, 3, 64, 64))
    assert all(0.01 < float(stage.std()) < 100 for stage in maps.values())


def test_a_vit_encodes_any_subset_of_its_tokens():
    encoder = EncoderSpec("vit_tiny", width=0.25, patch=8).build(SMALL).eval()
    assert isinstance(encoder, ViT)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = encoder.tokens(x)
        assert tokens.shape == (2, 16, encoder.dim)
        assert encoder.encode(tokens[:, ::4]).shape == (2, 1 + 4, encoder.dim)
        shuffled = encoder.encode(tokens[:, torch.randperm(16)])
        torch.testing.assert_close(shuffled[:, 0], encoder(x), atol=1e-5, rtol=1e-5)


def test_attention_looks_at_the_first_rows_only_where_it_is_told_so():
    torch.manual_seed(0)
    attention, x = Attention(12, heads=2), torch.randn(3, 7, 12)
    query, key, value = (part.view(3, 7, 2, 6).transpose(1, 2) for part in attention.qkv(x).chunk(3, 2))
    for seen, columns in ((4, 4), (None, 7)):
        shares = (query @ key[:, :, :columns].mT / 6**0.5).softmax(-1)
        slowly = attention.proj((shares @ value[:, :, :columns]).transpose(1, 2).reshape(3, 7, 12))
        torch.testing.assert_close(attention(x, seen), slowly, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("positions", "matters"), [("learned", True), ("sincos", True), ("none", False)])
def test_without_positions_a_vit_cannot_tell_where_a_patch_was(positions, matters):
    spec = EncoderSpec("vit_tiny", width=0.25, patch=8, positions=positions, pool="mean")
    encoder = spec.build(SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        moved = encoder(x.roll(8, 3)) - encoder(x)
    assert (float(moved.abs().max()) > 1e-4) == matters


@pytest.mark.parametrize("positions", ["learned", "sincos", "none"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_vit_takes_inputs_larger_than_it_was_built_for(positions, pool):
    encoder = EncoderSpec("vit_tiny", width=0.25, patch=8, positions=positions, pool=pool).build(SMALL)
    x = torch.randn(1, 3, 48, 40)
    assert encoder(x).shape == (1, encoder.dim)
    assert encoder.stages(x)["block12"].shape == (1, encoder.dim, 6, 5)


def test_sincos_positions_follow_the_formula():
    dim, row, column = 16, 2, 5
    table = sincos_positions(dim, 3, 7)
    expected = []
    for axis in (row, column):
        angles = [axis / 10_000 ** (i / (dim // 4)) for i in range(dim // 4)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(table[row * 7 + column], torch.tensor(expected))


def test_drop_path_drops_whole_samples_keeps_the_mean_and_rests_in_eval():
    drop, x = DropPath(0.25), torch.ones(20_000, 2, 3)
    dropped = drop(x)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (dropped.flatten(1).std(1) == 0).all()
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert drop.eval()(x) is x


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "resnet34"}, "encoder.name"),
        ({"width": 0}, "encoder.width"),
        ({"norm": "layer"}, "batch, group, none"),
        ({"name": "resnet18", "patch": 8}, "encoder.patch has no effect on resnet18"),
        ({"name": "vit_tiny", "stem": "cifar"}, "encoder.stem has no effect on vit_tiny"),
        ({"name": "vit_tiny", "drop_path": 1.0}, "encoder.drop_path"),
        ({"name": "vit_tiny", "patch": 0}, "encoder.patch"),
    ],
)
def test_a_wrong_setting_is_answered_with_its_name_and_the_way_out(settings, words):
    with pytest.raises(ValueError, match=words):
        EncoderSpec(**settings)


def test_inputs_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"encoder\.patch is 16, which does not divide the 28x28 px"):
        EncoderSpec("vit_tiny").build(Field("image", (1, 28, 28)))
    with pytest.raises(ValueError, match="takes images"):
        EncoderSpec("resnet18").build(Field("audio", (1, 20480)))
    with pytest.raises(ValueError, match="multiple of 8"):
        EncoderSpec("vit_tiny", width=0.25, patch=8).build(SMALL)(torch.randn(1, 3, 30, 30))
