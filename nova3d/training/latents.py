"""The latents that training reads: of objects in shards, encoded by the frozen networks, or from a cache on disk.

A latent cache is a folder of `latents-00000.safetensors ...`, 256 objects each in the shards' order, and
`manifest.json`. An object UID has these entries:

- `UID/rgb` float16 [v,8,h,w]: moments of the views in rendered order.
- `UID/normal.N` float16 [v,8,h,w]: moments of the normal maps in the frame of input view N, starting at N.
- `UID/embed.N` float16 [1,d]: the CLIP embedding of the clean picture; not without a frozen image encoder.
- `UID/picture.N` uint8 [3,H,W]: the picture.
- `UID/condition.N` float16 [t,v,4,h,w]: unscaled modes of the condition `inflated`, where it is used.

N runs over the input views that were asked for.
"""

import bisect
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nova3d import images
from nova3d.data.augment import UNCHANGED, Augmentation, AugmentConfig, draw
from nova3d.data.multiview import MultiViewDataset
from nova3d.data.shards import shard_hash
from nova3d.errors import InputError
from nova3d.models.autoencoder import VideoAutoencoder, encode_moments
from nova3d.models.conditioning import clip_pixels, inflated_guide
from nova3d.tasks import TASKS
from nova3d.transforms import cameras_to_transforms
from nova3d.utils import provenance
from nova3d.utils.files import read_json, replacing, write_text
from nova3d.utils.progress import Progress, silent
from nova3d.views import ViewSet

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
OBJECTS_PER_FILE = 256
# Raise it when what is encoded changes: composite on white, normals in the input view's frame, CLIP's pixels.
PREPROCESSING = 1


@dataclass(frozen=True)
class Item:
    """One object seen from one input view, on the CPU. It has either frames or moments.

    Attributes:
        uid: the object's name.
        input_view: the rendered view that is view 0 here.
        picture: float32 [3,H,W] in [-1,1], the input view on white.
        cameras: float32 [v,2], azimuth relative to the input view and elevation, radians.
        frames: float32 [t,v,3,H,W] in [-1,1].
        moments: float16 [t,v,8,h,w] of the autoencoder's posterior.
        embeds: float32 [1,d], the picture's CLIP embedding, where a cache holds it.
        condition: float16 [t,v,4,h,w], unscaled latents of the condition `inflated`, where a cache holds them.
        augmented: the object is not as it was rendered.
    """

    uid: str
    input_view: int
    picture: Tensor
    cameras: Tensor
    frames: Tensor | None = None
    moments: Tensor | None = None
    embeds: Tensor | None = None
    condition: Tensor | None = None
    augmented: bool = False


class Source(Protocol):
    """Where items come from."""

    dataset: MultiViewDataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object.

        Args:
            row: index of the object in the dataset.
            input_view: the rendered view that becomes view 0.
            change: an augmentation.

        Returns:
            The object.

        Raises:
            InputError: where it cannot be read or changed.
        """
        ...


class ShardSource:
    """Items with frames, from shards."""

    def __init__(self, dataset: MultiViewDataset):
        self.dataset = dataset

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object, as `Source.load`."""
        views = self.dataset.views(row, input_view, change)
        frames = torch.stack([views.rgb * 2 - 1, views.normals]).permute(0, 1, 4, 2, 3)
        cameras = views.cameras.azimuth_elevation()
        uid, augmented = self.dataset.reader.samples[row]["uid"], change != UNCHANGED
        return Item(uid, input_view, frames[0, 0], cameras, frames=frames, augmented=augmented)


class ItemReader:
    """The samples of a run by position, each augmented as drawn for its position.

    Args:
        source: reads the objects.
        on_corrupt: "fail" raises InputError for an object that cannot be read. "skip" takes the next readable one, the
            same on any machine; the log names every lost object once, and `skipped` counts the replacements.
        attempts: objects tried for one position.
        augment: random changes of the objects; default none.
    """

    def __init__(
        self,
        source: Source,
        on_corrupt: str = "fail",
        attempts: int = 16,
        augment: AugmentConfig | None = None,
    ):
        self.source, self.on_corrupt, self.attempts = source, on_corrupt, attempts
        self.augment = augment or AugmentConfig()
        self.skipped = 0
        self._named: set[int] = set()

    def __getitem__(self, position: int) -> Item:
        """The position-th sample of the run; see MultiViewDataset.address."""
        dataset = self.source.dataset
        row, view = dataset.address(position)
        change = draw(self.augment, dataset.seed, position)
        for attempt in range(self.attempts):
            other = (row + attempt) % len(dataset)
            try:
                return self.source.load(other, view, change)
            except InputError as error:
                if self.on_corrupt == "fail":
                    raise
                self.skipped += 1
                if other not in self._named:
                    self._named.add(other)
                    log.warning("object '%s' is left out: %s", dataset.reader.samples[other]["uid"], error)
        raise InputError(f"{self.attempts} objects in a row cannot be read, the last is row {other}; mend the shards")


