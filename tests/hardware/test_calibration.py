"""Calibration files: what they hold, where they hold, and how they are refused where they do not."""

from __future__ import annotations

import cmath
import contextlib
import dataclasses
import gc
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.calibration import ChainError
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.impairments import Impairments, iq_imbalance
from semair.errors import RadioError, ScenarioError
from semair.hardware.calibration import (
    PARTS,
    Calibration,
    Chain,
    Reciprocity,
    Residual,
    load_calibration,
    require_settings,
    require_valid,
    source_of,
    tune_of,
    validity,
)
from semair.hardware.loopback import LoopbackRadio
from semair.hardware.radio import Settings
from semair.models.channels import ChannelConfig

SETTINGS = Settings(2e6, 3.5e9, clock_source="internal", time_source="internal")
CREATED = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
NOW = CREATED + timedelta(minutes=10)
ERRORS = [ChainError(), ChainError(0.3, cmath.rect(0.8, -1.2), 0.01 - 0.02j, 0.001 + 0.002j)]


class Retunable(LoopbackRadio):
    """A radio whose phases are others after each tuning, with gains and a thermometer."""

    kind = "retunable"
    temperature_c: float | None = 40.0
    gains_db: tuple[float, ...] = (10.0, 12.0)

    def configure(self, requested: Settings) -> Settings:
        super().configure(requested)
        self.capabilities = dataclasses.replace(self.capabilities, phase_stable_across_retune=False)
        return dataclasses.replace(requested, rx_gain_db=self.gains_db)

    def facts(self) -> dict[str, Any]:
        known = {} if self.temperature_c is None else {"temperature_c": self.temperature_c}
        return {**super().facts(), "serials": ["A1"], **known}


def radio(kind: type[LoopbackRadio] = LoopbackRadio, seed: int = 1, n_rx: int = 2) -> LoopbackRadio:
    made = kind(
        FrameFormat(),
        n_rx=n_rx,
        n_users=1,
        channel=ChannelConfig(),
        beacon_channel=ChannelConfig(),
        impairments=Impairments.preset("cabled"),
        noise_power=0.1,
        expected_power=1.0,
        seed=seed,
    )
    made.configure(SETTINGS)
    return made


def calibration(of: LoopbackRadio, actual: Settings = SETTINGS, **changes: Any) -> Calibration:
    values: dict[str, Any] = {
        "created": CREATED,
        "method": "splitter",
        "reference": 0,
        "radio": source_of(of, ""),
        "settings": actual.as_dict(),
        "software": {},
        "cfo_hz": 0.0,
        "chains": tuple(Chain.of(error, 30.0) for error in ERRORS),
        "residual": tuple(Residual.of(ChainError(0.001, 1.001)) for _ in ERRORS),
        "mismatch_db": -40.0,
        "valid": validity(of, actual, 3600.0, CREATED),
    }
    return Calibration(**{**values, **changes})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    made = calibration(radio(), reciprocity=Reciprocity(gain_db=(0, 1), phase_deg=(0, 90), delay_samples=(0, 0.1)))
    made.write(tmp_path / "x.calibration.json")
    assert load_calibration(tmp_path / "x.calibration.json").model_dump_json() == made.model_dump_json()
    assert [path.name for path in tmp_path.iterdir()] == ["x.calibration.json"]
    for error, expected in zip(made.errors(), ERRORS, strict=True):
        assert dataclasses.astuple(error) == pytest.approx(dataclasses.astuple(expected), abs=1e-12)
    assert made.worst()["delay_samples"] == 0.001
    assert made.summary()["worst_residual"]["gain_db"] == pytest.approx(20 * math.log10(1.001))


def test_imbalances_are_in_the_terms_of_the_impairments() -> None:
    x = np.exp(1j * np.arange(20))
    y = iq_imbalance(x, 0.3, -2.0)
    image = Chain(
        delay_samples=0, phase_deg=0, gain_db=0, iq_gain_db=0.3, iq_phase_deg=-2.0, dc_i=0, dc_q=0, snr_db=0
    ).error().image  # fmt: skip
    assert np.ptp(np.abs((y - image * y.conj()) / x)) < 1e-12


def test_parts_can_be_left_out() -> None:
    chain = Chain.of(ERRORS[1], 30.0)
    assert chain.error(("phase",)) == ChainError(gain=cmath.rect(1.0, math.radians(chain.phase_deg)))
    assert abs(chain.error(("gain",)).gain) == pytest.approx(0.8)
    assert chain.error(("delay",)) == ChainError(delay_samples=0.3)
    assert chain.error(("dc",)) == ChainError(dc=0.001 + 0.002j)
    assert abs(chain.error(("iq",)).image - ERRORS[1].image) < 1e-15


def test_reciprocity_is_a_factor_for_each_frequency() -> None:
    found = Reciprocity(gain_db=(0, 20), phase_deg=(0, 90), delay_samples=(0, 1)).factors((0.0, 0.25))
    assert np.allclose(found, [[1, 10j], [1, 10j * np.exp(-0.5j * np.pi)]])


