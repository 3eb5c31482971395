"""Figures of channel replay: a recorded frame predicted from its channel, and detection on replayed air."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft

from ...blocks.waveforms.channel_estimation import Observation, estimate_taps, learn_prior, start_prior
from ...blocks.waveforms.ofdm import modulate
from ...blocks.waveforms.references import named_reference
from ...captures.reader import Recording
from ...models.statistics import mean_ci95, paired_ratio_ci95
from ..channel_replay import estimate_run
from ..metrics import matched
from ..run import run_random_access
from ..runfolder import RunFolder, unpack_users
from ..scenario import load_scenario
from .entry import Entry, Measurement, OnShare

RENEW = Path("mimo/renew_powder/sigmf/rx_mimo_data_08_02.sigmf-meta")
LENGTHS = (8, 12, 16)

_N_FFT, _CP, _SYMBOLS = 64, 16, 46
_PILOTS = np.array([7, 21, 43, 57])
_USED = np.r_[1:27, 38:64]
_DATA = np.setdiff1d(_USED, _PILOTS)
# First long training symbol of each user, and the prefix of the first data symbol.
_PREAMBLES, _PAYLOAD = (105, 265), 393
_EARLY = 3
_FIRST_DELAY, _DELAYS = -4, 20


def measurements(quick: bool) -> list[Measurement]:
    """Channel replay; the frame recorded by others only where it is at hand, see the variable SEMAIR_DATA."""
    found = []
    frame = data_folder() / RENEW
    if frame.is_file():
        found.append(Measurement(("channel-replay/renew-frame",), partial(renew_frame, frame), 0.3))
    names = tuple(f"channel-replay/lab-wireless/L{length}" for length in LENGTHS)
    n_frames = 32 if quick else 1200
    return [*found, Measurement(names, partial(own_runs, n_frames), 1.0 if quick else 30.0)]


def data_folder() -> Path:
    """Where recordings of others lie, if anywhere: SEMAIR_DATA, or beside the source folder."""
    return Path(os.environ.get("SEMAIR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Predicted:
    """How well a frame is predicted from its estimated channel.

    Attributes:
        error: float64, (antennas,): power of recorded minus predicted data cells.
        noise: float64, (antennas,): power on the empty subcarrier in the middle of the same symbols, its mean removed.
        repeated: float64, (antennas,): half the power of the difference of the repeated training symbols, both users.
        silence: float64, (antennas,): power before anybody sends.
        signal: float64, (antennas,): power of the data cells.
        evm_db: float64, (users,): error of the combined symbols before the decision.
    """

    error: np.ndarray
    noise: np.ndarray
    repeated: np.ndarray
    silence: np.ndarray
    signal: np.ndarray
    evm_db: np.ndarray


def renew_frame(path: Path, tell: OnShare) -> Iterator[Entry]:
    """Error of the prediction against the noise, both over all antennas of the RENEW frame."""
    found = predict_frame(Recording.open(path).read(0).astype(np.complex128))
    over = 10 * np.log10(found.error / found.noise)
    spread = mean_ci95(over)
    yield Entry(
        "channel-replay/renew-frame",
        float(over.mean()),
        (spread.low, spread.high),
        "dB",
        "within 1 dB of the noise",
        {
            "recording": path.name,
            "value": "mean over 8 antennas of error over noise, prediction against recorded 16-QAM cells",
            "noise": "empty middle subcarrier of the same 46 symbols, its mean removed",
            "per_antenna_db": over,
            "error_over_repeated_training_db": 10 * np.log10(found.error / found.repeated),
            "error_over_silence_db": 10 * np.log10(found.error / found.silence),
            "signal_over_error_db": 10 * np.log10(found.signal / found.error),
            "evm_before_decision_db": found.evm_db,
            "transmitted": "hard decisions after combining",
        },
    )


def predict_frame(samples: np.ndarray) -> Predicted:
    """Estimate the channel of the 8-antenna RENEW frame, decide its payload, and predict what every antenna received.

    Args:
        samples: complex128, (antennas, n), the frame of 2019-08-03: preambles of two users, then 46 OFDM symbols of
            16-QAM that both send together; layout as in RENEWLab, MATLAB/MATLAB_partials_POWDER.
    """
    training = named_reference("l-ltf").astype(complex)
    training *= np.sqrt(_N_FFT) / np.sqrt(np.mean(np.abs(scipy.fft.fft(training[32:96])[_USED]) ** 2))
    steering = np.exp(-2j * np.pi * np.outer(scipy.fft.fftfreq(_N_FFT), np.arange(_DELAYS) + _FIRST_DELAY))

    # Offsets and noise from the two training symbols of each user.
    pairs = [[_cells(samples, start + k * _N_FFT)[:, _USED] for k in (0, 1)] for start in _PREAMBLES]
    turns = np.array([np.angle(np.vdot(first, second)) / (2 * np.pi * _N_FFT) for first, second in pairs])
    after = np.exp(-2j * np.pi * turns * _N_FFT)
    repeated = sum(
        np.mean(np.abs(first - turn * second) ** 2, axis=1) / 2
        for (first, second), turn in zip(pairs, after, strict=True)
    )
    n = np.arange(samples.shape[1])

    def wave(user: int) -> np.ndarray:
        start = _PREAMBLES[user]
        out = np.zeros(samples.shape[1], complex)
        out[start - 32 : start + 128] = training * np.exp(2j * np.pi * turns[user] * (n[: len(training)] - 32))
        return out

    # Channel from both preambles at once.
    waves = np.array([wave(user) for user in range(2)])
    span = slice(_PREAMBLES[0] - 40, _PAYLOAD - 8)
    lead = 8
    observed = Observation(
        samples[:, span.start - lead : span.stop], waves[:, span], lead, np.maximum(repeated, 1e-12), np.arange(2)
    )
    prior = start_prior(_FIRST_DELAY, _DELAYS, len(_USED) / _N_FFT, power=100 / _N_FFT)
    prior = learn_prior([observed], prior, 4)
    response = estimate_taps(observed, prior).taps @ steering.T  # (users, antennas, subcarriers)

    symbols = np.array([_cells(samples, _PAYLOAD + _CP + k * (_N_FFT + _CP)) for k in range(_SYMBOLS)])
    noise = np.var(symbols[:, :, 0], axis=0)
    started = np.array(_PREAMBLES)
    phases = np.exp(2j * np.pi * turns * (_PAYLOAD + _CP - started))
    decided = _decide(symbols, response, noise, phases, np.exp(2j * np.pi * turns * (_N_FFT + _CP)))

    # Once more from the whole frame, the decisions being what was sent.
    grids = np.zeros((2, _SYMBOLS, _N_FFT), complex)
    grids[:, :, _USED] = (decided.soft * decided.phases[:, :, None])[:, :, _USED]
    grids[:, :, _DATA] = decided.cells * decided.phases[:, :, None]
    for user in range(2):
        waves[user, _PAYLOAD : _PAYLOAD + _SYMBOLS * (_N_FFT + _CP)] = modulate(grids[user], _CP)
    begin = _PREAMBLES[0] - 40
    observed = Observation(samples[:, begin - lead :], waves[:, begin:], lead, noise, np.arange(2))
    response = estimate_taps(observed, learn_prior([observed], prior, 2)).taps @ steering.T
    decided = _decide(symbols, response, noise, phases, np.exp(2j * np.pi * turns * (_N_FFT + _CP)))

    sent = decided.cells * decided.phases[:, :, None]  # (users, symbols, cells)
    parts = response[:, None][:, :, :, _DATA] * sent[:, :, None]  # (users, symbols, antennas, cells)
    recorded = symbols[:, :, _DATA]
    # What is left of phase is each receive chain's own oscillator, and differs from antenna to antenna.
    own = np.angle(np.sum(recorded * parts.sum(axis=0).conj(), axis=2))
    predicted = parts.sum(axis=0) * np.exp(1j * own)[:, :, None]
    # Fitted phases: per symbol one real number for each user and antenna, of 2 x 8 x 48.
    free = 1 - (2 + samples.shape[0]) / (2 * samples.shape[0] * len(_DATA))
    return Predicted(
        error=np.mean(np.abs(recorded - predicted) ** 2, axis=(0, 2)) / free,
        noise=noise,
        repeated=np.asarray(repeated),
        silence=np.mean(np.abs(samples[:, :40]) ** 2, axis=1),
        signal=np.mean(np.abs(recorded) ** 2, axis=(0, 2)),
        evm_db=decided.evm_db,
    )


@dataclass(frozen=True)
class _Decided:
    """cells: (users, symbols, data cells), hard; soft: (users, symbols, 64); phases: (users, symbols), unit."""

    cells: np.ndarray
    soft: np.ndarray
    phases: np.ndarray
    evm_db: np.ndarray


def _decide(
    symbols: np.ndarray, response: np.ndarray, noise: np.ndarray, phases: np.ndarray, step: np.ndarray
) -> _Decided:
    """Combine with minimum mean square error, decide 16-QAM, and follow each user's phase from symbol to symbol.

    Args:
        symbols: complex, (symbols, antennas, 64).
        response: complex, (users, antennas, 64).
        noise: float64, (antennas,).
        phases: complex, (users,): expected at the first symbol.
        step: complex, (users,): expected turn from symbol to symbol.
    """
    weights = 1 / np.sqrt(noise)
    channel = np.moveaxis(response * weights[:, None], 2, 0)  # (64, users, antennas)
    gram = channel.conj() @ np.swapaxes(channel, 1, 2) + np.eye(len(response))
    combiner = np.linalg.solve(gram, channel.conj())  # (64, users, antennas)
    # A linear receiver of least error shrinks; cells of unit power come out as what they are once that is undone.
    gain = np.einsum("kua,kua->ku", combiner, channel).real
    combiner = combiner / np.maximum(gain, 1e-6)[:, :, None]
    shape = (len(response), len(symbols))
    cells, soft = np.empty((*shape, len(_DATA)), complex), np.empty((*shape, _N_FFT), complex)
    kept, errors = np.empty(shape, complex), np.empty(shape)
    first = np.einsum("kua,ak->uk", combiner[_DATA], (symbols[0] * weights[:, None])[:, _DATA])
    amplitude = np.sqrt(np.mean(np.abs(first) ** 2, axis=1))[:, None]
    for k, received in enumerate(symbols * weights[:, None]):
        for _ in range(3):
            mixed = np.einsum("kua,ak->uk", combiner, received) * phases.conj()[:, None]
            hard = _nearest(mixed[:, _DATA] / amplitude) * amplitude
            turn = np.sum(mixed[:, _DATA] * hard.conj(), axis=1)
            phases = phases * turn / np.abs(turn)
        cells[:, k], soft[:, k], kept[:, k] = hard, mixed, phases
        errors[:, k] = np.mean(np.abs(mixed[:, _DATA] - hard) ** 2, axis=1) / amplitude[:, 0] ** 2
        phases = phases * step
    return _Decided(cells, soft, kept, 10 * np.log10(errors.mean(axis=1)))


def _nearest(values: np.ndarray) -> np.ndarray:
    """Nearest point of 16-QAM of unit mean power."""
    scaled = values * np.sqrt(10)
    real, imag = (np.clip(2 * np.round((part - 1) / 2) + 1, -3, 3) for part in (scaled.real, scaled.imag))
    return (real + 1j * imag) / np.sqrt(10)


def _cells(samples: np.ndarray, start: int) -> np.ndarray:
    """Subcarriers of the OFDM symbol at `start`, the window a little early; complex128, (antennas, 64)."""
    begin = start - _EARLY
    spectrum = scipy.fft.fft(samples[:, begin : begin + _N_FFT], axis=1, norm="ortho")
    return spectrum * np.exp(2j * np.pi * scipy.fft.fftfreq(_N_FFT) * _EARLY)


def own_runs(n_frames: int, tell: OnShare) -> Iterator[Entry]:
    """Error probability on a run's replayed channels over that of the run, the same users active in the same frames."""
    overrides = [
        "level=wireless",
        f"users.preamble_lengths={[*LENGTHS, 28]}",
        "frame.frame_samples=8192",
    ]
    with tempfile.TemporaryDirectory(prefix="semair-") as name:
        folder = Path(name)
        chosen = load_scenario("lab", overrides)
        run_random_access(chosen, folder / "live", n_frames=n_frames)
        tell(0.2)
        found = estimate_run(folder / "live", lambda _name, share: tell(0.2 + 0.6 * share))
        found.write(folder / "air")
        recorded = 'channel={kind="recorded", recording="' + str(folder / "air") + '"}'
        again = load_scenario(
            "lab", [*overrides, recorded, "channel_replay.mapping=recorded", "channel_replay.reuse=true"]
        )
        replayed = run_random_access(again, folder / "replayed", n_frames=n_frames, record=False)
        wrong = [_wrong(RunFolder(folder / part), chosen.users.n_users) for part in ("live", "replayed")]
    tell(1.0)
    facts: dict[str, Any] = {key: replayed.metrics["channel_replay"][key] for key in ("estimation_error_db", "mapping")}
    for length in LENGTHS:
        frames = sorted(f for f in wrong[0] if f in wrong[1] and wrong[0][f][0] == length)
        live, new = (np.array([part[f][1] for f in frames]) for part in wrong)
        unit = 1 / chosen.users.n_users
        ratio = paired_ratio_ci95(new, live, unit) if live.any() else mean_ci95(new - live)
        before, after = mean_ci95(live, unit), mean_ci95(new, unit)
        yield Entry(
            f"channel-replay/lab-wireless/L{length}",
            ratio.value,
            (ratio.low, ratio.high),
            "1",
            1.0,
            {
                "value": "error probability on the replayed channel over that of the run, same users and frames",
                "scenario": "lab, level wireless, detector cd",
                "frames": n_frames,
                "slots": len(frames),
                "seed": chosen.seed,
                "original": list(before),
                "replayed": list(after),
                "replayed_within_interval_of_original": bool(before.low <= after.value <= before.high),
                "difference": list(mean_ci95(new - live)),
                "links": found.quality["links"],
                "residual_over_noise_db": found.quality["residual_over_noise_db"]["mean"],
                **facts,
            },
        )


def _wrong(folder: RunFolder, n_users: int) -> dict[int, tuple[int, float]]:
    """Preamble length and share of users decided wrongly, by frame."""
    decisions, truth = folder.rows(folder.decisions), folder.rows(folder.truth)
    left, right = matched(decisions, truth)
    differ = unpack_users(decisions["active"][left] ^ truth["active"][right], n_users).mean(axis=1)
    return {
        int(row["frame"]): (int(row["length"]), float(share))
        for row, share in zip(decisions[left], differ, strict=True)
    }
