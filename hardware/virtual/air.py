"""The air between virtual radios: what every receive chain hears of every transmit chain.

Amplitude 1 is full scale of a converter at 0 dB of gain on either side. A receive chain at index k gives

    y[k] = g_rx LP_rx( n[k] + sum_tx g_tx exp(j (2 pi (f_tx - f_rx) k / rate + phi_tx - phi_rx)) (h * LP_tx x)[k] )

over the transmit chains of equal sample rate whose frequency lies within half the rate, with the carrier frequencies
as the radios' own references make them. Indices are absolute: index k of a chain lies k / rate seconds after the
beginning of the air, for all radios, unless `sampling_drift` lets each radio count by its own reference.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numba import njit
from scipy.signal import firwin
from scipy.special import ndtri

from ...blocks.waveforms.impairments import KERNEL_TAPS, delay_rows
from ...models.channels import ChannelConfig, draw_paths
from .clock import Clock, RealTimeClock

Background = Callable[[int, int], np.ndarray]
"""What a chain sends where nothing was handed over: (first index, n) -> (n,) complex64."""

_FILTER_TAPS = 31
# Quantiles of the normal distribution, 2^16 of equal probability.
_NORMAL = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
_NORMAL = (_NORMAL / _NORMAL.std()).astype(np.float32)
_MAX_CHANGES = 256
# Taps on either side of a drawn path whose delay is no whole number of samples.
_SINC_TAPS = 8
# The resampling of a drifting clock is held over this many samples, counted absolutely.
_DRIFT_PIECE = 512
# The rotation of a frequency offset is computed anew at every multiple of this index.
_FINE = 64


@dataclass(frozen=True)
class Tuning:
    """State of a chain from one index on.

    Attributes:
        start_index: first sample.
        frequency_hz: true carrier, the reference's error included.
        nominal_hz: carrier that was asked for.
        gain_db: of the chain.
        phase_rad: of the oscillator at index 0.
        bandwidth_hz: of the chain's analogue filter; one beyond the sample rate passes everything.
    """

    start_index: int
    frequency_hz: float
    nominal_hz: float
    gain_db: float
    phase_rad: float
    bandwidth_hz: float


class Chain:
    """One port of a radio, a transmitter's or a receiver's. Made by `VirtualAir.add_radio`, changed by its methods."""

    def __init__(self, radio: AirRadio, number: int, position: int, rate_hz: float) -> None:
        self.radio = radio
        self.number = number
        """Index within the radio."""
        self.position = position
        """Row (receiver) or column (transmitter) in the matrix of paths."""
        self.rate_hz = rate_hz
        self.tunings = [Tuning(0, 0.0, 0.0, 0.0, 0.0, math.inf)]

    def __str__(self) -> str:
        return f"{self.radio.name}/{type(self).__name__.removesuffix('Chain').lower()}{self.number}"

    def pieces(self, start: int, stop: int) -> list[int]:
        """Indices in (start, stop) at which the state changes."""
        return [tuning.start_index for tuning in self.tunings if start < tuning.start_index < stop]

    def at(self, index: int) -> Tuning:
        """State at an index."""
        for tuning in reversed(self.tunings):
            if tuning.start_index <= index:
                return tuning
        return self.tunings[0]

    def change(self, at_index: int, **values: float) -> None:
        """Append a state; later ones that were foreseen are dropped, and long past ones forgotten."""
        kept = [tuning for tuning in self.tunings if tuning.start_index < at_index][-_MAX_CHANGES:]
        last = kept[-1] if kept else self.tunings[0]
        self.tunings = [*kept, replace(last, start_index=at_index, **values)]

    def begin(self, rate_hz: float) -> None:
        """Begin a sample line of another rate."""
        self.rate_hz = rate_hz
        self.tunings = [replace(self.tunings[-1], start_index=0)]


class RxChain(Chain):
    """A receiver's port."""

    noise_key: np.uint64 | None = None


