"""Training a small autoencoder of SVD's own class, on RGB views and normal maps."""

import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nova3d.data.shards import ShardReader, shard_hash
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder
from nova3d.models.conditioning import inflated_guide
from nova3d.normals import rotate
from nova3d.pipeline import Nova3DPipeline
from nova3d.training.block_average import start_as_block_average
from nova3d.training.checkpoint import load_checkpoint, read_states, save_checkpoint, write_states
from nova3d.training.config import AutoencoderModelConfig, AutoencoderTrainConfig
from nova3d.training.data import generator
from nova3d.training.logs import StatsLog
from nova3d.training.networks import load_pretrained
from nova3d.training.optim import ParameterGroup, is_matrix, make_optimizer
from nova3d.training.precision import resolve
from nova3d.utils import provenance
from nova3d.utils.files import locked, writable_folder
from nova3d.utils.progress import Progress
from nova3d.utils.seeds import step_seed
from nova3d.views import yaw_rotation

log = logging.getLogger(__name__)

WEIGHT_DECAY = 1e-4


def train_autoencoder(config: AutoencoderTrainConfig, device: str, progress: Progress | None = None) -> Path:
    """Train an autoencoder; an interrupted run resumes from its last checkpoint.

    Args:
        config: of the run.
        device: "cpu", "cuda".
        progress: called at every log entry.

    Returns:
        The diffusers folder `config.out`/vae. Its scaling_factor is 1 / std of the latents over training views.

    Raises:
        InputError: for bad shards, folders or checkpoints, a crop that does not fit, and while another run uses
            `config.out`.
    """
    out = writable_folder(config.out)
    with locked(out, "a training run"):
        return _train(config, torch.device(device), out, progress)


def _train(config: AutoencoderTrainConfig, device: torch.device, out: Path, progress: Progress | None) -> Path:
    reader = ShardReader(config.shards)
    factor = 2 ** (len(config.model.block_out_channels) - 1)
    if not factor <= config.crop <= reader.cameras.width or config.crop % factor:
        raise InputError(
            f"crop {config.crop} must be a multiple of {factor} and at most {reader.cameras.width}, the pixels of "
            f"'{config.shards}'"
        )
    torch.manual_seed(config.seed)
    model = start_model(config, reader.cameras.width).to(device)
    pipeline = load_generator(config, model, reader, device) if config.generator else None
    groups = parameter_groups(model, config)
    optimizer = make_optimizer(config.optimizer, groups, (0.9, 0.99), device)
    precision = resolve(config.mixed_precision, device.type)
    parts = {"model": model, "optimizer": optimizer}
    identity = {
        "model": vars(config.model),
        "shards": shard_hash(reader.samples),
        "seed": config.seed,
        "optimizer": config.optimizer,
        "start": config.start or "",
        "decoder_only": config.decoder_only,
        "latent_noise": config.latent_noise,
        "generator": config.generator or "",
    }

    def write(folder: Path) -> None:
        write_states(folder, {name: part.state_dict() for name, part in parts.items()})

    start = load_checkpoint(out, lambda folder: read_states(folder, parts), identity)
    stats = StatsLog(out / "stats.jsonl", start)
    for step in range(start, config.steps):
        started = time.perf_counter()
        factor = cosine_decay_factor(step, config.warmup, config.steps, config.final_rate)
        for state, group in zip(optimizer.param_groups, groups, strict=True):
            state["lr"] = group.learning_rate * factor
        clips, guides, latents = (
            (*batch(reader, config, step), None)
            if pipeline is None
            else generated_batch(pipeline, reader, config, step, precision == "bf16")
        )
        clips, guides = clips.to(device), None if guides is None else guides.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            if latents is None:
                losses = reconstruction_losses(model, clips, config, generator(config.seed, 0, step), guides)
            else:
                losses = decoding_losses(model, latents.to(device), clips, config, guides)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stats.add(step, {k: v.item() for k, v in losses.items()} | {"seconds": time.perf_counter() - started})
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            means = stats.flush()
            if progress:
                progress(step + 1, config.steps, f"training, loss {means['loss']:.4f}, psnr {means['psnr']:.2f}")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            stats.flush()
            save_checkpoint(out, step + 1, write, identity)
    if not config.decoder_only:
        model.register_to_config(scaling_factor=1 / latent_std(model, reader, config.seed))
    model.save_pretrained(out / "vae", safe_serialization=True)
    data = {"shards": shard_hash(reader.samples)}
    provenance.write(out, provenance.record("train_autoencoder", config, data=data))
    return out / "vae"


