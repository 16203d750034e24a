"""LPIPS and CLIP similarity against the libraries' own forward passes, on random weights saved to disk."""

import json
import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nova3d.errors import InputError
from nova3d.metrics import perceptual
from nova3d.metrics.perceptual import ClipSimilarity, Lpips, WeightsUnavailable, available
from nova3d.utils import provenance
from nova3d.utils.compat import ensure_torchvision, has

needs_open_clip = pytest.mark.skipif(not has("open_clip"), reason="the extra nova3d[clip] is not installed")


def pictures(size: int = 48, seed: int = 0, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, size, size, 3, generator=generator), torch.rand(count, size, size, 3, generator=generator)


def random_state(net: str) -> dict[str, torch.Tensor]:
    """A state dict named and shaped as torchvision's, of a generator of its own."""
    stack = {"vgg": perceptual._vgg16, "alex": perceptual._alexnet}[net]()
    generator = torch.Generator().manual_seed(1)
    state = {f"features.{name}": value for name, value in stack.state_dict().items()}
    for value in state.values():
        fan = max(value[0].numel(), 1) if value.ndim > 1 else 100
        value.normal_(0, (2 / fan) ** 0.5, generator=generator)
    return state | {"classifier.0.weight": torch.zeros(1)}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    found = {net: folder / f"{net}.pth" for net in ("vgg", "alex")}
    for net, path in found.items():
        torch.save(random_state(net), path)
    return found


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_torchmetrics_for_the_same_weights(files, net, monkeypatch):
    ensure_torchvision()
    from torchmetrics.functional.image import lpips as library

    ours = Lpips(net, files[net])
    monkeypatch.setattr(library, "_get_tv_model_features", lambda *_: ours.features)
    theirs = library._NoTrainLpips(net=net)  # with the linear weights it ships
    pred, ref = pictures()
    expected = theirs(pred.permute(0, 3, 1, 2), ref.permute(0, 3, 1, 2), normalize=True).flatten()
    assert expected.min() > 0.01
    torch.testing.assert_close(ours(pred, ref), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not has("torchvision"), reason="torchvision is not installed")
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_networks_are_torchvisions(files, net):
    ensure_torchvision()
    from torchvision.models import alexnet, vgg

    theirs = alexnet().features if net == "alex" else vgg.make_layers(vgg.cfgs["D"])
    ours = Lpips(net, files[net])
    theirs.load_state_dict(ours.features.state_dict())
    assert len(theirs) == len(ours.features) + 1  # the last pooling, after the last layer compared
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.features(x), theirs[:-1](x))


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_zero_for_equal_pictures_symmetric_and_grows_with_noise(files, net):
    metric = Lpips(net, files[net])
    pred, ref = pictures(40, count=2)
    assert metric.name == f"lpips_{net}"
    assert metric(ref, ref).tolist() == [0, 0]
    torch.testing.assert_close(metric(pred, ref), metric(ref, pred))
    assert (metric(ref + 0.05 * (pred - ref), ref) < metric(pred, ref)).all()


def test_lpips_scores_each_view_alone_and_in_the_pictures_type(files):
    metric = Lpips("alex", files["alex"])
    pred, ref = pictures(32, count=6)  # more than go through at once
    alone = torch.cat([metric(a[None], b[None]) for a, b in zip(pred, ref, strict=True)])
    torch.testing.assert_close(metric(pred, ref), alone, rtol=1e-4, atol=1e-6)
    assert metric(pred.double(), ref.double()).dtype == torch.float64
    with pytest.raises(InputError, match="at least 32 pixels"):
        metric(pred[:, :31], ref[:, :31])
    with pytest.raises(ValueError, match="two"):
        metric(pred, ref[:1])


