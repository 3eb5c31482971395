"""What the shipped weights of ours promise: any users, any length, any SNR, and no harm from a useless neighbour.

Means are over drops, of paired differences: two answers to the very same CSI and noise. A difference counts where it is
beyond 3.1 standard errors, which chance alone exceeds once in a thousand times.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from semair.models.csi.channels import PRESETS, Clustered, stream
from semair.models.csi.evaluate import load_contender
from semair.models.csi.link import add_noise, nmse

BEYOND_DOUBT = 3.1


class Shipped:
    """Shipped weights with drops of their numerology.

    Attributes:
        lengths: that they were trained for, ascending.
        near: complex64, (drop, user, tap, beam): two users 0.5 to 2 m apart.
        far: the same, 50 m apart.
        crowd: five users 1 m apart.
    """

    def __init__(self, name, n):
        card, contender = load_contender(name)
        self.network, self.lengths = contender.network, sorted(card.scenario["lengths"])
        source = Clustered(PRESETS[name])
        self.near = source.draw(n, stream("test", 7), (0.5, 2.0)).delay_angle
        self.far = source.draw(n, stream("test", 8), (50.0, 50.0)).delay_angle
        self.crowd = source.draw(n, stream("test", 9), (1.0, 1.0), 5).delay_angle

    def received(self, csi, length, snr_db):
        """Words behind noise, complex64 (drop, user, max_length); of two lengths the same noise on the same symbols."""
        n, users = csi.shape[:2]
        with torch.inference_mode():
            words = self.network.encode(
                csi.flatten(0, 1), torch.full((n * users,), length), torch.full((n * users,), float(snr_db))
            )
        snr = torch.full((n, users), float(snr_db))
        return add_noise(words.unflatten(0, (n, users)), snr, torch.Generator().manual_seed(3))

    def decoded(self, received, length, snr_db, present=None):
        """CSI of all users, decoded together."""
        n, users = received.shape[:2]
        there = torch.ones(n, users, dtype=torch.bool) if present is None else present
        with torch.inference_mode():
            return self.network.decode(received, torch.full((n,), length), torch.full((n, users), float(snr_db)), there)

    def alone(self, received, length, snr_db):
        """CSI of all users, each decoded by itself."""
        each = self.decoded(received.flatten(0, 1)[:, None], length, snr_db)
        return each[:, 0].unflatten(0, received.shape[:2])

    def errors(self, csi, length, snr_db):
        """NMSE of each drop, decoded together, float64 (drop,)."""
        return nmse(csi, self.decoded(self.received(csi, length, snr_db), length, snr_db)).mean(1).double().numpy()


@pytest.fixture(
    scope="module", params=[("lab", 120), pytest.param(("paper", 160), marks=pytest.mark.slow)], ids=["lab", "paper"]
)
def ours(request):
    return Shipped(*request.param)


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("users", [1, 3, 5])
def test_any_number_of_users_in_any_order_silent_ones_among_them(ours, users):
    csi, length = ours.crowd[:6, :users], ours.lengths[1]
    received = ours.received(csi, length, 5.0)
    present = torch.rand((6, users), generator=torch.Generator().manual_seed(users)) < 0.7
    found = ours.decoded(received, length, 5.0, present)
    order = torch.randperm(users, generator=torch.Generator().manual_seed(users))
    turned = ours.decoded(received[:, order], length, 5.0, present[:, order])
    heard = present[:, order]
    torch.testing.assert_close(turned[heard], found[:, order][heard], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("users", [2, 3, 5])
@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_neighbours_are_no_worse_than_nobody(ours, users, snr_db):
    csi, length = ours.crowd[:, :users], ours.lengths[-2]
    received = ours.received(csi, length, snr_db)
    together, alone = (nmse(csi, decode(received, length, snr_db)) for decode in (ours.decoded, ours.alone))
    difference = (together - alone).mean(1).double().numpy()
    assert difference.mean() <= BEYOND_DOUBT * standard_error(difference)
    if snr_db == 0:
        # Where noise is strong, what two users share is worth more than chance.
        assert difference.mean() < -BEYOND_DOUBT * standard_error(difference)


def test_a_useless_neighbour_costs_no_more_than_a_tenth_of_a_db(ours):
    """At 10 dB, in the mean over lengths: someone 50 m away, someone of another drop, and noise in place of a word.

    With excess e = together - 10^0.01 alone of each drop, weights that lose just 0.1 dB have a mean of 0, and a mean
    beyond 3.1 standard errors once in a thousand times. Standard errors are some 0.03 dB with 120 drops, so that a loss
    of 0.3 dB is found as surely.
    """
    losses: dict[str, list[np.ndarray]] = {"far": [], "stranger": [], "noise": []}
    for length in ours.lengths:
        near, far = (ours.received(csi, length, 10.0) for csi in (ours.near, ours.far))
        stranger, noise = near.clone(), near.clone()
        stranger[:, 1] = near[:, 1].roll(1, 0)
        power = torch.full((len(near),), -10 * np.log10(1.1))
        noise[:, 1] = add_noise(torch.zeros_like(near[:, 1]), power, torch.Generator().manual_seed(4))
        for name, csi, words in (
            ("far", ours.far, far),
            ("stranger", ours.near, stranger),
            ("noise", ours.near, noise),
        ):
            together = nmse(csi[:, 0], ours.decoded(words, length, 10.0)[:, 0]).double().numpy()
            alone = nmse(csi[:, 0], ours.alone(words[:, :1], length, 10.0)[:, 0]).double().numpy()
            # Lengths count alike though longer ones have smaller errors.
            losses[name].append((together - 10**0.01 * alone) / alone.mean())
    for name, parts in losses.items():
        excess = np.mean(parts, axis=0)
        assert excess.mean() <= BEYOND_DOUBT * standard_error(excess), name


def test_one_set_of_weights_serves_every_length(ours):
    longest = ours.network.config.max_length
    assert longest == ours.lengths[-1]
    between = [length + 1 for length in ours.lengths[:-1]] + [longest - 1]
    lengths = sorted({1, *ours.lengths, *between})
    errors = {length: ours.errors(ours.near, length, 10.0) for length in lengths}
    assert errors[1].mean() <= 1 + BEYOND_DOUBT * standard_error(errors[1])
    for shorter, longer in pairwise(lengths):
        difference = errors[longer] - errors[shorter]
        assert difference.mean() <= BEYOND_DOUBT * standard_error(difference), (shorter, longer)
    for shorter, longer in pairwise(ours.lengths):
        difference = errors[longer] - errors[shorter]
        assert difference.mean() < -BEYOND_DOUBT * standard_error(difference), (shorter, longer)


def test_one_set_of_weights_serves_every_snr(ours):
    length = ours.lengths[-2]
    snrs = (-20.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    errors = {snr_db: ours.errors(ours.near, length, snr_db) for snr_db in (*snrs, 40.0)}
    assert errors[-20.0].mean() <= 1 + BEYOND_DOUBT * standard_error(errors[-20.0])
    for lower, higher in pairwise(snrs):
        difference = errors[higher] - errors[lower]
        assert difference.mean() <= BEYOND_DOUBT * standard_error(difference), (lower, higher)
        if 0 < higher <= 10:
            assert difference.mean() < -BEYOND_DOUBT * standard_error(difference), (lower, higher)
    # No training sees more than 20 dB: what is beyond must not break it.
    assert errors[40.0].mean() < 10**0.1 * errors[20.0].mean()
