"""Perceptual metrics: LPIPS and CLIP similarity, by networks whose weights are not shipped.

A metric without its weights is not computed: `WeightsUnavailable` names what is missing, and `available` separates the
metrics that can be computed from the reasons for the others. Every metric has a `name` (with the network, because the
scales differ) and a `weights_hash`; both are printed in every table.
"""

import importlib.util
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nova3d.errors import InputError, first_line
from nova3d.utils import provenance
from nova3d.utils.compat import ensure_torchvision, has

_log = logging.getLogger(__name__)

State = dict[str, Tensor]

# Layer widths of torchvision's convolutional stacks and, as in LPIPS, the layers whose output is compared: the last
# ReLU before each pooling (VGG) or each ReLU (AlexNet).
_VGG_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # torchvision's; eight digits of the SHA-256
_ADDRESS = "https://download.pytorch.org/models/"
_ENUMS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights"}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' own: ImageNet's, for pictures in [-1,1]
_SMALLEST = 32  # pixels; smaller pictures leave AlexNet's last layers empty
_VIEWS_AT_ONCE = 4  # VGG's first layers take 0.3 GB for four pairs of 256 px


class WeightsUnavailable(InputError):
    """A metric's weights are not on this machine and could not be fetched: the metric cannot be computed."""


class Metric(Protocol):
    """A perceptual metric: [n,h,w,3] pictures in [0,1] of prediction and reference to [n] values."""

    name: str
    weights_hash: str

    def __call__(self, pred: Tensor, ref: Tensor) -> Tensor: ...


