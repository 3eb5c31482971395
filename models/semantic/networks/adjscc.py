"""ADJSCC: a convolutional picture coder that adapts to the SNR by attention-feature modules.

Source: Xu et al., "Wireless Image Transmission Using Deep Source Channel Coding With Attention Modules", IEEE TCSVT
32(4), 2022; with fewer channels, as all networks here.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ._layers import AttentionFeature
from .base import HEARD_CONDITIONS, SEND_CONDITIONS, Network, NetworkConfig


class AdjsccConfig(NetworkConfig):
    """Size of the coder."""

    width: int = Field(64, ge=8, le=512, description="channels of the convolutions")


class Adjscc(Network):
    """The convolutional coder; its symbols go to the precoding matrix as they are."""

    kind = "adjscc"
    Config: ClassVar[type[NetworkConfig]] = AdjsccConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        c = cast(AdjsccConfig, config)
        self.encoder = ConvEncoder(c)
        self.decoder = ConvDecoder(c)
        self.transmitter = None


class ConvEncoder(nn.Module):
    """Five convolutions with GDN and PReLU, attention features between them."""

    def __init__(self, c: AdjsccConfig) -> None:
        super().__init__()
        w = c.width
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, w, 9, stride=2, padding=4),
                nn.Conv2d(w, w, 5, stride=2, padding=2),
                nn.Conv2d(w, w, 5, stride=2, padding=2),
                nn.Conv2d(w, w, 5, padding=2),
                nn.Conv2d(w, 2 * c.uses, 5, padding=2),
            ]
        )
        self.normalisations = nn.ModuleList(Gdn(w) for _ in range(4))
        self.activations = nn.ModuleList(nn.PReLU(w) for _ in range(4))
        self.features = nn.ModuleList(AttentionFeature(w, SEND_CONDITIONS) for _ in range(4))

    def forward(self, pictures: Tensor, condition: Tensor) -> Tensor:
        """See `Network`."""
        x = 2 * pictures - 1
        for k, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if k < len(self.normalisations):
                x = self.activations[k](self.normalisations[k](x))
                x = self.features[k](x.permute(0, 2, 3, 1), condition).permute(0, 3, 1, 2)
        return x.flatten(2).transpose(1, 2)


class ConvDecoder(nn.Module):
    """The encoder backwards, with transposed convolutions and inverse GDN."""

    def __init__(self, c: AdjsccConfig) -> None:
        super().__init__()
        w = c.width
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3 * c.uses, w, 5, padding=2),
                nn.Conv2d(w, w, 5, padding=2),
                nn.ConvTranspose2d(w, w, 5, stride=2, padding=2, output_padding=1),
                nn.ConvTranspose2d(w, w, 5, stride=2, padding=2, output_padding=1),
                nn.ConvTranspose2d(w, 3, 9, stride=2, padding=4, output_padding=1),
            ]
        )
        self.normalisations = nn.ModuleList(Gdn(w, inverse=True) for _ in range(4))
        self.activations = nn.ModuleList(nn.PReLU(w) for _ in range(4))
        self.features = nn.ModuleList(AttentionFeature(w, HEARD_CONDITIONS) for _ in range(4))
        # Fresh weights shall give about grey, not noise that takes long to unlearn.
        nn.init.normal_(cast(nn.Conv2d, self.convolutions[-1]).weight, std=0.01)

    def forward(self, received: Tensor, condition: Tensor) -> Tensor:
        """See `Network`."""
        x = received.permute(0, 3, 1, 2)
        for k, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if k < len(self.normalisations):
                x = self.activations[k](self.normalisations[k](x))
                x = self.features[k](x.permute(0, 2, 3, 1), condition).permute(0, 3, 1, 2)
        return 0.5 + 0.5 * x


class Gdn(nn.Module):
    """Generalised divisive normalisation over channels.

    Source: Ballé et al., "Density Modeling of Images using a Generalized Normalization Transformation", ICLR 2016.
    """

    def __init__(self, width: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(width))
        self.gamma = nn.Parameter(0.1 * torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, row, column) -> the same."""
        # Absolute values keep the sum positive whatever the optimiser does.
        norm = nn.functional.conv2d(x.square(), self.gamma.abs()[:, :, None, None], self.beta.abs() + 1e-6)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())
