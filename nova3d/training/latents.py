"""A latent cache on disk: objects that were encoded once, for runs whose encoders are frozen.

It is a folder of `latents-00000.safetensors ...`, 256 objects each in the shards' order, and
`manifest.json`. An object UID has these entries:

- `UID/rgb` float16 [v,8,h,w]: moments of the views in rendered order; of changed objects `UID/rgb.N`, starting at N.
- `UID/normal.N` float16 [v,8,h,w]: moments of the normal maps in the frame of input view N, starting at N.
- `UID/embed.N` float16 [1,d]: the CLIP embedding of the clean picture; not without a frozen image encoder.
- `UID/picture.N` uint8 [3,H,W]: the picture.
- `UID/condition.N` float16 [t,v,4,h,w]: unscaled modes of the condition `inflated`, where it is used.

N runs over the chosen input views. The objects of a cache are as they were rendered, or each is changed
as `data.augment` draws by the run's seed and the object's uid. Two caches of one shard folder, joined, hold every
object and its changed copy.
"""

import bisect
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nova3d import config as configs
from nova3d import images
from nova3d.data.augment import UNCHANGED, Augmentation, apply, check_rig, draw
from nova3d.data.config import AugmentConfig
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import shard_hash
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_moments
from nova3d.models.conditioning import clip_pixels, inflated_guide
from nova3d.tasks import TASKS
from nova3d.training.data import Item
from nova3d.transforms import cameras_to_transforms
from nova3d.utils import provenance
from nova3d.utils.files import read_json, replacing, write_text, writing
from nova3d.utils.progress import Progress
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
OBJECTS_PER_FILE = 256
# Raise it when the encoded inputs change: composite on white, normals in the input view's frame, CLIP's pixels.
PREPROCESSING = 1


def cache_identity(
    dataset: MultiViewDataset,
    vae: VideoAutoencoder,
    image_encoder: "CLIPVisionModelWithProjection | None",
    condition: str = "picture",
) -> dict[str, Any]:
    """What a latent cache depends on.

    Args:
        dataset: the objects.
        vae: the autoencoder that encodes them.
        image_encoder: None where embeddings are not cached.
        condition: "picture" or "inflated".

    Returns:
        Named hashes and values, as the cache's manifest holds them.
    """
    rig = dataset.reader.cameras
    return {
        "preprocessing": PREPROCESSING,
        "vae": provenance.hash_tensors(vae.encoder.state_dict(), vae.quant_conv.state_dict(), shapes=False),
        "image_encoder": provenance.hash_tensors(image_encoder.state_dict(), shapes=False)
        if image_encoder is not None
        else "",
        "rig": provenance.hash_json(cameras_to_transforms(rig)),
        "size": rig.width,
        "shards": shard_hash(dataset.reader.samples),
        "condition": condition,
    }


def build_cache(
    folder: str | Path,
    dataset: MultiViewDataset,
    vae: VideoAutoencoder,
    image_encoder: "CLIPVisionModelWithProjection | None",
    part: tuple[int, int] = (0, 1),
    objects_per_file: int = OBJECTS_PER_FILE,
    on_corrupt: str = "fail",
    progress: Progress | None = None,
    condition: str = "picture",
    precision: str = "no",
    augment: AugmentConfig | None = None,
) -> Path:
    """Encode every object of a data set for each of its input views. Files that exist are left alone.

    Args:
        folder: of the cache.
        dataset: the objects.
        vae: the autoencoder; its device and dtype are used.
        image_encoder: None where embeddings are not cached.
        part: (i, n): this process writes the files i, i + n, ...
        objects_per_file: objects in each file.
        on_corrupt: "skip" leaves objects out that cannot be read and names them in the log; "fail" raises.
        progress: called after every file.
        condition: "picture", or "inflated", which is encoded too.
        precision: "bf16" encodes under autocast; "no".
        augment: how every object is changed, once, by the data set's seed and its uid. None: not at all.

    Returns:
        The folder.

    Raises:
        InputError: where an object cannot be read, the rig does not allow the changes, or the folder holds another
            cache or cannot be written.
    """
    folder, augment = Path(folder), augment or AugmentConfig()
    check_rig(augment, dataset.reader.cameras)
    changes = {"seed": dataset.seed, **configs.to_dict(augment)} if augment.active else None
    manifest = cache_identity(dataset, vae, image_encoder, condition) | {
        "augment": changes,
        "precision": precision,
        "input_views": sorted(dataset.input_views),
        "input_views_per_object": dataset.per_object,
        "objects_per_file": objects_per_file,
        "uids": [sample["uid"] for sample in dataset.reader.samples],
    }
    with writing(f"the latent cache '{folder}'"):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).is_file():
            _check_identity(_read_manifest(folder), manifest, folder)
        elif part[0] == 0:
            record = provenance.record("cache_latents")
            write_text(folder / MANIFEST, json.dumps(manifest | {"record": record}), keep_equal=True)
        files = _files(folder, len(dataset), objects_per_file)
        mine = list(range(part[0], len(files), part[1]))
        for done, index in enumerate(mine):
            if not files[index].is_file():
                first = index * objects_per_file
                tensors: dict[str, Tensor] = {}
                for row in range(first, min(first + objects_per_file, len(dataset))):
                    try:
                        tensors |= _encode(dataset, row, augment, vae, image_encoder, condition, precision == "bf16")
                    except InputError as error:
                        if on_corrupt == "fail":
                            raise
                        log.warning("object '%s' is left out: %s", manifest["uids"][row], error)
                _write(files[index], tensors)
            if progress:
                progress(done + 1, len(mine), f"encoding, {files[index].name}")
    return folder


