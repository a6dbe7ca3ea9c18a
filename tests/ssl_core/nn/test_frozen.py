from pathlib import Path

import pytest
import torch

from ssl_core.folder import DamagedError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.nn.frozen import Frozen, pack, saved_encoder, unpack
from ssl_core.tasks.rotation import Rotation
from ssl_core.tasks.simclr import SimCLR
from ssl_core.train.checkpoint import save_model
from ssl_core.types import Field

SPEC = EncoderSpec("resnet18", width=0.125, stem="cifar", zero_init=False)
FIELD = Field("image", (3, 16, 16))


def saved(folder: Path, channels: int = 3) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(1)
    model = Rotation(canvas=16).build(SPEC.build)
    if channels != 3:
        model.encoder = SPEC.build(Field("image", (channels, 16, 16)))
    save_model(folder, Rotation(canvas=16), SPEC, model.state_dict())
    return folder, model.encoder


def test_a_frozen_network_is_data_that_moves_with_its_owner():
    network = SPEC.build(FIELD)
    x = torch.randn(2, 3, 16, 16)
    network.train()
    network(3 * x + 1)  # batch norm has seen something
    with torch.no_grad():
        before = network.eval()(x)
    owner = torch.nn.Sequential(Frozen(network))
    assert not list(owner.parameters()) and not owner.state_dict()
    owner.train()
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        assert torch.allclose(network(x), before, atol=1e-5)
        assert torch.allclose(owner.double()[0].network(x.double()).float(), before, atol=1e-4)


def test_what_converts_batch_norms_leaves_it_alone():
    owner = torch.nn.Sequential(Frozen(SPEC.build(FIELD)), torch.nn.BatchNorm2d(3))
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(owner)
    assert [type(module).__name__ for module in converted.modules()].count("SyncBatchNorm") == 1


def test_an_encoder_survives_packing_and_the_model_that_it_was_saved_in(tmp_path):
    folder, trained = saved(tmp_path / "model")
    spec, encoder = saved_encoder(folder, FIELD, seed=0)
    again = unpack(pack(spec, encoder), FIELD)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert spec == SPEC and torch.allclose(again.network(x), trained.eval()(x), atol=1e-5)


def test_a_config_alone_is_an_untrained_encoder_of_the_seed(tmp_path):
    folder, _ = saved(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    weights = [pack(*saved_encoder(folder, FIELD, seed))["encoder.stem.0.weight"] for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    saved_encoder(folder, FIELD, 3)
    assert torch.equal(torch.rand(1), before)  # the global generator is left as it was


def test_an_encoder_of_other_inputs_is_refused(tmp_path):
    folder, _ = saved(tmp_path / "grey", channels=1)
    with pytest.raises(DamagedError, match="does not take colour images of this task's size"):
        saved_encoder(folder, FIELD, seed=0)
    with pytest.raises(DamagedError, match=r"config\.json cannot be read"):
        saved_encoder(tmp_path / "nothing", FIELD, seed=0)


def test_other_tasks_encoders_are_found_as_well(tmp_path):
    task = SimCLR(canvas=16, size=16, hidden=8, out=8)
    model = task.build(SPEC.build)
    save_model(tmp_path / "model", task, SPEC, model.state_dict())
    _, encoder = saved_encoder(tmp_path / "model", FIELD, seed=0)
    assert torch.equal(encoder.state_dict()["stem.0.weight"], model.encoder.state_dict()["stem.0.weight"])
