"""Radios over a network: the same as the radio itself, whatever goes wrong said by name."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

gr_blocks = pytest.importorskip("gnuradio.blocks", reason="GNU Radio is not installed")
zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")

from gnuradio import gr  # noqa: E402
from semair.blocks.runtime import RX_TIME, Failsafe, guarded, input_tags, pmt, time_ticks  # noqa: E402
from semair.blocks.waveforms.air import Air  # noqa: E402
from semair.blocks.waveforms.frame import FrameFormat  # noqa: E402
from semair.blocks.waveforms.impairments import Impairments  # noqa: E402
from semair.captures.reader import Recording  # noqa: E402
from semair.captures.verify import verify  # noqa: E402
from semair.errors import RadioError, RecordingError  # noqa: E402
from semair.flowgraphs.run import run_random_access  # noqa: E402
from semair.flowgraphs.scenario import Scenario, load_scenario  # noqa: E402
from semair.hardware import wire  # noqa: E402
from semair.hardware.loopback import LoopbackRadio  # noqa: E402
from semair.hardware.network import NetworkRadio  # noqa: E402
from semair.hardware.radio import Link, Settings  # noqa: E402
from semair.hardware.serving import RadioServer  # noqa: E402
from semair.hardware.site import Site  # noqa: E402
from semair.models.channels import ChannelConfig  # noqa: E402

WIRE = ChannelConfig()
RATE_HZ = 1e5
SETTINGS = Settings(RATE_HZ, 2.4e9)
PATIENCE_S = 60.0
AIR: dict[str, Any] = {
    "n_rx": 2,
    "n_users": 4,
    "channel": WIRE,
    "beacon_channel": WIRE,
    "impairments": Impairments(),
    "noise_power": 0.01,
    "expected_power": 1.0,
    "seed": 9,
}
LINK = Link(FrameFormat(sample_rate_hz=RATE_HZ), tail_samples=0, **AIR)


def until(condition: Callable[[], Any]) -> None:
    """Wait for another thread or process."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def finish(top: Any, blocks: list[Any]) -> BaseException | None:
    """Run to the end; the first error of a block."""
    ended = threading.Event()
    top.start()
    threading.Thread(target=lambda: (top.wait(), ended.set()), daemon=True).start()
    until(lambda: ended.is_set() or any(getattr(block, "failure", None) for block in blocks))
    top.stop()
    assert ended.wait(PATIENCE_S)
    return next((block.failure for block in blocks if getattr(block, "failure", None)), None)


def noise(n: int) -> np.ndarray:
    parts = np.random.default_rng(3).standard_normal((2, n)).astype(np.float32)
    return (0.1 * (parts[0] + 1j * parts[1])).astype(np.complex64)


@pytest.fixture
def server() -> Iterator[RadioServer]:
    with RadioServer("loopback") as server:
        yield server


def configured(server: RadioServer, link: Link = LINK) -> NetworkRadio:
    radio = NetworkRadio(server.endpoint, link)
    radio.configure(SETTINGS)
    return radio


# Whole experiments


def scenario(*overrides: str) -> Scenario:
    return load_scenario("lab", [*overrides, "radio.losses=[[20000, 3000]]"])


EXACT = ("frame", "counted", "length", "active", "sample_time", "fraction", "cfo_hz", "snr_db", "noise_power")