def test_it_holds_where_it_was_measured_also_after_a_restart() -> None:
    require_valid(calibration(radio()), radio(), "", SETTINGS, now=NOW)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "frequency": ({"frequency_hz": 3.6e9}, r"valid.frequency_hz is 3499999000 to 3500001000, the radio has 3600000000"),
    "rate": ({"sample_rate_hz": 1e6}, r"valid.sample_rate_hz is 1999998 to 2000002, the radio has 1000000"),
    "clock": ({"clock_source": "external"}, r"valid.clock_source is 'internal', the radio's is 'external'"),
    "bandwidth": ({"bandwidth_hz": 1e6}, r"valid.bandwidth_hz is not known, the radio has 1000000"),
    "gains": ({"rx_gain_db": (1.0, 2.0)}, r"valid.rx_gain_db holds 0 gains, the radio has 2"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_settings_are_refused_with_field_both_values_and_the_fix(what: str) -> None:
    change, words = REFUSED[what]
    with pytest.raises(RadioError, match=words) as caught:
        require_valid(calibration(radio()), radio(), "", dataclasses.replace(SETTINGS, **change), now=NOW)
    assert "semair calibrate" in str(caught.value)


def test_another_radio_is_refused_and_so_are_other_emulated_chains() -> None:
    for other in (radio(seed=2), radio(Retunable)):
        with pytest.raises(RadioError, match=r"radio\.(serials|kind) is loopback.*this radio's is"):
            require_valid(calibration(radio()), other, "", SETTINGS, now=NOW)
    with pytest.raises(RadioError, match="chains: it holds 2, there are 3"):
        require_valid(calibration(radio()), radio(n_rx=3), "", SETTINGS, now=NOW)


def test_it_expires() -> None:
    made, here = calibration(radio()), radio()
    require_valid(made, here, "", SETTINGS, now=CREATED + timedelta(seconds=3600))
    with pytest.raises(RadioError, match=r"valid.until is 2026-05-04T13:00:00\+00:00, now it is 2026-05-04T13:00:01"):
        require_valid(made, here, "", SETTINGS, now=CREATED + timedelta(seconds=3601))
    with pytest.raises(RadioError, match=r"created is 2026-05-04T12:00:00.*set the clock"):
        require_valid(made, here, "", SETTINGS, now=CREATED - timedelta(hours=1))


def test_phases_end_with_their_tuning_and_all_else_does_not() -> None:
    device = radio(Retunable)
    actual = device.configure(SETTINGS)
    made = calibration(device, actual)
    require_valid(made, device, "", actual, now=NOW)
    actual = device.configure(SETTINGS)
    with pytest.raises(
        RadioError, match=r"valid.tune is \w{8}, this is \w{8}: the radio was tuned or started anew"
    ) as e:
        require_valid(made, device, "", actual, now=NOW)
    assert '--set radio.calibration_parts=["delay", "gain", "iq", "dc"]' in str(e.value)
    require_valid(made, device, "", actual, [part for part in PARTS if part != "phase"], now=NOW)


def test_gains_and_temperature_are_compared() -> None:
    device = radio(Retunable)
    actual = device.configure(SETTINGS)
    made = calibration(device, actual)
    assert isinstance(device, Retunable)
    with pytest.raises(RadioError, match=r"valid.rx_gain_db\[1\] is 11.95 to 12.05, the radio has 13"):
        require_valid(made, device, "", dataclasses.replace(actual, rx_gain_db=(10.0, 13.0)), now=NOW)
    device.temperature_c = 46.0
    with pytest.raises(RadioError, match=r"valid.temperature_c is 35 to 45, the radio has 46"):
        require_valid(made, device, "", actual, now=NOW)
    device.temperature_c = None
    require_valid(made, device, "", actual, now=NOW)


def test_a_tune_has_one_name_until_the_radio_is_configured_again() -> None:
    device = radio()
    first = tune_of(device)
    assert tune_of(device) == first
    device.configure(SETTINGS)
    # Another block may get the old one's place in memory.
    gc.collect()
    assert tune_of(device) != first
    assert tune_of(radio()) != tune_of(radio())


def test_recordings_are_asked_for_settings_alone() -> None:
    made = calibration(radio())
    require_settings(made, SETTINGS, 2, "x")
    with pytest.raises(RadioError, match=r"x: valid.frequency_hz"):
        require_settings(made, dataclasses.replace(SETTINGS, frequency_hz=1e9), 2, "x")


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(ScenarioError, match=r"x.json cannot be read \(No such file"):
        load_calibration(path)
    good = json.loads(calibration(radio()).model_dump_json())
    for content, words in [
        ("{", "not a calibration file"),
        ("[" * 100_000, "not a calibration file"),
        ("[]", "x.json"),
        (json.dumps({**good, "format": 2}), "format is 2, known is 1"),
        (json.dumps({**good, "chains": []}), "chains"),
        (json.dumps({**good, "residual": []}), "residual has 0 entries, chains has 2"),
        (json.dumps({**good, "reference": 7}), "reference=7"),
        (json.dumps({**good, "surplus": 1}), "surplus: unknown field"),
        (json.dumps({**good, "cfo_hz": math.nan}), "cfo_hz"),
        (json.dumps({**good, "valid": {**good["valid"], "frequency_hz": {"low": 2, "high": 1}}}), "low=2"),
        (json.dumps({**good, "valid": {**good["valid"], "until": "2026-05-04T12:00:00"}}), "until"),
        (json.dumps({key: value for key, value in good.items() if key != "created"}), "created: missing"),
    ]:
        path.write_text(content)
        with pytest.raises(ScenarioError, match=words):
            load_calibration(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


GOOD = json.loads(calibration(radio()).model_dump_json())


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(Calibration.model_fields)), value=JSON)
def test_any_value_in_any_field_is_read_or_refused(tmp_path_factory, field: str, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({**GOOD, field: value}))
    with contextlib.suppress(ScenarioError):
        load_calibration(path).errors()
