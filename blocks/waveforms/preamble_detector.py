"""Finding a known reference sequence in a multi-antenna stream: start, fraction, carrier offset, gains.

Two stages. A cheap one looks at every sample; what passes is evaluated exactly, over all hypotheses of the
carrier offset:

    T[n] = max_f  1/A  sum_a  |sum_k x_a[n+k] conj(r[k]) exp(-j 2 pi f k)|^2 / (|r|^2 sum_k |x_a[n+k]|^2)

T lies in [0, 1]. Normalising each antenna by its own energy keeps one loud or noisy chain from deciding
alone; adding powers asks nothing about the antennas' phases. The hypotheses stand half a turn over the
reference apart (at most 0.9 dB loss between two), see `detection_threshold` for the statistics.

The first stage has two forms:

- References made of equal pieces up to complex factors: one correlator of the length of a piece serves all
  pieces. Its outputs, normalised by the energy under the piece, are multiplied with those one piece earlier
  (which turns the carrier offset into a common phase) and summed over antennas and pieces.
- Other references: T itself for all hypotheses by fast convolution.

Where T passes its threshold, the gains of eight parts of the reference must agree, or differ no more than
noise explains. Else a strong signal that contains a piece of the reference would be taken for it, as the long
training field of 802.11n would for that of 802.11a.

All arithmetic runs on a fixed grid of blocks counted from the last restart, so results are equal bit for bit
however the stream is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.stats
from numba import njit

# Terms may be reordered and fused, but not-a-number and infinity keep their meaning.
# Such functions, and those that hold them and are called by compiled code, are inlined by force: of a callee there
# would be two copies, optimised differently, and which one runs would depend on what came from the cache.
_FAST = {"contract", "reassoc", "nsz", "arcp"}

_HYPOTHESIS_SPACING_TURNS = 0.5
_SEGMENT_TURNS = 1 / 8  # within a segment of the exact stage: a loss of 0.2 dB at the largest offset
_PIECE_TURNS = 0.6  # within a piece of the first stage: a loss of 5.9 dB at the largest offset
_FIRST_STAGE_PASS = 2e-5  # of noise samples, about; each costs some microseconds
_PARTS = 8  # of equal energy, whose gains are compared
_EVEN_SHARE = 0.65  # a match of five of the eight parts reaches 0.625, of six 0.75
_UNEVEN_BY_NOISE = 1e-3  # of preambles so weak that noise alone makes them look uneven, those refused
_DELAYS_PER_SAMPLE = 32  # of the stored references; linear interpolation between them errs by -63 dB at most
_COARSE_DELAYS = 8  # stored delays per step of the coarse search


@dataclass(frozen=True)
class Preamble:
    """One preamble found.

    Its model is x_a[start + k] = gains[a] r(k - fraction) exp(j 2 pi cfo_hz k / sample_rate_hz), with the
    reference r scaled to unit mean power.

    Attributes:
        start: absolute index of the sample closest to the reference's first sample.
        fraction: true start minus `start`, in samples, -0.5 to 0.5.
        cfo_hz: carrier offset; positive where the received signal turns ahead of the reference.
        metric: detection metric in [0, 1] after timing and offset were refined.
        snr_db: power of the matched path over that of everything else, linear mean over the antennas.
        gains: complex64, (n_antennas,), channel gain of the strongest path at `start`.
    """

    start: int
    fraction: float
    cfo_hz: float
    metric: float
    snr_db: float
    gains: np.ndarray


def detection_threshold(n_reference: int, n_antennas: int, n_hypotheses: int, false_alarms_per_sample: float) -> float:
    """Threshold of the metric for a rate of false alarms in white Gaussian noise.

    In white complex Gaussian noise the squared cosine between a fixed vector r and x, both of L samples, is
    Beta(1, L-1): P(> t) = (1-t)^(L-1). Its mean is 1/L, its variance (L-1)/(L^2 (L+1)). The mean over A
    independent antennas has the same mean and that variance over A; the Beta distribution with these two
    moments is exact for A = 1 and close beyond, also far in the tail. H hypotheses of the carrier offset,
    each a fixed vector, together exceed t at most H times as often (union bound). Neighbouring samples are
    not independent and grouped into one detection, which only lowers the rate.

    Signals of others that fill only part of the band, or reach all antennas alike, have fewer degrees of
    freedom, and so cause more false alarms. For the latter, A = 1 gives the threshold whatever the antennas.

    Args:
        n_reference: samples of the reference, L, at least 2.
        n_antennas: A.
        n_hypotheses: H.
        false_alarms_per_sample: asked rate, above 0 and below 1.

    Returns:
        Threshold in (0, 1).
    """
    if n_reference < 2 or n_antennas < 1 or n_hypotheses < 1:
        raise ValueError(
            f"n_reference={n_reference}, n_antennas={n_antennas}, n_hypotheses={n_hypotheses}: "
            "at least 2, 1 and 1 are needed"
        )
    if not 0 < false_alarms_per_sample < 1:
        raise ValueError(f"false_alarms_per_sample={false_alarms_per_sample} must lie between 0 and 1")
    mean = 1 / n_reference
    variance = (n_reference - 1) / (n_reference**2 * (n_reference + 1) * n_antennas)
    total = mean * (1 - mean) / variance - 1
    return float(scipy.stats.beta.isf(false_alarms_per_sample / n_hypotheses, mean * total, (1 - mean) * total))


def equal_pieces(reference: np.ndarray, longest: float = math.inf) -> tuple[int, np.ndarray] | None:
    """Find the longest piece of which a reference consists, each time up to a complex factor.

    Args:
        reference: complex, (L,).
        longest: longest piece allowed, in samples.

    Returns:
        Piece length, at least 16, and the factors, complex128 (at least 4,), first one 1; None where there is
        no such structure.
    """
    n = len(reference)
    for n_pieces in range(4, n // 16 + 1):
        if n % n_pieces or n // n_pieces > longest:
            continue
        pieces = reference.astype(complex).reshape(n_pieces, -1)
        energy = np.sum(np.abs(pieces) ** 2, axis=1)
        if not energy.all():
            continue
        inner = pieces @ pieces[0].conj()
        if np.all(np.abs(inner) ** 2 >= (1 - 1e-6) * energy * energy[0]):
            return n // n_pieces, inner / energy[0]
    return None


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_shifted(a, b, out):
    for i in range(out.shape[0]):
        out[i] = a[i] + b[i]


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _square(x, out):
    for i in range(out.shape[0]):
        out[i] = x[i].real * x[i].real + x[i].imag * x[i].imag


@njit(cache=True, nogil=True, error_model="numpy")
def _moving_sum(values, length, scratch, out):
    """out[i] = values[i] + ... + values[i+length-1], by doubling.

    Every sum is a tree over its own window: no rounding error outlives the samples it came from, as it would
    in a running sum after a loud burst. `values` is overwritten; scratch has its length.
    """
    n = out.shape[0]
    source, target = values, scratch
    span, offset, started = 1, 0, False
    while True:
        if length & span:
            if started:
                _add_shifted(out, source[offset : offset + n], out)
            else:
                out[:] = source[:n]
                started = True
            offset += span
        if 2 * span > length:
            break
        m = values.shape[0] - 2 * span + 1
        _add_shifted(source[:m], source[span : span + m], target[:m])
        source, target = target, source
        span *= 2


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _normalise(c, energy, piece_energy, u_re, u_im):
    for i in range(u_re.shape[0]):
        product = energy[i] * piece_energy
        g = np.float32(1) / np.sqrt(max(product, np.float32(1e-30)))
        g = g if product > np.float32(1e-30) else np.float32(0)
        u_re[i] = c[i].real * g
        u_im[i] = c[i].imag * g


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_lag_products(u_re, u_im, v_re, v_im, p_re, p_im):
    """p += v conj(u)."""
    for i in range(p_re.shape[0]):
        a, b, c, d = u_re[i], u_im[i], v_re[i], v_im[i]
        p_re[i] += c * a + d * b
        p_im[i] += d * a - c * b


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_scaled(g_re, g_im, p_re, p_im, d_re, d_im):
    for i in range(d_re.shape[0]):
        d_re[i] += g_re * p_re[i] - g_im * p_im[i]
        d_im[i] += g_re * p_im[i] + g_im * p_re[i]


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_scaled_real(g, p_re, p_im, d_re, d_im):
    for i in range(d_re.shape[0]):
        d_re[i] += g * p_re[i]
        d_im[i] += g * p_im[i]


@njit(cache=True, error_model="numpy")
def _above(value, level):
    """Indices where value >= level."""
    found = np.empty(value.shape[0], np.int64)
    n = 0
    for i in range(value.shape[0]):
        found[n] = i
        n += value[i] >= level
    return found[:n].copy()


@njit(cache=True, nogil=True, error_model="numpy")
def _differential_metric(x, c, step, piece_energy, weights, n_positions):
    """First stage for equal pieces: |weighted sum over antennas and pieces of u[n+P] conj(u[n])|, in [0, 1].

    Args:
        x: complex64, (antennas, window).
        c: complex64, (antennas, frames, points): correlation with one piece; `step` valid points per frame.
        piece_energy: of the piece.
        weights: complex64, (pieces-1,), undo the factors between neighbouring pieces; sum of magnitudes 1.
        n_positions: starts to evaluate.

    Returns:
        float32, (n_positions,).
    """
    n_antennas, n_window = x.shape
    n_frames = c.shape[1]
    n_c = n_frames * step
    piece = n_window - n_c + 1
    n_products = n_c - piece
    power = np.empty(step + piece - 1, np.float32)
    scratch = np.empty(step + piece - 1, np.float32)
    energy = np.empty(step, np.float32)
    u_re = np.empty(n_c, np.float32)
    u_im = np.empty(n_c, np.float32)
    p_re = np.zeros(n_products, np.float32)
    p_im = np.zeros(n_products, np.float32)
    for a in range(n_antennas):
        for f in range(n_frames):
            k = f * step
            _square(x[a, k : k + step + piece - 1], power)
            _moving_sum(power, piece, scratch, energy)
            _normalise(c[a, f], energy, piece_energy, u_re[k : k + step], u_im[k : k + step])
        _add_lag_products(u_re[:n_products], u_im[:n_products], u_re[piece:], u_im[piece:], p_re, p_im)
    d_re = np.zeros(n_positions, np.float32)
    d_im = np.zeros(n_positions, np.float32)
    for first in range(0, n_positions, 1024):
        last = min(first + 1024, n_positions)
        for s in range(weights.shape[0]):
            k = first + s * piece
            g = weights[s]
            if g.imag == 0:
                _add_scaled_real(g.real, p_re[k:], p_im[k:], d_re[first:last], d_im[first:last])
            else:
                _add_scaled(g.real, g.imag, p_re[k:], p_im[k:], d_re[first:last], d_im[first:last])
    _magnitude(d_re, d_im, np.float32(1 / n_antennas), d_re)
    return d_re


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _magnitude(re, im, scale, out):
    for i in range(out.shape[0]):
        out[i] = np.sqrt(re[i] * re[i] + im[i] * im[i]) * scale


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _inverse(energy, factor, out):
    for i in range(out.shape[0]):
        product = energy[i] * factor
        g = np.float32(1) / max(product, np.float32(1e-30))
        out[i] = g if product > np.float32(1e-30) else np.float32(0)


@njit(cache=True, nogil=True, error_model="numpy")
def _inverse_energies(x, reference_energy, n_positions):
    """1 / (A |r|^2 |x|^2) under the reference at each start, 0 where x is; float32, (antennas, starts)."""
    n_antennas, n_window = x.shape
    power = np.empty(n_window, np.float32)
    scratch = np.empty(n_window, np.float32)
    energy = np.empty(n_positions, np.float32)
    out = np.empty((n_antennas, n_positions), np.float32)
    for a in range(n_antennas):
        _square(x[a], power)
        _moving_sum(power, n_window - n_positions + 1, scratch, energy)
        _inverse(energy, np.float32(n_antennas * reference_energy), out[a])
    return out


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_weighted_power(c, weight, out):
    for i in range(out.shape[0]):
        out[i] += (c[i].real * c[i].real + c[i].imag * c[i].imag) * weight[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _coherent_metric(c, step, inverse_energy):
    """Metric of one hypothesis at every start; float32, (starts,)."""
    out = np.zeros(inverse_energy.shape[1], np.float32)
    for a in range(c.shape[0]):
        for f in range(c.shape[1]):
            k = f * step
            _add_weighted_power(c[a, f, :step], inverse_energy[a, k : k + step], out[k : k + step])
    return out


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _products(x, conj_reference, re, im):
    """x conj(r) in two parts; returns the energy of x."""
    energy = np.float32(0)
    for k in range(re.shape[0]):
        a, b, c, d = x[k].real, x[k].imag, conj_reference[k].real, conj_reference[k].imag
        re[k] = a * c - b * d
        im[k] = a * d + b * c
        energy += a * a + b * b
    return energy


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _segment_sums(x, conj_reference, segment, re, im, sums):
    """sums[m] = sum of x conj(r) over segment m; returns the energy of x. re, im: scratch of L."""
    energy = _products(x, conj_reference, re, im)
    for m in range(sums.shape[0]):
        total_re = np.float32(0)
        total_im = np.float32(0)
        for k in range(m * segment, min((m + 1) * segment, re.shape[0])):
            total_re += re[k]
            total_im += im[k]
        sums[m] = complex(total_re, total_im)
    return energy


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _inner(a_re, a_im, b):
    """Sum of a conj(b)."""
    re = 0.0
    im = 0.0
    for k in range(a_re.shape[0]):
        re += a_re[k] * b[k].real + a_im[k] * b[k].imag
        im += a_im[k] * b[k].real - a_re[k] * b[k].imag
    return complex(re, im)


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def _exact_metric(x, conj_reference, segment, phasors, reference_energy, re, im, sums, metrics):
    """T at one start and the index of its hypothesis; x: complex64, (antennas, L)."""
    metrics[:] = 0.0
    for a in range(x.shape[0]):
        energy = float(_segment_sums(x[a], conj_reference, segment, re, im, sums))
        if energy <= 0.0:
            continue
        for m in range(sums.shape[0]):
            re[m] = sums[m].real
            im[m] = sums[m].imag
        for h in range(phasors.shape[0]):
            total = _inner(re[: sums.shape[0]], im[: sums.shape[0]], phasors[h])
            power = total.real * total.real + total.imag * total.imag
            metrics[h] += power / (energy * reference_energy * x.shape[0])
    best = 0
    for h in range(1, metrics.shape[0]):
        if metrics[h] > metrics[best]:
            best = h
    return metrics[best], best


@njit(cache=True, nogil=True, error_model="numpy")
def _offset_power(sums, weights, segment, turns):
    """Weighted power of all antennas at an offset in turns per sample.

    sums: complex128, (antennas, segments).
    """
    angle = -2 * np.pi * turns * segment
    turn = complex(np.cos(angle), np.sin(angle))
    power = 0.0
    for a in range(sums.shape[0]):
        phasor = complex(1.0, 0.0)
        total = complex(0.0, 0.0)
        for m in range(sums.shape[1]):
            total += sums[a, m] * phasor
            phasor *= turn
        power += weights[a] * (total.real * total.real + total.imag * total.imag)
    return power


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def _find_offset(x, conj_reference, weights, turns, step, half_width):
    """Offset, in turns per sample, of the largest weighted power of the correlations near `turns`.

    A grid of 2 half_width + 1 points `step` apart, then parabolas of shrinking step. `turns` is removed before
    summing over segments, so that within a segment nothing turns that could bias the result.
    """
    n = x.shape[1]
    segment = max(n // 32, 1)
    re = np.empty(n, np.float32)
    im = np.empty(n, np.float32)
    sums = np.empty((x.shape[0], (n + segment - 1) // segment), np.complex128)
    phasors = _phasors(turns, n)
    turned = np.empty(n, np.complex64)
    for k in range(n):
        turned[k] = conj_reference[k] * phasors[k]
    for a in range(x.shape[0]):
        _segment_sums(x[a], turned, segment, re, im, sums[a])
    best, middle = 0.0, -1.0
    for i in range(-half_width, half_width + 1):
        power = _offset_power(sums, weights, segment, i * step)
        if power > middle:
            best, middle = i * step, power
    for _ in range(4):
        low = _offset_power(sums, weights, segment, best - step)
        high = _offset_power(sums, weights, segment, best + step)
        curvature = low - 2 * middle + high
        if curvature < 0:
            best += step * min(max(0.5 * (low - high) / curvature, -1.0), 1.0)
            middle = _offset_power(sums, weights, segment, best)
        step *= 0.25
    return turns + best


@njit(cache=True, nogil=True, error_model="numpy")
def _phasors(turns, n):
    """exp(-j 2 pi turns k), complex128, (n,)."""
    angle = -2 * np.pi * turns
    turn = complex(np.cos(angle), np.sin(angle))
    out = np.empty(n, np.complex128)
    out[0] = 1.0
    for k in range(1, n):
        out[k] = out[k - 1] * turn
    return out


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def _evenness(x, reference, edges, part_energies, turns):
    """Compare the gain of the whole reference with separate gains of its parts, which have equal energy.

    Returns:
        The share of the power explained by separate gains that one common gain explains, 1 for a perfect
        match and about the matched share of the reference for a partial one; and the F statistic of the
        difference against the rest of the signal, about 1 if only noise makes the gains differ.
    """
    n_antennas, n = x.shape
    n_parts = edges.shape[0] - 1
    phasors = _phasors(turns, n)
    re = np.empty(n)
    im = np.empty(n)
    common_total = 0.0
    separate_total = 0.0
    ratio = 0.0
    n_live = 0
    for a in range(n_antennas):
        energy = 0.0
        for k in range(n):
            level = x[a, k] * phasors[k]
            re[k] = level.real
            im[k] = level.imag
            energy += level.real * level.real + level.imag * level.imag
        if energy <= 0.0:
            continue
        n_live += 1
        total = complex(0.0, 0.0)
        total_energy = 0.0
        separate = 0.0
        for p in range(n_parts):
            first, last = edges[p], edges[p + 1]
            inner = _inner(re[first:last], im[first:last], reference[first:last])
            separate += (inner.real * inner.real + inner.imag * inner.imag) / part_energies[p]
            total += inner
            total_energy += part_energies[p]
        common = (total.real * total.real + total.imag * total.imag) / total_energy
        common_total += common / energy
        separate_total += separate / energy
        rest = max(energy - separate, 1e-12 * energy)
        ratio += ((separate - common) / (n_parts - 1)) / (rest / (n - n_parts))
    return common_total / separate_total, ratio / n_live


@njit(cache=True, nogil=True, error_model="numpy")
def _confirm(
    x,
    starts,
    first_metric,
    reference,
    segment,
    phasors,
    turns,
    reference_energy,
    threshold,
    edges,
    part_energies,
    unevenness_limit,
    distance,
):
    """Evaluate T at the starts that passed the first stage, strongest first, and refuse partial matches.

    A start whose first-stage metric is below half that of a confirmed one closer than `distance` is its
    sidelobe and skipped.

    Returns:
        Of the confirmed starts, in order of start: start, T, hypothesis.
    """
    n = reference.shape[0]
    conj_reference = np.conj(reference)
    weights = np.empty(x.shape[0])
    order = np.argsort(-first_metric, kind="mergesort")
    re = np.empty(n, np.float32)
    im = np.empty(n, np.float32)
    sums = np.empty(phasors.shape[1], np.complex128)
    metrics = np.empty(phasors.shape[0])
    kept = np.empty(starts.shape[0], np.int64)
    kept_metric = np.empty(starts.shape[0])
    kept_hypothesis = np.empty(starts.shape[0], np.int64)
    n_kept = 0
    for i in order:
        covered = False
        for j in range(n_kept):
            near = abs(starts[kept[j]] - starts[i]) < distance
            if near and first_metric[i] < 0.5 * first_metric[kept[j]]:
                covered = True
                break
        if covered:
            continue
        part = x[:, starts[i] : starts[i] + n]
        value, hypothesis = _exact_metric(
            part, conj_reference, segment, phasors, reference_energy, re, im, sums, metrics
        )
        if value < threshold:
            continue
        for a in range(x.shape[0]):
            energy = np.float64(_products(part[a], conj_reference, re, im))
            weights[a] = 1.0 / energy if energy > 0.0 else 0.0
        best = _find_offset(part, conj_reference, weights, turns[hypothesis], 0.125 / n, 2)
        share, unevenness = _evenness(part, reference, edges, part_energies, best)
        if share >= _EVEN_SHARE or unevenness <= unevenness_limit:
            kept[n_kept] = i
            kept_metric[n_kept] = value
            kept_hypothesis[n_kept] = hypothesis
            n_kept += 1
    by_start = np.argsort(starts[kept[:n_kept]])
    return starts[kept[:n_kept]][by_start], kept_metric[:n_kept][by_start], kept_hypothesis[:n_kept][by_start]


@njit(cache=True, nogil=True, error_model="numpy")
def _suppress(i, starts, metrics, distance, sidelobe, state, weaker_only, rank):
    """Mark what the accepted candidate i suppresses among the undecided."""
    reach = (sidelobe.shape[0] - 1) // 2
    for direction in (-1, 1):
        j = i + direction
        while 0 <= j < starts.shape[0] and abs(starts[j] - starts[i]) < reach:
            d = starts[j] - starts[i]
            near = abs(d) < distance and (rank[j] > rank[i] or not weaker_only)
            if state[j] == 0 and (near or metrics[j] <= sidelobe[d + reach] * metrics[i]):
                state[j] = -1
            j += direction


@njit(cache=True, error_model="numpy")
def _pick(starts, metrics, known_until, distance, sidelobe):
    """Decide which candidates are preambles: 1 accepted, -1 suppressed, 0 still open.

    The strongest candidate is accepted and suppresses its neighbours, then the strongest of the rest, and so
    on. That order is global, so a candidate is decided when all within its reach is known and nothing
    stronger there is open, and at the latest, from what is known then, when all within twice the reach is.

    Args:
        starts, metrics: candidates in order of start.
        known_until: candidates before this start are complete.
        distance: a candidate suppresses all weaker ones closer than this.
        sidelobe: float64, (2 reach + 1,), at d + reach: the share of an accepted candidate's metric up to
            which candidates at distance d are its sidelobes.
    """
    n = starts.shape[0]
    reach = (sidelobe.shape[0] - 1) // 2
    state = np.zeros(n, np.int64)
    order = np.argsort(-metrics, kind="mergesort")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    for i in order:
        if state[i] != 0 or starts[i] + reach > known_until:
            continue
        settled = True
        for direction in (-1, 1):
            j = i + direction
            while 0 <= j < n and abs(starts[j] - starts[i]) < reach:
                settled = settled and not (state[j] == 0 and rank[j] < rank[i])
                j += direction
        if settled:
            state[i] = 1
            _suppress(i, starts, metrics, distance, sidelobe, state, True, rank)
    guess = state.copy()
    for i in order:
        if guess[i] == 0:
            guess[i] = 1
            _suppress(i, starts, metrics, distance, sidelobe, guess, True, rank)
    for i in range(n):
        if state[i] == 0 and starts[i] + 2 * reach <= known_until:
            state[i] = guess[i]
            if guess[i] == 1:
                _suppress(i, starts, metrics, distance, sidelobe, state, False, rank)
    return state


@njit(cache=True, nogil=True, forceinline=True, error_model="numpy")
def _weighted_power(level_re, level_im, reference, weights):
    """Sum over antennas of the weighted power of the correlation, over the energy of the reference."""
    power = 0.0
    for a in range(level_re.shape[0]):
        c = _inner(level_re[a], level_im[a], reference)
        power += weights[a] * (c.real * c.real + c.imag * c.imag)
    return power / _energy(reference)


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _energy(x):
    total = 0.0
    for k in range(x.shape[0]):
        total += x[k].real * x[k].real + x[k].imag * x[k].imag
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _estimate(x, bank, turns):
    """Maximum-likelihood offset, timing and gains of one path, near a start and an offset.

    Largest is the sum over antennas of the power of the correlation, each over its antenna's energy. The offset
    is found first at the start itself, and again with the reference delayed by the fraction found.

    Args:
        x: complex64, (antennas, L).
        bank: complex64, (_DELAYS_PER_SAMPLE + 1, L): references delayed by -1/2 to 1/2 sample.
        turns: offset in turns per sample to start from.

    Returns:
        Fraction in samples, turns per sample, metric, linear SNR, complex64 gains (antennas,).
    """
    n_antennas, n = x.shape
    energies = np.empty(n_antennas)
    weights = np.zeros(n_antennas)
    for a in range(n_antennas):
        energies[a] = _energy(x[a])
        if energies[a] > 0.0:
            weights[a] = 1.0 / energies[a]
    middle = bank.shape[0] // 2
    turns = _find_offset(x, np.conj(bank[middle]), weights, turns, 0.125 / n, 2)

    level_re = np.empty((n_antennas, n))
    level_im = np.empty((n_antennas, n))
    _derotate(x, turns, level_re, level_im)
    n_coarse = (bank.shape[0] - 1) // _COARSE_DELAYS + 1
    powers = np.empty(n_coarse)
    for i in range(n_coarse):
        powers[i] = _weighted_power(level_re, level_im, bank[i * _COARSE_DELAYS], weights)
    best = min(max(np.argmax(powers), 1), n_coarse - 2)
    low, high = powers[best - 1], powers[best + 1]
    curvature = low - 2 * powers[best] + high
    place = float(best)
    if curvature < 0.0:
        place += min(max(0.5 * (low - high) / curvature, -1.0), 1.0)
    place = min(max(place * _COARSE_DELAYS, 0.0), bank.shape[0] - 1.0)

    before = min(int(place), bank.shape[0] - 2)
    rest = np.float32(place - before)
    delayed = (np.float32(1) - rest) * bank[before] + rest * bank[before + 1]
    turns = _find_offset(x, np.conj(delayed), weights, turns, 0.0625 / n, 0)
    _derotate(x, turns, level_re, level_im)
    reference_energy = _energy(delayed)
    gains = np.empty(n_antennas, np.complex64)
    metric = 0.0
    snr = 0.0
    n_live = 0
    for a in range(n_antennas):
        c = _inner(level_re[a], level_im[a], delayed)
        gains[a] = c / reference_energy
        if energies[a] > 0.0:
            matched = (c.real * c.real + c.imag * c.imag) / reference_energy
            noise = max((energies[a] - matched) / (n - 1), 1e-12 * energies[a] / n)
            snr += max((matched - noise) / (n * noise), 1e-6)
            metric += matched / energies[a] / n_antennas
            n_live += 1
    return place / (bank.shape[0] - 1) - 0.5, turns, min(metric, 1.0), snr / max(n_live, 1), gains


@njit(cache=True, nogil=True, error_model="numpy")
def _derotate(x, turns, level_re, level_im):
    """Remove an offset; the result in two parts, (antennas, L)."""
    phasors = _phasors(turns, x.shape[1])
    for a in range(x.shape[0]):
        for k in range(x.shape[1]):
            level = x[a, k] * phasors[k]
            level_re[a, k] = level.real
            level_im[a, k] = level.imag


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _is_finite(parts):
    """Whether all of float32 (n,) are finite: zero times anything else is not a number."""
    total = np.float32(0)
    for k in range(parts.shape[0]):
        total += parts[k] * np.float32(0)
    return total == 0


def refuse_non_finite(x: np.ndarray, first_index: int) -> None:
    """Raise a ValueError that names the first sample that is not finite; x is complex64, (antennas, n)."""
    if all(_is_finite(np.ascontiguousarray(row).view(np.float32)) for row in x):
        return
    antenna, column = np.argwhere(~np.isfinite(x))[0]
    raise ValueError(
        f"x is {x[antenna, column]} on antenna {antenna} at sample {first_index + column}; "
        "the stream must be finite: repair or cut it, and restart behind the cut"
    )


def _sidelobes(reference: np.ndarray, distance: int) -> np.ndarray:
    """Share of a preamble's metric that it causes itself, by distance, silence around it and any offset.

    Returns:
        float64, (2 reach + 1,), reach = max(L, distance), with half as much again, and the largest of some
        neighbouring distances, for multipath and noise; 0 where nothing of the preamble lies in the window.
    """
    n = len(reference)
    reach = max(n, distance)
    share = np.zeros(2 * reach + 1)
    if distance >= n:
        return share
    total = np.sum(np.abs(reference) ** 2)
    for d in range(1 - n, n):
        inside = reference[max(d, 0) : n + min(d, 0)]
        product = inside * reference[max(-d, 0) : n - max(d, 0)].conj()
        energy = np.sum(np.abs(inside) ** 2)
        if energy > 0:
            peak = np.max(np.abs(scipy.fft.fft(product, 2 * n)) ** 2)
            share[d + reach] = min(peak / (total * energy), 1.0)
    width = 1 + n // 32
    spread = np.lib.stride_tricks.sliding_window_view(np.pad(share, width), 2 * width + 1).max(axis=-1)
    return np.minimum(1.5 * spread, 1.0)


def _delayed_references(reference: np.ndarray) -> np.ndarray:
    """The band-limited reference, delayed by -1/2 to 1/2 sample; complex64, (_DELAYS_PER_SAMPLE + 1, L)."""
    padding = 64
    spectrum = scipy.fft.fft(np.pad(reference.astype(complex), padding))
    delays = np.arange(_DELAYS_PER_SAMPLE + 1) / _DELAYS_PER_SAMPLE - 0.5
    phase = -2j * np.pi * np.outer(delays, scipy.fft.fftfreq(len(spectrum)))
    delayed = scipy.fft.ifft(spectrum * np.exp(phase), axis=-1)
    return delayed[:, padding : padding + len(reference)].astype(np.complex64)


class _DifferentialStage:
    """First stage for a reference of equal pieces; see the module's description."""

    def __init__(
        self, piece: np.ndarray, factors: np.ndarray, n_antennas: int, n_reference: int, block_samples: int
    ) -> None:
        relations = factors[1:].conj() * factors[:-1]
        self.weights = (relations / np.abs(relations).sum()).astype(np.complex64)
        self.piece_energy = np.float32(np.sum(np.abs(piece) ** 2))
        self.convolver = _Convolver(piece[None], n_reference, block_samples)
        # Products of normalised correlations have variance P^-2 in noise, and hardly correlate.
        scale = math.sqrt(float(np.sum(np.abs(self.weights) ** 2)) / n_antennas) / len(piece)
        self.gate = scale * math.sqrt(-math.log(_FIRST_STAGE_PASS))

    def metric(self, window: np.ndarray) -> np.ndarray:
        """First-stage metric at each start; float32, (n_starts,)."""
        c = self.convolver.correlate(self.convolver.spectra(window), 0)
        return _differential_metric(
            window, c, self.convolver.step, self.piece_energy, self.weights, self.convolver.n_starts
        )


