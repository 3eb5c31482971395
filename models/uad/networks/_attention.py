"""Compiled forward pass of the likelihood network, for one slot at a time.

Networks this small spend most of their time in an inference engine's calls from layer to layer; here are none but those
of matrix products. Other loops run over as many numbers at a time as can be: one over the 30 of a row costs as much.
"""

from __future__ import annotations

import numpy as np

from ..detectors._packed import compiled
from . import _posterior

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LEAST = np.float32(-30.0)
_NORM_EPS = np.float32(1e-5)


@compiled
def _exp(x):
    """exp(x) for x <= 0 to about 1e-6, in a form that compilers turn into vectors: Taylor for x / 32, squared."""
    y = max(x, _LEAST) * np.float32(1 / 32)
    p = np.float32(1 / 720)
    p = p * y + np.float32(1 / 120)
    p = p * y + np.float32(1 / 24)
    p = p * y + np.float32(1 / 6)
    p = p * y + np.float32(0.5)
    p = p * y + _ONE
    p = p * y + _ONE
    p = p * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@compiled
def _matrix(weights, at, rows, columns):
    """The next weights as a matrix, and where the ones after it begin."""
    end = at + rows * columns
    return weights[at:end].reshape(rows, columns), end


@compiled
def _affine(x, matrix, bias, out):
    """out = x @ matrix + bias; x (row, in), matrix (in, out), bias (1, out)."""
    np.dot(x, matrix, out)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] += bias[0, c]


@compiled
def _normalise(x, scale, shift, out):
    """Layer normalisation of every row."""
    width = x.shape[1]
    for r in range(x.shape[0]):
        mean = _ZERO
        for c in range(width):
            mean += x[r, c]
        mean /= np.float32(width)
        power = _ZERO
        for c in range(width):
            power += (x[r, c] - mean) * (x[r, c] - mean)
        factor = _ONE / np.sqrt(power / np.float32(width) + _NORM_EPS)
        for c in range(width):
            out[r, c] = (x[r, c] - mean) * factor * scale[0, c] + shift[0, c]


