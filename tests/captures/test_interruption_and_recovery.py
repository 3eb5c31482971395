"""Nothing that reached the disk is lost: killed processes, full disks, cut files, damaged remains."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from semair.captures.reader import Recording
from semair.captures.recover import recover
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError, StorageError

FRAME_BYTES = 8  # two channels of ci16


def counted(start: int, n: int) -> np.ndarray:
    """Samples that tell their own position: complex64, (2, n)."""
    index = np.arange(start, start + n)
    raw = np.stack([index % 32768, -(index // 32768), index % 251, index % 241], axis=-1).astype(np.float32)
    return np.ascontiguousarray((raw / 32768).view(np.complex64).T)


def open_writer(folder, name="rec", **options):
    options = {"sample_rate_hz": 1e6, "min_free_bytes": 0, "chunk_bytes": 800} | options
    return RecordingWriter(folder, name, n_channels=2, datatype="ci16_le", **options)


def interrupted(folder: Path, pieces: int = 5, gap_after: int | None = None) -> Path:
    """What a crash leaves behind: files copied while the writer waits for more."""
    folder.mkdir(exist_ok=True)
    options = {"frequency_hz": 1e9, "description": "test", "capture_fields": {"agc": True}}
    with tempfile.TemporaryDirectory() as working, open_writer(working, **options) as writer:
        for piece in range(pieces):
            writer.write(counted(100 * piece, 100))
            if gap_after == piece:
                writer.gap(1000)
        writer.annotate(90, 40, "frame", kind="frame", frame_seq=1)
        journal = Path(working) / ".rec.journal.jsonl"
        while b'"annotation"' not in journal.read_bytes():
            time.sleep(0.001)
        for path in Path(working).iterdir():
            shutil.copy(path, folder / path.name)
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_kill_minus_nine_loses_no_journalled_sample(tmp_path):
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_interruption_and_recovery import counted, open_writer
        writer = open_writer({str(tmp_path)!r}, chunk_bytes=40_000)
        position = 0
        while True:
            writer.write(counted(position, 1000))
            position += 1000
            if position % 50_000 == 0:
                writer.gap(7)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    journal = tmp_path / ".rec.journal.jsonl"
    try:
        while not (journal.exists() and journal.read_bytes().count(b'"chunk"') >= 25):
            assert process.poll() is None
            time.sleep(0.001)
        # Alive, it is left alone.
        assert recover(tmp_path) == []
        assert [f.message for f in verify(tmp_path)] == ["is being written"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    journalled = sum(line["bytes"] for line in lines if line["type"] == "chunk") // FRAME_BYTES
    before = tree(tmp_path)
    with pytest.raises(RecordingError, match="run recover"):
        Recording.open(tmp_path)
    with pytest.raises(RecordingError, match="run recover"):
        open_writer(tmp_path)

    (recording,) = recover(tmp_path)
    assert recording.name == "rec"
    assert recording.n_samples >= journalled >= 25 * 5000
    assert np.array_equal(recording.read(), counted(0, recording.n_samples))
    expected = [(n, n + 7 * n // 50_000) for n in range(0, recording.n_samples, 50_000)]
    assert [(s.sample_start, s.global_index) for s in recording.segments] == expected
    assert recording.complete is False
    assert recording.global_fields["recovered"] is True
    if recording.n_samples > journalled:
        assert recording.global_fields["unverified_from_sample"] == journalled
    recording.check_hash()
    assert not [f for f in verify(tmp_path) if f.severity == "error"]
    after = tree(tmp_path)
    partial = ".rec.sigmf-data.partial"
    assert (after[partial], after[journal.name]) == (before[partial], before[journal.name])
    # A second call copies nothing again.
    assert [r.name for r in recover(tmp_path)] == ["rec"]
    assert tree(tmp_path) == after


def test_recovered_metadata_are_those_the_recording_would_have_had(tmp_path):
    (recording,) = recover(interrupted(tmp_path / "r", gap_after=2))
    assert recording.n_samples == 500
    assert "unverified_from_sample" not in recording.global_fields
    assert (recording.frequency_hz, recording.sample_rate_hz) == (1e9, 1e6)
    assert recording.meta["global"]["core:description"] == "test"
    assert [(s.sample_start, s.global_index) for s in recording.segments] == [(0, 0), (300, 1300)]
    assert all(s.fields["agc"] is True for s in recording.segments)
    assert [a.label for a in recording.annotations] == ["frame", "gap"]
    assert not [f for f in verify(tmp_path / "r") if f.severity == "error"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 500 * FRAME_BYTES), journal_cut=st.integers(0, 400))
def test_remains_cut_at_any_byte_give_a_prefix_or_nothing(tmp_path_factory, cut, journal_cut):
    """Power failures may shorten either file; whatever comes back is a prefix of what was recorded."""
    folder = interrupted_template(tmp_path_factory)
    data, journal = folder / ".rec.sigmf-data.partial", folder / ".rec.journal.jsonl"
    os.truncate(data, cut)
    os.truncate(journal, journal.stat().st_size - journal_cut)
    before = tree(folder)
    recordings = recover(folder)
    lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    ends = [line["offset"] + line["bytes"] for line in lines if line["type"] == "chunk"]
    vouched = max((end for end in ends if end <= cut), default=0) // FRAME_BYTES
    n_samples = recordings[0].n_samples if recordings else 0
    assert vouched <= n_samples <= cut // FRAME_BYTES
    for recording in recordings:
        recording.check_hash()
        assert np.array_equal(recording.read(), counted(0, n_samples))
        assert recording.complete is False
        assert all(a.sample_start + a.sample_count <= n_samples for a in recording.annotations)
    after = tree(folder)
    assert all(after[name] == before[name] for name in (data.name, journal.name))
    shutil.rmtree(folder)


_TEMPLATE: list[Path] = []


def interrupted_template(factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the same remains."""
    if not _TEMPLATE:
        _TEMPLATE.append(interrupted(factory.mktemp("template"), gap_after=2))
    folder = factory.mktemp("case")
    shutil.copytree(_TEMPLATE[0], folder, dirs_exist_ok=True)
    return folder


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 500 * FRAME_BYTES - 1), flip=st.integers(1, 255))
def test_a_damaged_byte_is_never_passed_on_as_good(tmp_path_factory, place, flip):
    folder = interrupted_template(tmp_path_factory)
    data = folder / ".rec.sigmf-data.partial"
    content = bytearray(data.read_bytes())
    content[place] ^= flip
    data.write_bytes(content)
    chunk_start = place // 800 * 800  # chunks of this recording hold 800 bytes
    recordings = recover(folder)
    assert (recordings[0].n_samples if recordings else 0) == chunk_start // FRAME_BYTES
    for recording in recordings:
        assert np.array_equal(recording.read(), counted(0, recording.n_samples))
        assert "damaged" in recording.global_fields["incomplete_reason"]
    shutil.rmtree(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_journal_never_hides_a_gap(tmp_path_factory, data):
    folder = interrupted_template(tmp_path_factory)
    journal = folder / ".rec.journal.jsonl"
    content = bytearray(journal.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    journal.write_bytes(content)
    for recording in recover(folder):
        assert np.array_equal(recording.read(), counted(0, recording.n_samples))
        expected = [(0, 0)] if recording.n_samples <= 300 else [(0, 0), (300, 1300)]
        assert [(s.sample_start, s.global_index) for s in recording.segments] == expected
    shutil.rmtree(folder)


def test_samples_after_the_last_chunk_are_kept_and_marked(tmp_path):
    folder = interrupted(tmp_path / "r")
    with (folder / ".rec.sigmf-data.partial").open("ab") as file:
        raw = np.stack([counted(500, 30).real.T, counted(500, 30).imag.T], axis=-1) * 32768
        file.write(raw.astype("<i2").tobytes() + b"\x01\x02\x03")  # and a torn sample
    (recording,) = recover(folder)
    assert np.array_equal(recording.read(), counted(0, 530))
    assert recording.global_fields["unverified_from_sample"] == 500
    assert any("unverified" in f.field and f.severity == "warning" for f in verify(folder))


def test_recovery_takes_another_name_or_another_folder_where_asked(tmp_path):
    folder = interrupted(tmp_path / "r")
    elsewhere = tmp_path / "other disk"
    (there,) = recover(folder, target=elsewhere)
    assert there.meta_path == elsewhere / "rec.sigmf-meta"
    (folder / "rec.sigmf-data").write_bytes(b"in the way")
    (here,) = recover(folder)
    assert here.name == "rec-recovered"
    assert (folder / "rec.sigmf-data").read_bytes() == b"in the way"
    assert np.array_equal(here.read(), there.read())


def test_remains_that_say_nothing_are_left_and_reported(tmp_path, caplog):
    folder = interrupted(tmp_path / "r")
    (folder / ".rec.journal.jsonl").unlink()
    before = tree(folder)
    assert recover(folder) == []
    assert "no journal" in caplog.text
    assert tree(folder) == before
    assert [f.severity for f in verify(folder)] == ["error"]
    with pytest.raises(RecordingError, match="no folder"):
        recover(tmp_path / "nowhere")


@pytest.mark.parametrize("journal", [b"", b'{"type":"head'])
@pytest.mark.parametrize("data", [None, b""])
def test_a_recorder_that_was_killed_before_its_first_sample_left_nothing_to_mourn(tmp_path, journal, data):
    (tmp_path / ".rec.journal.jsonl").write_bytes(journal)
    if data is not None:
        (tmp_path / ".rec.sigmf-data.partial").write_bytes(data)
    assert recover(tmp_path) == []
    assert [(f.severity, "before its first sample" in f.message) for f in verify(tmp_path)] == [("info", True)]
    (tmp_path / ".rec.sigmf-data.partial").write_bytes(bytes(8))
    assert [f.severity for f in verify(tmp_path)] == ["error"]


def test_recovery_without_room_says_so_and_touches_nothing(tmp_path, monkeypatch):
    folder = interrupted(tmp_path / "r")
    before = tree(folder)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match="target folder"):
        recover(folder)
    assert tree(folder).items() <= before.items()
    assert (folder / ".rec.sigmf-data.partial").exists()


@pytest.mark.parametrize("step", ["before data", "between data and meta", "before the journal goes"])
def test_a_crash_while_closing_is_finished_by_recovery(tmp_path, monkeypatch, step):
    """The process is imagined to die in the middle of the last renames."""

    class Died(BaseException):
        pass

    real_replace, real_unlink = os.replace, Path.unlink
    calls = []

    def replace(source, target):
        calls.append(target)
        if step == "before data" or (step == "between data and meta" and len(calls) == 2):
            raise Died
        real_replace(source, target)

    def unlink(path, missing_ok=False):
        if step == "before the journal goes" and path.name.endswith("journal.jsonl"):
            raise Died
        real_unlink(path, missing_ok)

    writer = open_writer(tmp_path)
    writer.write(counted(0, 250))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Died):
            writer.close()
    if step != "before the journal goes":
        with pytest.raises(RecordingError, match="run recover"):
            Recording.open(tmp_path)
        assert len(recover(tmp_path)) == 1
    else:
        assert recover(tmp_path) == []
        assert not (tmp_path / ".rec.journal.jsonl").exists()
    recording = Recording.open(tmp_path, check_hash=True)
    assert np.array_equal(recording.read(), counted(0, 250))
    assert recording.complete is True


