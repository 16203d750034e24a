"""SVD's autoencoder, usable at small widths and with a guided decoder."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  DiffusionPipeline looks its loader up here
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from nova3d.models.blocks import fold_temporal_convs, group_norms
from nova3d.models.guided_decoder import GuidedTemporalDecoder
from nova3d.models.streaming import decode_in_pieces


class VideoAutoencoder(AutoencoderKLTemporalDecoder):
    """diffusers' AutoencoderKLTemporalDecoder with fast temporal convolutions, `norm_groups` and guide pictures.

    With the default of 32 groups and no guide picture it loads SVD's weights and computes SVD's function.
    guide_channels: channels of the guide pictures that the decoder also sees, 0 for none (GuidedTemporalDecoder).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        sample_size: int = 256,
        scaling_factor: float = 0.18215,
        force_upcast: bool = True,
        norm_groups: int = 32,
        guide_channels: int = 0,
    ):
        with group_norms(norm_groups):
            super().__init__(
                in_channels=in_channels,
                out_channels=out_channels,
                down_block_types=tuple(down_block_types),
                block_out_channels=tuple(block_out_channels),
                layers_per_block=layers_per_block,
                latent_channels=latent_channels,
                sample_size=sample_size,
                scaling_factor=scaling_factor,
                force_upcast=force_upcast,
            )
        fold_temporal_convs(self)
        if guide_channels:
            GuidedTemporalDecoder.convert_in_place(self.decoder, guide_channels)

    def decode_guided(self, latents: Tensor, guide: Tensor, num_frames: int) -> Tensor:
        """Decode [n,4,h,w] unscaled latents with guide pictures [n,g,H,W]; returns [n,3,H,W]."""
        indicator = latents.new_zeros(len(latents) // num_frames, num_frames)
        return self.decoder(latents, indicator, num_frames, guide)


@torch.no_grad()
def encode_moments(vae: AutoencoderKLTemporalDecoder, frames: Tensor, chunk: int = 0) -> Tensor:
    """Frames [n,3,h,w] in [-1,1] to the posterior's mean and log-variance, [n,8,h/8,w/8], `chunk` of them at a time.

    chunk 0: 64, or 4 on a CPU, whose caches hold the activations of a few frames only.
    """
    size = chunk or (4 if frames.device.type == "cpu" else 64)
    parts = [vae.encode(part).latent_dist.parameters for part in frames.split(size)]
    return torch.cat(parts)


def sample_moments(moments: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """A scaled latent from moments [...,8,h,w] (channels third from last) and standard normal noise [...,4,h,w]."""
    mean, log_variance = moments.chunk(2, dim=-3)
    return (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise) * scaling_factor


@torch.no_grad()
def encode_mode(vae: AutoencoderKLTemporalDecoder, frames: Tensor, chunk: int | None = None) -> Tensor:
    """The posterior's mode [n,4,h,w], NOT scaled, of frames [n,3,H,W] in [-1,1]; in the dtype of `frames`.

    `chunk` frames are encoded at a time, None for all; it changes memory, not the result.
    SVD's encoder overflows in float16: where the config says `force_upcast`, a float16 encoder works in float32.
    """
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    parts = (vae.encoder, vae.quant_conv)
    dtype = torch.float32 if upcast else vae.dtype
    try:
        if upcast:
            for part in parts:
                part.to(torch.float32)
        modes = [vae.encode(part.to(dtype)).latent_dist.mode() for part in frames.split(chunk or len(frames))]
        return torch.cat(modes).to(frames.dtype)
    finally:
        if upcast:
            for part in parts:
                part.to(torch.float16)


@torch.no_grad()
def decode(
    vae: AutoencoderKLTemporalDecoder,
    latents: Tensor,
    views: int | None = None,
    rows: int | None = None,
    guide: Tensor | None = None,
) -> Tensor:
    """Scaled latents to pictures.

    The decoder has temporal layers, so each (object, task) video is decoded by itself, and always as a whole: `views`
    and `rows` (None: all) cut the work of each layer, see nova3d.models.streaming, and change memory, not the result.

    Args:
        vae: the autoencoder.
        latents: [b,t,v,4,h,w], scaled.
        views: frames in a piece of a layer's work, None for all.
        rows: rows of a frame in a piece, None for all.
        guide: [b,t,v,g,H,W] guide pictures for an autoencoder with a guided decoder, else None.

    Returns:
        [b,t,v,3,H,W] in [-1,1].
    """
    videos = (latents.flatten(0, 1) / vae.config.scaling_factor).to(vae.dtype)
    guides = [None] * len(videos) if guide is None else list(guide.flatten(0, 1).to(videos))
    decoded = [_decode_video(vae, *pair, views, rows).clamp(-1, 1) for pair in zip(videos, guides, strict=True)]
    return torch.stack(decoded).unflatten(0, latents.shape[:2])


@apply_forward_hook  # model offload moves the VAE to its device here, as it does for its own `decode`
def _decode_video(
    vae: AutoencoderKLTemporalDecoder, video: Tensor, guide: Tensor | None, views: int | None, rows: int | None
) -> Tensor:
    if views or rows:
        return decode_in_pieces(vae.decoder, video, views, rows, guide)
    if guide is None:
        return vae.decode(video, num_frames=len(video)).sample
    return vae.decode_guided(video, guide, len(video))
