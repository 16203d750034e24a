"""The stages of a study on disk: references, generated views and meshes, a folder per object.

    OUT/references/OBJECT/              true views of the model's rig; mesh.glb in the same frame
    OUT/views/[ARM/]seedK/OBJECT/       the model's views of the reference's view 0
    OUT/meshes/[ARM/]seedK/OBJECT/      mesh.glb fused from them
    OUT/failures/STAGE/[ARM/]seedK/OBJECT.json   why there is none
A folder is written aside and renamed, so what is there is whole, and the same call goes on where the last one ended.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from nova3d import config as configs
from nova3d.cameras import Cameras, preset
from nova3d.data import render_object
from nova3d.data.shards import INDEX, ShardReader
from nova3d.errors import InputError
from nova3d.fusion import FusionConfig, reconstruct
from nova3d.generation import SampleConfig, generate_views, load_pipeline, model_hashes
from nova3d.pipeline import Nova3DPipeline
from nova3d.rendering.mesh_files import MESH_SUFFIXES
from nova3d.rendering.meshes import load_mesh
from nova3d.utils import provenance
from nova3d.views import ViewSet

log = logging.getLogger(__name__)

_IDENTITY = "study.json"


@dataclass(frozen=True)
class Generator:
    """A model folder and the seed it samples with; `folder` is its place under views/ ("seed0", "gta/seed0")."""

    folder: str
    model: str
    seed: int


@dataclass(frozen=True)
class Fusion:
    """How meshes are made of one generator's views; `folder` is their place under meshes/."""

    folder: str
    views: str
    config: FusionConfig


@dataclass(frozen=True)
class Study:
    """What is to be made. source: a folder of mesh files, or of shards (whose references then have no mesh).

    sample: how every generator samples; its image, model, out, seed, framed and keep_input are not used.
    """

    out: Path
    source: Path
    names: tuple[str, ...]
    rig: str
    size: int
    sample: SampleConfig
    generators: tuple[Generator, ...]
    fusions: tuple[Fusion, ...] = field(default=())

    @property
    def references(self) -> Path:
        return self.out / "references"

    def folders(self) -> Iterator[tuple[str, str]]:
        """(stage's folder, object) of everything that is to be made."""
        places = ["references", *(f"views/{g.folder}" for g in self.generators)]
        for place in [*places, *(f"meshes/{f.folder}" for f in self.fusions)]:
            for name in self.names:
                yield place, name

    def done(self) -> int:
        """How many of `folders` are made or have failed."""
        return sum(self.settled(place, name) for place, name in self.folders())

    def settled(self, place: str, name: str) -> bool:
        return (self.out / place / name).is_dir() or self.failure(place, name).is_file()

    def failure(self, place: str, name: str) -> Path:
        return self.out / "failures" / place / f"{name}.json"

    def reasons(self, place: str) -> dict[str, str]:
        """Object -> why it failed, of one stage's folder."""
        files = {name: self.failure(place, name) for name in self.names}
        return {name: str(json.loads(file.read_text())["reason"]) for name, file in files.items() if file.is_file()}


