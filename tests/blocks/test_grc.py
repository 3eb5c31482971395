"""The block descriptions of GNU Radio Companion against GNU Radio's own rules and against the blocks."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gnuradio.grc", reason="GNU Radio Companion is not installed")
pytest.importorskip("PyQt5", reason="PyQt5 is not installed")

import semair.blocks
import yaml
from gnuradio import gr
from gnuradio.grc.core.platform import Platform
from gnuradio.grc.core.schema_checker import BLOCK_SCHEME, Validator
from semair.blocks.runtime import Failsafe
from semair.blocks.waveforms.frame import FrameFormat
from semair.flowgraphs.grc_support import make_air, make_downlink
from semair.flowgraphs.scenario import load_scenario

FOLDER = Path(semair.blocks.__path__[0]) / "grc"
FILES = sorted(FOLDER.glob("*.block.yml"))
CONSTRUCTORS_OF_VALUES = {"recording": "path"}
"""Arguments that a description builds itself, and the parameter it builds them from."""
DISPLAY_ONLY = {
    "semair_activity_map": {"gui_hint"},
    # The ports of a description must be counted before the air or the recording exists.
    "semair_channel_emulator": {"n_rx"},
    "semair_downlink_emulator": {"n_tx", "n_users"},
    "semair_sigmf_source": {"n_channels"},
}


def description(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def block_classes() -> dict[str, type]:
    """Every GNU Radio block class of the room, by the name of its module."""
    found = {}
    for module_info in pkgutil.iter_modules(semair.blocks.__path__):
        if module_info.ispkg:
            continue
        module = importlib.import_module(f"semair.blocks.{module_info.name}")
        for item in vars(module).values():
            if (
                inspect.isclass(item)
                and issubclass(item, Failsafe)
                and item.__module__ == module.__name__
                and item is not Failsafe
            ):
                found[module_info.name] = item
    return found


def make_call(text: str) -> ast.Call:
    """The constructor's call of a `make` template, with ${name} read as the name."""
    plain = re.sub(r"<%.*?%>\\?\n", "", text, flags=re.DOTALL)
    first = plain.split("\n)", 1)[0] + "\n)"
    call = ast.parse(re.sub(r"\$\{(\w+)\}", r"\1", first).strip()).body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    return call.value


def class_of(path: Path) -> type:
    data = description(path)
    call = make_call(data["templates"]["make"])
    namespace: dict[str, Any] = {}
    exec(data["templates"]["imports"], namespace)
    assert isinstance(call.func, ast.Name)
    return namespace[call.func.id]


@pytest.fixture(scope="module")
def platform() -> Platform:
    """GNU Radio Companion's library of blocks, with ours."""
    made = Platform(
        name="test",
        prefs=gr.prefs(),
        version=gr.version(),
        version_parts=(gr.major_version(), gr.api_version(), gr.minor_version()),
    )
    made.build_library([*made.config.block_paths, str(FOLDER)])
    return made


@pytest.fixture
def flow_graph(platform: Platform) -> Any:
    """An empty flowgraph with the variables `scenario` and `air`."""
    graph = platform.make_flow_graph()
    for name, module in (
        ("make_air", make_air.__module__),
        ("make_downlink", make_downlink.__module__),
        ("load_scenario", load_scenario.__module__),
    ):
        block = graph.new_block("import")
        block.params["id"].set_value(f"import_{name}")
        block.params["imports"].set_value(f"from {module} import {name}")
    for name, value in (
        ("scenario", 'load_scenario("lab")'),
        ("air", "make_air(scenario)"),
        ("downlink", 'make_downlink(load_scenario("csi-lab"))'),
    ):
        block = graph.new_block("variable")
        block.params["id"].set_value(name)
        block.params["value"].set_value(value)
    return graph


def errors(graph: Any, block: Any) -> list[str]:
    """What GNU Radio Companion reports for one block, apart from ports that are not connected yet."""
    graph.rewrite()
    graph.validate()
    reported = []
    for element in (block, *block.children()):
        reported += [text for text in element.get_error_messages() if "Port is not connected" not in text]
    return reported


def add(graph: Any, key: str, **values: str) -> Any:
    block = graph.new_block(key)
    for name, value in {"id": f"{key}_0", **values}.items():
        block.params[name].set_value(value)
    return block