def test_the_disk_running_low_ends_the_recording_properly(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = {"bytes": 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free["bytes"]))
    with pytest.raises(StorageError, match=r"rec\.sigmf-meta, marked as incomplete.*[Ff]ree space") as caught:
        write_until_refused(tmp_path, free)
    assert "min_free_bytes" in str(caught.value)
    recording = Recording.open(tmp_path, check_hash=True)
    assert recording.n_samples >= 300
    assert np.array_equal(recording.read(), counted(0, recording.n_samples))
    assert recording.complete is False
    assert f"{recording.n_samples} samples" in str(caught.value)
    assert {p.suffix for p in tmp_path.iterdir()} == {".sigmf-data", ".sigmf-meta"}
    with pytest.raises(StorageError, match="must stay free"):
        open_writer(tmp_path, "next", min_free_bytes=200_000_000)
    assert not list(tmp_path.glob(".next*"))


def write_until_refused(folder, free):
    with open_writer(folder, min_free_bytes=200_000_000, queue_bytes=800) as writer:
        for piece in range(1000):
            if piece == 5:
                free["bytes"] = 200_000_000
            writer.write(counted(100 * piece, 100))


LIMITED = """
    import resource, sys
    sys.path.insert(0, {here!r})
    from test_interruption_and_recovery import counted, open_writer
    from semair.errors import StorageError
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_003, 2_000_003))
    try:
        with open_writer({folder!r}, chunk_bytes=300_000) as writer:
            for position in range(0, 10_000_000, 1000):
                writer.write(counted(position, 1000))
    except StorageError as error:
        print(error)
        sys.exit(6)
"""