def object_names(source: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """The objects of a folder of meshes or shards, sorted, or the `wanted` ones of them; raises InputError naming what
    is missing."""
    if (source / INDEX).is_file():
        there = sorted(sample["uid"] for sample in ShardReader(source).samples)
    elif source.is_dir():
        there = sorted({path.stem for path in source.iterdir() if path.suffix.lower() in MESH_SUFFIXES})
    else:
        raise InputError(f"objects folder '{source}' does not exist")
    if missing := sorted(set(wanted) - set(there)):
        raise InputError(f"'{source}' has no object {', '.join(missing)}")
    if not there:
        raise InputError(f"'{source}' holds no mesh ({', '.join(MESH_SUFFIXES)}) and is no shard folder")
    return tuple(sorted(set(wanted))) if wanted else tuple(there)


def model_rig(folder: str | Path) -> tuple[str, int]:
    """Camera preset and picture size of a model folder, read without its weights."""
    path = Path(folder) / "model_index.json"
    try:
        entry = json.loads(path.read_text())
        return str(entry["camera_preset"]), int(entry["size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{folder}' is not a model folder of this project: {path.name}: {error!r}") from error


def check_study(study: Study, retry: bool = False) -> None:
    """Refuse a folder that holds another study's results, and write down what this one is; with `retry`, forget the
    failures. Raises InputError naming what differs."""
    path = study.out / _IDENTITY
    before = json.loads(path.read_text()) if path.is_file() else {}
    now = json.loads(json.dumps(_identity(study), default=str))
    for stage in sorted(before.keys() & now.keys()):
        for key, value in now[stage].items():
            if before[stage].get(key) != value:
                raise InputError(f"'{study.out}/{stage}' was made with another {key}; give another out folder")
    study.out.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(before | now, indent=1, sort_keys=True))
    aside.replace(path)
    if retry:
        for place, name in study.folders():
            study.failure(place, name).unlink(missing_ok=True)


def weights_hash(study: Study, generator: Generator) -> str:
    """Of the weights that made a generator's views, as `check_study` wrote them down."""
    known = json.loads((study.out / _IDENTITY).read_text())
    return provenance.hash_json(known[f"views/{generator.folder}"]["model"])


def make(study: Study, part: int, parts: int, device: str, tell: Callable[[], None]) -> None:
    """Everything that the study lacks of the objects part, part + parts, ..., stage by stage.

    What fails for one object is written down as its failure and the others go on; a bad reference, model or disk ends
    the run with InputError.
    """
    names = study.names[part::parts]
    rig = preset(study.rig, study.size)
    for name in names:
        if not study.settled("references", name):
            with aside(study.references / name) as folder:
                write_reference(study.source, name, rig, folder)
            tell()
    for generator in study.generators:
        place, pipeline = f"views/{generator.folder}", None
        for name in [name for name in names if not study.settled(f"views/{generator.folder}", name)]:
            pipeline = pipeline or load_pipeline(replace(study.sample, model=generator.model), device)
            with _failing(study, place, name), aside(study.out / place / name) as folder:
                write_views(pipeline, study.references / name, folder, study.sample, generator)
            tell()
    for fusion in study.fusions:
        place = f"meshes/{fusion.folder}"
        for name in [name for name in names if not study.settled(f"meshes/{fusion.folder}", name)]:
            with _failing(study, place, name), aside(study.out / place / name) as folder:
                write_mesh(study.out / "views" / fusion.views / name, folder, fusion.config, device)
            tell()


def write_reference(source: Path, name: str, rig: Cameras, folder: Path) -> None:
    """An object's true views and, where the source has one, its mesh in their frame."""
    if (source / INDEX).is_file():
        reader = ShardReader(source)
        if reader.cameras.c2w.shape != rig.c2w.shape or not torch.allclose(reader.cameras.c2w, rig.c2w, atol=1e-4):
            raise InputError(f"the shards in '{source}' were not rendered with the model's cameras")
        if reader.cameras.width != rig.width:
            raise InputError(f"the shards in '{source}' have {reader.cameras.width} pixels, the model {rig.width}")
        reader.views([sample["uid"] for sample in reader.samples].index(name)).save(folder)
        return
    path = next(source / f"{name}{suffix}" for suffix in MESH_SUFFIXES if (source / f"{name}{suffix}").is_file())
    render_object(path, rig).save(folder)
    scale, centre = load_mesh(path).normalisation()
    transform = np.diag([scale, scale, scale, 1.0])
    transform[:3, 3] = -scale * centre.numpy()
    scene = trimesh.load_scene(path, process=False)
    scene.apply_transform(transform)
    scene.export(folder / "mesh.glb")


def write_views(
    pipeline: Nova3DPipeline, reference: Path, folder: Path, sample: SampleConfig, generator: Generator
) -> None:
    """The model's views of the reference's view 0, which keeps its true colours."""
    truth = ViewSet.load(reference)
    started = time.perf_counter()
    picture = torch.cat([truth.rgb[0], truth.mask[0][..., None]], dim=-1)
    own = replace(sample, keep_input=True, framed=True, seed=generator.seed)
    views, task_iou = generate_views(pipeline, picture, own)
    seconds = time.perf_counter() - started
    entry = provenance.record("sample", model=generator.model, seed=generator.seed, task_iou=task_iou, seconds=seconds)
    views.save(folder, entry)


def write_mesh(views: Path, folder: Path, config: FusionConfig, device: str) -> None:
    """The mesh fused from a view folder; raises InputError where there are no views."""
    if not views.is_dir():
        raise InputError("there are no views: their generation failed")
    result = reconstruct(ViewSet.load(views), config, device)
    entry = provenance.record("fusion", configs.to_dict(config), timings=result.timings, report=result.report)
    result.save(folder / "mesh.glb", entry)
    provenance.write(folder, entry)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends; nothing is left of it where that raises."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _failing(study: Study, place: str, name: str) -> Iterator[None]:
    """Whatever an object's data make a stage raise is its failure; what the machine lacks is not."""
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(f"{place}/{name}: {error}; the same command goes on from there") from error
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        log.warning("%s of %s failed: %s", place, name, reason, exc_info=not isinstance(error, InputError))
        file = study.failure(place, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"stage": place, "object": name, "reason": reason}))


def _identity(study: Study) -> Mapping[str, Mapping[str, Any]]:
    """What each stage's results hang on, by its folder."""
    ignored = ("image", "model", "out", "seed", "framed", "keep_input", "low_memory", "compile")
    sample = {key: value for key, value in configs.to_dict(study.sample).items() if key not in ignored}
    hashes = {model: model_hashes(model) for model in {generator.model for generator in study.generators}}
    known: dict[str, Mapping[str, Any]] = {
        "references": {"objects folder": str(study.source.resolve()), "cameras": [study.rig, study.size]}
    }
    for generator in study.generators:
        known[f"views/{generator.folder}"] = {"model": hashes[generator.model], "sampling": sample}
    for fusion in study.fusions:
        known[f"meshes/{fusion.folder}"] = {"fusion": configs.to_dict(fusion.config), "views": fusion.views}
    return known