def test_every_block_has_a_description_and_every_description_a_block() -> None:
    assert {class_of(path) for path in FILES} == set(block_classes().values())
    assert {path.name for path in FILES} == {f"semair_{module}.block.yml" for module in block_classes()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_descriptions_pass_gnu_radios_checker(path: Path) -> None:
    checker = Validator(BLOCK_SCHEME)
    assert checker.run(description(path))
    assert checker.messages == []
    assert description(path)["id"] == path.name.removesuffix(".block.yml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_make_gives_every_argument_of_the_constructor(path: Path) -> None:
    data = description(path)
    call = make_call(data["templates"]["make"])
    assert call.args == []
    given = [keyword.arg for keyword in call.keywords]
    signature = inspect.signature(class_of(path)).parameters
    named = [p.name for p in signature.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert given[: len(named)] == named
    # Further arguments are allowed only where the constructor takes them.
    assert len(given) == len(named) or len(named) < len(signature)
    used = set(re.findall(r"\$\{(\w+)\}", data["templates"]["make"]))
    parameters = [parameter["id"] for parameter in data["parameters"]]
    shown = {CONSTRUCTORS_OF_VALUES.get(name, name) for name in given}
    assert set(parameters) == shown | DISPLAY_ONLY.get(data["id"], set())
    assert shown <= used


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_defaults_are_those_of_the_constructor(path: Path) -> None:
    data = description(path)
    defaults = {p["id"]: p["default"] for p in data["parameters"] if "default" in p}
    for name, parameter in inspect.signature(class_of(path)).parameters.items():
        if parameter.default is inspect.Parameter.empty or name not in defaults:
            continue
        if isinstance(parameter.default, str) or name == "sample_rate_hz":
            continue  # plain words, and the samp_rate variable that every new flowgraph has
        value = eval(defaults[name])
        assert value == parameter.default, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_message_ports_are_those_of_the_block(path: Path, platform: Platform, flow_graph: Any) -> None:
    """A port that the block does not register would stop the flowgraph at its start."""
    data = description(path)
    source = inspect.getsource(class_of(path))
    for side, function in (("inputs", "message_port_register_in"), ("outputs", "message_port_register_out")):
        described = {port["id"] for port in data.get(side, []) if port.get("domain") == "message"}
        registered = set(re.findall(rf'{function}\(pmt\.intern\("(\w+)"\)\)', source))
        assert described == registered, side


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_block_dropped_into_a_flowgraph_shows_no_error(path: Path, flow_graph: Any) -> None:
    block = add(flow_graph, description(path)["id"])
    if "sample_rate_hz" in block.params:
        add(flow_graph, "variable", id="samp_rate", value="2e6")
    assert errors(flow_graph, block) == []


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("semair_frame_transmitter", {"amplitude": "-1"}),
        ("semair_frame_transmitter", {"tail_samples": "-1"}),
        ("semair_user_transmitter", {"activity": "1.5"}),
        ("semair_user_transmitter", {"preamble_lengths": "(8, 29)"}),
        ("semair_user_transmitter", {"preamble_lengths": "()"}),
        ("semair_channel_emulator", {"n_rx": "3"}),
        ("semair_channel_emulator", {"frame_format": "FrameFormat(sample_rate_hz=1e6)"}),
        ("semair_frame_synchroniser", {"n_antennas": "0"}),
        ("semair_frame_synchroniser", {"false_alarms_per_sample": "0"}),
        ("semair_access_slot_receiver", {"preamble_lengths": "(0,)"}),
        ("semair_access_slot_receiver", {"preamble_lengths": "(29,)"}),
        ("semair_activity_detector", {"n_snapshots": "0"}),
        ("semair_activity_detector", {"preamble_lengths": "(29,)"}),
        ("semair_preamble_search", {"reference": "[]"}),
        ("semair_preamble_search", {"threshold": "2"}),
        ("semair_sigmf_sink", {"n_channels": "0"}),
        ("semair_sigmf_sink", {"sample_rate_hz": "0"}),
        ("semair_sigmf_sink", {"name": "a/b"}),
        ("semair_sigmf_source", {"tail_samples": "-1"}),
        ("semair_sigmf_source", {"channels": "(0, 1)"}),
        ("semair_sigmf_source", {"turns": "2"}),
        ("semair_sigmf_source", {"frame_samples": "0"}),
        ("semair_sigmf_source", {"speed": "0"}),
        ("semair_message_collector", {"receiver": "7"}),
        ("semair_activity_map", {"n_users": "0"}),
        ("semair_sounding_transmitter", {"beacon_amplitude": "-1"}),
        ("semair_downlink_emulator", {"n_tx": "3"}),
        ("semair_sounding_receiver", {"user": "2"}),
        ("semair_feedback_receiver", {"full_scale": "0"}),
        ("semair_csi_decoder", {"snr_db": "(5, 0)"}),
        ("semair_picture_transmitter", {"size": "(32, 64)"}),
        ("semair_picture_transmitter", {"tail_samples": "-1"}),
        ("semair_picture_receiver", {"user": "2"}),
        ("semair_picture_decoder", {"size": "(0, 0)"}),
    ],
)
def test_wrong_values_are_shown_in_the_editor(key: str, wrong: dict[str, str], flow_graph: Any) -> None:
    add(flow_graph, "variable", id="samp_rate", value="2e6")
    right = add(flow_graph, key)
    assert errors(flow_graph, right) == []
    flow_graph.remove_element(right)
    assert errors(flow_graph, add(flow_graph, key, **wrong)) != []


def test_ports_follow_the_antennas(flow_graph: Any) -> None:
    block = add(flow_graph, "semair_access_slot_receiver", n_antennas="3")
    flow_graph.rewrite()
    assert sum(port.domain == "stream" for port in block.sinks) == 3
    out = next(port for port in block.sources if port.domain == "stream")
    fmt = FrameFormat()
    assert out.vlen == fmt.max_preamble_length * 3 * fmt.n_groups


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_documentation_speaks_of_every_message_port(path: Path) -> None:
    data = description(path)
    for side in ("inputs", "outputs"):
        for port in data.get(side, []):
            if port.get("domain") == "message":
                assert f"{port['id']}:" in data["documentation"], port["id"]
