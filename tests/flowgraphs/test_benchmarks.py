"""The benchmark of random access: its entries, its numbers against known answers, and the area's interface."""

from __future__ import annotations

import json
import time

import jsonschema
import numpy as np
import pytest
from scipy import stats
from semair.errors import ScenarioError
from semair.flowgraphs.benchmarks import Entry, _chain, _running, areas, entry_names, random_access, run_area
from semair.flowgraphs.scenario import load_scenario
from semair.models.uad import detectors

ENTRIES = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "value", "ci95", "unit", "reference", "settings"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "value": {"type": "number"},
            "ci95": {
                "anyOf": [
                    {"type": "null"},
                    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                ]
            },
            "unit": {"type": "string", "minLength": 1},
            "reference": {"type": ["number", "string"]},
            "settings": {"type": "object", "minProperties": 1},
        },
    },
}


def checked(entries: list[Entry]) -> dict[str, dict]:
    """Entries by name, after a round through strict JSON and the schema."""
    text = json.dumps([entry.as_dict() for entry in entries], allow_nan=False)
    rows = json.loads(text)
    jsonschema.validate(rows, ENTRIES)
    for row in rows:
        if row["ci95"] is not None:
            assert row["ci95"][0] <= row["value"] <= row["ci95"][1], row["name"]
    return {row["name"]: row for row in rows}


class TestAreas:
    def test_random_access_is_found_without_a_list(self):
        assert areas()["random-access"] is random_access

    def test_unknown_area_names_those_there_are(self):
        with pytest.raises(ScenarioError, match=r"'radar'.*random-access"):
            run_area("radar")

    def test_only_that_fits_nothing_is_told_what_names_hold_before_anything_is_measured(self):
        with pytest.raises(ScenarioError, match=r"'no-such'.* such as [^,]+; they are made of: .*symbol-error, cd, L8"):
            run_area("random-access", only=["no-such"])

    @pytest.mark.parametrize("quick", [True, False])
    def test_names_are_unique_and_cover_the_claims(self, quick):
        names = entry_names("random-access", quick)
        assert len(names) == len(set(names))
        for start in ("symbol-error/cd/L12", "snr-cost/paper/wireless/", "sync/", "receiver/", "detector-time/cd/",
                      "replay/", "memory/"):  # fmt: skip
            assert any(name.startswith(start) for name in names)

    def test_progress_rises_to_one_and_only_what_is_asked_for_is_yielded(self):
        told = []
        entries = list(
            run_area(
                "random-access", True, ["symbol-error/somp/L8", "cd/L14/shipped"],
                lambda name, share: told.append((name, share)),
            )
        )  # fmt: skip
        assert [entry.name for entry in entries] == [
            "symbol-error/cd/L14/shipped-threshold",
            "symbol-error/somp/L8",
            "symbol-error/somp/L8/shipped-threshold",
        ]
        # On a machine of its own nothing is stolen; what a shared one lost is told with every figure.
        assert all(0 <= entry.settings["stolen_share"] < 1 for entry in entries)
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert {name for name, _ in told} == {"symbol-error/cd/L14", "symbol-error/somp/L8"}

    @pytest.mark.slow
    def test_every_measurement_yields_the_names_it_declares(self):
        for measurement in random_access.measurements(True):
            if measurement.names[0].startswith(("symbol-error/cd", "sync/")):
                assert tuple(entry.name for entry in measurement.run(lambda share: None)) == measurement.names


class TestEntry:
    def test_unbounded_interval_and_odd_settings_become_plain(self):
        entry = Entry(
            "a/b", 1.0, (-np.inf, np.inf), "1", "none", {"x": np.float32(2), "y": np.arange(2), "z": (np.inf, 1)}
        )
        assert entry.as_dict() == {
            "name": "a/b", "value": 1.0, "ci95": None, "unit": "1", "reference": "none",
            "settings": {"x": 2.0, "y": [0, 1], "z": [None, 1]},
        }  # fmt: skip

    def test_a_value_that_is_no_number_is_refused(self):
        with pytest.raises(ValueError, match="a/b"):
            Entry("a/b", float("nan"), None, "1", 0.0, {})


