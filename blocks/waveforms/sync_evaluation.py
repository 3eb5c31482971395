"""Monte Carlo measurement of preamble detection: misses, false alarms, timing and carrier-offset errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft

from .preamble_detector import PreambleDetector

Fading = Literal["static", "rayleigh"]

_EDGE = 64


@dataclass(frozen=True)
class DetectionMeasurement:
    """What a detector made of preambles at known places; errors are estimate minus truth.

    Attributes:
        sent: preambles sent.
        missed: of those, not found within the tolerance.
        false: detections that fit no preamble.
        samples: length of the streams searched, per antenna.
        timing_errors_samples: float64, (found,), of start + fraction.
        cfo_errors_hz: float64, (found,).
        snr_errors_db: float64, (found,), against the mean over antennas of the true SNR.
    """

    sent: int
    missed: int
    false: int
    samples: int
    timing_errors_samples: np.ndarray
    cfo_errors_hz: np.ndarray
    snr_errors_db: np.ndarray


@dataclass(frozen=True)
class FalseAlarmMeasurement:
    """Detections in noise alone.

    Attributes:
        samples: searched, per antenna.
        metrics: float64, (false alarms,), of the detections.
    """

    samples: int
    metrics: np.ndarray


def delay(sequence: np.ndarray, fraction_samples: float) -> np.ndarray:
    """Delay a band-limited sequence by a fraction of a sample.

    Args:
        sequence: complex, (n,).
        fraction_samples: -1 to 1.

    Returns:
        complex128, (n + 128,): 64 more samples on each side hold the interpolation's tails; sample 0 of the
        sequence is at index 64.
    """
    padded = np.pad(sequence.astype(complex), _EDGE)
    frequency = scipy.fft.fftfreq(len(padded))
    return scipy.fft.ifft(scipy.fft.fft(padded) * np.exp(-2j * np.pi * frequency * fraction_samples))


def white_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """White circular complex Gaussian noise of variance 1 per complex sample, complex64."""
    values = rng.standard_normal((shape[0], 2 * shape[1]), np.float32)
    values *= np.float32(np.sqrt(0.5))
    return values.view(np.complex64)


def measure_detection(
    detector: PreambleDetector,
    rng: np.random.Generator,
    *,
    n_preambles: int,
    snr_db: float,
    max_cfo_hz: float,
    fading: Fading = "static",
    spacing_samples: int | None = None,
    tolerance_samples: float = 4.0,
) -> DetectionMeasurement:
    """Send preambles in white noise at random places, fractions, carrier offsets and phases, and find them.

    Args:
        detector: restarted here; its reference is sent.
        rng: source of everything random.
        n_preambles: how many.
        snr_db: mean power of the preamble over noise variance, per antenna; with Rayleigh fading its mean.
        max_cfo_hz: offsets are uniform within plus and minus this.
        fading: `static`: equal magnitudes and random phases on the antennas; `rayleigh`: independent complex
            Gaussian gains, drawn anew for each preamble.
        spacing_samples: mean distance of preambles; default four times the larger of the reference and the
            detector's min_distance_samples.
        tolerance_samples: farther from its place a detection is false.

    Returns:
        The counts and errors.
    """
    reference = detector.reference
    length, n_antennas = len(reference), detector.n_antennas
    room = max(length, detector.min_distance_samples)
    spacing = 4 * room if spacing_samples is None else spacing_samples
    if spacing < 2 * room + length:
        raise ValueError(f"spacing_samples={spacing} leaves preambles too close; use at least {2 * room + length}")
    amplitude = 10 ** (snr_db / 20)
    detector.restart(0)
    missed = false = 0
    timing_errors, cfo_errors, snr_errors = [], [], []
    places: list[tuple[float, float, float]] = []
    found = []
    for i in range(n_preambles):
        x = white_noise(rng, (n_antennas, spacing))
        # Whole preamble and interpolation tails stay inside this stretch, and `room` away from the next.
        start = int(rng.integers(_EDGE, spacing - room - length - _EDGE))
        fraction = rng.uniform(-0.5, 0.5)
        cfo_hz = rng.uniform(-max_cfo_hz, max_cfo_hz)
        if fading == "static":
            gains = np.exp(2j * np.pi * rng.random(n_antennas))
        else:
            gains = (rng.standard_normal(n_antennas) + 1j * rng.standard_normal(n_antennas)) / np.sqrt(2)
        time = np.arange(-_EDGE, length + _EDGE)
        signal = delay(reference, fraction) * np.exp(2j * np.pi * cfo_hz / detector.sample_rate_hz * time)
        x[:, start - _EDGE : start + length + _EDGE] += (amplitude * gains[:, None] * signal).astype(np.complex64)
        true_snr_db = snr_db + 10 * np.log10(np.mean(np.abs(gains) ** 2))
        places.append((i * spacing + start + fraction, cfo_hz, true_snr_db))
        found += detector.process(x)
    found += detector.flush()

    times = np.array([p.start + p.fraction for p in found])
    taken = np.zeros(len(found), bool)
    for place, cfo_hz, true_snr_db in places:
        near = np.flatnonzero(~taken & (np.abs(times - place) <= tolerance_samples))
        if len(near) == 0:
            missed += 1
            continue
        best = near[np.argmin(np.abs(times[near] - place))]
        taken[best] = True
        timing_errors.append(times[best] - place)
        cfo_errors.append(found[best].cfo_hz - cfo_hz)
        snr_errors.append(found[best].snr_db - true_snr_db)
    false = int(np.sum(~taken))
    return DetectionMeasurement(
        sent=n_preambles,
        missed=missed,
        false=false,
        samples=n_preambles * spacing,
        timing_errors_samples=np.array(timing_errors),
        cfo_errors_hz=np.array(cfo_errors),
        snr_errors_db=np.array(snr_errors),
    )


def measure_false_alarms(
    detector: PreambleDetector, rng: np.random.Generator, *, n_samples: int, chunk_samples: int = 65536
) -> FalseAlarmMeasurement:
    """Search white noise, of equal power on all antennas, and list what is found.

    Args:
        detector: restarted here.
        rng: source of the noise.
        n_samples: to search, per antenna.
        chunk_samples: samples per call.

    Returns:
        The number of samples and the metrics of the false alarms.
    """
    detector.restart(0)
    found = []
    for first in range(0, n_samples, chunk_samples):
        found += detector.process(white_noise(rng, (detector.n_antennas, min(chunk_samples, n_samples - first))))
    found += detector.flush()
    return FalseAlarmMeasurement(n_samples, np.array([p.metric for p in found]))
