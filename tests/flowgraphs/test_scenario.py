"""Scenarios: shipped ones load, every field survives a round trip, every wrong field is explained."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.blocks.waveforms.impairments import Impairments
from semair.errors import ScenarioError
from semair.flowgraphs.scenario import load_scenario, parse_scenario, scenario_dict, shipped_scenarios


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_shipped_scenarios_load_and_hold_what_the_file_says(name):
    scenario = load_scenario(name)
    data = tomllib.loads(shipped_scenarios()[name].read_text())
    assert scenario.name == data["name"] == name
    assert scenario.radio.n_antennas == data["radio"]["n_antennas"]
    sections = {"loop": "closed-loop", "pictures": "semantic-downlink", "csi": "csi-feedback"}
    assert scenario.kind == next((kind for section, kind in sections.items() if section in data), "random-access")
    if scenario.pictures is not None:
        assert scenario.picture_frame.used_samples <= scenario.frame.frame_samples
        assert scenario.pictures.model == data["pictures"]["model"]
    if scenario.csi is not None:
        assert scenario.csi.feedback_length == data["csi"]["feedback_length"]
        assert scenario.csi_frame.used_samples <= scenario.frame.frame_samples
        assert scenario.n_users == data["csi"]["n_users"]
        return
    assert scenario.users.preamble_lengths == tuple(data["users"]["preamble_lengths"])
    assert scenario.preambles().shape == (scenario.frame.max_preamble_length, scenario.users.n_users)


def test_scenarios_of_csi_feedback_have_the_dimensions_they_promise():
    lab, paper = load_scenario("csi-lab").csi_frame, load_scenario("csi-paper").csi_frame
    for frame, n_antennas, bandwidth_hz in ((lab, 4, 2e6), (paper, 32, 20e6)):
        assert frame.n_antennas == n_antennas
        assert frame.bandwidth_hz == bandwidth_hz
        assert (frame.slots.n_users, frame.slots.n_subcarriers, frame.slots.n_taps) == (2, 256, 32)
        # A sixteenth of the numbers that are told.
        assert frame.slots.feedback_length * 16 == frame.slots.n_taps * n_antennas
    # The noise at an antenna is such that all antennas together have the SNR that is announced.
    scenario = load_scenario("csi-lab", ["csi.snr_db=7"])
    assert 4 / scenario.noise_power == pytest.approx(10**0.7)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("csi.comb=8", "comb=8"),
        ("csi.feedback_length=0", "csi.feedback_length"),
        ("csi.spacing_m=[3, 1]", "spacing_m"),
        ("csi.sounding_repeats=1", "csi.sounding_repeats"),
        ("csi.turnaround_samples=100000", "lengthen the frame"),
        ("csi.n_subcarriers=300", "n_used=256"),
        ("csi.unknown=1", "allowed here: n_users"),
        ("csi.snr_db=40", "csi.snr_db"),
        ('terminals=[{kind="iio", address="ip:1.2.3.4"}]', "terminals"),
    ],
)
def test_wrong_fields_of_csi_feedback_are_explained(override, names):
    with pytest.raises(ScenarioError, match="csi") as raised:
        load_scenario("csi-lab", [override])
    assert names in str(raised.value)


def test_lab_and_paper_have_the_dimensions_they_promise():
    lab, paper = load_scenario("lab"), load_scenario("paper")
    assert (lab.radio.n_antennas, lab.frame.n_groups, lab.n_snapshots) == (4, 16, 64)
    assert (paper.users.n_users, paper.users.activity, paper.n_snapshots) == (128, 0.1, 64)
    assert (paper.radio.n_antennas, paper.frame.max_preamble_length, paper.link.access_snr_db) == (64, 28, 10)


def test_powers_give_the_snrs_asked_for():
    scenario = load_scenario("lab", ["link.access_snr_db=10", "link.beacon_snr_db=7"])
    # 12.8 active users on average, each of mean power 1 per cell.
    assert 12.8 / scenario.noise_power == pytest.approx(10)
    assert scenario.beacon_amplitude**2 / scenario.noise_power == pytest.approx(10**0.7)
    assert scenario.max_cfo_hz == pytest.approx(17500)


def test_scenario_without_activity_still_has_noise():
    scenario = load_scenario("lab", ["users.activity=0"])
    assert scenario.noise_power == pytest.approx(0.1)
    assert scenario.expected_power > 0


@pytest.mark.parametrize("level", ["perfect", "cabled", "wireless"])
def test_level_presets_the_impairments_and_single_ones_override_it(level):
    assert load_scenario("lab", [f"level={level}"]).impairments == Impairments.preset(level)
    changed = load_scenario("lab", [f"level={level}", "impairments.cfo_ppm=-3"]).impairments
    assert changed == Impairments.preset(level).model_copy(update={"cfo_ppm": -3.0})


FINITE = {"allow_nan": False, "allow_infinity": False}


@st.composite
def scenarios(draw) -> dict:
    longest = draw(st.integers(1, 28))
    rx = draw(st.sampled_from([1, 4, 64]))
    kind = draw(st.sampled_from(["none", "rayleigh"]))
    frequency_hz = draw(st.floats(1, 1e11))
    rate_hz = draw(st.floats(1e3, 1e9))
    most_ppm = min(100.0, 0.499 * rate_hz / frequency_hz * 1e6)
    return {
        "name": draw(st.text(min_size=1, max_size=12)),
        "description": draw(st.text(max_size=30)),
        "seed": draw(st.integers(0, 2**63)),
        "level": draw(st.sampled_from(["perfect", "cabled", "wireless"])),
        "frame": {
            "sample_rate_hz": rate_hz,
            "n_groups": draw(st.integers(1, 16)),
            "frame_samples": draw(st.integers(10_000, 10**6)),
        },
        "users": {
            "n_users": draw(st.integers(1, 4096)),
            "activity": draw(st.floats(0, 1)),
            "preamble_lengths": draw(st.lists(st.integers(1, longest), min_size=1, max_size=5)),
            "power_spread_db": draw(st.floats(0, 30)),
        },
        "link": {"access_snr_db": draw(st.floats(-30, 60)), "beacon_snr_db": draw(st.floats(-30, 60))},
        "radio": {
            "n_antennas": rx,
            "frequency_hz": frequency_hz,
            "losses": draw(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**6)), max_size=3)),
        },
        "channel": {"kind": kind, **({"doppler_hz": draw(st.floats(0, 1e5))} if kind == "rayleigh" else {})},
        "impairments": {
            "cfo_ppm": draw(st.floats(-100, 100)),
            "adc_bits": draw(st.sampled_from([None, 8, 12])),
            "dc_dbfs": draw(st.one_of(st.none(), st.floats(-120, 0))),
        },
        "sync": {"max_cfo_ppm": draw(st.floats(0, most_ppm)), "false_alarms_per_sample": draw(st.floats(1e-15, 0.01))},
        "detector": {
            "name": "cd",
            "options": draw(st.dictionaries(st.text(max_size=5), st.floats(**FINITE), max_size=2)),
        },
    }


@given(scenarios())
def test_plain_values_and_scenarios_are_each_others_inverse(data):
    scenario = parse_scenario(data, "test")
    plain = scenario_dict(scenario)
    assert parse_scenario(plain, "again") == scenario
    assert scenario_dict(parse_scenario(plain, "again")) == plain
    assert plain["users"]["preamble_lengths"] == data["users"]["preamble_lengths"]
    assert plain["impairments"]["cfo_ppm"] == data["impairments"]["cfo_ppm"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("users.activity=1.5", ["users.activity", "given 1.5", "less than or equal to 1"]),
        ("users.activty=0.1", ["users.activty", "unknown field", "activity, preamble_lengths"]),
        ("usrs.activity=0.1", ["usrs", "unknown field", "users"]),
        ("users.n_users=0", ["users.n_users", "given 0", "greater than or equal to 1"]),
        ("users.n_users=many", ["users.n_users", "given 'many'", "integer"]),
        ("users.preamble_lengths=[8, 29]", ["29", "frame.max_preamble_length=28"]),
        ("users.preamble_lengths=[0]", ["users", "preamble_lengths=[0]", "start at 1"]),
        ("users.preamble_lengths=[]", ["users.preamble_lengths", "at least 1"]),
        ("level=space", ["level", "given 'space'", "'perfect', 'cabled' or 'wireless'"]),
        ("radio.kind=3", ["radio.kind", "given 3", "string"]),
        ("radio.losses=[[5, -3]]", ["radio.losses", "-3", "1"]),
        ("radio.losses=[[-5, 3]]", ["radio.losses", "-5", "0"]),
        ("frame.n_fft=130", ["frame", "n_fft=130", "multiple of 4"]),
        ("frame.n_groups=50", ["frame", "n_groups*group_width=100", "n_used=96"]),
        ("frame.header_symbols=0", ["frame.header_symbols", "given 0"]),
        ("channel.kind=pipe", ["channel.kind", "given 'pipe'", "'none', 'rayleigh', 'clustered' or 'recorded'"]),
        ("impairments.adc_bits=99", ["impairments.adc_bits", "given 99", "less than or equal to 16"]),
        ("impairments.adc_bit=12", ["impairments.adc_bit", "unknown field", "adc_bits"]),
        ("impairments=3", ["impairments", "given 3"]),
        ("sync.false_alarms_per_sample=0", ["sync.false_alarms_per_sample", "given 0", "greater than 0"]),
        ("link.access_snr_db=nan", ["link.access_snr_db", "given nan"]),
        ("link.access_snr_db=inf", ["link.access_snr_db", "given inf"]),
        ("seed=-1", ["seed", "given -1", "greater than or equal to 0"]),
    ],
)
def test_wrong_fields_are_answered_with_path_given_and_allowed(override, words):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("lab", [override])
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "lab.toml" in str(caught.value)


def test_carrier_offsets_beyond_the_band_are_refused():
    with pytest.raises(ScenarioError, match=r"sync\.max_cfo_ppm=11 .*1\.1e\+06 Hz.*frame\.sample_rate_hz=2e\+06"):
        load_scenario("lab", ["sync.max_cfo_ppm=11", "radio.frequency_hz=1e11"])


def test_array_of_another_number_of_antennas_is_refused():
    with pytest.raises(ScenarioError, match=r"channel\.array_shape: .*3x2 .*4 antennas"):
        load_scenario("lab", ["channel.kind=clustered", "channel.array_shape=[3, 2]"])


def test_all_wrong_fields_are_told_at_once():
    with pytest.raises(ScenarioError) as caught:
        load_scenario("lab", ["users.activity=2", "seed=-1"])
    assert "users.activity" in str(caught.value)
    assert "seed" in str(caught.value)


def test_missing_name_is_told():
    with pytest.raises(ScenarioError, match=r"own: name: missing"):
        parse_scenario({}, "own")


@pytest.mark.parametrize("override", ["users.activity", "=3", "users..activity=1", ".=1", ""])
def test_overrides_of_another_form_are_explained(override):
    with pytest.raises(ScenarioError, match=r"not of the form section\.field=value"):
        load_scenario("lab", [override])


def test_override_into_a_value_is_explained():
    with pytest.raises(ScenarioError, match="seed is a value and has no fields"):
        load_scenario("lab", ["seed.more=1"])


def test_overrides_take_numbers_words_lists_and_tables():
    scenario = load_scenario(
        "lab",
        ["seed=7", "name=my run", "users.preamble_lengths=[4]", "radio.losses=[[10, 5]]", "detector.name='somp'"],
    )
    assert (scenario.seed, scenario.name, scenario.users.preamble_lengths) == (7, "my run", (4,))
    assert scenario.radio.losses == ((10, 5),)
    assert scenario.detector.name == "somp"


def test_own_file_is_read(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('name = "own"\n[users]\nactivity = 0.25\n')
    assert load_scenario(path).users.activity == 0.25
    assert load_scenario(str(path)).name == "own"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"name = ", "not a TOML file"), (b"\xff\xfe\x00", "not a TOML file"), (b"", "name: missing")],
)
def test_files_that_are_no_scenario_are_explained(tmp_path, content, words):
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=words):
        load_scenario(path)


@pytest.mark.parametrize("source", ["nowhere", "/nowhere/x.toml", ".", "/"])
def test_missing_file_names_the_shipped_ones(source):
    names = ", ".join(shipped_scenarios())
    assert {"bench", "csi-lab", "csi-paper", "lab", "paper"} <= set(shipped_scenarios())
    with pytest.raises(ScenarioError, match=rf"neither a file nor a shipped scenario \({names}\)"):
        load_scenario(source)


def test_preambles_depend_on_their_seed_alone():
    a = load_scenario("lab").preambles()
    np.testing.assert_array_equal(a, load_scenario("lab", ["seed=99"]).preambles())
    assert not np.array_equal(a, load_scenario("lab", ["users.preamble_seed=2"]).preambles())
