"""The run report: complete, self-contained, equal to the metrics, and written for broken runs too."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio")

from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError, ScenarioError
from semair.flowgraphs.metrics import flagged, interval, noise_power_behind_chains
from semair.flowgraphs.report import write_report
from semair.flowgraphs.report_data import antenna_levels, file_index
from semair.flowgraphs.report_sections import number, scenario_arguments, toml_of
from semair.flowgraphs.rowlog import RowLog
from semair.flowgraphs.run import replay_run, run_random_access
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import load_scenario, parse_scenario, scenario_dict
from semair.models.statistics import mean_ci95
from semair.models.uad import detectors

SMALL = [
    "users.n_users=12",
    "users.activity=0.3",
    "users.preamble_lengths=[4, 6]",
    "radio.n_antennas=2",
    "link.access_snr_db=3",
]
SECTIONS = [
    "result",
    "settings",
    "detection",
    "synchronisation",
    "signals",
    "activity",
    "latency",
    "losses",
    "reproduce",
]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a page holds: tags, identifiers, references, text, and the values of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[dict]] = {}
        self._table: list[dict] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        fields = dict(attrs)
        self.tags.append((tag, fields))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(fields.get("id") or "", [])
        elif tag == "tr" and self._table is not None:
            self._table.append({"attributes": fields, "values": [], "text": []})
        elif tag == "data" and self._table:
            self._table[-1]["values"].append(None if fields["value"] == "None" else float(fields["value"]))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if self._table:
                self._table[-1]["text"].append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def rows(self, table: str) -> dict[str, list]:
        """Values of a table by the text that starts the row."""
        return {row["text"][0]: row["values"] for row in self.tables[table] if row["values"]}

    def attributes(self, name: str) -> list[str]:
        return [fields[name] or "" for _, fields in self.tags if name in fields]


def report_of(folder: Path, **options) -> Page:
    path = write_report(folder, **options)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[..., Path]:
    """Runs by their overrides, each made once."""
    known: dict[tuple, Path] = {}

    def make(*overrides: str, n_frames: int = 24, record: bool = True) -> Path:
        key = (overrides, n_frames, record)
        if key not in known:
            folder = tmp_path_factory.mktemp("runs") / f"run{len(known)}"
            scenario = load_scenario("lab", [*SMALL, *overrides])
            run_random_access(scenario, folder, n_frames=n_frames, record=record)
            known[key] = folder
        return known[key]

    return make


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of a plain run, to be changed."""
    return Path(shutil.copytree(made(), tmp_path / "run"))


@pytest.fixture(scope="module")
def plain(made) -> tuple[Path, Page]:
    """A plain run and its report with all detectors."""
    return made(), report_of(made())


def test_the_page_is_whole_and_needs_nothing_else(plain):
    folder, page = plain
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert "link" not in tags
    for reference in page.attributes("src") + page.attributes("href") + page.attributes("xlink:href"):
        assert reference.startswith("data:image/png;base64,") or reference[1:] in ids, reference[:80]
    for target in re.findall(r"url\(([^)]*)\)", page.source):
        assert target.lstrip("#") in ids
    assert "http" not in page.source
    assert "@import" not in page.source
    assert (folder / "report.html").stat().st_size < 3e6


def test_contents_bar_leads_to_every_section(plain):
    _, page = plain
    assert [f"#{name}" for name in SECTIONS] == [x for x in page.attributes("href") if x[1:] in SECTIONS]


def test_figures_are_named_themed_and_captioned(plain):
    _, page = plain
    named = [fields["aria-label"] for tag, fields in page.tags if tag == "svg"]
    assert len(named) == len(set(named)) >= 11
    assert all(fields.get("role") == "img" for tag, fields in page.tags if tag == "svg")
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(named)
    drawn = page.source[page.source.index("<body") :]
    assert "var(--ink)" in drawn
    # The axes' colours of the light theme must not be left in a figure, where the dark theme could not change them.
    assert "#1b1f24" not in drawn
    assert "#5b6570" not in drawn


def test_numbers_are_those_of_the_metrics(plain):
    folder, page = plain
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = {
        (row["attributes"]["data-length"], row["attributes"]["data-detector"]): row["values"]
        for row in page.tables["detection-table"]
        if row["values"]
    }
    for length, expected in metrics["detection"].items():
        assert rows[length, "cd"] == [
            expected["slots"],
            *expected["error_probability"],
            expected["missed"],
            expected["false_alarms"],
        ]
    for stage, expected in metrics["latency_ms"].items():
        assert page.rows("latency-table")[stage] == [expected["p50"], expected["p99"], expected["max"]]
    sync = page.rows("synchronisation-table")
    for name, key in (("timing error, samples", "timing_error_samples"), ("beacon SNR, dB", "beacon_snr_db")):
        assert sync[name] == [metrics["synchronisation"][key][part] for part in ("mean", "std", "min", "max")]
    losses = page.rows("losses-table")
    assert losses["samples lost"] == [metrics["counts"]["lost_samples"]]
    assert losses["samples clipped"] == [sum(metrics["counts"]["clipped_samples"])]
    assert losses["frames missed"] == [metrics["frames"]["missed"]]
    assert "24 frames sent: 24 decided, 0 missed" in page.text


