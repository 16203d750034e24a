"""Loading SVD: the function at step 0, the account of the keys, and what is refused."""

import json

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from nova3d.errors import InputError
from nova3d.models import NovaUNet
from nova3d.models.svd import LoadReport, load_svd
from nova3d.models.unet import SVD_FPS_ID, SVD_MOTION_ID

TINY = {
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "block_out_channels": (32, 64),
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "num_attention_heads": (2, 4),
    "sample_size": 8,
}


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    """A tiny SVD UNet and the diffusers folder it was saved in."""
    torch.manual_seed(3)
    unet = UNetSpatioTemporalConditionModel(**TINY).eval()
    folder = tmp_path_factory.mktemp("svd")
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    return unet, folder


@torch.no_grad()
@pytest.mark.parametrize("id_mode", ["fold", "constant"])
@pytest.mark.parametrize("alignment", ["none", "gta", "cross_domain"])
def test_step_zero_is_svd(svd, id_mode: str, alignment: str) -> None:
    stock, folder = svd
    ours, _ = NovaUNet.from_svd(folder, id_mode=id_mode, alignment=alignment)
    x = torch.randn(2, 2, 3, 8, 8, 8)
    embeds, c_noise, aug = torch.randn(2, 1, 24), torch.tensor([-0.4, 0.9]), torch.tensor([0.02, 0.3])
    out = ours.eval()(x, c_noise, embeds, aug, torch.randn(2, 3, 2))
    ids = torch.stack([torch.full((2,), SVD_FPS_ID), torch.full((2,), SVD_MOTION_ID), aug], dim=1)
    for task in range(2):
        expected = stock(x[:, task], c_noise, embeds, ids).sample
        torch.testing.assert_close(out[:, task], expected, rtol=1e-4, atol=2e-5)


def test_report_accounts_for_every_key(svd) -> None:
    stock, folder = svd
    ours, report = load_svd(folder, alignment="gta")
    assert report.reshaped == ["add_embedding.linear_1.weight"]
    assert report.derived == ["add_embedding.linear_1.bias"]
    assert not report.unused
    accounted = report.copied + report.new + report.reshaped + report.derived
    assert sorted(accounted) == sorted(ours.state_dict())
    assert set(report.copied) | {*report.reshaped, *report.derived} == set(stock.state_dict())
    assert sorted(report.new) == sorted(ours.new_parameter_names)
    assert f"{len(report.new)} new" in str(report)


def test_real_sizes() -> None:
    """The paper's model on the meta device: what notes and papers count, pinned."""
    with torch.device("meta"):
        unet = NovaUNet()
        stock = UNetSpatioTemporalConditionModel()
    assert sum(p.numel() for p in stock.parameters()) == 1_524_623_082
    alignment = [n for n in unet.new_parameter_names if ".alignment." in n]
    assert len(unet.new_parameter_names) == 228 and len(alignment) == 224
    assert sum(unet.get_parameter(n).numel() for n in alignment) == 99_198_080
    changed = [n for n, p in stock.state_dict().items() if unet.state_dict()[n].shape != p.shape]
    assert changed == ["add_embedding.linear_1.weight"]


def test_half_precision_variant(svd, tmp_path) -> None:
    stock, _ = svd
    folder = tmp_path / "unet"
    stock.half().save_pretrained(folder, variant="fp16", safe_serialization=True)
    stock.float()
    ours, report = load_svd(tmp_path, variant="fp16")
    assert report.source.endswith("fp16.safetensors")
    torch.testing.assert_close(ours.conv_in.weight, stock.conv_in.weight, rtol=1e-3, atol=1e-3)


def test_refusals(svd, tmp_path) -> None:
    _, folder = svd
    with pytest.raises(InputError, match=r"no config\.json"):
        load_svd(tmp_path)
    copy = tmp_path / "unet"
    copy.mkdir()
    config = json.loads((folder / "unet/config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="UNet2DModel"):
        load_svd(tmp_path)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds none of"):
        load_svd(tmp_path)
    weights = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_svd(tmp_path)
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    (copy / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(InputError, match="lacks"):
        load_svd(tmp_path)


def test_report_type_is_public(svd) -> None:
    assert isinstance(load_svd(svd[1], alignment="none")[1], LoadReport)
