import math

import pytest
import torch

from nova3d.errors import InputError
from nova3d.evaluation import foreground_psnr, mask_iou, normal_angle, psnr, ssim
from nova3d.evaluation.views import MAX_PSNR


def test_psnr_of_a_constant_offset_is_minus_twenty_log_of_it():
    ref = torch.full((2, 4, 5, 3), 0.5)
    pred = torch.stack([ref[0] + 0.1, ref[1] - 0.01])
    assert psnr(pred, ref).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_of_equal_images_is_the_cap():
    ref = torch.rand(1, 4, 4, 3)
    assert psnr(ref, ref).tolist() == [MAX_PSNR]


def test_foreground_psnr_sees_only_the_reference_mask():
    ref = torch.zeros(1, 4, 4, 3)
    pred = ref.clone()
    pred[0, 0] = 0.1  # inside
    pred[0, 1:] = 0.9  # outside
    mask = torch.zeros(1, 4, 4)
    mask[0, 0] = 1
    assert foreground_psnr(pred, ref, mask).item() == pytest.approx(20.0, abs=1e-3)


def test_foreground_psnr_without_foreground_is_nan():
    image = torch.rand(1, 4, 4, 3)
    assert math.isnan(foreground_psnr(image, image, torch.zeros(1, 4, 4)).item())


def test_ssim_is_one_for_equal_images_and_follows_the_formula_for_flat_ones():
    flat = torch.full((1, 32, 32, 3), 0.4)
    a, b, c1 = 0.4, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)  # no variance: only the luminance term is left
    assert ssim(flat, flat).item() == pytest.approx(1.0, abs=1e-6)
    assert ssim(torch.full_like(flat, 0.6), flat).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_does_not_take_its_range_from_the_data():
    ref = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    dim = 0.01  # a range taken from the data would give the same value at any brightness
    noisy = (ref + 0.3 * torch.rand(ref.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert ssim(noisy * dim, ref * dim).item() > ssim(noisy, ref).item() + 0.05


def test_ssim_refuses_images_smaller_than_its_window():
    small = torch.rand(1, 8, 8, 3)
    with pytest.raises(InputError, match="at least 11 pixels, got 8x8"):
        ssim(small, small)


def test_mask_iou_counts_pixels_above_one_half():
    pred, ref = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    pred[0, :2], ref[0, 1:3] = 0.9, 0.6  # rows 0-1 and rows 1-2: one of three
    pred[0, 3] = 0.4
    assert mask_iou(pred, ref).tolist() == pytest.approx([1 / 3, 1.0])


def test_normal_angle_of_a_known_rotation():
    ref = torch.zeros(1, 2, 10, 3)
    ref[..., 2] = 1
    pred = ref.clone()
    for column, degrees in [(0, 10.0), (1, 20.0), (2, 40.0)]:
        angle = math.radians(degrees)
        pred[0, :, column] = torch.tensor([math.sin(angle), 0, math.cos(angle)])
    mask = torch.zeros(1, 2, 10)
    mask[..., :3] = 1
    angles = normal_angle(pred, ref, mask)
    assert angles["mean"] == pytest.approx(70 / 3, abs=1e-3)
    assert angles["median"] == pytest.approx(20.0, abs=1e-3)
    shares = [angles[f"within_{limit}"] for limit in ("11.25", "22.5", "30")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_normal_angle_skips_pixels_without_a_predicted_normal_and_is_nan_without_any():
    ref = torch.zeros(1, 1, 2, 3)
    ref[..., 2] = 1
    pred = torch.zeros_like(ref)
    pred[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    mask = torch.ones(1, 1, 2)
    assert normal_angle(pred, ref, mask)["mean"] == pytest.approx(90.0)
    assert all(math.isnan(value) for value in normal_angle(torch.zeros_like(ref), ref, mask).values())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(torch.zeros(1, 4, 4, 3), torch.zeros(2, 4, 4, 3))