def test_other_detectors_are_judged_on_the_kept_slots(plain):
    folder, page = plain
    run = RunFolder(folder)
    scenario = run.scenario()
    truth = {int(row["frame"]): unpack_users(row["active"], 12) for row in run.rows(run.truth)}
    decisions, snapshots = run.rows(run.decisions), run.rows(run.snapshots)
    shown = {
        (int(row["attributes"]["data-length"]), row["attributes"]["data-detector"]): row["values"]
        for row in page.tables["detection-table"]
        if row["values"]
    }
    assert {name for _, name in shown} == set(detectors.classical())
    for name in ("somp", "map-search"):
        engine = detectors.make(name, scenario.preambles(), scenario.users.activity)
        for length in (4, 6):
            wrong = []
            for row, slot in zip(decisions, snapshots, strict=True):
                if row["length"] == length:
                    y = slot["values"][: length * 32].reshape(1, length, 32)
                    wrong.append((engine.detect(y, row["noise_power"]).active[0] != truth[int(row["frame"])]).mean())
            value, low, high = mean_ci95(wrong, 1 / 12)
            assert shown[length, name][:4] == pytest.approx([len(wrong), value, max(low, 0), min(high, 1)])


@pytest.mark.slow
def test_without_time_every_detector_still_judges_every_length(run):
    page = report_of(run, detectors=["gmmv-amp"], rerun_s=0.0)
    slots = {
        row["attributes"]["data-length"]: row["values"][0]
        for row in page.tables["detection-table"]
        if row["attributes"].get("data-detector") == "gmmv-amp"
    }
    assert slots == {"4": 3, "6": 3}


@pytest.mark.slow
def test_progress_runs_from_start_to_end(run):
    shares: list[float] = []
    write_report(run, lambda text, share: shares.append(share), ["somp"])
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_settings_that_differ_are_marked_in_words(plain):
    folder, page = plain
    radio = json.loads((folder / "run.json").read_text())["radio"]
    marked = {row["text"][0] for row in page.tables["settings-table"] if "≠ differs" in row["text"]}
    expected = {key.replace("_", " ") for key in radio["requested"] if radio["requested"][key] != radio["actual"][key]}
    assert marked == expected == {"time source"}


def test_what_kind_of_result_it_is_stands_at_the_top(plain):
    _, page = plain
    assert "Nothing was radiated" in page.text[: page.text.index("frames sent")]


@pytest.mark.slow
def test_a_replay_has_its_own_report_and_joins_that_of_the_run(run):
    replayed = replay_run(run, detector="somp")
    own = report_of(replayed.folder.path, detectors=["cd"])
    rows = {
        row["attributes"]["data-detector"]: row["values"]
        for row in own.tables["detection-table"]
        if row["attributes"].get("data-length") == "6"
    }
    somp, cd = replayed.metrics["detection"]["6"], json.loads((run / "metrics.json").read_text())["detection"]["6"]
    assert rows["somp"][:4] == [somp["slots"], *somp["error_probability"]]
    assert rows["cd"][:4] == [cd["slots"], *cd["error_probability"]]
    assert "Decided again from the recording" in own.text
    assert f"semair replay {run} --detector somp" in own.text
    whole = report_of(run, detectors=["somp"], rerun_s=0.0)
    joined = [r for r in whole.tables["detection-table"] if r["attributes"].get("data-detector") == "somp"]
    # Without time for re-running there would be three slots per length; the replay gives all twelve.
    assert [row["values"][0] for row in joined] == [12, 12]


@pytest.mark.slow
def test_a_replay_moved_away_from_its_run_goes_without_truth(run, tmp_path):
    replay_run(run)
    alone = tmp_path / "elsewhere" / "replays" / "same"
    shutil.copytree(run / "replays" / "same", alone)
    page = report_of(alone)
    assert "folder of the run that was replayed is gone" in page.text
    assert "What was sent is not known" in page.text


@pytest.mark.slow
def test_a_run_without_recording(made):
    page = report_of(made(record=False), detectors=[])
    assert "kept no recording" in page.text
    assert "--no-record" in page.text
    assert "semair replay" not in page.text.replace("after semair replay", "")