class TxChain(Chain):
    """A transmitter's port: a ring of samples handed over, and what is sent where there are none."""

    def __init__(self, radio: AirRadio, number: int, position: int, rate_hz: float) -> None:
        super().__init__(radio, number, position, rate_hz)
        self.reserved = 0
        self._lock = threading.Lock()
        self._ring = np.zeros(0, dtype=np.complex64)
        self._first = self._end = 0
        self._background: list[tuple[int, Background | None]] = [(0, None)]

    def begin(self, rate_hz: float) -> None:
        with self._lock:
            super().begin(rate_hz)
            self._first = self._end = 0
            self._background = [(0, self._background[-1][1])]

    def put(self, start: int, samples: np.ndarray, capacity: int) -> None:
        """Lay samples into the ring, over what lay there at these indices."""
        with self._lock:
            if self._ring.size < capacity:
                self._grow(capacity)
            size = self._ring.size
            if samples.size > size:
                start, samples = start + samples.size - size, samples[-size:]
            if start > self._end:
                if self._first == self._end:
                    self._first = self._end = start
                else:
                    self._fill(max(self._end, start - size), start, None)
            start_kept = max(start, self._first)
            if start_kept > start:
                samples = samples[start_kept - start :]
            if samples.size:
                self._fill(start_kept, start_kept + samples.size, samples)
                self._end = max(self._end, start_kept + samples.size)
                self._first = max(self._first, self._end - size)

    def cut(self, at: int) -> None:
        """Forget what was handed over from an index on."""
        with self._lock:
            self._end = max(self._first, min(self._end, at))

    def put_background(self, function: Background | None, at: int) -> None:
        """Say what is sent from an index on where the ring has nothing."""
        with self._lock:
            kept = [entry for entry in self._background if entry[0] < at][-_MAX_CHANGES:]
            self._background = [*kept, (at, function)] if kept else [(0, function)]

    def get(self, start: int, stop: int) -> np.ndarray | None:
        """What is sent at indices [start, stop): (n,) complex64; None where that is silence alone."""
        with self._lock:
            a, b = max(start, self._first), min(stop, self._end)
            backgrounds = [
                (max(start, at), min(stop, following), function)
                for (at, function), following in zip(
                    self._background, [*(at for at, _ in self._background[1:]), stop], strict=True
                )
                if function is not None and max(start, at) < min(stop, following)
            ]
            if a >= b and not backgrounds:
                return None
            out = np.zeros(stop - start, dtype=np.complex64)
            for low, high, function in backgrounds:
                out[low - start : high - start] = function(low, high - low)
            if a < b:
                size = self._ring.size
                at, n = a % size, b - a
                head = min(n, size - at)
                out[a - start : a - start + head] = self._ring[at : at + head]
                out[a - start + head : b - start] = self._ring[: n - head]
            return out

    def _fill(self, start: int, stop: int, samples: np.ndarray | None) -> None:
        size = self._ring.size
        at, n = start % size, stop - start
        head = min(n, size - at)
        self._ring[at : at + head] = 0 if samples is None else samples[:head]
        self._ring[: n - head] = 0 if samples is None else samples[head:]

    def _grow(self, capacity: int) -> None:
        old, size = self._ring, self._ring.size
        index = np.arange(self._first, self._end)
        self._ring = np.zeros(1 << (capacity - 1).bit_length(), dtype=np.complex64)
        self._ring[index % self._ring.size] = old[index % size] if size else 0


class AirRadio:
    """One radio on the air.

    Args:
        name: unlike any other on this air.
        ppm: error of its reference; carriers follow it, and with `sampling_drift` the sample clock, too.
    """

    def __init__(self, name: str, ppm: float) -> None:
        self.name = name
        self.ppm = ppm
        self.tx: tuple[TxChain, ...] = ()
        self.rx: tuple[RxChain, ...] = ()


