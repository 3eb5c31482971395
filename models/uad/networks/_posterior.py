"""Compiled statistics of the posterior around its best set of active users, slot by slot.

The likelihood of a set is that of i.i.d. Rayleigh snapshots, f = M (log|Sigma| + tr(Sigma^-1 C)) plus the prior's
log-odds for every active user, Sigma = sum_n p_n s_n s_n^H + z I. A few sweeps of coordinate descent propose a set;
flips of one user and of pairs of users improve it until none helps; gain and noise are then fitted to it. What a
network is given are the costs of those last flips, which say how far each alternative is from the best set.

Matrices are packed as in `detectors._packed`, in units of the noise power.
"""

from __future__ import annotations

import numpy as np

from ..detectors import _packed
from ..detectors._packed import compiled
from ..detectors.covariance import _sweep, _sweep_support

N_TOKEN = 15
"""Features of one candidate user."""
N_EDGE = 5
"""Features of a pair of candidates."""
N_GLOBAL = 13
"""Features of the slot."""
N_BEAM_TOKEN = 5
"""Features of one candidate user that come from a planar array's beams."""
N_BEAM_EDGE = 1
"""Features of a pair that come from the beams."""

_FAR = 60.0
_NOMINAL_SNR = 10.0
_START_THRESHOLD = 0.42
_NOISE_PRIOR = 0.5
_MAX_MOVES = 24
_BEAM_STEPS = 20
# Elevation beams that hold less than this share of the strongest one's power are left out.
_BEAM_SHARE = 0.05
# At 64 snapshots; see `_relax`.
_SWEEPS = 3
_SUPPORT_SWEEPS = 2
_TOLERANCE = 0.5
_STRONGEST = 48
_ROOT_2 = 2.0**0.5
_LOG_2 = float(np.log(2.0))
# Rows of pairs are worked out to multiples of this, so that vectors fill them.
_CHUNK = 16


