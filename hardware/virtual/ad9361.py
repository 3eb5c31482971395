"""A virtual AD9361 or Pluto: the attributes that clients use, with the chip's limits, and its sample streams.

Values are checked and coupled as the chip's driver does (Linux `drivers/iio/adc/ad9361.c`, AD9361 Register Map
Reference Manual): rates and clock chain, filter lengths, gain ranges by carrier frequency, synthesizer step. The
samples follow frequency, gain, bandwidth and rate over the air that the radio hangs on.
"""

from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import numpy as np

from ...errors import RadioError
from .air import Background, VirtualAir
from .iio_model import Cell, Channel, Context, Device
from .iio_streams import UNDERFLOW, RxStream, TxStream, compile_conversions, quantise_into
from .iiod import PORT, IiodServer

PHY = "ad9361-phy"
RX_CORE = "cf-ad9361-lpc"
TX_CORE = "cf-ad9361-dds-core-lpc"

_XO_HZ = 40e6
_SYNTH_MODULUS = 8388593
_ADC_HZ = (25e6, 640e6)
_DAC_MAX_HZ = 336e6
_BBPLL_HZ = (715e6, 1430e6)
_MAX_RATE_HZ = 61_440_000
# Total of the three half-band stages, and each of them from the converter on.
_DIVIDERS = ((12, 3, 2, 2), (8, 2, 2, 2), (6, 3, 2, 1), (4, 2, 2, 1), (3, 3, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1))
_AGC_MODES = ("manual", "fast_attack", "slow_attack", "hybrid")
_ENSM_MODES = ("sleep", "wait", "alert", "fdd", "pinctrl", "pinctrl_fdd_indep")
_RX_PORTS = ("A_BALANCED", "B_BALANCED", "C_BALANCED", "A_N", "A_P", "B_N", "B_P", "C_N", "C_P", "TX_MONITOR1")
_STATUS = 0x80000088
# Product and revision; locks of the baseband, receive and transmit oscillators.
_CHIP_REGISTERS = {0x037: 0x0A, 0x05E: 0x80, 0x247: 0x02, 0x287: 0x02}
# Kernel memory for buffers, as the drivers' allocator bounds it.
_MAX_QUEUE_SAMPLES = 1 << 24
_AGC_TARGET = 0.25


@dataclass(frozen=True)
class Model:
    """What distinguishes one board from another.

    Attributes:
        name: for people.
        chip: for the context.
        rx_lo_hz, tx_lo_hz: lowest and highest carrier.
        chains: per direction.
        fpga_by_8: whether the cores can decimate and interpolate by 8.
    """

    name: str
    chip: str
    rx_lo_hz: tuple[int, int]
    tx_lo_hz: tuple[int, int]
    chains: int
    fpga_by_8: bool


MODELS = {
    "pluto": Model(
        "virtual ADALM-Pluto", "ad9363a", (325_000_000, 3_800_000_000), (325_000_000, 3_800_000_000), 1, True
    ),
    "ad9361": Model(
        "virtual AD9361 2R2T", "ad9361", (70_000_000, 6_000_000_000), (46_875_001, 6_000_000_000), 2, False
    ),
}


