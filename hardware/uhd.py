"""USRPs through gr-uhd: B2x0, N2x0, N3x0, X3x0, X4x0, and virtual ones; several boards as one radio.

The Python module `uhd` registers the same C++ types as `gnuradio.uhd`: one process can load one of them only, so
nothing here is imported before a radio is opened.
"""

from __future__ import annotations

import atexit
import importlib
import ipaddress
import os
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

from ..errors import RadioError, SetupError
from .radio import Capabilities, Link, Radio, RadioInfo, Settings

_OWN_KEYS = ("tx_channels", "rx_subdev", "tx_subdev", "rx_antenna", "tx_antenna", "lo_offset")
_COMMAND_LEAD_S = 0.1
_LOCK_PATIENCE_S = 1.0
_COMMON_TIMES = ("external", "gpsdo", "mimo")


class UhdRadio(Radio):
    """One USRP, or several boards that share clock and time.

    Several boards: `clock_source` and `time_source` of the settings are given to all of them; with "mimo" the first
    board keeps its own and the others follow it. Frequencies are then set at one time on all channels.

    Args:
        address: device arguments as of UHD, such as `serial=31F4A2C` or `type=usrp2,addr0=192.168.10.2,
            addr1=192.168.10.3`, among them any of: `tx_channels` (1), `rx_subdev` and `tx_subdev` (such as `A:0 A:0`,
            for every board), `rx_antenna`, `tx_antenna`, `lo_offset` (Hz).
        n_rx: receive channels that are wanted.

    Raises:
        RadioError: there is no such device, another process has it, it has too few channels, or the module `uhd` is
            loaded.
        SetupError: gr-uhd is not installed.
    """

    kind = "uhd"
    foreign = True
    sends_timed = True
    _source: Any = None
    _sink: Any = None

    def __init__(self, address: str, n_rx: int) -> None:
        self._uhd = _load()
        self._own, self._args = _split(address)
        self._claims = _claim(self._args)
        self._n_rx = n_rx
        self._n_tx = _whole(self._own, "tx_channels", 1)
        self._lo_offset_hz = _number(self._own, "lo_offset", 0.0)
        self._events: Counter[str] = Counter()
        self._wrapped: Any = None
        self._settings: Settings | None = None
        self._make_blocks()
        _silence_at_exit(self)
        source, sink = self._source, self._sink
        gains = [sink.get_gain_range(channel) for channel in range(self._n_tx)]
        rates = source.get_samp_rates()
        self.capabilities = Capabilities(
            n_rx=n_rx,
            n_tx=self._n_tx,
            emulates_users=False,
            sample_rates_hz=(rates.start(), rates.stop()),
            has_hw_time=True,
            phase_stable_across_retune=False,
            overflow_reporting="located",
            loopback_modes=(),
            datatype="ci16_le",
            path="sim" if _is_virtual(self._args, dict(source.get_usrp_info(0))) else "air",
            tx_gains_db=(max(one.start() for one in gains), min(one.stop() for one in gains)),
        )

    @classmethod
    def open(cls, address: str, link: Link) -> UhdRadio:
        """Open a device with the receive channels that a link needs."""
        return cls(address, link.n_rx)

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """USRPs that answer; devices on a loopback network do not, UHD has to be told their address."""
        try:
            uhd = _load()
        except (RadioError, SetupError):
            return []
        found = []
        for device in uhd.find(uhd.device_addr_t("")):
            facts = {key: device.get(key) for key in device.keys()}  # noqa: SIM118 - no mapping
            which = "serial" if facts.get("serial") else "addr"
            address = f"{which}={facts.get(which, '')}"
            name = facts.get("product") or facts.get("type", "USRP")
            found.append(RadioInfo(cls.kind, address, f"USRP {name}", facts))
        return found

    def configure(self, requested: Settings) -> Settings:
        """Set clocks, time, rate, frequency and gains; transmit gain is the least unless one is asked for.

        Raises:
            RadioError: a value is outside what the device can do, boards have no common clock and time, or the device
                does not answer.
        """
        with self._named():
            return self._configure(requested)

    def _configure(self, requested: Settings) -> Settings:
        self._make_blocks()
        self._settings = None
        self._check(requested)
        self._set_clocks(requested)
        self._set_rates(requested.sample_rate_hz)
        self._tune(requested.frequency_hz)
        for device, gains, n in (
            (self._source, requested.rx_gain_db, self._n_rx),
            (self._sink, requested.tx_gain_db, self._n_tx),
        ):
            for channel in range(n):
                if gains:
                    device.set_gain(gains[channel], channel)
                elif device is self._sink:
                    device.set_gain(device.get_gain_range(channel).start(), channel)
                if requested.bandwidth_hz is not None:
                    device.set_bandwidth(requested.bandwidth_hz, channel)
        self._settings = Settings(
            sample_rate_hz=self._source.get_samp_rate(),
            frequency_hz=self._source.get_center_freq(0),
            rx_gain_db=tuple(self._source.get_gain(channel) for channel in range(self._n_rx)),
            tx_gain_db=tuple(self._sink.get_gain(channel) for channel in range(self._n_tx)),
            bandwidth_hz=None if requested.bandwidth_hz is None else self._source.get_bandwidth(0),
            clock_source=self._source.get_clock_source(0),
            time_source=self._source.get_time_source(0),
        )
        return self._settings

    def source(self) -> Any:
        """The gr-uhd source; all channels begin at one time, and a jump of `rx_time` is as long as the loss."""
        self._configured()
        return self._source

    def sink(self) -> Any:
        """The gr-uhd sink; it obeys tags `tx_time`, `tx_sob`, `tx_eob`, and what it reports is in `counts`."""
        self._configured()
        if self._wrapped is None:
            self._wrapped = _counting(self._sink, self._n_tx, self._events)
        return self._wrapped

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Change the transmit gain of all channels, also while samples flow."""
        self._configured()
        with self._named():
            for channel in range(self._n_tx):
                self._check_range("gain_db", gain_db, self._sink.get_gain_range(channel), "dB")
                self._sink.set_gain(gain_db, channel)
            return float(self._sink.get_gain(0))

    def silence(self) -> None:
        """Turn every transmitter down as far as it goes."""
        if self._sink is not None:
            with self._named():
                for channel in range(self._n_tx):
                    self._sink.set_gain(self._sink.get_gain_range(channel).start(), channel)

    def time_now_s(self) -> Fraction:
        """Time of the first board."""
        self._configured()
        with self._named():
            now = self._source.get_time_now()
            return int(now.get_full_secs()) + Fraction(now.get_frac_secs())

    def locks(self) -> dict[str, bool]:
        """Whether references and oscillators are locked, where the device tells."""
        with self._named():
            return self._locks()

    def _locks(self) -> dict[str, bool]:
        found = {}
        if self._source is not None:
            for board in range(self._source.get_num_mboards()):
                if "ref_locked" in self._source.get_mboard_sensor_names(board):
                    found[f"reference {board}"] = self._source.get_mboard_sensor("ref_locked", board).to_bool()
        for device, way, n in ((self._source, "rx", self._n_rx), (self._sink, "tx", self._n_tx)):
            for channel in range(n if device is not None else 0):
                if "lo_locked" in device.get_sensor_names(channel):
                    found[f"{way} oscillator {channel}"] = device.get_sensor("lo_locked", channel).to_bool()
        return found

    def close(self) -> None:
        """Turn the transmitters down and let go of the device."""
        try:
            self.silence()
        finally:
            self._settings = None
            self._source = self._sink = self._wrapped = None
            self._claims = []

    def facts(self) -> dict[str, Any]:
        """Serial numbers, boards, driver and its version."""
        infos = [dict(self._source.get_usrp_info(channel)) for channel in range(self._n_rx)]
        return {
            "serials": sorted({info.get("mboard_serial", "") for info in infos}),
            "driver": f"UHD {self._uhd.get_version_string()}",
            "boards": sorted({info.get("mboard_id", "") for info in infos}),
            "frontends": [info.get("rx_subdev_name", "") for info in infos],
            "device_arguments": self._args,
            "clock_rate_hz": self._source.get_clock_rate(0),
        }

    def counts(self) -> dict[str, Any]:
        """Asynchronous messages of the transmitter: underflows, late packets, sequence errors, acknowledged bursts."""
        return dict(self._events)

    # Inside

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turns what the driver throws into an error that says which device it was."""
        try:
            yield
        except RadioError:
            raise
        except RuntimeError as error:
            raise RadioError(
                f"{self._args!r} does not do as told: {' '.join(str(error).split())}; see its power and its cable or "
                "network, then open it again"
            ) from error

    def _configured(self) -> None:
        if self._settings is None:
            raise RadioError("the USRP was not configured: call configure() before source() or sink()")

    def _make_blocks(self) -> None:
        """Make new blocks; the device itself stays open."""
        self._events.clear()
        self._wrapped = None
        # The old source goes first, for a device has one stream per channel.
        self._source = None
        receives = self._uhd.stream_args(cpu_format="fc32", channels=list(range(self._n_rx)))
        sends = self._uhd.stream_args(cpu_format="fc32", channels=list(range(self._n_tx)))
        try:
            source = self._uhd.usrp_source(self._args, receives)
            self._sink = None
            self._sink = self._uhd.usrp_sink(self._args, sends)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RadioError(
                f"UHD cannot open {self._args!r}: {reason}; `uhd_find_devices --args {self._args}` tells what answers"
            ) from error
        self._source = source
        for device, way, wanted in ((source, "rx", self._n_rx), (self._sink, "tx", self._n_tx)):
            there = 0
            for board in range(device.get_num_mboards()):
                if f"{way}_subdev" in self._own:
                    device.set_subdev_spec(self._own[f"{way}_subdev"], board)
                there += len(device.get_subdev_spec(board).split())
            if wanted > there:
                raise RadioError(
                    f"{self._args!r} has {there} {way} channel(s), but {wanted} are wanted; give more boards, or a "
                    f"{way}_subdev with more channels, such as {way}_subdev=A:0 A:0"
                )
            for channel in range(wanted):
                if f"{way}_antenna" in self._own:
                    device.set_antenna(self._own[f"{way}_antenna"], channel)

    def _check(self, requested: Settings) -> None:
        self._check_range("sample_rate_hz", requested.sample_rate_hz, self._source.get_samp_rates(), "Hz")
        for device, way, gains, n in (
            (self._source, "rx", requested.rx_gain_db, self._n_rx),
            (self._sink, "tx", requested.tx_gain_db, self._n_tx),
        ):
            if gains and len(gains) != n:
                raise RadioError(
                    f"{way}_gain_db has {len(gains)} value(s), but there are {n} channel(s); give one each"
                )
            for channel in range(n):
                self._check_range("frequency_hz", requested.frequency_hz, device.get_freq_range(channel), "Hz")
                if gains:
                    self._check_range(f"{way}_gain_db", gains[channel], device.get_gain_range(channel), "dB")

    def _check_range(self, name: str, value: float, allowed: Any, unit: str) -> None:
        # UHD's ranges are rounded now and then.
        low, high = allowed.start(), allowed.stop()
        slack = 1e-6 * max(abs(low), abs(high))
        if not low - slack <= value <= high + slack:
            raise RadioError(
                f"{name}={value:.10g} is outside what {self._args!r} does: {low:.10g} to {high:.10g} {unit}"
            )

    def _set_clocks(self, requested: Settings) -> None:
        device = self._source
        boards = range(device.get_num_mboards())
        time_source = "external" if requested.time_source == "pps" else requested.time_source
        if len(boards) > 1 and (requested.clock_source == "internal" or time_source not in _COMMON_TIMES):
            raise RadioError(
                f"{len(boards)} boards need a common clock and time, but clock_source={requested.clock_source!r} and "
                f"time_source={time_source!r}; set both to external, gpsdo or mimo"
            )
        for board in boards:
            for what, wanted, own in (
                ("clock", requested.clock_source, "internal"),
                ("time", time_source, "none"),
            ):
                name = own if wanted == "mimo" and board == 0 else wanted
                sources = getattr(device, f"get_{what}_sources")(board)
                if name not in sources and (what, name) == ("time", "internal"):
                    name = own if own in sources else sources[0]
                if name not in sources:
                    raise RadioError(
                        f"{what}_source={name!r} is not among those of board {board}: {', '.join(sources)}"
                    )
                getattr(device, f"set_{what}_source")(name, board)
        for board in boards:
            if "ref_locked" in device.get_mboard_sensor_names(board):
                self._await_lock(f"reference of board {board}", _sensor(device.get_mboard_sensor, "ref_locked", board))
        zero = self._uhd.time_spec(0.0)
        if time_source in ("external", "gpsdo"):
            try:
                device.set_time_unknown_pps(zero)
            except RuntimeError as error:
                raise RadioError(f"no pulse per second arrives: {error}; is the cable plugged in?") from error
            # The new times hold from the next pulse on.
            time.sleep(1.1)
            pulses = [device.get_time_last_pps(board).get_real_secs() for board in boards]
            if len(set(pulses)) > 1:
                raise RadioError(
                    f"the boards disagree about the time of the last pulse, {pulses} s; check the cables, they must be "
                    f"of one length"
                )
        else:
            device.set_time_now(zero, 0)

    def _set_rates(self, rate_hz: float) -> None:
        for device in (self._source, self._sink):
            device.set_samp_rate(rate_hz)
            actual = device.get_samp_rate()
            if abs(actual - rate_hz) > 1e-6 * rate_hz:
                raise RadioError(
                    f"sample_rate_hz={rate_hz:.10g} cannot be had from {self._args!r}: the nearest is {actual:.10g}; "
                    f"its clock runs at {device.get_clock_rate(0):.10g} Hz, which is divided by whole numbers"
                )

    def _tune(self, frequency_hz: float) -> None:
        request = self._uhd.tune_request(frequency_hz, self._lo_offset_hz)
        devices = ((self._source, self._n_rx), (self._sink, self._n_tx))
        several = self._n_rx > 1
        at = self._source.get_time_now() + self._uhd.time_spec(_COMMAND_LEAD_S)
        for device, n in devices:
            if several:
                device.set_command_time(at)
            for channel in range(n):
                device.set_center_freq(request, channel)
            if several:
                device.clear_command_time()
        if several:
            time.sleep(_COMMAND_LEAD_S)
        for device, n in devices:
            for channel in range(n):
                actual = device.get_center_freq(channel)
                if abs(actual - frequency_hz) > 1.0:
                    raise RadioError(
                        f"frequency_hz={frequency_hz:.10g} was set, but channel {channel} is at {actual:.10g}"
                    )
                if "lo_locked" in device.get_sensor_names(channel):
                    self._await_lock(
                        f"oscillator of channel {channel}", _sensor(device.get_sensor, "lo_locked", channel)
                    )

    def _await_lock(self, what: str, is_locked: Any) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not is_locked():
            if time.monotonic() > deadline:
                raise RadioError(f"the {what} does not lock; check the reference and its cable")
            time.sleep(0.01)


