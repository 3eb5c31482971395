"""The best linear code, which every network starts from and learns what it leaves over."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..klt import KltCode
from .base import SNR_SCALE_DB, Network, NetworkConfig, announced_snr_db

_FLOOR = 1e-6

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def start_linear(network: Network, csi: Tensor) -> None:
    """Set the linear codes of encoder and decoder to the one that is best for some draws.

    Args:
        network: Whose encoder and decoder have a `LinearCode` each, as `linear`.
        csi: complex64, (drop, user, tap, beam).
    """
    klt = KltCode(csi.cpu().numpy(), joint=False)
    with torch.no_grad():
        for part in (network.encoder, network.decoder):
            assert isinstance(part.linear, LinearCode)
            part.linear.set(torch.from_numpy(klt.basis.copy()), torch.from_numpy(klt.variances.copy()))


def silent(layer: Layer) -> Layer:
    """A layer that says nothing before it has learned something."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class LinearCode(nn.Module):
    """The linear code of `KltCode` as layers: basis and variances, and powers by SNR and length.

    Args:
        c: Sizes.
    """

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.shape = (c.n_taps, c.n_antennas)
        self.size, self.n = c.n_taps * c.n_antennas, c.max_length
        # Entries of unit size, so that they move as slowly as other weights do for their size.
        self.basis = nn.Parameter(torch.randn(2, self.size, self.n) / math.sqrt(2))
        self.log_variances = nn.Parameter(torch.zeros(self.n))

    def set(self, basis: Tensor, variances: Tensor) -> None:
        """Take over a KLT: complex (size, component), (component,)."""
        n = min(self.n, basis.shape[1])
        self.basis[:, :, :n] = torch.stack([basis.real, basis.imag])[:, :, :n] * math.sqrt(self.size)
        self.log_variances[:n] = variances[:n].clamp(min=1e-4).log().to(self.log_variances.dtype)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, (size, component) each."""
        real, imag = (self.basis / math.sqrt(self.size)).unbind(0)
        return real, imag

    def powers(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Powers for the SNR that was announced, and standard deviations, of the components; (..., component) each.

        See `KltCode.powers`; too weak components are left out step by step.
        """
        noise = torch.pow(10.0, -announced_snr_db(condition) / 10)
        length = condition[..., 3:4] * self.n
        root = torch.exp(0.5 * self.log_variances)
        used = (torch.arange(self.n, device=root.device) < length - 0.5).to(root.dtype)
        power = used
        for _ in range(4):
            scale = (length + used.sum(-1, keepdim=True) * noise) / (root * used).sum(-1, keepdim=True).clamp(
                min=_FLOOR
            )
            power = (scale * root - noise) * used
            used = used * (power > 0).to(root.dtype)
        return power.clamp(min=0.0), root

    def encode(self, features: Tensor, condition: Tensor) -> Tensor:
        """(batch, tap, 2 beams) -> (batch, 2 component)."""
        x, y = (part.flatten(1) for part in features.chunk(2, -1))
        a, b = self.matrix()
        power, root = self.powers(condition)
        amplitude = torch.sqrt(power + _FLOOR) / root
        # Times the conjugate basis.
        return torch.cat([(x @ a + y @ b) * amplitude, (y @ a - x @ b) * amplitude], -1)

    def decode(self, code: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 2 component) -> real and imaginary part, (batch, size) each: LMMSE of independent components."""
        power, root = self.powers(condition)
        noise = torch.pow(10.0, -condition[..., :1] * (SNR_SCALE_DB / 10))
        gain = root * torch.sqrt(power + _FLOOR) / (power + noise)
        x, y = (part * gain for part in code.chunk(2, -1))
        a, b = self.matrix()
        return x @ a.mT - y @ b.mT, x @ b.mT + y @ a.mT

    def estimate(self, code: Tensor, condition: Tensor) -> Tensor:
        """(batch, 2 component) -> (batch, tap, 2 beams)."""
        return torch.cat([part.reshape(-1, *self.shape) for part in self.decode(code, condition)], 2)
