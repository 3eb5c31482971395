"""AD936x radios through libiio: ADALM-Pluto, AD9361 and AD9364 boards of one or two chains, and virtual ones."""

from __future__ import annotations

import atexit
import errno
import importlib
import ipaddress
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import RadioError, SetupError
from .iio_streams import TIMEOUT_MS, Core, IioSink, IioSource, has_flags
from .radio import Capabilities, Link, Radio, RadioInfo, Settings

_PHY, _RX_CORE, _TX_CORE = "ad9361-phy", "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc"
_OWN_KEYS = ("tx_channels", "gain_mode", "loopback", "rx_port", "tx_port", "xo_hz")
_LOOPBACKS = ("off", "digital", "rf")
_SCHEMES = ("ip:", "usb:", "local:", "serial:")
_RX_LO, _TX_LO = "altvoltage0", "altvoltage1"
# With the longest of pyadi-iio's filters, which divides by four; some boards divide by eight more in their logic.
_LOWEST_RATE_HZ = 521e3
_LOGIC_DIVIDER = 8
# The driver tells whole hertz, rounded at each of its dividers.
_RATE_ROUNDING_HZ = 2.0
_SYNTHESISER_STEP = 5e-9
# Register, bit and name of each lock (AD9361 Register Map Reference Manual, UG-671).
_LOCKS = (
    (0x05E, 7, "baseband oscillator"),
    (0x247, 1, "rx oscillator"),
    (0x287, 1, "tx oscillator"),
)


