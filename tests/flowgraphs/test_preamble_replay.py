"""Known sequences are found through GNU Radio in recordings of others, at their place in the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sigmf
from scipy import signal

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.blocks.playback import PlayOptions
from semair.blocks.waveforms.references import named_reference
from semair.captures.reader import Recording
from semair.errors import RadioError, RecordingError, ScenarioError
from semair.flowgraphs.preamble_replay import compare_with_annotations, find_preambles

RATE_HZ = 20e6
REFERENCE = named_reference("l-ltf")
PLACES = [0, 1000, 8192 - 80, 20_000, 29_840]  # The third lies across two chunks, the last ends with the recording.
AMPLITUDE, SNR_DB, CFO_HZ = 0.1, 15.0, -23e3


def air(n_channels: int, n: int = 30_000, places: Sequence[int] = PLACES) -> np.ndarray:
    """The reference at known places with a carrier offset, another phase on every antenna, in noise."""
    rng = np.random.default_rng(8)
    scale = AMPLITUDE * 10 ** (-SNR_DB / 20) / np.sqrt(2)
    x = scale * (rng.standard_normal((n_channels, n)) + 1j * rng.standard_normal((n_channels, n)))
    turned = REFERENCE * np.exp(2j * np.pi * CFO_HZ / RATE_HZ * np.arange(len(REFERENCE)))
    for place in places:
        x[:, place : place + len(turned)] += AMPLITUDE * np.exp(2j * np.pi * rng.random((n_channels, 1))) * turned
    return x.astype(np.complex64)


def foreign(
    folder: Path,
    x: np.ndarray,
    datatype: str = "cf32_le",
    rate_hz: float | None = RATE_HZ,
    captures: Sequence[dict[str, Any]] = ({"core:sample_start": 0},),
    marks: Sequence[int] = (),
) -> Path:
    """A recording as the reference implementation of SigMF writes it."""
    raw: np.ndarray = np.ascontiguousarray(x.T)
    if datatype == "ci16_le":
        raw = np.round(32767 * raw.view(np.float32)).astype("<i2")
    data = folder / "other.sigmf-data"
    raw.tofile(data)
    head = {"core:datatype": datatype, "core:num_channels": len(x)}
    if rate_hz is not None:
        head["core:sample_rate"] = rate_hz
    writer = sigmf.SigMFFile(data_file=str(data), global_info=head)
    for capture in captures:
        rest = {key: value for key, value in capture.items() if key != "core:sample_start"}
        writer.add_capture(capture["core:sample_start"], metadata=rest)
    for mark in marks:
        writer.add_annotation(mark, len(REFERENCE), metadata={"core:label": "preamble"})
    writer.tofile(str(folder / "other.sigmf-meta"), overwrite=True)
    return folder / "other.sigmf-meta"


def starts(found: Sequence[dict[str, Any]]) -> list[int]:
    return [fields["start"] for fields in found]


@pytest.mark.parametrize("datatype", ["ci16_le", "cf32_le"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_preambles_are_found_where_they_are(tmp_path, datatype, n_channels):
    told: list[float] = []
    path = foreign(tmp_path, air(n_channels), datatype)
    played, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, on_progress=told.append)
    recording = played.recording
    assert (recording.n_channels, recording.datatype) == (n_channels, datatype)
    assert starts(found) == PLACES
    # Cramer-Rao bound of a tone's frequency over 160 samples of 15 dB on one antenna: 1.2 kHz. Five of these.
    bound_hz = RATE_HZ / (2 * np.pi) * np.sqrt(6 / (10 ** (SNR_DB / 10) * len(REFERENCE) ** 3))
    for fields in found:
        assert fields["cfo_hz"] == pytest.approx(CFO_HZ, abs=5 * bound_hz)
        assert abs(fields["fraction"]) < 0.5
        assert 0.9 < fields["metric"] <= 1
        # The noise is estimated from 160 samples: 0.34 dB on one antenna. Five of these.
        assert fields["snr_db"] == pytest.approx(SNR_DB, abs=1.7)
        assert fields["gain_db"] == pytest.approx([20 * np.log10(AMPLITUDE)] * n_channels, abs=0.5)
    assert told == sorted(told)
    assert all(0 <= share <= 1 for share in told)


def test_other_antennas_find_what_one_does_not_hear(tmp_path):
    x = air(3)
    x[0] = air(1, places=[])
    _, alone = find_preambles(foreign(tmp_path, x[:1]), REFERENCE, max_cfo_hz=40e3)
    _, together = find_preambles(foreign(tmp_path, x), REFERENCE, max_cfo_hz=40e3)
    assert (starts(alone), starts(together)) == ([], PLACES)
    for fields in together:
        assert fields["gain_db"][0] < -30 < -21 < min(fields["gain_db"][1:])


def test_found_preambles_are_held_against_annotations(tmp_path):
    # Marks begin 20 samples before; one is 3 samples off, and the last preamble is not marked.
    marks = [PLACES[1] - 20, PLACES[2] - 20, PLACES[3] - 20 + 3]
    played, found = find_preambles(foreign(tmp_path, air(1), marks=marks), REFERENCE, max_cfo_hz=40e3)
    counts = compare_with_annotations(played, found, offset=20, tolerance=2)
    assert counts == {"annotated": 3, "matched": 2, "missed": 1, "extra": 3}
    counts = compare_with_annotations(played, found, offset=20, tolerance=3)
    assert counts == {"annotated": 3, "matched": 3, "missed": 0, "extra": 2}
    nothing = compare_with_annotations(played, [], offset=20, tolerance=3)
    assert nothing == {"annotated": 3, "matched": 0, "missed": 3, "extra": 0}


def test_without_annotations_all_found_are_extra(tmp_path):
    played, found = find_preambles(foreign(tmp_path, air(1)), REFERENCE, max_cfo_hz=40e3)
    assert compare_with_annotations(played, found, 0, 2) == {
        "annotated": 0, "matched": 0, "missed": 0, "extra": len(PLACES),
    }  # fmt: skip


def test_across_a_gap_nothing_is_put_together(tmp_path):
    # Samples were lost in the middle of the fourth preamble. Its halves would make a whole one.
    gap = PLACES[3] + 80
    captures = [
        {"core:sample_start": 0, "core:global_index": 500},
        {"core:sample_start": gap, "core:global_index": 500 + gap + 12_345},
    ]
    path = foreign(tmp_path, air(1), captures=captures)
    _, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, threshold=0.6)
    # The places are those in the file, behind the gap too.
    assert starts(found) == [place for place in PLACES if place != PLACES[3]]


@pytest.mark.parametrize("rate_hz", [RATE_HZ, None])
def test_segments_that_follow_each_other_are_no_gap(tmp_path, rate_hz):
    # The receiver's frequency changed in the middle of the fourth preamble, but no sample is missing.
    captures = [
        {"core:sample_start": 0, "core:frequency": 2.412e9},
        {"core:sample_start": PLACES[3] + 80, "core:frequency": 2.417e9},
    ]
    path = foreign(tmp_path, air(2), rate_hz=rate_hz, captures=captures)
    played, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, sample_rate_hz=RATE_HZ)
    recording = played.recording
    assert len(recording.segments) == 2
    assert recording.sample_rate_hz == RATE_HZ
    assert starts(found) == PLACES


def test_recording_without_rate_is_searched_at_the_one_given(tmp_path):
    path = foreign(tmp_path, air(1), rate_hz=None)
    with pytest.raises(RecordingError, match=r"core:sample_rate is missing; give it with --rate"):
        find_preambles(path, REFERENCE, max_cfo_hz=40e3)
    _, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, sample_rate_hz=RATE_HZ)
    assert starts(found) == PLACES
    # At half the rate everything takes twice as long and turns half as fast.
    _, slower = find_preambles(path, REFERENCE, max_cfo_hz=20e3, sample_rate_hz=RATE_HZ / 2)
    assert starts(slower) == PLACES
    assert [f["cfo_hz"] for f in slower] == pytest.approx([f["cfo_hz"] / 2 for f in found])


def test_rate_that_differs_from_the_recorded_one_is_refused(tmp_path):
    path = foreign(tmp_path, air(1))
    with pytest.raises(RecordingError, match=r"core:sample_rate is 20000000, but --rate says 20000001; leave it out"):
        find_preambles(path, REFERENCE, sample_rate_hz=20_000_001)


@pytest.mark.parametrize("n", [1, 159])
def test_recording_shorter_than_the_reference_is_told(tmp_path, n):
    with pytest.raises(RecordingError, match=rf"holds {n} samples, the reference 160: it cannot occur"):
        find_preambles(foreign(tmp_path, air(1)[:, :n]), REFERENCE)


@pytest.mark.parametrize("n", [160, 8192, 8193])
def test_recordings_of_any_length_are_searched_to_their_end(tmp_path, n):
    path = foreign(tmp_path, air(1, n, [n - 160]))
    assert starts(find_preambles(path, REFERENCE, max_cfo_hz=40e3)[1]) == [n - 160]


def test_nothing_is_found_in_noise(tmp_path):
    # 30 000 samples at the default of 1e-9 false alarms per sample.
    assert find_preambles(foreign(tmp_path, air(3, places=[])), REFERENCE, max_cfo_hz=40e3)[1] == []


def test_sample_that_is_no_number_ends_the_search_with_its_place(tmp_path):
    x = air(2)
    x[1, 9000] = np.nan
    with pytest.raises(RadioError, match=r"antenna 1 at sample 9000"):
        find_preambles(foreign(tmp_path, x), REFERENCE)


@pytest.mark.parametrize(
    "options", [{"max_cfo_hz": 11e6}, {"max_cfo_hz": -1.0}, {"threshold": 1.5}, {"false_alarms_per_sample": 0.0}]
)
def test_search_that_cannot_be_set_up_says_why(tmp_path, options):
    with pytest.raises(ScenarioError, match=rf"cannot be set up: .*{next(iter(options))}"):
        find_preambles(foreign(tmp_path, air(1, 1000, [])), REFERENCE, **options)


# Another rate, chosen channels, gap policies


def test_a_recording_of_another_rate_is_searched_at_that_of_the_reference(tmp_path):
    # Recorded at 25 MS/s: by another filter than the one that takes it back.
    path = foreign(tmp_path, signal.resample_poly(air(2), 5, 4, axis=1), rate_hz=25e6, marks=[1250, 25_000])
    _, missed = find_preambles(path, REFERENCE, max_cfo_hz=40e3)
    assert missed == []
    played, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, play=PlayOptions(rate_hz=20e6))
    assert [fields["item"] for fields in found] == PLACES
    for fields, place in zip(found, PLACES, strict=True):
        assert fields["start"] + fields["fraction"] == pytest.approx(1.25 * place, abs=0.2)
        assert abs(fields["fraction"]) <= 0.5
        assert fields["snr_db"] == pytest.approx(SNR_DB, abs=1.7)
    # Marks and tolerance are in samples of the reference, too.
    assert compare_with_annotations(played, found, 0, 0)["matched"] == 2


def test_chosen_channels_are_the_antennas(tmp_path):
    x = air(3)
    x[0] = air(1, places=[])
    path = foreign(tmp_path, x)
    played, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, play=PlayOptions(channels=(2, 1)))
    assert played.channels == (2, 1)
    assert starts(found) == PLACES
    assert all(len(fields["gain_db"]) == 2 for fields in found)
    assert find_preambles(path, REFERENCE, max_cfo_hz=40e3, play=PlayOptions(channels=(0,)))[1] == []


@pytest.mark.parametrize(
    ("gaps", "kept"),
    [
        ("stop", PLACES[:3]),
        ("splice", PLACES[:3] + PLACES[4:]),
        ("zero", PLACES[:3] + PLACES[4:]),
        ("as-recorded", PLACES[:3] + PLACES[4:]),
    ],
)
def test_places_are_those_in_the_file_under_every_gap_policy(tmp_path, gaps, kept):
    gap = PLACES[3] + 80
    captures = [
        {"core:sample_start": 0, "core:global_index": 500},
        {"core:sample_start": gap, "core:global_index": 500 + gap + 12_345},
    ]
    x = np.delete(air(1, 31_000), np.s_[gap : gap + 500], axis=1)
    places = [place - 500 if place > gap else place for place in kept]
    path = foreign(tmp_path, x, captures=captures)
    _, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, threshold=0.6, play=PlayOptions(gaps=gaps))
    assert starts(found) == places
    shift = {"zero": 12_345}.get(gaps, 0)
    assert [f["item"] for f in found] == [place + shift if place > gap else place for place in places]


WIFI = ["dot11n_6.5mbps", "dot11n_19.5mbps", "dot11n_26mbps", "dot11n_65mbps"]


def repeats_after_64_samples(recording: Recording, start: int) -> bool:
    """Whether two equal symbols of 64 stand at the end of the field found, not periodic in 16: long training."""
    window = recording.read(start + 32, 128)[0]

    def likeness(lag: int) -> float:
        a, b = window[lag:], window[:-lag]
        return abs(np.vdot(b, a)) / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real)

    return likeness(64) > 0.5 > likeness(16)


def test_wifi_preambles_over_the_air(shared_data):
    annotated = matched = false = 0
    for name in WIFI:
        path = shared_data / "iq/openofdm_wifi/sigmf" / f"{name}.sigmf-meta"
        # Half of the field alone, as in the high-throughput long training field, has a metric of 1/4 where the
        # signal is clean; the weakest annotated preamble has 0.23.
        played, found = find_preambles(path, REFERENCE, max_cfo_hz=40e3, threshold=0.22)
        counts = compare_with_annotations(played, found, offset=160, tolerance=2)
        annotated += counts["annotated"]
        matched += counts["matched"]
        false += sum(not repeats_after_64_samples(played.recording, start) for start in starts(found))
    assert annotated == 113
    assert matched >= 0.98 * annotated
    # The annotations leave out some packets: what is found beside them must be long training all the same.
    assert false <= 0.02 * annotated


def test_both_users_of_the_renew_frame(shared_data):
    path = shared_data / "mimo/renew_powder/sigmf/rx_mimo_data_08_02.sigmf-meta"
    played, found = find_preambles(path, REFERENCE, max_cfo_hz=2e3)
    assert played.recording.n_channels == 8
    assert starts(found) == [73, 233]
    # The annotations hold within 3 samples.
    assert compare_with_annotations(played, found, 0, 3) == {
        "annotated": 2, "matched": 2, "missed": 0, "extra": 0,
    }  # fmt: skip