class VirtualAd9361:
    """One radio: its chip's state, its context, its server.

    Args:
        air: that it hangs on.
        name: on the air.
        model: one of MODELS.
        address: to listen on.
        port: to listen on; 0 takes a free one.
        ppm: error of its crystal.
        serial: of the context; made from the name unless given.

    Raises:
        RadioError: the address cannot be listened on.
    """

    def __init__(
        self,
        air: VirtualAir,
        name: str = "pluto",
        *,
        model: str = "pluto",
        address: str = "127.0.0.1",
        port: int = PORT,
        ppm: float = 0.0,
        serial: str | None = None,
    ) -> None:
        if model not in MODELS:
            raise ValueError(f"model={model!r} is unknown; choose one of: {', '.join(MODELS)}")
        compile_conversions()
        self.model = MODELS[model]
        self.air = air
        self.name = name
        self.lock = threading.RLock()
        self._crystal_ppm = ppm
        self.radio = air.add_radio(name, self.model.chains, self.model.chains, ppm=ppm)
        self.core_rate_hz = {False: 0, True: 0}
        self.rate_epoch = 0
        self.loopback = 0
        self.bist_tone = (0, 0, 0)
        self.bist_prbs = 0
        self.agc = ["slow_attack"] * self.model.chains
        self.rx_gain_db = [71.0] * self.model.chains
        self.tx_gain_db = [-10.0] * self.model.chains
        self.streams: dict[bool, RxStream | TxStream | None] = {False: None, True: None}
        self.status = {False: 0, True: 0}
        self.losses = {False: 0, True: 0}
        """How often received samples were lost (False), and how often there were none to send (True)."""
        self._tx_source: tuple[Background | None, ...] | None = None
        self._state: dict[str, str] = {}
        self._lo_hz = {False: 2_400_000_000.0, True: 2_450_000_000.0}
        self._lo_down = {False: False, True: False}
        self._ensm = "fdd"
        self._xo_hz = _XO_HZ
        self._taps: dict[bool, list[int]] = {False: [], True: []}
        self._fir_factor = {False: 1, True: 1}
        self._fir_on = {False: False, True: False}
        self._by_8 = {False: False, True: False}
        self._rate_hz = 0
        self._tones = [Tone() for _ in range(4 * self.model.chains)]
        self._registers: dict[str, dict[int, int]] = {}
        self.server: IiodServer | None = None
        self._set_rate(30_720_000)
        for output in (False, True):
            self._bandwidth_hz = getattr(self, "_bandwidth_hz", {}) | {output: 18_000_000}
            self._tune(output)
            self._apply_gains(output)
        serial = serial or f"virtual-{name}"
        self.context = Context(
            f"{self.model.name} {serial}",
            {
                "hw_model": f"{self.model.name} (no hardware)",
                "hw_serial": serial,
                "fw_version": "virtual",
                "ad9361-phy,model": self.model.chip,
                "ad9361-phy,xo_correction": str(int(_XO_HZ)),
                "local,kernel": "virtual",
                "uri": f"ip:{address}",
                "ip,ip-addr": address,
            },
            [self._phy(), self._xadc(), self._core(True), self._core(False)],
        )
        self.server = IiodServer(self.context, address, port)

    @property
    def uri(self) -> str:
        """What to give to clients."""
        assert self.server is not None
        return self.server.uri

    def close(self) -> None:
        """Disconnect all clients and free the port."""
        if self.server is not None:
            self.server.close()
        for chain in self.radio.tx:
            self.air.set_background(chain, None)

    def __enter__(self) -> VirtualAd9361:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transmitting(self) -> bool:
        """Whether anything leaves a transmit port: an open buffer or a tone, with the transmitter on."""
        on = self._ensm in ("fdd", "pinctrl", "pinctrl_fdd_indep") and not self._lo_down[True]
        tone = any(tone.on and tone.scale > 0 for tone in self._tones) or self.bist_tone[0] == 1 or self.bist_prbs == 1
        return on and max(self.tx_gain_db) > -89.75 and (self.streams[True] is not None or tone)

    # Carrier, gain, bandwidth

    def _lo_range(self, output: bool) -> tuple[int, int]:
        return self.model.tx_lo_hz if output else self.model.rx_lo_hz

    def _gain_range(self) -> tuple[float, float]:
        """Receive gains that the gain table has for the carrier."""
        if self._lo_hz[False] <= 1.3e9:
            return -1.0, 73.0
        return (-3.0, 71.0) if self._lo_hz[False] <= 4e9 else (-10.0, 62.0)

    def _set_lo(self, output: bool, text: str) -> None:
        frequency = _whole(text, *self._lo_range(output))
        # VCO between 6 and 12 GHz, a fractional synthesizer on twice the crystal's frequency.
        divider = 2 ** (math.floor(math.log2(12e9 / frequency)))
        reference = 2 * self._xo_hz
        words = round(frequency * divider / reference * _SYNTH_MODULUS)
        self._lo_hz[output] = words * reference / _SYNTH_MODULUS / divider
        self._tune(output)
        if not output:
            low, high = self._gain_range()
            self.rx_gain_db = [min(max(gain, low), high) for gain in self.rx_gain_db]
            self._apply_gains(False)

    def _tune(self, output: bool) -> None:
        self.air.tune(self.radio.tx if output else self.radio.rx, self._lo_hz[output])

    def _set_xo(self, text: str) -> None:
        self._xo_hz = _whole(text, int(_XO_HZ) - 8000, int(_XO_HZ) + 8000)
        self.air.set_ppm(self.radio, ((1 + 1e-6 * self._crystal_ppm) * _XO_HZ / self._xo_hz - 1) * 1e6)

    def _set_rx_gain(self, chain: int, text: str) -> None:
        if self.agc[chain] != "manual":
            raise OSError(errno.EOPNOTSUPP, "gain is under automatic control")
        self.rx_gain_db[chain] = float(round(_decimal(text, *self._gain_range())))
        self._apply_gains(False)

    def _set_tx_gain(self, chain: int, text: str) -> None:
        self.tx_gain_db[chain] = round(_decimal(text, -89.75, 0.0) * 4) / 4
        self._apply_gains(True)

    def _set_agc(self, chain: int, text: str) -> None:
        self.agc[chain] = _choice(text, _AGC_MODES)

    def _apply_gains(self, output: bool) -> None:
        on = self._ensm in ("fdd", "pinctrl", "pinctrl_fdd_indep") and not self._lo_down[output]
        gains = self.tx_gain_db if output else self.rx_gain_db
        for chain, gain in zip(self.radio.tx if output else self.radio.rx, gains, strict=True):
            if chain.tunings[-1].gain_db != (wanted := gain if on else -math.inf):
                self.air.set_gain(chain, wanted)

    def _set_bandwidth(self, output: bool, text: str) -> None:
        self._bandwidth_hz[output] = _whole(text, 200_000, 40_000_000 if output else 56_000_000)
        for chain in self.radio.tx if output else self.radio.rx:
            self.air.set_bandwidth(chain, self._bandwidth_hz[output])

    def _set_ensm(self, text: str) -> None:
        self._ensm = _choice(text, _ENSM_MODES)
        self._apply_gains(True)
        self._apply_gains(False)

    def _set_powerdown(self, output: bool, text: str) -> None:
        self._lo_down[output] = bool(_whole(text, 0, 1))
        self._apply_gains(output)

    def _rssi(self, chain: int) -> str:
        """Received power at the port, as decibels below full scale at 0 dB of gain, in steps of a quarter."""
        port = self.radio.rx[chain]
        heard = self.air.receive(port, max(self.air.now(port) - 4096, 0), 4096)
        gain = port.tunings[-1].gain_db
        power = float(np.mean(np.abs(heard) ** 2)) if math.isfinite(gain) else 0.0
        below = 127.75 if not power else gain - 10 * math.log10(power)
        return f"{round(4 * min(max(below, 0), 127.75)) / 4:.2f} dB"

    # Rates and filters

    def _lowest_rate(self) -> int:
        factor = max(self._fir_factor[o] if self._fir_on[o] else 1 for o in (False, True))
        return int(_ADC_HZ[0] / 12 / factor)

    def _chain_rates(self, rate_hz: int, output: bool) -> tuple[float, ...]:
        """Rates at the half-band stages: converter, after each of the three stages, at the FIR, samples."""
        fir = self._fir_factor[output] if self._fir_on[output] else 1
        nominal = self._state.get("trx_rate_governor", "nominal") == "nominal"
        wanted = rate_hz * fir
        # A DAC that runs at half the ADC's rate leaves half of the division to the stages.
        fitting = [
            entry
            for entry in _DIVIDERS[nominal:]
            if (speed := wanted * entry[0]) <= _DAC_MAX_HZ or (speed <= _ADC_HZ[1] + 1 and entry[0] % 2 == 0)
        ]
        # 50 Hz: the lowest rates are whole numbers.
        total, third, second, _ = fitting[0] if wanted * fitting[0][0] >= _ADC_HZ[0] - 50 else _DIVIDERS[0]
        adc = float(wanted * total)
        dac = adc / 2 if adc > _DAC_MAX_HZ else adc
        if not output:
            return adc, adc / third, adc / third / second, float(rate_hz * fir), float(rate_hz)
        stages = total if dac == adc else total // 2
        parts = [part for entry in _DIVIDERS if entry[0] == stages for part in entry[1:]] or [1, 1, 1]
        return dac, dac / parts[0], dac / parts[0] / parts[1], float(rate_hz * fir), float(rate_hz)

    def _path_rates(self, output: bool) -> str:
        adc = self._chain_rates(self._rate_hz, False)[0]
        pll = adc
        while pll < _BBPLL_HZ[0]:
            pll *= 2
        names = ("DAC", "T2", "T1", "TF", "TXSAMP") if output else ("ADC", "R2", "R1", "RF", "RXSAMP")
        rates = self._chain_rates(self._rate_hz, output)
        return " ".join(f"{n}:{round(r)}" for n, r in zip(("BBPLL", *names), (pll, *rates), strict=True))

    def _check_taps(self, rate_hz: int) -> None:
        """The FIR computes 16 taps per converter clock and sample."""
        for output in (False, True):
            if self._fir_on[output]:
                rates = self._chain_rates(rate_hz, output)
                if len(self._taps[output]) > 16 * max(int(rates[0] // rate_hz), 1):
                    raise OSError(errno.EINVAL, "filter too long for this rate")

    def _set_rate(self, rate_hz: int) -> None:
        if not self._lowest_rate() <= rate_hz <= _MAX_RATE_HZ:
            raise OSError(errno.EINVAL, "rate out of range")
        self._check_taps(rate_hz)
        self._rate_hz = rate_hz
        self._apply_rates()

    def _apply_rates(self) -> None:
        """Begin new sample lines where a stream's rate has changed."""
        for output in (False, True):
            actual = self._rate_hz // 8 if self._by_8[output] else self._rate_hz
            if actual != self.core_rate_hz[output]:
                self.core_rate_hz[output] = actual
                self.rate_epoch += 1
                self.air.set_rate(self.radio.tx if output else self.radio.rx, float(actual))

    def _set_core_rate(self, output: bool, text: str) -> None:
        """On boards with filters in the FPGA the core's rate says whether they run; else it is the chip's."""
        wanted = _whole(text, 0, _MAX_RATE_HZ)
        if not self.model.fpga_by_8:
            self._set_rate(wanted)
            return
        self._by_8[output] = wanted < self._rate_hz / 2
        self._apply_rates()

    def _rates_available(self) -> str:
        return f"[{self._lowest_rate()} 1 {_MAX_RATE_HZ}]"

    def _set_fir_on(self, outputs: tuple[bool, ...], text: str) -> None:
        wanted = bool(_whole(text, 0, 1))
        before = dict(self._fir_on)
        for output in outputs:
            if wanted and not self._taps[output]:
                self._fir_on = before
                raise OSError(errno.EINVAL, "no filter loaded")
            self._fir_on[output] = wanted
        try:
            self._set_rate(self._rate_hz)
        except OSError:
            self._fir_on = before
            raise

    def _load_fir(self, text: str) -> None:
        """Take a filter file: lines RX n GAIN g DEC d, TX n GAIN g INT i, then pairs tx,rx or rx,tx of taps."""
        factors, taps = dict(self._fir_factor), []
        for line in text.splitlines():
            words = line.replace(",", " ").split()
            if not words or words[0].startswith("#"):
                continue
            head = words[0].upper()
            if head in ("RX", "TX"):
                if len(words) != 6:
                    raise OSError(errno.EINVAL, "filter header")
                factors[head == "TX"] = _whole(words[5], 1, 4)
            elif head in ("RTX", "RRX", "BWTX", "BWRX"):
                continue
            else:
                taps.append([_whole(word, -(1 << 15), (1 << 15) - 1) for word in words])
        if not taps or len(taps) > 128 or len(taps) % 16 or 3 in factors.values() or {len(t) for t in taps} - {1, 2}:
            raise OSError(errno.EINVAL, "filter taps")
        self._fir_factor = factors
        self._taps = {False: [t[-1] for t in taps], True: [t[0] for t in taps]}

    def _fir_text(self) -> str:
        rx, tx = self._taps[False], self._taps[True]
        return f"FIR Rx: {len(rx)},{self._fir_factor[False]} Tx: {len(tx)},{self._fir_factor[True]}"

    # Test signals, tones

    def _set_loopback(self, text: str) -> None:
        mode = _whole(text, 0, 2)
        if mode == 2:
            raise OSError(errno.EOPNOTSUPP, "loopback from receiver to transmitter does not exist here")
        self.loopback = mode

    def _set_bist_tone(self, text: str) -> None:
        words = [*text.split(), "0", "0", "0"]
        mode, step, level = (_whole(word, 0, limit) for word, limit in zip(words[:3], (2, 3, 3), strict=True))
        self.bist_tone = mode, step, level
        self.refresh_background()

    def _set_bist_prbs(self, text: str) -> None:
        self.bist_prbs = _whole(text, 0, 2)
        self.refresh_background()

    def _set_tone(self, number: int, name: str, text: str) -> None:
        tone = self._tones[number]
        if name == "raw":
            tone.on = bool(_whole(text, 0, 1))
        elif name == "frequency":
            tone.frequency_hz = _whole(text, 0, self.core_rate_hz[True] // 2)
        elif name == "phase":
            tone.phase_mdeg = _whole(text, 0, 360_000)
        else:
            tone.scale = _decimal(text, 0.0, 1.0)
        self.refresh_background()

    def open_tx(self, source: tuple[Background | None, ...]) -> None:
        """A buffer is open: what it sends by itself replaces the tones."""
        self._tx_source = source
        self.refresh_background()

    def close_tx(self) -> None:
        """No buffer is open any more."""
        self._tx_source = None
        for chain in self.radio.tx:
            chain.cut(self.air.now(chain))
        self.refresh_background()

    def refresh_background(self) -> None:
        """Say anew what each transmitter sends where no samples were handed over."""
        for number, chain in enumerate(self.radio.tx):
            if self.bist_tone[0] == 1 or self.bist_prbs == 1:
                self.air.set_background(chain, self.bist)
            elif self._tx_source is not None:
                self.air.set_background(chain, self._tx_source[number])
            else:
                tones = self._tones[4 * number : 4 * number + 4]
                parts = [
                    (1 if at < 2 else 1j, tone.scale, tone.frequency_hz / chain.rate_hz, tone.phase_mdeg / 360e3)
                    for at, tone in enumerate(tones)
                    if tone.on and tone.scale
                ]
                self.air.set_background(chain, _tones(parts) if parts else None)

    def bist(self, start: int, n: int) -> np.ndarray:
        """The built-in test signal, (n,) complex64."""
        k = np.arange(start, start + n)
        if self.bist_prbs:
            rng_bits = (k.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
            i, q = (rng_bits & np.uint64(0xFFF)).astype(float) - 2048, (rng_bits >> np.uint64(12)).astype(float) - 2048
            return ((i + 1j * q) / 2048).astype(np.complex64)
        _, step, level = self.bist_tone
        return (0.5**level * np.exp(2j * np.pi * (k % 32) * (step + 1) / 32)).astype(np.complex64)

    # Samples

    def receive(self, start: int, columns: tuple[int, ...], out: np.ndarray) -> None:
        """Fill (n, columns) int16 with what the receiver's converters give from an index on."""
        n = len(out)
        for number, chain in enumerate(self.radio.rx):
            wanted = [(at, column % 2) for at, column in enumerate(columns) if column // 2 == number]
            if not wanted:
                continue
            if self.bist_tone[0] == 2 or self.bist_prbs == 2:
                samples = self.bist(start, n)
            elif self.loopback:
                samples = self.air.sent(self.radio.tx[number], start, n)
            else:
                samples = self.air.receive(chain, start, n)
                if self.agc[number] != "manual":
                    self._control_gain(number, samples, start + n)
            parts = samples.view(np.float32)
            for at, part in wanted:
                quantise_into(parts, part, out, at)

    def _control_gain(self, number: int, samples: np.ndarray, at_index: int) -> None:
        """Move a receiver's gain from an index on towards its target level, by at most some decibels per piece."""
        level = float(np.sqrt(np.mean(np.abs(samples) ** 2)))
        if level <= 0:
            return
        step = 20 * math.log10(_AGC_TARGET / level)
        limit = 20.0 if self.agc[number] == "fast_attack" else 6.0
        with self.lock:
            low, high = self._gain_range()
            gain = round(min(max(self.rx_gain_db[number] + min(max(step, -limit), limit), low), high))
            if abs(gain - self.rx_gain_db[number]) >= 2 or (gain in (low, high) and gain != self.rx_gain_db[number]):
                self.rx_gain_db[number] = float(gain)
                self.air.set_gain(self.radio.rx[number], float(gain), at_index)

    def _open(self, output: bool, n: int, columns: tuple[int, ...], cyclic: bool, queue: int) -> RxStream | TxStream:
        if n * queue > _MAX_QUEUE_SAMPLES:
            raise OSError(errno.ENOMEM, "buffers too large")
        with self.lock:
            stream = TxStream(self, n, columns, cyclic, queue) if output else RxStream(self, n, columns, queue)
            self.streams[output] = stream
            self.status[output] = 0
        stream.start()
        return stream

    def read_status(self, output: bool) -> int:
        """The status register of a core."""
        stream = self.streams[output]
        if isinstance(stream, TxStream) and stream.is_dry():
            self.status[True] |= UNDERFLOW
        return self.status[output]

    # What clients see

    def _kept(self, key: str, default: str, check: Callable[[str], str] = str) -> Cell:
        """An attribute that is checked and kept, without further effect."""
        self._state[key] = default

        def write(text: str) -> None:
            self._state[key] = check(text)

        return Cell(lambda: self._state[key], write)

    def _cell(self, read: Callable[[], object] | None, write: Callable[[str], None] | None = None) -> Cell:
        """An attribute whose access excludes all others'."""

        def locked_read() -> str:
            assert read is not None
            with self.lock:
                return str(read())

        def locked_write(text: str) -> None:
            assert write is not None
            with self.lock:
                write(text)

        return Cell(locked_read if read else None, locked_write if write else None)

    def _phy(self) -> Device:
        device = Device("iio:device0", PHY)
        rate = self._cell(lambda: self._rate_hz, lambda text: self._set_rate(_whole(text, 0, 1 << 32)))
        rates = self._cell(self._rates_available)
        for output in (False, True):
            fir = self._cell(partial(lambda o: int(self._fir_on[o]), output), partial(self._set_fir_on, (output,)))
            width = self._cell(partial(lambda o: self._bandwidth_hz[o], output), partial(self._set_bandwidth, output))
            widths = _constant(f"[200000 1 {40_000_000 if output else 56_000_000}]")
            switches = {
                name: self._kept(name, "1", lambda text: str(_whole(text, 0, 1)))
                for name in ("bb_dc_offset_tracking_en", "quadrature_tracking_en", "rf_dc_offset_tracking_en")
            }
            for number in range(self.model.chains):
                channel = Channel(f"voltage{number}", output)
                device.channels.append(channel)
                self._front_end(channel, number)
                channel.add("filter_fir_en", fir, shared=True)
                channel.add("rf_bandwidth", width, shared=True)
                channel.add("rf_bandwidth_available", widths, shared=True)
                channel.add("sampling_frequency", rate, shared=True)
                channel.add("sampling_frequency_available", rates, shared=True)
                for name, cell in switches.items() if not output else ():
                    channel.add(name, cell, shared=True)
        for output in (False, True):
            lo = Channel(f"altvoltage{int(output)}", True, "TX_LO" if output else "RX_LO")
            lo.add("external", self._kept(f"external{output}", "0", lambda text: str(_whole(text, 0, 0))))
            lo.add(
                "frequency",
                self._cell(partial(lambda o: round(self._lo_hz[o]), output), partial(self._set_lo, output)),
            )
            low, high = self._lo_range(output)
            lo.add("frequency_available", _constant(f"[{low} 1 {high}]"))
            lo.add(
                "powerdown",
                self._cell(partial(lambda o: int(self._lo_down[o]), output), partial(self._set_powerdown, output)),
            )
            device.channels.append(lo)
        auxiliary = Channel("voltage2", False)
        for name, value in (("offset", "57"), ("raw", "1024"), ("scale", "0.305250")):
            auxiliary.add(name, _constant(value))
        temperature = Channel("temp0", False)
        temperature.add("input", self._cell(lambda: 32_000 + round(500 * math.sin(self.air.clock.now_s() / 600))))
        both = Channel("out", False)
        both.add(
            "voltage_filter_fir_en",
            self._cell(
                lambda: int(self._fir_on[False] and self._fir_on[True]),
                lambda text: self._set_fir_on((False, True), text),
            ),
            filename="in_out_voltage_filter_fir_en",
        )
        device.channels += [auxiliary, temperature, both]
        for number in (2, 3):
            dac = Channel(f"voltage{number}", True)
            dac.add("raw", self._kept(f"dac{number}", "306", lambda text: str(_whole(text, 0, 1023))))
            dac.add("scale", _constant("1.0"))
            device.channels.append(dac)
        device.attributes = {
            "calib_mode": self._kept(
                "calib_mode", "auto", lambda text: _choice(text, ("auto", "manual", "tx_quad", "rf_dc_offs"))
            ),
            "calib_mode_available": _constant("auto manual tx_quad rf_dc_offs rssi_gain_step"),
            "dcxo_tune_coarse": Cell(None),
            "dcxo_tune_fine": Cell(None),
            "ensm_mode": self._cell(lambda: self._ensm, self._set_ensm),
            "ensm_mode_available": _constant(" ".join(_ENSM_MODES)),
            "filter_fir_config": self._cell(self._fir_text, self._load_fir),
            "gain_table_config": _constant(""),
            "multichip_sync": Cell(None, lambda text: None),
            "rx_path_rates": self._cell(lambda: self._path_rates(False)),
            "tx_path_rates": self._cell(lambda: self._path_rates(True)),
            "trx_rate_governor": self._kept(
                "trx_rate_governor", "nominal", lambda t: _choice(t, ("nominal", "highest_osr"))
            ),
            "trx_rate_governor_available": _constant("nominal highest_osr"),
            "xo_correction": self._cell(lambda: round(self._xo_hz), self._set_xo),
            "xo_correction_available": _constant(f"[{int(_XO_HZ) - 8000} 1 {int(_XO_HZ) + 8000}]"),
        }
        device.debug = {
            "bist_prbs": self._cell(lambda: self.bist_prbs, self._set_bist_prbs),
            "bist_tone": self._cell(lambda: " ".join(map(str, (*self.bist_tone, 0))), self._set_bist_tone),
            "direct_reg_access": self._register(PHY, dict(_CHIP_REGISTERS)),
            "initialize": Cell(None, self._cell(None, lambda text: self._initialize(text)).write),
            "loopback": self._cell(lambda: self.loopback, self._set_loopback),
        }
        return device

    def _front_end(self, channel: Channel, number: int) -> None:
        """Attributes of one chain alone."""
        if channel.output:
            channel.add(
                "hardwaregain",
                self._cell(lambda: f"{self.tx_gain_db[number]:f} dB", lambda text: self._set_tx_gain(number, text)),
            )
            channel.add("hardwaregain_available", _constant("[-89.750000 0.250000 0.000000]"))
            channel.add("rf_port_select", self._kept(f"tx_port{number}", "A", lambda text: _choice(text, ("A", "B"))))
            channel.add("rf_port_select_available", _constant("A B"))
            return
        channel.add("gain_control_mode", self._cell(lambda: self.agc[number], lambda text: self._set_agc(number, text)))
        channel.add("gain_control_mode_available", _constant(" ".join(_AGC_MODES)))
        channel.add(
            "hardwaregain",
            self._cell(lambda: f"{self.rx_gain_db[number]:f} dB", lambda text: self._set_rx_gain(number, text)),
        )
        channel.add("hardwaregain_available", self._cell(lambda: "[{:.0f} 1 {:.0f}]".format(*self._gain_range())))
        channel.add(
            "rf_port_select", self._kept(f"rx_port{number}", _RX_PORTS[0], lambda text: _choice(text, _RX_PORTS))
        )
        channel.add("rf_port_select_available", _constant(" ".join(_RX_PORTS)))
        channel.add("rssi", self._cell(lambda: self._rssi(number)))

    def _initialize(self, text: str) -> None:
        """Set the chip up anew: carriers get other phases."""
        _whole(text, 1, 1)
        for output in (False, True):
            self._tune(output)

    def _xadc(self) -> Device:
        temperature = Channel("temp0", False)
        for name, value in (("offset", "-2219"), ("raw", "2560"), ("scale", "123.040771484")):
            temperature.add(name, _constant(value))
        return Device("iio:device1", "xadc", [temperature])

    def _core(self, output: bool) -> Device:
        device = Device("iio:device2" if output else "iio:device3", TX_CORE if output else RX_CORE)
        rate = self._cell(lambda: self.core_rate_hz[output], lambda text: self._set_core_rate(output, text))
        rates = self._cell(lambda: f"{self._rate_hz} {self._rate_hz // 8} ")
        unreadable = Cell(None)
        for index in range(2 * self.model.chains):
            channel = Channel(f"voltage{index}", output, scan_index=index)
            channel.format = "le:S16/16>>0" if output else "le:S12/16>>0"
            for name in ("calibphase", "calibscale") if output else ("calibbias", "calibphase", "calibscale"):
                default = "0" if name == "calibbias" else f"{float(name == 'calibscale'):.6f}"
                channel.add(name, self._kept(f"{device.name}{index}{name}", default, _number_text))
            if not output:
                channel.add("samples_pps", unreadable, shared=True)
            channel.add("sampling_frequency", rate, shared=True)
            if self.model.fpga_by_8:
                channel.add("sampling_frequency_available", rates, shared=True)
            device.channels.append(channel)
        tone_rate = self._cell(lambda: self.core_rate_hz[True])
        for number in range(4 * self.model.chains if output else 0):
            side, part, tone = number // 4 + 1, "IQ"[number // 2 % 2], number % 2 + 1
            channel = Channel(f"altvoltage{number}", True, f"TX{side}_{part}_F{tone}")
            for name in ("frequency", "phase", "raw", "scale"):
                channel.add(
                    name,
                    self._cell(
                        partial(self._tones[number].text, name),
                        partial(self._set_tone, number, name),
                    ),
                )
            channel.add("sampling_frequency", tone_rate, shared=True)
            device.channels.append(channel)
        device.debug = {"direct_reg_access": self._register(device.name, {}, output)}
        device.buffer = {
            "data_available": self._cell(lambda: int(self.streams[output] is not None)),
            "length_align_bytes": _constant("8"),
            "watermark": self._kept(f"{device.name}watermark", "2048", lambda text: str(_whole(text, 1, 1 << 28))),
        }
        device.outputs_samples = output
        device.open = lambda n, columns, cyclic, queue: self._open(output, n, columns, cyclic, queue)
        return device

    def _register(self, name: str, values: dict[int, int], output: bool | None = None) -> Cell:
        """Register access by text: an address selects, an address and a value write, reading reads."""
        self._registers[name] = values
        chosen = [0]

        def read() -> str:
            value = values.get(chosen[0], 0)
            if output is not None and chosen[0] == _STATUS:
                value = self.read_status(output)
            return f"0x{value:X}"

        def write(text: str) -> None:
            words = text.split()
            try:
                numbers = [int(word, 0) for word in words]
            except ValueError:
                numbers = []
            if len(numbers) not in (1, 2) or not all(0 <= number < 1 << 32 for number in numbers):
                raise OSError(errno.EINVAL, "register")
            chosen[0] = numbers[0]
            if len(numbers) == 2:
                if output is not None and chosen[0] == _STATUS:
                    self.status[output] = 0
                elif len(values) < 4096 or chosen[0] in values:
                    values[chosen[0]] = numbers[1]

        return self._cell(read, write)


@dataclass
class Tone:
    """One of the four tone generators of a transmit chain."""

    frequency_hz: int = 1_000_000
    phase_mdeg: int = 0
    scale: float = 0.0
    on: bool = True

    def text(self, name: str) -> str:
        """An attribute's value."""
        values = {"frequency": self.frequency_hz, "phase": self.phase_mdeg, "raw": int(self.on)}
        return f"{self.scale:f}" if name == "scale" else str(values[name])


def open_radios(
    air: VirtualAir, places: Sequence[str], model: str = "pluto", ppm: Sequence[float] = ()
) -> list[VirtualAd9361]:
    """Open several radios of one model on one air, each named by its place.

    Args:
        air: that they share.
        places: ADDRESS or ADDRESS:PORT of this machine, one for each.
        model: one of MODELS.
        ppm: errors of the crystals, in order; 0 for those without.

    Raises:
        RadioError: a model, a port or an address that cannot be; those opened before are closed again.
    """
    if model not in MODELS:
        raise RadioError(f"model {model!r} is unknown; choose one of: {', '.join(MODELS)}")
    if len(ppm) > len(places):
        raise RadioError(f"{len(ppm)} errors in ppm were given for {len(places)} radios; give one per radio at most")
    opened: list[VirtualAd9361] = []
    try:
        for place, error in zip_longest(places, ppm, fillvalue=0.0):
            address, colon, port = str(place).partition(":")
            if colon and not (port.isdecimal() and int(port) < 65536):
                raise RadioError(f"{place!r} has no port between 0 and 65535 behind its colon")
            if place in air.radios:
                raise RadioError(f"{place!r} was given twice; each radio needs an address or a port of its own")
            number = int(port) if colon else PORT
            opened.append(VirtualAd9361(air, str(place), model=model, address=address, port=number, ppm=float(error)))
    except RadioError:
        for radio in opened:
            radio.close()
        raise
    return opened


def _constant(text: str) -> Cell:
    return Cell(lambda: text)


def _whole(text: str, low: float, high: float) -> int:
    """A whole number within limits, or EINVAL."""
    try:
        value = int(text, 10)
    except ValueError:
        raise OSError(errno.EINVAL, "not a whole number") from None
    if not low <= value <= high:
        raise OSError(errno.EINVAL, "out of range")
    return value


def _decimal(text: str, low: float, high: float) -> float:
    """A number within limits, a unit behind it ignored, or EINVAL."""
    try:
        value = float(text.split()[0])
    except (ValueError, IndexError):
        raise OSError(errno.EINVAL, "not a number") from None
    if not low <= value <= high:
        raise OSError(errno.EINVAL, "out of range")
    return value


def _number_text(text: str) -> str:
    return f"{_decimal(text, -1e6, 1e6):f}"


def _choice(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise OSError(errno.EINVAL, "not one of those allowed")
    return text


def _tones(parts: list[tuple[complex, float, float, float]]) -> Background:
    """Sum of sines: (1 or j, amplitude, cycles per sample, cycles at index 0)."""

    def send(start: int, n: int) -> np.ndarray:
        k = np.arange(start, start + n, dtype=np.float64)
        total = np.zeros(n, dtype=np.complex64)
        for unit, scale, cycles, phase in parts:
            total += np.complex64(unit * scale) * np.sin(2 * np.pi * np.mod(cycles * k + phase, 1.0)).astype(np.float32)
        return np.minimum(np.maximum(total.view(np.float32), -1), 1).view(np.complex64)

    return send