def check_shards(dataset: MultiViewDataset) -> None:
    """Read the first and the last object of every shard, so that a missing or short file is found before a run starts.

    Args:
        dataset: of the run.

    Raises:
        InputError: naming the shard.
    """
    samples = dataset.reader.samples
    for row, sample in enumerate(samples):
        inside = 0 < row < len(samples) - 1
        if not (inside and samples[row - 1]["shard"] == sample["shard"] == samples[row + 1]["shard"]):
            dataset.reader.read(row)


class LatentEncoder:
    """Makes the latents of items that have none.

    RGB moments depend on the input view only by their order, so `keep` can hold them. Normal maps are relative to the
    input view and are encoded every time, and so is everything of an augmented item.

    Args:
        vae: the autoencoder, on `device`.
        device: of the latents.
        keep: keep RGB moments in memory as float16 after their first use.
    """

    def __init__(self, vae: VideoAutoencoder, device: torch.device | str, keep: bool = True):
        self.vae, self.device = vae, device
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def moments(self, item: Item) -> Tensor:
        """The moments of an item's posterior, float32 [t,v,8,h,w] on the device."""
        if item.moments is not None:
            return item.moments.to(self.device).float()
        assert item.frames is not None
        kept = None if item.augmented else self._kept
        rgb = kept.get(item.uid) if kept is not None else None
        if rgb is None:
            rgb = self._encode(item.frames[0])
            if kept is not None:
                # As read back, so that an object's first use and its later ones, or those of a resumed run, are equal.
                rgb = rgb.half()
                kept[item.uid] = rgb.roll(item.input_view, dims=0).cpu()
        else:
            rgb = rgb.roll(-item.input_view, dims=0).to(self.device)
        return torch.stack([rgb.float(), self._encode(item.frames[1])])

    def _encode(self, frames: Tensor) -> Tensor:
        return encode_moments(self.vae, frames.to(self.device))


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
    progress: Progress = silent,
    condition: str = "picture",
    precision: str = "no",
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

    Returns:
        The folder.

    Raises:
        InputError: where an object cannot be read, or the folder holds another cache or cannot be written.
    """
    folder = Path(folder)
    manifest = cache_identity(dataset, vae, image_encoder, condition) | {
        "input_views": sorted(dataset.input_views),
        "input_views_per_object": dataset.per_object,
        "objects_per_file": objects_per_file,
        "uids": [sample["uid"] for sample in dataset.reader.samples],
    }
    try:
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
                        tensors |= _encode(dataset, row, vae, image_encoder, condition, precision == "bf16")
                    except InputError as error:
                        if on_corrupt == "fail":
                            raise
                        log.warning("object '%s' is left out: %s", manifest["uids"][row], error)
                _write(files[index], tensors)
            progress(done + 1, len(mine), files[index].name)
    except OSError as error:
        raise InputError(f"cannot write the latent cache '{folder}': {error}") from error
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
                "make another with scripts/cache_latents.py"
            )
        lacking = sorted(set(dataset.input_views) - set(manifest["input_views"]))
        if lacking:
            raise InputError(
                f"latent cache '{folder}' has the input views {manifest['input_views']}, not {lacking[0]}: set "
                "data.input_views to what it has, or make another with scripts/cache_latents.py"
            )
        files = _files(self.folder, len(manifest["uids"]), manifest["objects_per_file"])
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise InputError(
                f"latent cache '{folder}' is not finished: {len(missing)} of {len(files)} files are missing, the first "
                f"is {missing[0]}; run scripts/cache_latents.py again"
            )
        self.with_embeds = bool(manifest["image_encoder"])
        self.with_condition = manifest.get("condition", "picture") == "inflated"
        per_file = manifest["objects_per_file"]
        self._file = {uid: files[index // per_file] for index, uid in enumerate(manifest["uids"])}
        self._handles: dict[Path, Any] = {}
        self._cameras: dict[int, Tensor] = {}

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object, as `Source.load`; raises InputError for an augmentation too."""
        if change != UNCHANGED:
            raise InputError(f"latent cache '{self.folder}' holds objects as they were rendered, not augmented ones")
        uid = self.dataset.reader.samples[row]["uid"]
        path = self._file[uid]
        try:
            if path not in self._handles:
                self._handles[path] = safe_open(path, "pt")
            read = self._handles[path].get_tensor
            rgb, normal = read(f"{uid}/rgb"), read(f"{uid}/normal.{input_view}")
            picture = read(f"{uid}/picture.{input_view}").float() / 127.5 - 1
            embeds = read(f"{uid}/embed.{input_view}").float() if self.with_embeds else None
            condition = read(f"{uid}/condition.{input_view}") if self.with_condition else None
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"latent file '{path}' is damaged at object '{uid}' ({error}); delete it and run "
                "scripts/cache_latents.py again"
            ) from error
        moments = torch.stack([rgb.roll(-input_view, dims=0), normal])
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
    """The latent caches of several shard folders as one source, so that data can be added without encoding all anew.

    Args:
        caches: one per shard folder, in the order of the folders.
        dataset: all of the shard folders.
    """

    def __init__(self, caches: Sequence[LatentCache], dataset: MultiViewDataset):
        self.caches, self.dataset = list(caches), dataset
        self._first = list(itertools.accumulate((len(cache.dataset) for cache in caches), initial=0))

    def load(self, row: int, input_view: int, change: Augmentation = UNCHANGED) -> Item:
        """Read one object of the joined dataset, as `LatentCache.load`."""
        index = bisect.bisect_right(self._first, row) - 1
        return self.caches[index].load(row - self._first[index], input_view, change)


