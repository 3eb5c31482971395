"""Channel recordings: what is written is read, and what cannot be trusted is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from semair.captures.channels import ARRAYS, ChannelRecording, channel_files, read_channels
from semair.captures.verify import verify
from semair.errors import RecordingError

SIZES = {"frames": 3, "antennas": 2, "delays": 4, "links": 5}


@pytest.fixture
def found(rng) -> ChannelRecording:
    arrays = {}
    for name, (kind, axes) in ARRAYS.items():
        shape = tuple(SIZES[axis] for axis in axes)
        values = rng.integers(0, 3, shape) if kind[1] == "i" else rng.random(shape)
        arrays[name] = values.astype(kind)
    return ChannelRecording(
        arrays,
        sample_rate_hz=2e6,
        frequency_hz=3.5e9,
        band_hz=0.7e6,
        first_delay_samples=-2,
        beacon_power=3.0,
        sampling_offset=1e-6,
        cfo_hz=800.0,
        source={"name": "bs-rx", "sha512": "ab"},
        method={},
        quality={"links": 5},
        created={},
    )


def test_what_is_written_is_read(found, tmp_path):
    path = found.write(tmp_path / "air" / "hall")
    assert path.name == "hall.channel.json"
    for given in (path, tmp_path / "air" / "hall", tmp_path / "air" / "hall.channel.npz", tmp_path / "air"):
        again = read_channels(given)
        for name in ARRAYS:
            np.testing.assert_array_equal(again.arrays[name], found.arrays[name])
        assert {**vars(again), "arrays": 0} == {**vars(found), "arrays": 0}
    assert again.n_antennas == 2
    assert list(again.users) == sorted(set(found.arrays["link_user"]))


def test_every_flipped_bit_is_noticed(found, tmp_path, rng):
    for path in channel_files(found.write(tmp_path / "x")):
        content = path.read_bytes()
        for place in rng.integers(0, 8 * len(content), 150):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            with pytest.raises(RecordingError, match=r"x\.channel"):
                read_channels(path)
        path.write_bytes(content)
    read_channels(tmp_path / "x")


def test_missing_files_and_full_folders_are_told(found, tmp_path):
    with pytest.raises(RecordingError, match="no file"):
        read_channels(tmp_path)
    found.write(tmp_path / "a")
    found.write(tmp_path / "b")
    with pytest.raises(RecordingError, match=r"a\.channel\.json, b\.channel\.json"):
        read_channels(tmp_path)
    (tmp_path / "a.channel.npz").unlink()
    with pytest.raises(RecordingError, match=r"a\.channel\.npz is missing"):
        read_channels(tmp_path / "a")


def _forge(path, data: bytes | None = None, **fields) -> None:
    """Change files the way somebody would who also mends the hashes."""
    info_path, data_path = channel_files(path)
    info = json.loads(info_path.read_text())
    if data is not None:
        data_path.write_bytes(data)
        info["data_sha256"] = hashlib.sha256(data).hexdigest()
    info |= fields
    info.pop("info_sha256")
    info["info_sha256"] = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
    info_path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"version": 2}, "version"),
        ({"format": "zip"}, "format"),
        ({"sample_rate_hz": -1.0}, "sample_rate_hz"),
        ({"sample_rate_hz": True}, "sample_rate_hz"),
        ({"first_delay_samples": 10**12}, "first_delay_samples"),
        ({"sampling_offset": 0.5}, "sampling_offset"),
        ({"quality": None}, "quality"),
    ],
)
def test_wrong_fields_are_refused_even_with_right_hashes(found, tmp_path, fields, word):
    path = found.write(tmp_path / "x")
    _forge(path, **fields)
    with pytest.raises(RecordingError, match=word):
        read_channels(path)


def test_arrays_that_claim_more_than_they_hold_are_refused(found, tmp_path):
    path = found.write(tmp_path / "x")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("frame.npy", header.getvalue() + bytes(64))
    _forge(path, bomb.getvalue())
    with pytest.raises(RecordingError, match="frame has 64 bytes"):
        read_channels(path)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frame.npy", bytes(1 << 20))
    _forge(path, packed.getvalue())
    with pytest.raises(RecordingError, match="compressed"):
        read_channels(path)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("link_frame", lambda a: a + 3, "link_frame"),
        ("link_user", lambda a: a - 9, "link_user"),
        ("link_taps", lambda a: a * np.nan, "NaN"),
        ("link_taps", lambda a: a[:, :1], "antennas"),
        ("condition", lambda a: a[:, None], "axes"),
        ("link_error", lambda a: -a - 1, "negative"),
    ],
)
def test_arrays_that_do_not_fit_are_never_written(found, tmp_path, name, change, word):
    arrays = {**found.arrays, name: change(found.arrays[name])}
    with pytest.raises(ValueError, match=word):
        replace(found, arrays=arrays).write(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_verify_reads_channel_recordings_too(found, tmp_path):
    info, data = channel_files(found.write(tmp_path / "hall"))
    assert verify(tmp_path) == verify(info) == verify(data) == []
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    for path in (tmp_path, info, data):
        (finding,) = verify(path)
        assert (finding.severity, finding.file) == ("error", info)
        assert "hall.channel.npz" in finding.message
    info.unlink()
    (finding,) = verify(tmp_path)
    assert "hall.channel.json is missing" in finding.message