def test_a_killed_run_is_reported_from_its_tables(run):
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    (run / "header_symbols.npy").unlink()
    (run / "bs-rx.sigmf-meta").unlink()
    page = report_of(run, detectors=[])
    assert "did not end in order" in page.text
    values = [row["values"] for row in page.tables["detection-table"] if row["values"]]
    assert [row[1] for row in values] == [m["error_probability"][0] for m in metrics["detection"].values()]
    assert "samples lost" not in page.rows("losses-table")


def test_frames_in_which_nobody_may_send_are_not_judged(made):
    folder = made("users.quiet_frames=6")
    metrics = json.loads((folder / "metrics.json").read_text())
    page = report_of(folder, detectors=[])
    assert metrics["frames"]["quiet"] == 6
    slots = [row["values"][0] for row in page.tables["detection-table"] if row["values"]]
    assert slots == [row["slots"] for row in metrics["detection"].values()]
    assert sum(slots) == metrics["frames"]["decided"] - 6


def test_a_radio_that_tells_no_arrivals_has_no_timing_errors(run):
    truth = np.load(run / "truth.npy")
    truth["arrival"] = np.nan
    np.save(run / "truth.npy", truth)
    page = report_of(run, detectors=[])
    assert "Timing error over frames" not in page.source
    assert "Estimated carrier frequency offset" in page.source


@pytest.mark.slow
def test_an_interrupted_run_says_so(run):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["counts"]["interrupted"] = True
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "Interrupted by the user; 24 frames were asked for" in report_of(run, detectors=[]).text


@pytest.mark.slow
def test_a_run_without_decisions(made):
    # A beacon at -30 dB is not found.
    page = report_of(made("link.beacon_snr_db=-30", n_frames=3))
    assert "3 frames sent: 0 decided, 3 missed" in page.text
    assert "Nothing was decided" in page.text
    assert "detection-table" not in page.tables


@pytest.mark.slow
def test_an_empty_table_of_a_run_killed_at_once(run):
    (run / "metrics.json").unlink()
    for name in ("decisions", "snapshots"):
        path = run / f"{name}.npy"
        dtype = np.load(path).dtype
        path.unlink()
        RowLog(path, dtype).close()
    assert "24 frames sent: 0 decided" in report_of(run).text


@pytest.mark.slow
def test_nobody_active(made):
    page = report_of(made("users.activity=0.0", n_frames=4), detectors=["somp"])
    assert "Nobody was active" in page.text
    assert "needs active and silent users" in page.text
    assert all(row["values"][4] is None for row in page.tables["detection-table"] if row["values"])


@pytest.mark.slow
def test_everybody_active(made):
    page = report_of(made("users.activity=1.0", n_frames=4), detectors=["somp"])
    assert "All users were active" in page.text
    assert all(row["values"][5] is None for row in page.tables["detection-table"] if row["values"])


@pytest.mark.slow
def test_one_slot_per_length_has_finite_intervals(made):
    # At -20 dB every slot holds errors; the interval of one single slot is all of 0 to 1.
    folder = made("link.access_snr_db=-20", n_frames=2)
    assert report_of(folder, detectors=[]).tables["detection-table"][1]["values"][2:4] == [0.0, 1.0]


@pytest.mark.slow
def test_lost_samples_are_told_and_later_slots_are_marked_where_they_are(made):
    folder = made("radio.losses=[[30000, 3000]]")
    page = report_of(folder, detectors=[])
    assert page.rows("losses-table")["samples lost"] == [3000]
    assert "3\u202f000 samples lost" in page.source
    run = RunFolder(folder)
    recording = Recording.open(run.recording)
    rows = run.rows(run.decisions)
    before = [row for row in rows if row["sample_time"] < 30000]
    after = [row for row in rows if row["sample_time"] >= 33000]
    assert before
    assert after
    assert all(file_index(recording, row["sample_time"]) == row["sample_time"] for row in before)
    assert all(file_index(recording, row["sample_time"]) == row["sample_time"] - 3000 for row in after)
    assert file_index(recording, 31000) is None


def test_flagged_slots_are_told_and_tables_of_earlier_versions_have_none(run):
    folder = RunFolder(run)
    rows = folder.rows(folder.decisions).copy()
    assert flagged(rows) == {}
    rows["flags"][:3] = detectors.Flag.CROWDED
    rows["flags"][2] |= detectors.Flag.SILENT
    assert flagged(rows) == {"silent": 1, "crowded": 3}
    np.save(folder.decisions, rows)
    text = report_of(run, rerun_s=0.0).text
    assert f"3 of {len(rows)} slots: {detectors.Flag.CROWDED.meaning}" in text
    older = [name for name in rows.dtype.names if name != "flags"]
    assert flagged(rows[older]) == {}


