"""SVD's original single file: a round trip of a tiny one through its names, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from nova3d.errors import InputError
from nova3d.models.svd import (
    inspect_svd,
    inspect_svd_parts,
    load_svd,
    load_svd_autoencoder,
    load_svd_image_encoder,
    load_svd_parts,
)
from nova3d.models.svd_original import CONDITION, FIRST_STAGE, UNET, VISUAL
from nova3d.models.unet import NovaUNet

# The original names are made here by a naming written the other way round than the library's.
LAYERS, WIDTHS = 2, (64, 64, 128)


@pytest.fixture(scope="module")
def tiny() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=(*("CrossAttnDownBlockSpatioTemporal",) * 2, "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 2),
        block_out_channels=WIDTHS,
        num_attention_heads=(1, 1, 2),
        layers_per_block=LAYERS,
        cross_attention_dim=24,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
    )
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32, 32, 64), layers_per_block=2
    )
    clip = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act="gelu",
    )
    models = {"unet": unet, "vae": vae, "image_encoder": CLIPVisionModelWithProjection(clip)}
    with torch.no_grad():
        for model in models.values():
            for parameter in model.parameters():  # no two tensors alike, nothing zero or one
                parameter.add_(0.05 * torch.randn_like(parameter))
            model.eval()
    return models


def swapped(name: str, *pairs: tuple[str, str]) -> str:
    for new, old in pairs:
        name = re.sub(rf"(^|\.){re.escape(new)}(?=\.|$)", rf"\g<1>{old}", name)
    return name


RESNET = (
    ("spatial_res_block.", ""),
    ("temporal_res_block", "time_stack"),
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)


def original_unet_name(name: str) -> str:
    place = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)", name)
    if place is None:
        pairs = ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")
        name = swapped(name, *pairs, ("time_embedding", "time_embed"), ("add_embedding", "label_emb.0"))
        return swapped(name, ("linear_1", "0"), ("linear_2", "2"))
    side, kind, index, rest = place[1], place[3], int(place[4]), place[5]
    block = int(place[2] or 0) * (LAYERS + 1)
    if kind == "resnets":
        rest = rest.replace("spatial_res_block.", "") if side else rest
        rest = swapped(rest, *RESNET[1:])
    if kind == "attentions":
        embedding = re.sub(r"time_pos_embed\.linear_(\d)", lambda m: f"time_pos_embed.{2 * int(m[1]) - 2}", rest)
        rest = swapped(embedding, ("temporal_transformer_blocks", "time_stack"))
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{1 + block + LAYERS}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{block + LAYERS}.{1 if place[2] == '0' else 2}.{rest}"
    number = block + index + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{rest}"


def original_vae_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{2 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "temporal_res_block" in name:
        return swapped(name, *RESNET[1:])
    name = swapped(name.replace("spatial_res_block.", ""), ("time_mixer.mix_factor", "mix_factor"))
    attention = ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")
    name = swapped(name, ("mid_block.attentions.0", "mid.attn_1"), *attention)
    pairs = (
        ("conv_norm_out", "norm_out"),
        ("time_conv_out", "conv_out.time_mix_conv"),
        ("conv_shortcut", "nin_shortcut"),
    )
    return swapped(name, *pairs)


def original_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    inner = {name.removeprefix("vision_model."): value for name, value in state.items()}
    out = {
        "proj": inner["visual_projection.weight"].T,
        "class_embedding": inner["embeddings.class_embedding"],
        "positional_embedding": inner["embeddings.position_embedding.weight"],
        "conv1.weight": inner["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        out |= {f"ln_pre.{kind}": inner[f"pre_layrnorm.{kind}"], f"ln_post.{kind}": inner[f"post_layernorm.{kind}"]}
        for i in range(2):
            old, new = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            fused = [inner[f"{new}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{old}.attn.in_proj_{kind}"] = torch.cat(fused)
            pairs = ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")
            for theirs, ours in (*pairs, ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                out[f"{old}.{theirs}.{kind}"] = inner[f"{new}.{ours}.{kind}"]
    return out


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory) -> Path:
    """The tiny SVD as one file of the original layout, with the keys that the real one has beside."""
    tensors = {UNET + original_unet_name(name): value for name, value in tiny["unet"].state_dict().items()}
    for name, value in tiny["vae"].state_dict().items():
        conv = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", name)
        prefix = FIRST_STAGE if name.startswith("decoder.") else CONDITION
        tensors[prefix + original_vae_name(name)] = value[..., None, None] if conv else value
    tensors |= {VISUAL + name: value for name, value in original_clip(tiny["image_encoder"].state_dict()).items()}
    tensors |= {
        f"{FIRST_STAGE}encoder.conv_in.weight": torch.zeros(32, 3, 3, 3),  # not the one the condition goes through
        f"{CONDITION}post_quant_conv.bias": torch.zeros(4),
        "conditioner.embedders.0.open_clip.model.logit_scale": torch.zeros(()),
    }
    path = tmp_path_factory.mktemp("original") / "svd.safetensors"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)
    return path


def test_round_trip(tiny, original) -> None:
    unet, vae, encoder, report = load_svd_parts(NovaUNet, original, id_mode="constant")
    for name, model in (("unet", unet), ("vae", vae), ("image_encoder", encoder)):
        loaded = model.state_dict()
        for key, value in tiny[name].state_dict().items():
            assert torch.equal(loaded[key], value) and loaded[key].is_contiguous(), key
        assert not model.training
    assert report == inspect_svd_parts(NovaUNet, original, id_mode="constant")
    assert [len(report.unused)] + [len(part.unused) for part in report.parts.values()] == [3, 3, 3]
    assert list(report.to_dict()["parts"]) == ["vae", "image_encoder"]
    assert str(report).count("\n") == 2


@torch.no_grad()
def test_the_networks_compute_what_stock_ones_do(tiny, original) -> None:
    frames, pixels, latents = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.randn(2, 4, 8, 8)
    vae, encoder = load_svd_autoencoder(original), load_svd_image_encoder(original)
    torch.testing.assert_close(vae.encode(frames).latent_dist.mode(), tiny["vae"].encode(frames).latent_dist.mode())
    torch.testing.assert_close(
        vae.decode(latents, 2).sample, tiny["vae"].decode(latents, 2).sample, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(encoder(pixels).image_embeds, tiny["image_encoder"](pixels).image_embeds)
    ours, _ = load_svd(NovaUNet, original)
    x, cameras = torch.randn(1, 2, 3, 8, 8, 8), torch.zeros(1, 3, 2)
    embeds, c_noise, aug = torch.randn(1, 1, 24), torch.tensor([0.3]), torch.tensor([0.02])
    out = ours(x, c_noise, embeds, aug, cameras).sample
    theirs = tiny["unet"](x[:, 1], c_noise, embeds, torch.tensor([[6.0, 127.0, 0.02]])).sample
    torch.testing.assert_close(out[:, 1], theirs, atol=5e-5, rtol=1e-4)


def test_a_diffusers_folder_gives_the_same_networks(tiny, original, tmp_path) -> None:
    for name, model in tiny.items():
        model.save_pretrained(tmp_path / name)
    stored = load_file(tmp_path / "image_encoder/model.safetensors")
    # As transformers wrote it when SVD was published.
    stored["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(stored, tmp_path / "image_encoder/model.safetensors")
    *ours, report = load_svd_parts(NovaUNet, tmp_path, dtype=torch.bfloat16)
    *theirs, _ = load_svd_parts(NovaUNet, original, dtype=torch.bfloat16)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        b = b.state_dict()
        assert all(
            torch.equal(value, b[name]) and value.dtype == torch.bfloat16 for name, value in a.state_dict().items()
        )
    assert report.parts["image_encoder"].unused == ["vision_model.embeddings.position_ids"]
    assert ours[1].config.scaling_factor == theirs[1].config.scaling_factor == 0.18215


def rename(old: str, new: str) -> Callable[[dict], dict]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def drop(part: str) -> Callable[[dict], dict]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def replace(name: str, value: Tensor) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {name: value}


IDS = f"{UNET}label_emb.0.0.weight"
FAULTS: dict[str, tuple[Callable[[dict], dict], str]] = {
    "diffusers' own file": (rename(UNET, ""), r"no key begins with 'model\.diffusion_model\.'.*named by their folder"),
    "Stable Diffusion": (drop(".time_stack."), r"an image model \(Stable Diffusion\?\), not SVD"),
    "SV3D_u": (replace(IDS, torch.zeros(256, 256)), r"not SVD: its ids are embedded in 256 channels.*SV3D"),
    "SV3D_p": (replace(IDS, torch.zeros(256, 1280)), r"not SVD: its ids are embedded in 1280 channels.*SV3D"),
    "no ids": (drop("label_emb"), r"not SVD: its ids are embedded in 0 channels"),
    "image decoder": (
        drop(f"{FIRST_STAGE}decoder.mid.block_1.time_stack"),
        r"lacks 'decoder\.mid_block\.resnets\.0\.temp",
    ),
    "no condition encoder": (drop(CONDITION), r"lacks 'conditioner\.embedders\.3\.encoder\.encoder\.conv_in\.weight'"),
    "no image encoder": (drop(VISUAL), r"lacks 'conditioner\.embedders\.0\.open_clip\.model\.visual\.conv1\.weight'"),
    "missing key": (drop("middle_block.1.time_mixer"), r"lacks 'mid_block\.attentions\.0\.time_mixer\.mix_factor'"),
    "unexpected key": (replace(f"{UNET}spare.bias", torch.zeros(1)), r"unexpected key 'spare\.bias'"),
    "a third block in the middle": (
        replace(f"{UNET}middle_block.3.in_layers.0.bias", torch.zeros(128)),
        r"does not have SVD's structure: 1 of its keys",
    ),
    "wrong shape": (
        replace(f"{UNET}out.2.bias", torch.zeros(3)),
        r"'conv_out\.bias' has the shape \(3,\), expected \(4,\)",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_refused(original, tmp_path, kind: str) -> None:
    change, expected = FAULTS[kind]
    path = tmp_path / "other.safetensors"
    save_file(change(load_file(original)), path)
    with pytest.raises(InputError) as caught:
        inspect_svd_parts(NovaUNet, path)
    line = str(caught.value)
    assert re.search(expected, line) and "\n" not in line and str(path) in line, line


def test_the_image_decoder_release_is_named(original, tmp_path) -> None:
    tensors = load_file(original)
    path = tmp_path / "svd_image_decoder.safetensors"
    temporal = (".time_stack.", "mix_factor", "time_mix_conv")
    frame_wise = {n: v for n, v in tensors.items() if FIRST_STAGE not in n or not any(part in n for part in temporal)}
    save_file(frame_wise, path)
    inspect_svd(NovaUNet, path)  # the UNet is the same
    with pytest.raises(InputError, match="frame-wise image decoder"):
        load_svd_autoencoder(path)


def test_a_checkpoint_pickle_is_refused(tmp_path) -> None:
    path = tmp_path / "svd.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match=r"is a pickle.*get the \.safetensors file"):
        load_svd(NovaUNet, path)