class TestSnrCost:
    OFFSETS = (-6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0)

    def draws(self, cost_db, n_frames, seed, slope=0.25, error=0.05, n_users=128):
        """Frames whose error probability falls as exp(-slope dB); the chain's is that of cost_db less."""
        rng = np.random.default_rng(seed)
        chances = error * np.exp(-slope * np.array([*self.OFFSETS, -cost_db]))
        shares = rng.binomial(n_users, chances, (n_frames, len(chances))) / n_users
        return shares[:, -1], shares[:, :-1]

    @pytest.mark.parametrize("cost_db", [0.0, 1.3, 3.0, -0.7])
    def test_a_known_shift_is_found(self, cost_db):
        chain, symbol = self.draws(cost_db, 4000, 1)
        found = _chain.snr_cost_db(chain, symbol, self.OFFSETS, np.random.default_rng(2))
        # Standard deviation of log error: 1 / sqrt(frames * users * error) = 0.6 %, twice (chain and curve),
        # over a slope of 0.25 per dB: 0.035 dB; five of them.
        assert found.value == pytest.approx(cost_db, abs=0.18)
        assert found.low <= found.value <= found.high
        assert found.high - found.low < 0.3

    def test_the_interval_covers_as_often_as_it_says(self):
        # 95 % of 100: fewer than 88 has a chance of 1 %, and the bootstrap is a little narrow by nature.
        hits = 0
        for seed in range(100):
            chain, symbol = self.draws(1.0, 300, seed)
            found = _chain.snr_cost_db(chain, symbol, self.OFFSETS, np.random.default_rng(seed), 300)
            hits += found.low <= 1.0 <= found.high
        assert hits >= 87

    def test_beyond_the_grid_the_end_is_told(self):
        symbol = np.tile(0.1 * np.exp(-0.3 * np.array(self.OFFSETS)), (10, 1))
        worse = _chain.snr_cost_db(np.full(10, 0.9), symbol, self.OFFSETS, np.random.default_rng(0), 50)
        better = _chain.snr_cost_db(np.full(10, 0.0), symbol, self.OFFSETS, np.random.default_rng(0), 50)
        assert (worse.value, better.value) == (6.0, -2.0)

    def test_descending_offsets_are_refused(self):
        with pytest.raises(ValueError, match="ascending"):
            _chain.snr_cost_db(np.zeros(4), np.zeros((4, 2)), (1.0, 0.0), np.random.default_rng(0))