def available(makers: Mapping[str, Callable[[], Metric]]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Make each metric: those that could be made, and name -> reason for the others, which are logged."""
    made: dict[str, Metric] = {}
    reasons: dict[str, str] = {}
    for name, maker in makers.items():
        try:
            made[name] = maker()
        except WeightsUnavailable as error:
            reasons[name] = str(error)
            _log.warning("%s is not computed: %s", name, error)
    return made, reasons


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018, eq. 1) with VGG-16 or AlexNet: 0 for equal pictures, higher is worse.

    torchmetrics' network needs torchvision, which on a CPU is often a build that does not fit. This one needs neither,
    takes weights by path, and gives torchmetrics' values for the same weights. It runs on the device it is moved to.
    `weights_hash` is the hash of all tensors that count, the network's and the linear ones.

    Args:
        net: "vgg" or "alex"; the two scales differ, never compare across them.
        weights: file of the network's ImageNet weights, as torchvision publishes them (a state dict with `features.`
            keys). None takes the published file in torch hub's cache, or fetches it if torchvision is installed.
        heads: file of LPIPS' linear weights; None takes those that torchmetrics ships.

    Raises:
        WeightsUnavailable: where a file is missing.
        InputError: where a file holds other weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, net: Literal["vgg", "alex"] = "vgg", weights: str | Path | None = None, heads: str | Path | None = None
    ):
        super().__init__()
        if net not in _FILES:
            raise InputError(f"LPIPS has the networks vgg and alex, not '{net}'")
        self.name = f"lpips_{net}"
        self.features = _vgg16() if net == "vgg" else _alexnet()
        self.taps = _TAPS[net]
        source = Path(weights) if weights is not None else _published_weights(net)
        state = _read(source, f"LPIPS ({net})")
        prefixed = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
        self._fill(self.features, prefixed, source)
        heads = Path(heads) if heads is not None else _shipped_heads(net)
        linear = _read(heads, "LPIPS' linear weights")
        own = self.features.state_dict()
        self.heads = nn.ParameterList([torch.zeros_like(own[f"{tap - 1}.bias"]) for tap in self.taps])
        self._fill(
            self.heads,
            {key[3:].split(".")[0]: value.flatten() for key, value in linear.items() if key[:3] == "lin"},
            heads,
        )
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.weights_hash = provenance.hash_tensors(self.state_dict())
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pred: Tensor, ref: Tensor) -> Tensor:
        """The distance of each pair of pictures.

        Args:
            pred: [n,h,w,3] float in [0,1].
            ref: [n,h,w,3] float in [0,1].

        Returns:
            float [n], 0 or more.

        Raises:
            InputError: for pictures under 32 pixels.
        """
        _check_pictures(pred, ref)
        if min(pred.shape[1:3]) < _SMALLEST:
            raise InputError(f"LPIPS needs pictures of at least {_SMALLEST} pixels, got {tuple(pred.shape[1:3])}")
        pairs = zip(pred.split(_VIEWS_AT_ONCE), ref.split(_VIEWS_AT_ONCE), strict=True)
        return torch.cat([self._distance(a, b) for a, b in pairs]).to(pred)

    def _distance(self, pred: Tensor, ref: Tensor) -> Tensor:
        both = torch.cat([pred, ref]).to(self.shift).permute(0, 3, 1, 2)
        x = (2 * both - 1 - self.shift) / self.scale
        total = torch.zeros(len(pred), device=x.device, dtype=x.dtype)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                unit = x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()  # as torchmetrics guards the zero vector
                a, b = unit.chunk(2)
                head = self.heads[self.taps.index(index)]
                total += ((a - b).square() * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return total

    def _fill(self, module: nn.Module, state: State, source: Path) -> None:
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        wrong = [name for name, shape in expected.items() if name not in state or tuple(state[name].shape) != shape]
        if wrong:
            raise InputError(f"'{source}' does not hold the weights of {self.name}: see '{wrong[0]}'")
        module.load_state_dict({name: state[name] for name in expected})


class ClipSimilarity(nn.Module):
    """Cosine of two pictures' CLIP image embeddings, by open_clip: 1 for equal pictures, higher is better.

    It runs on the device it is moved to. `weights_hash` is the hash of the image tower's tensors.

    Args:
        model: open_clip's name, or "hf-hub:..." or "local-dir:..." with the weights in it.
        pretrained: open_clip's tag of the weights (from its cache, or fetched), or a file of them. With a file, the
            model's name must contain QuickGELU where the weights were trained with it ("ViT-L-14-quickgelu"), because a
            file does not record it.

    Raises:
        WeightsUnavailable: without open_clip, a file, or the network connection that a tag needs.
        InputError: for an unknown model, and for a file that holds other weights.
    """

    def __init__(self, model: str = "ViT-L-14", pretrained: str | Path | None = "openai"):
        super().__init__()
        self.name = "clip_" + re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
        if not has("open_clip"):
            raise WeightsUnavailable("CLIP similarity needs open_clip: install it with `pip install nova3d[clip]`")
        ensure_torchvision()
        import open_clip

        if ":" not in model and model not in open_clip.list_models():
            raise InputError(f"open_clip has no model '{model}'; open_clip.list_models() names those it has")
        if ":" not in model and pretrained is None:
            raise InputError(f"CLIP similarity by '{model}' needs `pretrained`: a tag of open_clip's or a file")
        tag = str(pretrained) in open_clip.list_pretrained_tags_by_model(model)
        file = None if tag or ":" in model else Path(str(pretrained))
        if file is not None and not file.is_file():
            raise WeightsUnavailable(f"CLIP ({model}): '{file}' is neither a file nor one of open_clip's tags")
        try:
            clip, _, self.preprocess = open_clip.create_model_and_transforms(
                model, pretrained=None if ":" in model else str(pretrained), require_pretrained=":" not in model
            )
        except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
            reason = first_line(error)
            if file is not None:
                raise InputError(f"'{file}' does not hold the weights of open_clip's {model}: {reason}") from error
            raise WeightsUnavailable(f"CLIP ({model}, {pretrained}): {reason}") from error
        self.visual: nn.Module = clip.visual
        self.weights_hash = provenance.hash_tensors(self.visual.state_dict())
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pred: Tensor, ref: Tensor) -> Tensor:
        """The similarity of each pair of pictures, rounded to 8 bits for open_clip's own preprocessing.

        Args:
            pred: [n,h,w,3] float in [0,1].
            ref: [n,h,w,3] float in [0,1].

        Returns:
            float [n], cosines in [-1,1].
        """
        _check_pictures(pred, ref)
        a, b = self._embed(pred), self._embed(ref)
        return F.cosine_similarity(a, b).to(pred)

    def _embed(self, pictures: Tensor) -> Tensor:
        like = next(self.visual.parameters())
        pixels = (pictures.clamp(0, 1) * 255).round().byte().numpy(force=True)
        batch = torch.stack([self.preprocess(Image.fromarray(image)) for image in pixels])
        embeds = self.visual(batch.to(like))
        return embeds[0] if isinstance(embeds, tuple) else embeds  # towers that return their tokens too


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG_WIDTHS:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def _published_weights(net: str) -> Path:
    """torchvision's published weights in torch hub's cache, fetched where possible and checked by their name."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _FILES[net]
    if not path.is_file():
        if not has("torchvision"):
            raise WeightsUnavailable(f"LPIPS ({net}) needs {path.name}: {_how_to_get(net, path)}")
        ensure_torchvision()
        import torchvision

        _log.info("fetching %s for LPIPS", path.name)
        url = getattr(torchvision.models, _ENUMS[net]).IMAGENET1K_V1.url
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise WeightsUnavailable(
                f"LPIPS ({net}) needs {path.name}, which cannot be fetched ({error}): {_how_to_get(net, path)}"
            ) from error
    digits = path.stem.rpartition("-")[2]
    if not provenance.hash_file(path).startswith(digits):
        raise WeightsUnavailable(f"'{path}' is incomplete or another file: its SHA-256 does not begin with {digits}")
    return path


def _how_to_get(net: str, path: Path) -> str:
    fetch = f"curl --create-dirs -o {path} {_ADDRESS}{path.name}"
    return f"put it into '{path.parent}' (`{fetch}`), or name your file with `--weights lpips_{net}=FILE`"


def _shipped_heads(net: str) -> Path:
    package = importlib.util.find_spec("torchmetrics")  # found, not imported: only its data is wanted
    if package is None or not package.submodule_search_locations:
        raise WeightsUnavailable("LPIPS' linear weights come with torchmetrics: `pip install nova3d[eval]`")
    return Path(package.submodule_search_locations[0]) / "functional/image/lpips_models" / f"{net}.pth"


def _read(path: Path, purpose: str) -> State:
    if not path.is_file():
        raise WeightsUnavailable(f"{purpose}: '{path}' does not exist")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"{purpose}: '{path}' cannot be read as weights ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{purpose}: '{path}' is not a state dict")
    return state


def _check_pictures(pred: Tensor, ref: Tensor) -> None:
    if pred.shape != ref.shape or pred.ndim != 4 or pred.shape[-1] != 3:
        raise ValueError(f"expected two [n,h,w,3], got prediction {tuple(pred.shape)} and reference {tuple(ref.shape)}")
