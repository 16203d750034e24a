"""The start of an autoencoder as a block average.

A small convolutional autoencoder with random weights spends most of a short run on learning to pass colours on. One
that starts as a block average does so from the first step.
"""

from nova3d.utils.compat import ensure_torchvision

ensure_torchvision()  # before anything imports diffusers

# ruff: noqa: E402
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from nova3d.models.autoencoder import VideoAutoencoder

COLOURS = 3
SIGNAL = 2 * COLOURS  # trunk channels 0-2 carry the colours, 3-5 their negatives
INITIAL_LOG_VARIANCE = -8.0  # a posterior as wide as its mean would hide the picture from the decoder for long
OUTPUT_GAIN = 0.8  # the decoder's last normalisation makes the signal's deviation 1; pictures have about this much

_POINT = torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0))
_MEAN = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 4  # Downsample2D pads right and below
_TENT = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16


@torch.no_grad()
def start_as_block_average(model: VideoAutoencoder) -> None:
    """Make an untrained autoencoder store each 8x8 block's mean colour and upsample it smoothly.

    Every residual branch starts at zero. Six channels of the trunk carry the three colours and their negatives, and
    the first three latent channels store the colours. All other channels start as usual; nothing is frozen. The
    negatives make SiLU linear: silu(x) - silu(-x) = x.

    Args:
        model: with at least 3 latent channels and trunk widths of 8 or more; its weights are set in place.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock2D | TemporalResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.ones(1, 1))
        elif isinstance(module, Downsample2D):
            _carry(module.conv, _MEAN)
        elif isinstance(module, Upsample2D):
            _carry(module.conv, _TENT)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
    _split(model.encoder.conv_in)
    _join(model.encoder.conv_out, 1.0)
    _split(model.decoder.conv_in)
    _join(model.decoder.conv_out, OUTPUT_GAIN)
    latents = model.config.latent_channels
    nn.init.zeros_(model.encoder.conv_out.weight[latents:])
    nn.init.eye_(model.quant_conv.weight[:, :, 0, 0])
    nn.init.zeros_(model.quant_conv.bias)
    nn.init.zeros_(model.encoder.conv_out.bias[latents:])
    model.quant_conv.bias[latents:].fill_(INITIAL_LOG_VARIANCE)
    temporal = model.decoder.time_conv_out
    nn.init.zeros_(temporal.weight)
    nn.init.zeros_(temporal.bias)
    for channel in range(COLOURS):
        temporal.weight[channel, channel, temporal.kernel_size[0] // 2, 0, 0] = 1


def _carry(conv: nn.Module, kernel: Tensor) -> None:
    """The signal channels pass through `conv`, filtered by `kernel`, untouched by the others."""
    weight, bias = conv.weight, conv.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    weight[:SIGNAL] = 0
    bias[:SIGNAL] = 0
    for channel in range(SIGNAL):
        weight[channel, channel] = kernel.reshape(weight.shape[2:]) if kernel.numel() > 1 else 1.0


def _split(conv: nn.Conv2d) -> None:
    """Trunk channels 0-2 are input channels 0-2 and 3-5 their negatives; 6 and 7, their normalisation group's
    remainder at four channels a group, start silent."""
    conv.weight[: SIGNAL + 2] = 0
    assert conv.bias is not None
    conv.bias[: SIGNAL + 2] = 0
    for channel in range(COLOURS):
        conv.weight[channel, channel] = _POINT
        conv.weight[channel + COLOURS, channel] = -_POINT


def _join(conv: nn.Conv2d, gain: float) -> None:
    """Output channels 0-2 are gain * (silu(x) - silu(-x)) = gain * x."""
    conv.weight[:COLOURS] = 0
    assert conv.bias is not None
    conv.bias[:COLOURS] = 0
    for channel in range(COLOURS):
        conv.weight[channel, channel] = gain * _POINT
        conv.weight[channel, channel + COLOURS] = -gain * _POINT
