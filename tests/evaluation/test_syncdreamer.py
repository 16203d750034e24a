"""The protocol of the published GSO-30 renders on one of its objects, from the files as they were published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from nova3d import config
from nova3d.errors import InputError
from nova3d.evaluation import Protocol, score

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "assets/gso30-sample"
COPY = "copy of the input view (scored on the others)"
ORACLE = "silhouette oracle"
MEASURED = [14.56, 19.45, 27.78, 27.31, 18.87]  # dB, of this object; docs/results/baselines.md has those of all 30


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    found = config.load(Protocol, ROOT / "configs/eval/syncdreamer-v1.yaml", ["objects=[oil]", "hull_cells=0"])
    return replace(found, views=replace(found.views, metrics=("psnr", "ssim_own_range", "mask_iou")))


@pytest.fixture(scope="module")
def table(protocol):
    return score(FOLDER, FOLDER, protocol)


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """[16,256,256,3] on white as SyncDreamer's script composites, and the alpha."""
    files = sorted((FOLDER / "oil").glob("*.webp"))
    rgba = np.stack([np.asarray(Image.open(path).convert("RGBA")) for path in files]).astype(np.float64) / 255
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3]


def mean_psnr(pred: np.ndarray, ref: np.ndarray) -> float:
    return float(np.mean([peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(pred, ref, strict=True)]))


def test_the_floors_are_those_of_the_published_files(table, truth):
    rgb, alpha = truth
    floors = {name: values["psnr"] for name, values in table.baseline_means().items()}
    colour = rgb[0][alpha[0] > 0.5].mean(axis=0)
    expected = {
        "all-white image": mean_psnr(np.ones_like(rgb), rgb),
        COPY: mean_psnr(np.repeat(rgb[:1], 15, axis=0), rgb[1:]),
        ORACLE: mean_psnr(colour * alpha[..., None] + 1 - alpha[..., None], rgb),
    }
    for pixels in (1, 2, 4, 8):
        off = np.ones_like(rgb)
        off[:, :, pixels:] = rgb[:, :, :-pixels]
        expected[f"true views, {pixels} px off"] = mean_psnr(off, rgb)
    assert floors == pytest.approx(expected, abs=1e-3)


def test_the_floors_are_the_measured_ones(table):
    floors = table.baseline_means()
    names = ("all-white image", COPY, ORACLE, "true views, 1 px off", "true views, 8 px off")
    assert [floors[name]["psnr"] for name in names] == pytest.approx(MEASURED, abs=0.05)
    assert floors["true views, 1 px off"]["mask_iou"] < 1 == floors[ORACLE]["mask_iou"]


def test_the_true_views_score_the_most_and_every_column_is_there(table):
    assert table.rows == {"oil": {"psnr": 100.0, "ssim_own_range": pytest.approx(1.0), "mask_iou": 1.0}}


def test_pictures_without_cameras_are_read_as_the_protocols_rig(protocol):
    other = replace(protocol, views=replace(protocol.views, cameras="envision32", count=0))
    with pytest.raises(InputError, match=r"'envision32' has 32 views, .* has 16"):
        score(FOLDER, FOLDER, other)
    unknown = replace(protocol, views=replace(protocol.views, cameras="any"))
    with pytest.raises(InputError, match="have nothing in common"):
        score(FOLDER, FOLDER, unknown)