def start_model(config: AutoencoderTrainConfig, size: int) -> VideoAutoencoder:
    """The autoencoder that training starts from.

    Args:
        config: of the run.
        size: side of the pictures, in pixels.

    Returns:
        The autoencoder, on the CPU.

    Raises:
        InputError: where `start` has other sizes than `model`, or another guide. Also where only the decoder is to be
            trained and there is no `start`.
    """
    model = build(config.model, size)
    if config.start:
        trained = load_pretrained(VideoAutoencoder, config.start)
        for key, value in vars(config.model).items():
            there = getattr(trained.config, key)
            if key == "guide_channels" and 0 in (there, value):
                continue  # a new guide's weights stay at zero; those of a guide that `model` lacks are left out
            if (list(there) if isinstance(there, list | tuple) else there) != value:
                raise InputError(f"start '{config.start}' has model.{key}={there}, the config has {value}")
        model.load_state_dict(trained.state_dict(), strict=False)
        model.register_to_config(scaling_factor=trained.config.scaling_factor)
    elif config.decoder_only:
        raise InputError("decoder_only needs start=, the autoencoder whose encoder is kept")
    if config.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    return model


def parameter_groups(model: VideoAutoencoder, config: AutoencoderTrainConfig) -> list[ParameterGroup]:
    """Parameter groups. With Muon, matrices and kernels are a group of their own. All groups have weight decay."""
    others = ParameterGroup("others", config.learning_rate, WEIGHT_DECAY)
    matrices = ParameterGroup("matrices", config.muon_learning_rate, WEIGHT_DECAY, muon=True)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        muon = config.optimizer == "muon" and is_matrix(name, parameter)
        (matrices if muon else others).parameters.append(parameter)
    return [group for group in (others, matrices) if group.parameters]


def build(config: AutoencoderModelConfig, size: int) -> VideoAutoencoder:
    """An untrained autoencoder that starts as block averages."""
    model = VideoAutoencoder(
        down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        sample_size=size,
        force_upcast=False,
        norm_groups=config.norm_groups,
        guide_channels=config.guide_channels,
    )
    start_as_block_average(model)
    return model