def _encode(
    dataset: MultiViewDataset,
    row: int,
    vae: VideoAutoencoder,
    image_encoder: "CLIPVisionModelWithProjection | None",
    condition: str,
    bf16: bool,
) -> dict[str, Tensor]:
    uid = dataset.reader.samples[row]["uid"]
    rendered = dataset.reader.views(row)
    entries = {f"{uid}/rgb": _moments(vae, rendered.rgb * 2 - 1, bf16)}
    for view in dataset.views_of(row):
        seen = rendered.rotated_to(view)
        entries[f"{uid}/normal.{view}"] = _moments(vae, seen.normals, bf16)
        if condition == "inflated":
            frames = inflated_guide(seen.straight_alpha(0), seen.cameras)[:, :, :3]
            moments = _moments(vae, frames.flatten(0, 1).permute(0, 2, 3, 1), bf16)
            mode = moments.chunk(2, dim=1)[0].unflatten(0, (len(TASKS), -1))
            entries[f"{uid}/condition.{view}"] = mode.contiguous()
        pixels = torch.from_numpy(images.to_uint8(rendered.rgb[view])).permute(2, 0, 1).contiguous()
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
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error


def _files(folder: Path, objects: int, per_file: int) -> list[Path]:
    return [folder / f"latents-{index:05d}.safetensors" for index in range(-(-objects // per_file))]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"'{folder}' is not a latent cache (no {MANIFEST}); make one with scripts/cache_latents.py")
    manifest = read_json(path, dict, "manifest")
    keys = ("preprocessing", "vae", "image_encoder", "rig", "size", "shards", "input_views", "objects_per_file", "uids")
    if missing := [key for key in keys if key not in manifest]:
        raise InputError(f"manifest '{path}' is damaged: it has no '{missing[0]}'")
    return manifest


def _check_identity(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Raise InputError naming the first key of `here` in which the cache differs."""
    for key, value in here.items():
        found = there.get(key, "picture" if key == "condition" else None)  # what caches without this key hold
        if found != value:
            shown = (found, value) if key != "uids" else ("other objects", "these")
            raise InputError(
                f"latent cache '{folder}' was made with another '{key}' ({shown[0]}, this run has {shown[1]}); make "
                "one for this run with scripts/cache_latents.py"
            )