class LatentCache:
    """Items with moments from a cache folder; of the dataset only the index is read. Use it from one thread.

    Args:
        folder: of the cache.
        dataset: the objects and the input views that are wanted.
        expected: `cache_identity` of this run.

    Raises:
        InputError: where the cache is incomplete or was made with something else, naming what differs.
    """

    def __init__(self, folder: str | Path, dataset: MultiViewDataset, expected: dict[str, Any]):
        self.folder, self.dataset = Path(folder), dataset
        manifest = _read_manifest(self.folder)
        if not expected["image_encoder"]:  # one that is trained makes its own embeddings
            expected = expected | {"image_encoder": manifest["image_encoder"]}
        _check_identity(manifest, expected, self.folder)
        if (per_object := manifest.get("input_views_per_object")) != dataset.per_object:
            raise InputError(
                f"latent cache '{folder}' has input_views_per_object={per_object}, this run has {dataset.per_object}; "
                "make another with nova3d cache-latents"
            )
        lacking = sorted(set(dataset.input_views) - set(manifest["input_views"]))
        if lacking:
            raise InputError(
                f"latent cache '{folder}' has the input views {manifest['input_views']}, not {lacking[0]}: set "
                "data.input_views to what it has, or make another with nova3d cache-latents"
            )
        files = _files(self.folder, len(manifest["uids"]), manifest["objects_per_file"])
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise InputError(
                f"latent cache '{folder}' is not finished: {len(missing)} of {len(files)} files are missing, the first "
                f"is {missing[0]}; run nova3d cache-latents again"
            )
        self.with_embeds = bool(manifest["image_encoder"])
        self.with_condition = manifest.get("condition", "picture") == "inflated"
        self.changed = manifest.get("augment") is not None
        self.precision: str | None = manifest.get("precision")
        if self.changed:
            log.info("latent cache '%s' holds changed objects: %s", folder, manifest["augment"])
        per_file = manifest["objects_per_file"]
        self._file = {uid: files[index // per_file] for index, uid in enumerate(manifest["uids"])}
        self._handles: dict[Path, Any] = {}
        self._cameras: dict[int, Tensor] = {}

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object, as `ItemSource.load`; raises InputError for an augmentation too."""
        if change != UNCHANGED:
            raise InputError(f"the objects of latent cache '{self.folder}' cannot be changed any more")
        uid = self.dataset.reader.samples[row]["uid"]
        path = self._file[uid]
        try:
            if path not in self._handles:
                self._handles[path] = safe_open(path, "pt")
            read = self._handles[path].get_tensor
            rgb = read(f"{uid}/rgb.{input_view}") if self.changed else read(f"{uid}/rgb").roll(-input_view, dims=0)
            normal = read(f"{uid}/normal.{input_view}")
            picture = read(f"{uid}/picture.{input_view}").float() / 127.5 - 1
            embeds = read(f"{uid}/embed.{input_view}").float() if self.with_embeds else None
            condition = read(f"{uid}/condition.{input_view}") if self.with_condition else None
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"latent file '{path}' is damaged at object '{uid}' ({error}); delete it and run "
                "nova3d cache-latents again"
            ) from error
        moments = torch.stack([rgb, normal])
        cameras = self._angles(input_view)
        return Item(uid, input_view, picture, cameras, moments=moments, embeds=embeds, condition=condition)

    def _angles(self, input_view: int) -> Tensor:
        """[v,2] of the rig seen from an input view, by the same path as the shards' views."""
        if input_view not in self._cameras:
            rig = self.dataset.reader.cameras
            blank = torch.zeros(len(rig), rig.height, rig.width)
            views = ViewSet(blank[..., None].expand(-1, -1, -1, 3), blank[..., None].expand(-1, -1, -1, 3), blank, rig)
            self._cameras[input_view] = views.rotated_to(input_view).cameras.azimuth_elevation()
        return self._cameras[input_view]


class JoinedCaches:
    """The latent caches of several shard folders as one source. Data can be added without encoding all of it again.

    Args:
        caches: one per shard folder, in the order of the folders.
        dataset: all of the shard folders.

    Raises:
        InputError: where the caches were encoded in different precisions; caches of earlier versions do not say theirs.
    """

    def __init__(self, caches: Sequence[LatentCache], dataset: MultiViewDataset):
        self.caches, self.dataset = list(caches), dataset
        known = {cache.precision: cache for cache in caches if cache.precision is not None}
        if len(known) > 1:
            made = " and ".join(f"'{cache.folder}' in {precision}" for precision, cache in known.items())
            raise InputError(
                f"latent caches were encoded in different precisions, {made} (no: float32): make them with one "
                "mixed_precision (nova3d cache-latents)"
            )
        self._first = list(itertools.accumulate((len(cache.dataset) for cache in caches), initial=0))

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object of the joined dataset, as `LatentCache.load`."""
        index = bisect.bisect_right(self._first, row) - 1
        return self.caches[index].load(row - self._first[index], input_view, change)


def _encode(
    dataset: MultiViewDataset,
    row: int,
    augment: AugmentConfig,
    vae: VideoAutoencoder,
    image_encoder: "CLIPVisionModelWithProjection | None",
    condition: str,
    bf16: bool,
) -> dict[str, Tensor]:
    uid = dataset.reader.samples[row]["uid"]
    change = draw(augment, dataset.seed, provenance.stable_hash(uid, 64))
    rendered = dataset.reader.views(row)
    entries = {} if augment.active else {f"{uid}/rgb": _moments(vae, rendered.rgb * 2 - 1, bf16)}
    for view in dataset.views_of(row):
        seen = apply(rendered, change, view).rotated_to(view)
        if augment.active:
            entries[f"{uid}/rgb.{view}"] = _moments(vae, seen.rgb * 2 - 1, bf16)
        entries[f"{uid}/normal.{view}"] = _moments(vae, seen.normals, bf16)
        if condition == "inflated":
            frames = inflated_guide(seen.straight_alpha(0), seen.cameras)[:, :, :3]
            moments = _moments(vae, frames.flatten(0, 1).permute(0, 2, 3, 1), bf16)
            mode = moments.chunk(2, dim=1)[0].unflatten(0, (len(TASKS), -1))
            entries[f"{uid}/condition.{view}"] = mode.contiguous()
        pixels = torch.from_numpy(images.to_uint8(seen.rgb[0])).permute(2, 0, 1).contiguous()
        entries[f"{uid}/picture.{view}"] = pixels
        if image_encoder is not None:
            with torch.no_grad():
                clip = clip_pixels(pixels[None].to(vae.device).float() / 127.5 - 1, image_encoder.config.image_size)
                embeds = image_encoder(clip.to(image_encoder.dtype)).image_embeds
            entries[f"{uid}/embed.{view}"] = embeds.half().cpu()
    return entries


def _moments(vae: VideoAutoencoder, frames: Tensor, bf16: bool) -> Tensor:
    """float16 [v,8,h,w] on the CPU of frames [v,H,W,3] in [-1,1]; bf16: encoded under autocast."""
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=bf16):
        moments = encode_moments(vae, frames.permute(0, 3, 1, 2).to(vae.device, vae.dtype))
    return moments.half().cpu().contiguous()


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with replacing(path) as aside:
            save_file(tensors, aside)
    except SafetensorError as error:  # safetensors raises it where the disk is full
        raise OSError(str(error)) from error


def _files(folder: Path, objects: int, per_file: int) -> list[Path]:
    return [folder / f"latents-{index:05d}.safetensors" for index in range(-(-objects // per_file))]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"'{folder}' is not a latent cache (no {MANIFEST}); make one with nova3d cache-latents")
    manifest = read_json(path, dict, "manifest")
    keys = ("preprocessing", "vae", "image_encoder", "rig", "size", "shards", "input_views", "objects_per_file", "uids")
    if missing := [key for key in keys if key not in manifest]:
        raise InputError(f"manifest '{path}' is damaged: it has no '{missing[0]}'")
    return manifest


def _check_identity(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Raise InputError naming the first key of `here` in which the cache differs."""
    for key, value in here.items():
        # What caches without the key hold. They were encoded in either precision.
        found = there.get(key, {"condition": "picture", "precision": value}.get(key))
        if found != value:
            shown = (found, value) if key != "uids" else ("other objects", "these")
            raise InputError(
                f"latent cache '{folder}' was made with another '{key}' ({shown[0]}, this run has {shown[1]}); make "
                "one for this run with nova3d cache-latents"
            )