def test_a_file_that_may_not_grow_is_closed_at_its_last_whole_sample(tmp_path):
    """The limit lies in the middle of a sample; the kernel refuses what goes beyond it."""
    script = textwrap.dedent(LIMITED.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 6, process.stderr
    assert "File too large" in process.stdout
    recording = Recording.open(tmp_path, check_hash=True)
    assert recording.n_samples == 2_000_003 // FRAME_BYTES
    assert np.array_equal(recording.read(), counted(0, recording.n_samples))
    assert recording.complete is False


def test_a_full_file_system_leaves_a_valid_recording(tmp_path, monkeypatch):
    """A real file system of 4 MiB, filled behind the check's back: the metadata still find room."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9))
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match=r"No space left on device.*marked as incomplete"):
            fill(folder)
        recording = Recording.open(folder, check_hash=True)
        assert recording.n_samples * FRAME_BYTES > 2 << 20
        assert np.array_equal(recording.read(), counted(0, recording.n_samples))
        assert recording.complete is False
        assert not [f for f in verify(folder) if f.severity == "error"]
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with open_writer(folder, chunk_bytes=200_000) as writer:
        for position in range(0, 10_000_000, 1000):
            writer.write(counted(position, 1000))


def test_when_not_even_metadata_can_be_written_recovery_gets_the_samples(tmp_path, monkeypatch):
    real_write = os.write
    full = {"now": False}

    def failing(fd, data):
        if full["now"]:
            raise OSError(errno.EIO, "Input/output error")
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", failing)
    writer = open_writer(tmp_path)
    writer.write(counted(0, 300))
    while (tmp_path / ".rec.sigmf-data.partial").stat().st_size < 300 * FRAME_BYTES:
        time.sleep(0.001)
    full["now"] = True
    with pytest.raises(StorageError, match="run recover"):
        write_on(writer)
    full["now"] = False
    (recording,) = recover(tmp_path)
    assert np.array_equal(recording.read(), counted(0, 300))


def write_on(writer):
    with writer:
        for piece in range(3, 1000):
            writer.write(counted(100 * piece, 100))


def test_a_folder_that_cannot_be_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        open_writer(tmp_path / "file" / "folder")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), datatype=st.sampled_from(["ci16_le", "cf32_le"]), n_channels=st.integers(1, 3))
def test_a_finished_recording_cut_at_any_byte_is_refused_and_can_be_recovered(
    tmp_path_factory, data, datatype, n_channels
):
    folder = tmp_path_factory.mktemp("cut")
    samples = np.tile(counted(0, 60)[:1], (n_channels, 1))
    with RecordingWriter(
        folder, "rec", n_channels=n_channels, datatype=datatype, sample_rate_hz=1e3, min_free_bytes=0
    ) as writer:
        writer.write(samples[:, :40])
        writer.gap(5)
        writer.write(samples[:, 40:])
        writer.annotate(30, 30, "frame")
    file = folder / "rec.sigmf-data"
    size = file.stat().st_size
    cut = data.draw(st.integers(0, size - 1))
    os.truncate(file, cut)
    with pytest.raises(RecordingError, match=r"rec\.sigmf-data.*(run recover|nothing to recover)"):
        Recording.open(folder)
    assert any(f.severity == "error" and "sigmf-data" in f.file.name for f in verify(folder))
    whole = cut // (size // 60)
    recordings = recover(folder)
    assert [r.n_samples for r in recordings] == ([whole] if whole else [])
    for recording in recordings:
        assert recording.name == "rec-recovered"
        assert np.array_equal(recording.read(), samples[:, :whole])
        assert recording.complete is False
        assert not [f for f in verify(recording.meta_path) if f.severity == "error"]
        assert [r.name for r in recover(folder)] == ["rec-recovered"]
    assert file.stat().st_size == cut
    shutil.rmtree(folder)