def _load() -> Any:
    """The module gnuradio.uhd."""
    if "uhd" in sys.modules:
        raise RadioError(
            "the Python module `uhd` is loaded in this process, and gnuradio.uhd cannot be beside it; use one process "
            "for each, and gnuradio.uhd here"
        )
    # What UHD tells on its way belongs in no output of ours; warnings still come.
    os.environ.setdefault("UHD_LOG_CONSOLE_LEVEL", "warning")
    try:
        return importlib.import_module("gnuradio.uhd")
    except ImportError as error:
        raise SetupError(f"gr-uhd cannot be imported: {error}; mend it with: apt install gnuradio") from error


def _split(address: str) -> tuple[dict[str, str], str]:
    """Keys of this module, and the device arguments that remain for UHD."""
    own, rest = {}, []
    for item in filter(None, (part.strip() for part in address.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise RadioError(f"device argument {item!r} must be key=value, such as serial=31F4A2C")
        if key.strip() in _OWN_KEYS:
            own[key.strip()] = value.strip()
        else:
            rest.append(item)
    return own, ",".join(rest)


class _Claim:
    """One device, held by this process until nothing refers to the claim any more."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(name)
        except OSError:
            self._socket.close()
            raise
        weakref.finalize(self, self._socket.close)


# Of all sinks there were. A sink's thread may report a burst when the flowgraph has already let go of both: GNU Radio
# ends the process where nobody is there to hear it.
_LISTENERS: list[Any] = []
_CLAIMS: weakref.WeakValueDictionary[str, _Claim] = weakref.WeakValueDictionary()


def _claim(args: str) -> list[_Claim]:
    """Hold the devices that arguments name against other processes of this machine: not every USRP refuses a second
    host, an N210 lets it take the streams of the first. A process that dies lets go.

    Raises:
        RadioError: another process has one of them.
    """
    # Names that begin with a null byte need no file, but Linux.
    if sys.platform != "linux":
        return []
    claims = []
    for part in args.split(","):
        key, _, value = part.partition("=")
        if key.strip().rstrip("0123456789") not in ("addr", "serial", "resource") or not value.strip():
            continue
        name = f"\0semair-usrp-{value.strip()}"[:100]
        claim = _CLAIMS.get(name)
        if claim is None:
            try:
                claim = _CLAIMS[name] = _Claim(name)
            except OSError as error:
                raise RadioError(
                    f"the USRP {part.strip()!r} is busy: another process of this machine uses it; end that one first "
                    "(`ss -xa | grep semair-usrp` shows it)"
                ) from error
        claims.append(claim)
    return claims


def _whole(own: dict[str, str], key: str, default: int) -> int:
    value = _number(own, key, default)
    if not value.is_integer() or value < 1:
        raise RadioError(f"{key}={own[key]} must be a whole number from 1 on")
    return int(value)


def _number(own: dict[str, str], key: str, default: float) -> float:
    try:
        return float(own.get(key, default))
    except ValueError as error:
        raise RadioError(f"{key}={own[key]!r} must be a number") from error


def _is_virtual(args: str, info: dict[str, str]) -> bool:
    """Whether a device is a virtual one: by its own word, and on this machine alone."""
    hosts = [part.partition("=")[2] for part in args.split(",") if part.startswith("addr")]
    try:
        local = bool(hosts) and all(ipaddress.ip_address(host).is_loopback for host in hosts)
    except ValueError:
        return False
    return local and info.get("mboard_name") == "virtual"


def _sensor(read: Any, name: str, index: int) -> Any:
    return lambda: read(name, index).to_bool()


def _counting(sink: Any, n: int, events: Counter[str]) -> Any:
    """A block of n inputs around a sink that counts what the sink reports."""
    import pmt
    from gnuradio import gr

    class News(gr.basic_block):
        """Counts messages."""

        def __init__(self) -> None:
            gr.basic_block.__init__(self, "news", [], [])
            self.lock_counts = threading.Lock()
            self.message_port_register_in(pmt.intern("in"))
            self.set_msg_handler(pmt.intern("in"), self.take)

        def take(self, message: Any) -> None:
            codes = pmt.dict_ref(pmt.cdr(message), pmt.intern("event_code"), pmt.PMT_NIL)
            with self.lock_counts:
                while pmt.is_pair(codes):
                    events[pmt.symbol_to_string(pmt.car(codes))] += 1
                    codes = pmt.cdr(codes)

    class Sink(gr.hier_block2):
        """The sink and its counter."""

        def __init__(self) -> None:
            gr.hier_block2.__init__(
                self, "uhd_sink", gr.io_signature(n, n, gr.sizeof_gr_complex), gr.io_signature(0, 0, 0)
            )
            self.news = News()
            _LISTENERS.append(self.news)
            for port in range(n):
                self.connect((self, port), (sink, port))
            self.msg_connect((sink, "async_msgs"), (self.news, "in"))

    return Sink()


def _silence_at_exit(radio: UhdRadio) -> None:
    """Turn the transmitters down when the interpreter ends, if the radio is still there."""
    where = weakref.ref(radio)

    def silence() -> None:
        # A device that is gone sends nothing either.
        if (there := where()) is not None:
            with suppress(RuntimeError):
                there.silence()

    atexit.register(silence)
