import math

import pytest
import torch

from nova3d.errors import InputError
from nova3d.evaluation import foreground_psnr, mask_iou, normal_angle, psnr, ssim
from nova3d.metrics import MAX_PSNR, foreground_ssim, psnr_union, registered_psnr, task_iou
from nova3d.metrics.views import pooled_psnr_union
from nova3d.utils.compat import ensure_torchvision


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


def test_psnr_union_sees_both_masks_and_no_background():
    ref = torch.ones(1, 4, 4, 3)
    pred = ref.clone()
    ref_mask, pred_mask = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    ref_mask[0, 0], pred_mask[0, 1] = 1, 1
    pred[0, 0], pred[0, 1], pred[0, 3] = 0.9, 0.7, 0.0  # missed, spilt over the outline, in neither mask
    assert psnr_union(pred, ref, pred_mask, ref_mask).item() == pytest.approx(-10 * math.log10(0.05), abs=1e-3)
    assert psnr_union(ref, ref, pred_mask, ref_mask).item() == MAX_PSNR
    empty = torch.zeros(1, 4, 4)
    assert math.isnan(psnr_union(pred, ref, empty, empty).item())


def test_pooled_psnr_union_weights_views_by_their_pixels():
    ref, pred = torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 3)
    pred[0] += 0.1
    pred[1] += 0.5
    mask, none = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    mask[0, :3], mask[1, :1] = 1, 1  # 12 pixels of error 0.01, 4 of error 0.25
    expected = -10 * math.log10((12 * 0.01 + 4 * 0.25) / 16)
    assert pooled_psnr_union(pred, ref, mask, none) == pytest.approx(expected, abs=1e-4)
    assert pooled_psnr_union(pred, ref, none, mask) == pytest.approx(expected, abs=1e-4)
    assert math.isnan(pooled_psnr_union(pred, ref, none, none))


def test_foreground_psnr_without_foreground_is_nan():
    image = torch.rand(1, 4, 4, 3)
    assert math.isnan(foreground_psnr(image, image, torch.zeros(1, 4, 4)).item())


def blob(size: int = 24, at: tuple[int, int] = (8, 9), seed: int = 0) -> torch.Tensor:
    """[1,size,size,3] a random 7x6 patch on white, its first pixel at row, column `at`."""
    image = torch.ones(1, size, size, 3)
    patch = torch.rand(7, 6, 3, generator=torch.Generator().manual_seed(seed))
    image[0, at[0] : at[0] + 7, at[1] : at[1] + 6] = patch
    return image


@pytest.mark.parametrize("shift", [(0, 0), (4, 0), (0, -4), (-3, 2)])
def test_registered_psnr_finds_the_shift(shift):
    moved = blob(at=(8 + shift[0], 9 + shift[1]))
    assert registered_psnr(moved, blob()).item() == MAX_PSNR
    assert shift == (0, 0) or psnr(moved, blob()).item() < 30


def test_registered_psnr_looks_no_further_than_it_says():
    moved = blob(at=(8, 14))
    assert registered_psnr(moved, blob()).item() < 30
    assert registered_psnr(moved, blob(), max_shift=5).item() == MAX_PSNR


def test_registered_psnr_is_the_best_of_a_plain_search_for_each_view_alone():
    generator = torch.Generator().manual_seed(1)
    pred, ref = (torch.rand(3, 9, 8, 3, generator=generator) for _ in range(2))
    best = torch.zeros(3)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            moved = torch.ones_like(pred)
            for y in range(9):
                for x in range(8):
                    if 0 <= y - dy < 9 and 0 <= x - dx < 8:
                        moved[:, y, x] = pred[:, y - dy, x - dx]
            best = best.maximum(psnr(moved, ref))
    torch.testing.assert_close(registered_psnr(pred, ref, max_shift=2), best)


def test_registered_psnr_without_a_shift_is_psnr_and_never_below_it():
    pred, ref = blob(seed=1), blob(seed=2)
    assert torch.equal(registered_psnr(pred, ref, max_shift=0), psnr(pred, ref))
    assert (registered_psnr(pred, ref) >= psnr(pred, ref)).all()


