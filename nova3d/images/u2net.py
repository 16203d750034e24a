"""U-2-Net small (Qin et al., Pattern Recognition 2020): finds the salient object of a photograph.

The network is a U of residual U-blocks. The bundled weights (assets/u2netp) have their batch norms folded into the
convolutions. All tensors are [b,c,h,w].
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nova3d.errors import InputError
from nova3d.utils import provenance, resources

WEIGHTS = "assets/u2netp"
INPUT_SIDE = 320  # pixels; the network was trained on squares of this side
_WIDTH, _INNER = 64, 16  # channels between the blocks, and inside them
_HEIGHTS = (7, 6, 5, 4)  # levels of the encoder's U-blocks; its last two stages are dilated instead
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, with which it was trained


class _Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps the size, and a ReLU."""

    def __init__(self, channels: int, out_channels: int, dilation: int = 1):
        super().__init__(channels, out_channels, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class UBlock(nn.Module):
    """A residual U-block: the sum of its first features and of what a small U-net makes of them.

    Args:
        channels: of the input.
        levels: of the U. Every level between the first and the last two halves the size.
        dilated: the levels dilate by 1, 2, 4, ... and keep the size.
    """

    def __init__(self, channels: int, levels: int, dilated: bool = False):
        super().__init__()
        down = [2**level if dilated else 1 for level in range(levels - 1)]
        self.dilated = dilated
        self.first = _Convolution(channels, _WIDTH)
        self.down = nn.ModuleList(_Convolution(_INNER if k else _WIDTH, _INNER, d) for k, d in enumerate(down))
        self.bottom = _Convolution(_INNER, _INNER, 2 ** (levels - 1) if dilated else 2)
        out = [_WIDTH if k == 0 else _INNER for k in range(levels - 1)]
        self.up = nn.ModuleList(_Convolution(2 * _INNER, o, d) for o, d in reversed(list(zip(out, down, strict=True))))

    def forward(self, x: Tensor) -> Tensor:
        """[b,channels,h,w] to [b,64,h,w]."""
        first = self.first(x)
        levels = [self.down[0](first)]
        for convolution in self.down[1:]:
            levels.append(convolution(levels[-1] if self.dilated else _max_pool(levels[-1])))
        y = self.bottom(levels[-1])
        for convolution, level in zip(self.up, reversed(levels), strict=True):
            y = convolution(torch.cat([_upsample_like(y, level), level], dim=1))
        return first + y


class U2Net(nn.Module):
    """The whole network: six encoder stages, five decoder stages, and a saliency map from each of the last six."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [UBlock(3 if k == 0 else _WIDTH, levels) for k, levels in enumerate(_HEIGHTS)]
        self.encoder = nn.ModuleList([*blocks, UBlock(_WIDTH, 4, dilated=True), UBlock(_WIDTH, 4, dilated=True)])
        upper = [UBlock(2 * _WIDTH, levels) for levels in reversed(_HEIGHTS)]
        self.decoder = nn.ModuleList([UBlock(2 * _WIDTH, 4, dilated=True), *upper])
        self.side = nn.ModuleList(nn.Conv2d(_WIDTH, 1, 3, padding=1) for _ in range(6))
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """The probability that a pixel belongs to the salient object.

        Args:
            pictures: [b,3,h,w] float, normalised by ImageNet's mean and deviation; sides of at least 32 pixels.

        Returns:
            [b,1,h,w] float in [0,1].
        """
        stages = [self.encoder[0](pictures)]
        for block in self.encoder[1:]:
            stages.append(block(_max_pool(stages[-1])))
        features = [stages.pop()]
        for block, stage in zip(self.decoder, reversed(stages), strict=True):
            features.append(block(torch.cat([_upsample_like(features[-1], stage), stage], dim=1)))
        maps = [side(f) for side, f in zip(self.side, reversed(features), strict=True)]  # the finest first
        return self.fuse(torch.cat([_upsample_like(m, maps[0]) for m in maps], dim=1)).sigmoid()


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _upsample_like(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def load() -> U2Net:
    """The bundled network in float32 on the CPU, in eval mode; loaded once.

    Raises:
        InputError: where the weights are missing or damaged.
    """
    folder = resources.root() / WEIGHTS
    if faults := provenance.verify_checksums(folder):
        raise InputError(f"the cut-out's network in '{folder}' is damaged: {faults[0]}")
    network = U2Net()
    network.load_state_dict({k: v.float() for k, v in load_file(folder / "u2netp.safetensors").items()})
    return network.eval()


@torch.no_grad()
def saliency(rgb: Tensor) -> Tensor:
    """Where the salient object of a picture is.

    Args:
        rgb: [h,w,3] uint8, or float in [0,1].

    Returns:
        [INPUT_SIDE,INPUT_SIDE] float in [0,1]: the whole picture, squeezed into a square.
    """
    planes = rgb.permute(2, 0, 1)[None]
    square = F.interpolate(planes, (INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True, align_corners=False)
    square = square.float() / square.amax().clamp_min(1e-6)  # as it was trained
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION))
    found: Tensor = load()((square - mean) / deviation)[0, 0]
    return found
