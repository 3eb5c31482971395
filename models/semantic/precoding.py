"""Precoding matrices as torch functions: regularised zero forcing, iterative WMMSE, and learned WMMSE.

A user with the channel row h (1 x N) receives h V s + n; the K rows of a subcarrier are H (K x N), V is N x K. All
subcarriers share the transmit power: the mean of ||V||^2 over subcarriers is 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TINY = 1e-9
SOFTPLUS_ONE = math.log(math.e - 1)
"""Where softplus is 1."""


def regularised(rows: Tensor, noise: Tensor) -> Tensor:
    """Regularised zero forcing, V = H^H (H H^H + K noise I)^-1, scaled to unit power.

    Args:
        rows: complex64, (batch, subcarrier, user, antenna): channels as the base station knows them.
        noise: float32, (batch,): noise power of a user over the transmit power, uncertainty of the CSI included.

    Returns:
        complex64, (batch, subcarrier, antenna, user).
    """
    n_users = rows.shape[-2]
    gram = _product(rows, rows.mH)
    floor = _floor(gram)
    eye = torch.eye(n_users, device=rows.device)
    return normalised(_product(rows.mH, _inverse(gram + (n_users * noise[:, None] + floor)[..., None, None] * eye)))


def corrected(rows: Tensor, noise: Tensor, corrections: Tensor) -> Tensor:
    """Learned WMMSE, v_k = alpha_k (sum_j rho_j h_j h_j^H + K mu I)^-1 h_k, scaled to unit power.

    It is computed in the push-through form H^H (K mu I + D H H^H)^-1 diag(alpha) with D = diag(rho), which inverts
    K x K matrices. Corrections of zero give regularised zero forcing: alpha = 1, rho = 1, mu = noise. Softplus keeps
    rho and mu positive, and with that the matrix regular.

    Args:
        rows, noise: see `regularised`.
        corrections: float32, (batch, user, group, 4): of alpha (real and imaginary part), rho, mu, for each of the
            groups that subcarriers are divided into evenly.

    Returns:
        complex64, (batch, subcarrier, antenna, user).

    Source: Wu et al., arXiv 2405.19889; the WMMSE form is that of Shi et al., IEEE TSP 59(9), 2011.
    """
    n_users, n_subcarriers = rows.shape[-2], rows.shape[1]
    told = corrections.permute(0, 2, 1, 3).repeat_interleave(n_subcarriers // corrections.shape[2], 1)
    alpha = torch.complex(1 + told[..., 0], told[..., 1])
    rho = torch.nn.functional.softplus(told[..., 2] + SOFTPLUS_ONE)
    mu = noise[:, None] * torch.nn.functional.softplus(told[..., 3].mean(-1) + SOFTPLUS_ONE)
    gram = _product(rows, rows.mH)
    eye = torch.eye(n_users, device=rows.device)
    inner = (n_users * mu + _floor(gram))[..., None, None] * eye + rho[..., None] * gram
    return normalised(_product(rows.mH, _inverse(inner)) * alpha[..., None, :])


def iterative_wmmse(rows: Tensor, noise: Tensor, n_iterations: int = 30) -> Tensor:
    """Maximise the sum rate by alternating MMSE receivers, weights and precoders, power shared by all subcarriers.

    Precoders are scaled to the power in every iteration, with the multiplier that makes the scaled problem that of
    Shi et al.: the mean over subcarriers of noise sum_j w_j |u_j|^2.

    Args:
        rows, noise: see `regularised`.
        n_iterations: from regularised zero forcing on.

    Returns:
        complex64, (batch, subcarrier, antenna, user).

    Source: Shi et al., IEEE TSP 59(9), 2011; the scaled form is that of Christensen et al., IEEE TWC 7(12), 2008.
    """
    sigma = noise[:, None, None].clamp_min(_TINY)
    eye = torch.eye(rows.shape[-2], device=rows.device)
    gram = _product(rows, rows.mH)
    floor = _floor(gram)
    v = regularised(rows, noise)
    for _ in range(n_iterations):
        received = _product(rows, v)
        power = torch.view_as_real(received).square().sum(-1)
        total = power.sum(-1) + sigma
        own = received.diagonal(dim1=-2, dim2=-1)
        u = own.conj() / total
        w = total / (total - own.abs().square()).clamp_min(_TINY)
        rho = w * u.abs().square()
        multiplier = (sigma[..., 0] * rho.sum(-1)).mean(-1, keepdim=True) + floor * rho.mean(-1)
        # H^H (mu I + D H H^H)^-1 diag(u^* w) = (sum_j rho_j h_j h_j^H + mu I)^-1 h_k u_k^* w_k
        inner = multiplier.clamp_min(_TINY**2)[..., None, None] * eye + rho[..., None] * gram
        v = normalised(_product(rows.mH, _inverse(inner)) * (u.conj() * w)[..., None, :])
    return v


def normalised(v: Tensor) -> Tensor:
    """Scale precoding matrices to a mean power of 1 over subcarriers; zero where there is nothing to scale."""
    power = _energy(v).mean(-1)
    return v * power.clamp_min(_TINY**2).rsqrt()[:, None, None, None]


def sinr(rows: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    """Signal over interference and noise of every user behind a precoding matrix.

    Args:
        rows: complex64, (batch, subcarrier, user, antenna).
        v: complex64, (batch, subcarrier, antenna, user).
        noise: float32, (batch,).

    Returns:
        float32, (batch, subcarrier, user).
    """
    power = torch.view_as_real(_product(rows, v)).square().sum(-1)
    own = power.diagonal(dim1=-2, dim2=-1)
    return own / (power.sum(-1) - own + noise[:, None, None]).clamp_min(_TINY)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of many small matrices: one by one, libraries take longer to begin than to compute."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def _inverse(matrices: Tensor) -> Tensor:
    """Inverses of many small matrices; complex64, (..., user, user)."""
    n_users = matrices.shape[-1]
    if n_users == 1:
        return matrices.reciprocal()
    if n_users > 2:
        return torch.linalg.inv(matrices)
    # In double precision, since nearly equal channels leave a small difference for the determinant.
    a, b, c, d = matrices.to(torch.complex128).flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], -1) / (a * d - b * c)[..., None]
    return adjugate.unflatten(-1, (2, 2)).to(matrices.dtype)


def _energy(v: Tensor) -> Tensor:
    return torch.view_as_real(v).square().sum((-3, -2, -1))


def _floor(gram: Tensor) -> Tensor:
    """So little added to the diagonal that only singular matrices notice; float32, (batch, subcarrier)."""
    return 1e-6 * gram.diagonal(dim1=-2, dim2=-1).real.sum(-1) + 1e-12