def test_names_are_escaped(run):
    info = json.loads((run / "run.json").read_text())
    info["scenario"]["name"] = 'a<b>"bold"</b> & <script>alert(1)</script>'
    info["scenario"]["description"] = "x < y && y > z"
    (run / "run.json").write_text(json.dumps(info))
    page = report_of(run, detectors=[])
    assert not {"b", "script"} & {tag for tag, _ in page.tags if tag != "b"}
    assert "<script" not in page.source
    assert "<b>&" not in page.source.replace("&#34;", "&")
    assert 'a<b>"bold"</b> & <script>alert(1)</script>' in page.text
    assert "x < y && y > z" in page.text


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["users.activity=0.25", "frame.guard_samples=150"],
        ["level=wireless", "impairments.cfo_ppm=-3.5"],
        ["detector.name=gmmv-amp", "detector.options={iterations = 30}"],
        ["radio.losses=[[1000, 20], [5000, 1]]", 'description="it\'s 5 < 6"'],
    ],
)
def test_commands_make_the_same_scenario_again(overrides):
    scenario = load_scenario("lab", overrides)
    name, found = scenario_arguments(scenario)
    assert name == "lab"
    assert load_scenario(name, shlex.split(shlex.join(found))) == scenario
    assert len(found) <= len(overrides) + 1


@pytest.mark.slow
def test_an_own_scenario_is_given_as_a_file(run):
    info = json.loads((run / "run.json").read_text())
    info["scenario"]["name"] = "my own"
    (run / "run.json").write_text(json.dumps(info))
    page = report_of(run, detectors=[])
    assert "--scenario my-own.toml" in page.text
    scenario = RunFolder(run).scenario()
    assert parse_scenario(tomllib.loads(toml_of(scenario)), "test") == scenario
    assert scenario_dict(scenario)["name"] == "my own"


def test_wrong_folders_and_detectors_are_refused(run, tmp_path):
    with pytest.raises(RecordingError, match="not a folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(RecordingError, match=r"run\.json"):
        write_report(tmp_path)
    with pytest.raises(ScenarioError, match="oracle"):
        write_report(run, detectors=["oracle"])
    (run / "decisions.npy").write_bytes(b"no table")
    with pytest.raises(RecordingError, match=r"decisions\.npy"):
        write_report(run)


def test_levels_of_known_signals(tmp_path):
    t = np.arange(200_000)
    tone = 0.5 * np.exp(2j * np.pi * 0.01 * t)
    square = np.where(t % 2, 1.0, -1.0) + 0j
    with RecordingWriter(tmp_path, "x", n_channels=2, datatype="cf32_le", sample_rate_hz=1e6) as writer:
        writer.write(np.stack([tone, square]).astype(np.complex64))
    levels = antenna_levels(Recording.open(tmp_path / "x.sigmf-meta"))
    # A tone of amplitude 1/2 has power 1/4 and reaches 1/2 in each part.
    assert levels.rms_dbfs == pytest.approx([10 * np.log10(0.25), 0.0], abs=1e-4)
    assert levels.peak_dbfs == pytest.approx([20 * np.log10(0.5), 0.0], abs=1e-4)
    assert levels.at_full_scale.tolist() == [0, 200_000]
    assert levels.samples == 200_000


def test_true_noise_counts_the_gains_of_the_chains(plain):
    folder, _ = plain
    truth = {"noise_power": 2.0, "gain": 0.5, "chain_gain_db": [0.0, 10 * np.log10(3)]}
    assert noise_power_behind_chains(truth) == pytest.approx(2.0 * 0.25 * (1 + 3) / 2)
    metrics = json.loads((folder / "metrics.json").read_text())
    # 24 slots of 4 symbols x 64 cells x 2 antennas of exponential power: the mean's standard deviation is
    # 1/sqrt(12288) = 0.9 %; five of these, and 1 % for quantisation and the leakage of the beacon's images.
    assert metrics["synchronisation"]["noise_power_estimated_over_true"]["mean"] == pytest.approx(1, abs=0.055)


def test_intervals_stay_within_shares():
    assert interval(np.array([0.4]), 10) == [0.4, 0.0, 1.0]
    low, high = interval(np.array([0.0, 0.9] * 30), 10)[1:]
    assert 0 <= low < 0.45 < high <= 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.06824, "0.0682"),
        (3500.0, "3\u202f500"),
        (2.32e-4, "2.32·10⁻⁴"),
        (-1.7, "−1.7"),
        (None, "–"),
        (float("inf"), "–"),
        (123456.0, "1.23·10⁵"),
        (9.999e-4, "0.001"),
    ],
)
def test_numbers_as_in_print(value, text):
    assert number(value) == text


@pytest.mark.slow
def test_without_converter_nothing_is_at_full_scale(made):
    page = report_of(made("level=perfect", n_frames=3), detectors=[])
    assert "no converter here" in page.text
    # rms, peak and clipped are numbers; what lies at full scale is not.
    assert [len(row["values"]) for row in page.tables["levels-table"] if row["values"]] == [3, 3]
