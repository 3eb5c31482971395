"""Every other radio for which SoapySDR has a driver, through gr-soapy.

SoapySDR's drivers are modules that it loads by itself; `SoapySDRUtil --info` tells which are there.
"""

from __future__ import annotations

import atexit
import importlib
import ipaddress
import math
import os
import weakref
from collections.abc import Iterable
from typing import Any

from ..errors import RadioError, SetupError
from .radio import Capabilities, Link, Radio, RadioInfo, Settings

_OWN_KEYS = ("tx_channels", "rx_antenna", "tx_antenna")
_LOCAL_TIMES = ("internal", "none")
_SHOWN_RANGES = 4
_RATE_TOLERANCE = 1e-6
_FREQUENCY_TOLERANCE = 1e-5


class SoapyRadio(Radio):
    """One device of SoapySDR.

    The stream carries times, and tells of losses, where the driver gives times; where it does not, a loss is seen on
    standard error only. What the transmitter reports ends there, too.

    Args:
        address: device arguments as of SoapySDR, such as `driver=lime,serial=1D4`, among them any of: `tx_channels`
            (1 where the device transmits), `rx_antenna`, `tx_antenna`.
        n_rx: receive channels that are wanted.

    Raises:
        RadioError: there is no such device, or it has too few channels.
        SetupError: gr-soapy is not installed.
    """

    kind = "soapy"
    foreign = True
    _source: Any = None
    _sink: Any = None

    def __init__(self, address: str, n_rx: int) -> None:
        self._soapy = _load()
        self._own, self._args = _split(address)
        self._n_rx = n_rx
        self._n_tx = _wanted_tx(self._own)
        self._settings: Settings | None = None
        self._devices = _enumerate(self._args)
        self._make_blocks()
        rates = self._source.get_sample_rate_range(0)
        gains = self._sink.get_gain_range(0) if self._n_tx else None
        has_time = bool(self._source.has_hardware_time(""))
        self.capabilities = Capabilities(
            n_rx=n_rx,
            n_tx=self._n_tx,
            emulates_users=False,
            sample_rates_hz=(min(r.minimum() for r in rates), max(r.maximum() for r in rates)),
            has_hw_time=has_time,
            phase_stable_across_retune=False,
            overflow_reporting="located" if has_time else "none",
            loopback_modes=(),
            # SoapySDR does not tell how many bits a sample has.
            datatype="cf32_le",
            path="sim" if _is_virtual(self._args, self._devices) else "air",
            tx_gains_db=None if gains is None else (gains.minimum(), gains.maximum()),
        )
        _silence_at_exit(self)

    @classmethod
    def open(cls, address: str, link: Link) -> SoapyRadio:
        """Open a device with the receive channels that a link needs."""
        return cls(address, link.n_rx)

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """Devices that the drivers find by themselves, where SoapySDR's Python module is there."""
        found = []
        for facts in _enumerate(""):
            keys = [key for key in ("driver", "serial", "addr", "uri") if facts.get(key)]
            address = ",".join(f"{key}={facts[key]}" for key in keys)
            name = facts.get("label", "").strip() or facts.get("driver", "device")
            found.append(RadioInfo(cls.kind, address, f"{name}, through SoapySDR", facts))
        return found

    def configure(self, requested: Settings) -> Settings:
        """Set clocks, rate, frequency, bandwidth and gains; transmit gain is the least unless one is asked for.

        Raises:
            RadioError: a value is outside what the device can do, or it takes another one.
        """
        self._settings = None
        if self._given:
            self._make_blocks()
        try:
            self._check(requested)
            self._set_clocks(requested)
            for device, way, n, gains in self._ways(requested):
                for channel in range(n):
                    self._set(device, way, channel, requested, gains[channel] if gains else None)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, RadioError):
                raise
            raise RadioError(f"{self._args!r} refuses a setting: {_line(error)}") from error
        self._settings = Settings(
            sample_rate_hz=self._source.get_sample_rate(0),
            frequency_hz=self._source.get_frequency(0),
            rx_gain_db=tuple(self._source.get_gain(channel) for channel in range(self._n_rx)),
            tx_gain_db=tuple(self._sink.get_gain(channel) for channel in range(self._n_tx)),
            bandwidth_hz=None if requested.bandwidth_hz is None else self._source.get_bandwidth(0),
            clock_source=self._source.get_clock_source() or "internal",
            time_source=self._source.get_time_source() or "none",
        )
        return self._settings

    def source(self) -> Any:
        """The gr-soapy source; `rx_time` is there where the driver gives times."""
        self._configured("source")
        self._given = True
        return self._source

    def sink(self) -> Any:
        """The gr-soapy sink, or None where the device does not transmit."""
        self._configured("sink")
        self._given = True
        return self._sink

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Change the transmit gain of all channels, also while samples flow."""
        if not self._n_tx:
            return super().set_tx_gain_db(gain_db)
        self._configured("set_tx_gain_db")
        for channel in range(self._n_tx):
            self._check_ranges("gain_db", gain_db, [self._sink.get_gain_range(channel)], "dB")
            self._sink.set_gain(channel, gain_db)
        return float(self._sink.get_gain(0))

    def silence(self) -> None:
        """Turn every transmitter down as far as it goes."""
        if self._sink is not None:
            for channel in range(self._n_tx):
                self._sink.set_gain(channel, self._sink.get_gain_range(channel).minimum())

    def locks(self) -> dict[str, bool]:
        """Sensors of the device and its channels that tell of a lock, where it has such."""
        found = {}
        if self._source is not None:
            sources = self._source.get_clock_source(), self._source.get_time_source()
            for name in self._source.list_sensors():
                # A cable that nobody asked for need not be there.
                if name.endswith("locked") and (name != "mimo_locked" or "mimo" in sources):
                    found[name] = _is_true(self._source.read_sensor(name))
            for channel in range(self._n_rx):
                for name in self._source.list_sensors(channel):
                    if name.endswith("locked"):
                        found[f"{name} {channel}"] = _is_true(self._source.read_sensor(channel, name))
        return found

    def facts(self) -> dict[str, Any]:
        """Serial numbers, driver, and what the driver tells of the device."""
        device = self._devices[0] if self._devices else {}
        return {
            "serials": [device["serial"]] if device.get("serial") else [],
            "driver": f"SoapySDR {device.get('driver', '')}".strip(),
            "device_arguments": self._args,
            "device": device,
            "antennas": [self._source.get_antenna(channel) for channel in range(self._n_rx)] if self._source else [],
        }

    def close(self) -> None:
        """Turn the transmitters down and let the device go."""
        self.silence()
        self._settings = self._source = self._sink = None

    # Inside

    def _configured(self, what: str) -> None:
        if self._settings is None:
            raise RadioError(f"the device {self._args!r} was not configured: call configure() before {what}()")

    def _ways(self, requested: Settings) -> list[tuple[Any, str, int, tuple[float, ...]]]:
        ways = [(self._source, "rx", self._n_rx, requested.rx_gain_db)]
        if self._n_tx:
            ways.append((self._sink, "tx", self._n_tx, requested.tx_gain_db))
        return ways

    def _make_blocks(self) -> None:
        """Make new blocks; the old ones go first, for a device has one stream each way. That takes long."""
        self._source = self._sink = None
        self._given = False
        n_tx = self._n_tx
        try:
            self._source = self._block(self._soapy.source, self._n_rx)
            try:
                self._sink = self._block(self._soapy.sink, max(n_tx, 1)) if n_tx != 0 else None
            except ValueError:
                # Only a receiver, unless more was asked for.
                if "tx_channels" in self._own:
                    raise
                n_tx = 0
        except (RuntimeError, ValueError) as error:
            self._source = self._sink = None
            raise RadioError(
                f"SoapySDR cannot open {self._args!r} with {self._n_rx} receive and {self._n_tx} transmit channel(s): "
                f"{_line(error)}; `semair radios` and `SoapySDRUtil --find` show what is there"
            ) from error
        self._n_tx = n_tx
        for device, way, n in ((self._source, "rx", self._n_rx), (self._sink, "tx", self._n_tx)):
            for channel in range(n if f"{way}_antenna" in self._own else 0):
                antenna, there = self._own[f"{way}_antenna"], device.list_antennas(channel)
                if antenna not in there:
                    raise RadioError(f"{way}_antenna={antenna} is none of {self._args!r}: {', '.join(there)}")
                device.set_antenna(channel, antenna)

    def _block(self, make: Any, n: int) -> Any:
        return make(self._args, "fc32", n, "", "", [""] * n, [""] * n)

    def _check(self, requested: Settings) -> None:
        for device, way, n, gains in self._ways(requested):
            if gains and len(gains) != n:
                raise RadioError(
                    f"{way}_gain_db has {len(gains)} value(s), but there are {n} channel(s); give one each"
                )
            for channel in range(n):
                rates, frequencies = device.get_sample_rate_range(channel), device.get_frequency_range(channel)
                self._check_ranges("sample_rate_hz", requested.sample_rate_hz, rates, "Hz")
                self._check_ranges("frequency_hz", requested.frequency_hz, frequencies, "Hz")
                if requested.bandwidth_hz is not None:
                    bandwidths = device.get_bandwidth_range(channel)
                    self._check_ranges("bandwidth_hz", requested.bandwidth_hz, bandwidths, "Hz")
                if gains:
                    self._check_ranges(f"{way}_gain_db", gains[channel], [device.get_gain_range(channel)], "dB")
        if requested.tx_gain_db and not self._n_tx:
            raise RadioError(f"tx_gain_db={list(requested.tx_gain_db)}: {self._args!r} does not transmit")

    def _check_ranges(self, name: str, value: float, ranges: Any, unit: str) -> None:
        spans = [(item.minimum(), item.maximum()) for item in ranges]
        if not any(_lies(value, low, high) for low, high in spans):
            raise RadioError(f"{name}={value:.10g} is outside what {self._args!r} does: {_shown(value, spans)} {unit}")

    def _set_clocks(self, requested: Settings) -> None:
        time_source = "external" if requested.time_source == "pps" else requested.time_source
        for what, wanted in (("clock", requested.clock_source), ("time", time_source)):
            there = list(getattr(self._source, f"list_{what}_sources")())
            if wanted in there:
                getattr(self._source, f"set_{what}_source")(wanted)
            elif wanted not in _LOCAL_TIMES:
                raise RadioError(
                    f"{what}_source={wanted!r} is none of {self._args!r}: {', '.join(there) or 'it has no choice'}"
                )

    def _set(self, device: Any, way: str, channel: int, requested: Settings, gain_db: float | None) -> None:
        device.set_sample_rate(channel, requested.sample_rate_hz)
        device.set_frequency(channel, requested.frequency_hz)
        if requested.bandwidth_hz is not None:
            device.set_bandwidth(channel, requested.bandwidth_hz)
        if device.has_gain_mode(channel):
            # Gains that move by themselves are no gains that can be told.
            device.set_gain_mode(channel, False)
        if gain_db is None and way == "tx":
            gain_db = device.get_gain_range(channel).minimum()
        if gain_db is not None:
            device.set_gain(channel, gain_db)
        for name, wanted, actual, tolerance in (
            ("sample_rate_hz", requested.sample_rate_hz, device.get_sample_rate(channel), _RATE_TOLERANCE),
            ("frequency_hz", requested.frequency_hz, device.get_frequency(channel), _FREQUENCY_TOLERANCE),
        ):
            if abs(actual - wanted) > tolerance * wanted:
                raise RadioError(
                    f"{name}={wanted:.10g} was asked of {way} channel {channel} of {self._args!r}, which took "
                    f"{actual:.10g}; ask for that"
                )


def _load() -> Any:
    """The module gnuradio.soapy."""
    # What drivers tell on their way belongs in no output of ours; warnings still come.
    os.environ.setdefault("UHD_LOG_CONSOLE_LEVEL", "warning")
    os.environ.setdefault("SOAPY_SDR_LOG_LEVEL", "WARNING")
    try:
        return importlib.import_module("gnuradio.soapy")
    except ImportError as error:
        raise SetupError(f"gr-soapy cannot be imported: {error}; mend it with: apt install gnuradio") from error


def _enumerate(args: str) -> list[dict[str, str]]:
    """Devices that SoapySDR finds; none where its Python module is missing."""
    os.environ.setdefault("UHD_LOG_CONSOLE_LEVEL", "warning")
    os.environ.setdefault("SOAPY_SDR_LOG_LEVEL", "WARNING")
    try:
        soapy = importlib.import_module("SoapySDR")
    except ImportError:
        return []
    found = [dict(device) for device in soapy.Device.enumerate(args)]
    return [device for device in found if device.get("driver") != "null"]


def _split(address: str) -> tuple[dict[str, str], str]:
    """Keys of this module, and the device arguments that remain for SoapySDR."""
    own, rest = {}, []
    for item in filter(None, (part.strip() for part in address.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise RadioError(f"device argument {item!r} must be key=value, such as driver=lime")
        if key.strip() in _OWN_KEYS:
            own[key.strip()] = value.strip()
        else:
            rest.append(item)
    return own, ",".join(rest)


def _wanted_tx(own: dict[str, str]) -> int:
    text = own.get("tx_channels", "1")
    if not text.isdigit():
        raise RadioError(f"tx_channels={text!r} must be a whole number from 0 on")
    return int(text)


def _is_virtual(args: str, devices: list[dict[str, str]]) -> bool:
    """Whether a device is a virtual one: by its own word, and on this machine alone."""
    hosts = [part.partition("=")[2] for part in args.split(",") if part.strip().startswith("addr")]
    try:
        local = bool(hosts) and all(ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:
        return False
    return local and bool(devices) and all(device.get("name") == "virtual" for device in devices)


def _lies(value: float, low: float, high: float) -> bool:
    # Bounds are rounded now and then.
    slack = 1e-6 * max(abs(low), abs(high))
    return math.isfinite(value) and low - slack <= value <= high + slack


def _shown(value: float, spans: Iterable[tuple[float, float]]) -> str:
    """Spans, the nearest ones where there are many."""
    ordered = sorted(spans)
    near = sorted(ordered, key=lambda span: min(abs(span[0] - value), abs(span[1] - value)))[:_SHOWN_RANGES]
    texts = [f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}" for low, high in sorted(near)]
    if len(ordered) > len(near):
        return f"among others {', '.join(texts)}, in all {ordered[0][0]:.10g} to {ordered[-1][1]:.10g}"
    return ", ".join(texts) or "nothing"


def _line(error: BaseException) -> str:
    return f"{' '.join(str(error).split()):.400}"


def _is_true(text: Any) -> bool:
    return str(text).lower() in ("true", "1", "locked")


def _silence_at_exit(radio: SoapyRadio) -> None:
    """Turn the transmitters down when the interpreter ends, if the radio is still there."""
    where = weakref.ref(radio)

    def silence() -> None:
        if (there := where()) is not None:
            there.silence()

    atexit.register(silence)