class IioRadio(Radio):
    """One AD936x behind libiio. It has no time of its own, and tells that samples were lost, but not where.

    Samples flow through libiio's buffers, settings through pyadi-iio, both in one context: over USB a device admits
    no second one. The transmitters begin at their greatest attenuation with the tone generators off, and are left so,
    with their oscillator powered down, by `close`, by an error, and when the interpreter ends. Where this process is
    killed, the device's server ends the stream when the connection breaks, so that nothing but the carrier's leakage
    is left; attenuation and oscillator stay as they were.

    Args:
        address: as of libiio, such as `ip:192.168.2.1`, `usb:` or `usb:1.4.5`, empty for the only one there is; behind
            it, separated by commas, any of: `tx_channels` (1), `gain_mode` (manual where gains are given, otherwise
            as it is), `loopback` (digital: what is sent is received, inside the chip; rf: what is received is sent),
            `rx_port`, `tx_port`, `xo_hz` (true frequency of the crystal, against which carrier and rate are set).
        n_rx: receive chains that are wanted.

    Raises:
        RadioError: there is no such device, another program has it, or it has too few chains.
        SetupError: libiio or its Python modules are missing, or do not fit each other.
    """

    kind = "iio"
    foreign = True
    # Until it is open.
    _closed = True

    def __init__(self, address: str, n_rx: int) -> None:
        self._iio, adi = _load()
        uri, self._own = _split(address)
        self._uri = uri or _only_one(self._iio)
        n_tx = _whole(self._own, "tx_channels", 1, 0)
        self._settings: Settings | None = None
        self._source: IioSource | None = None
        self._sink: IioSink | None = None
        context = _open_context(self._iio, self._uri)
        devices = {device.name: device for device in context.devices}
        missing = [name for name in (_PHY, _RX_CORE, _TX_CORE) if name not in devices]
        if missing:
            there = ", ".join(str(name) for name in devices if name) or "nothing"
            raise RadioError(f"{self._uri} has no {', '.join(missing)}, so it is no AD936x radio; it has {there}")
        self._phy = devices[_PHY]
        self._context = context
        self._rx = Core(self._uri, self._iio, context, devices[_RX_CORE], False, n_rx)
        self._tx = Core(
            self._uri, self._iio, context, devices[_TX_CORE], True, n_tx, counts=self._rx.counts, gone=self._rx.gone
        )
        self._chains = {core.output: _chains(core.device) for core in (self._rx, self._tx)}
        for core, name, wanted in ((self._rx, "receive", n_rx), (self._tx, "transmit", n_tx)):
            if wanted > self._chains[core.output]:
                raise RadioError(
                    f"{self._uri} has {self._chains[core.output]} {name} chain(s), but {wanted} are wanted; set "
                    f"{'radio.n_antennas' if name == 'receive' else 'tx_channels'} to what it has"
                )
        with self._asking("does not open"):
            self._control = (adi.ad9361 if self._chains[False] > 1 else adi.ad9364)(context)
            # A device that streams for another program is left as it is.
            for core in (self._rx, self._tx):
                core.flags = has_flags(core.device)
                if core.n_chains:
                    core.open(core.buffer_samples(1e6))
            context.set_timeout(TIMEOUT_MS)
            gains = [self._range(f"voltage{chain}", True, "hardwaregain") for chain in range(self._chains[True])]
            rates = self._range("voltage0", False, "sampling_frequency")
            self._logic = [
                core for core in (self._rx, self._tx) if "sampling_frequency_available" in _attributes(core.device)
            ]
            modes = _LOOPBACKS[1:] if "loopback" in self._phy.debug_attrs else ()
        self.capabilities = Capabilities(
            n_rx=n_rx,
            n_tx=n_tx,
            emulates_users=False,
            sample_rates_hz=(_LOWEST_RATE_HZ / (_LOGIC_DIVIDER if len(self._logic) == 2 else 1), rates[1]),
            has_hw_time=False,
            phase_stable_across_retune=False,
            overflow_reporting="count" if self._rx.flags else "none",
            loopback_modes=modes,
            datatype="ci16_le",
            path="sim" if _is_virtual(self._uri, context.attrs) else "air",
            tx_gains_db=(max(low for low, _ in gains), min(high for _, high in gains)) if n_tx else None,
        )
        self._closed = False
        self._rx.owner = self._tx.owner = weakref.ref(self)
        _close_at_exit(self)

    def __del__(self) -> None:
        # Nobody can use it any more, so nothing shall be sent.
        with suppress(RadioError):
            self.close()

    @classmethod
    def open(cls, address: str, link: Link) -> IioRadio:
        """Open a device with the receive chains that a link needs."""
        return cls(address, link.n_rx)

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """AD936x that libiio finds on USB, on this machine and announced in the network; others go by their address."""
        try:
            iio, _ = _load()
        except SetupError:
            return []
        return _scan(iio)

    def configure(self, requested: Settings) -> Settings:
        """Set rate, carrier, bandwidth and gains; transmit gain is the least unless one is asked for.

        The analogue bandwidth follows the rate unless one is asked for. Gains stay as they are unless given.

        Raises:
            RadioError: a value is outside what the device can do, or it takes another one.
        """
        self._settings = None
        self._source = self._sink = None
        self._open_only()
        self._rx.counts.clear()
        with self._asking("does not say what it can do"):
            self._check(requested)
        with self._asking("cannot be turned down"):
            self._turn_off()
        with self._asking(f"refuses a sample rate of {requested.sample_rate_hz:.10g} Hz"):
            rate_hz = self._set_rate(requested.sample_rate_hz)
        with self._asking("refuses a setting"):
            self._set_options()
            self._set_carrier(requested)
            self._set_gains(requested)
            self._settings = self._read_back(requested, rate_hz)
        self._source = IioSource(self._rx, rate_hz, self._settings.frequency_hz)
        self._sink = IioSink(self._tx, rate_hz) if self.capabilities.n_tx else None
        return self._settings

    def source(self) -> IioSource:
        """What the receive chains hear; its stream has no times."""
        self._configured("source")
        assert self._source is not None
        return self._source

    def sink(self) -> IioSink | None:
        """What the transmit chains send, or None where `tx_channels` is 0."""
        self._configured("sink")
        return self._sink

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Change the transmit gain of all chains, also while samples flow; 0 dB is the highest there is."""
        if not self.capabilities.n_tx:
            return super().set_tx_gain_db(gain_db)
        self._configured("set_tx_gain_db")
        with self._asking(f"refuses a transmit gain of {gain_db:g} dB"):
            for chain in range(self.capabilities.n_tx):
                self._check_range("gain_db", gain_db, self._range(f"voltage{chain}", True, "hardwaregain"), "dB")
            for chain in range(self.capabilities.n_tx):
                setattr(self._control, f"tx_hardwaregain_chan{chain}", gain_db)
            return float(self._control.tx_hardwaregain_chan0)

    def silence(self) -> None:
        """Turn every transmitter down as far as it goes; of a device that is gone nothing can be asked."""
        if not self._closed and not self._rx.gone.is_set():
            with self._asking("cannot be turned down"):
                self._least_gains()

    def locks(self) -> dict[str, bool]:
        """Whether its oscillators are locked, where the kernel lets its registers be read."""
        found: dict[str, bool] = {}
        if self._closed or "direct_reg_access" not in self._phy.debug_attrs:
            return found
        with suppress(OSError):
            for register, bit, name in _LOCKS:
                found[name] = bool(self._phy.reg_read(register) >> bit & 1)
            if self._attribute(_TX_LO, True, "powerdown") == "1":
                found.pop("tx oscillator", None)
        return found

    def facts(self) -> dict[str, Any]:
        """Serial number, board, firmware, driver, temperature, and how the chip is set."""
        if self._closed:
            return {"serials": [], "driver": "libiio"}
        attributes = self._context.attrs
        facts: dict[str, Any] = {
            "serials": [attributes["hw_serial"]] if attributes.get("hw_serial") else [],
            "driver": f"libiio {'.'.join(str(part) for part in self._iio.version[:2])}",
            "uri": self._uri,
            "board": attributes.get("hw_model", ""),
            "firmware_version": attributes.get("fw_version", ""),
            "chip": attributes.get("ad9361-phy,model", ""),
        }
        if self._rx.gone.is_set():
            return facts
        with suppress(OSError):
            modes = [
                self._attribute(f"voltage{chain}", False, "gain_control_mode") for chain in range(self._rx.n_chains)
            ]
            facts["gain_modes"] = modes
            facts["agc"] = any(mode != "manual" for mode in modes)
            facts["loopback"] = _LOOPBACKS[int(self._control.loopback)] if self.capabilities.loopback_modes else "off"
            facts["clocks"] = {way: self._phy.attrs[f"{way}_path_rates"].value for way in ("rx", "tx")}
            facts["filter"] = self._phy.attrs["filter_fir_config"].value
            facts["xo_hz"] = int(self._phy.attrs["xo_correction"].value)
            facts["temperature_c"] = float(self._attribute("temp0", False, "input")) / 1000
        return facts

    def counts(self) -> dict[str, Any]:
        """How often the radio told of lost samples, or of none to send; samples clipped before they were sent."""
        return dict(self._rx.counts)

    def close(self) -> None:
        """End the streams, turn the transmitters off, and let go of the device."""
        if self._closed:
            return
        for block in (self._source, self._sink):
            if block is not None:
                block.stop()
        try:
            if not self._rx.gone.is_set():
                with self._asking("cannot be turned off"):
                    self._turn_off()
        finally:
            self._closed = True
            self._settings = self._source = self._sink = None
            # Streams that others still hold keep the context until they end.
            del self._control, self._phy, self._context
            self._rx.device = self._tx.device = self._rx.context = self._tx.context = None

    # Inside

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turns what the driver refuses into an error that says which device it was."""
        try:
            yield
        except OSError as error:
            raise self._rx.error(error, what) from error

    def _open_only(self) -> None:
        if self._closed:
            raise RadioError(f"the radio {self._uri} was closed; open it again")

    def _configured(self, what: str) -> None:
        self._open_only()
        if self._settings is None:
            raise RadioError(f"the radio {self._uri} was not configured: call configure() before {what}()")

    def _channel(self, name: str, output: bool, device: Any = None) -> Any:
        found = (device or self._phy).find_channel(name, output)
        if found is None:
            raise RadioError(f"the radio {self._uri} has no channel {name}; is its firmware that of an AD936x?")
        return found

    def _attribute(self, channel: str, output: bool, name: str) -> str:
        return str(self._channel(channel, output).attrs[name].value).strip()

    def _write(self, channel: str, output: bool, name: str, value: str) -> None:
        self._channel(channel, output).attrs[name].value = value

    def _range(self, channel: str, output: bool, name: str) -> tuple[float, float]:
        """Lowest and highest value that an attribute takes."""
        numbers = self._attribute(channel, output, f"{name}_available").strip("[]").split()
        return float(numbers[0]), float(numbers[-1])

    def _check(self, requested: Settings) -> None:
        low, high = self.capabilities.sample_rates_hz
        self._check_range("sample_rate_hz", requested.sample_rate_hz, (low, high), "Hz")
        ways = [(False, "rx", _RX_LO, self._rx, requested.rx_gain_db)]
        if self.capabilities.n_tx or requested.tx_gain_db:
            ways.append((True, "tx", _TX_LO, self._tx, requested.tx_gain_db))
        for output, way, oscillator, core, gains in ways:
            self._check_range(
                "frequency_hz", requested.frequency_hz, self._range(oscillator, True, "frequency"), f"Hz ({way})"
            )
            if requested.bandwidth_hz is not None:
                widths = self._range("voltage0", output, "rf_bandwidth")
                self._check_range("bandwidth_hz", requested.bandwidth_hz, widths, f"Hz ({way})")
            if gains and len(gains) != core.n_chains:
                raise RadioError(
                    f"{way}_gain_db has {len(gains)} value(s), but there are {core.n_chains} channel(s); give one each"
                )
        for chain, gain_db in enumerate(requested.tx_gain_db):
            self._check_range("tx_gain_db", gain_db, self._range(f"voltage{chain}", True, "hardwaregain"), "dB")
        if requested.clock_source != "internal" or requested.time_source not in ("none", "internal"):
            raise RadioError(
                f"clock_source={requested.clock_source!r} and time_source={requested.time_source!r} are nothing that "
                f"{self._uri} can choose: it has the clock of its board, and no time; set internal and none"
            )

    def _check_range(self, name: str, value: float, allowed: tuple[float, float], unit: str) -> None:
        if not (math.isfinite(value) and allowed[0] <= value <= allowed[1]):
            raise RadioError(
                f"{name}={value:.10g} is outside what {self._uri} does: {allowed[0]:.10g} to {allowed[1]:.10g} {unit}"
            )

    def _least_gains(self) -> None:
        for chain in range(self._chains[True]):
            low, _ = self._range(f"voltage{chain}", True, "hardwaregain")
            setattr(self._control, f"tx_hardwaregain_chan{chain}", low)

    def _turn_off(self) -> None:
        """Greatest attenuation, no tones, no test signals, no carrier."""
        self._least_gains()
        for channel in self._tx.device.channels:
            if channel.id.startswith("altvoltage"):
                channel.attrs["scale"].value = "0"
                channel.attrs["raw"].value = "0"
        for name, off in (("bist_tone", "0 0 0 0"), ("bist_prbs", "0"), ("loopback", "0")):
            if name in self._phy.debug_attrs:
                self._phy.debug_attrs[name].value = off
        self._write(_TX_LO, True, "powerdown", "1")

    def _set_options(self) -> None:
        loopback = self._own.get("loopback", "off")
        if loopback != "off":
            if loopback not in self.capabilities.loopback_modes:
                there = ", ".join(("off", *self.capabilities.loopback_modes))
                raise RadioError(f"loopback={loopback} is nothing that {self._uri} does; choose one of: {there}")
            with self._asking(f"refuses loopback={loopback}"):
                self._control.loopback = _LOOPBACKS.index(loopback)
        for key, output in (("rx_port", False), ("tx_port", True)):
            if key in self._own:
                self._choose(key, "voltage0", output, "rf_port_select")
        if "xo_hz" in self._own:
            low, high = self._phy.attrs["xo_correction_available"].value.strip("[] \n").split()[::2]
            xo_hz = _whole(self._own, "xo_hz", 0, 0)
            self._check_range("xo_hz", xo_hz, (float(low), float(high)), "Hz")
            self._phy.attrs["xo_correction"].value = str(xo_hz)

    def _choose(self, key: str, channel: str, output: bool, name: str) -> None:
        there = self._attribute(channel, output, f"{name}_available").split()
        if self._own[key] not in there:
            raise RadioError(f"{key}={self._own[key]} is none of {self._uri}: {', '.join(there)}")
        self._write(channel, output, name, self._own[key])

    def _set_rate(self, rate_hz: float) -> float:
        """Set the rate of both directions, which is one; returns it."""
        divider = 1 if rate_hz >= _LOWEST_RATE_HZ else _LOGIC_DIVIDER
        chip_hz = round(rate_hz * divider)
        for core in self._logic:
            self._set_logic(core, 1)
        # Loads a filter, too, without which low rates are not possible.
        self._control.sample_rate = chip_hz
        for core in self._logic:
            self._set_logic(core, divider)
        actual = int(self._attribute("voltage0", False, "sampling_frequency")) / divider
        if abs(actual - rate_hz) > _RATE_ROUNDING_HZ:
            raise RadioError(
                f"sample_rate_hz={rate_hz:.10g} was asked of {self._uri}, which took {actual:.10g}; ask for that"
            )
        return float(rate_hz)

    def _set_logic(self, core: Core, divider: int) -> None:
        """Have the logic around the chip decimate or interpolate, or not."""
        channel = self._channel("voltage0", core.output, core.device)
        rates = sorted(int(text) for text in channel.attrs["sampling_frequency_available"].value.strip("[] \n").split())
        channel.attrs["sampling_frequency"].value = str(rates[-1] if divider == 1 else rates[0])

    def _set_carrier(self, requested: Settings) -> None:
        control = self._control
        if self._phy.attrs["ensm_mode"].value.strip() != "fdd":
            self._phy.attrs["ensm_mode"].value = "fdd"
        frequency_hz = round(requested.frequency_hz)
        self._write(_RX_LO, True, "powerdown", "0")
        control.rx_lo = frequency_hz
        if self.capabilities.n_tx:
            self._write(_TX_LO, True, "powerdown", "0")
            control.tx_lo = frequency_hz
        wanted = requested.sample_rate_hz if requested.bandwidth_hz is None else requested.bandwidth_hz
        for output, name in ((False, "rx_rf_bandwidth"), (True, "tx_rf_bandwidth")):
            low, high = self._range("voltage0", output, "rf_bandwidth")
            setattr(control, name, round(min(max(wanted, low), high)))
        for name, actual in (("rx_lo", control.rx_lo), ("tx_lo", control.tx_lo)):
            if name == "tx_lo" and not self.capabilities.n_tx:
                continue
            if abs(actual - frequency_hz) > max(1.0, _SYNTHESISER_STEP * frequency_hz):
                raise RadioError(f"frequency_hz={frequency_hz} was set, but {name} of {self._uri} is at {actual}")

    def _set_gains(self, requested: Settings) -> None:
        if requested.rx_gain_db and self._own.get("gain_mode", "manual") != "manual":
            raise RadioError(
                f"rx_gain_db={list(requested.rx_gain_db)} cannot be set under gain_mode={self._own['gain_mode']}; "
                "leave one of them out"
            )
        for chain in range(self._rx.n_chains):
            if "gain_mode" in self._own:
                self._choose("gain_mode", f"voltage{chain}", False, "gain_control_mode")
            elif requested.rx_gain_db:
                self._write(f"voltage{chain}", False, "gain_control_mode", "manual")
            # What the table has depends on the carrier.
            for gain_db in requested.rx_gain_db[chain : chain + 1]:
                allowed = self._range(f"voltage{chain}", False, "hardwaregain")
                self._check_range("rx_gain_db", gain_db, allowed, "dB")
                setattr(self._control, f"rx_hardwaregain_chan{chain}", gain_db)
        for chain, gain_db in enumerate(requested.tx_gain_db):
            setattr(self._control, f"tx_hardwaregain_chan{chain}", gain_db)

    def _read_back(self, requested: Settings, rate_hz: float) -> Settings:
        control, n_rx, n_tx = self._control, self._rx.n_chains, self._tx.n_chains
        manual = all(
            self._attribute(f"voltage{chain}", False, "gain_control_mode") == "manual" for chain in range(n_rx)
        )
        return Settings(
            sample_rate_hz=rate_hz,
            frequency_hz=float(control.rx_lo),
            # Gains that move by themselves are no gains that can be told.
            rx_gain_db=tuple(float(getattr(control, f"rx_hardwaregain_chan{k}")) for k in range(n_rx if manual else 0)),
            tx_gain_db=tuple(float(getattr(control, f"tx_hardwaregain_chan{k}")) for k in range(n_tx)),
            bandwidth_hz=float(control.rx_rf_bandwidth),
            clock_source="internal",
            time_source="none",
        )