def same_decisions(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two runs decided the same, bit for bit; host times differ."""
    names = [name for name in one.dtype.names or () if name in EXACT]
    assert set(EXACT) <= set(names)
    return len(one) == len(other) and all(np.array_equal(one[name], other[name], equal_nan=True) for name in names)


def decisions(folder: Path) -> np.ndarray:
    return np.load(folder / "decisions.npy")


def test_random_access_decides_over_the_network_as_it_does_locally(tmp_path, server):
    local = run_random_access(scenario(), tmp_path / "local", n_frames=25)
    remote = scenario("radio.kind=zmq", f"radio.address={server.endpoint}")
    there = run_random_access(remote, tmp_path / "there", n_frames=25)
    assert len(decisions(tmp_path / "local")) >= 20
    assert same_decisions(decisions(tmp_path / "local"), decisions(tmp_path / "there"))
    one, other = (Recording.open(tmp_path / name / "bs-rx") for name in ("local", "there"))
    assert one.data_path.read_bytes() == other.data_path.read_bytes()
    # The loss of the radio is where it was, and the network added none.
    assert [(s.sample_start, s.device_time) for s in one.segments] == [
        (s.sample_start, s.device_time) for s in other.segments
    ]
    assert len(one.segments) == 2
    assert there.metrics["counts"]["network_lost_samples"] == 0
    assert there.metrics["counts"]["lost_samples_injected"] == 3000
    # Also what only an emulated air knows has come across.
    assert there.metrics["synchronisation"] == local.metrics["synchronisation"]

    # The same from a recording that another machine plays.
    address = str(one.meta_path)
    replay = scenario("radio.kind=replay", f"radio.address={address}")
    run_random_access(replay, tmp_path / "replayed", record=False)
    with RadioServer("replay", address) as player:
        remote = scenario("radio.kind=zmq", f"radio.address={player.endpoint}")
        run_random_access(remote, tmp_path / "played", record=False)
    assert same_decisions(decisions(tmp_path / "local"), decisions(tmp_path / "played"))
    assert same_decisions(decisions(tmp_path / "replayed"), decisions(tmp_path / "played"))


def serve_apart(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The command `semair serve` as a process, and its address."""
    command = [sys.executable, "-c", "from semair.cli import main; main()", "serve", *arguments, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["address"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGKILL, "vanished"),
        pytest.param(signal.SIGSTOP, "vanished", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "ended: it was stopped", marks=pytest.mark.slow),
    ],
    ids=["killed", "frozen", "stopped"],
)
def test_a_server_that_vanishes_is_named_and_the_recording_is_whole(tmp_path, how, words):
    process, address = serve_apart("loopback", "--listen", "tcp://127.0.0.1:*")
    try:
        wanted = load_scenario("lab", ["radio.kind=zmq", f"radio.address={address}"])

        def tell(progress: Any) -> None:
            if progress.decided > 3:
                process.send_signal(how)

        with pytest.raises(RadioError, match=words) as caught:
            run_random_access(wanted, tmp_path / "run", n_frames=100_000, on_progress=tell)
        assert address in str(caught.value)
    finally:
        process.kill()
        process.wait()
    recorded = Recording.open(tmp_path / "run" / "bs-rx")
    assert recorded.n_samples > 3 * wanted.frame.frame_samples
    assert not [finding for finding in verify(recorded.meta_path) if finding.severity == "error"]


# Times, losses, slow clients


class SlowListener(Failsafe, gr.sync_block):
    """Takes nothing before it may, and then all that comes."""

    def __init__(self, n_ports: int, may: Callable[[], bool]) -> None:
        gr.sync_block.__init__(self, "slow listener", [np.complex64] * n_ports, None)
        self.may = may
        self.waits = True
        self.samples: list[np.ndarray] = []
        self.times: list[tuple[int, int]] = []

    @guarded
    def work(self, input_items, output_items):
        deadline = time.monotonic() + PATIENCE_S / 2
        # GNU Radio need not call again a block that took nothing of full buffers.
        while self.waits and not self.may():
            if time.monotonic() > deadline:
                raise TimeoutError("what the listener waits for did not come")
            time.sleep(1e-3)
        # A server whose run has ended counts nothing any more, while the last of it is still on its way here.
        self.waits = False
        for tag in input_tags(self, 0, len(input_items[0])):
            if pmt.equal(tag.key, RX_TIME):
                self.times.append((tag.offset, time_ticks(tag.value, RATE_HZ)))
        self.samples.append(np.stack([port.copy() for port in input_items]))
        return len(input_items[0])


