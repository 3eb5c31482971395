"""The picture downlink at symbol level: K users at once, precoded, over their true channels, with receivers that know
nothing but what they hear.

A frame is K reference symbols and then the data, all precoded alike. From the references a user learns its own
effective channel and those of the other users' streams, with noise, and cleans them in the delay domain; these, and
its noise power, are all it knows. Transmit power is that of the whole frame as it is sent, whatever was added to it: 1
in the mean over subcarriers and OFDM symbols. The SNR is that power over a user's noise power, channels having unit
mean power.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import precoding
from .networks.base import PIXELS, NetworkConfig, deinterleave, interleave, to_blocks, to_groups, to_subcarriers

_TINY = 1e-9
_BEST_NMSE_DB = -40.0
_SPECTRUM_SPREAD = 3


@dataclass(frozen=True)
class Channels:
    """The downlink of drops, and what the base station knows of it.

    Attributes:
        h: complex64, (batch, user, subcarrier, antenna): true channels, unit mean power.
        known: the same as the base station has them.
        nmse_db: float32, (batch,): error of `known` that the base station reckons with; `PERFECT_DB` or less for none.
    """

    h: Tensor
    known: Tensor
    nmse_db: Tensor


class Receiver(Protocol):
    """What a receiver asks of a network, or of whatever runs one; see `networks.Network`."""

    @property
    def config(self) -> NetworkConfig: ...
    @property
    def decoder(self) -> Callable[..., Tensor]: ...
    @property
    def training(self) -> bool: ...


class Coder(Receiver, Protocol):
    """What the link asks of a network beside that."""

    @property
    def encoder(self) -> Callable[..., Tensor]: ...
    @property
    def transmitter(self) -> Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] | None: ...


PERFECT_DB = _BEST_NMSE_DB
"""NMSE that stands for perfect CSI."""


@dataclass(frozen=True)
class Frame:
    """What the antennas send.

    Attributes:
        reference: complex64, (batch, subcarrier, antenna, user): reference symbols, one OFDM symbol for each user.
        data: complex64, (batch, subcarrier, antenna, OFDM symbol).
        size: rows and columns of the tokens of each picture.
    """

    reference: Tensor
    data: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Heard:
    """What a user makes of a frame, one row for every user.

    Attributes:
        features: float32, (batch, user, row, column, 3 uses): for the decoder, see `Network`.
        condition: float32, (batch, user, `HEARD_CONDITIONS`).
        sinr_db: float32, (batch, user): estimated, mean over subcarriers of the ratio in dB.
    """

    features: Tensor
    condition: Tensor
    sinr_db: Tensor


def transmit(network: Coder, pictures: Tensor, known: Tensor, nmse_db: Tensor, snr_db: Tensor) -> Frame:
    """Code the pictures of all users, and precode them.

    Args:
        network: whatever it is.
        pictures: float32, (batch, user, 3, row, column), in [0, 1].
        known: complex64, (batch, user, subcarrier, antenna): CSI of the base station, of any scale.
        nmse_db: float32, (batch,): its error.
        snr_db: float32, (batch,).
    """
    symbols, condition, rows, noise, csi = _encoded(network, pictures, known, nmse_db, snr_db)
    corrections, added = None, None
    if network.transmitter is not None:
        symbols, corrections, added = network.transmitter(symbols, csi, condition)
    v = precoding_matrix(network, rows, noise, corrections)
    c = network.config
    streams = to_subcarriers(_complex(symbols), c.group)
    data = (v[..., None] * streams.transpose(1, 2)[:, :, None]).sum(-2)
    if added is not None:
        parts = _complex(added).unflatten(-1, (c.n_antennas, c.uses)).movedim(-2, 1)
        data = data + to_subcarriers(parts, c.group).transpose(1, 2)
    return framed(v, data, (pictures.shape[-2] // PIXELS, pictures.shape[-1] // PIXELS))


def precoding_matrix(network: Coder, rows: Tensor, noise: Tensor, corrections: Tensor | None) -> Tensor:
    """The matrix of a network's choice; see `precoding`."""
    if network.config.precoder == "wmmse":
        with torch.no_grad():
            return precoding.iterative_wmmse(rows, noise)
    if corrections is not None:
        return precoding.corrected(rows, noise, corrections)
    return precoding.regularised(rows, noise)