def test_weights_hash_tells_weights_apart_and_not_their_container(files, tmp_path):
    state = random_state("alex")
    save_file(state, tmp_path / "same.safetensors")
    state["features.0.bias"][0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    paths = (files["alex"], tmp_path / "same.safetensors", tmp_path / "other.pth")
    one, same, other = (Lpips("alex", path).weights_hash for path in paths)
    assert one == same != other and len(one) == 16


def test_linear_weights_count_in_value_and_hash(files, tmp_path):
    standard = Lpips("alex", files["alex"])
    widths = [64, 192, 384, 256, 256]
    torch.save({f"lin{i}.model.1.weight": torch.zeros(1, w, 1, 1) for i, w in enumerate(widths)}, tmp_path / "h.pth")
    empty = Lpips("alex", files["alex"], tmp_path / "h.pth")
    assert empty(*pictures()).tolist() == [0] * 5
    assert empty.weights_hash != standard.weights_hash


def test_missing_and_wrong_weights_are_told_apart(files, tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"LPIPS \(vgg\): '.*none.pth' does not exist"):
        Lpips("vgg", tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"does not hold the weights of lpips_vgg: see '0\.weight'") as caught:
        Lpips("vgg", files["alex"])
    assert not isinstance(caught.value, WeightsUnavailable)
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        Lpips("vgg", tmp_path / "broken.pth")
    with pytest.raises(InputError, match="not a state dict"):
        Lpips("vgg", tmp_path / "list.pth")
    with pytest.raises(InputError, match="vgg and alex, not 'squeeze'"):
        Lpips("squeeze")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch hub's cache, empty, without a network."""

    def no_network(url, *_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "checkpoints"


def test_without_cache_and_network_lpips_says_what_to_put_where(hub):
    with pytest.raises(WeightsUnavailable, match=r"vgg16-397923af\.pth.*put it into '.*checkpoints'"):
        Lpips("vgg")
    with pytest.raises(
        WeightsUnavailable, match=r"curl .* https://download\.pytorch\.org/models/alexnet-owt-7be5be79\.pth"
    ):
        Lpips("alex")


def test_published_weights_come_from_the_cache_and_are_checked(hub, files, monkeypatch):
    hub.mkdir()
    (hub / "alexnet-owt-7be5be79.pth").write_bytes(files["alex"].read_bytes())
    with pytest.raises(WeightsUnavailable, match="SHA-256 does not begin with 7be5be79"):
        Lpips("alex")
    name = f"alexnet-owt-{provenance.hash_file(files['alex'])[:8]}.pth"
    monkeypatch.setitem(perceptual._FILES, "alex", name)
    (hub / name).write_bytes(files["alex"].read_bytes())
    assert Lpips("alex").weights_hash == Lpips("alex", files["alex"]).weights_hash


def test_available_gives_what_can_be_computed_and_each_reason_once(files, tmp_path, caplog):
    makers = {"lpips_vgg": lambda: Lpips("vgg", tmp_path / "none"), "lpips_alex": lambda: Lpips("alex", files["alex"])}
    with caplog.at_level(logging.WARNING):
        made, reasons = available(makers)
    assert list(made) == ["lpips_alex"] and list(reasons) == ["lpips_vgg"]
    assert "does not exist" in reasons["lpips_vgg"]
    assert [record.getMessage() for record in caplog.records] == [f"lpips_vgg is not computed: {reasons['lpips_vgg']}"]


def test_available_does_not_swallow_wrong_weights(files):
    with pytest.raises(InputError, match="does not hold"):
        available({"lpips_vgg": lambda: Lpips("vgg", files["alex"])})


@pytest.mark.skipif(has("open_clip"), reason="open_clip is installed")
def test_without_open_clip_clip_is_unavailable():
    with pytest.raises(WeightsUnavailable, match=r"nova3d\[clip\]"):
        ClipSimilarity()


@pytest.fixture
def tiny_clip(tmp_path) -> tuple[str, Path, nn.Module]:
    """A registered model of open_clip's own class, 32 px, and a file of random weights for it."""
    import open_clip

    settings = {
        "embed_dim": 24,
        "vision_cfg": {"width": 64, "layers": 2, "head_width": 32, "patch_size": 8, "image_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "ViT-tiny-8.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path / "ViT-tiny-8.json")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-tiny-8").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return "ViT-tiny-8", tmp_path / "tiny.pt", model


@needs_open_clip
@torch.no_grad()
def test_clip_similarity_is_open_clips(tiny_clip):
    import open_clip
    from PIL import Image

    name, path, model = tiny_clip
    metric = ClipSimilarity(name, path)
    assert metric.name == "clip_vit_tiny_8"
    pred, ref = pictures(40, count=3)
    preprocess = open_clip.image_transform(32, is_train=False)
    expected = []
    for pair in zip(pred, ref, strict=True):
        images = [Image.fromarray((255 * image).round().byte().numpy()) for image in pair]
        a, b = (model.encode_image(preprocess(image)[None], normalize=True)[0] for image in images)
        expected.append(float(a @ b))
    assert metric(pred, ref).tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) < 0.999


@needs_open_clip
def test_clip_similarity_of_equal_pictures_is_one_and_it_is_symmetric(tiny_clip):
    metric = ClipSimilarity(*tiny_clip[:2])
    pred, ref = pictures(32, count=2)
    assert metric(ref, ref).tolist() == pytest.approx([1, 1], abs=1e-6)
    torch.testing.assert_close(metric(pred, ref), metric(ref, pred))
    with pytest.raises(ValueError, match="two"):
        metric(pred, ref[..., :1])


@needs_open_clip
def test_clip_hash_is_of_the_image_tower(tiny_clip, tmp_path):
    name, path, model = tiny_clip
    with torch.no_grad():
        model.token_embedding.weight.add_(1)
    torch.save(model.state_dict(), tmp_path / "text.pt")
    with torch.no_grad():
        model.visual.proj.add_(1)
    torch.save(model.state_dict(), tmp_path / "image.pt")
    one, text, image = (
        ClipSimilarity(name, p).weights_hash for p in (path, tmp_path / "text.pt", tmp_path / "image.pt")
    )
    assert one == text != image


@needs_open_clip
def test_clip_never_guesses_weights(tiny_clip, tmp_path, monkeypatch):
    import open_clip

    def no_network(*_, **__):
        raise OSError("no network")

    name, path, _ = tiny_clip
    with pytest.raises(WeightsUnavailable, match="neither a file nor one of open_clip's tags"):
        ClipSimilarity(name, tmp_path / "none.pt")
    with pytest.raises(InputError, match="needs `pretrained`"):
        ClipSimilarity(name, None)
    with pytest.raises(InputError, match="has no model 'ViT-tiny'"):
        ClipSimilarity("ViT-tiny", path)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    with pytest.raises(WeightsUnavailable, match=r"CLIP \(ViT-B-32, laion2b_s34b_b79k\).*no network"):
        ClipSimilarity("ViT-B-32", "laion2b_s34b_b79k")
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="does not hold the weights") as caught:
        ClipSimilarity(name, tmp_path / "other.pt")
    assert not isinstance(caught.value, WeightsUnavailable)
