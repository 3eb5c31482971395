"""Quality of pictures: PSNR, MS-SSIM, and LPIPS from weights that the user has, or by torchmetrics.

LPIPS judges and never trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ModelError, SetupError

LPIPS_NAME = "LPIPS (SqueezeNet 1.1, v0.1)"
TORCHMETRICS = "torchmetrics"
"""In place of a folder of weights: LPIPS as torchmetrics has it."""

PictureMetric = Callable[[Tensor, Tensor], Tensor]
"""Of pictures in [0, 1]: float32, (batch,) from (batch, 3, row, column) twice."""

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pictures: Tensor, found: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [0, 1] in dB, at most 100; float32, (...) from (..., 3, row, column)"""
    mse = (pictures - found).square().mean((-3, -2, -1))
    return -10 * torch.log10(mse.clamp_min(1e-10))


def n_scales(rows: int, columns: int) -> int:
    """Scales of MS-SSIM that leave room for the window of 11 pixels: 5 from 176 pixels on, 3 at 64.

    Raises:
        ValueError: a side is shorter than the window.
    """
    side = min(rows, columns)
    if side < _WINDOW:
        raise ValueError(f"pictures of {rows} x {columns} pixels; MS-SSIM needs at least {_WINDOW} each way")
    return min(len(_SCALE_WEIGHTS), 1 + int(math.log2(side / _WINDOW)))


def ms_ssim(pictures: Tensor, found: Tensor) -> Tensor:
    """Multi-scale structural similarity of pictures in [0, 1], per colour, averaged.

    Pictures too small for five scales get as many as fit; the weights of these scale to a sum of 1.

    Args:
        pictures: float32, (batch, 3, row, column).
        found: the same.

    Returns:
        float32, (batch,).

    Source: Wang et al., "Multiscale structural similarity for image quality assessment", Asilomar 2003.
    """
    n = n_scales(*pictures.shape[-2:])
    weights = torch.tensor(_SCALE_WEIGHTS[:n]) / sum(_SCALE_WEIGHTS[:n])
    value = torch.ones(pictures.shape[:2], device=pictures.device)
    x, y = pictures, found
    for k in range(n):
        luminance, contrast = _ssim_parts(x, y)
        part = contrast * luminance if k == n - 1 else contrast
        # Negative values have no fractional powers; the floor keeps gradients finite.
        value = value * part.mean((-2, -1)).clamp_min(1e-4) ** weights[k]
        if k < n - 1:
            x, y = nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(y, 2)
    return value.mean(-1)


def compare(sent: NDArray[np.uint8], found: NDArray[np.uint8]) -> tuple[float, float]:
    """PSNR in dB and MS-SSIM of one picture, uint8 (row, column, 3) each."""
    one, other = (torch.from_numpy(x.astype(np.float32) / 255).permute(2, 0, 1)[None] for x in (sent, found))
    with torch.inference_mode():
        return float(psnr(one, other)), float(ms_ssim(one, other))


def _ssim_parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = _band(x.shape[-2]).to(x.device), _band(x.shape[-1]).to(x.device)
    mean_x, mean_y, xx, yy, xy = (rows @ torch.stack([x, y, x * x, y * y, x * y]) @ columns.T).unbind(0)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    contrast = (2 * (xy - mean_x * mean_y) + _C2) / (xx - mean_x**2 + yy - mean_y**2 + _C2)
    return luminance, contrast


# Kept tensors serve training, too, whoever asked first.
@cache
@torch.inference_mode(False)
def _band(n: int) -> Tensor:
    """Gaussian window as a matrix over the places where it fits, (n - 10, n)."""
    at = torch.arange(_WINDOW) - _WINDOW // 2
    window = torch.exp(-0.5 * (at / _SIGMA) ** 2)
    band = torch.zeros(n - _WINDOW + 1, n)
    for k in range(len(band)):
        band[k, k : k + _WINDOW] = window / window.sum()
    return band


