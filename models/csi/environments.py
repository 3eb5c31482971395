"""Large and small scale parameters of the environments that CSI is drawn from.

Source: 3GPP TR 38.901 V16.1.0, tables 7.4.2-1 (line of sight), 7.5-2, 7.5-3, 7.5-5, 7.5-6 and 7.6.3.1-2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Site = Literal["umi", "indoor"]
"""Street canyon with the base station below the roofs, or an office floor."""

RAYS = 20
# Table 7.5-3: offsets of the rays of a cluster for an rms spread of 1, in the order of table 7.5-5, so that the
# three groups that get delays of their own in the two strongest clusters are neighbours.
_OFFSETS = (0.0447, 0.1413, 0.2492, 0.3715, 0.5129, 0.6797, 0.8844, 1.1481, 1.5195, 2.1551)
_ORDER = (*range(8), 18, 19, *range(8, 12), 16, 17, *range(12, 16))
RAY_OFFSETS = tuple((-1.0) ** ray * _OFFSETS[ray // 2] for ray in _ORDER)
RAY_GROUPS = (slice(0, 10), slice(10, 16), slice(16, 20))
# Delays of the second and third group in cluster delay spreads.
GROUP_DELAYS = (1.28, 2.56)

# Table 7.5-2: scaling of azimuth angles over the number of clusters.
_AZIMUTH_SCALING = {12: 1.146, 15: 1.211, 19: 1.273}


@dataclass(frozen=True)
class Environment:
    """One column of table 7.5-6, at one carrier frequency.

    Attributes:
        lg_delay_spread: mean and standard deviation of log10 of the rms delay spread in seconds.
        lg_departure_spread: the same of the azimuth spread at the base station in degrees.
        lg_arrival_spread: the same of the azimuth spread at the user in degrees.
        k_db: mean and standard deviation of the Ricean K factor; no meaning without line of sight.
        correlation: of delay spread with departure spread, arrival spread and K; of departure spread with arrival
            spread and K; of arrival spread with K.
        correlation_m: distances over which delay spread, departure spread, arrival spread and K lose 1/e.
        n_clusters: clusters, with the one along the line of sight.
        delay_proportionality: spread of cluster delays over delay spread, r_tau.
        shadowing_db: standard deviation of a cluster's power, zeta.
        cluster_delay_spread_s: within one of the two strongest clusters.
        cluster_departure_deg: rms azimuth spread of a cluster at the base station.
        cluster_arrival_deg: the same at the user.
        cluster_m: distance over which clusters are replaced by others, by a share of 1 - 1/e.
    """

    lg_delay_spread: tuple[float, float]
    lg_departure_spread: tuple[float, float]
    lg_arrival_spread: tuple[float, float]
    k_db: tuple[float, float]
    correlation: tuple[float, float, float, float, float, float]
    correlation_m: tuple[float, float, float, float]
    n_clusters: int
    delay_proportionality: float
    shadowing_db: float
    cluster_delay_spread_s: float
    cluster_departure_deg: float
    cluster_arrival_deg: float
    cluster_m: float

    @property
    def azimuth_scaling(self) -> float:
        """C_phi of table 7.5-2, without line of sight."""
        return _AZIMUTH_SCALING[self.n_clusters]


def environment(site: Site, line_of_sight: bool, frequency_hz: float) -> Environment:
    """Look up table 7.5-6.

    Args:
        site: kind of place.
        line_of_sight: whether the base station sees the user.
        frequency_hz: carrier, 0.5 to 100 GHz.
    """
    # Notes 6 and 7 of the table: lower carriers take the values of 2 GHz outdoors and of 6 GHz indoors.
    lg = math.log10(1 + max(frequency_hz / 1e9, 2.0 if site == "umi" else 6.0))
    if site == "umi" and line_of_sight:
        return Environment(
            lg_delay_spread=(-0.24 * lg - 7.14, 0.38),
            lg_departure_spread=(-0.05 * lg + 1.21, 0.41),
            lg_arrival_spread=(-0.08 * lg + 1.73, 0.014 * lg + 0.28),
            k_db=(9.0, 5.0),
            correlation=(0.5, 0.8, -0.7, 0.4, -0.2, -0.3),
            correlation_m=(7.0, 8.0, 8.0, 15.0),
            n_clusters=12,
            delay_proportionality=3.0,
            shadowing_db=3.0,
            cluster_delay_spread_s=5e-9,
            cluster_departure_deg=3.0,
            cluster_arrival_deg=17.0,
            cluster_m=12.0,
        )
    if site == "umi":
        return Environment(
            lg_delay_spread=(-0.24 * lg - 6.83, 0.16 * lg + 0.28),
            lg_departure_spread=(-0.23 * lg + 1.53, 0.11 * lg + 0.33),
            lg_arrival_spread=(-0.08 * lg + 1.81, 0.05 * lg + 0.3),
            k_db=(0.0, 0.0),
            correlation=(0.0, 0.4, 0.0, 0.0, 0.0, 0.0),
            correlation_m=(10.0, 10.0, 9.0, 1.0),
            n_clusters=19,
            delay_proportionality=2.1,
            shadowing_db=3.0,
            cluster_delay_spread_s=11e-9,
            cluster_departure_deg=10.0,
            cluster_arrival_deg=22.0,
            cluster_m=15.0,
        )
    if line_of_sight:
        return Environment(
            lg_delay_spread=(-0.01 * lg - 7.692, 0.18),
            lg_departure_spread=(1.60, 0.18),
            lg_arrival_spread=(-0.19 * lg + 1.781, 0.12 * lg + 0.119),
            k_db=(7.0, 4.0),
            correlation=(0.6, 0.8, -0.5, 0.4, 0.0, 0.0),
            correlation_m=(8.0, 7.0, 5.0, 4.0),
            n_clusters=15,
            delay_proportionality=3.6,
            shadowing_db=6.0,
            # Not tabled indoors; 3.91 ns is what section 7.5 step 11 then takes.
            cluster_delay_spread_s=3.91e-9,
            cluster_departure_deg=5.0,
            cluster_arrival_deg=8.0,
            cluster_m=10.0,
        )
    return Environment(
        lg_delay_spread=(-0.28 * lg - 7.173, 0.10 * lg + 0.055),
        lg_departure_spread=(1.62, 0.25),
        lg_arrival_spread=(-0.11 * lg + 1.863, 0.12 * lg + 0.059),
        k_db=(0.0, 0.0),
        correlation=(0.4, 0.0, 0.0, 0.0, 0.0, 0.0),
        correlation_m=(5.0, 3.0, 3.0, 1.0),
        n_clusters=19,
        delay_proportionality=3.0,
        shadowing_db=3.0,
        cluster_delay_spread_s=3.91e-9,
        cluster_departure_deg=5.0,
        cluster_arrival_deg=11.0,
        cluster_m=10.0,
    )


def line_of_sight_probability(site: Site, distance_m: Tensor) -> Tensor:
    """Table 7.4.2-1: street canyon, or open office. Returns float32 of the shape of `distance_m`."""
    d = distance_m.clamp_min(1.0)
    if site == "umi":
        return torch.where(d <= 18, 1.0, 18 / d + torch.exp(-d / 36) * (1 - 18 / d))
    near, far = torch.exp(-(d - 5) / 70.8), 0.54 * torch.exp(-(d - 49) / 211.7)
    return torch.where(d <= 5, 1.0, torch.where(d <= 49, near, far))


# Table 7.6.3.1-2: distance over which the state of the line of sight is drawn anew.
LINE_OF_SIGHT_M: dict[Site, float] = {"umi": 50.0, "indoor": 10.0}
# Nearest that a scatterer comes to a user: the ellipse of a path without excess delay has no width.
NEAREST_SCATTERER_M: dict[Site, float] = {"umi": 5.0, "indoor": 1.0}


@dataclass(frozen=True)
class Tables:
    """Parameters of several environments as tensors; environment = 2 * site + (0 with line of sight, else 1).

    Attributes:
        spreads: float32, (environment, 4, 2): mean and deviation of lg delay, departure, arrival spread, and of K.
        mixing: float32, (environment, 4, 4): Cholesky factors of their correlation.
        correlation_m: float32, (environment, 4).
        columns: float32, (environment, 9): clusters, r_tau, zeta, cluster delay spread (s), cluster departure and
            arrival spread (rad), C_phi, cluster correlation distance, nearest scatterer (both m).
    """

    spreads: Tensor
    mixing: Tensor
    correlation_m: Tensor
    columns: Tensor


# Kept tensors serve training, too, whoever asked first.
@cache
@torch.inference_mode(False)
def tables(sites: tuple[Site, ...], frequency_hz: float, device: torch.device) -> Tables:
    """Collect the environments of several sites on a device."""
    spreads, mixing, distances, columns = [], [], [], []
    for site in sites:
        for los in (True, False):
            e = environment(site, los, frequency_hz)
            spreads.append([e.lg_delay_spread, e.lg_departure_spread, e.lg_arrival_spread, e.k_db])
            matrix = torch.eye(4, dtype=torch.float64)
            upper = torch.triu_indices(4, 4, 1)
            matrix[upper[0], upper[1]] = torch.tensor(e.correlation, dtype=torch.float64)
            matrix = matrix + matrix.triu(1).T
            mixing.append(torch.linalg.cholesky(matrix).float())
            distances.append(e.correlation_m)
            columns.append(
                [
                    e.n_clusters,
                    e.delay_proportionality,
                    e.shadowing_db,
                    e.cluster_delay_spread_s,
                    math.radians(e.cluster_departure_deg),
                    math.radians(e.cluster_arrival_deg),
                    e.azimuth_scaling,
                    e.cluster_m,
                    NEAREST_SCATTERER_M[site],
                ]
            )
    return Tables(
        torch.tensor(spreads, device=device),
        torch.stack(mixing).to(device),
        torch.tensor(distances, device=device),
        torch.tensor(columns, device=device),
    )