class TestChain:
    def scenario(self, *overrides):
        return load_scenario("lab", ["seed=5", "users.preamble_lengths=[8, 10]", *overrides])

    def test_noise_snapshots_are_the_noise_of_the_run(self):
        # With nobody active and perfect radios the snapshots hold noise and nothing else.
        scenario = self.scenario("level=perfect", "users.activity=0")
        air = _chain.make_air(scenario)
        nobody = [np.empty(0, int)] * 6
        tail = _chain.tail_samples(scenario, air)
        streams = _chain.antenna_streams(scenario, air, nobody, [8, 10] * 3, tail)
        slots = _chain.receive_slots(scenario, streams)
        assert sorted(slots) == list(range(6))
        delay = _chain.receiver_delay_samples(scenario)
        for frame, noise in _chain.noise_snapshots(scenario, air, slots, delay):
            np.testing.assert_allclose(noise, slots[frame].snapshots, atol=1e-5)

    def test_true_gains_are_what_a_noiseless_chain_receives(self):
        # Flat in frequency and at rest, so that the groups' centres say it all.
        scenario = self.scenario(
            "level=perfect", "link.access_snr_db=60", "link.beacon_snr_db=60", "channel.delay_spread_s=0",
            "channel.doppler_hz=0", "beacon_channel.kind=none", "beacon_channel.delay_spread_s=0",
            "beacon_channel.doppler_hz=0",
        )  # fmt: skip
        air = _chain.make_air(scenario)
        active = [np.array([3, 77])] * 2
        tail = _chain.tail_samples(scenario, air)
        slots = _chain.receive_slots(scenario, _chain.antenna_streams(scenario, air, active, [8, 10], tail))
        for frame, length in ((0, 8), (1, 10)):
            gains = _chain.true_gains(scenario, air, active[frame], frame, length)
            expected = scenario.preambles()[:length, active[frame]] @ gains
            phase = slots[frame].snapshots / expected
            # The groups' phases are common to all users and symbols.
            turn = np.mean(phase, axis=0)
            # Antennas are levelled by their noise estimates over 384 cells, which scatter by 2.6 % in amplitude: five
            # sigma. Within an antenna nothing but the noise at 60 dB is left.
            level = np.abs(turn).reshape(scenario.radio.n_antennas, -1)
            np.testing.assert_allclose(level, 1, atol=0.13)
            np.testing.assert_allclose(level / level.mean(axis=1, keepdims=True), 1, atol=0.02)
            np.testing.assert_allclose(slots[frame].snapshots, expected * turn, atol=0.05)

    def test_perfect_radios_on_a_flat_channel_cost_little(self):
        # Independent antennas, so that errors fall with SNR: a cost in SNR says little where they come from fading.
        scenario = load_scenario(
            "paper",
            ["seed=5", "level=perfect", "users.preamble_lengths=[8]", "frame.max_preamble_length=8",
             "frame.frame_samples=3000"],
        )  # fmt: skip
        detector = detectors.make("cd", scenario.preambles(), 0.1)
        offsets = (-4.0, -2.0, -1.0, 0.0, 1.0)
        result = _chain.compare(scenario, detector, 40, offsets)
        assert result.found.all()
        cost = _chain.snr_cost_db(result.chain, result.symbol, offsets, np.random.default_rng(0))
        # Only the estimates of noise and timing differ: both sides err in the same slots.
        assert abs(cost.value) < 0.7
        assert np.corrcoef(result.chain, result.symbol[:, 3])[0, 1] > 0.9

    def test_a_frame_that_is_not_found_counts_as_silent(self):
        scenario = self.scenario("level=perfect", "link.beacon_snr_db=-30", "users.activity=0.2")
        detector = detectors.make("cd", scenario.preambles(), 0.2)
        result = _chain.compare(scenario, detector, 6, (-1.0, 0.0))
        assert not result.found.any()
        rng = np.random.default_rng([scenario.seed, 21])
        truth = rng.random((6, scenario.users.n_users)) < 0.2
        np.testing.assert_array_equal(result.chain, truth.mean(axis=1))

    def test_decisions_are_those_of_the_flowgraph(self, tmp_path):
        pytest.importorskip("gnuradio")
        from semair.blocks.user_transmitter import draw_active
        from semair.flowgraphs.run import make_detector, run_random_access

        scenario = self.scenario("level=wireless")
        n_frames = 24
        result = run_random_access(scenario, tmp_path / "run", n_frames=n_frames, record=False)
        rows = result.folder.rows(result.folder.decisions)
        active = [draw_active(128, scenario.users.activity, scenario.seed, f) for f in range(n_frames)]
        air = _chain.make_air(scenario)
        tail = _chain.tail_samples(scenario, air)
        lengths = [8, 10] * (n_frames // 2)
        slots = _chain.receive_slots(scenario, _chain.antenna_streams(scenario, air, active, lengths, tail))
        detector = make_detector(scenario)
        assert sorted(slots) == sorted(rows["frame"].tolist()) == list(range(n_frames))
        for row in rows:
            slot = slots[int(row["frame"])]
            assert slot.noise_power == row["noise_power"]
            scores = detector.detect(slot.snapshots[None], slot.noise_power).scores[0]
            np.testing.assert_array_equal(scores, row["scores"])


class TestStatistics:
    def test_poisson_interval_has_its_tails(self):
        for events in (0, 1, 7, 40):
            low, high = random_access.poisson_ci95(events)
            assert stats.poisson.cdf(events, high) == pytest.approx(0.025)
            if events:
                assert stats.poisson.sf(events - 1, low) == pytest.approx(0.025)
        assert random_access.poisson_ci95(0)[0] == 0

    def test_quantile_interval_covers_as_often_as_it_says(self):
        rng = np.random.default_rng(3)
        truth = stats.expon.ppf(0.9)
        hits = 0
        for _ in range(1000):
            _, low, high = _running.quantile_ci95(rng.exponential(size=200), 0.9)
            hits += low <= truth <= high
        # At least 95 % of 1000, four standard deviations of 6.9 below.
        assert hits >= 922

    def test_quantile_that_too_few_values_bound_is_unbounded(self):
        value, _, high = _running.quantile_ci95(np.arange(20.0), 0.99)
        assert 18 < value <= 19
        assert high == np.inf

    def test_ratio_interval_holds_the_ratio(self):
        low, high = _running.ratio_ci95(np.array([9.0, 10, 11]), np.array([4.0, 5, 6]))
        # Relative standard errors 5.77 % and 11.5 %, together 12.9 %.
        assert low == pytest.approx(2 - 1.96 * 0.258, rel=0.01)
        assert high == pytest.approx(2 + 1.96 * 0.258, rel=0.01)

    def test_growth_is_that_behind_the_warm_up(self):
        times = np.arange(0, 120, 0.5)
        # 500 MB in the first third, then 3 MB a minute.
        resident = np.minimum(times, 39) * 12 + 3 * times / 60
        value, (low, high) = _running.growth_per_minute(times, resident)
        assert value == pytest.approx(3, rel=1e-6)
        assert low == pytest.approx(3, rel=1e-4)
        assert high == pytest.approx(3, rel=1e-4)

    def test_decisions_out_of_order_are_seen(self):
        good = np.array([[100, 4], [1100, 5], [2101, 0]])
        assert _running.in_order(good, 1000, 6)
        assert _running.expected_decisions(good, 1000) == 3
        gap = good[[0, 2]]
        assert not _running.in_order(gap, 1000, 6)
        assert _running.expected_decisions(gap, 1000) == 3


class TestMeasured:
    def test_errors_at_symbol_level_tell_pools_thresholds_and_the_reference(self):
        rows = checked(list(random_access.symbol_error("cd", 8, 40, 2, 1, lambda share: None)))
        best = rows["symbol-error/cd/L8"]
        shipped = rows["symbol-error/cd/L8/shipped-threshold"]
        assert best["reference"] == random_access.COVARIANCE_ERRORS[8]
        assert shipped["settings"]["threshold"] == pytest.approx(
            detectors.make("cd", np.ones((8, 2)), 0.1).threshold(8)
        )
        for row in (best, shipped):
            assert len(row["settings"]["pool_errors"]) == 2
            assert np.mean(row["settings"]["pool_errors"]) == pytest.approx(row["value"])
            low, high = row["ci95"]
            assert row["settings"]["ci95_covers_reference"] == (low <= row["reference"] <= high)
            # The error probability is about 3.3e-2; 80 slots give it a standard deviation of a tenth.
            assert 0.015 < row["value"] < 0.06

    def test_synchronisation_meets_its_targets(self):
        rows = checked(list(random_access.sync_accuracy(200, 2, lambda share: None)))
        assert rows["sync/missed/-3dB"]["value"] == 0
        assert rows["sync/timing-error/-3dB"]["settings"]["largest"] < 4
        assert rows["sync/cfo-error/10dB"]["settings"]["largest"] < 0.01

    def test_false_alarms_stay_below_the_rate_asked_for(self):
        rows = checked(list(random_access.false_frames(400_000, 2, 1, lambda share: None)))
        assert rows["sync/false-frames"]["value"] == 0
        assert rows["sync/false-frames"]["settings"]["by_threshold_formula"] == pytest.approx(0.01)
        ratio = rows["sync/false-alarm-ratio"]
        assert ratio["settings"]["noise_samples_per_antenna"] == 40_000
        assert ratio["ci95"][0] <= 1

    def test_frames_at_low_snr_are_found_and_numbered(self):
        rows = checked(list(random_access.frames_missed(40, 2, 1, lambda share: None)))
        assert rows["sync/frames-missed/-3dB"]["value"] == 0
        assert rows["sync/frames-missed/-3dB"]["settings"]["frames"] == 80

    def test_detector_times_come_from_a_process_of_its_own(self):
        told = []
        rows = checked(list(_running.detector_time({"cd": 60, "somp": 60}, 1, told.append)))
        assert set(rows) == {"detector-time/cd/median", "detector-time/cd/p99", "detector-time/somp/over-cd"}
        assert 0 < rows["detector-time/cd/median"]["value"] <= rows["detector-time/cd/p99"]["value"]
        assert told[-1] == 1.0

    def test_jobs_in_threads_keep_their_order_and_raise_their_errors(self):
        told = []
        results = random_access.in_threads([lambda share, k=k: k * k for k in range(5)], told.append)
        assert results == [0, 1, 4, 9, 16]
        with pytest.raises(ZeroDivisionError):
            random_access.in_threads([lambda share: 1 / 0], told.append)

    @pytest.mark.slow
    def test_cost_entries_hold_what_was_compared(self):
        rows = checked(list(random_access.snr_cost("lab", "cabled", 6, 2, 1, lambda share: None)))
        assert list(rows) == ["snr-cost/lab/cabled/L10", "snr-cost/lab/cabled/L16"]
        for row in rows.values():
            assert row["settings"]["frames"] == 12
            assert row["settings"]["seeds"] == [1, 2]
            assert len(row["settings"]["error_symbol_level"]) == len(random_access.OFFSETS_DB)


@pytest.mark.slow
class TestRunning:
    @pytest.fixture(autouse=True)
    def _gnuradio(self):
        pytest.importorskip("gnuradio")

    def test_receiver_decides_every_frame_beside_its_peers(self):
        rows = checked(list(_running.receiver_rate(0.5, 1, lambda share: None)))
        decided = rows["receiver/frames-decided"]
        assert decided["value"] == 1.0
        assert decided["settings"]["in_order"]
        assert decided["settings"]["decided"] > 10
        assert rows["receiver/rate"]["settings"]["slots_dropped"] == 0
        own, peer = rows["receiver/rate"], rows["receiver/rate-over-corr_est_cc"]
        assert peer["value"] == pytest.approx(own["value"] / peer["settings"]["peer_rate_ms_per_s"][0])

    def test_replay_is_equal_bit_for_bit(self):
        rows = checked(list(_running.replay(40, 1, 1, lambda share: None)))
        assert rows["replay/bit-equal"]["value"] == 1.0
        assert rows["replay/bit-equal"]["settings"]["decisions_live"] == 40
        assert rows["replay/speed"]["value"] > 0

    def test_a_watch_that_is_not_waited_for_ends_with_its_context(self):
        watch = _running.MemoryWatch(False, 600.0, 1)
        begin = time.monotonic()
        with watch.running():
            time.sleep(0.5)
        assert time.monotonic() - begin < 60

    @pytest.mark.parametrize("record", [False, True])
    def test_memory_of_a_run_is_watched(self, record):
        rows = checked(list(_running.MemoryWatch(record, 4.0, 1).entries(lambda share: None)))
        (row,) = rows.values()
        assert row["settings"]["record"] is record
        assert 3 < row["settings"]["seconds_watched"] < 60
        assert row["settings"]["resident_mb_at_the_end"] > 50
