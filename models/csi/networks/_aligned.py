"""A linear code in the frame of each channel's strongest direction, with the frame in the first symbols."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import SNR_SCALE_DB, STEEPNESS, NetworkConfig, announced_snr_db


class Mode(NamedTuple):
    """One way to send the frame.

    Attributes:
        symbols: of the word.
        power: of each of them.
        kinds: whether the word tells the kind of channel, too, or the direction alone.
    """

    symbols: int
    power: float = 1.0
    kinds: bool = True


MODES = (
    Mode(0),
    Mode(1),
    Mode(2),
    Mode(3),
    Mode(4),
    Mode(6),
    Mode(1, 2.0),
    Mode(2, 2.0),
    Mode(4, 2.0),
    Mode(6, 2.0),
)
"""Ways to send the frame. The first sends none, and codes without turning."""

SHORT_MODES = (Mode(1, 1.0, False), Mode(2, 1.0, False), Mode(1, 2.0, False), Mode(2, 2.0, False))
"""Ways to send the direction alone, where feedback is short; they come behind the others."""

_N_FRAME = max(mode.symbols for mode in MODES)
SNRS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
"""SNR at which plans are made; between them the nearest counts."""

_FLOOR = 1e-6
_NEVER = 1e4
_MOST_FOR_FRAME = 0.6
_STRANGER = 0.2
"""Probability that a neighbour's direction and kind tell nothing of a user's."""

_LABEL_ROUNDS = 4
_BOOK_STEPS = 400
_BOOK_BATCH = 256
_BOOK_SNR_DB = 8.0
_PLAN_DROPS = 300


class Frame(NamedTuple):
    """How CSI was turned, and which linear code it got.

    Attributes:
        mode: int64, (batch,): place in `AlignedCode.ways`.
        angle: int64, (batch,): place in the grid of directions; 0 turns nothing.
        shape: int64, (batch,): kind of channel; behind the kinds come one for channels that are not turned, and one
            for turned ones of any kind.
        facts: float32, (batch, codes + 1): one-hot kind, and how certain the frame is.
    """

    mode: Tensor
    angle: Tensor
    shape: Tensor
    facts: Tensor

    def of(self, at: Tensor) -> Frame:
        """Frames of some of the batch."""
        return Frame(*(part[at] for part in self))


class AlignedCode(nn.Module):
    """Everything about the code that is learned from draws without gradients, and its use.

    Args:
        c: Sizes.
        angles_per_beam: Directions of the grid for each beam.
        n_shapes: Kinds of channels.
        short: Whether there are ways to send the direction alone.

    Attributes:
        ways: modes that there are.
        n_codes: linear codes: one for each kind, one for channels that are not turned, one for any kind if `short`.
    """

    turns: Tensor
    basis: Tensor
    roots: Tensor
    captured: Tensor
    books: Tensor
    log_prior: Tensor
    angle_kin: Tensor
    shape_kin: Tensor
    plan: Tensor
    mode_symbols: Tensor
    mode_power: Tensor
    mode_kinds: Tensor

    def __init__(self, c: NetworkConfig, angles_per_beam: int, n_shapes: int, short: bool = False) -> None:
        super().__init__()
        self.shape, self.size, self.n = (c.n_taps, c.n_antennas), c.n_taps * c.n_antennas, c.max_length
        self.n_angles, self.n_shapes = angles_per_beam * c.n_antennas, n_shapes
        self.short, self.ways, self.n_codes = short, MODES + SHORT_MODES * short, n_shapes + 1 + short
        n_frames = self.n_angles * n_shapes
        self.plan_lengths = tuple(2**power for power in range(int(math.log2(self.n)) + 1))
        turns = _turns(c.n_antennas, self.n_angles)
        self.register_buffer("turns", torch.stack([turns.real, turns.imag]).contiguous(), persistent=False)
        # What follows is set by `fit`. Half the digits do.
        basis = torch.randn(self.n_codes, 2, self.size, self.n) / math.sqrt(2)
        self.register_buffer("basis", basis.half())
        self.register_buffer("roots", torch.ones(self.n_codes, self.n))
        self.register_buffer("captured", torch.zeros(n_shapes, self.size))
        self.register_buffer("books", torch.zeros(len(self.ways), n_frames, 2 * _N_FRAME))
        self.register_buffer("log_prior", torch.full((n_shapes, self.n_angles), -math.log(n_frames)))
        self.register_buffer("angle_kin", torch.full((self.n_angles, self.n_angles), 1 / self.n_angles))
        self.register_buffer("shape_kin", torch.full((n_shapes, n_shapes), 1 / n_shapes))
        self.register_buffer("plan", torch.zeros(len(self.plan_lengths), len(SNRS_DB), dtype=torch.long))
        modes = torch.tensor(self.ways)
        self.register_buffer("mode_symbols", modes[:, 0].long(), persistent=False)
        self.register_buffer("mode_power", modes[:, 0] * modes[:, 1], persistent=False)
        self.register_buffer("mode_kinds", modes[:, 2] > 0, persistent=False)

    # -- both ends

    def mode(self, condition: Tensor) -> Tensor:
        """Planned mode; int64, (...) from conditions (..., number)."""
        steps = (announced_snr_db(condition)[..., 0] - SNRS_DB[0]) / (SNRS_DB[1] - SNRS_DB[0])
        # A hair more, since both ends must agree for the round values that are half way.
        at_snr = torch.round(steps + 1e-2).long().clamp(0, len(SNRS_DB) - 1)
        # A hair more, lest a logarithm that should be whole is rounded down.
        at_length = torch.floor(torch.log2(condition[..., 3] * self.n) + 1e-3).long()
        return self.plan[at_length.clamp(0, len(self.plan_lengths) - 1), at_snr]

    def row(self, length: int) -> int:
        """Row of the plan that a length belongs to."""
        return int(math.log2(length))

    def modes(self, length: int) -> list[int]:
        """Modes that leave enough of a length to the components."""
        return [k for k, mode in enumerate(self.ways) if mode.symbols * mode.power <= _MOST_FOR_FRAME * length]

    def turn(self, features: Tensor, angle: Tensor) -> Tensor:
        """Turn CSI so that a direction of the grid becomes beam 0; (batch, tap, 2 beams)."""
        real, imag = self.turns[:, angle].unbind(0)
        return _times(features, real, imag)

    def turn_back(self, features: Tensor, angle: Tensor) -> Tensor:
        """Undo `turn`."""
        real, imag = self.turns[:, angle].unbind(0)
        return _times(features, real.mT, -imag.mT)

    def powers(self, frame: Frame, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Powers and standard deviations of the components, (batch, component) each, for the SNR that was announced.

        See `KltCode.powers`; too weak components are left out step by step.
        """
        noise = torch.pow(10.0, -announced_snr_db(condition) / 10)
        length = condition[:, 3:4] * self.n
        root = self.roots[frame.shape]
        count = length - self.mode_symbols[frame.mode][:, None]
        budget = length - self.mode_power[frame.mode][:, None]
        used = (torch.arange(self.n, device=root.device) < count - 0.5).to(root.dtype)
        power = used
        for _ in range(4):
            total = (root * used).sum(-1, keepdim=True).clamp(min=_FLOOR)
            power = ((budget + used.sum(-1, keepdim=True) * noise) / total * root - noise) * used
            used = used * (power > 0).to(root.dtype)
        return power.clamp(min=0.0), root

    # -- the user

    def choose(self, features: Tensor, condition: Tensor) -> Frame:
        """Frame of CSI; (batch, tap, 2 beams)."""
        angle, shape = self._label(features)
        mode = self.mode(condition)
        return self._frame(mode, angle, shape, torch.ones_like(condition[:, 0]))

    def components(self, turned: Tensor, shape: Tensor) -> Tensor:
        """Turned CSI in its linear code, before powers; (batch, 2, component) from (batch, tap, 2 beams)."""
        both = torch.stack([part.flatten(1) for part in turned.chunk(2, -1)], 1)
        # Times the conjugate basis.
        (xa, ya), (xb, yb) = (part.unbind(1) for part in self._times_bases(both, shape, backwards=False))
        return torch.stack([xa + yb, ya - xb], 1)

    def pack(self, parts: Tensor, frame: Frame, condition: Tensor) -> Tensor:
        """Frame and components as symbols, of which only those of the length count.

        Args:
            parts: (batch, 2, component).
            frame: of the CSI.
            condition: (batch, number).

        Returns:
            (batch, 2 symbol).
        """
        power, root = self.powers(frame, condition)
        return self._arrange(parts * (torch.sqrt(power + _FLOOR) / root)[:, None], frame, condition)

    def encode(self, turned: Tensor, correction: Tensor, frame: Frame, condition: Tensor) -> Tensor:
        """Symbols of turned CSI.

        Args:
            turned: (batch, tap, 2 beams).
            correction: (batch, 2 component): added to the linear components.
            frame: of the CSI.
            condition: (batch, number).

        Returns:
            (batch, 2 symbol).
        """
        power, root = self.powers(frame, condition)
        parts = self.components(turned, frame.shape) * (torch.sqrt(power + _FLOOR) / root)[:, None]
        return self._arrange(parts + correction.unflatten(1, (2, -1)), frame, condition)

    def _arrange(self, parts: Tensor, frame: Frame, condition: Tensor) -> Tensor:
        """Scaled components behind the word of the frame, with the power that it leaves; (batch, 2 symbol)."""
        length = condition[:, 3:4] * self.n
        shift = self.mode_symbols[frame.mode][:, None]
        used = torch.arange(self.n, device=parts.device) < (length - shift).round()
        parts = parts * used[:, None]
        budget = (length - self.mode_power[frame.mode][:, None])[:, None]
        parts = parts * torch.sqrt(budget / (parts.square().sum((1, 2), keepdim=True) + _FLOOR))
        place = torch.arange(self.n, device=parts.device)[None] - shift
        kind = torch.where(frame.shape < self.n_shapes, frame.shape, 0)
        words = self.books[frame.mode, kind * self.n_angles + frame.angle]
        words = nn.functional.pad(words.unflatten(1, (2, -1)), (0, max(0, self.n - _N_FRAME)))[..., : self.n]
        shifted = parts.gather(2, place.clamp(min=0)[:, None].expand(-1, 2, -1))
        return torch.where((place < 0)[:, None], words, shifted).flatten(1)

    # -- the base station

    def find(self, code: Tensor, condition: Tensor, present: Tensor | None) -> Frame:
        """Most probable frame of every user.

        Args:
            code: (drop, user, 2 symbol): received.
            condition: (drop, user, number).
            present: (drop, user): who is heard; None: nobody's symbols are used for another.
        """
        mode = self.mode(condition)
        noise = torch.pow(10.0, -condition[..., :1] * (SNR_SCALE_DB / 10))
        symbols = code.unflatten(2, (2, -1))[..., :_N_FRAME]
        symbols = nn.functional.pad(symbols, (0, _N_FRAME - symbols.shape[-1])).flatten(2)
        # Codewords of a mode have equal energy, so that the correlation says all.
        score = (self.books[mode] @ symbols[..., None])[..., 0] * (2 / noise)
        own = score.unflatten(2, (self.n_shapes, self.n_angles)) + self.log_prior
        if self.short:
            own = self._any_kind(own, mode)
        if present is not None and present.shape[1] > 1:
            posterior = torch.softmax(own.flatten(2), 2).unflatten(2, own.shape[2:])
            if self.short:
                # A direction tells of the kind what it always does.
                guess = posterior.sum(2, keepdim=True) * torch.softmax(self.log_prior, 0)
                posterior = torch.where(self.mode_kinds[mode][..., None, None], posterior, guess)
            expected = self.shape_kin.T @ posterior @ self.angle_kin
            prior = self.log_prior.exp()
            told = _from_others(_surprise(expected, prior), present)
            if self.short:
                directions = _surprise(expected.sum(2, keepdim=True), prior.sum(0, keepdim=True))
                told = torch.where(self.mode_kinds[mode][..., None, None], told, _from_others(directions, present))
            own = own + told
        chance, at = torch.softmax(own.flatten(2), 2).flatten(0, 1).max(-1)
        return self._frame(
            mode.flatten(), at % self.n_angles, torch.div(at, self.n_angles, rounding_mode="floor"), chance
        )

    def decode(self, code: Tensor, frame: Frame, condition: Tensor) -> tuple[Tensor, Tensor]:
        """LMMSE of independent components.

        Args:
            code: (batch, 2 symbol).
            frame: as found.
            condition: (batch, number).

        Returns:
            turned CSI, (batch, tap, 2 beams); and the symbols behind those of the frame, (batch, 2 component).
        """
        parts, symbols = self.unpack(code, frame, condition)
        (ax, ay), (bx, by) = (part.unbind(1) for part in self._times_bases(parts, frame.shape, backwards=True))
        return torch.cat([part.reshape(-1, *self.shape) for part in (ax - by, bx + ay)], 2), symbols

    def unpack(self, code: Tensor, frame: Frame, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of the components, (batch, 2, component), and the symbols that carried them, (batch, 2 component).

        Args:
            code: (batch, 2 symbol).
            frame: as found.
            condition: (batch, number).
        """
        power, root = self.powers(frame, condition)
        noise = torch.pow(10.0, -condition[:, :1] * (SNR_SCALE_DB / 10))
        gain = root * torch.sqrt(power + _FLOOR) / (power + noise) * frame.facts[:, -1:]
        place = torch.arange(self.n, device=code.device)[None] + self.mode_symbols[frame.mode][:, None]
        symbols = nn.functional.pad(code.unflatten(1, (2, -1)), (0, _N_FRAME))
        symbols = symbols.gather(2, place[:, None].expand(-1, 2, -1))
        return symbols * gain[:, None], symbols.flatten(1)

    def _times_bases(self, both: Tensor, shape: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
        """Rows times real and imaginary part of the linear code of each; both rows at once, since reading it is slow.

        Args:
            both: (batch, 2, in): real and imaginary parts.
            shape: int64, (batch,): which code.
            backwards: from components to CSI.

        Returns:
            (batch, 2, out) each.
        """
        # All are converted before some are picked: an inference engine does the former once.
        bases = [self.basis[:, part].float() for part in range(2)]
        if torch.jit.is_tracing() or len(shape) <= self.n_codes:
            picked = [basis[shape] for basis in bases]
            if backwards:
                real, imag = ((basis @ both.mT).mT for basis in picked)
            else:
                real, imag = (both @ basis for basis in picked)
            return real, imag
        # A batch would copy a code for each of its rows: it goes code by code.
        order = torch.argsort(shape, stable=True)
        groups = both[order].split(torch.bincount(shape, minlength=self.n_codes).tolist())
        back = torch.argsort(order)
        real, imag = (
            torch.cat([rows @ (one.mT if backwards else one) for rows, one in zip(groups, basis, strict=True)])[back]
            for basis in bases
        )
        return real, imag

    def _any_kind(self, own: Tensor, mode: Tensor) -> Tensor:
        """Where words tell directions alone, the log-likelihoods of these stand in the first kind's row.

        Args:
            own: (drop, user, kind, angle): log-likelihood of words, and the prior of frames.
            mode: (drop, user).
        """
        directions = own[:, :, :1] - self.log_prior[:1] + torch.logsumexp(self.log_prior, 0)
        never = torch.full_like(own[:, :, 1:], -_NEVER)
        alone = torch.cat([directions, never], 2)
        return torch.where(self.mode_kinds[mode][..., None, None], own, alone)

    def _frame(self, mode: Tensor, angle: Tensor, shape: Tensor, chance: Tensor) -> Frame:
        turned = (mode > 0).long()
        shape = shape * turned + self.n_shapes * (1 - turned)
        if self.short:
            shape = torch.where(self.mode_kinds[mode], shape, self.n_shapes + 1)
        chance = torch.where(mode > 0, chance, torch.ones_like(chance))
        kinds = torch.arange(self.n_codes, device=mode.device)
        facts = torch.cat([(shape[:, None] == kinds).to(chance.dtype), chance[:, None]], 1)
        return Frame(mode, angle * turned, shape, facts)

    def _label(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Direction with most power, and kind whose code captures most of it."""
        x, y = features.chunk(2, -1)
        a, b = self.turns[:, :, :, 0].unbind(0)
        angle = ((x @ a.T - y @ b.T).square() + (x @ b.T + y @ a.T).square()).sum(1).argmax(1)
        p, q = self.turn(features, angle).chunk(2, -1)
        return angle, ((p.square() + q.square()).flatten(1) @ self.captured.T).argmax(1)

    # -- learned from draws

    @torch.no_grad()
    def fit(self, csi: Tensor) -> None:
        """Learn directions, kinds, their linear codes, codewords and the plan.

        Args:
            csi: complex64, (drop, user, tap, beam): draws of neighbouring users.
        """
        generator = torch.Generator().manual_seed(1)
        power = csi.abs().square().mean((-2, -1), keepdim=True)
        csi = csi / torch.sqrt(power + 1e-12)
        features = torch.cat([csi.real, csi.imag], -1)
        flat = features.flatten(0, 1)
        self._set_code(self.n_shapes, flat)
        angle, _ = self._label(flat)
        turned = self.turn(flat, angle)
        if self.short:
            self._set_code(self.n_shapes + 1, turned)
        shape = self._fit_shapes(turned)
        self._fit_neighbours(angle.unflatten(0, features.shape[:2]), shape.unflatten(0, features.shape[:2]))
        self._fit_books(*self._costs(turned, shape), generator)
        self._fit_plan(features[:_PLAN_DROPS].flatten(0, 1), generator)

    def _set_code(self, shape: int, features: Tensor) -> Tensor:
        """Linear code of some (turned) CSI; captured power per tap and beam, (size,)."""
        x, y = (part.flatten(1) for part in features.chunk(2, -1))
        z = torch.complex(x, y)
        variances, basis = torch.linalg.eigh(z.T @ z.conj() / len(z))
        n = min(self.n, self.size)
        variances, basis = variances.flip(0)[:n].clamp(min=1e-4), basis.flip(1)[:, :n]
        self.basis[shape] = 0
        self.basis[shape, 0, :, :n], self.basis[shape, 1, :, :n] = basis.real.half(), basis.imag.half()
        self.roots[shape] = 1e-2
        self.roots[shape, :n] = variances.sqrt()
        return basis[:, : max(1, n // 2)].abs().square().sum(1)

    def _fit_shapes(self, turned: Tensor) -> Tensor:
        """Group turned CSI by the code that captures most of it; kind of each."""
        p, q = turned.chunk(2, -1)
        power = (p.square() + q.square()).flatten(1)
        # Begin with groups of equal size, by delay spread.
        delays = torch.arange(self.shape[0], dtype=torch.float32).repeat_interleave(self.shape[1])
        mean = power @ delays / power.sum(1)
        spread = power @ delays.square() / power.sum(1) - mean.square()
        shape = torch.div(spread.argsort().argsort() * self.n_shapes, len(power), rounding_mode="floor")
        for _ in range(_LABEL_ROUNDS):
            for k in range(self.n_shapes):
                mine = shape == k
                if int(mine.sum()) >= 2:
                    self.captured[k] = self._set_code(k, turned[mine])
            shape = (power @ self.captured.T).argmax(1)
        return shape

    def _fit_neighbours(self, angle: Tensor, shape: Tensor) -> None:
        """How probable frames are, alone and given a neighbour's; (drop, user) each."""
        counts = torch.zeros(self.n_shapes, self.n_angles)
        counts.index_put_((shape.flatten(), angle.flatten()), torch.ones(shape.numel()), accumulate=True)
        counts += 0.5
        self.log_prior.copy_((counts / counts.sum()).log())
        if angle.shape[1] < 2:
            return
        apart = (angle[:, 1:] - angle[:, :-1]).flatten() % self.n_angles
        # A direction is as likely left of the neighbour's as right of it.
        steps = torch.bincount(torch.cat([apart, -apart % self.n_angles]), minlength=self.n_angles).float() + 0.1
        first = torch.arange(self.n_angles)
        self.angle_kin.copy_((steps / steps.sum())[(first[None] - first[:, None]) % self.n_angles])
        pairs = torch.zeros(self.n_shapes, self.n_shapes)
        ones = torch.ones(apart.shape)
        pairs.index_put_((shape[:, :-1].flatten(), shape[:, 1:].flatten()), ones, accumulate=True)
        pairs = pairs + pairs.T + 0.5
        self.shape_kin.copy_(pairs / pairs.sum(1, keepdim=True))

    def _fit_books(self, cost: Tensor, apart: Tensor, generator: torch.Generator) -> None:
        """Codewords of the frames, such that what is taken for another is much like it."""
        prior = self.log_prior.exp()
        made: dict[tuple[int, bool], Tensor] = {}
        for at, mode in enumerate(self.ways):
            n = mode.symbols
            if n and (n, mode.kinds) not in made:
                whole = (cost, prior.flatten(), n, self.n_shapes) if mode.kinds else (apart, prior.sum(0), n, 1)
                made[n, mode.kinds] = _book(*whole, generator)
            if n:
                book = made[n, mode.kinds] * math.sqrt(mode.power)
                self.books[at].zero_()
                self.books[at, : len(book), :n] = book[:, :n]
                self.books[at, : len(book), _N_FRAME : _N_FRAME + n] = book[:, n:]

    def _costs(self, turned: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared difference between CSI in one frame and the same components in another; (frame, frame), and
        (angle, angle) for one kind."""
        by_angle = torch.zeros(self.n_angles)
        some = turned[:200]
        for step in range(self.n_angles):
            other = self.turn_back(some, torch.full((len(some),), step))
            by_angle[step] = (other - some).square().sum() / some.square().sum()
        by_shape = torch.zeros(self.n_shapes, self.n_shapes)
        n = max(1, self.n // 4)
        bases = torch.complex(*(self.basis[: self.n_shapes, part, :, :n].float() for part in range(2)))
        for k in range(self.n_shapes):
            mine = turned[shape == k][:100]
            if not len(mine):
                by_shape[k] = 1.0
                continue
            x, y = (part.flatten(1) for part in mine.chunk(2, -1))
            parts = torch.complex(x, y) @ bases[k].conj()
            right = parts @ bases[k].T
            for j in range(self.n_shapes):
                by_shape[k, j] = (parts @ bases[j].T - right).abs().square().sum() / right.abs().square().sum()
        first = torch.arange(self.n_angles)
        apart = by_angle[(first[None] - first[:, None]) % self.n_angles]
        # Of unit vectors that differ in two ways, the correlations are taken to multiply.
        like = (1 - by_shape / 2)[:, None, :, None] * (1 - apart / 2)[None, :, None, :]
        return (2 - 2 * like).reshape(self.n_shapes * self.n_angles, -1), apart

    def _condition(self, length: int, snr_db: float) -> Tensor:
        """What the code looks at among the conditions; (number,)."""
        told = torch.sigmoid(torch.tensor(STEEPNESS * snr_db / SNR_SCALE_DB))
        return torch.tensor([snr_db / SNR_SCALE_DB, float(told), 0.0, length / self.n])

    def _synthesise(self, shape: int, parts: Tensor) -> Tensor:
        """Turned CSI from components of one kind; (batch, tap, 2 beams) from (batch, 2, component)."""
        a, b = self.basis[shape].to(parts.dtype)
        x, y = parts.unbind(1)
        return torch.cat([p.unflatten(1, self.shape) for p in (x @ a.T - y @ b.T, x @ b.T + y @ a.T)], 2)

    def _fit_plan(self, features: Tensor, generator: torch.Generator) -> None:
        """For every length and SNR the mode with the least error over some CSI, users decoded alone.

        Args:
            features: (batch, tap, 2 beams).
            generator: of noise.
        """
        angle, shape = self._label(features)
        sure = torch.ones(len(features))
        energy = features.square().sum((1, 2))
        frames = [self._frame(torch.full_like(angle, mode), angle, shape, sure) for mode in range(len(self.ways))]
        plain, turned = features, self.turn(features, angle)
        made: dict[tuple[bool, bool], Tensor] = {}
        for way, frame in zip(self.ways, frames, strict=True):
            if (bool(way.symbols), way.kinds) not in made:
                made[bool(way.symbols), way.kinds] = self.components(turned if way.symbols else plain, frame.shape)
        for row, length in enumerate(self.plan_lengths):
            mask = (torch.arange(self.n) < length).float().repeat(2)
            for column, snr_db in enumerate(SNRS_DB):
                condition = self._condition(length, snr_db).repeat(len(features), 1)
                deviation = math.sqrt(0.5 * 10 ** (-snr_db / 10))
                errors = []
                for mode, way in enumerate(self.ways):
                    if mode not in self.modes(length):
                        errors.append(math.inf)
                        continue
                    self.plan[row, column] = mode
                    parts = made[bool(way.symbols), way.kinds]
                    sent = self.pack(parts, frames[mode], condition)
                    received = (sent + deviation * torch.randn(sent.shape, generator=generator)) * mask
                    found = self.find(received[:, None], condition[:, None], None)
                    kept = frames[mode]._replace(facts=found.facts)
                    estimate = self.unpack(received, kept, condition)[0]
                    error = energy - parts.square().sum((1, 2)) + (parts - estimate).square().sum((1, 2))
                    mistaken = (found.angle != frames[mode].angle) | (found.shape != frames[mode].shape)
                    for code in range(self.n_codes):
                        at = ((found.shape == code) & mistaken).nonzero()[:, 0]
                        wrong = self.turn_back(
                            self._synthesise(code, self.unpack(received[at], found.of(at), condition[at])[0]),
                            found.angle[at],
                        )
                        error[at] = (wrong - features[at]).square().sum((1, 2))
                    errors.append(float(error.mean()))
                self.plan[row, column] = errors.index(min(errors))


def _surprise(expected: Tensor, prior: Tensor) -> Tensor:
    """What a neighbour's frame adds to the log-probability of one's own, where strangers are possible."""
    return ((1 - _STRANGER) * expected + _STRANGER * prior).clamp(min=1e-12).log() - prior.log()


def _from_others(told: Tensor, present: Tensor) -> Tensor:
    """Sum over all other users that are heard; (drop, user, kind, angle) from the same."""
    told = told * present[..., None, None]
    return told.sum(1, keepdim=True) - told


def _turns(n_antennas: int, n_angles: int) -> Tensor:
    """Matrices that turn rows of beams by each direction of a grid; complex64, (angle, beam, beam)."""
    n = torch.arange(n_antennas, dtype=torch.float64)
    beams = torch.exp(-2j * math.pi * n[:, None] * n / n_antennas) / math.sqrt(n_antennas)
    phases = torch.exp(-2j * math.pi * torch.arange(n_angles, dtype=torch.float64)[:, None] * n / n_angles)
    # Beams to antennas, a phase on each, and back: (beam, antenna) (antenna) (antenna, beam).
    return ((beams.conj() * phases[:, None]) @ beams).to(torch.complex64)


def _times(features: Tensor, real: Tensor, imag: Tensor) -> Tensor:
    """Complex (batch, tap, 2 beams) times (batch, beam, beam)."""
    x, y = features.chunk(2, -1)
    return torch.cat([x @ real - y @ imag, x @ imag + y @ real], -1)


def _book(cost: Tensor, prior: Tensor, symbols: int, n_shapes: int, generator: torch.Generator) -> Tensor:
    """Codewords by gradient descent on the expected cost; (frame, 2 symbols), each of unit mean power."""
    n_frames = len(cost)
    n_angles = n_frames // n_shapes
    angle = 2 * math.pi * torch.arange(n_angles) / n_angles
    # From coarse to fine, as on a vernier scale; kinds of channels begin some way apart.
    turns = 4.0 ** torch.arange(symbols)
    phase = (angle[None, :, None] * turns + torch.rand(n_shapes, 1, symbols, generator=generator) * math.pi).reshape(
        n_frames, symbols
    )
    book = torch.cat([phase.cos(), phase.sin()], 1)
    noise = math.sqrt(0.5 * 10 ** (-_BOOK_SNR_DB / 10))
    with torch.enable_grad():
        weights = book.clone().requires_grad_()
        optimiser = torch.optim.Adam([weights], lr=0.05)
        for step in range(_BOOK_STEPS):
            optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / _BOOK_STEPS)
            sent = _energy(weights, symbols)
            picked = torch.multinomial(prior, _BOOK_BATCH, replacement=True, generator=generator)
            received = sent[picked] + noise * torch.randn(_BOOK_BATCH, 2 * symbols, generator=generator)
            chance = torch.softmax(received @ sent.T / noise**2, 1)
            loss = (chance * cost[picked]).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return _energy(weights.detach(), symbols)


def _energy(book: Tensor, energy: int) -> Tensor:
    """Codewords scaled to an energy each."""
    return book * torch.sqrt(energy / book.square().sum(1, keepdim=True).clamp(min=1e-12))
