"""Decision thresholds of least error probability, found on draws that no evaluation sees.

`python -m semair.models.uad.calibrate cd` prints one detector's table for the paper's scenario, ready for
`thresholds` in its module; `gain=1.0` behind the name passes an option.
"""

from __future__ import annotations

import sys
from ast import literal_eval
from collections.abc import Sequence

import numpy as np

from ..statistics import best_threshold
from .evaluate import AccessScenario, DetectorSetup, calibration_draws

LENGTHS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28)
"""Preamble lengths of the shipped tables, in symbols."""


def calibrate(
    setup: DetectorSetup,
    lengths: Sequence[int] = LENGTHS,
    n_samples: int = 200,
    n_pools: int = 8,
    seed: int = 0,
    scenario: AccessScenario | None = None,
) -> dict[int, float]:
    """Find the threshold of least error probability for every length.

    Args:
        setup: Detector and options.
        lengths: Preamble lengths in symbols.
        n_samples: Slots per length and pool.
        n_pools: Pools of preambles.
        seed: Of the calibration's pools and draws.
        scenario: What is drawn; None is the paper's.

    Returns:
        Length -> threshold, three significant digits.
    """
    scenario = scenario or AccessScenario()
    scores: dict[int, list[np.ndarray]] = {length: [] for length in lengths}
    truth: dict[int, list[np.ndarray]] = {length: [] for length in lengths}
    for preambles, batches in calibration_draws(scenario, lengths, n_samples, n_pools, seed):
        detector = setup.build(preambles, scenario.activity)
        for length, batch in zip(lengths, batches, strict=True):
            scores[length].append(detector.scores(batch.y, batch.noise_power))
            truth[length].append(batch.active)
    return {
        length: float(f"{best_threshold(np.concatenate(scores[length]), np.concatenate(truth[length])):.3g}")
        for length in lengths
    }


def _main(arguments: Sequence[str]) -> None:
    name, *pairs = arguments
    options = {key: literal_eval(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    sys.stdout.write(f"{calibrate(DetectorSetup(name, options))}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