def lpips_metric(source: str | Path) -> PictureMetric:
    """LPIPS with the SqueezeNet 1.1 backbone, version 0.1.

    Args:
        source: folder with its weights, see `Lpips`; or "torchmetrics", which needs torchvision, and fetches the
            backbone from the network the first time.

    Raises:
        SetupError: the folder has no such files, or torchmetrics cannot do it.
        ModelError: the files do not hold what they should.
    """
    if str(source) != TORCHMETRICS:
        return Lpips(source)
    try:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type="squeeze", reduction="none", normalize=True).eval()
    # A torchvision that was built for another torch raises RuntimeError; a backbone that cannot be fetched, OSError.
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        raise SetupError(
            f"LPIPS of torchmetrics cannot be had: {error}; pip install 'torchmetrics>=1.9', and torchvision from the "
            "index that torch came from, built for it (CPU or CUDA); or give a folder of weights"
        ) from error

    def distance(pictures: Tensor, found: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = metric(pictures.float().clamp(0, 1), found.float().clamp(0, 1))
            metric.reset()
            return value

    return distance


class Lpips(nn.Module):
    """Learned perceptual image patch similarity with the SqueezeNet 1.1 backbone, version 0.1.

    Args:
        folder: with `squeezenet1_1_features_fp16.npz` (arrays named as in torchvision's state dict) and
            `lpips_v0.1_squeeze_lin.npz`.

    Raises:
        SetupError: the folder has no such files.
        ModelError: they do not hold what they should.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
    """

    BACKBONE = "squeezenet1_1_features_fp16.npz"
    HEADS = "lpips_v0.1_squeeze_lin.npz"
    _TAPS = (1, 4, 7, 9, 10, 11, 12)
    _FIRES = (3, 4, 6, 7, 9, 10, 11, 12)
    _POOLS = (2, 5, 8)

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        place = Path(folder)
        missing = [name for name in (self.BACKBONE, self.HEADS) if not (place / name).is_file()]
        if missing:
            raise SetupError(
                f"LPIPS needs {' and '.join(missing)} in {place}; give the folder of the weights, or leave LPIPS out"
            )
        try:
            with np.load(place / self.BACKBONE, allow_pickle=False) as arrays:
                self._weights = {
                    name.removeprefix("features."): torch.from_numpy(arrays[name].astype(np.float32))
                    for name in arrays.files
                }
            with np.load(place / self.HEADS, allow_pickle=False) as arrays:
                self._heads = [
                    torch.from_numpy(arrays[f"lin{k}.model.1.weight"].astype(np.float32))
                    for k in range(len(self._TAPS))
                ]
            blank = torch.zeros(1, 3, 64, 64)
            if not bool(torch.isfinite(self(blank, blank)).all()):
                raise ValueError("NaN or infinity among the weights")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the weights of LPIPS in {place} are damaged or foreign: {error}") from error

    def forward(self, pictures: Tensor, found: Tensor) -> Tensor:
        """Distance of pictures in [0, 1], 0 for equal ones; float32, (batch,) from (batch, 3, row, column)."""
        with torch.no_grad():
            first, second = self._taps(pictures), self._taps(found)
            total = torch.zeros(len(pictures))
            for a, b, head in zip(first, second, self._heads, strict=True):
                a = a / (a.norm(dim=1, keepdim=True) + 1e-10)
                b = b / (b.norm(dim=1, keepdim=True) + 1e-10)
                total = total + nn.functional.conv2d((a - b).square(), head).mean((1, 2, 3))
            return total

    def _taps(self, pictures: Tensor) -> list[Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        x = (2 * pictures.float() - 1 - shift) / scale
        x = nn.functional.conv2d(x, self._weights["0.weight"], self._weights["0.bias"], stride=2)
        found = []
        for index in range(1, 13):
            if index == 1:
                x = x.relu()
            elif index in self._POOLS:
                x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
            else:
                squeezed = self._convolved(x, f"{index}.squeeze").relu()
                x = torch.cat(
                    [
                        self._convolved(squeezed, f"{index}.expand1x1"),
                        self._convolved(squeezed, f"{index}.expand3x3", 1),
                    ],
                    1,
                ).relu()
            if index in self._TAPS:
                found.append(x)
        return found

    def _convolved(self, x: Tensor, name: str, padding: int = 0) -> Tensor:
        return nn.functional.conv2d(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], padding=padding)