class _CoherentStage:
    """First stage for any reference: the metric itself, by fast convolution."""

    def __init__(self, references: np.ndarray, threshold: float, block_samples: int) -> None:
        self.energy = float(np.sum(np.abs(references[0]) ** 2))
        self.convolver = _Convolver(references, references.shape[1], block_samples)
        self.gate = 0.98 * threshold

    def metric(self, window: np.ndarray) -> np.ndarray:
        """First-stage metric at each start; float32, (n_starts,)."""
        inverse_energy = _inverse_energies(window, self.energy, self.convolver.n_starts)
        spectra = self.convolver.spectra(window)
        best = np.zeros(self.convolver.n_starts, np.float32)
        for h in range(len(self.convolver.taps)):
            c = self.convolver.correlate(spectra, h)
            np.maximum(best, _coherent_metric(c, self.convolver.step, inverse_energy), out=best)
        return best


class _Convolver:
    """Correlation with fixed sequences of K samples by overlap-save on windows of a fixed length.

    The window is cut into frames of `n_fft` points, `step` apart. Its length is that of all frames together,
    and leaves `n_starts` places for the whole reference of L samples.
    """

    def __init__(self, sequences: np.ndarray, n_reference: int, block_samples: int) -> None:
        length = sequences.shape[1]
        whole = block_samples + n_reference - 1
        efficient = max(1024, 1 << math.ceil(math.log2(4 * length)))
        # A block that one short transform holds takes no longer one.
        self.n_fft = scipy.fft.next_fast_len(whole) if whole <= 1024 else efficient
        self.step = self.n_fft - length + 1
        self.n_frames = max(1, math.ceil((block_samples + n_reference - length) / self.step))
        self.n_window = self.n_frames * self.step + length - 1
        self.n_starts = self.n_window - n_reference + 1
        self.taps = scipy.fft.fft(sequences.astype(np.complex64), self.n_fft, axis=-1).conj()
        self._frames = self._products = np.empty((0, 0, 0), np.complex64)

    def spectra(self, window: np.ndarray) -> np.ndarray:
        """Spectra of the frames; complex64, (antennas, frames, n_fft), valid until the next call."""
        if self.n_frames == 1:
            frames = window[:, None]
        else:
            frames = np.lib.stride_tricks.sliding_window_view(window, self.n_fft, axis=-1)[:, :: self.step]
        if self._frames.shape != frames.shape:
            self._frames = np.empty(frames.shape, np.complex64)
            self._products = np.empty(frames.shape, np.complex64)
        self._frames[:] = frames
        self._frames = scipy.fft.fft(self._frames, axis=-1, overwrite_x=True)
        return self._frames

    def correlate(self, spectra: np.ndarray, sequence: int) -> np.ndarray:
        """Correlation of the frames with one sequence, the first `step` points valid; as spectra."""
        np.multiply(spectra, self.taps[sequence], out=self._products)
        self._products = scipy.fft.ifft(self._products, axis=-1, overwrite_x=True)
        return self._products


