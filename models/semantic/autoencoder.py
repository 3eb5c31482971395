"""Bits over the same downlink by an autoencoder, in place of QAM, precoding matrix, equaliser and demapper.

The OFDM autoencoder for one user, extended to many: coded bits of all users and the CSI that the base station has go
in, antenna signals come out, and every user makes log-likelihood ratios of what it receives. Fresh weights are QAM
with Gray labels behind regularised zero forcing, and exact ratios for Gaussian noise; learned are the points, the
precoding matrix, what users' symbols add to each other's, and what the ratios lack. Users are joined by sums over
pairs: one set of weights serves any number of them, of antennas and of subcarriers.

Source: Felix et al., "OFDM-Autoencoder for End-to-End Learning of Communications Systems", IEEE SPAWC 2018, and for
the ratios of bits Cammerer et al., IEEE Trans. Commun. 68(9), 2020; the extension to several users is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from . import link, precoding
from .digital import as_bytes, as_shown, spreading, used_symbols
from .link import Channels
from .networks.base import NetworkConfig

if TYPE_CHECKING:
    from .evaluate import Condition, Evaluation

BITS_PER_SYMBOL = (2, 4, 6)
"""Of the messages; each has its own points."""

_MOST = max(BITS_PER_SYMBOL)
_SEND_FEATURES = 5 + len(BITS_PER_SYMBOL)
_PAIR_FEATURES = 10 + 2 * _SEND_FEATURES
_HEARD_FEATURES = 5 + len(BITS_PER_SYMBOL)
_TINY = 1e-9
_LARGEST_LLR = 30.0
# Far beyond the largest ratio, and far within single precision.
_LEAST_LIKELIHOOD = 1e-30


class AutoencoderConfig(BaseModel):
    """Sizes of the layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precoder_width: int = Field(32, ge=4, le=512, description="of the layers that correct the precoding matrix")
    pair_width: int = Field(32, ge=4, le=512, description="of the layers that let users' symbols see each other")
    demapper_width: int = Field(64, ge=4, le=512, description="of the layers that add to the ratios")


class Autoencoder(nn.Module):
    """Transmitter and receiver of bits."""

    kind: ClassVar[str] = "autoencoder"
    Config: ClassVar[type[AutoencoderConfig]] = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.transmitter = Transmitter(config)
        self.demapper = Demapper(config)
        self.tables = nn.ParameterDict({str(bits): nn.Parameter(gray_points(bits)) for bits in BITS_PER_SYMBOL})

    def points(self, bits_per_symbol: int) -> Tensor:
        """Where symbols lie, of unit mean power; complex64, (label,), the first bit being the highest."""
        table = self.tables[str(bits_per_symbol)]
        table = table - table.mean(0)
        return torch.view_as_complex(table / table.square().sum(-1).mean().sqrt())

    def forward(self, *_: Any) -> Tensor:
        """Nothing by itself: see `carry`."""
        raise NotImplementedError("an autoencoder runs by autoencoder.carry")


