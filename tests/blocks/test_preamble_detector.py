"""Preamble detector: statistics against theory, synthetic truth, and real recordings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.beacon import sync_sequence
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.preamble_detector import (
    Preamble,
    PreambleDetector,
    detection_threshold,
    equal_pieces,
)
from semair.blocks.waveforms.references import named_reference
from semair.blocks.waveforms.sync_evaluation import (
    delay,
    measure_detection,
    measure_false_alarms,
    white_noise,
)

BEACON = sync_sequence(FrameFormat())


def general_reference() -> np.ndarray:
    """512 samples that fill three quarters of the band and have no structure."""
    spectrum = np.zeros(512, complex)
    bins = np.concatenate([np.arange(1, 193), np.arange(-192, 0)])
    spectrum[bins] = np.exp(0.5j * np.pi * np.random.default_rng(5).integers(0, 4, len(bins)))
    return (np.fft.ifft(spectrum) * 512 / np.sqrt(len(bins))).astype(np.complex64)


GENERAL = general_reference()


def search(detector: PreambleDetector, x: np.ndarray) -> list[Preamble]:
    detector.restart(0)
    return detector.process(x) + detector.flush()


def brute_force_metric(x: np.ndarray, reference: np.ndarray, turns: np.ndarray, start: int) -> float:
    """T at one start from its definition; x: (antennas, n), turns per sample of the hypotheses."""
    n = len(reference)
    r = reference.astype(complex)
    best = 0.0
    for f in turns:
        vector = r * np.exp(2j * np.pi * f * np.arange(n))
        per_antenna = [
            abs(np.vdot(vector, row)) ** 2 / (np.vdot(r, r).real * np.vdot(row, row).real)
            for row in x[:, start : start + n].astype(complex)
        ]
        best = max(best, float(np.mean(per_antenna)))
    return best


# --- threshold and false alarms -----------------------------------------------------------------------------


def test_threshold_of_one_antenna_is_the_closed_form():
    # P(|<r,x>|^2 / (|r|^2 |x|^2) > t) = (1-t)^(L-1)
    for n, rate, hypotheses in [(64, 1e-3, 1), (160, 1e-9, 2), (512, 1e-10, 18)]:
        expected = 1 - (rate / hypotheses) ** (1 / (n - 1))
        assert detection_threshold(n, 1, hypotheses, rate) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "n_antennas"), [(64, 4), (512, 2), (512, 4), (160, 8)])
@pytest.mark.parametrize("rate", [1e-3, 1e-6, 1e-9])
def test_threshold_of_several_antennas_agrees_with_the_convolved_density(n, n_antennas, rate):
    # The density of the sum of A Beta(1, L-1) variables, by repeated convolution on a grid.
    points, end = 2**14, min(60 / n, 1)
    density = scipy.stats.beta.pdf((np.arange(points) + 0.5) * end / points, 1, n - 1)
    density /= density.sum()
    total = density
    for _ in range(n_antennas - 1):
        total = np.maximum(scipy.signal.fftconvolve(total, density), 0)
    value = (np.arange(len(total)) + n_antennas / 2) * end / points / n_antennas
    threshold = detection_threshold(n, n_antennas, 1, rate)
    # The fitted Beta errs to the safe side. The convolution's rounding is about 1e-12 of the whole tail.
    assert 0.6 * rate <= total[value > threshold].sum() <= 1.02 * rate


@pytest.mark.parametrize("n_antennas", [1, 4])
@pytest.mark.parametrize(("reference", "max_cfo_hz"), [(BEACON, 17.5e3), (BEACON, 0.0), (GENERAL, 4e3)])
@pytest.mark.parametrize("rate", [1e-4, 1e-5])
def test_rate_of_false_alarms_stays_below_the_one_asked_for(reference, max_cfo_hz, n_antennas, rate):
    detector = PreambleDetector(
        reference,
        sample_rate_hz=2e6,
        n_antennas=n_antennas,
        max_cfo_hz=max_cfo_hz,
        false_alarms_per_sample=rate,
        min_distance_samples=1,
    )
    n = 400_000
    result = measure_false_alarms(detector, np.random.default_rng(11), n_samples=n)
    # Poisson bound that a detector of exactly the asked rate exceeds with probability 1e-6.
    assert len(result.metrics) <= scipy.stats.poisson.isf(1e-6, n * rate)


@pytest.mark.parametrize("n_antennas", [1, 4])
def test_single_hypothesis_reaches_the_asked_rate_and_no_less(n_antennas):
    # min_distance 1 and one hypothesis leave neither union bound nor grouping, and a shuffled sequence has
    # white samples, so neighbouring metrics are nearly independent: the count is nearly Poisson.
    rate, n = 2e-4, 1_000_000
    rng = np.random.default_rng(7)
    reference = (rng.standard_normal(256) + 1j * rng.standard_normal(256)).astype(np.complex64)
    detector = PreambleDetector(
        reference,
        sample_rate_hz=1e6,
        n_antennas=n_antennas,
        false_alarms_per_sample=rate,
        min_distance_samples=1,
    )
    count = len(measure_false_alarms(detector, rng, n_samples=n).metrics)
    # Of noise peaks, partial matches are refused too (about a tenth), and sidelobes of others.
    low, high = scipy.stats.poisson.ppf([1e-6, 1 - 1e-6], n * rate)
    assert 0.7 * low <= count <= high


# --- detection of synthetic preambles -----------------------------------------------------------------------


@pytest.mark.parametrize("sample_rate_hz", [2e6, 10e6])
def test_beacon_at_minus_3_db_on_four_antennas(sample_rate_hz):
    detector = PreambleDetector(BEACON, sample_rate_hz=sample_rate_hz, n_antennas=4, max_cfo_hz=17.5e3)
    result = measure_detection(detector, np.random.default_rng(3), n_preambles=500, snr_db=-3, max_cfo_hz=17.5e3)
    # Below 1e-3 missed, none of 500 is the likely outcome (61 %), two or fewer have probability 0.986; the
    # deflection of the metric, 0.33 against a threshold of 0.016, makes any miss a defect.
    assert result.missed == 0
    assert result.false == 0
    assert np.abs(result.timing_errors_samples).max() < 4


@pytest.mark.parametrize("reference", [BEACON, GENERAL], ids=["pieces", "general"])
@pytest.mark.parametrize("snr_db", [10, 30])
def test_estimates_come_close_to_their_bounds(reference, snr_db):
    sample_rate_hz = 10e6
    detector = PreambleDetector(reference, sample_rate_hz=sample_rate_hz, n_antennas=4, max_cfo_hz=17.5e3)
    result = measure_detection(detector, np.random.default_rng(4), n_preambles=100, snr_db=snr_db, max_cfo_hz=17.5e3)
    assert result.missed == result.false == 0
    # Cramer-Rao bound of a tone's frequency, L samples on A antennas: variance 6 / ((2 pi)^2 A snr L^3).
    bound_hz = sample_rate_hz * np.sqrt(6 / (4 * 10 ** (snr_db / 10) * 512**3)) / (2 * np.pi)
    # 100 squared Gaussian errors have a mean above twice their variance with probability below 1e-8. A floor
    # of 1e-6 of the sample rate is left for the reference's cut tails under a fractional delay.
    assert np.mean(result.cfo_errors_hz**2) < 2 * bound_hz**2 + (1e-6 * sample_rate_hz) ** 2
    assert np.abs(result.cfo_errors_hz).max() < 0.01 * sample_rate_hz / 128
    # Delay: variance 1 / (2 A snr L beta^2) with beta the RMS bandwidth in radians per sample.
    spectrum = np.abs(np.fft.fft(reference)) ** 2
    beta = 2 * np.pi * np.sqrt(np.average(np.fft.fftfreq(512) ** 2, weights=spectrum))
    bound_samples = 1 / np.sqrt(2 * 4 * 10 ** (snr_db / 10) * 512 * beta**2)
    assert np.mean(result.timing_errors_samples**2) < 2 * bound_samples**2 + 0.02**2
    # SNR: the noise estimate's deviation is 1/sqrt(512) = 0.2 dB per antenna, the cut tails cost more.
    assert np.abs(result.snr_errors_db).max() < (0.8 if snr_db == 10 else 4)


def test_gains_and_offset_reproduce_the_received_preamble(rng):
    sample_rate_hz, fraction, cfo_hz = 10e6, 0.3, -9000.0
    gains = np.array([1.0, -2j, 0.5 + 0.5j])
    x = 0.01 * white_noise(rng, (3, 3000))
    time = np.arange(-64, 512 + 64)
    signal = delay(BEACON, fraction) * np.exp(2j * np.pi * cfo_hz / sample_rate_hz * time)
    x[:, 1000 - 64 : 1512 + 64] += (gains[:, None] * signal).astype(np.complex64)
    detector = PreambleDetector(BEACON, sample_rate_hz=sample_rate_hz, n_antennas=3, max_cfo_hz=17.5e3)
    (found,) = search(detector, x)
    assert found.start == 1000
    assert found.fraction == pytest.approx(fraction, abs=0.02)
    assert found.cfo_hz == pytest.approx(cfo_hz, abs=20)
    assert found.metric > 0.99
    np.testing.assert_allclose(found.gains, gains, atol=0.03)
    assert found.gains.dtype == np.complex64


@pytest.mark.parametrize("reference", [BEACON, GENERAL], ids=["pieces", "general"])
def test_detections_are_those_of_the_definition(reference, rng):
    """Against a search over all samples by the definition."""
    detector = PreambleDetector(reference, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=6e3)
    x = white_noise(rng, (2, 6000))
    for start, cfo_hz in [(700, 5900.0), (2400, -3100.0), (4321, 0.0)]:
        tone = np.exp(2j * np.pi * cfo_hz / 2e6 * np.arange(512))
        x[:, start : start + 512] += (0.5 * np.array([[1], [1j]]) * reference * tone).astype(np.complex64)
    turns = detector.hypotheses_hz / 2e6
    metric = np.array([brute_force_metric(x, reference, turns, n) for n in range(6000 - 511)])
    expected = []
    while metric.max() >= detector.threshold:
        best = int(np.argmax(metric))
        expected.append(best)
        metric[max(best - 511, 0) : best + 512] = 0
    assert [p.start for p in search(detector, x)] == sorted(expected) == [700, 2400, 4321]


def test_first_stage_loses_nothing_well_below_the_target(rng):
    """At -10 dB, 7 dB below the target, and over the whole range of carrier offsets."""
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=4, max_cfo_hz=17.5e3)
    result = measure_detection(detector, rng, n_preambles=200, snr_db=-10, max_cfo_hz=17.5e3)
    assert result.missed == 0


# --- structure ----------------------------------------------------------------------------------------------


def test_equal_pieces_are_found_with_their_factors():
    piece, factors = equal_pieces(BEACON)
    assert piece == 64
    np.testing.assert_allclose(factors[:, None] * BEACON[:64], BEACON.reshape(8, 64), atol=1e-6)
    assert equal_pieces(GENERAL) is None
    assert equal_pieces(BEACON, longest=63) is None


def test_equal_pieces_with_complex_factors_of_unequal_size(rng):
    piece = white_noise(rng, (1, 40))[0]
    factors = np.array([1, 2j, -0.5, 1 + 1j, 1])
    length, found = equal_pieces(np.kron(factors, piece).astype(np.complex64))
    assert length == 40
    np.testing.assert_allclose(found, factors, atol=1e-5)


def test_pieces_with_complex_factors_are_detected(rng):
    reference = np.kron([1, 1j, -0.7, 1 + 1j, 1, -1j], white_noise(rng, (1, 48))[0]).astype(np.complex64)
    detector = PreambleDetector(reference, sample_rate_hz=1e6, n_antennas=2, max_cfo_hz=10e3)
    result = measure_detection(detector, rng, n_preambles=60, snr_db=0, max_cfo_hz=10e3)
    assert result.missed == result.false == 0


# --- streaming ----------------------------------------------------------------------------------------------


def scene(n_antennas: int) -> np.ndarray:
    """Preambles of different strength, some closer than the reference is long, with a burst between."""
    rng = np.random.default_rng(21)
    x = white_noise(rng, (n_antennas, 9000))
    for start, amplitude in [
        (0, 1.0),
        (900, 0.6),
        (1200, 0.9),
        (2048, 3.0),
        (2560, 3.0),
        (5000, 1.0),
        (8488, 1.0),
    ]:
        tone = np.exp(2j * np.pi * 1e-3 * np.arange(512))
        phases = np.exp(2j * np.pi * rng.random((n_antennas, 1)))
        x[:, start : start + 512] += (amplitude * phases * BEACON * tone).astype(np.complex64)
    x[:, 6000:6500] *= 1000
    return x


def comparable(found: list[Preamble]) -> list[tuple]:
    return [(p.start, p.fraction, p.cfo_hz, p.metric, p.snr_db, p.gains.tobytes()) for p in found]


SCENE = scene(2)
MAKE = {
    "pieces": lambda: PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=4e3, block_samples=700),
    "general": lambda: PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2, block_samples=700, threshold=0.05),
    "close": lambda: PreambleDetector(
        BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=4e3, min_distance_samples=40, block_samples=1
    ),
}
DETECTORS = {name: make() for name, make in MAKE.items()}
WHOLE = {name: comparable(search(make(), SCENE)) for name, make in MAKE.items()}


@pytest.mark.parametrize("name", list(MAKE))
@given(cuts=st.lists(st.integers(0, SCENE.shape[1]), max_size=30), origin=st.integers(0, 2**50))
@settings(max_examples=25, deadline=None)
def test_results_do_not_depend_on_the_cuts_bit_for_bit(name, cuts, origin):
    detector = DETECTORS[name]
    detector.restart(origin)
    edges = [0, *sorted(cuts), SCENE.shape[1]]
    found = []
    for first, last in itertools.pairwise(edges):
        found += detector.process(SCENE[:, first:last])
    found += detector.flush()
    shifted = [(start - origin, *rest) for start, *rest in comparable(found)]
    assert shifted == WHOLE[name]
    assert len(shifted) >= 5


def test_scene_holds_the_preambles_that_were_put_in():
    starts = [start for start, *_ in WHOLE["pieces"]]
    # 900 and 1200 overlap: the stronger one wins.
    assert starts == [0, 1200, 2048, 2560, 5000, 8488]
    assert [start for start, *_ in WHOLE["close"]] == [0, 900, 1200, 2048, 2560, 5000, 8488]


@pytest.mark.parametrize("name", list(MAKE))
def test_latency_is_kept(name):
    detector = MAKE[name]()
    returned, end = set(), 0
    starts = {start for start, *_ in WHOLE[name]}
    for first in range(0, SCENE.shape[1], 13):
        returned |= {p.start for p in detector.process(SCENE[:, first : first + 13])}
        end = min(first + 13, SCENE.shape[1])
        assert {s for s in starts if s <= end - detector.latency_samples} <= returned


def test_restart_forgets_what_came_before():
    detector = MAKE["pieces"]()
    detector.process(SCENE[:, :2300])
    detector.restart(10_000)
    found = detector.process(SCENE[:, 2300:]) + detector.flush()
    fresh = search(MAKE["pieces"](), SCENE[:, 2300:])
    assert [(p.start - 10_000, p.metric) for p in found] == [(p.start, p.metric) for p in fresh]
    assert 10_000 not in [p.start for p in found]


@pytest.mark.parametrize("block_samples", [64, 3000])
def test_look_finds_what_a_stream_of_its_own_would(block_samples, rng):
    options = {"sample_rate_hz": 2e6, "n_antennas": 2, "max_cfo_hz": 15e3, "block_samples": block_samples}
    detector, stream = PreambleDetector(BEACON, **options), PreambleDetector(BEACON, **options)
    assert detector.look_samples >= block_samples + len(BEACON) - 1
    for n in (len(BEACON) - 1, len(BEACON) + 10, detector.look_samples):
        x = 0.5 * white_noise(rng, (2, n))
        whole = n >= 7 + len(BEACON)
        if whole:
            x[:, 7 : 7 + len(BEACON)] += BEACON
        seen = detector.look(x)
        stream.restart(0)
        assert comparable(seen) == comparable(stream.process(x) + stream.flush())
        assert [found.start for found in seen] == ([7] if whole else [])


@pytest.mark.parametrize("name", MAKE)
def test_look_leaves_the_stream_alone(name):
    detector, undisturbed = MAKE[name](), MAKE[name]()
    found = []
    for first in range(0, SCENE.shape[1], 700):
        found += detector.process(SCENE[:, first : first + 700])
        detector.look(SCENE[:, : detector.look_samples])
    assert comparable(found + detector.flush()) == comparable(search(undisturbed, SCENE))


def test_flush_returns_a_preamble_that_ends_with_the_last_sample_and_no_cut_one():
    detector = MAKE["pieces"]()
    whole = np.zeros((2, 1512), np.complex64)
    whole[:, 1000:] = BEACON
    assert search(detector, whole[:, :1480]) == []
    assert [p.start for p in search(detector, whole)] == [1000]
    assert [p.start for p in detector.process(whole) + detector.flush()] == [1512 + 1000]


# --- near each other, and nearly alike ----------------------------------------------------------------------


@pytest.mark.parametrize("distance", [160, 161, 200, 320])
@pytest.mark.parametrize("relative_db", [0, 6, 12])
def test_two_sequences_that_touch_are_both_found(distance, relative_db, rng):
    reference = named_reference("l-ltf")
    detector = PreambleDetector(reference, sample_rate_hz=5e6, n_antennas=8, max_cfo_hz=2e3)
    x = 0.05 * white_noise(rng, (8, 1500))
    for start, amplitude in [(500, 1.0), (500 + distance, 10 ** (-relative_db / 20))]:
        gains = white_noise(rng, (8, 1))
        x[:, start : start + 160] += amplitude * gains * reference
    assert [p.start for p in search(detector, x)] == [500, 500 + distance]


def test_strong_preamble_reports_no_sidelobes_even_below_its_length(rng):
    for reference, distance in [(BEACON, 20), (named_reference("l-ltf"), 20), (GENERAL, 3)]:
        detector = PreambleDetector(
            reference, sample_rate_hz=5e6, n_antennas=2, max_cfo_hz=15e3, min_distance_samples=distance
        )
        x = white_noise(rng, (2, 4000))
        x[:, 1500 : 1500 + len(reference)] += 100 * reference
        assert [p.start for p in search(detector, x)] == [1500]


def test_half_of_the_reference_is_refused(rng):
    reference = named_reference("l-ltf")
    detector = PreambleDetector(reference, sample_rate_hz=20e6, max_cfo_hz=40e3)
    x = white_noise(rng, (1, 2000))
    x[:, 800:880] += 10 * reference[16:96]
    x[:, 880:] += 7 * white_noise(rng, (1, 1120))
    metrics = [brute_force_metric(x, reference, np.zeros(1), n) for n in range(700, 900)]
    assert max(metrics) > detector.threshold
    assert search(detector, x) == []


def test_multipath_reports_the_strongest_path(rng):
    x = 0.1 * white_noise(rng, (2, 3000))
    x[:, 1000:1512] += 0.6 * BEACON
    x[:, 1005:1517] += 1j * BEACON
    x[:, 1011:1523] += 0.5 * BEACON
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=17.5e3)
    assert [p.start for p in search(detector, x)] == [1005]


# --- robustness ---------------------------------------------------------------------------------------------


def test_zeros_yield_nothing_and_no_warning():
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=17.5e3)
    with np.errstate(all="raise"):
        assert search(detector, np.zeros((2, 20_000), np.complex64)) == []


def test_dead_antenna_leaves_the_others_working(rng):
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=4, max_cfo_hz=17.5e3)
    x = white_noise(rng, (4, 8000))
    x[:, 3000:3512] += BEACON
    x[2] = 0
    (found,) = search(detector, x)
    assert found.start == 3000
    assert found.gains[2] == 0
    assert found.snr_db == pytest.approx(0, abs=1)


def test_constant_offset_as_strong_as_the_preamble(rng):
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=4, max_cfo_hz=17.5e3)
    x = white_noise(rng, (4, 20_000)) + np.complex64(1 + 1j)
    x[:, 3000:3512] += BEACON
    assert [p.start for p in search(detector, x)] == [3000]


def test_strong_burst_before_a_weak_preamble(rng):
    """A burst 100 dB above the preamble must leave no rounding error behind."""
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=17.5e3)
    x = white_noise(rng, (2, 12_000))
    x[:, 1000:3900] *= np.float32(1e5)
    x[:, 4000:4512] += BEACON
    assert [p.start for p in search(detector, x)] == [4000]


def test_scale_of_stream_and_reference_does_not_matter(rng):
    x = white_noise(rng, (2, 6000))
    x[:, 2000:2512] += BEACON
    for scale in (1e-8, 1.0, 1e8):
        detector = PreambleDetector(scale * BEACON, sample_rate_hz=2e6, n_antennas=2, max_cfo_hz=17.5e3)
        assert [p.start for p in search(detector, np.float32(scale) * x)] == [2000]


def test_loud_antenna_does_not_decide_alone(rng):
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=4, max_cfo_hz=17.5e3)
    x = white_noise(rng, (4, 8000))
    x[:3, 3000:3512] += BEACON
    x[3] *= 1e4
    assert [p.start for p in search(detector, x)] == [3000]


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, np.nan)])
def test_value_that_is_not_finite_is_refused_by_place(value, rng):
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=3, max_cfo_hz=17.5e3)
    x = white_noise(rng, (3, 4000))
    x[:, 2500:3012] += BEACON
    detector.process(x[:, :1000])
    bad = x[:, 1000:].copy()
    bad[2, 234] = value
    with pytest.raises(ValueError, match="antenna 2 at sample 1234"):
        detector.process(bad)
    found = detector.process(x[:, 1000:]) + detector.flush()
    assert [p.start for p in found] == [2500]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"reference": np.ones((2, 64))}, "shape"),
        ({"reference": np.zeros(64)}, "not zero"),
        ({"reference": np.full(64, np.nan)}, "finite"),
        ({"sample_rate_hz": 0}, "sample_rate_hz"),
        ({"max_cfo_hz": 2e6}, "max_cfo_hz"),
        ({"threshold": 1.5}, "threshold"),
        ({"false_alarms_per_sample": 0}, "false_alarms_per_sample"),
        ({"min_distance_samples": 0}, "min_distance_samples"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, word):
    given_arguments = {"reference": BEACON, "sample_rate_hz": 2e6, **arguments}
    with pytest.raises(ValueError, match=word):
        PreambleDetector(given_arguments.pop("reference"), **given_arguments)


def test_wrong_number_of_antennas_is_refused():
    detector = PreambleDetector(BEACON, sample_rate_hz=2e6, n_antennas=2)
    with pytest.raises(ValueError, match=r"shape \(3, 10\)"):
        detector.process(np.zeros((3, 10), np.complex64))


# --- real recordings ----------------------------------------------------------------------------------------

WIFI = ["dot11n_6.5mbps", "dot11n_19.5mbps", "dot11n_26mbps", "dot11n_65mbps"]


def wifi(folder, name):
    """Samples, (1, n), and the annotated starts of the 160-sample long training field."""
    recording = sigmf.fromfile(str(folder / "iq/openofdm_wifi/sigmf" / f"{name}.sigmf-meta"))
    starts = [a["core:sample_start"] + 160 for a in recording.get_annotations()]
    return recording.read_samples()[None], np.array(starts)


def repeats_after_64_samples(x: np.ndarray, start: int) -> bool:
    """Whether a field of two equal symbols of 64 stands here that is not periodic in 16: long training.

    Looks at the last 128 samples of the field, without the reference.
    """
    window = x[start + 32 : start + 160]

    def likeness(lag):
        a, b = window[lag:], window[:-lag]
        return abs(np.vdot(b, a)) / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)

    return likeness(64) > 0.5 > likeness(16)


def test_annotated_wifi_preambles_are_found(shared_data):
    annotated = found = 0
    for name in WIFI:
        x, starts = wifi(shared_data, name)
        detector = PreambleDetector(named_reference("l-ltf"), sample_rate_hz=20e6, max_cfo_hz=40e3)
        places = np.array([p.start for p in search(detector, x)])
        hits = sum(np.abs(places - start).min() <= 2 for start in starts)
        # One in the 26 Mbit/s recording begins under the end of a stronger packet; one in the 65 Mbit/s
        # recording has two equally strong paths, and the later one, 4 samples on, wins.
        assert hits >= len(starts) - 1
        annotated += len(starts)
        found += hits
    assert found >= 0.98 * annotated


@pytest.mark.parametrize("name", WIFI)
def test_further_wifi_detections_are_preambles_too(shared_data, name):
    x, starts = wifi(shared_data, name)
    # A field that repeats one of the two symbols with its prefix, 80 of 160 samples, as the high-throughput
    # long training field does, reaches a metric of (80/160)^2.
    detector = PreambleDetector(named_reference("l-ltf"), sample_rate_hz=20e6, max_cfo_hz=40e3, threshold=0.25)
    found = search(detector, x)
    extra = [p.start for p in found if np.abs(starts - p.start).min() > 2]
    false = [start for start in extra if not repeats_after_64_samples(x[0], start)]
    assert len(found) >= 0.9 * len(starts)
    assert len(false) <= 0.02 * len(starts)


def test_both_users_of_the_renew_frame(shared_data):
    recording = sigmf.fromfile(str(shared_data / "mimo/renew_powder/sigmf/rx_mimo_data_08_02.sigmf-meta"))
    x = np.ascontiguousarray(recording.read_samples().T)
    detector = PreambleDetector(
        named_reference("l-ltf"), sample_rate_hz=5e6, n_antennas=8, max_cfo_hz=2e3, independent_antennas=False
    )
    assert [p.start for p in search(detector, x)] == [73, 233]
