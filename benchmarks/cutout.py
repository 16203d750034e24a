"""How well an object is cut out: pictures with known alpha on backgrounds, each cut out in several ways.

The backgrounds are scikit-image's own pictures (public domain or CC0: brick, grass, gravel, the table of `coffee`, the
wall of `astronaut`) and a studio gradient made here; some composites have a shadow. GrabCut is OpenCV's, started with
the picture less a margin of 5 %; its column is left out where `pip install opencv-python-headless` is missing.

    python benchmarks/cutout.py --pictures PICTURES --out outputs/cutout
    python benchmarks/cutout.py --figure docs/images/photos.png    # the figure of docs/photos.md
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage import data

from nova3d import images
from nova3d.cli import common
from nova3d.errors import InputError
from nova3d.images import u2net
from nova3d.utils import provenance, resources
from nova3d.utils.files import writable_folder, write_text

WIDTH, HEIGHT = 720, 540
SHADOWED = ("grass", "table", "studio")
PER_PICTURE = 3  # backgrounds of each picture, in turn
FIGURE_PX = 144


def backgrounds() -> dict[str, np.ndarray]:
    """Float [540,720,3] in [0,1] by name."""

    def fitted(pixels: np.ndarray, tint: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
        picture = Image.fromarray(pixels).convert("RGB")
        scale = max(WIDTH / picture.width, HEIGHT / picture.height)
        picture = picture.resize((round(picture.width * scale) + 1, round(picture.height * scale) + 1))
        return np.clip(np.asarray(picture.crop((0, 0, WIDTH, HEIGHT))) / 255 * np.array(tint), 0, 1)

    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    return {
        "grass": fitted(data.grass(), (0.75, 1, 0.5)),
        "gravel": fitted(data.gravel(), (1, 0.95, 0.9)),
        "brick": fitted(data.brick(), (1, 0.7, 0.6)),
        "table": fitted(data.coffee()[300:, :350]),
        "room": ndimage.gaussian_filter(fitted(data.astronaut()[:200, :180]), (2, 2, 0)),
        "studio": np.repeat((0.95 - 0.45 * (0.5 * x + 0.6 * y) / 1.2)[..., None], 3, axis=-1),
    }


def composites(folder: Path) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(picture, background, uint8 [540,720,3], float [540,720] true alpha), equal in every run."""
    generator, grounds = np.random.default_rng(0), backgrounds()
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in images.PICTURE_SUFFIXES]
    if not files:
        raise InputError(f"'{folder}' has no pictures")
    for number, path in enumerate(files):
        rgba = images.read_rgba(path)
        rows, columns = (torch.nonzero((rgba[..., 3] > 0.5).any(dim=d))[:, 0] for d in (1, 0))
        rgba = rgba[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        for turn in range(PER_PICTURE):
            name = list(grounds)[(number + 2 * turn) % len(grounds)]
            scale = generator.uniform(0.4, 0.8) * min(HEIGHT / rgba.shape[0], WIDTH / rgba.shape[1])
            item = images.resize(rgba, round(rgba.shape[1] * scale), round(rgba.shape[0] * scale)).numpy()
            h, w = item.shape[:2]
            top = int(generator.uniform(0.1, 0.9) * (HEIGHT - h))
            left = int(generator.uniform(0.2, 0.8) * (WIDTH - w))
            picture, alpha = grounds[name].copy(), np.zeros((HEIGHT, WIDTH))
            alpha[top : top + h, left : left + w] = item[..., 3]
            if name in SHADOWED:
                picture *= 1 - 0.4 * ndimage.gaussian_filter(np.roll(alpha, (6, 10), (0, 1)), 9)[..., None]
            part = picture[top : top + h, left : left + w]
            part += (item[..., :3] - part) * item[..., 3:]
            picture += generator.normal(0, 0.01, picture.shape)
            yield path.stem, name, (np.clip(picture, 0, 1) * 255).round().astype(np.uint8), alpha


def by_plain(picture: np.ndarray) -> np.ndarray:
    """What differs from the border's colour, as far as the border has one; else the whole picture."""
    try:
        return images.cut_out(picture, "plain").mask.numpy() > 127
    except InputError:
        return np.ones(picture.shape[:2], bool)


def by_one_look(picture: np.ndarray) -> np.ndarray:
    """The network's map of the whole picture, cut at one half."""
    found = u2net.saliency(torch.from_numpy(picture))[..., None]
    return images.interpolate(found, WIDTH, HEIGHT)[..., 0].numpy() > 0.5


def by_model(picture: np.ndarray) -> np.ndarray:
    """What `cutout=model` does; nothing where it refuses."""
    try:
        return images.cut_out(picture, "model").mask.numpy() > 127
    except InputError:
        return np.zeros(picture.shape[:2], bool)


def by_grabcut(picture: np.ndarray) -> np.ndarray:
    """OpenCV's GrabCut, 5 iterations."""
    import cv2

    cv2.setNumThreads(1)
    marks, box = np.zeros((HEIGHT, WIDTH), np.uint8), (WIDTH // 20, HEIGHT // 20, WIDTH * 9 // 10, HEIGHT * 9 // 10)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(picture[..., ::-1]), marks, box, *models, 5, cv2.GC_INIT_WITH_RECT)
    return np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD))