def reconstruction_losses(
    model: VideoAutoencoder,
    clips: Tensor,
    config: AutoencoderTrainConfig,
    rng: torch.Generator,
    guides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch of clips.

    Args:
        model: the autoencoder.
        clips: [n,f,3,h,w] in [-1,1].
        config: the losses' weights and the noise on the latents.
        rng: draws the latents and their noise.
        guides: [n,f,4,h,w] for a guided decoder, else None.

    Returns:
        `loss`; `l1` and `kl`; `psnr` in dB, for the log.
    """
    frames, count = clips.flatten(0, 1), clips.shape[1]
    with torch.set_grad_enabled(not config.decoder_only):
        posterior = model.encode(frames).latent_dist
        latents = posterior.sample(rng)
    if config.latent_noise:
        # Any strength up to the full one, the same for a clip: generators' errors differ in size.
        strength = config.latent_noise * torch.rand(len(clips), generator=rng) / model.config.scaling_factor
        noise = torch.randn(latents.shape, generator=rng) * strength.repeat_interleave(count)[:, None, None, None]
        latents = latents + noise.to(latents)
    losses = decoding_losses(model, latents.unflatten(0, clips.shape[:2]), clips, config, guides)
    kl = posterior.kl().mean()
    return losses | {"loss": losses["loss"] + config.kl_weight * kl, "kl": kl.detach()}


def decoding_losses(
    model: VideoAutoencoder,
    latents: Tensor,
    clips: Tensor,
    config: AutoencoderTrainConfig,
    guides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch of latents as decoded.

    Args:
        model: the autoencoder.
        latents: [n,f,4,h/8,w/8], unscaled.
        clips: [n,f,3,h,w] in [-1,1], what they should show.
        config: the losses' weights.
        guides: [n,f,4,h,w] for a guided decoder, else None.

    Returns:
        `loss`; `l1`; `psnr` in dB, for the log.
    """
    frames, count = clips.flatten(0, 1), clips.shape[1]
    if guides is None:
        restored = model.decode(latents.flatten(0, 1), num_frames=count).sample
    else:
        restored = model.decode_guided(latents.flatten(0, 1), guides.flatten(0, 1), count)
    mse, l1 = F.mse_loss(restored, frames), F.l1_loss(restored, frames)
    psnr = -10 * (mse.detach() / 4).log10()  # range 2, hence / 4
    return {"loss": mse + config.l1_weight * l1, "l1": l1.detach(), "psnr": psnr}


def batch(reader: ShardReader, config: AutoencoderTrainConfig, step: int) -> tuple[Tensor, Tensor | None]:
    """The clips of one step, a function of (seed, step) alone. Tasks alternate.

    Args:
        reader: of the shards.
        config: of the run.
        step: zero-based.

    Returns:
        Clips [n,f,3,h,w] in [-1,1], and for a guided decoder their guides [n,f,4,h,w], else None.
    """
    rng = torch.Generator().manual_seed(step_seed(config.seed, step))
    crop = reader.cameras.width if step >= config.full_frame_from * config.steps else config.crop
    count = max(1, config.clips * config.crop**2 // crop**2) if crop != config.crop else config.clips
    guided = config.model.guide_channels > 0
    pairs = [_clip(reader, config.frames, crop, index % 2, rng, guided) for index in range(max(2, count))]
    guides = [guide for _, guide in pairs if guide is not None]
    return torch.stack([clip for clip, _ in pairs]), torch.stack(guides) if guided else None


def load_generator(
    config: AutoencoderTrainConfig, model: VideoAutoencoder, reader: ShardReader, device: torch.device
) -> Nova3DPipeline:
    """The model of `config.generator`, whose latents a decoder learns from.

    Args:
        config: of the run.
        model: the autoencoder that is trained.
        reader: of the shards.
        device: where the generator works.

    Returns:
        The pipeline.

    Raises:
        InputError: where the encoder is trained too, and where the model has the latents of another encoder or other
            views than the shards.
    """
    name = str(config.generator)
    if not config.decoder_only:
        raise InputError("generator= is for decoder_only=true: an encoder that changes leaves its latents behind")
    pipeline = Nova3DPipeline.load(name, device)
    pipeline.set_progress_bar_config(disable=True)
    ours, theirs = model.encoder.state_dict(), pipeline.vae.encoder.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(weight, theirs[key]) for key, weight in ours.items()):
        raise InputError(f"generator '{name}' has another encoder than start '{config.start}'")
    if (len(pipeline.cameras), pipeline.config.size) != (len(reader.cameras), reader.cameras.width):
        raise InputError(
            f"generator '{name}' makes {len(pipeline.cameras)} views of {pipeline.config.size} px, "
            f"the shards hold {len(reader.cameras)} of {reader.cameras.width} px"
        )
    return pipeline


def generated_batch(
    pipeline: Nova3DPipeline, reader: ShardReader, config: AutoencoderTrainConfig, step: int, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """One step's samples of a model, a function of (seed, step) alone. Any view may be the input picture.

    Args:
        pipeline: the model, with the condition "inflated" or a rig that this condition works for.
        reader: of the shards.
        config: of the run.
        step: zero-based.
        bf16: let the networks work in bfloat16.

    Returns:
        Of `clips` // 2 objects, one clip per task: the true clips [n,f,3,h,w] in [-1,1], their guides [n,f,4,h,w] and
        the generated latents [n,f,4,h/8,w/8], unscaled.
    """
    rng = torch.Generator().manual_seed(step_seed(config.seed, step))
    views_each = len(reader.cameras)
    clips, guides, latents = [], [], []
    for index in range(max(1, config.clips // 2)):
        row, turn, first = (int(torch.randint(n, (), generator=rng)) for n in (len(reader), views_each, views_each))
        views = reader.views(row).rotated_to(turn)
        picture = views.straight_alpha(0)
        seed = step * config.clips + index  # another seed for every object
        with torch.autocast(pipeline.device.type, torch.bfloat16, enabled=bf16):
            generated = pipeline(picture, framed=True, seed=seed, output_type="latent").latents[0]
        shown = [(first + k) % views_each for k in range(config.frames)]
        truth = torch.stack([views.rgb[shown] * 2 - 1, views.normals[shown]])
        clips.append(truth.permute(0, 1, 4, 2, 3))
        guides.append(inflated_guide(picture, views.cameras, shown))
        latents.append(generated[:, shown] / pipeline.vae.config.scaling_factor)
    return torch.cat(clips), torch.cat(guides), torch.cat(latents)


def _clip(
    reader: ShardReader, frames: int, crop: int, task: int, rng: torch.Generator, guided: bool
) -> tuple[Tensor, Tensor | None]:
    row = int(torch.randint(len(reader), (), generator=rng))
    first = int(torch.randint(len(reader.cameras), (), generator=rng))
    turn = int(torch.randint(len(reader.cameras), (), generator=rng))
    order = [(first + k) % len(reader.cameras) for k in range(frames)]
    views = reader.views(row, order)
    if task == 0:
        picture = views.rgb * 2 - 1
    else:  # any of the views can be the input view, and its frame is the normals' frame
        azimuth = reader.cameras.azimuth_elevation()[turn, 0]
        picture = rotate(views.normals, yaw_rotation(-azimuth))
    clip = picture.permute(0, 3, 1, 2)
    guide = None
    if guided:
        seen = [(view - turn) % len(reader.cameras) for view in order]
        guide = inflated_guide(reader.views(row, [turn]).straight_alpha(0), reader.cameras, seen)[task]
    if crop == clip.shape[-1]:
        return clip, guide
    inside = torch.nonzero(views.mask.amax(dim=0) > 0)
    centre = inside[int(torch.randint(len(inside), (), generator=rng))] if len(inside) else torch.tensor([0, 0])
    y, x = (int(min(max(int(c) - crop // 2, 0), clip.shape[-1] - crop)) for c in centre)
    window = (slice(None), slice(None), slice(y, y + crop), slice(x, x + crop))
    return clip[window], None if guide is None else guide[window]


@torch.no_grad()
def latent_std(model: VideoAutoencoder, reader: ShardReader, seed: int, objects: int = 32) -> float:
    """Standard deviation of the mean latents over RGB views and normal maps of some objects."""
    rng = torch.Generator().manual_seed(seed)
    latents = []
    for row in torch.randperm(len(reader), generator=rng)[:objects].tolist():
        views = reader.views(row, list(range(0, len(reader.cameras), 4)))
        frames = torch.cat([views.rgb * 2 - 1, views.normals]).permute(0, 3, 1, 2).to(model.device)
        latents.append(model.encode(frames).latent_dist.mode())
    return float(torch.cat(latents).std())


def cosine_decay_factor(step: int, warmup: int, total: int, final: float) -> float:
    """The factor on the peak learning rates: linear warm-up, then cosine decay to `final`.

    Args:
        step: zero-based.
        warmup: steps of the warm-up.
        total: steps of the run.
        final: the factor at the end.

    Returns:
        The factor, in (0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