def test_a_client_that_is_too_slow_knows_exactly_what_it_missed():
    # Far more than the buffers of the operating system hold at 16 bytes each.
    n = 2_000_000
    sent = noise(n)
    with RadioServer("loopback", may_drop=True) as server:
        radio = configured(server)
        listener = SlowListener(2, lambda: server.lost_samples > 100_000)
        top, sender = gr.top_block(), gr_blocks.vector_source_c(sent.tolist())
        source, sink = radio.source(), radio.sink()
        top.connect(sender, sink)
        for port in range(2):
            top.connect((source, port), (listener, port))
        assert finish(top, [source, sink, listener]) is None
        counts = radio.counts()
        radio.close()
    heard = np.concatenate(listener.samples, axis=1)
    air = Air(sample_rate_hz=RATE_HZ, centre_frequency_hz=2.4e9, **AIR)
    exact = air.process(sent[: n // air.block_samples * air.block_samples])
    assert counts["network_lost_samples"] > 100_000
    assert heard.shape[1] + counts["network_lost_samples"] == exact.shape[1]
    # Every sample is the one of the time that the stream says.
    index = np.zeros(heard.shape[1], int)
    ends = [item for item, _ in listener.times[1:]] + [heard.shape[1]]
    for (item, ticks), end in zip(listener.times, ends, strict=True):
        index[item:end] = ticks + np.arange(end - item)
    assert np.array_equal(heard, exact[:, index])
    # And the counts say the same places.
    jumps = [(b[0], b[1] - a[1] - (b[0] - a[0])) for a, b in zip(listener.times, listener.times[1:], strict=False)]
    located = [tuple(loss) for loss in counts["network_losses"]]
    assert [loss for loss in located if loss[0] < heard.shape[1]] == jumps


def test_a_radio_that_waits_loses_nothing_to_a_slow_client(server):
    n = 400_000
    sent = noise(n)
    radio = configured(server)
    begun = time.monotonic()
    listener = SlowListener(2, lambda: time.monotonic() - begun > 0.5)
    top, sender = gr.top_block(), gr_blocks.vector_source_c(sent.tolist())
    source, sink = radio.source(), radio.sink()
    top.connect(sender, sink)
    for port in range(2):
        top.connect((source, port), (listener, port))
    assert finish(top, [source, sink, listener]) is None
    heard = np.concatenate(listener.samples, axis=1)
    air = Air(sample_rate_hz=RATE_HZ, centre_frequency_hz=2.4e9, **AIR)
    assert np.array_equal(heard, air.process(sent[: n // air.block_samples * air.block_samples]))
    assert radio.counts()["network_lost_samples"] == 0
    radio.close()


def test_only_listening_to_an_emulated_air_hears_its_noise(server):
    radio = configured(server)
    top, head = gr.top_block(), SlowListener(2, lambda: True)
    source = radio.source()
    assert radio.sink() is not None
    for port in range(2):
        top.connect((source, port), (head, port))
    top.start()
    until(lambda: len(head.samples) > 10 or source.failure)
    top.stop()
    top.wait()
    heard = np.concatenate(head.samples, axis=1)
    air = Air(sample_rate_hz=RATE_HZ, centre_frequency_hz=2.4e9, **AIR)
    blocks_ = -(-heard.shape[1] // air.block_samples)
    assert np.array_equal(heard, air.process(np.zeros(blocks_ * air.block_samples, np.complex64))[:, : heard.shape[1]])
    radio.close()


def test_only_sending_ends_once_everything_went_out(server):
    radio = configured(server)
    top, sender = gr.top_block(), gr_blocks.vector_source_c(noise(500_000).tolist())
    sink = radio.sink()
    top.connect(sender, sink)
    assert finish(top, [sink]) is None
    assert sink.outgoing.taken == 500_000
    radio.close()


# Settings and errors of the served radio


def test_gain_and_truth_are_those_of_the_served_radio(server):
    radio = configured(server)
    assert radio.set_tx_gain_db(-20.0) == -20.0
    with pytest.raises(RadioError, match=rf"tx_gain_db=3 is outside.*-80 to 0 \(radio at {server.endpoint}\)"):
        radio.set_tx_gain_db(3.0)
    local = LoopbackRadio.open("", LINK)
    local.configure(SETTINGS)
    truth, own = radio.truth(), local.truth()
    assert truth is not None and own is not None
    assert truth.as_dict() == own.as_dict()
    assert truth.receive_index(1000.0, user=2) == own.receive_index(1000.0, user=2)
    facts = radio.facts()
    assert facts["driver"] == "semair loopback"
    assert server.endpoint in facts["network"]
    radio.close()


def test_an_error_in_the_served_radio_arrives_as_it_is(tmp_path, server):
    class Broken(LoopbackRadio):
        kind = "broken"

        def source(self):
            source = super().source()
            if not hasattr(self, "broken"):
                self.broken = True
                source.keep(RecordingError("rx-3: the data file ended early"))
            return source

    server.radio_class = Broken
    radio = configured(server)
    top, head, source = gr.top_block(), SlowListener(2, lambda: True), radio.source()
    for port in range(2):
        top.connect((source, port), (head, port))
    failure = finish(top, [source])
    assert isinstance(failure, RecordingError)
    assert "rx-3: the data file ended early (radio at" in str(failure)


def test_a_recorded_channel_stays_at_home(server):
    link = dataclasses.replace(LINK, channel=ChannelConfig(kind="recorded", recording="x"))
    with pytest.raises(RadioError, match=r"recorded.*cannot be given to a radio on another host"):
        NetworkRadio(server.endpoint, link)


def test_another_number_of_antennas_is_refused_at_the_connection(server, monkeypatch):
    class One(LoopbackRadio):
        kind = "one"

        @classmethod
        def open(cls, address, link):
            return super().open(address, dataclasses.replace(link, n_rx=1))

    server.radio_class = One
    with pytest.raises(RadioError, match=r"gives 1 antenna stream\(s\), but 2 are asked for"):
        NetworkRadio(server.endpoint, LINK)


def test_one_client_at_a_time(server):
    first = configured(server)
    with pytest.raises(RadioError, match="in use by another client"):
        NetworkRadio(server.endpoint, LINK)
    assert first.set_tx_gain_db(-3.0) == -3.0
    first.close()
    until(lambda: not server.is_busy)
    second = configured(server)
    second.close()
    assert (server.counts["clients"], server.counts["refused"]) == (2, 1)


def test_a_client_that_vanishes_leaves_the_radio_silent_and_free(server):
    done: list[str] = []

    class Watched(LoopbackRadio):
        kind = "watched"

        def silence(self):
            super().silence()
            done.append("silence")

        def close(self):
            done.append("close")

    server.radio_class = Watched
    code = (
        "import sys, json\nfrom semair.hardware.network import NetworkRadio\nfrom semair.hardware import wire\n"
        "from semair.hardware.radio import Settings\n"
        "radio = NetworkRadio(sys.argv[1], wire.link_of(json.loads(sys.argv[2])))\n"
        "radio.configure(Settings(1e5, 2.4e9))\nprint('here', flush=True)\nsys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, server.endpoint, json.dumps(wire.link_fields(LINK))]
    client = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert client.stdout.readline() == "here\n"
    assert server.is_busy
    client.kill()
    client.wait()
    until(lambda: not server.is_busy and len(done) == 2)
    assert done == ["silence", "close"]
    again = configured(server)
    again.close()


# What a site permits


SITE = Site.model_validate(
    {
        "name": "bench",
        "bands": [
            {"name": "lab", "low_hz": 2.399e9, "high_hz": 2.401e9, "max_eirp_dbm": 0, "basis": "licence 4711"},
        ],
        "radios": [
            {"kind": "loopback", "address": "", "path": "air", "max_gain_db": -10.0,
             "full_scale_dbm": 0.0, "full_scale_gain_db": 0.0},
        ],
    }
)  # fmt: skip


class Antenna(LoopbackRadio):
    """A radio that transmits for real, by its own word."""

    kind = "antenna"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.capabilities = dataclasses.replace(self.capabilities, path="air")


def test_a_radio_with_an_antenna_only_receives_unless_told_otherwise(server):
    server.radio_class = Antenna
    radio = configured(server)
    assert (radio.capabilities.n_tx, radio.capabilities.tx_gains_db, radio.sink()) == (0, None, None)
    radio.close()


def gain(gain_db: float, frequency_hz: float = 2.4e9) -> Settings:
    return Settings(RATE_HZ, frequency_hz, tx_gain_db=(gain_db,))


def test_without_a_site_nothing_is_sent():
    with RadioServer("loopback", transmit=True) as server:
        server.radio_class = Antenna
        radio = NetworkRadio(server.endpoint, LINK)
        with pytest.raises(RadioError, match=r"does not permit.*there is no site file"):
            radio.configure(gain(-20))
        radio.close()


def test_a_site_holds_for_clients_too():
    with RadioServer("loopback", transmit=True, site=SITE) as server:
        server.radio_class = Antenna
        radio = NetworkRadio(server.endpoint, LINK)
        assert radio.capabilities.n_tx == 1
        with pytest.raises(RadioError, match=r"gain_db=-5\.0: site 'bench' permits at most -10 dB"):
            radio.configure(gain(-5))
        with pytest.raises(RadioError, match="lies in no permitted band"):
            radio.configure(gain(-20, 2.45e9))
        radio.configure(gain(-20))
        with pytest.raises(RadioError, match="permits at most -10 dB"):
            radio.set_tx_gain_db(-9.0)
        assert radio.set_tx_gain_db(-11.0) == -11.0
        # As loud as the rules take for granted, and no louder.
        top, sink = gr.top_block(), radio.sink()
        sender = gr_blocks.vector_source_c(np.full(200_000, 0.5, np.complex64).tolist())
        top.connect(sender, sink)
        failure = finish(top, [sink])
        assert isinstance(failure, RadioError)
        assert "louder than -12 dBFS" in str(failure)


# Strangers


def raw_client(endpoint: str) -> Any:
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    client.connect(endpoint)
    return client


def answer(client: Any) -> tuple[str, dict[str, Any]]:
    assert client.poll(1000 * PATIENCE_S)
    kind, fields, _ = wire.parse(client.recv())
    return kind, fields


def hello(link: Any = None) -> bytes:
    return wire.pack("hello", {"id": 1, "link": wire.link_fields(LINK) if link is None else link})


STRANGE = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda kind, fields, payload: wire.pack(kind, fields, payload),
        st.sampled_from(["hello", "configure", "start", "samples", "bursts", "taken", "end", "bye", "nonsense", ""]),
        st.dictionaries(
            st.sampled_from(["id", "epoch", "link", "settings", "shape", "items", "window", "source", "x"]),
            st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.lists(st.none())),
            max_size=4,
        ),
        st.binary(max_size=64),
    ),
)


@pytest.fixture(scope="module")
def busy_server() -> Iterator[tuple[RadioServer, NetworkRadio]]:
    with RadioServer("loopback") as server:
        radio = configured(server)
        yield server, radio
        radio.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(STRANGE, min_size=1, max_size=3))
def test_strangers_are_refused_and_the_client_is_served(busy_server, frames):
    server, radio = busy_server
    stranger = raw_client(server.endpoint)
    stranger.send_multipart(frames)
    assert radio.set_tx_gain_db(-6.0) == -6.0
    assert server.is_busy
    stranger.close()


def test_whoever_greets_and_then_sends_garbage_is_sent_away(server):
    for garbage in (b"", b"SEMAIR\x01\x00\x00\x00\x00\x02{}", wire.pack("samples", {"epoch": 1}), wire.pack("what")):
        client = raw_client(server.endpoint)
        client.send(hello())
        kind, fields = answer(client)
        while kind == "alive":
            kind, fields = answer(client)
        assert (kind, fields["capabilities"]["n_rx"]) == ("reply", 2)
        client.send(garbage)
        # Samples of a run that never began are nobody's; everything else is an offence.
        if garbage != wire.pack("samples", {"epoch": 1}):
            while kind != "bye":
                kind, fields = answer(client)
            assert "cannot read" in fields["reason"]
        client.close()
        until(lambda: not server.is_busy)


@pytest.mark.parametrize(
    "change",
    [
        {"n_rx": 10**9},
        {"n_users": -1},
        {"losses": [[0, -1]]},
        {"noise_power": float("nan")},
        {"channel": {"kind": "recorded", "recording": "/etc/passwd"}},
        {"frame_format": {"n_fft": 7}},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_links_that_no_scenario_could_have_are_refused(server, change):
    client = raw_client(server.endpoint)
    client.send(hello({**wire.link_fields(LINK), **change}))
    kind, fields = answer(client)
    assert (kind, "cannot read" in fields["reason"]) == ("bye", True)
    assert not server.is_busy
    client.close()


def test_bytes_that_are_not_zeromq_do_no_harm(server):
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    rng = np.random.default_rng(5)
    radio = configured(server)
    for k in range(30):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            start = b"" if k % 2 else b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL".ljust(64, b"\0")
            try:
                stranger.sendall(start + rng.bytes(2000))
            except OSError:
                continue
    assert radio.set_tx_gain_db(-7.0) == -7.0
    radio.close()


def test_versions_that_do_not_fit_are_named_on_both_sides(server, monkeypatch):
    client = raw_client(server.endpoint)
    good = hello()
    client.send(good[:6] + b"\x07" + good[7:])
    kind, fields = answer(client)
    assert kind == "bye" and "version 7 of the protocol, here is version 1" in fields["reason"]
    client.close()

    other = zmq.Context.instance().socket(zmq.ROUTER)
    other.setsockopt(zmq.LINGER, 0)
    port = other.bind_to_random_port("tcp://127.0.0.1")

    def serve() -> None:
        who, message = other.recv_multipart()
        other.send_multipart([who, message[:6] + b"\x07" + message[7:]])

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(RadioError, match="version 7 of the protocol, here is version 1; install the same semair"):
        NetworkRadio(f"tcp://127.0.0.1:{port}", LINK)
    other.close()


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", None], ids=["ssh", "silent", "nobody"])
def test_whatever_else_answers_there_is_said(greeting):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if greeting is None:
            listener.close()
        else:

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(greeting)
                    connection.settimeout(PATIENCE_S)
                    while connection.recv(1000):
                        pass

            threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(RadioError, match=rf"tcp://127.0.0.1:{port}"):
            NetworkRadio(f"tcp://127.0.0.1:{port}", LINK)


def test_an_address_that_is_taken_is_said(server):
    with pytest.raises(RadioError, match=r"cannot listen at .*choose another"):
        RadioServer("loopback", endpoint=server.endpoint)


def test_it_listens_on_this_machine_alone_unless_told_otherwise(server):
    assert server.endpoint.startswith("tcp://127.0.0.1:")
    assert server.is_local
    with RadioServer("loopback", endpoint="tcp://0.0.0.0:*") as everywhere:
        assert not everywhere.is_local


def test_an_unknown_radio_is_not_served():
    with pytest.raises(RadioError, match="'nope' is not known"):
        RadioServer("nope")


def test_nothing_is_left_behind():
    before = set(threading.enumerate())
    with RadioServer("loopback") as server:
        radio = configured(server)
        radio.close()
        until(lambda: not server.is_busy)
    until(lambda: set(threading.enumerate()) <= before)