class PreambleDetector:
    """Finds a reference sequence in a stream of one or many antennas.

    In multipath it locks to the strongest path. Preambles closer together than `min_distance_samples` are
    taken for one, the strongest. Matches of no more than five eighths of the reference are refused unless
    noise explains the missing part. The results, and their order, which is that of their starts, do not
    depend on the lengths of the pieces given to `process`.

    Args:
        reference: complex, (L,), at least 16 samples, any scale.
        sample_rate_hz: of stream and reference.
        n_antennas: rows of the stream.
        max_cfo_hz: largest carrier offset to expect, either sign. It costs about
            4 max_cfo_hz L / sample_rate_hz hypotheses, which is little if the reference consists of four or
            more equal pieces, and a convolution each otherwise.
        false_alarms_per_sample: asked rate in white noise, see `detection_threshold`.
        independent_antennas: noise is independent between antennas. False: the rate holds for signals that
            reach all antennas alike, such as data of others; the threshold is higher.
        threshold: of the metric, 0 to 1, instead of the one that follows from false_alarms_per_sample.
        min_distance_samples: at least 1; default L. Below L, sidelobes of the reference are told apart by the
            strength that the reference's own ambiguity function gives them, so much weaker preambles that
            overlap a strong one are missed.
        block_samples: about the length of the grid's blocks. Longer is faster and later.

    Attributes:
        threshold: of the metric.
        hypotheses_hz: float64, (H,), carrier offsets tried.
        latency_samples: after sample e-1 was processed, all preambles with start <= e - latency_samples have
            been returned.
        look_samples: longest stretch that `look` takes.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        reference: np.ndarray,
        *,
        sample_rate_hz: float,
        n_antennas: int = 1,
        max_cfo_hz: float = 0.0,
        false_alarms_per_sample: float = 1e-9,
        independent_antennas: bool = True,
        threshold: float | None = None,
        min_distance_samples: int | None = None,
        block_samples: int = 8192,
    ) -> None:
        reference = np.asarray(reference)
        if reference.ndim != 1 or len(reference) < 16:
            raise ValueError(f"reference has shape {reference.shape}; one axis of at least 16 samples is needed")
        if not np.all(np.isfinite(reference)) or not np.any(reference):
            raise ValueError("reference must be finite and not zero throughout")
        if not sample_rate_hz > 0 or n_antennas < 1 or block_samples < 1:
            raise ValueError(
                f"sample_rate_hz={sample_rate_hz}, n_antennas={n_antennas}, block_samples={block_samples} "
                "must be positive"
            )
        if not 0 <= max_cfo_hz <= sample_rate_hz / 2:
            raise ValueError(f"max_cfo_hz={max_cfo_hz} must lie in 0 to sample_rate_hz/2 = {sample_rate_hz / 2}")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold} must lie between 0 and 1")
        length = len(reference)
        distance = length if min_distance_samples is None else int(min_distance_samples)
        if distance < 1:
            raise ValueError(f"min_distance_samples={min_distance_samples} must be at least 1")

        self.reference = (reference / np.sqrt(np.mean(np.abs(reference) ** 2))).astype(np.complex64)
        self.sample_rate_hz = float(sample_rate_hz)
        self.n_antennas = n_antennas
        self.min_distance_samples = distance
        max_turns = max_cfo_hz * length / sample_rate_hz
        n_hypotheses = max(1, math.ceil(2 * max_turns / _HYPOTHESIS_SPACING_TURNS))
        spacing = 2 * max_turns / n_hypotheses
        turns = (np.arange(n_hypotheses) - (n_hypotheses - 1) / 2) * spacing
        self.hypotheses_hz = turns * sample_rate_hz / length
        self.threshold = (
            float(threshold)
            if threshold is not None
            else detection_threshold(
                length, n_antennas if independent_antennas else 1, n_hypotheses, false_alarms_per_sample
            )
        )

        self._turns = self.hypotheses_hz / self.sample_rate_hz
        self._energy = float(np.sum(np.abs(self.reference) ** 2))
        largest = (max_turns + 1) / length
        self._segment = max(1, int(_SEGMENT_TURNS / largest))
        n_segments = math.ceil(length / self._segment)
        self._phasors = np.exp(2j * np.pi * np.outer(turns / length, np.arange(n_segments) * self._segment))
        cumulative = np.cumsum(np.abs(self.reference.astype(complex)) ** 2)
        inner_edges = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, _PARTS) / _PARTS)
        self._edges = np.unique(np.concatenate([[0], inner_edges, [length]]))
        self._part_energies = np.add.reduceat(np.abs(self.reference.astype(complex)) ** 2, self._edges[:-1])
        n_parts = len(self._part_energies)
        self._unevenness_limit = float(
            scipy.stats.f.isf(_UNEVEN_BY_NOISE, 2 * n_antennas * (n_parts - 1), 2 * n_antennas * (length - n_parts))
        )
        self._bank = _delayed_references(self.reference)
        self._sidelobes = _sidelobes(self.reference, distance)
        self._stage = self._first_stage(turns, max_turns, block_samples)

        n_window, n_starts = self._stage.convolver.n_window, self._stage.convolver.n_starts
        reach = (len(self._sidelobes) - 1) // 2
        self.latency_samples = 2 * reach + n_starts + length - 2
        self.look_samples = n_starts + length - 1
        self._lens = np.empty((n_antennas, n_window), np.complex64)
        self._buffer = np.empty((n_antennas, n_window + n_starts + 4 * reach), np.complex64)
        self.restart(0)

    def process(self, x: np.ndarray) -> list[Preamble]:
        """Take the next samples of the stream.

        Args:
            x: complex64, (n_antennas, n), any n.

        Returns:
            The preambles decided since the last call, in order of start.

        Raises:
            ValueError: wrong shape, or a value that is not finite; nothing of x was taken then.
        """
        x = np.asarray(x, np.complex64)
        if x.ndim != 2 or x.shape[0] != self.n_antennas:
            raise ValueError(f"x has shape {x.shape}; needed: ({self.n_antennas}, any number of samples)")
        refuse_non_finite(x, self._end)
        window = self._stage.convolver.n_window
        taken = 0
        while taken < x.shape[1]:
            n = min(x.shape[1] - taken, self._next + window - self._end)
            self._append(x[:, taken : taken + n])
            taken += n
            if self._end == self._next + window:
                self._search(self._view(self._next, window), self._stage.convolver.n_starts)
                self._next += self._stage.convolver.n_starts
                self._decide(self._next)
        return self._released()

    def flush(self) -> list[Preamble]:
        """Decide on everything up to the last sample processed, as the stream ends or samples are missing.

        Preambles that are not complete are not found. The detector then stands as after
        `restart(index of the next sample)`.

        Returns:
            The remaining preambles, in order of start.
        """
        n_starts = self._end - self._next - len(self.reference) + 1
        if n_starts > 0:
            window = np.zeros((self.n_antennas, self._stage.convolver.n_window), np.complex64)
            window[:, : self._end - self._next] = self._view(self._next, self._end - self._next)
            self._search(window, n_starts)
        self._decide(np.iinfo(np.int64).max)
        found = self._released()
        self.restart(self._end)
        return found

    def look(self, x: np.ndarray) -> list[Preamble]:
        """Search a short stretch for itself, beside the stream: as restart(0), process(x) and flush() would.

        Args:
            x: complex64, (n_antennas, n), finite, n at most `look_samples`.

        Returns:
            The preambles that lie in it whole, in order of start, which counts from the first sample of x.
        """
        n_starts = x.shape[1] - len(self.reference) + 1
        if n_starts < 1:
            return []
        self._lens[:, : x.shape[1]] = x
        self._lens[:, x.shape[1] :] = 0
        starts, metrics, chosen = self._candidates(self._lens, n_starts)
        if not len(starts):
            return []
        state = _pick(starts, metrics, np.iinfo(np.int64).max, self.min_distance_samples, self._sidelobes)
        return [
            self._describe(self._lens[:, starts[i] : starts[i] + len(self.reference)], int(starts[i]), int(chosen[i]))
            for i in np.flatnonzero(state == 1)
        ]

    def restart(self, sample_index: int) -> None:
        """Forget all samples and undecided candidates; the next sample has this absolute index."""
        self._next = self._end = self._buffer_start = int(sample_index)
        self._starts = np.empty(0, np.int64)
        self._metrics = np.empty(0)
        self._chosen = np.empty(0, np.int64)
        self._ready: list[Preamble] = []

    def _first_stage(
        self, turns: np.ndarray, max_turns: float, block_samples: int
    ) -> _DifferentialStage | _CoherentStage:
        length = len(self.reference)
        longest = _PIECE_TURNS * length / max_turns if max_turns > 0 else math.inf
        pieces = equal_pieces(self.reference, longest) if len(turns) > 1 else None
        if pieces is not None:
            piece, factors = pieces
            return _DifferentialStage(self.reference[:piece], factors, self.n_antennas, length, block_samples)
        carriers = np.exp(2j * np.pi * np.outer(turns / length, np.arange(length)))
        return _CoherentStage(self.reference * carriers, self.threshold, block_samples)

    def _append(self, x: np.ndarray) -> None:
        n = x.shape[1]
        filled = self._end - self._buffer_start
        if filled + n > self._buffer.shape[1]:
            keep_from = min(self._next, int(self._starts[0]) if len(self._starts) else self._next)
            kept = self._buffer[:, keep_from - self._buffer_start : filled]
            if kept.shape[1] + n > self._buffer.shape[1]:
                larger = np.empty((self.n_antennas, 2 * (kept.shape[1] + n)), np.complex64)
                larger[:, : kept.shape[1]] = kept
                self._buffer = larger
            else:
                self._buffer[:, : kept.shape[1]] = kept.copy()
            self._buffer_start = keep_from
            filled = kept.shape[1]
        self._buffer[:, filled : filled + n] = x
        self._end += n

    def _view(self, start: int, n: int) -> np.ndarray:
        return self._buffer[:, start - self._buffer_start : start - self._buffer_start + n]

    def _search(self, window: np.ndarray, n_starts: int) -> None:
        """Add the candidates among the first n_starts starts of a window that begins at the next start."""
        starts, metrics, chosen = self._candidates(window, n_starts)
        if len(starts):
            self._starts = np.concatenate([self._starts, starts + self._next])
            self._metrics = np.concatenate([self._metrics, metrics])
            self._chosen = np.concatenate([self._chosen, chosen])

    def _candidates(self, window: np.ndarray, n_starts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start, metric and hypothesis of the candidates among the first n_starts starts of a window."""
        first = self._stage.metric(window)
        passed = _above(first[:n_starts], np.float32(self._stage.gate))
        if not len(passed):
            return passed, np.empty(0), passed
        found: tuple[np.ndarray, np.ndarray, np.ndarray] = _confirm(
            window,
            passed,
            first[passed],
            self.reference,
            self._segment,
            self._phasors,
            self._turns,
            self._energy,
            self.threshold,
            self._edges,
            self._part_energies,
            self._unevenness_limit,
            self.min_distance_samples,
        )
        return found

    def _decide(self, known_until: int) -> None:
        if not len(self._starts):
            return
        state = _pick(self._starts, self._metrics, known_until, self.min_distance_samples, self._sidelobes)
        for i in np.flatnonzero(state == 1):
            start = int(self._starts[i])
            samples = self._view(start, len(self.reference))
            self._ready.append(self._describe(samples, start, int(self._chosen[i])))
        still_open = state == 0
        self._starts = self._starts[still_open]
        self._metrics = self._metrics[still_open]
        self._chosen = self._chosen[still_open]

    def _released(self) -> list[Preamble]:
        """Accepted preambles before the first one still open."""
        limit = int(self._starts[0]) if len(self._starts) else None
        self._ready.sort(key=lambda preamble: preamble.start)
        released = [p for p in self._ready if limit is None or p.start < limit]
        self._ready = self._ready[len(released) :]
        return released

    def _describe(self, samples: np.ndarray, start: int, hypothesis: int) -> Preamble:
        turns = self._turns[hypothesis]
        fraction, turns, metric, snr, gains = _estimate(np.ascontiguousarray(samples), self._bank, turns)
        return Preamble(start, fraction, turns * self.sample_rate_hz, metric, 10 * math.log10(snr), gains)