class Transmitter(nn.Module):
    """Corrects precoding matrix and symbols, for all users at once; starts as regularised zero forcing."""

    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        self.matrix_in = _layers(_SEND_FEATURES, c.precoder_width, c.precoder_width)
        self.matrix_out = _layers(2 * c.precoder_width, c.precoder_width, 4, silent=True)
        self.pair_width = c.pair_width
        self.pair = _layers(_PAIR_FEATURES, c.pair_width, c.pair_width)
        self.symbol = _layers(2 + _SEND_FEATURES + c.pair_width, c.pair_width, 2, silent=True)

    def matrix(self, rows: Tensor, noise: Tensor, told: Tensor) -> Tensor:
        """Precoding matrix; complex64, (batch, subcarrier, antenna, user).

        Args:
            rows: complex64, (batch, subcarrier, user, antenna).
            noise: float32, (batch,): see `link.base_noise`.
            told: float32, (batch, subcarrier, user, feature).
        """
        hidden = nn.functional.gelu(self.matrix_in(told))
        joint = hidden.mean(2, keepdim=True).expand_as(hidden)
        corrections = self.matrix_out(torch.cat([hidden, joint], -1))
        return precoding.corrected(rows, noise, corrections.transpose(1, 2))

    def symbols(self, points: Tensor, rows: Tensor, v: Tensor, told: Tensor) -> Tensor:
        """What the precoding matrix is to send, in place of the points; of the same shape.

        Args:
            points: complex64, (batch, subcarrier, user, OFDM symbol).
            rows, told: see `matrix`.
            v: complex64, (batch, subcarrier, antenna, user).
        """
        b, s, k, q = points.shape
        own_told = told[:, :, :, None].expand(-1, -1, -1, q, -1)
        heard = torch.zeros(b, s, k, q, self.pair_width, device=points.device)
        if k > 1:
            # What user k hears of the stream of user j over what it hears of its own, and how much power they share.
            effective = (rows[..., None] * v[:, :, None]).sum(-2)
            own = effective.diagonal(dim1=-2, dim2=-1)
            leak = _bounded(effective / _nonzero(own)[..., None])
            shared = (v.mH[..., None] * v[:, :, None]).sum(-2)
            strength = shared.diagonal(dim1=-2, dim2=-1).real.clamp_min(_TINY)
            shared = shared / strength[..., None]
            pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
            first, second = ([pair[at] for pair in pairs] for at in (0, 1))
            near, far = leak[:, :, first, second, None], _bounded(shared)[:, :, first, second, None]
            mine, theirs = points[:, :, first], points[:, :, second]
            parts = [mine, near * theirs, near.expand_as(mine), far * theirs, far.expand_as(mine)]
            features = torch.cat(
                [torch.view_as_real(torch.stack(parts, -1)).flatten(-2), own_told[:, :, first], own_told[:, :, second]],
                -1,
            )
            messages = self.pair(features)
            heard = messages.unflatten(2, (k, k - 1)).sum(3)
        change = self.symbol(torch.cat([torch.view_as_real(points), own_told, heard], -1))
        return points + torch.view_as_complex(change.contiguous())


