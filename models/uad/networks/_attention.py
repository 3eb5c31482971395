"""Compiled forward pass of the likelihood network, for one slot at a time.

Networks this small spend most of their time in an inference engine's calls from layer to layer; here is none.
"""

from __future__ import annotations

import numpy as np

from ..detectors._packed import compiled

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
    n_in, n_out = matrix.shape
    whole = n_in - n_in % 4
    for r in range(x.shape[0]):
        for c in range(n_out):
            out[r, c] = bias[0, c]
        # Four at a time: each result is loaded and stored a quarter as often.
        for k in range(0, whole, 4):
            x_0, x_1, x_2, x_3 = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
            for c in range(n_out):
                out[r, c] += (
                    x_0 * matrix[k, c] + x_1 * matrix[k + 1, c] + x_2 * matrix[k + 2, c] + x_3 * matrix[k + 3, c]
                )
        for k in range(whole, n_in):
            value = x[r, k]
            for c in range(n_out):
                out[r, c] += value * matrix[k, c]


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
    feed-forward width, edge width); out: float32 (user,).
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

    # Scores of all layers and heads from the pairs, which are symmetric.
    n_scores = n_layers * n_heads
    edge_matrix, at = _matrix(weights, at, n_edge, edge_width)
    edge_bias, at = _matrix(weights, at, 1, edge_width)
    score_matrix, at = _matrix(weights, at, edge_width, n_scores)
    score_bias, at = _matrix(weights, at, 1, n_scores)
    scores = np.empty((n_scores, n, n), np.float32)
    seen = np.empty((n_edge, n), np.float32)
    between = np.empty(n, np.float32)
    for r in range(n):
        for t in range(r + 1):
            for e in range(n_edge):
                seen[e, t] = edges[r, t, e]
        for h in range(n_scores):
            for t in range(r + 1):
                scores[h, r, t] = score_bias[0, h]
        for w in range(edge_width):
            for t in range(r + 1):
                between[t] = edge_bias[0, w]
            for e in range(n_edge):
                value = edge_matrix[e, w]
                for t in range(r + 1):
                    between[t] += value * seen[e, t]
            for t in range(r + 1):
                between[t] = max(between[t], _ZERO)
            for h in range(n_scores):
                value = score_matrix[w, h]
                for t in range(r + 1):
                    scores[h, r, t] += value * between[t]
    for h in range(n_scores):
        for r in range(n):
            for t in range(r):
                scores[h, t, r] = scores[h, r, t]

    normed = np.empty((n, width), np.float32)
    mixed = np.empty((n, 3 * width), np.float32)
    heard = np.empty((n, width), np.float32)
    added = np.empty((n, width), np.float32)
    hidden = np.empty((n, feedforward), np.float32)
    keys = np.empty((size, n), np.float32)
    values = np.empty((size, n), np.float32)
    row = np.empty(n, np.float32)
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
                    keys[c, t] = mixed[t, width + h * size + c]
                    values[c, t] = mixed[t, 2 * width + h * size + c]
            for r in range(n):
                for t in range(n):
                    row[t] = score[r, t]
                for c in range(size):
                    value = mixed[r, h * size + c] * root
                    for t in range(n):
                        row[t] += value * keys[c, t]
                most = row[0]
                for t in range(n):
                    most = max(most, row[t])
                total = _ZERO
                for t in range(n):
                    row[t] = _exp(row[t] - most)
                    total += row[t]
                for c in range(size):
                    sum_ = _ZERO
                    for t in range(n):
                        sum_ += row[t] * values[c, t]
                    heard[r, h * size + c] = sum_ / total
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
        for r in range(n):
            for c in range(feedforward):
                hidden[r, c] = max(hidden[r, c], _ZERO)
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
def forward_all(tokens, valid, edges, slot, index, rest, weights, sizes, rest_limit, out):
    """`forward` for every slot of a batch as `LikelihoodTransformer.prepare` makes it; out: float32 (slot, user)."""
    for k in range(tokens.shape[0]):
        n = 0
        for t in range(valid.shape[1]):
            if valid[k, t] > _ZERO:
                n += 1
        forward(
            tokens[k, :n],
            edges[k, :n, :n],
            slot[k : k + 1],
            index[k, :n],
            rest[k],
            weights,
            sizes,
            rest_limit,
            out[k],
        )
