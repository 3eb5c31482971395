"""`semair capture`: what each command makes, prints, and refuses."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from semair import cli
from semair.captures.collection import write_collection
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter


@pytest.fixture
def semair(monkeypatch, capsys):
    """Call the command line in this process; code, stdout, stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["semair", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(tmp_path: Path, rng) -> Path:
    """A run with a gap, a folder name that elsewhere would be markup, and header symbols."""
    folder = tmp_path / "run [red]"
    noise = rng.standard_normal((2, 8192, 2)).astype(np.float32).reshape(2, -1).view(np.complex64) / 20
    with RecordingWriter(
        folder, "bs-rx", n_channels=2, datatype="ci16_le", sample_rate_hz=1e6, frequency_hz=2.4e9, min_free_bytes=0
    ) as writer:
        writer.write(noise)
        writer.gap(1000)
        writer.write(noise)
    symbols = np.sign(rng.standard_normal(500)) + 0.1 * rng.standard_normal(500)
    np.save(folder / "header_symbols.npy", symbols.astype(np.complex64))
    write_collection(folder, "lab", {"bs-rx": "bs-rx"})
    return folder


def test_ls_lists_chooses_and_says_what_cannot_be_opened(semair, run, tmp_path):
    (tmp_path / "bad.sigmf-meta").write_text("{")
    code, out, err = semair("capture", "ls", tmp_path)
    assert (code, err) == (0, "")
    for text in ("run [red]", "bs-rx", "1 MS/s", "16.38 ms", "1 (1000)", "2 recordings", "cannot be opened", "no JSON"):
        assert text in out
    code, out, _ = semair("capture", "ls", tmp_path, "--gaps", "--json")
    (row,) = json.loads(out)
    assert (row["path"], row["lost_samples"]) == (str(run / "bs-rx.sigmf-meta"), 1000)
    assert semair("capture", "ls", tmp_path, "--label", "none", "--json")[1].strip() == "[]"
    code, out, err = semair("capture", "ls", tmp_path, "--since", "soon")
    assert (code, out) == (3, "")
    assert "no date" in err


def test_show_tells_and_draws(semair, run, tmp_path):
    picture = tmp_path / "new" / "x.png"
    code, out, err = semair("capture", "show", run / "bs-rx", "--picture", picture)
    assert (code, err) == (0, "")
    for text in ("gaps: 1", "segments: 2", "1000 samples before this one were lost", "frequency   2400000000 Hz"):
        assert text in out
    height, width, _ = imread(picture).shape
    assert width > 1000
    assert height > 700
    # The marks of the gap, at half of the time, are the only thing of their colour.
    pixels = imread(picture)[..., :3]
    red = np.argwhere((pixels[..., 0] > 0.95) & (pixels[..., 1] < 0.3) & (pixels[..., 2] < 0.3))
    assert len(red) > 50
    facts = json.loads(semair("capture", "show", run / "bs-rx", "--json")[1])
    assert (facts["samples"], facts["channels"], facts["rate_hz"]) == (16384, 2, 1e6)
    # 1/20 in each of two parts: 10 log10(2 / 400) = -23 dBFS; over 16384 samples good to 0.1 dB.
    assert facts["levels"][0]["rms_dbfs"] == pytest.approx(-23, abs=0.15)
    assert facts["levels"][1]["noise_floor_dbfs"] == pytest.approx(-23, abs=0.3)
    code, _, err = semair("capture", "show", run / "bs-rx", "--picture", tmp_path / "x.gif")
    assert code == 3
    assert ".png" in err


def test_parts_labels_exports_and_back(semair, run, tmp_path):
    words = ("--start", "8ms", "--stop", "-10", "--folder", tmp_path / "part", "--name", "cut", "--json")
    code, out, _ = semair("capture", "trim", run / "bs-rx", *words)
    assert code == 0
    part = Recording.open(json.loads(out)["recording"])
    assert np.array_equal(part.read(), Recording.open(run / "bs-rx").read(8000, 16384 - 10 - 8000))
    code, out, _ = semair("capture", "label", run / "bs-rx", "good", "--from", "1ms", "--to", "2ms", "--json")
    assert [Path(path).name for path in json.loads(out)["changed"]] == ["bs-rx.sigmf-meta", "lab.sigmf-collection"]
    assert ("good", 1000, 1000) in [
        (a.label, a.sample_start, a.sample_count) for a in Recording.open(run / "bs-rx").annotations
    ]
    for form, made in (("archive", "x.sigmf"), ("channels", "x"), ("numpy", "x.npy")):
        code, out, _ = semair("capture", "export", run if form == "archive" else run / "bs-rx", "--to", form,
                              "--out", tmp_path / made, "--json")  # fmt: skip
        assert code == 0, form
        assert Path(json.loads(out)["export"]).exists()
    code, out, _ = semair("capture", "import", tmp_path / "x.sigmf", "--folder", tmp_path / "back", "--json")
    assert json.loads(out)["notes"] == []
    assert (tmp_path / "back" / "bs-rx.sigmf-meta").read_bytes() == (run / "bs-rx.sigmf-meta").read_bytes()
    assert [f for f in verify(tmp_path / "back") if f.severity != "info"] == []
    code, out, _ = semair("capture", "label", run / "bs-rx", "good", "--remove")
    assert code == 0
    assert "changed" in out


def test_raw_samples_come_in_with_what_is_said_of_them(semair, tmp_path):
    raw = np.arange(80, dtype="<i2")
    (tmp_path / "dump.bin").write_bytes(raw.tobytes())
    words = ["capture", "import", tmp_path / "dump.bin", "--folder", tmp_path / "in"]
    code, out, err = semair(*words)
    assert (code, out) == (3, "")
    assert "--datatype" in err
    code, out, _ = semair(*words, "--datatype", "ci16_le", "--rate", "1e6", "--channels", 2, "--frequency", 9e8)
    assert code == 0
    assert "2 channels, 20 samples, ci16_le, 1 MS/s" in out
    assert Recording.open(tmp_path / "in" / "dump").frequency_hz == 9e8
    assert semair(*words, "--datatype", "ci16_le", "--rate", "1e6")[0] == 3  # it exists
    assert semair(*words, "--datatype", "ci16_le", "--rate", "1e6", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("trim", "{run}/bs-rx", "--start", "later"), 3, "no place"),
        (("export", "{run}/bs-rx", "--to", "wav"), 2, "channels, numpy, hdf5, archive"),
        (("export", "{run}/nothing", "--to", "numpy"), 3, "missing"),
        (("label", "{run}/bs-rx", "x" * 30), 3, "at most|1 to 20"),
        (("ls", "{run}/nowhere"), 3, "no folder"),
        (("import", "{run}/nowhere.mat"), 3, "missing"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(semair, run, words, code, said):
    ended, out, err = semair("capture", *[word.replace("{run}", str(run)) for word in words])
    assert (ended, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert any(part in err for part in said.split("|"))


def test_ctrl_c_leaves_nothing_half_done(semair, run, tmp_path, monkeypatch):
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semair.captures.storage.write_all", interrupted)
    for words in (
        ("trim", run / "bs-rx", "--stop", "10", "--folder", tmp_path / "a"),
        ("import", run / "bs-rx.sigmf-meta", "--folder", tmp_path / "a"),
        ("export", run / "bs-rx", "--to", "channels", "--out", tmp_path / "a"),
    ):
        code, out, _ = semair("capture", *words)
        assert (code, out) == (130, "")
        assert list((tmp_path / "a").iterdir()) == []
