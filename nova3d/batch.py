"""Many pictures to many meshes: what is done is kept, and what fails is listed with its reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nova3d import config as configs
from nova3d.errors import InputError
from nova3d.pipeline.folder import check_model, model_hashes
from nova3d.settings import OUTPUTS, GenerateConfig
from nova3d.utils import provenance, resources
from nova3d.utils.files import (
    check_file,
    files_in,
    names_one_file,
    read_json,
    to_component,
    writable_folder,
    write_json,
)
from nova3d.utils.progress import Progress
from nova3d.utils.suffixes import PICTURE_SUFFIXES
from nova3d.utils.workers import in_pool

SUMMARY = "pictures.json"
_NAME_BYTES = 80


@dataclass(frozen=True)
class PictureOutcome:
    """What became of one picture."""

    picture: str
    """Its file."""
    folder: str
    """The folder of its results, below the output folder."""
    status: Literal["made", "kept", "failed"]
    """kept: its results were there already, of the same picture and settings."""
    reason: str = ""
    """Why it failed."""


def find_pictures(given: Sequence[str]) -> list[Path]:
    """The picture files that texts name.

    Args:
        given: files, folders (their pictures, in natural order, without those of folders inside) and glob patterns.

    Returns:
        The files, each once. Those that a text names are not opened here.

    Raises:
        InputError: where a folder has no pictures, or nothing fits a pattern.
    """
    found: dict[Path, Path] = {}
    for text in given:
        path = resources.locate(text, "asset") or Path(text)
        if path.is_dir():
            files = files_in(path, PICTURE_SUFFIXES)
            if not files:
                kinds = ", ".join(sorted(PICTURE_SUFFIXES))
                raise InputError(f"the folder '{text}' has no pictures ({kinds})")
        elif not names_one_file(path):
            files = sorted(match for match in _matches(text) if match.is_file())
            if not files:
                raise InputError(f"no file fits '{text}'")
        else:
            files = [path]
        found |= {file.resolve(): file for file in files if file.resolve() not in found}
    return list(found.values())


def check_all(pictures: Sequence[Path], config: GenerateConfig) -> Path:
    """Check what concerns all pictures, before torch is imported and anything is made.

    Args:
        pictures: the files, as `find_pictures` gives them.
        config: the settings.

    Returns:
        The output folder.

    Raises:
        InputError: for settings outside their ranges, where a mask is given for several, the mask or the model is
            missing, or the output folder cannot be written.
    """
    configs.validate(config)
    if config.sample.mask and len(pictures) > 1:
        raise InputError(f"mask '{config.sample.mask}' belongs to one picture, and {len(pictures)} are given")
    if config.sample.mask:
        check_file(config.sample.mask, "mask")
    check_model(config.sample.model)
    return writable_folder(config.out or OUTPUTS, make=False)


def generate_all(
    pictures: Sequence[Path],
    config: GenerateConfig,
    device: str = "cpu",
    progress: Progress | None = None,
    workers: int = 1,
) -> list[PictureOutcome]:
    """`generate` for each picture, into a folder of its own in `config.out`; a process loads the model once.

    A picture whose results are there, made of the same file with the same weights and settings, is kept. One that fails
    does not stop the others. The outcomes are written to pictures.json after each picture.

    Args:
        pictures: the files, as `find_pictures` gives them.
        config: the settings; `sample.image` is each picture in turn.
        device: where the networks and the fusion run.
        progress: called as (done, total, stage): with one worker for each picture anew, where the stage begins with
            the picture's name; with several as (pictures done, pictures, "generating").
        workers: processes. With several, each has one thread and makes what one worker of one thread makes; where one
            dies, its picture has failed, and the others go on.

    Returns:
        An outcome per picture, in their order.

    Raises:
        InputError: as `check_all`, and where the model cannot be loaded.
    """
    if workers < 1:
        raise InputError(f"the number of workers must be at least 1, got {workers}")
    out = writable_folder(check_all(pictures, config))
    names = _folder_names(pictures)
    outcomes: dict[int, PictureOutcome] = {}
    todo: dict[int, GenerateConfig] = {}

    def record(index: int, outcome: PictureOutcome | None, why: str = "") -> None:
        outcomes[index] = outcome or PictureOutcome(str(pictures[index]), names[index], "failed", why)
        write_json(out / SUMMARY, [asdict(outcomes[i]) for i in sorted(outcomes)])
        if progress and workers > 1:
            progress(len(outcomes), len(pictures), "generating")

    for index, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        own = replace(config, out=str(out / name), sample=replace(config.sample, image=str(picture)))
        try:
            if _is_done(own):
                record(index, PictureOutcome(str(picture), name, "kept"))
            else:
                todo[index] = own
        except InputError as error:
            record(index, None, str(error))
    order = list(todo)
    if workers == 1 and todo:
        generate_one = _prepare_worker(device, progress)
        for index in order:
            record(index, generate_one(todo[index]))
    elif todo:
        in_pool(
            _prepare_worker,
            list(todo.values()),
            workers,
            device,
            lambda task, outcome, why: record(order[task], outcome, why),
        )
    return [outcomes[index] for index in range(len(pictures))]


def _prepare_worker(device: str, progress: Progress | None = None) -> Callable[[GenerateConfig], PictureOutcome]:
    """A function that generates one picture after the other, with one model for all of them."""
    from nova3d.generation import generate
    from nova3d.sampling import load_pipeline

    pipelines: list[Any] = []

    def generate_one(config: GenerateConfig) -> PictureOutcome:
        name = Path(str(config.out)).name

        def report(done: int, total: int, stage: str) -> None:
            if progress:
                progress(done, total, f"{name}: {stage}")

        if not pipelines:
            pipelines.append(load_pipeline(config.sample, device))
        try:
            generate(config=config, device=device, progress=report, pipeline=pipelines[0])
        except InputError as error:
            return PictureOutcome(config.sample.image, name, "failed", str(error))
        return PictureOutcome(config.sample.image, name, "made")

    return generate_one


def _is_done(config: GenerateConfig) -> bool:
    """Whether `config.out` holds this picture's results with these settings; raises where it holds others."""
    folder = Path(str(config.out))
    if not (folder / "record.json").is_file():
        return False
    record = read_json(folder / "record.json", dict, "record")
    picture, settings = record.get("image"), record.get("config")
    wanted = provenance.without_folders(configs.to_dict(config))  # as a record has them
    same = isinstance(picture, dict) and picture.get("sha256") == _hash(config.sample.image)
    same = same and isinstance(settings, dict) and _settings(settings) == _settings(wanted)
    if not same or record.get("model") != model_hashes(config.sample.model):
        raise InputError(f"'{folder}' holds the results of another picture or other settings: choose another out")
    return (folder / "mesh.glb").is_file() and (folder / "report.html").is_file()


