"""NovaUNet: SVD's video UNet denoising the RGB and the normal sequence of an object together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  DiffusionPipeline looks its loader up here
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor

from nova3d.models.alignment import ALIGNMENT_INITS, ALIGNMENTS, Alignment, AlignmentInit
from nova3d.models.blocks import SpatioTemporalTransformer, adopt
from nova3d.models.norms import set_norm_groups
from nova3d.models.temporal_conv import fold_temporal_convs
from nova3d.models.view_embedding import ViewEmbedding
from nova3d.tasks import TASKS, Task

if TYPE_CHECKING:
    from nova3d.models.svd import LoadReport

SVD_FPS_ID, SVD_MOTION_ID = 6.0, 127.0  # what SVD's pipeline feeds: fps 7 minus 1, motion bucket 127


class NovaUNet(UNetSpatioTemporalConditionModel):
    """diffusers' UNetSpatioTemporalConditionModel plus view and task labels and alignment attention.

    The constructor takes the parent's arguments and:
    alignment: "none", "cross_domain", "gta", "gta_spatial" or "gta_temporal" (paper Table I and finer arms).
    alignment_init: "copied", "random" or "wonder3d", see AlignmentAttention.initialise.
    id_mode: "fold" drops SVD's fps and motion ids (their constant share belongs in the bias, so
        projection_class_embeddings_input_dim is addition_time_embed_dim, derived where None); "constant" keeps SVD's
        three ids and feeds the first two as constants.
    norm_groups: groups of every GroupNorm; SVD has 32, small widths need fewer.
    row_attention: attention along image rows over all views in every spatial block, see nova3d.models.row_attention.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types: Sequence[str] = (
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int | None = None,
        layers_per_block: int = 2,
        cross_attention_dim: int = 1024,
        transformer_layers_per_block: int = 1,
        num_attention_heads: Sequence[int] = (5, 10, 20, 20),
        num_frames: int = 16,
        alignment: Alignment = "gta",
        alignment_init: AlignmentInit = "copied",
        id_mode: str = "fold",
        norm_groups: int = 32,
        row_attention: bool = False,
    ):
        if alignment not in ALIGNMENTS:
            raise ValueError(f"alignment '{alignment}' is not one of {', '.join(ALIGNMENTS)}")
        if alignment_init not in ALIGNMENT_INITS:
            raise ValueError(f"alignment_init '{alignment_init}' is not one of {', '.join(ALIGNMENT_INITS)}")
        if id_mode not in ("fold", "constant"):
            raise ValueError(f"id_mode '{id_mode}' is not one of fold, constant")
        id_width = addition_time_embed_dim * (1 if id_mode == "fold" else 3)
        if projection_class_embeddings_input_dim not in (None, id_width):
            raise ValueError(
                f"projection_class_embeddings_input_dim must be {id_width} for id_mode '{id_mode}', "
                f"got {projection_class_embeddings_input_dim}"
            )
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=id_width,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=tuple(num_attention_heads),
            num_frames=num_frames,
        )
        self.view_embedding = ViewEmbedding(block_out_channels[0] * 4)
        for module in list(self.modules()):
            if isinstance(module, TransformerSpatioTemporalModel):
                adopt(module, alignment, alignment_init, row_attention)
        set_norm_groups(self, norm_groups)
        fold_temporal_convs(self)

    @classmethod
    def from_svd(cls, path_or_hub_id: str | Path, variant: str = "", **config: Any) -> "tuple[NovaUNet, LoadReport]":
        """SVD's weights with the paper's additions at zero; see nova3d.models.svd.load_svd."""
        from nova3d.models.svd import load_svd

        return load_svd(path_or_hub_id, variant, **config)

    def forward(
        self,
        sample: Tensor,
        c_noise: Tensor,
        image_embeds: Tensor,
        noise_aug: Tensor,
        cameras: Tensor,
        tasks: Sequence[Task] = TASKS,
    ) -> Tensor:
        """The network's raw output F for noisy latents.

        sample [b,t,v,8,h,w]: c_in * noisy latent (4) and the condition's unscaled latent (4); view 0 is the input
        view. c_noise [b] = ln(sigma) / 4. image_embeds [b,1,d] of the input picture, zeros where dropped.
        noise_aug [b]: strength of the noise added to the condition picture. cameras [b,v,2]: azimuth relative to
        the input view and elevation, radians. Returns [b,t,v,4,h,w].
        """
        b, t, v = sample.shape[:3]
        if len(tasks) != t:
            raise ValueError(f"sample holds {t} tasks, but {len(tasks)} were named")
        emb = self._embed(c_noise, noise_aug, cameras, tuple(tasks), sample.dtype)
        context = image_embeds.to(sample.dtype)[:, None].expand(-1, t, -1, -1)  # b t k d: its shape tells blocks t
        # All zeros: frames are never told apart as still images; diffusers reads the view count off its shape.
        indicator = sample.new_zeros(b * t, v)
        if self.config.row_attention:
            for module in self.modules():
                if isinstance(module, SpatioTemporalTransformer):
                    module.azimuths = cameras[..., 0]
        x = self.conv_in(sample.flatten(0, 2))
        skips: tuple[Tensor, ...] = (x,)
        for down in self.down_blocks:
            x, kept = down(x, temb=emb, image_only_indicator=indicator, **_context(down, context))
            skips += kept
        x = self.mid_block(x, temb=emb, encoder_hidden_states=context, image_only_indicator=indicator)
        for up in self.up_blocks:
            count = len(up.resnets)
            skips, used = skips[:-count], skips[-count:]
            x = up(
                x,
                temb=emb,
                res_hidden_states_tuple=used,
                image_only_indicator=indicator,
                upsample_size=skips[-1].shape[2:] if skips else None,
                **_context(up, context),
            )
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (b, t, v))

    def _embed(
        self, c_noise: Tensor, noise_aug: Tensor, cameras: Tensor, tasks: tuple[Task, ...], dtype: torch.dtype
    ) -> Tensor:
        """[(b t v), 4 c0] embedding of noise level, ids, camera and task; SVD's ResBlocks take it per frame."""
        time = self.time_embedding(self.time_proj(c_noise.float()).to(dtype))
        ids = noise_aug.float()[:, None]
        if self.config.id_mode == "constant":
            constants = ids.new_tensor([SVD_FPS_ID, SVD_MOTION_ID]).expand(len(ids), 2)
            ids = torch.cat([constants, ids], dim=1)
        encoded = self.add_time_proj(ids.flatten()).reshape(len(ids), -1).to(dtype)
        per_object = time + self.add_embedding(encoded)
        labels = self.view_embedding(cameras, tasks, dtype)
        return (per_object[:, None, None] + labels).flatten(0, 2)

    @property
    def new_parameter_names(self) -> list[str]:
        """Names of the parameters that SVD does not have."""
        return [name for name, _ in self.named_parameters() if _is_new(name)]


def _is_new(name: str) -> bool:
    return any(part in name for part in ("view_embedding.", ".alignment.", ".row_attention."))


def _context(block: torch.nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