class Demapper(nn.Module):
    """Makes log-likelihood ratios; starts as those of Gaussian noise."""

    def __init__(self, c: AutoencoderConfig) -> None:
        super().__init__()
        self.scale = _layers(_HEARD_FEATURES, c.demapper_width // 2, 2, silent=True)
        self.more = _layers(2 + _HEARD_FEATURES + _MOST, c.demapper_width, _MOST, silent=True, deeper=True)

    def forward(self, equalised: Tensor, noise: Tensor, told: Tensor, points: Tensor) -> Tensor:
        """Log-likelihood ratios ln P(0) / P(1); float32, (..., OFDM symbol, bit).

        Args:
            equalised: complex64, (..., OFDM symbol): scaled as sent.
            noise: float32, (...): power of noise and interference on it.
            told: float32, (..., feature).
            points: complex64, (label,).
        """
        bits = int(math.log2(len(points)))
        scale, spread = self.scale(told).unbind(-1)
        places = points * (1 + scale)[..., None, None]
        power = (noise * torch.exp(spread))[..., None, None]
        exponents = -(equalised[..., None] - places).abs().square() / power.clamp_min(_TINY)
        ratios = gaussian_ratios(exponents, bits)
        start = nn.functional.pad(torch.tanh(ratios / 4), (0, _MOST - bits))
        size = equalised.abs().clamp_min(_TINY)
        seen = torch.view_as_real(equalised * (3 * torch.tanh(size / 3) / size))
        more = self.more(torch.cat([seen, told[..., None, :].expand(*seen.shape[:-1], -1), start], -1))
        return (ratios + more[..., :bits]).clamp(-_LARGEST_LLR, _LARGEST_LLR)


class BitCoder(Protocol):
    """Source and channel coding.

    Attributes:
        bits_per_symbol: Of the symbols that are to carry the bits.
    """

    bits_per_symbol: int

    def to_bits(self, picture: NDArray[np.uint8], n_symbols: int) -> NDArray[np.uint8]:
        """A picture, (row, column, 3), as n_symbols * bits_per_symbol coded bits."""
        ...

    def from_ratios(self, llr: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Their log-likelihood ratios as a picture of a size; None where the check sum says that it is wrong."""
        ...


class AutoencoderContender:
    """Pictures of several users over an autoencoder, every user with the same coder; see `evaluate.Contender`.

    Args:
        name: For people.
        coder: Of the pictures.
        network: The autoencoder.
        config: Numerology of the frame.
    """

    def __init__(self, name: str, coder: BitCoder, network: Autoencoder, config: NetworkConfig | None = None) -> None:
        self.name, self.coder, self.network = name, coder, network
        self.config = config or NetworkConfig()

    def prepare(self, condition: Condition, evaluation: Evaluation) -> None:
        """See `evaluate.Contender`; a coder of fixed rate chooses nothing."""

    def deliver(
        self, pictures: Tensor, channels: Channels, snr_db: float, generator: torch.Generator
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """See `evaluate.Contender`."""
        rows, columns = pictures.shape[-2:]
        n_symbols = used_symbols(self.config, rows, columns)
        bits = np.stack([[self.coder.to_bits(one, n_symbols) for one in drop] for drop in as_bytes(pictures)])
        with torch.inference_mode():
            snr = torch.full((len(pictures),), snr_db)
            sent = torch.from_numpy(bits)
            ratios = carry(self.network, sent, self.coder.bits_per_symbol, channels, snr, generator).numpy()
        return as_shown(pictures, lambda at: self.coder.from_ratios(ratios[at], (rows, columns)))


def carry(
    network: Autoencoder,
    bits: Tensor,
    bits_per_symbol: int,
    channels: Channels,
    snr_db: Tensor,
    generator: torch.Generator,
    repeats: int = 1,
) -> Tensor:
    """Send bits to their users, and receive them.

    Args:
        network: trained or fresh.
        bits: uint8, (batch, user, symbol * bits_per_symbol): zeros and ones, of whole OFDM symbols.
        bits_per_symbol: one of `BITS_PER_SYMBOL`.
        channels: true ones, and what is known of them.
        snr_db: float32, (batch,).
        generator: of the noise.
        repeats: see `link.framed`.

    Returns:
        float32, of the shape of bits: ln P(0) / P(1).

    Raises:
        ValueError: the bits fill no whole number of OFDM symbols, or there are no points for so many.
    """
    n_subcarriers = channels.h.shape[2]
    if bits_per_symbol not in BITS_PER_SYMBOL or bits.shape[-1] % (bits_per_symbol * n_subcarriers):
        raise ValueError(
            f"{bits.shape[-1]} bits, {bits_per_symbol} a symbol; needs {BITS_PER_SYMBOL} bits a symbol and a multiple "
            f"of {n_subcarriers} symbols"
        )
    labels = bits.unflatten(-1, (-1, bits_per_symbol)).long()
    labels = (labels << torch.arange(bits_per_symbol - 1, -1, -1, device=bits.device)).sum(-1)
    n = labels.shape[-1]
    order, back = spreading(n)
    points = network.points(bits_per_symbol)
    grid = points[labels[..., order]].unflatten(-1, (n_subcarriers, -1)).transpose(1, 2)
    frame = transmit(network, grid, bits_per_symbol, channels.known, channels.nmse_db, snr_db, repeats)
    references, data = link.propagate(frame, channels.h, snr_db, generator)
    noise = (10 ** (-snr_db / 10))[:, None].expand(-1, bits.shape[1])
    ratios = receive(network, references, data, noise, bits_per_symbol)
    return ratios.flatten(2, 3)[:, :, back].flatten(2)


def transmit(
    network: Autoencoder,
    points: Tensor,
    bits_per_symbol: int,
    known: Tensor,
    nmse_db: Tensor,
    snr_db: Tensor,
    repeats: int = 1,
) -> link.Frame:
    """What the antennas send.

    Args:
        network: trained or fresh.
        points: complex64, (batch, subcarrier, user, OFDM symbol).
        bits_per_symbol: of the points.
        known: complex64, (batch, user, subcarrier, antenna): CSI of the base station, of any scale.
        nmse_db: float32, (batch,): its error.
        snr_db: float32, (batch,).
        repeats: see `link.framed`.
    """
    rows = link.scaled(known).transpose(1, 2)
    noise = link.base_noise(nmse_db, snr_db)
    log_sinr = torch.log10(precoding.sinr(rows, precoding.regularised(rows, noise), noise).clamp(1e-3, 1e4))
    gain = torch.log10(torch.view_as_real(rows).square().sum((-2, -1)).clamp_min(1e-3))
    whole = torch.stack([snr_db / 10, nmse_db.clamp_min(link.PERFECT_DB) / 10], -1)[:, None, None]
    told = torch.cat(
        [
            torch.stack([gain, log_sinr, log_sinr.mean(1, keepdim=True).expand_as(log_sinr)], -1),
            whole.expand(*log_sinr.shape, 2),
            _kind(bits_per_symbol, log_sinr),
        ],
        -1,
    )
    v = network.transmitter.matrix(rows, noise, told)
    symbols = network.transmitter.symbols(points, rows, v, told)
    return link.framed(v, (v[..., None] * symbols[:, :, None]).sum(-2), (0, 0), repeats)


def receive(network: Autoencoder, references: Tensor, data: Tensor, noise: Tensor, bits_per_symbol: int) -> Tensor:
    """What every user makes of what it received; the first stream is for the first user and so on.

    Args:
        network: trained or fresh.
        references: complex64, (batch, user, subcarrier, reference).
        data: complex64, (batch, user, subcarrier, OFDM symbol).
        noise: float32, (batch, user): noise power of the users.
        bits_per_symbol: of the points.

    Returns:
        float32, (batch, user, subcarrier, OFDM symbol, bit): ln P(0) / P(1).
    """
    own, disturbance = link.own_channel(references, noise)
    gain = own.abs().square().clamp_min(_TINY)
    ratio = torch.log10((gain / disturbance.clamp_min(_TINY)).clamp(1e-4, 1e6))
    others = (1 - noise[..., None] / disturbance.clamp_min(_TINY)).clamp(0, 1)
    told = torch.stack(
        [
            ratio,
            ratio.mean(-1, keepdim=True).expand_as(ratio),
            others,
            -torch.log10(noise.clamp_min(1e-6))[..., None].expand_as(ratio),
            torch.full_like(ratio, references.shape[-1] / 4),
        ],
        -1,
    )
    told = torch.cat([told, _kind(bits_per_symbol, ratio)], -1)
    equalised = data * (own.conj() / gain)[..., None]
    return network.demapper(equalised, disturbance / gain, told, network.points(bits_per_symbol))


def gray_points(bits_per_symbol: int) -> Tensor:
    """Square QAM with Gray labels, the first half of the bits being the real part; float32, (label, 2), unit power."""
    half = bits_per_symbol // 2
    n = 1 << half
    places = np.arange(n)
    levels = np.empty(n)
    levels[places ^ (places >> 1)] = n - 1 - 2 * places
    labels = np.arange(1 << bits_per_symbol)
    points = np.stack([levels[labels >> half], levels[labels & (n - 1)]], -1)
    return torch.from_numpy(points / np.sqrt(2 * np.mean(levels**2))).float()


def gaussian_ratios(exponents: Tensor, bits: int) -> Tensor:
    """Ratios of bits, from the logarithms of the likelihoods of all points; (..., bit) from (..., label)."""
    labels = torch.arange(1 << bits, device=exponents.device)
    ones = (labels[:, None] >> torch.arange(bits - 1, -1, -1, device=exponents.device) & 1).to(exponents.dtype)
    likelihoods = torch.exp(exponents - exponents.detach().amax(-1, keepdim=True))
    zero, one = ((likelihoods @ chosen).clamp_min(_LEAST_LIKELIHOOD) for chosen in (1 - ones, ones))
    return zero.log() - one.log()


def _layers(n_in: int, width: int, n_out: int, silent: bool = False, deeper: bool = False) -> nn.Sequential:
    """Affine layers with GELU between them; silent ones give nothing before they are trained."""
    between = [nn.Linear(width, width), nn.GELU(approximate="tanh")] if deeper else []
    last = nn.Linear(width, n_out)
    if silent:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, width), nn.GELU(approximate="tanh"), *between, last)


def _kind(bits_per_symbol: int, like: Tensor) -> Tensor:
    told = torch.zeros(*like.shape, len(BITS_PER_SYMBOL), device=like.device)
    told[..., BITS_PER_SYMBOL.index(bits_per_symbol)] = 1
    return told


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x.abs() > _TINY, x, _TINY)


def _bounded(x: Tensor) -> Tensor:
    """Complex numbers of at most modulus 2, small ones unchanged."""
    size = x.abs().clamp_min(_TINY)
    return x * (2 * torch.tanh(size / 2) / size)