@compiled
def _log_all(x, bits, exponents, n):
    """Replace x_t by log x_t for t < n and x_t in 2^-1000 to 2^1000, to about 1e-12, with vectors.

    bits: x as int64; exponents: float64 work of as many elements.
    """
    whole = exponents.view(np.int64)
    for t in range(n):
        # The bits of 2^52 + exponent, from which the exponent comes as a double without a conversion.
        whole[t] = (bits[t] >> 52) | 0x4330000000000000
        bits[t] = (bits[t] & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000
    for t in range(n):
        mantissa = x[t]
        large = mantissa > _ROOT_2
        exponent = exponents[t] - (4503599627370496.0 + 1023.0) + (1.0 if large else 0.0)
        mantissa *= 0.5 if large else 1.0
        s = (mantissa - 1.0) / (mantissa + 1.0)
        z = s * s
        series = 1.0 / 15.0
        series = series * z + 1.0 / 13.0
        series = series * z + 1.0 / 11.0
        series = series * z + 1.0 / 9.0
        series = series * z + 1.0 / 7.0
        series = series * z + 1.0 / 5.0
        series = series * z + 1.0 / 3.0
        series = series * z + 1.0
        x[t] = exponent * _LOG_2 + 2.0 * s * series


@compiled
def _exp(x):
    """exp(x) for x in -60 to 60 to about 1e-10, in a form that compilers turn into vectors: Taylor for x / 256."""
    y = x * (1.0 / 256.0)
    p = 1.0 / 40320.0
    p = p * y + 1.0 / 5040.0
    p = p * y + 1.0 / 720.0
    p = p * y + 1.0 / 120.0
    p = p * y + 1.0 / 24.0
    p = p * y + 1.0 / 6.0
    p = p * y + 0.5
    p = p * y + 1.0
    p = p * y + 1.0
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@compiled
def _cost(v, u):
    """Change of log|Sigma| + tr(Sigma^-1 C) by +-p s s^H; v, u carry the signed power."""
    kept = max(1.0 + v, 1e-15)
    return np.log(kept) - u / kept


@compiled
def _power_if_active(v, u, gain, trust):
    """Power of a silent user were it active: the gain, moved by `trust` towards the user's own estimate."""
    if trust == 0.0:
        return gain
    own = (u - v) / (v * v * gain)
    return gain * min(max(1.0 + trust * (own - 1.0), 0.1), 10.0)


@compiled
def _invert(noise, users, n_users, powers, s, inverse, b):
    """Write Q = Sigma^-1 for the first `n_users` of `users`."""
    side = inverse.shape[0]
    for i in range(side):
        for j in range(side):
            inverse[i, j] = 0.0
        inverse[i, i] = 1.0 / noise
    for k in range(n_users):
        n = users[k]
        if powers[n] > 0.0:
            _packed.product(inverse, s[n], b)
            _packed.subtract_outer(inverse, b, powers[n] / (1.0 + powers[n] * _packed.inner(s[n], b)))


@compiled
def _rebuild(noise, users, n_users, powers, s, packed_covariance, inverse, weighted, b, c):
    """Write Q = Sigma^-1 and P = Q C Q for the first `n_users` of `users`."""
    _invert(noise, users, n_users, powers, s, inverse, b)
    _packed.sandwich(inverse, packed_covariance, weighted, b, c)


@compiled
def _complex_rows(packed, first, out):
    """Write A as real matrix [[Re, -Im], [Im, Re]] into the rows of `out` from `first` on."""
    side = packed.shape[0]
    for i in range(side):
        for j in range(side):
            re = 0.5 * (packed[i, j] + packed[j, i])
            im = 0.5 * (packed[i, j] - packed[j, i])
            out[first + i, j] = re
            out[first + i, side + j] = -im
            out[first + side + i, j] = im
            out[first + side + i, side + j] = re


@compiled
def _relax(packed_covariance, s, forms, gamma, n_snapshots, q_matrix, p_matrix, b, c, support):
    """Coordinate descent on all users' powers, strongest matched filter first.

    Sweeps after the first leave out those who have no power and at the start would get none. It stops early: what
    follows mends the rest. Returns the number of users with power, written to `support`.
    """
    flat = packed_covariance.reshape(-1)
    flat_q = q_matrix.reshape(-1)
    flat_p = p_matrix.reshape(-1)
    n_users = gamma.size
    for n in range(n_users):
        gamma[n] = -_packed.form(forms[n], flat)
    # The more snapshots, the deeper are the valleys that flips of one or two users would have to leave.
    effort = np.sqrt(max(n_snapshots, 64) / 64.0)
    tolerance = _TOLERANCE / effort
    # The first sweep is for the strongest alone; only among them the order matters.
    n_strongest = min(_STRONGEST, n_users)
    limit = np.partition(gamma, n_strongest - 1)[n_strongest - 1]
    order = np.empty(n_users, np.int64)
    below, above = 0, n_users
    for n in range(n_users):
        if gamma[n] <= limit and below < n_strongest:
            order[below] = n
            below += 1
        else:
            above -= 1
            order[above] = n
    order[:below] = order[:below][np.argsort(gamma[order[:below]])]
    gamma[:] = 0.0
    size = 0
    for sweep in range(int(_SWEEPS * effort)):
        _rebuild(1.0, support, size, gamma, s, packed_covariance, q_matrix, p_matrix, b, c)
        if sweep == 0:
            moved = _sweep(order[:below], s, forms, q_matrix, p_matrix, gamma, b, c)
        else:
            size = 0
            for n in order:
                if gamma[n] > 0.0 or _packed.form(forms[n], flat_p) > _packed.form(forms[n], flat_q):
                    support[size] = n
                    size += 1
            moved = _sweep_support(support[:size], s, packed_covariance, q_matrix, gamma, b)
        size = 0
        largest = 1.0
        for n in order:
            if gamma[n] > 0.0:
                support[size] = n
                size += 1
                largest = max(largest, gamma[n])
        if sweep > 0 and moved <= tolerance * largest:
            break
        for _ in range(int(_SUPPORT_SWEEPS * effort)):
            if _sweep_support(support[:size], s, packed_covariance, q_matrix, gamma, b) <= tolerance * largest:
                break
    return size


@compiled
def _coherence(re, im, lag, work):
    """Mean squared coherence of snapshots `lag` apart; 0 where there are none.

    re, im: float64 (symbol, snapshot); work: float64 (4, snapshot).
    """
    length, n_snapshots = re.shape
    n = n_snapshots - lag
    if n <= 0:
        return 0.0
    work[:] = 0.0
    for i in range(length):
        for m in range(n):
            work[0, m] += re[i, m] * re[i, m + lag] + im[i, m] * im[i, m + lag]
            work[1, m] += im[i, m] * re[i, m + lag] - re[i, m] * im[i, m + lag]
            work[2, m] += re[i, m] * re[i, m] + im[i, m] * im[i, m]
            work[3, m] += re[i, m + lag] * re[i, m + lag] + im[i, m + lag] * im[i, m + lag]
    above = 0.0
    below = 0.0
    for m in range(n):
        above += work[0, m] * work[0, m] + work[1, m] * work[1, m]
        below += work[2, m] * work[3, m]
    return above / max(below, 1e-30)


@compiled
def analyse(
    y,
    noise_power,
    s,
    forms,
    log_odds,
    least_candidates,
    doubt,
    tokens,
    edges,
    slot,
    index,
    rest,
):
    """Statistics of one slot; returns the number of users in doubt, whose rows of the outputs are written.

    y: complex64 (symbol, snapshot); noise_power: per complex symbol, 0 or less if unknown; s: float64 (user, 2,
    side); forms: float64 (user, side * side); log_odds: log((1 - p) / p); least_candidates: users to look at, at least;
    doubt: cost of a flip or pair of flips from which on a user is certain. Written: tokens float32 (row, N_TOKEN);
    edges float32 (row, row, N_EDGE); slot float32 (N_GLOBAL,); index int64 (row,), the users in doubt; rest
    float32 (user,), log posterior ratio of every user with all others held: for those who are no candidates, before
    the last moves.
    """
    n_users, _, side = s.shape
    length, n_snapshots = y.shape
    most = min(index.size, n_users)
    packed_covariance = np.empty((side, side))
    q_matrix = np.empty((side, side))
    p_matrix = np.empty((side, side))
    b = np.empty((2, side))
    c = np.empty((2, side))
    gamma = np.empty(n_users)
    powers = np.zeros(n_users)
    flip = np.empty(n_users)
    active = np.zeros(n_users, np.bool_)
    candidates = np.arange(n_users)

    received = 0.0
    for i in range(length):
        for m in range(n_snapshots):
            received += (1.0 * y[i, m].real) ** 2 + (1.0 * y[i, m].imag) ** 2
    received /= length * n_snapshots
    known = noise_power > 0.0
    used = _packed.covariance(
        y, noise_power if known else max(received, 1e-30) / (1.0 + _NOMINAL_SNR), packed_covariance
    )
    received /= used

    noise = 1.0
    size = _relax(packed_covariance, s, forms, gamma, n_snapshots, q_matrix, p_matrix, b, c, candidates)
    total = 0.0
    squares = 0.0
    for k in range(size):
        total += gamma[candidates[k]]
        squares += gamma[candidates[k]] ** 2
    start_gain = max(squares / max(total, 1e-30), 10.0 / (length * np.sqrt(n_snapshots)))
    gain = start_gain
    n_active = 0
    for n in range(n_users):
        active[n] = gamma[n] > _START_THRESHOLD * start_gain
        if active[n]:
            n_active += 1
    if n_active > 0:
        gain = max(gain, (received - noise) / n_active)

    # How far the powers of active users differ beyond what their estimates scatter (empirical Bayes).
    flat_q = q_matrix.reshape(-1)
    seen = 0.0
    expected = 0.0
    if n_active > 2:
        mean = 0.0
        for n in range(n_users):
            if active[n]:
                mean += gamma[n] / n_active
        for n in range(n_users):
            if active[n]:
                around = _packed.form(forms[n], flat_q)
                alone = around / max(1.0 - gamma[n] * around, 1e-9)
                seen += (gamma[n] / mean - 1.0) ** 2 / (n_active - 1)
                expected += (1.0 / (alone * mean) + 1.0) ** 2 / (n_snapshots * n_active)
    spread = seen / max(expected, 1e-30)
    trust = 0.0
    if spread > 2.0:
        trust = 1.0 - 2.0 / spread
    for n in range(n_users):
        if active[n]:
            powers[n] = gain * min(max(1.0 + trust * (gamma[n] / gain - 1.0), 0.1), 10.0)

    both_matrices = np.empty((4 * side, 2 * side))
    own_v = np.empty(most)
    own_u = np.empty(most)
    own = np.empty(most)
    signed = np.empty(most)
    odds = np.empty(most)
    kept = np.empty(max(most, n_users))
    exponents = np.empty(kept.size)
    kept_bits = kept.view(np.int64)
    pair = np.zeros((most, most))
    sent = np.empty((0, 0))
    rows = np.empty((0, 0))
    moved = np.empty((0, 0))
    g = np.empty((0, 0))
    w = np.empty((0, 0))
    moves = 0

    n_candidates = 0
    for outer in range(2):
        n_active = 0
        for n in range(n_users):
            if active[n]:
                candidates[n_active] = n
                n_active += 1
        _rebuild(noise, candidates, n_active, powers, s, packed_covariance, q_matrix, p_matrix, b, c)
        flat_p = p_matrix.reshape(-1)
        for n in range(n_users):
            v = _packed.form(forms[n], flat_q)
            u = _packed.form(forms[n], flat_p)
            p = _power_if_active(v, u, gain, trust)
            kept[n] = max(1.0 + p * v, 1e-15)
            flip[n] = log_odds - n_snapshots * p * u / kept[n]
        _log_all(kept, kept_bits, exponents, n_users)
        for n in range(n_users):
            flip[n] += n_snapshots * kept[n]
            rest[n] = -flip[n]
            if active[n]:
                flip[n] = -_FAR * n_snapshots
        # All active users, being the least, and the silent ones that would cost least.
        n_candidates = min(most, max(least_candidates, n_active + 16))
        limit = np.partition(flip, n_candidates - 1)[n_candidates - 1]
        k = 0
        for below in (True, False):
            for n in range(n_users):
                if k < n_candidates and (flip[n] < limit if below else flip[n] == limit):
                    candidates[k] = n
                    k += 1
        # Columns of candidates, and rows that make real and imaginary parts of s_t^H x.
        sent = np.empty((2 * side, n_candidates))
        rows = np.empty((2 * n_candidates, 2 * side))
        for k in range(n_candidates):
            for d in range(side):
                re = s[candidates[k], 0, d]
                im = s[candidates[k], 1, d]
                sent[d, k] = re
                sent[side + d, k] = im
                rows[k, d] = re
                rows[k, side + d] = im
                rows[n_candidates + k, d] = -im
                rows[n_candidates + k, side + d] = re
        moved = np.empty((4 * side, n_candidates))
        g = np.empty((2 * n_candidates, n_candidates))
        w = np.empty((2 * n_candidates, n_candidates))
        while True:
            best = 0.0
            first = -1
            second = -1
            # Q s_k and P s_k, then G = s_t^H Q s_k and W = s_t^H P s_k, of all candidates.
            _complex_rows(q_matrix, 0, both_matrices)
            _complex_rows(p_matrix, 2 * side, both_matrices)
            np.dot(both_matrices, sent, moved)
            np.dot(rows, moved[: 2 * side], g)
            np.dot(rows, moved[2 * side :], w)
            for k in range(n_candidates):
                own_v[k] = g[k, k]
                own_u[k] = w[k, k]
                n = candidates[k]
                if active[n]:
                    signed[k] = -powers[n]
                    odds[k] = -log_odds
                else:
                    signed[k] = _power_if_active(own_v[k], own_u[k], gain, trust)
                    odds[k] = log_odds
                kept[k] = max(1.0 + signed[k] * own_v[k], 1e-15)
                own[k] = odds[k] - n_snapshots * signed[k] * own_u[k] / kept[k]
            _log_all(kept, kept_bits, exponents, n_candidates)
            for k in range(n_candidates):
                own[k] += n_snapshots * kept[k]
                if own[k] < best:
                    best = own[k]
                    first = k
                    second = -1
            for k in range(n_candidates):
                columns = min(-(-k // _CHUNK) * _CHUNK, n_candidates)
                factor = signed[k] / max(1.0 + signed[k] * own_v[k], 1e-15)
                curve = factor * factor * own_u[k]
                for t in range(columns):
                    g_re = g[k, t]
                    g_im = g[n_candidates + k, t]
                    coupling = g_re * g_re + g_im * g_im
                    v_t = max(own_v[t] - factor * coupling, 1e-12)
                    u_t = max(
                        own_u[t] - 2.0 * factor * (g_re * w[k, t] + g_im * w[n_candidates + k, t]) + curve * coupling,
                        0.0,
                    )
                    step = signed[t]
                    kept[t] = max(1.0 + step * v_t, 1e-15)
                    pair[k, t] = own[k] + odds[t] - n_snapshots * step * u_t / kept[t]
                if trust > 0.0:
                    # The power of one who is silent follows from what the other's flip leaves.
                    for t in range(k):
                        if signed[t] < 0.0 and signed[k] < 0.0:
                            continue
                        i = k
                        j = t
                        if signed[t] < 0.0:
                            i = t
                            j = k
                        share = signed[i] / max(1.0 + signed[i] * own_v[i], 1e-15)
                        g_re = g[k, t]
                        g_im = g[n_candidates + k, t]
                        coupling = g_re * g_re + g_im * g_im
                        v_j = max(own_v[j] - share * coupling, 1e-12)
                        u_j = max(
                            own_u[j]
                            - 2.0 * share * (g_re * w[k, t] + g_im * w[n_candidates + k, t])
                            + share * share * coupling * own_u[i],
                            0.0,
                        )
                        step = _power_if_active(v_j, u_j, gain, trust)
                        kept[t] = max(1.0 + step * v_j, 1e-15)
                        pair[k, t] = own[i] + odds[j] - n_snapshots * step * u_j / kept[t]
                _log_all(kept, kept_bits, exponents, columns)
                for t in range(columns):
                    pair[k, t] += n_snapshots * kept[t]
                for t in range(k):
                    if pair[k, t] < best:
                        best = pair[k, t]
                        first = k
                        second = t
                        if signed[t] < 0.0:
                            first = t
                            second = k
            # Moves that gain less than rounding could go round in circles.
            if moves >= _MAX_MOVES or best >= -1e-9 * n_snapshots:
                break
            moves += 1
            for k in (first, second):
                if k >= 0:
                    n = candidates[k]
                    powers[n] = 0.0 if active[n] else signed[k]
                    active[n] = not active[n]
            _rebuild(noise, candidates, n_candidates, powers, s, packed_covariance, q_matrix, p_matrix, b, c)
        if outer == 1:
            break
        # One Fisher scoring step for the gain and, where unknown, the noise power, given the set.
        slope = 0.0
        curve = 0.0
        cross = 0.0
        n_active = 0
        for k in range(n_candidates):
            n = candidates[k]
            if active[n]:
                n_active += 1
                share = powers[n] / gain
                slope += share * (own_u[k] - own_v[k])
                curve += (share * own_v[k]) ** 2
                for d in range(side):
                    cross += share * (moved[d, k] ** 2 + moved[side + d, k] ** 2)
                for t in range(k):
                    if active[candidates[t]]:
                        coupling = g[k, t] ** 2 + g[n_candidates + k, t] ** 2
                        curve += 2.0 * share * powers[candidates[t]] / gain * coupling
        if n_active > 0:
            change = slope / curve
            if not known:
                slope_noise = 0.0
                curve_noise = 0.0
                for i in range(length):
                    slope_noise += p_matrix[i, i] - q_matrix[i, i]
                    for j in range(length):
                        curve_noise += q_matrix[i, j] * q_matrix[i, j]
                slope_noise -= _NOISE_PRIOR * np.log(noise) / (noise * n_snapshots)
                curve_noise += _NOISE_PRIOR / (noise * noise * n_snapshots)
                determinant = max(curve * curve_noise - cross * cross, 1e-9 * curve * curve_noise)
                change = (slope * curve_noise - slope_noise * cross) / determinant
                change_noise = (slope_noise * curve - slope * cross) / determinant
                noise = min(max(noise + change_noise, 0.5 * noise), 2.0 * noise)
            factor = min(max(1.0 + change / gain, 0.5), 2.0)
            gain *= factor
            for k in range(n_candidates):
                n = candidates[k]
                if active[n]:
                    powers[n] *= factor
                    if trust > 0.0:
                        change = (own_u[k] - own_v[k]) / (own_v[k] * own_v[k])
                        ratio = (powers[n] + trust * change) / gain
                        powers[n] = gain * min(max(ratio, 0.1), 10.0)

    # ---- what the network sees
    gathered = np.empty(n_candidates)
    nearest = np.full(n_candidates, _FAR)
    second_nearest = np.full(n_candidates, _FAR)
    weights = 1.0
    for k in range(n_candidates):
        gathered[k] = np.exp(-min(max(own[k], -20.0), _FAR))
        weights += gathered[k]
    for k in range(n_candidates):
        for t in range(k):
            kept[t] = _exp(-min(max(pair[k, t], -20.0), _FAR)) if pair[k, t] < _FAR else 0.0
        total = 0.0
        for t in range(k):
            total += kept[t]
            gathered[t] += kept[t]
        gathered[k] += total
        weights += total
        for t in range(k):
            both = pair[k, t]
            if both < second_nearest[k]:
                second_nearest[k] = max(both, nearest[k])
                nearest[k] = min(both, nearest[k])
            if both < second_nearest[t]:
                second_nearest[t] = max(both, nearest[t])
                nearest[t] = min(both, nearest[t])
    n_active = 0
    for n in range(n_users):
        if active[n]:
            n_active += 1
    # Those whose activity a cheap change could turn over, and at least one.
    kept_ones = np.empty(n_candidates, np.int64)
    n_kept = 0
    least = 0
    for k in range(n_candidates):
        rest[candidates[k]] = own[k] if active[candidates[k]] else -own[k]
        if own[k] < own[least]:
            least = k
        if min(own[k], nearest[k]) < doubt:
            kept_ones[n_kept] = k
            n_kept += 1
    if n_kept == 0:
        kept_ones[0] = least
        n_kept = 1
    flat_covariance = packed_covariance.reshape(-1)
    squashed = np.empty((4, n_kept))
    for row in range(n_kept):
        k = kept_ones[row]
        squashed[0, row] = nearest[k]
        squashed[1, row] = second_nearest[k]
        squashed[2, row] = own[k] if active[candidates[k]] else -own[k]
        squashed[3, row] = nearest[k] - own[k]
    flat_squashed = squashed.reshape(-1)
    for k in range(flat_squashed.size):
        # tanh of an eighth
        flat_squashed[k] = 1.0 - 2.0 / (1.0 + _exp(min(max(flat_squashed[k] / 4.0, -_FAR), _FAR)))
    for row in range(n_kept):
        k = kept_ones[row]
        n = candidates[k]
        index[row] = n
        for e in range(N_EDGE):
            edges[row, row, e] = 0.0
        edges[row, row, 4] = 1.0
        for column in range(row):
            t = kept_ones[column]
            both = pair[k, t]
            kept[column] = min(max((both - own[k] - own[t]) / 10.0, -_FAR), _FAR)
            exponents[column] = min(max(both, 0.0) / 4.0, _FAR)
        for column in range(row):
            kept[column] = 1.0 - 2.0 / (1.0 + _exp(kept[column]))  # tanh of half
            exponents[column] = _exp(-exponents[column])
        for column in range(row):
            t = kept_ones[column]
            coupling = g[k, t] ** 2 + g[n_candidates + k, t] ** 2
            edges[row, column, 0] = coupling / max(own_v[k] * own_v[t], 1e-30)
            coupling = w[k, t] ** 2 + w[n_candidates + k, t] ** 2
            edges[row, column, 1] = coupling / max(own_u[k] * own_u[t], 1e-30)
            edges[row, column, 2] = kept[column]
            edges[row, column, 3] = exponents[column]
            edges[row, column, 4] = 0.0
            for e in range(N_EDGE):
                edges[column, row, e] = edges[row, column, e]
        sign = 1.0 if active[n] else -1.0
        alone = max(1.0 - powers[n] * own_v[k], 1e-9) if active[n] else 1.0
        v_0 = own_v[k] / alone
        u_0 = own_u[k] / (alone * alone)
        ratio = max(u_0 / v_0, 1e-9)
        log_ratio = np.log(ratio)
        free = np.log1p(n_snapshots * (ratio - 1.0 - log_ratio) / 4.0)
        estimate = (u_0 - v_0) / (v_0 * v_0)
        share = min(gathered[k] / weights, 1.0 - 1e-9)
        tokens[row, 0] = sign
        tokens[row, 1] = np.arcsinh(sign * own[k] / 2.0)
        tokens[row, 2] = -sign * np.log(share / (1.0 - share)) / 4.0
        tokens[row, 3] = min(max(estimate / gain, -1.0), 4.0) - 0.5
        tokens[row, 4] = free if estimate > 0.0 else -free
        tokens[row, 5] = np.log(gain * v_0)
        tokens[row, 6] = log_ratio
        tokens[row, 7] = squashed[0, row]
        tokens[row, 8] = squashed[1, row]
        tokens[row, 9] = min(gamma[n] / start_gain, 4.0) - 0.5
        tokens[row, 10] = np.log(
            max(_packed.form(forms[n], flat_covariance), 1e-9) / (length * length * max(received, 1e-9))
        )
        tokens[row, 11] = squashed[2, row]
        tokens[row, 12] = np.log(max(powers[n], 1e-9) / gain) if active[n] else 0.0
        tokens[row, 13] = squashed[3, row]
        tokens[row, 14] = np.exp(-max(own[k], 0.0) / 4.0)
    fit = 0.0
    for i in range(side):
        for j in range(side):
            fit += q_matrix[i, j] * packed_covariance[i, j]
    slot[0] = length / 28.0
    slot[1] = np.log2(n_snapshots / 64.0) / 2.0
    slot[2] = n_active / 10.0 - 1.3
    slot[3] = np.log(max(gain, 1e-9) / noise)
    slot[4] = np.log(start_gain / gain)
    slot[5] = log_odds - 2.2
    slot[6] = (fit / length - 1.0) * 5.0
    slot[7] = np.log(max(received, 1e-9) / noise) - 2.4
    slot[8] = moves / 4.0
    slot[9] = 1.0 if known else 0.0
    slot[10] = trust
    re = np.empty((length, n_snapshots))
    im = np.empty((length, n_snapshots))
    for i in range(length):
        for m in range(n_snapshots):
            re[i, m] = y[i, m].real
            im[i, m] = y[i, m].imag
    work = np.empty((4, n_snapshots))
    slot[11] = _coherence(re, im, 1, work) * 10.0 - 1.0
    slot[12] = _coherence(re, im, 8, work) * 10.0 - 1.0
    return n_kept


@compiled
def beam_statistics(z, slot, s, forms, index, n_candidates, rest, tokens, edges):
    """What the beams of a planar array say of the users in doubt of one slot.

    Users come from few directions each: in every azimuth beam only some of them are heard. Each user gets a power per
    azimuth beam, smooth from beam to beam; expectation maximisation finds them, and lets those of silent users fade
    (sparse Bayesian learning). The elevation beams share one profile, read off the slot.

    z: complex64 (symbol, elevation beam, azimuth beam); slot, index, rest: as `analyse` wrote them; s, forms: see
    there. Written behind what `analyse` wrote: N_BEAM_TOKEN more of tokens and N_BEAM_EDGE of edges.
    """
    length, n_up, n_along = z.shape
    # In units that keep the squares of any level within double precision.
    received = 0.0
    for i in range(length):
        for e in range(n_up):
            for a in range(n_along):
                received += (1.0 * z[i, e, a].real) ** 2 + (1.0 * z[i, e, a].imag) ** 2
    unit = np.sqrt(max(received, 1e-60) / (length * n_up * n_along))
    noise = np.exp(-slot[7] - 2.4)
    gain = noise * np.exp(slot[3])
    side = s.shape[2]
    profile = np.zeros(n_up)
    largest = 0.0
    for e in range(n_up):
        for i in range(length):
            for a in range(n_along):
                profile[e] += (z[i, e, a].real / unit) ** 2 + (z[i, e, a].imag / unit) ** 2
        profile[e] = max(profile[e] / (length * n_along) - noise, 0.0)
        largest = max(largest, profile[e])
    total = max(profile.sum(), 1e-30)
    used = 0
    for e in range(n_up):
        keep = profile[e] > _BEAM_SHARE * largest
        profile[e] = profile[e] / total * n_up if keep else 0.0
        used += 1 if keep else 0

    everyone = np.arange(n_candidates)
    sent = np.empty((n_candidates, 2, side))
    sent_forms = np.empty((n_candidates, forms.shape[1]))
    powers = np.empty((n_candidates, n_along))
    for k in range(n_candidates):
        sent[k] = s[index[k]]
        sent_forms[k] = forms[index[k]]
        start = 1.0 / (1.0 + np.exp(-min(max(rest[index[k]] / 8.0, -4.0), 4.0)))
        for a in range(n_along):
            powers[k, a] = gain * start
    fresh = np.empty((n_candidates, n_along))
    now = np.empty(n_candidates)
    cost = np.zeros(n_candidates)
    inverse = np.empty((side, side))
    b = np.empty((2, side))
    heard = np.empty((2, side))
    white = np.empty((2, side))
    for step in range(_BEAM_STEPS + 1):
        last = step == _BEAM_STEPS
        fresh[:] = 0.0
        for a in range(n_along):
            for e in range(n_up):
                if profile[e] == 0.0:
                    continue
                for k in range(n_candidates):
                    now[k] = powers[k, a] * profile[e]
                _invert(noise, everyone, n_candidates, now, sent, inverse, b)
                heard[:] = 0.0
                for i in range(length):
                    heard[0, i] = z[i, e, a].real / unit
                    heard[1, i] = z[i, e, a].imag / unit
                _packed.product(inverse, heard, white)
                flat = inverse.reshape(-1)
                for k in range(n_candidates):
                    v = _packed.form(sent_forms[k], flat)
                    re = 0.0
                    im = 0.0
                    for i in range(side):
                        re += sent[k, 0, i] * white[0, i] + sent[k, 1, i] * white[1, i]
                        im += sent[k, 0, i] * white[1, i] - sent[k, 1, i] * white[0, i]
                    u = re * re + im * im
                    p = now[k]
                    if last:
                        kept = max(1.0 - p * v, 1e-9)
                        cost[k] += np.log(kept) + p * u / kept
                    else:
                        fresh[k, a] += max(p * p * u + p - p * p * v, 0.0) / profile[e]
        if last:
            break
        for k in range(n_candidates):
            for a in range(n_along):
                left = fresh[k, a - 1 if a > 0 else n_along - 1]
                right = fresh[k, a + 1 if a < n_along - 1 else 0]
                powers[k, a] = (0.5 * fresh[k, a] + 0.25 * (left + right)) / max(used, 1)
    for k in range(n_candidates):
        mean = 0.0
        peak = 0.0
        for a in range(n_along):
            mean += powers[k, a] / n_along
            peak = max(peak, powers[k, a])
        tokens[k, N_TOKEN + 0] = np.arcsinh(cost[k] / 2.0)
        tokens[k, N_TOKEN + 1] = np.tanh(cost[k] / 8.0)
        tokens[k, N_TOKEN + 2] = np.log(mean / gain + 1e-3) / 2.0
        tokens[k, N_TOKEN + 3] = min(mean / gain, 4.0) - 0.5
        tokens[k, N_TOKEN + 4] = peak / max(n_along * mean, 1e-30)
        for t in range(k + 1):
            other = 0.0
            both = 0.0
            for a in range(n_along):
                other += powers[t, a] / n_along
                both += np.sqrt(powers[k, a] * powers[t, a]) / n_along
            edges[k, t, N_EDGE] = both / max(np.sqrt(mean * other), 1e-30)
            edges[t, k, N_EDGE] = edges[k, t, N_EDGE]


@compiled
def _pack(preambles, length, s, forms):
    """Write the first symbols of a pool, complex64 (symbol, user), as `_packed.columns` and `_packed.forms`."""
    s[:] = 0.0
    forms[:] = 0.0
    side = s.shape[2]
    for n in range(s.shape[0]):
        for i in range(length):
            s[n, 0, i] = preambles[i, n].real
            s[n, 1, i] = preambles[i, n].imag
        for i in range(length):
            for j in range(length):
                forms[n, i * side + j] = s[n, 0, i] * (s[n, 0, j] - s[n, 1, j]) + s[n, 1, i] * (s[n, 0, j] + s[n, 1, j])


@compiled
def analyse_all(
    y,
    beams,
    noise_power,
    pools,
    shared_s,
    shared_forms,
    log_odds,
    least_candidates,
    doubt,
    first,
    last,
    tokens,
    edges,
    slot,
    index,
    rest,
    sizes,
):
    """`analyse` for slots `first` to `last`, with `beams` `beam_statistics`, and the users in doubt of each in `sizes`.

    beams: complex64 (slot, symbol, elevation beam, azimuth beam), without any symbol for none; pools: complex64 (slot,
    symbol, user), or with no slots if `shared_s` and `shared_forms` are those of all. Other arrays are those of
    `analyse` with a leading axis of slots.
    """
    length = y.shape[1]
    own_pools = pools.shape[0] > 0
    s = np.empty(shared_s.shape) if own_pools else shared_s
    forms = np.empty(shared_forms.shape) if own_pools else shared_forms
    for k in range(first, last):
        if own_pools:
            _pack(pools[k], length, s, forms)
        sizes[k] = analyse(
            y[k],
            noise_power[k],
            s,
            forms,
            log_odds,
            least_candidates,
            doubt,
            tokens[k],
            edges[k],
            slot[k],
            index[k],
            rest[k],
        )
        if beams.shape[1] > 0:
            beam_statistics(beams[k], slot[k], s, forms, index[k], sizes[k], rest[k], tokens[k], edges[k])