@compiled
def forward(tokens, edges, slot, index, rest, weights, sizes, rest_limit, out):
    """Log-odds of every user in one slot.

    tokens: float32 (row, feature); edges: float32 (row, row, feature); slot: float32 (1, feature); index: int64
    (row,); rest: float32 (user,); weights: float32, as `flattened` orders them; sizes: int64, (width, layers, heads,
    feed-forward width, edge width); out: float64 (user,).
    """
    n, n_token = tokens.shape
    n_edge = edges.shape[2]
    width, n_layers, n_heads, feedforward, edge_width = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    size = width // n_heads
    root = np.float32(1.0) / np.sqrt(np.float32(size))
    x = np.empty((n, width), np.float32)
    extra = np.empty((1, width), np.float32)
    matrix, at = _matrix(weights, 0, n_token, width)
    bias, at = _matrix(weights, at, 1, width)
    _affine(tokens, matrix, bias, x)
    matrix, at = _matrix(weights, at, slot.shape[1], width)
    bias, at = _matrix(weights, at, 1, width)
    _affine(slot, matrix, bias, extra)
    for r in range(n):
        for c in range(width):
            x[r, c] += extra[0, c]

    # Scores of all layers and heads from the pairs, which are symmetric: one triangle, pair after pair.
    n_scores = n_layers * n_heads
    edge_matrix, at = _matrix(weights, at, n_edge, edge_width)
    edge_bias, at = _matrix(weights, at, 1, edge_width)
    score_matrix, at = _matrix(weights, at, edge_width, n_scores)
    score_bias, at = _matrix(weights, at, 1, n_scores)
    n_pairs = n * (n + 1) // 2
    seen = np.empty((n_pairs, n_edge), np.float32)
    between = np.empty((n_pairs, edge_width), np.float32)
    triangle = np.empty((n_pairs, n_scores), np.float32)
    pair = 0
    for r in range(n):
        for t in range(r + 1):
            for e in range(n_edge):
                seen[pair, e] = edges[r, t, e]
            pair += 1
    _affine(seen, edge_matrix, edge_bias, between)
    flat = between.reshape(-1)
    for k in range(flat.size):
        flat[k] = max(flat[k], _ZERO)
    _affine(between, score_matrix, score_bias, triangle)
    scores = np.empty((n_scores, n, n), np.float32)
    pair = 0
    for r in range(n):
        for t in range(r + 1):
            for h in range(n_scores):
                scores[h, r, t] = triangle[pair, h]
                scores[h, t, r] = triangle[pair, h]
            pair += 1

    normed = np.empty((n, width), np.float32)
    mixed = np.empty((n, 3 * width), np.float32)
    heard = np.empty((n, width), np.float32)
    added = np.empty((n, width), np.float32)
    hidden = np.empty((n, feedforward), np.float32)
    queries = np.empty((size, n), np.float32)
    keys = np.empty((n, size), np.float32)
    # A column of ones behind the values makes the sums of the softmax.
    values = np.ones((n, size + 1), np.float32)
    logits = np.empty((n, n), np.float32)
    sums = np.empty((n, size + 1), np.float32)
    most = np.empty(n, np.float32)
    for layer in range(n_layers):
        scale, at = _matrix(weights, at, 1, width)
        shift, at = _matrix(weights, at, 1, width)
        _normalise(x, scale, shift, normed)
        matrix, at = _matrix(weights, at, width, 3 * width)
        bias, at = _matrix(weights, at, 1, 3 * width)
        _affine(normed, matrix, bias, mixed)
        for h in range(n_heads):
            score = scores[layer * n_heads + h]
            for t in range(n):
                for c in range(size):
                    queries[c, t] = mixed[t, h * size + c] * root
                    keys[t, c] = mixed[t, width + h * size + c]
                    values[t, c] = mixed[t, 2 * width + h * size + c]
            # Row: who is heard; column: who listens.
            np.dot(keys, queries, logits)
            flat = logits.reshape(-1)
            flat_score = score.reshape(-1)
            for k in range(flat.size):
                flat[k] += flat_score[k]
            for r in range(n):
                most[r] = logits[0, r]
            for t in range(1, n):
                for r in range(n):
                    most[r] = max(most[r], logits[t, r])
            for t in range(n):
                for r in range(n):
                    logits[t, r] -= most[r]
            for k in range(flat.size):
                flat[k] = _exp(flat[k])
            np.dot(logits.T, values, sums)
            for r in range(n):
                for c in range(size):
                    heard[r, h * size + c] = sums[r, c] / sums[r, size]
        matrix, at = _matrix(weights, at, width, width)
        bias, at = _matrix(weights, at, 1, width)
        _affine(heard, matrix, bias, added)
        for r in range(n):
            for c in range(width):
                x[r, c] += added[r, c]
        scale, at = _matrix(weights, at, 1, width)
        shift, at = _matrix(weights, at, 1, width)
        _normalise(x, scale, shift, normed)
        matrix, at = _matrix(weights, at, width, feedforward)
        bias, at = _matrix(weights, at, 1, feedforward)
        _affine(normed, matrix, bias, hidden)
        flat = hidden.reshape(-1)
        for k in range(flat.size):
            flat[k] = max(flat[k], _ZERO)
        matrix, at = _matrix(weights, at, feedforward, width)
        bias, at = _matrix(weights, at, 1, width)
        _affine(hidden, matrix, bias, added)
        for r in range(n):
            for c in range(width):
                x[r, c] += added[r, c]
    scale, at = _matrix(weights, at, 1, width)
    shift, at = _matrix(weights, at, 1, width)
    _normalise(x, scale, shift, normed)
    matrix, at = _matrix(weights, at, width, 1)
    head_bias = weights[at]
    own = weights[at + 1] * np.float32(8.0)
    others = weights[at + 2]
    for user in range(rest.size):
        out[user] = others * min(max(rest[user], -rest_limit), rest_limit)
    for r in range(n):
        found = head_bias + own * tokens[r, 2]
        for c in range(width):
            found += normed[r, c] * matrix[c, 0]
        out[index[r]] = found


@compiled
def log_odds_all(
    y,
    beams,
    noise_power,
    s,
    forms,
    prior,
    least_candidates,
    most_candidates,
    doubt,
    features,
    weights,
    sizes,
    rest_limit,
    out,
):
    """Statistics and `forward` of one slot after the other; -inf for all users of a slot that is zero throughout.

    y, beams, noise_power, s, forms, prior, least_candidates, doubt: see `_posterior.analyse_all`; features: int64,
    (per token, per pair); out: float64 (slot, user).
    """
    n_users = s.shape[0]
    most = min(most_candidates, n_users)
    tokens = np.empty((most, features[0]), np.float32)
    edges = np.empty((most, most, features[1]), np.float32)
    slot = np.empty((1, _posterior.N_GLOBAL), np.float32)
    index = np.empty(most, np.int64)
    rest = np.empty(n_users, np.float32)
    for k in range(y.shape[0]):
        heard = False
        for i in range(y.shape[1]):
            for m in range(y.shape[2]):
                if y[k, i, m] != 0.0:
                    heard = True
                    break
            if heard:
                break
        if not heard:
            out[k, :] = -np.inf
            continue
        n = _posterior.analyse(
            y[k],
            noise_power[k],
            s,
            forms,
            prior,
            least_candidates,
            doubt,
            tokens,
            edges,
            slot[0],
            index,
            rest,
        )
        if beams.shape[1] > 0:
            _posterior.beam_statistics(beams[k], slot[0], s, forms, index, n, rest, tokens, edges)
        forward(tokens[:n], edges[:n, :n], slot, index[:n], rest, weights, sizes, rest_limit, out[k])