class VirtualAir:
    """Every path between the transmit and receive chains of virtual radios.

    Samples follow from the seed, from what is sent and from its indices alone: the sizes in which they are taken make
    no difference. All methods may be called from any thread.

    Args:
        clock: shared by all radios; the machine's own unless given.
        seed: of noise, phases and drawn channels.
        noise_power: per complex sample at each receiver's port, before its gain.
        path_gain_db: of paths that were not set otherwise.
        random_phase: each tuning of an oscillator begins at a phase of its own, as in real radios; otherwise at 0.
        sampling_drift: a reference's error moves the sample clock, too, and not only the carrier.
        history_s: how long ago a receiver may look, at least; bounded by 2^24 samples.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        seed: int = 0,
        noise_power: float = 1e-10,
        path_gain_db: float = 0.0,
        random_phase: bool = True,
        sampling_drift: bool = False,
        history_s: float = 0.5,
    ) -> None:
        if noise_power < 0 or history_s <= 0:
            raise ValueError(f"noise_power={noise_power} must be at least 0 and history_s={history_s} above 0")
        self.clock = clock or RealTimeClock()
        self.seed = seed
        self.noise_power = noise_power
        self.path_gain_db = path_gain_db
        self.random_phase = random_phase
        self.sampling_drift = sampling_drift
        self.history_s = history_s
        self.radios: dict[str, AirRadio] = {}
        self.tx_chains: list[TxChain] = []
        self.rx_chains: list[RxChain] = []
        self._paths: dict[tuple[int, int], np.ndarray] = {}
        self._model: ChannelConfig | None = None
        self._redraw_s: float | None = None
        self._drawn: dict[tuple[int, int, float, int], np.ndarray] = {}
        self._filters: dict[tuple[float, float], np.ndarray] = {}
        self._phases = np.random.default_rng([seed, 1])
        _compile()
        self._lock = threading.RLock()

    def add_radio(self, name: str, n_tx: int, n_rx: int, *, rate_hz: float = 1e6, ppm: float = 0.0) -> AirRadio:
        """Put a radio on the air.

        Raises:
            ValueError: there is one of that name already.
        """
        with self._lock:
            if name in self.radios:
                raise ValueError(f"a radio {name!r} is on this air already; each needs a name of its own")
            radio = AirRadio(name, ppm)
            at_tx, at_rx = len(self.tx_chains), len(self.rx_chains)
            radio.tx = tuple(TxChain(radio, i, at_tx + i, rate_hz) for i in range(n_tx))
            radio.rx = tuple(RxChain(radio, i, at_rx + i, rate_hz) for i in range(n_rx))
            self.radios[name] = radio
            self.tx_chains += radio.tx
            self.rx_chains += radio.rx
            return radio

    # Paths

    def set_path(self, rx: RxChain, tx: TxChain, taps: complex | np.ndarray) -> None:
        """Set what lies between two ports.

        Args:
            rx: receiver's port.
            tx: transmitter's port.
            taps: amplitude, or (taps,) impulse response at the sample rate; 0 is no path.
        """
        h = np.atleast_1d(np.asarray(taps, dtype=np.complex64))
        with self._lock:
            self._paths[rx.position, tx.position] = h[:0] if not h.any() else h

    def set_channel(self, h: np.ndarray) -> None:
        """Set all paths.

        Args:
            h: (rx chains, tx chains) or (rx chains, tx chains, taps) complex, in the order the radios were added.
        """
        if h.shape[:2] != (len(self.rx_chains), len(self.tx_chains)):
            raise ValueError(
                f"h has shape {h.shape}, but the air has {len(self.rx_chains)} receive and "
                f"{len(self.tx_chains)} transmit chains"
            )
        for rx in self.rx_chains:
            for tx in self.tx_chains:
                self.set_path(rx, tx, h[rx.position, tx.position])

    def draw_channel(self, config: ChannelConfig | None, redraw_s: float | None = None) -> None:
        """Draw the paths that were not set otherwise from the statistics of a channel model, scaled by `path_gain_db`.

        The receive chains of one radio are one array. Doppler is left out: paths stand still.

        Args:
            config: the channel; None for a plain gain again.
            redraw_s: other paths are drawn after so long, over and over; None: the first ones hold.
        """
        with self._lock:
            self._model = config
            self._redraw_s = redraw_s if config is not None else None
            self._drawn.clear()

    def path(self, rx: RxChain, tx: TxChain, draw: int = 0) -> np.ndarray:
        """Impulse response between two ports at the receiver's rate, (taps,) complex64; empty where there is none.

        Args:
            rx: receiver's port.
            tx: transmitter's port.
            draw: number of the draw, where paths are drawn over and over.
        """
        found = self._paths.get((rx.position, tx.position))
        if found is None:
            key = (rx.position, tx.position, rx.rate_hz, draw)
            if key not in self._drawn:
                if len(self._drawn) > 4096:
                    self._drawn.clear()
                self._draw_paths(rx.radio, tx, rx.rate_hz, draw)
            found = self._drawn[key]
        return found

    def _draw_paths(self, radio: AirRadio, tx: TxChain, rate_hz: float, draw: int) -> None:
        """Draw what an array hears of a transmitter: the same rays at every rate."""
        gain = 10 ** (self.path_gain_db / 20)
        h = np.full((len(radio.rx), 1), gain, dtype=np.complex128)
        if self._model is not None:
            rng = np.random.default_rng([self.seed, 2, radio.rx[0].position, tx.position, *([draw] if draw else [])])
            paths = draw_paths(self._model, len(radio.rx), rng)
            lead = _SINC_TAPS if self._model.delay_spread_s else 0
            at = np.arange(-lead, math.ceil(self._model.max_delay_s * rate_hz) + lead + 1)
            lag = at - paths.tap_delays_s[:, None] * rate_hz
            window = np.cos(np.pi / 2 * np.clip(lag / (_SINC_TAPS + 1), -1, 1)) ** 2
            h = gain * (paths.static_gains.T @ (np.sinc(lag) * window))
            # What is weaker by 60 dB than all together is not heard.
            strong = np.flatnonzero(np.sum(np.abs(h) ** 2, axis=0) > 1e-6 * np.sum(np.abs(h) ** 2))
            h = h[:, : strong[-1] + 1]
        for row, chain in zip(h, radio.rx, strict=True):
            self._drawn[chain.position, tx.position, rate_hz, draw] = row.astype(np.complex64)

    # Settings of chains

    def now(self, chain: Chain) -> int:
        """Index of the sample that a chain is taking now."""
        return math.floor(self.clock.now_s() * self.true_rate_hz(chain))

    def time_of(self, chain: Chain, index: int) -> float:
        """When a chain's sample with this index is there, in seconds of the clock."""
        return index / self.true_rate_hz(chain)

    def true_rate_hz(self, chain: Chain) -> float:
        """Sample rate as the radio's reference makes it."""
        return chain.rate_hz * (1 + 1e-6 * chain.radio.ppm if self.sampling_drift else 1.0)

    def set_rate(self, chains: Sequence[Chain], rate_hz: float) -> None:
        """Begin sample lines of another rate. What was sent on the old ones is forgotten."""
        with self._lock:
            for chain in chains:
                chain.begin(rate_hz)

    def tune(
        self,
        chains: Sequence[Chain],
        frequency_hz: float,
        at_index: int | None = None,
        phase_rad: float | None = None,
    ) -> None:
        """Set the one oscillator of some chains.

        Args:
            chains: that share it.
            frequency_hz: by the radio's own reference.
            at_index: first sample at that frequency; the present one unless given.
            phase_rad: at index 0; unless given 0, or drawn where `random_phase` is on.
        """
        with self._lock:
            if phase_rad is None:
                phase_rad = float(self._phases.uniform(0, 2 * math.pi)) if self.random_phase else 0.0
            for chain in chains:
                true_hz = frequency_hz * (1 + 1e-6 * chain.radio.ppm)
                at = self.now(chain) if at_index is None else at_index
                chain.change(at, frequency_hz=true_hz, nominal_hz=frequency_hz, phase_rad=phase_rad)

    def set_gain(self, chain: Chain, gain_db: float, at_index: int | None = None) -> None:
        """Set the gain of a chain; -inf is off."""
        with self._lock:
            chain.change(self.now(chain) if at_index is None else at_index, gain_db=gain_db)

    def set_bandwidth(self, chain: Chain, bandwidth_hz: float, at_index: int | None = None) -> None:
        """Set the width, both sides of the carrier together, of a chain's analogue filter."""
        with self._lock:
            chain.change(self.now(chain) if at_index is None else at_index, bandwidth_hz=bandwidth_hz)

    def set_ppm(self, radio: AirRadio, ppm: float) -> None:
        """Change the error of a radio's reference; its carriers go on without a jump of phase."""
        with self._lock:
            radio.ppm = ppm
            for chain in (*radio.tx, *radio.rx):
                at, last = self.now(chain), chain.tunings[-1]
                true_hz = last.nominal_hz * (1 + 1e-6 * ppm)
                turned = math.fmod((last.frequency_hz - true_hz) / chain.rate_hz * at, 1.0)
                chain.change(at, frequency_hz=true_hz, phase_rad=last.phase_rad + 2 * math.pi * turned)

    # Samples

    def transmit(self, chain: TxChain, start_index: int, samples: np.ndarray) -> None:
        """Hand over samples to be sent, over what was handed over for the same indices.

        Only what lies within the history is kept: hand over no more than about half of it ahead.

        Args:
            chain: transmitter's port.
            start_index: of the first sample.
            samples: (n,) complex64, full scale 1.
        """
        chain.put(start_index, np.asarray(samples, dtype=np.complex64), self._capacity(chain))

    def reserve(self, chain: TxChain, n: int) -> None:
        """Allow samples to be handed over this far ahead, whatever the history's length."""
        chain.reserved = n

    def set_background(self, chain: TxChain, function: Background | None, at_index: int | None = None) -> None:
        """Say what a chain sends where nothing was handed over: a cyclic buffer, tones, or None for silence."""
        chain.put_background(function, self.now(chain) if at_index is None else at_index)

    def sent(self, chain: TxChain, start_index: int, n: int) -> np.ndarray:
        """What a chain sends, before gain and filter: (n,) complex64. For loopback inside a radio."""
        found = chain.get(start_index, start_index + n)
        return np.zeros(n, dtype=np.complex64) if found is None else found

    def receive(self, chain: RxChain, start_index: int, n: int) -> np.ndarray:
        """What a chain receives.

        Args:
            chain: receiver's port.
            start_index: of the first sample. The future is received without what will be handed over for it.
            n: samples.

        Returns:
            (n,) complex64, full scale 1, neither rounded nor clipped.
        """
        with self._lock:
            draws = self._draws(chain, start_index, start_index + n)
            senders = {
                draw: [
                    (tx, taps)
                    for tx in self.tx_chains
                    if tx.rate_hz == chain.rate_hz and (taps := self.path(chain, tx, draw)).size
                ]
                for _, draw in draws
            }
            cuts = {start_index, start_index + n, *chain.pieces(start_index, start_index + n)}
            edges = sorted(cuts.union(at for at, _ in draws))
        parts = []
        for a, b in pairwise(edges):
            draw = next(draw for at, draw in reversed(draws) if at <= a)
            parts.append(self._receive(chain, senders[draw], a, b))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _draws(self, chain: RxChain, start: int, stop: int) -> list[tuple[int, int]]:
        """Which draws of the paths hold at indices [start, stop): where each begins, and its number."""
        if self._redraw_s is None:
            return [(start, 0)]
        step = max(round(self._redraw_s * chain.rate_hz), 1)
        return [(max(start, number * step), number) for number in range(start // step, -(-stop // step))]

    def _receive(self, chain: RxChain, senders: list[tuple[TxChain, np.ndarray]], start: int, stop: int) -> np.ndarray:
        """Receive over an interval in which the receiver's own state does not change."""
        state = chain.at(start)
        low_pass = self._filter(state.bandwidth_hz, chain.rate_hz)
        first = start - low_pass.size + 1
        heard = self._noise(chain, first, stop)
        for tx, taps in senders:
            edges = [first, *tx.pieces(first, stop), stop]
            for a, b in pairwise(edges):
                sender = tx.at(a)
                offset_hz = sender.frequency_hz - state.frequency_hz
                if abs(offset_hz) >= chain.rate_hz / 2 or sender.gain_db == -math.inf:
                    continue
                h = taps
                tx_filter = self._filter(sender.bandwidth_hz, tx.rate_hz)
                if tx_filter.size > 1:
                    h = np.convolve(h, tx_filter)
                x = self._sent_as_heard(chain, tx, a - h.size + 1, b)
                if x is None:
                    continue
                _add_turned(
                    heard[a - first : b - first],
                    _filtered(x, h.astype(np.complex64)),
                    offset_hz / chain.rate_hz,
                    a,
                    10 ** (sender.gain_db / 20),
                    sender.phase_rad - state.phase_rad,
                )
        if low_pass.size > 1:
            heard = _filtered(heard, low_pass)
        heard *= np.float32(10 ** (state.gain_db / 20))
        return heard

    def _sent_as_heard(self, rx: RxChain, tx: TxChain, start: int, stop: int) -> np.ndarray | None:
        """What a transmitter sends, on the receiver's sample line."""
        drift = (1 + 1e-6 * tx.radio.ppm) / (1 + 1e-6 * rx.radio.ppm) - 1 if self.sampling_drift else 0.0
        if not drift:
            return tx.get(start, stop)
        # Whole pieces, so that the delay of a sample depends on its index alone.
        begin = start - start % _DRIFT_PIECE
        width = -(begin - stop) // _DRIFT_PIECE * _DRIFT_PIECE + _DRIFT_PIECE
        low = math.floor(begin * (1 + drift)) - 2 * KERNEL_TAPS
        high = math.ceil((begin + width) * (1 + drift)) + 2 * KERNEL_TAPS
        source = tx.get(low, high)
        if source is None:
            return None
        inner = np.array([low + KERNEL_TAPS], dtype=np.int64)
        return delay_rows(
            begin,
            width,
            source,
            np.array([KERNEL_TAPS], dtype=np.int64),
            inner,
            np.array([source.size - 2 * KERNEL_TAPS], dtype=np.int64),
            np.zeros(1),
            drift,
            _DRIFT_PIECE,
        )[0, start - begin : stop - begin]

    def _capacity(self, chain: TxChain) -> int:
        return min(max(int(2 * self.history_s * chain.rate_hz), 1 << 20), 1 << 24) + 2 * chain.reserved

    def _filter(self, bandwidth_hz: float, rate_hz: float) -> np.ndarray:
        """Taps of an analogue filter, (taps,) complex64; one tap where it passes everything."""
        if bandwidth_hz >= 0.95 * rate_hz:
            return np.ones(1, dtype=np.complex64)
        key = (bandwidth_hz, rate_hz)
        if key not in self._filters:
            if len(self._filters) > 64:
                self._filters.clear()
            self._filters[key] = firwin(_FILTER_TAPS, bandwidth_hz / 2, fs=rate_hz).astype(np.complex64)
        return self._filters[key]

    def _noise(self, chain: RxChain, start: int, stop: int) -> np.ndarray:
        """Noise of a receiver at indices [start, stop), (n,) complex64."""
        out = np.zeros(stop - start, dtype=np.complex64)
        if self.noise_power:
            if chain.noise_key is None:
                chain.noise_key = np.random.SeedSequence([self.seed, 3, chain.position]).generate_state(1, np.uint64)[0]
            # Each part is the sum of two draws of variance 1.
            _draw_noise(
                out.view(np.float32), chain.noise_key, start, _NORMAL, np.float32(math.sqrt(self.noise_power) / 2)
            )
        return out


@functools.cache
def _compile() -> None:
    """Have the compiled functions ready before time passes."""
    some = np.zeros(2, dtype=np.complex64)
    _draw_noise(some.view(np.float32), np.uint64(1), 0, _NORMAL, np.float32(1))
    _add_turned(some, some, 0.5, 0, 1.0, 0.0)
    _convolve(some.view(np.float32), some[:1], some.view(np.float32))


def _filtered(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Convolve and keep what depends on all taps. Returns (x.size - h.size + 1,) complex64."""
    if h.size == 1:
        return x * h[0]
    out = np.zeros(x.size - h.size + 1, dtype=np.complex64)
    _convolve(x.view(np.float32), h, out.view(np.float32))
    return out


@njit(cache=True, nogil=True)
def _draw_noise(out, key, start, normal, scale):
    """Write noise; a sample follows from key and index alone.

    64 bits per sample come from the finaliser of SplitMix64 (Steele, Lea, Flood 2014) and choose four of 2^16
    normal quantiles; the sum of two of them is normal to far beyond what any receiver's threshold looks at.
    """
    for i in range(out.size // 2):
        z = key + np.uint64(start + i) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        out[2 * i] = scale * (normal[z & np.uint64(0xFFFF)] + normal[(z >> np.uint64(16)) & np.uint64(0xFFFF)])
        out[2 * i + 1] = scale * (normal[(z >> np.uint64(32)) & np.uint64(0xFFFF)] + normal[z >> np.uint64(48)])


@njit(cache=True, nogil=True)
def _add_turned(out, x, cycles, start, amplitude, phase):
    """Add x, scaled and turned by `cycles` per sample counted from index 0; a sample depends on its index alone."""
    if cycles == 0:
        still = np.complex64(amplitude * complex(math.cos(phase), math.sin(phase)))
        for i in range(x.size):
            out[i] += still * x[i]
        return
    ahead = complex(math.cos(2 * math.pi * cycles), math.sin(2 * math.pi * cycles))
    i = 0
    while i < x.size:
        index = start + i
        anchor = index - index % _FINE
        whole = cycles * anchor
        angle = 2 * math.pi * (whole - math.floor(whole)) + phase
        z = amplitude * complex(math.cos(angle), math.sin(angle))
        for _ in range(index - anchor):
            z *= ahead
        for _ in range(min(_FINE - (index - anchor), x.size - i)):
            out[i] += np.complex64(z) * x[i]
            z *= ahead
            i += 1


@njit(cache=True, fastmath={"contract"}, nogil=True)
def _convolve(x, h, out):
    """Valid part of a convolution; x and out are real and imaginary parts in turn."""
    # A piece of the output stays in the cache while all taps pass over it.
    for p0 in range(0, out.size, 4096):
        y = out[p0 : min(p0 + 4096, out.size)]
        for k in range(h.size):
            lag = p0 + 2 * (h.size - 1 - k)
            s = x[lag : lag + y.size]
            a, b = h[k].real, h[k].imag
            if b == 0:
                for i in range(y.size):
                    y[i] += a * s[i]
            else:
                for i in range(0, y.size, 2):
                    y[i] += a * s[i] - b * s[i + 1]
                    y[i + 1] += a * s[i + 1] + b * s[i]
