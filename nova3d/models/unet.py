"""NovaUNet: SVD's video UNet denoising the RGB and the normal sequence of an object together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  DiffusionPipeline looks its loader up here
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionOutput
from torch import Tensor

from nova3d.models.alignment import ALIGNMENT_INITS, ALIGNMENTS, AlignmentInit
from nova3d.models.blocks import (
    SpatioTemporalTransformer,
    ViewEmbedding,
    convert_in_place,
    fold_temporal_convs,
    group_norms,
)
from nova3d.models.svd import SVD_FPS_ID, SVD_MOTION_ID, LoadReport, load_svd
from nova3d.tasks import TASKS, Task


class NovaUNet(UNetSpatioTemporalConditionModel, PeftAdapterMixin):
    """diffusers' UNetSpatioTemporalConditionModel plus view and task labels and alignment attention.

    Args:
        alignment: a name of nova3d.models.alignment.ALIGNMENTS.
        alignment_init: "copied", "random" or "wonder3d", see AlignmentAttention.initialise.
        id_mode: "fold" drops SVD's fps and motion ids: their constant share belongs in the bias, so
            projection_class_embeddings_input_dim is addition_time_embed_dim, derived where None. "constant" keeps
            SVD's three ids and feeds the first two as constants.
        norm_groups: groups of every GroupNorm; SVD has 32, small widths need fewer.
        row_attention: attention along image rows over all views in every spatial block, see
            nova3d.models.row_attention.

    The other arguments are the parent's.
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
        alignment: str = "gta",
        alignment_init: AlignmentInit = "copied",
        id_mode: str = "fold",
        norm_groups: int = 32,
        row_attention: bool = False,
    ):
        if alignment not in ALIGNMENTS:
            known = ", ".join(ALIGNMENTS)
            raise ValueError(f"alignment '{alignment}' is not one of {known}; a module that adds it is not imported")
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
        with group_norms(norm_groups):
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
                convert_in_place(module, alignment, alignment_init, row_attention)
        fold_temporal_convs(self)

    @classmethod
    def from_svd(
        cls, path_or_hub_id: str | Path, variant: str | None = None, **config: Any
    ) -> tuple["NovaUNet", LoadReport]:
        """SVD's weights with the paper's additions at zero.

        Args:
            path_or_hub_id: a diffusers folder of SVD, its original .safetensors file, or a hub id.
            variant: "fp16" for the weight files of that name in a folder; None for the plain ones.
            **config: `dtype`, this constructor's own arguments (alignment, alignment_init, id_mode), or an override of
                what the source says of SVD (num_attention_heads).

        Returns:
            The network in eval mode on the CPU, which computes SVD's function, and the report on every key.

        Raises:
            InputError: where a key is missing, left over, of another shape or type, or not finite.
        """
        return load_svd(cls, path_or_hub_id, variant, **config)

    def forward(
        self,
        sample: Tensor,
        c_noise: Tensor,
        image_embeds: Tensor,
        noise_aug: Tensor,
        cameras: Tensor,
        tasks: Sequence[Task] = TASKS,
        return_dict: bool = True,
    ) -> UNetSpatioTemporalConditionOutput | tuple[Tensor]:
        """The network's raw output F for noisy latents.

        Args:
            sample: float [b,t,v,8,h,w], c_in * noisy latent (4 channels) and the condition's unscaled latent (4). View
                0 is the input view. Its dtype is that of the network.
            c_noise: float32 [b], ln(sigma) / 4.
            image_embeds: float [b,1,d], CLIP's embedding of the input picture, zeros where dropped.
            noise_aug: float32 [b], standard deviation of the noise on the condition picture, pixels in [-1,1].
            cameras: float32 [b,v,2], azimuth relative to the input view, and elevation, in radians.
            tasks: the t tasks in the order of the task axis.
            return_dict: return an output with the field `sample` instead of a tuple.

        Returns:
            F [b,t,v,4,h,w] in the sample's dtype, as `sample` of the output or as the tuple's only element.

        Raises:
            ValueError: where `tasks` are not as many as the sample's.
        """
        b, t, v = sample.shape[:3]
        if len(tasks) != t:
            raise ValueError(f"sample holds {t} tasks, but {len(tasks)} were named")
        emb = self._embed(c_noise, noise_aug, cameras, tuple(tasks), sample.dtype)
        # What our transformers must know beside their tokens goes through diffusers' UNet blocks like this:
        # - t is read off the shape of the context [b,t,k,d], a view of the picture's one embedding.
        # - v is read off the shape of the indicator [(b t),v]. Its zeros say that no frame is a still image.
        # - Azimuths [b,v] have no argument: they are set on the transformers, which hand them to row attention.
        context = image_embeds.to(sample.dtype)[:, None].expand(-1, t, -1, -1)
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
        x = self.conv_out(self.conv_act(self.conv_norm_out(x))).unflatten(0, (b, t, v))
        return UNetSpatioTemporalConditionOutput(sample=x) if return_dict else (x,)

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
    def attn_processors(self) -> dict[str, Any]:
        """The processors of all attention that computes scores, by module name.

        Cross-attention (attn2) is not listed: over SVD's single context token it is a projection of the context, and
        no processor runs.
        """
        return {name: value for name, value in super().attn_processors.items() if ".attn2." not in name}

    def set_attn_processor(self, processor: Any) -> None:
        """Set the processor of all attention in `attn_processors`.

        Args:
            processor: one for all, or a dict with the keys of `attn_processors`.

        Raises:
            ValueError: where a dict has other keys.
        """
        names = self.attn_processors
        if isinstance(processor, dict) and processor.keys() != names.keys():
            raise ValueError(
                f"the number of processors or their names do not fit: {len(processor)} given, {len(names)} expected"
            )
        for name in names:
            module: Any = self.get_submodule(name.removesuffix(".processor"))
            module.set_processor(processor[name] if isinstance(processor, dict) else processor)

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Refused: the blocks run their feed-forward layers whole.

        Raises:
            NotImplementedError: always; `Nova3DPipeline.set_memory` cuts the work instead.
        """
        raise NotImplementedError("NovaUNet does not chunk its feed-forward layers; use Nova3DPipeline.set_memory")

    @property
    def lora_target_modules(self) -> list[str]:
        """Names of the linear layers that LoRA can train, for peft's `LoraConfig(target_modules=...)`.

        These are the projections of all attention layers but attn2's to_q and to_k, which get no gradient over SVD's
        single context token; DistributedDataParallel stops at parameters without one.
        """
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, torch.nn.Linear)
            and name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
            and not name.endswith((".attn2.to_q", ".attn2.to_k"))
        ]

    @property
    def new_parameter_names(self) -> list[str]:
        """Names of the parameters that SVD does not have."""
        return [name for name, _ in self.named_parameters() if _is_new(name)]


def _is_new(name: str) -> bool:
    return any(part in name for part in ("view_embedding.", ".alignment.", ".row_attention."))


def _context(block: torch.nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