def _hash(picture: str) -> str:
    return provenance.hash_file(picture) if Path(picture).is_file() else ""


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A record's config without the paths of the picture, the model and the results."""
    sample, paths = config.get("sample"), ("image", "model", "out")
    own = {key: value for key, value in sample.items() if key not in paths} if isinstance(sample, dict) else {}
    return {key: value for key, value in config.items() if key != "out"} | {"sample": own}


def _folder_names(pictures: Sequence[Path]) -> list[str]:
    """A folder name per picture: its name without suffix; where two would be equal, with a part of its content's hash.

    Two files of equal content and name are told apart by a number.
    """
    names = [to_component(picture.stem, _NAME_BYTES) for picture in pictures]
    twice = {name for name, count in Counter(name.lower() for name in names).items() if count > 1}
    names = [
        f"{name}-{_hash(str(picture))[:8]}" if name.lower() in twice else name
        for name, picture in zip(names, pictures, strict=True)
    ]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name.lower()] += 1
        names[i] = name if seen[name.lower()] == 1 else f"{name}-{seen[name.lower()]}"
    return names


def _matches(pattern: str) -> list[Path]:
    root = Path(Path(pattern).anchor)
    try:
        return list(root.glob(str(Path(pattern).relative_to(root))))
    except ValueError as error:
        raise InputError(f"'{pattern}' is no file and no pattern: {error}") from error
