"""ADJSCC-CSINet+: a convolutional network whose features are weighed by the conditions of the link.

After Xu et al., "Deep joint source-channel coding for CSI feedback: an end-to-end approach" (arXiv 2203.16005, IEEE
JSAC 41(1), 2023), with CSINet+ (Guo et al., arXiv 1906.06007) inside. It works on truncated delay-angle CSI like all
others here, so the layers that find such a domain in the original are left out; feedback length is told beside SNR.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ._linear import LinearCode, silent, start_linear
from .base import N_CONDITIONS, Network, NetworkConfig


class CsiNetConfig(NetworkConfig):
    """Sizes."""

    blocks: int = Field(5, ge=1, le=16, description="refinement blocks of the decoder")
    channels: tuple[int, int] = Field((8, 16), description="of the two inner convolutions of a refinement block")


class CsiNet(Network):
    """CSI is an image of delay and angle with two channels; users are decoded one by one.

    Encoder and decoder stand beside the linear code, as in all networks here.
    """

    kind = "csinet"
    Config = CsiNetConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        assert isinstance(config, CsiNetConfig)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def start_from(self, csi: Tensor) -> None:
        """Begin with the linear code that is best for these draws."""
        start_linear(self, csi)


class _Encoder(nn.Module):
    def __init__(self, c: CsiNetConfig) -> None:
        super().__init__()
        self.linear = LinearCode(c)
        self.first, self.second = _Convolution(2, 2, 7), _Convolution(2, 2, 7)
        self.attend_first, self.attend_second = _AttentionFeature(2), _AttentionFeature(2)
        self.to_code = silent(nn.Linear(2 * c.n_taps * c.n_antennas, 2 * c.max_length))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        x = _image(features)
        x = self.attend_first(self.first(x), condition)
        x = self.attend_second(self.second(x), condition)
        return self.linear.encode(features, condition) + self.to_code(x.flatten(1))


class _Decoder(nn.Module):
    def __init__(self, c: CsiNetConfig) -> None:
        super().__init__()
        self.size = (c.n_taps, c.n_antennas)
        self.linear = LinearCode(c)
        # A correction of what the linear decoder finds, which refinement begins with.
        self.expand = silent(nn.Linear(2 * c.max_length, 2 * c.n_taps * c.n_antennas))
        self.attend = nn.ModuleList(_AttentionFeature(2) for _ in range(c.blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _Convolution(2, c.channels[0], 7),
                _Convolution(c.channels[0], c.channels[1], 5),
                nn.Conv2d(c.channels[1], 2, 3, padding=1),
                nn.BatchNorm2d(2),
            )
            for _ in range(c.blocks)
        )
        self.last = silent(nn.Conv2d(2, 2, 3, padding=1))

    def forward(self, code: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        n_batch, n_users = code.shape[:2]
        condition = condition.flatten(0, 1)
        estimate = _image(self.linear.estimate(code.flatten(0, 1), condition))
        x = estimate + self.expand(code.flatten(0, 1)).reshape(n_batch * n_users, 2, *self.size)
        for attend, block in zip(self.attend, self.blocks, strict=True):
            x = nn.functional.leaky_relu(x + block(attend(x, condition)), 0.3)
        real, imag = (estimate + self.last(x)).unbind(1)
        return torch.cat([real, imag], -1).reshape(n_batch, n_users, self.size[0], 2 * self.size[1])


class _Convolution(nn.Sequential):
    def __init__(self, n_in: int, n_out: int, size: int) -> None:
        super().__init__(nn.Conv2d(n_in, n_out, size, padding=size // 2), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.3))


class _AttentionFeature(nn.Module):
    """Weight of every channel from its mean and the conditions (the AF module of ADJSCC)."""

    def __init__(self, channels: int, hidden: int = 16) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Linear(channels + N_CONDITIONS, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * self.weigh(torch.cat([x.mean((-2, -1)), condition], -1))[..., None, None]


def _image(features: Tensor) -> Tensor:
    """(batch, tap, 2 beams) -> (batch, 2, tap, beam)."""
    return torch.stack(features.chunk(2, -1), 1)
