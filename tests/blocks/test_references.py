"""Reference sequences: standard ones against the standard's tables, files against what was written."""

from __future__ import annotations

import numpy as np
import pytest
import sigmf
from hypothesis import given
from hypothesis import strategies as st
from semair.blocks.waveforms.references import (
    load_reference,
    named_reference,
    read_reference,
    reference_names,
)
from semair.errors import RecordingError, ScenarioError


@pytest.fixture
def samples(rng) -> np.ndarray:
    return (rng.standard_normal(300) + 1j * rng.standard_normal(300)).astype(np.complex64)


def unit_power(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(np.abs(x) ** 2))


def write_sigmf(folder, samples: np.ndarray, datatype: str, n_channels: int = 1):
    """Write a recording; returns the path of its metadata."""
    data = folder / "reference.sigmf-data"
    samples.tofile(data)
    meta = sigmf.SigMFFile(
        data_file=str(data),
        global_info={"core:datatype": datatype, "core:version": "1.2.0", "core:num_channels": n_channels},
    )
    meta.add_capture(0)
    meta.tofile(str(folder / "reference"))
    return folder / "reference.sigmf-meta"


def test_long_training_field_follows_the_table_of_the_standard():
    # IEEE Std 802.11-2020, annex I.1: the long training sequence in the time domain, inverse FFT of 64 with
    # the factor 1/64. The annex halves the very first sample, -0.156, by its window.
    table = [-0.156, 0.012 - 0.098j, 0.092 - 0.106j, -0.092 - 0.115j, -0.003 - 0.054j, 0.075 + 0.074j]
    reference = named_reference("l-ltf") * np.sqrt(52) / 64
    np.testing.assert_allclose(reference[: len(table)], table, atol=6e-4)


def test_long_training_field_is_a_prefix_and_two_equal_symbols():
    field, symbol = named_reference("l-ltf"), named_reference("l-ltf-64")
    assert field.shape == (160,)
    assert symbol.shape == (64,)
    np.testing.assert_allclose(field[32:96], field[96:], atol=1e-6)
    np.testing.assert_allclose(field[:32], field[64:96], atol=1e-6)
    np.testing.assert_allclose(symbol, field[32:96], atol=1e-6)
    spectrum = np.abs(np.fft.fft(symbol))
    assert np.sum(spectrum > 1e-3) == 52
    assert spectrum[0] < 1e-3
    np.testing.assert_allclose(spectrum[spectrum > 1e-3], spectrum[1], rtol=1e-4)


def test_short_training_field_repeats_16_samples_on_12_subcarriers():
    field = named_reference("l-stf")
    assert field.shape == (160,)
    np.testing.assert_allclose(field[16:], field[:-16], atol=1e-6)
    spectrum = np.abs(np.fft.fft(field[:64]))
    assert sorted(np.flatnonzero(spectrum > 1e-3)) == sorted(4 * k % 64 for k in range(-6, 7) if k)
    # First samples of the short training sequence in the same annex.
    scaled = field[:3] / np.abs(field[0]) * abs(0.046 + 0.046j)
    np.testing.assert_allclose(scaled, [0.046 + 0.046j, -0.132 + 0.002j, -0.013 - 0.079j], atol=1e-3)


@pytest.mark.parametrize("name", reference_names())
def test_standard_sequences_have_unit_power(name):
    sequence = named_reference(name)
    assert sequence.dtype == np.complex64
    assert np.mean(np.abs(sequence) ** 2) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(load_reference(name), sequence)


@pytest.mark.parametrize("name", ["l-ltf-65", "", "LTF"])
def test_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ScenarioError, match="l-ltf-64"):
        load_reference(name)


def test_npy_file(tmp_path, samples):
    np.save(tmp_path / "r.npy", samples)
    np.testing.assert_allclose(load_reference(tmp_path / "r.npy"), unit_power(samples), rtol=1e-5)


@pytest.mark.parametrize("ending", ["cf32", "fc32", "cfile", "CF32"])
def test_raw_float_file(tmp_path, samples, ending):
    samples.tofile(tmp_path / f"r.{ending}")
    np.testing.assert_allclose(read_reference(tmp_path / f"r.{ending}"), unit_power(samples), rtol=1e-5)


@pytest.mark.parametrize("ending", ["ci16", "sc16"])
def test_raw_integer_file(tmp_path, rng, ending):
    pairs = rng.integers(-32768, 32768, (50, 2)).astype("<i2")
    pairs.tofile(tmp_path / f"r.{ending}")
    expected = unit_power(pairs[:, 0] + 1j * pairs[:, 1])
    np.testing.assert_allclose(read_reference(tmp_path / f"r.{ending}"), expected, rtol=1e-5)


@pytest.mark.parametrize("ending", [".sigmf-meta", ".sigmf-data"])
def test_sigmf_recording(tmp_path, samples, ending):
    meta = write_sigmf(tmp_path, samples, "cf32_le")
    np.testing.assert_allclose(read_reference(meta.with_suffix(ending)), unit_power(samples), rtol=1e-5)


def test_sigmf_archive(tmp_path, samples):
    meta = write_sigmf(tmp_path, samples, "cf32_le")
    sigmf.fromfile(str(meta)).archive(str(tmp_path / "packed.sigmf"))
    np.testing.assert_allclose(read_reference(tmp_path / "packed.sigmf"), unit_power(samples), rtol=1e-5)


@given(start=st.integers(0, 299), n=st.integers(1, 300))
def test_cut_of_a_file(tmp_path_factory, start, n):
    samples = np.exp(1j * np.arange(300)).astype(np.complex64)
    path = tmp_path_factory.mktemp("cut") / "r.npy"
    np.save(path, samples)
    if start + n > 300:
        with pytest.raises(ScenarioError, match="300 samples"):
            read_reference(path, start, n)
    else:
        np.testing.assert_allclose(read_reference(path, start, n), samples[start : start + n], rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (np.zeros((2, 10), np.complex64), "one axis"),
        (np.ones(10, np.float32), "complex"),
        (np.zeros(10, np.complex64), "zero"),
        (np.full(10, np.nan, np.complex64), "finite"),
    ],
)
def test_content_that_cannot_serve_is_refused(tmp_path, content, word):
    np.save(tmp_path / "r.npy", content)
    with pytest.raises(RecordingError, match=word):
        read_reference(tmp_path / "r.npy")


def test_two_channels_are_refused(tmp_path, samples):
    meta = write_sigmf(tmp_path, samples, "cf32_le", n_channels=2)
    with pytest.raises(RecordingError, match="one channel"):
        read_reference(meta)


@pytest.mark.parametrize("name", ["r.npy", "r.cf32", "r.ci16", "r.sigmf-meta", "r.sigmf-data", "r.sigmf"])
def test_missing_empty_and_damaged_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(RecordingError, match=name):
        read_reference(path)
    for content in (b"", b"abc"):
        path.write_bytes(content)
        with pytest.raises(RecordingError, match=name):
            read_reference(path)


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"\.wav"):
        load_reference(tmp_path / "r.wav")
