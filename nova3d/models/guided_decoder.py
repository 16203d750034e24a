"""A temporal decoder with a guide picture as its second input."""

import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from torch import Tensor, nn


class GuidedTemporalDecoder(TemporalDecoder):
    """SVD's temporal decoder with a second input, the guide picture, at the resolution of the output.

    Asymmetric autoencoders for inpainting have such an input (Zhu et al. 2023). After every up block a convolution of
    the guide picture, reduced to the block's resolution, is added. The convolutions start at zero. Until they are
    trained, and without a guide picture, the decoder computes SVD's function.

    It has nothing to do with classifier-free guidance.
    """

    guides: nn.ModuleList

    @staticmethod
    def convert_in_place(decoder: TemporalDecoder, channels: int) -> None:
        """Turn a plain decoder into a guided one, in place, for guide pictures of `channels` channels."""
        decoder.__class__ = GuidedTemporalDecoder
        widths = [block.resnets[-1].spatial_res_block.out_channels for block in decoder.up_blocks]
        decoder.guides = nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1) for width in widths])
        for conv in decoder.guides:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(
        self, sample: Tensor, image_only_indicator: Tensor, num_frames: int = 1, guide: Tensor | None = None
    ) -> Tensor:
        """Decode latents.

        Args:
            sample: [n,4,h,w] unscaled latents, n = videos * num_frames.
            image_only_indicator: [videos,num_frames] zeros.
            num_frames: frames of a video.
            guide: [n,g,H,W] guide pictures at the resolution of the output, or None.

        Returns:
            [n,3,H,W].
        """
        if guide is None:
            return super().forward(sample, image_only_indicator, num_frames)
        x = self.mid_block(self.conv_in(sample), image_only_indicator=image_only_indicator)
        for block, conv in zip(self.up_blocks, self.guides, strict=True):
            x = block(x, image_only_indicator=image_only_indicator)
            x = x + guide_features(conv, guide, x)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        video = x.unflatten(0, (-1, num_frames)).transpose(1, 2)
        return self.time_conv_out(video).transpose(1, 2).flatten(0, 1)


def guide_features(conv: nn.Module, guide: Tensor, like: Tensor) -> Tensor:
    """What guide pictures [n,g,H,W] add to the output `like` [n,c,h,w] of an up block: area means, convolved."""
    h, w = like.shape[-2:]
    return conv(F.adaptive_avg_pool2d(guide, (h, w)).to(like.dtype))