def _load() -> tuple[Any, Any]:
    """The modules iio and adi."""
    try:
        iio = importlib.import_module("iio")
    except Exception as error:
        # A binding that meets another generation of the library raises whatever it likes.
        remedy = "pip install 'pylibiio>=0.25,<1' and apt install libiio0"
        raise SetupError(f"libiio's Python module does not load: {error}; mend it with: {remedy}") from error
    try:
        return iio, importlib.import_module("adi")
    except Exception as error:
        raise SetupError(f"pyadi-iio does not load: {error}; mend it with: pip install 'pyadi-iio>=0.0.21'") from error


def _split(address: str) -> tuple[str, dict[str, str]]:
    """What libiio is told, and the keys of this module behind it."""
    uri, *items = (part.strip() for part in address.removeprefix("pluto:").split(","))
    if uri and not uri.startswith(_SCHEMES):
        raise RadioError(
            f"{address!r} is no address of libiio; it begins with one of {', '.join(_SCHEMES)}, such as ip:192.168.2.1"
        )
    own = {}
    for item in filter(None, items):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in _OWN_KEYS:
            raise RadioError(f"{item!r} in {address!r} is unknown; known are {', '.join(_OWN_KEYS)}, as key=value")
        own[key] = value
    return uri, own


def _whole(own: dict[str, str], key: str, default: int, low: int) -> int:
    text = own.get(key, str(default))
    if not text.isdecimal() or int(text) < low:
        raise RadioError(f"{key}={text!r} must be a whole number from {low} on")
    return int(text)


