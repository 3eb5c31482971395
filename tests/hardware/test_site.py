"""The rules of a site: nothing is sent that they do not permit, at the edges and beyond all limits."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from semair.errors import ScenarioError
from semair.hardware.site import (
    LONGEST_S,
    LOUDEST_DBFS,
    PROTECTED,
    SITE_FILE,
    Band,
    Emission,
    Site,
    SiteRadio,
    find_site_file,
    judge,
    load_site,
    permitting,
    protected,
)

ISM = Band(name="ISM", low_hz=2.4e9, high_hz=2.4835e9, max_eirp_dbm=10, basis="general authorisation")
LAB = Band(name="lab", low_hz=3.4e9, high_hz=3.6e9, max_eirp_dbm=0, basis="licence 1")
ON_AIR = SiteRadio(
    kind="uhd", address="a", path="air", max_gain_db=60, full_scale_dbm=12, full_scale_gain_db=60,
    antenna_gain_dbi=3, loss_db=1,
)  # fmt: skip
ON_CABLE = SiteRadio(kind="uhd", address="b", path="cable", max_gain_db=30)
SITE = Site(name="hall", max_duration_s=20, bands=(ISM, LAB), radios=(ON_AIR, ON_CABLE))
# 12 dBm + (50 - 60) dB - 15 dB + 3 dB - 1 dB = -11 dBm.
EMISSION = Emission(frequency_hz=2.45e9, bandwidth_hz=20e6, gain_db=50, level_dbfs=-15, peak=0.8, duration_s=10)


def refusals(site: Site | None = SITE, address: str = "a", path: str = "air", **changes: Any) -> str:
    return " | ".join(judge(replace(EMISSION, **changes), site, "uhd", address, path).refusals)


def test_what_fits_is_permitted_with_its_power_and_its_permission():
    judged = judge(EMISSION, SITE, "uhd", "a", "air")
    assert (judged.refusals, judged.path, judged.band) == ((), "air", ISM)
    assert judged.power_dbm == pytest.approx(-13)
    assert judged.eirp_dbm == pytest.approx(-11)
    on_cable = judge(replace(EMISSION, gain_db=30, frequency_hz=5.7e9), SITE, "uhd", "b", "air")
    assert (on_cable.refusals, on_cable.path, on_cable.eirp_dbm) == ((), "cable", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gain_db": 60.5}, "gain_db=60.5: site 'hall' permits at most 60 dB"),
        ({"gain_db": None}, "gain_db=None"),
        ({"gain_db": math.nan}, "gain_db=nan"),
        ({"peak": 1.01}, "samples reach 1.01"),
        ({"peak": math.nan}, "samples reach nan"),
        ({"level_dbfs": -11.9}, "mean power is -11.9 dBFS: at most -12"),
        ({"level_dbfs": math.nan}, "mean power is nan"),
        ({"duration_s": 20.1}, "duration_s=20.1: site 'hall' permits at most 20 s"),
        ({"duration_s": math.inf}, "must be positive"),
        ({"frequency_hz": -1.0}, "must be positive"),
        ({"frequency_hz": math.nan}, "must be positive"),
        ({"bandwidth_hz": 0.0}, "must be positive"),
        ({"frequency_hz": 1.57542e9}, r"protected band, 1559000000 to 1610000000 Hz (GNSS: L1, E1, G1)"),
        ({"frequency_hz": 5.8e9}, "lies in no permitted band as a whole; site 'hall' permits: ISM 2400000000"),
    ],
)
def test_every_limit_refuses_with_what_was_given_and_what_is_allowed(changes, words):
    assert words in refusals(**changes)


def test_all_reasons_are_told_at_once():
    told = refusals(gain_db=70, duration_s=30, frequency_hz=1.575e9, level_dbfs=0.0, peak=3.0)
    for words in ("gain_db=70", "duration_s=30", "protected", "no permitted band", "0.0 dBFS", "samples reach 3"):
        assert words in told


def test_power_is_limited_on_the_air_and_at_the_port():
    quiet = SITE.model_copy(update={"bands": (ISM.model_copy(update={"max_eirp_dbm": -11.1}),)})
    assert "-11.0 dBm EIRP: ISM permits at most -11.1 dBm" in refusals(quiet)
    assert refusals(quiet, level_dbfs=-15.2) == ""
    weak = SITE.model_copy(update={"radios": (ON_AIR.model_copy(update={"max_power_dbm": -14.0}),)})
    assert "-13.0 dBm at the port: site 'hall' permits at most -14 dBm" in refusals(weak)


def test_radios_without_an_entry_and_stations_without_a_site_are_refused():
    assert "radio uhd 'c' is not in site 'hall', which knows: uhd 'a', uhd 'b'" in refusals(address="c")
    assert f"there is no site file, and radio uhd 'a' transmits for real; write {SITE_FILE}" in refusals(None)


@pytest.mark.parametrize("path", ["loopback", "sim"])
def test_what_ends_in_the_machine_needs_no_site_but_keeps_level_and_length(path):
    assert refusals(None, path=path, frequency_hz=1.575e9, gain_db=None) == ""
    assert "samples reach 2" in refusals(None, path=path, peak=2.0)
    assert f"any site permits at most {LONGEST_S:g} s" in refusals(None, path=path, duration_s=LONGEST_S + 1)


# Edges


@pytest.mark.parametrize("band", PROTECTED, ids=lambda band: band.name)
def test_no_site_opens_a_protected_band(band):
    wide = Band(name="all", low_hz=1.0, high_hz=9e11, max_eirp_dbm=60, basis="none")
    site = Site(name="pirate", bands=(wide,), radios=(ON_AIR, ON_CABLE))
    middle, width = (band.low_hz + band.high_hz) / 2, 1e3
    for frequency_hz in (middle, band.low_hz - width / 2 + 1, band.high_hz + width / 2 - 1):
        for address in ("a", "b"):
            told = refusals(site, address, frequency_hz=frequency_hz, bandwidth_hz=width, gain_db=0)
            assert "protected band" in told and band.name in told
    # Common edges are no overlap, unless the next protected band begins there.
    for low, high in ((band.low_hz - width, band.low_hz), (band.high_hz, band.high_hz + width)):
        assert band not in protected(low, high)


def test_the_protected_bands_are_in_order_and_hold_the_known_frequencies():
    assert all(band.low_hz < band.high_hz for band in PROTECTED)
    assert all(a.high_hz <= b.low_hz for a, b in itertools.pairwise(PROTECTED))
    for hz in (
        1575.42e6, 1227.6e6, 1176.45e6, 1602e6, 1278.75e6, 2492.028e6,  # GPS L1, L2, L5; GLONASS; E6; S band
        121.5e6, 243e6, 110.3e6, 332e6, 406.05e6,  # emergency, localiser, glide path, beacon
        1030e6, 1090e6, 978e6, 4300e6, 5091.5e6,  # transponders, ADS-B, altimeter, AeroMACS
    ):  # fmt: skip
        assert protected(hz, hz + 1), hz
    for hz in (433.92e6, 868.3e6, 915e6, 2.45e9, 3.5e9, 5.8e9):
        assert not protected(hz - 1e6, hz + 1e6), hz


edges = st.integers(1, 60)


@given(st.lists(st.tuples(edges, edges, st.integers(-20, 20)), max_size=6), edges, edges)
def test_an_emission_is_permitted_exactly_where_one_permission_holds_all_of_it(bands, low, high):
    assume(low < high)
    made = [
        Band(name=str(k), low_hz=min(a, b), high_hz=max(a, b), max_eirp_dbm=power, basis="x")
        for k, (a, b, power) in enumerate(bands)
        if a != b
    ]
    site = Site(name="s", bands=tuple(made))
    # Brute force over every unit of spectrum.
    holding = [band for band in made if all(band.low_hz <= unit < band.high_hz for unit in range(low, high))]
    found = permitting(site, low, high)
    assert (found is None) == (not holding)
    if found is not None:
        assert found.max_eirp_dbm == max(band.max_eirp_dbm for band in holding)


@given(
    st.floats(1e6, 2e10), st.floats(1e3, 1e8), st.floats(-50, 100), st.floats(-60, 10), st.floats(0, 2),
    st.floats(1e-3, 100),
)  # fmt: skip
def test_whatever_is_permitted_keeps_every_limit(frequency, width, gain, level, peak, duration):
    emission = Emission(frequency, width, gain, level, peak, duration)
    judged = judge(emission, SITE, "uhd", "a", "air")
    if judged.refusals:
        return
    assert judged.band is not None
    assert judged.band.low_hz <= frequency - width / 2 < frequency + width / 2 <= judged.band.high_hz
    assert not any(frequency - width / 2 < band.high_hz and frequency + width / 2 > band.low_hz for band in PROTECTED)
    assert gain <= 60 and level <= LOUDEST_DBFS and peak <= 1 and duration <= 20
    assert 12 + gain - 60 + level + 3 - 1 <= judged.band.max_eirp_dbm + 1e-9


# Files

TEXT = """
name = "hall 3"
max_duration_s = 20
[[bands]]
name = "ISM 2.4 GHz"
low_hz = 2.4e9
high_hz = 2.4835e9
max_eirp_dbm = 10
basis = "general authorisation"
[[radios]]
kind = "uhd"
address = "serial=1"
path = "air"
max_gain_db = 60
full_scale_dbm = 12
full_scale_gain_db = 60
"""


def test_a_site_file_is_read(tmp_path):
    path = tmp_path / SITE_FILE
    path.write_text(TEXT)
    site = load_site(path)
    assert site.radio("uhd", "serial=1") is not None
    assert site.radio("uhd", "serial=2") is None
    assert (site.name, site.max_duration_s, site.bands[0].high_hz) == ("hall 3", 20, 2.4835e9)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("low_hz = 2.4e9", "low_hz = 2.5e9", "bands.0: low_hz=2500000000 must lie below high_hz=2483500000"),
        ("full_scale_dbm = 12", "", "radios.0: full_scale_dbm=None and full_scale_gain_db=60.0 must both be given"),
        ('basis = "general authorisation"', "", "bands.0.basis: missing"),
        ('basis = "general authorisation"', 'basis = ""', "bands.0.basis: given ''"),
        ('path = "air"', 'path = "loopback"', "radios.0.path: given 'loopback', allowed: 'air' or 'cable'"),
        ("max_duration_s = 20", "max_duration_s = 1e9", "max_duration_s: given 1000000000.0"),
        ("max_gain_db = 60", "max_gain_db = inf", "radios.0.max_gain_db: given inf"),
        ("max_gain_db = 60", "max_gain = 60", "radios.0.max_gain: unknown field"),
        ("[[bands]]", "[[bands", "not a TOML file"),
        ('name = "hall 3"', "", "name: missing"),
    ],
)
def test_a_wrong_site_file_is_refused_with_file_and_field(tmp_path, old, new, words):
    path = tmp_path / "site.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ScenarioError) as caught:
        load_site(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_a_radio_described_twice_is_refused():
    with pytest.raises(ValidationError, match="uhd 'a' is there twice"):
        Site(name="s", radios=(ON_AIR, ON_AIR))


def test_the_site_file_of_the_folder_goes_before_that_of_the_account(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert find_site_file() is None
    account = tmp_path / "config" / "semair" / "site.toml"
    account.parent.mkdir(parents=True)
    account.write_text(TEXT)
    assert find_site_file() == account
    Path(SITE_FILE).write_text(TEXT)
    assert find_site_file() == Path(SITE_FILE)
    with pytest.raises(ScenarioError, match=r"site file nowhere\.toml cannot be read"):
        load_site(Path("nowhere.toml"))
