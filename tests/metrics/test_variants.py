import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from nova3d.metrics import psnr, ssim
from nova3d.metrics.views import psnr_u8, ssim_own_range, ssim_own_range_cropped, ssim_uniform7_u8


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    ref = 0.3 + 0.4 * torch.rand(3, 24, 20, 3, generator=generator)
    return (ref + 0.05 * torch.randn(3, 24, 20, 3, generator=generator)).clamp(0.2, 0.9), ref


def to_bytes(pictures):
    return (pictures.numpy() * 255).round().astype(np.uint8)


def test_psnr_u8_is_that_of_8_bit_files(pair):
    pred, ref = (to_bytes(pictures) for pictures in pair)
    expected = [peak_signal_noise_ratio(b, a) for a, b in zip(pred, ref, strict=True)]
    assert psnr_u8(*pair).tolist() == pytest.approx(expected, abs=1e-4)
    assert not torch.equal(psnr_u8(*pair), psnr(*pair))


def test_ssim_own_range_is_torchmetrics_without_a_data_range(pair):
    pred, ref = (pictures.permute(0, 3, 1, 2) for pictures in pair)
    expected = [float(structural_similarity_index_measure(a[None], b[None])) for a, b in zip(pred, ref, strict=True)]
    assert ssim_own_range(*pair).tolist() == pytest.approx(expected, abs=1e-5)
    assert (ssim_own_range(*pair) < ssim(*pair)).all()


def test_ssim_own_range_is_plain_ssim_where_there_is_black_and_white(pair):
    pred, ref = pair
    ref = ref.clone()
    ref[:, 0, 0], ref[:, 0, 1] = 0, 1
    assert torch.allclose(ssim_own_range(pred, ref), ssim(pred, ref), atol=1e-6)


def test_ssim_uniform7_u8_is_scikit_images_default(pair):
    pred, ref = (to_bytes(pictures) for pictures in pair)
    expected = [structural_similarity(b, a, channel_axis=2, data_range=255) for a, b in zip(pred, ref, strict=True)]
    assert ssim_uniform7_u8(*pair).tolist() == pytest.approx(expected, abs=1e-6)


def test_white_against_white():
    white = torch.ones(1, 16, 16, 3)
    assert float(ssim_own_range(white, white)) == pytest.approx(1.0)
    assert float(psnr_u8(white, white)) == 100.0


def test_ssim_own_range_cropped_is_torchmetrics_before_1_5(pair):
    """Its map of the local SSIM without the 5 pixels along the border; on a white border the whole mean is higher."""
    pred, ref = (pictures.permute(0, 3, 1, 2) for pictures in pair)
    pairs = zip(pred, ref, strict=True)
    maps = [structural_similarity_index_measure(a[None], b[None], return_full_image=True) for a, b in pairs]
    expected = [float(full[..., 5:-5, 5:-5].mean()) for _, full in maps]
    assert ssim_own_range_cropped(*pair).tolist() == pytest.approx(expected, abs=1e-5)
    framed = [torch.ones(3, 44, 40, 3) for _ in range(2)]
    for picture, inner in zip(framed, pair, strict=True):
        picture[:, 10:-10, 10:-10] = inner
    assert (ssim_own_range_cropped(*framed) < ssim_own_range(*framed)).all()