def figure() -> torch.Tensor:
    """[h,w,3] pictures, their masks and what the model gets, below one another, by examples of the bundled pictures."""
    grounds = backgrounds()

    def placed(name: str, ground: str, top: int, height: int) -> np.ndarray:
        item = images.read_rgba(resources.root() / f"assets/images/{name}.png")
        rows, columns = (torch.nonzero((item[..., 3] > 0.5).any(dim=d))[:, 0] for d in (1, 0))
        item = item[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        item = images.resize(item, round(item.shape[1] * height / item.shape[0]), height)[: HEIGHT - top]
        h, w = item.shape[:2]
        picture, left = grounds[ground].copy(), (WIDTH - w) // 2
        part = picture[top : top + h, left : left + w]
        part += (item[..., :3].numpy() - part) * item[..., 3:].numpy()
        square = picture[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
        return (np.clip(square, 0, 1) * 255).round().astype(np.uint8)

    glass = images.to_uint8(images.read_rgba(resources.root() / "assets/images/kettle.png"))
    glass[..., 3] = glass[..., 3] * 0.35
    glass[4:8, 4:8] = glass[-8:-4, -8:-4] = (0, 0, 0, 255)
    examples: list[images.Picture] = [
        placed("owl", "grass", 60, 400),
        placed("block_robot", "studio", 70, 400),
        placed("cactus_pot", "gravel", 120, 560),
        placed("cactus_pot", "table", 120, 560),
        resources.root() / "assets/images/mailbox.png",
        glass,
    ]
    shown: list[torch.Tensor] = []
    for row in zip(*map(_stages, examples), strict=True):
        shown += row
    return images.grid(torch.stack(shown), len(examples), padding=4)


def _stages(picture: images.Picture) -> list[torch.Tensor]:
    """A picture on grey squares where it is transparent, its mask, and the framed object on white; [s,s,3] each."""
    cut, pixels = images.cut_out(picture), images.decode(picture).float() / 255
    height, width = pixels.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (0.75 + 0.15 * ((y // 12 + x // 12) % 2))[..., None]
    if pixels.shape[-1] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] + squares * (1 - pixels[..., 3:])
    mask = (cut.mask.float() / 255)[..., None].expand(-1, -1, 3)
    scale = FIGURE_PX / max(height, width)
    fitted = []
    for image in (pixels, mask):
        small = images.interpolate(image, round(width * scale), round(height * scale))
        tile = torch.full((FIGURE_PX, FIGURE_PX, 3), 0.5)
        top, left = (FIGURE_PX - small.shape[0]) // 2, (FIGURE_PX - small.shape[1]) // 2
        tile[top : top + small.shape[0], left : left + small.shape[1]] = small
        fitted.append(tile)
    return [*fitted, images.composite(images.frame_object(cut.rgba, FIGURE_PX))]


def main() -> None:
    """Cut out every composite in every way; write rows.json and table.md. Or write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="a folder of RGBA pictures, or of objects on plain backgrounds")
    parser.add_argument("--figure", type=Path, help="write the figure to this file and do nothing else")
    parser.add_argument("--out", type=Path, default=Path("outputs/cutout"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.figure:
        return images.save_image(options.figure, figure())
    if not options.pictures:
        raise InputError("give --pictures FOLDER or --figure FILE")
    writable_folder(options.out)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "plain background": by_plain,
        "U-2-Net, one look": by_one_look,
        "U-2-Net, two looks (`model`)": by_model,
    }
    try:
        import cv2  # noqa: F401

        ways["GrabCut"] = by_grabcut
    except ImportError:
        print("GrabCut is left out: OpenCV is not installed")
    u2net.load()
    rows = []
    for name, ground, picture, alpha in composites(options.pictures):
        row: dict[str, object] = {"picture": name, "background": ground}
        for way, cut in ways.items():
            started = time.process_time()
            mask = cut(picture)
            seconds, true = time.process_time() - started, alpha > 0.5
            row[way] = {"iou": float((mask & true).sum() / (mask | true).sum()), "seconds": seconds}
        rows.append(row)
        print(name, ground, *(f"{way} {row[way]['iou']:.3f}" for way in ways), flush=True)  # type: ignore[index]
    write_text(options.out / "rows.json", json.dumps(rows, indent=1))
    grounds = list(dict.fromkeys(str(row["background"]) for row in rows))
    lines = [
        f"| | mean | median | worst tenth below | {' | '.join(grounds)} | CPU s |",
        "|---" * (len(grounds) + 5) + "|",
    ]
    for way in ways:
        scores = [row[way]["iou"] for row in rows]  # type: ignore[index]
        means = [statistics.fmean(row[way]["iou"] for row in rows if row["background"] == g) for g in grounds]  # type: ignore[index]
        seconds = statistics.fmean(row[way]["seconds"] for row in rows)  # type: ignore[index]
        figures = [statistics.fmean(scores), statistics.median(scores), float(np.quantile(scores, 0.1)), *means]
        lines.append(f"| {way} | {' | '.join(f'{value:.3f}' for value in figures)} | {seconds:.2f} |")
    text = "\n".join(lines) + f"\n\nMask IoU of {len(rows)} composites. Commit {provenance.commit()}.\n"
    write_text(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    common.run(main)
