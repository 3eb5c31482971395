"""Quality of pictures beside independent computations and published check values."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d
from semair.errors import ModelError, SetupError
from semair.models.semantic.images import draw
from semair.models.semantic.metrics import TORCHMETRICS, Lpips, lpips_metric, ms_ssim, n_scales, psnr


def two_pictures(side, rng):
    clean = draw(side, rng).astype(np.float64) / 255
    return clean, (clean + 0.1 * rng.standard_normal(clean.shape)).clip(0, 1)


def as_batch(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))


def reference_ms_ssim(x, y):
    """Filtered with scipy in double precision, one colour at a time."""
    window = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window /= window.sum()
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: n_scales(*x.shape[:2])]
    weights /= weights.sum()

    def smooth(a):
        return correlate1d(correlate1d(a, window, 0), window, 1)[5:-5, 5:-5]

    values = []
    for colour in range(3):
        a, b, value = x[..., colour], y[..., colour], 1.0
        for k, weight in enumerate(weights):
            ma, mb = smooth(a), smooth(b)
            va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
            part = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
            if k == len(weights) - 1:
                part = part * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
            value *= part.mean() ** weight
            a, b = (s.reshape(s.shape[0] // 2, 2, -1, 2).mean((1, 3)) for s in (a, b))
        values.append(value)
    return np.mean(values)


@pytest.mark.parametrize("side", [64, 128, 192])
def test_ms_ssim_is_that_of_a_computation_with_scipy(side, rng):
    clean, noisy = two_pictures(side, rng)
    found = float(ms_ssim(as_batch(clean), as_batch(noisy)))
    assert found == pytest.approx(reference_ms_ssim(clean, noisy), abs=2e-4)


def test_ms_ssim_is_1_for_equal_pictures_and_has_finite_gradients(rng):
    clean, _ = two_pictures(64, rng)
    same = as_batch(clean).requires_grad_()
    value = ms_ssim(as_batch(clean), same)
    assert value.item() == pytest.approx(1, abs=1e-4)
    inverted = as_batch(1 - clean).requires_grad_()
    (value.sum() + ms_ssim(as_batch(clean), inverted).sum()).backward()
    assert bool(torch.isfinite(same.grad).all() and torch.isfinite(inverted.grad).all())


def test_pictures_that_were_compared_can_be_trained_on(rng):
    clean, noisy = two_pictures(47, rng)
    with torch.inference_mode():
        expected = ms_ssim(as_batch(clean), as_batch(noisy)).item()
    found = as_batch(noisy).requires_grad_()
    value = ms_ssim(as_batch(clean), found)
    value.sum().backward()
    assert value.item() == pytest.approx(expected) and bool(torch.isfinite(found.grad).all())


@pytest.mark.parametrize(("side", "scales"), [(11, 1), (64, 3), (128, 4), (176, 5), (256, 5)])
def test_small_pictures_get_fewer_scales(side, scales):
    assert n_scales(side, 256) == scales


def test_ms_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="10 x 64 pixels; MS-SSIM needs at least 11"):
        n_scales(10, 64)


def test_psnr_of_a_known_error():
    picture = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(psnr(picture, picture + 0.1), torch.full((2,), 20.0))
    torch.testing.assert_close(psnr(picture, picture), torch.full((2,), 100.0))


def test_lpips_gives_the_published_check_values(shared_data):
    folder = shared_data / "lpips"
    metric = Lpips(folder)
    ref, p0, p1 = (as_batch(np.array(Image.open(folder / f"ex_{name}.png")) / 255) for name in ("ref", "p0", "p1"))
    found = [float(metric(ref, other)) for other in (ref, p0, p1)]
    np.testing.assert_allclose(found, [0, 0.711211, 0.147935], atol=1e-4)


def test_lpips_says_what_it_misses(tmp_path):
    with pytest.raises(SetupError, match=r"LPIPS needs squeezenet1_1_features_fp16\.npz and lpips_v0"):
        Lpips(tmp_path)
    for name in (Lpips.BACKBONE, Lpips.HEADS):
        np.savez(tmp_path / name, other=np.zeros(3))
    with pytest.raises(ModelError, match="damaged or foreign"):
        Lpips(tmp_path)


def test_lpips_of_torchmetrics_says_what_it_needs():
    if importlib.util.find_spec("torchmetrics") is not None:
        pytest.skip("torchmetrics is installed")
    with pytest.raises(SetupError, match=r"pip install 'torchmetrics.*torchvision.*folder of weights"):
        lpips_metric(TORCHMETRICS)


def test_lpips_is_that_of_torchmetrics(shared_data, rng):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    try:
        theirs = lpips_metric(TORCHMETRICS)
    except SetupError as error:
        pytest.skip(str(error))
    clean, noisy = (as_batch(picture) for picture in two_pictures(64, rng))
    expected = theirs(torch.cat([clean, clean]), torch.cat([noisy, clean]))
    ours = lpips_metric(shared_data / "lpips")(torch.cat([clean, clean]), torch.cat([noisy, clean]))
    assert torch.allclose(ours, expected, atol=2e-4)
    assert expected[0] > 0.01
    assert expected[1] == pytest.approx(0, abs=1e-6)