def _open_context(iio: Any, uri: str) -> Any:
    try:
        return iio.Context(uri)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EBUSY:
            raise RadioError(
                f"the radio {uri} is busy: another program has it; end that program, or reach it over its network"
            ) from error
        raise RadioError(
            f"no radio answers at {uri}: {reason}; see its power, its cable and `iio_info -u {uri}`, and `semair "
            "radios` for what is there"
        ) from error
    except Exception as error:
        raise RadioError(f"libiio cannot open {uri}: {error}") from error


def _scan(iio: Any) -> list[RadioInfo]:
    """AD936x that announce themselves."""
    found = []
    for uri, description in _announced(iio).items():
        facts = {"description": description}
        try:
            context = iio.Context(uri)
            context.set_timeout(TIMEOUT_MS)
            if _PHY not in [device.name for device in context.devices]:
                continue
            facts |= {key: str(value) for key, value in context.attrs.items()}
            name = facts.get("hw_model") or description
        except OSError as error:
            # Another program has it, so that nobody else can ask.
            if error.errno != errno.EBUSY or "ADALM" not in description.upper():
                continue
            name = f"{description}, in use"
        found.append(RadioInfo(IioRadio.kind, uri, f"{name}, through libiio", facts))
    return found


def _announced(iio: Any) -> dict[str, str]:
    """Descriptions of contexts by address. One way of looking that fails takes no other away: that over the network
    needs a daemon that many machines do not have."""
    found: dict[str, str] = {}
    for way in (b"usb", b"local", b"ip"):
        infos = iio._POINTER(iio._ContextInfoPtr)()
        try:
            scan = iio._create_scan_context(way, 0)
        except OSError:
            continue
        try:
            for index in range(iio._get_context_info_list(scan, iio._byref(infos))):
                uri, text = iio._context_info_get_uri(infos[index]), iio._context_info_get_description(infos[index])
                found[uri.decode()] = text.decode(errors="replace")
            iio._context_info_list_free(infos)
        except OSError:
            continue
        finally:
            iio._destroy_scan_context(scan)
    return found


def _only_one(iio: Any) -> str:
    """Address of the one radio there is."""
    there = [info.address for info in _scan(iio)]
    if len(there) != 1:
        raise RadioError(
            f"{len(there) or 'no'} IIO radios announce themselves{': ' if there else ''}{', '.join(there)}; name one, "
            "such as radio.address=ip:192.168.2.1"
        )
    return there[0]


def _chains(device: Any) -> int:
    return sum(channel.scan_element for channel in device.channels) // 2


def _attributes(device: Any) -> set[str]:
    return {name for channel in device.channels if channel.scan_element for name in channel.attrs}


def _is_virtual(uri: str, attributes: dict[str, str]) -> bool:
    """Whether a device is a virtual one: by its own word, and on this machine alone."""
    host = uri.removeprefix("ip:").partition(":")[0]
    try:
        local = uri.startswith("ip:") and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    return local and attributes.get("hw_model", "").startswith("virtual ")


def _close_at_exit(radio: IioRadio) -> None:
    """Turn the transmitters off when the interpreter ends, if the radio is still there."""
    where = weakref.ref(radio)

    def close() -> None:
        if (there := where()) is not None:
            with suppress(RadioError):
                there.close()

    atexit.register(close)