def framed(v: Tensor, data: Tensor, size: tuple[int, int], repeats: int = 1) -> Frame:
    """Put reference symbols before data and give the frame its power, that of the sum as it is sent.

    Args:
        v: complex64, (batch, subcarrier, antenna, user).
        data: complex64, (batch, subcarrier, antenna, OFDM symbol): precoded, of any power.
        size: see `Frame`.
        repeats: how many times data counts: it may stand for a frame so many times as long.
    """
    reference = v @ pilots(v.shape[-1], v.device)
    first, second = (torch.view_as_real(part).square().sum((1, 2, 3, 4)) for part in (reference, data))
    energy = first + repeats * second
    n = v.shape[1] * (reference.shape[-1] + repeats * data.shape[-1])
    # No channel known, nothing sent: silence stays silence.
    scale = (n / energy.clamp_min(_TINY) * (energy > _TINY)).sqrt()[:, None, None, None]
    return Frame(reference * scale, data * scale, size)


def propagate(frame: Frame, h: Tensor, snr_db: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What users receive: channel and noise.

    Args:
        frame: sent.
        h: complex64, (batch, user, subcarrier, antenna): true channels.
        snr_db: float32, (batch,) or (batch, user).
        generator: of the noise, on the device of the channels.

    Returns:
        Reference symbols, complex64 (batch, user, subcarrier, reference), and data, complex64 (batch, user, subcarrier,
        OFDM symbol).
    """
    sent = torch.cat([frame.reference, frame.data], -1)
    received = torch.einsum("bksn,bsnq->bksq", h, sent)
    noise = torch.view_as_complex(torch.randn((*received.shape, 2), generator=generator, device=h.device))
    power = _noise_power(snr_db, h.shape[1])
    received = received + noise * (power / 2).sqrt()[:, :, None, None]
    n_references = frame.reference.shape[-1]
    return received[..., :n_references], received[..., n_references:]


def hear(
    network: Receiver,
    references: Tensor,
    data: Tensor,
    noise: Tensor,
    size: tuple[int, int],
    streams: tuple[int, ...] | None = None,
) -> Heard:
    """Equalise what each user received, by what its reference symbols say.

    Args:
        network: says how symbols lie on subcarriers.
        references: complex64, (batch, user, subcarrier, reference).
        data: complex64, (batch, user, subcarrier, OFDM symbol).
        noise: float32, (batch, user): noise power of the users, which they know.
        size: rows and columns of tokens.
        streams: which stream is for each user; None: the first for the first and so on.
    """
    own, disturbance = own_channel(references, noise, streams)
    strength = own.abs().square()
    total = (strength + disturbance).clamp_min(_TINY)
    # What MMSE makes of it, without its bias.
    symbols = data * (own.conj() / strength.clamp_min(_TINY))[..., None]
    reliability = strength / total
    symbols = symbols * reliability[..., None]
    c = network.config
    whole = to_groups(symbols, c.group, c.uses)
    sure = to_groups(reliability[..., None].expand_as(symbols.real), c.group, c.uses)
    n_tokens = size[0] * size[1]

    def tokens(x: Tensor) -> Tensor:
        return deinterleave(x).flatten(2, 3)[:, :, :n_tokens].unflatten(2, size)

    features = torch.cat([tokens(whole.real), tokens(whole.imag), tokens(sure)], -1)
    ratio_db = 10 * torch.log10((strength / disturbance.clamp_min(_TINY)).clamp(1e-4, 1e6))
    mean = ratio_db.mean(-1)
    condition = torch.stack([mean / 10, ratio_db.std(-1, unbiased=False) / 10], -1)
    return Heard(features, condition, mean)


def own_channel(references: Tensor, noise: Tensor, streams: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """What a user's reference symbols say about its own stream.

    Args:
        references, noise: see `effective_channels`.
        streams: see `hear`.

    Returns:
        Effective channel, complex64 (batch, user, subcarrier), and the power of what disturbs it, the other streams and
        noise, float32 of the same shape.
    """
    found = effective_channels(references, noise)
    power = found.abs().square()
    user = torch.arange(found.shape[1], device=found.device)
    stream = user if streams is None else torch.tensor(streams, device=found.device)
    own = found[:, user, :, stream].transpose(0, 1)
    others = power.sum(-1) - power[:, user, :, stream].transpose(0, 1)
    return own, others.clamp_min(0) + noise[..., None]


def effective_channels(references: Tensor, noise: Tensor) -> Tensor:
    """Channels of all users' streams at each user, from precoded reference symbols.

    Least squares over the orthogonal reference symbols, then Wiener weights in the delay domain, whose signal power
    is what stands above twice the noise in three neighbouring taps.

    Args:
        references: complex64, (batch, user, subcarrier, reference).
        noise: float32, (batch, user): noise power.

    Returns:
        complex64, (batch, user, subcarrier, stream).
    """
    n = references.shape[-1]
    rough = references @ pilots(n, references.device).mH / n
    taps = torch.fft.ifft(rough, dim=-2)
    floor = (noise / (n * references.shape[-2]))[..., None, None]
    power = taps.abs().square()
    spread = sum(torch.roll(power, k, -2) for k in range(-(_SPECTRUM_SPREAD // 2), _SPECTRUM_SPREAD // 2 + 1))
    weight = (1 - 2 * floor * _SPECTRUM_SPREAD / spread.clamp_min(_TINY**2)).clamp_min(0)  # type: ignore[union-attr]
    return torch.fft.fft(taps * weight, dim=-2)


def decode(network: Receiver, heard: Heard) -> Tensor:
    """Pictures of all users, in [0, 1] but where training needs gradients; float32, (batch, user, 3, row, column)."""
    b, k = heard.features.shape[:2]
    found = network.decoder(heard.features.flatten(0, 1), heard.condition.flatten(0, 1)).unflatten(0, (b, k))
    return found if network.training else found.clamp(0, 1)


def deliver(
    network: Coder, pictures: Tensor, channels: Channels, snr_db: Tensor, generator: torch.Generator
) -> tuple[Tensor, Heard]:
    """Send pictures to their users: `transmit`, `propagate`, `hear`, `decode`.

    Returns:
        Pictures as received, float32 (batch, user, 3, row, column), and what was heard.
    """
    frame = transmit(network, pictures, channels.known, channels.nmse_db, snr_db)
    references, data = propagate(frame, channels.h, snr_db, generator)
    heard = hear(network, references, data, _noise_power(snr_db, pictures.shape[1]), frame.size)
    return decode(network, heard), heard


def _encoded(
    network: Coder, pictures: Tensor, known: Tensor, nmse_db: Tensor, snr_db: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    c = network.config
    b, k = pictures.shape[:2]
    known = scaled(known)
    rows = known.transpose(1, 2)
    noise = base_noise(nmse_db, snr_db)
    expected = precoding.sinr(rows, precoding.regularised(rows, noise), noise).transpose(1, 2).clamp(1e-3, 1e4)
    log_sinr = torch.log10(expected)
    condition = torch.stack(
        [
            (snr_db / 10)[:, None].expand(b, k),
            (nmse_db.clamp_min(_BEST_NMSE_DB) / 10)[:, None].expand(b, k),
            log_sinr.mean(-1),
        ],
        -1,
    )
    gain = torch.log10(torch.view_as_real(known).square().sum((-2, -1)).clamp_min(1e-3))
    features = torch.cat([known.real, known.imag, gain[..., None], log_sinr[..., None]], -1)
    csi = features.unflatten(2, (c.n_groups, c.group)).flatten(3)
    code = network.encoder(pictures.flatten(0, 1), condition.flatten(0, 1)).unflatten(0, (b, k))
    energy = code.square().mean((-2, -1), keepdim=True) * 2
    code = code * (energy + _TINY).rsqrt()
    blocks = to_blocks(code, c.n_groups)
    real, imag = blocks.chunk(2, -1)
    symbols = torch.cat([interleave(real), interleave(imag)], -1)
    return symbols, condition, rows, noise, csi


def scaled(known: Tensor) -> Tensor:
    """CSI of any scale with unit mean power; not finite or zero, it is a base station that knows nothing; complex64,
    (batch, user, subcarrier, antenna)."""
    power = torch.view_as_real(known).square().sum(-1).mean((1, 2, 3))
    useful = ((power > 0) & power.isfinite())[:, None, None, None]
    return torch.where(useful, known * power.clamp_min(1e-30).rsqrt()[:, None, None, None], 0.0)


def base_noise(nmse_db: Tensor, snr_db: Tensor) -> Tensor:
    """Noise over transmit power that a base station reckons with: that of receivers, and what it does not know of the
    channel; float32, (batch,)."""
    unknown = torch.where(nmse_db > _BEST_NMSE_DB, 10 ** (nmse_db.clamp_max(0.0) / 10), 0.0)
    return 10 ** (-snr_db / 10) + unknown


def _noise_power(snr_db: Tensor, n_users: int) -> Tensor:
    per_user = snr_db[:, None].expand(-1, n_users) if snr_db.dim() == 1 else snr_db
    return 10 ** (-per_user / 10)


def _complex(x: Tensor) -> Tensor:
    real, imag = x.chunk(2, -1)
    return torch.complex(real.contiguous(), imag.contiguous())


def pilots(n: int, device: torch.device) -> Tensor:
    """Orthogonal reference symbols of modulus 1, complex64 (user, reference)."""
    at = torch.arange(n, device=device)
    return torch.exp(-2j * math.pi / n * (at[:, None] * at)).to(torch.complex64)