def test_registered_psnr_loses_what_leaves_the_frame():
    cut = blob(at=(8, 0)).roll(-3, dims=2)  # three of six columns come back at the other border
    cut[0, :, -3:] = 1.0
    assert registered_psnr(cut, blob(at=(8, 0))).item() < MAX_PSNR


def test_registered_psnr_on_another_background():
    grey, moved = blob() - 0.5, blob(at=(8, 9 - 4)) - 0.5
    assert registered_psnr(moved, grey, background=0.5).item() == MAX_PSNR
    assert registered_psnr(moved, grey).item() < MAX_PSNR


@pytest.mark.parametrize("max_shift", [-1, 24])
def test_registered_psnr_refuses_shifts_past_the_image(max_shift):
    with pytest.raises(ValueError, match="max_shift"):
        registered_psnr(blob(), blob(), max_shift)


def test_foreground_ssim_does_not_see_what_lies_beyond_its_windows():
    ref = blob(48)
    mask = torch.zeros(1, 48, 48)
    mask[0, 8:15, 9:15] = 1
    pred = ref.clone()
    pred[0, 21:, 21:] = 0.0  # six pixels and more from every foreground pixel
    assert ssim(pred, ref).item() < 0.9
    assert foreground_ssim(pred, ref, mask).item() == pytest.approx(1.0, abs=1e-6)
    pred[0, 8:15, 16] = 0.0  # but a wrong outline is within reach
    assert foreground_ssim(pred, ref, mask).item() < 0.99


def test_foreground_ssim_over_everything_is_ssim_and_over_nothing_nan():
    pred, ref = blob(seed=1), blob(seed=2)
    whole = torch.ones(1, 24, 24)
    torch.testing.assert_close(foreground_ssim(pred, ref, whole), ssim(pred, ref))
    assert math.isnan(foreground_ssim(pred, ref, torch.zeros_like(whole)).item())


def test_foreground_ssim_of_flat_images_follows_the_formula():
    a, b, c1 = 0.4, 0.6, 0.01**2
    pred, ref = torch.full((1, 32, 32, 3), a), torch.full((1, 32, 32, 3), b)
    mask = torch.zeros(1, 32, 32)
    mask[0, 12:20, 12:20] = 1
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert foreground_ssim(pred, ref, mask).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_is_one_for_equal_images_and_follows_the_formula_for_flat_ones():
    flat = torch.full((1, 32, 32, 3), 0.4)
    a, b, c1 = 0.4, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)  # no variance: only the luminance term is left
    assert ssim(flat, flat).item() == pytest.approx(1.0, abs=1e-6)
    assert ssim(torch.full_like(flat, 0.6), flat).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_is_torchmetrics():
    ensure_torchvision()
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    ref = torch.rand(2, 24, 17, 3, generator=generator)
    pred = (ref + 0.2 * torch.randn(ref.shape, generator=generator)).clamp(0, 1)
    images = [image.double().permute(0, 3, 1, 2) for image in (pred, ref)]
    expected = structural_similarity_index_measure(*images, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(pred.double(), ref.double()), expected, atol=1e-10, rtol=0)


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


def test_mask_iou_of_voxel_grids():
    a, b = torch.zeros(1, 4, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    a[:, :2], b[:, 1:3] = True, True
    assert float(mask_iou(a, b)) == pytest.approx(1 / 3)


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


def test_task_iou_compares_the_outlines_of_colours_and_normals():
    rgb, normals = torch.ones(3, 20, 20, 3), torch.zeros(3, 20, 20, 3)
    rgb[:, 4:14, 4:14] = torch.tensor([0.9, 1.0, 1.0])  # far enough from white in one channel
    rgb[:, 6:8, 6:8] = 1.0  # a white patch within the object is no hole of it
    normals[0, 4:14, 4:14, 2] = 1.0
    normals[1, 4:14, 9:19, 2] = 0.25  # doubtful, but a surface; five of ten columns in common
    normals[2, 4:14, 4:14, 2] = 0.15  # too short to be a surface
    rgb[2, 0, 0] = 0.97  # nearly white
    assert task_iou(rgb, normals).tolist() == pytest.approx([1.0, 50 / 150, 0.0])
    assert task_iou(torch.ones(1, 4, 4, 3), torch.zeros(1, 4, 4, 3)).tolist() == [1.0]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(torch.zeros(1, 4, 4, 3), torch.zeros(2, 4, 4, 3))
