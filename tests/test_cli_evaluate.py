"""`semair evaluate`: what it leaves, what it prints, and what survives Ctrl-C."""

from __future__ import annotations

import json

import pytest
from semair import cli
from semair.models.uad import sweeps

pytest.importorskip("typer")


def run(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["semair", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


QUICK = ("evaluate", "uad", "--quick", "--slots", "10", "-d", "cd", "-d", "somp")


def test_evaluation_leaves_json_page_and_figure(monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, *QUICK, "--sweep", "length", "--folder", tmp_path, "--json")
    content = json.loads(out)
    assert code == 0
    assert list(content["sweeps"]) == ["length"]
    rows = content["sweeps"]["length"]
    assert [(row["detector"], row["condition"]["length"]) for row in rows] == [
        (name, length) for length in (8, 12, 16) for name in ("cd", "somp")
    ]
    assert [row["n_slots"] for row in rows[::2]] == [10, 10, 80]
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == {key: value for key, value in content.items() if key != "folder"}
    assert (tmp_path / "evaluation.html").is_file()
    assert (tmp_path / "error-over-length.png").is_file()


def test_tables_for_people(monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, *QUICK, "--sweep", "activity", "--folder", tmp_path)
    assert code == 0
    assert "activity" in out
    assert "somp" in out
    assert str(tmp_path / "evaluation.html") in out.replace("\n", "")


def test_ctrl_c_keeps_what_is_done(monkeypatch, capsys, tmp_path):
    asked = []
    rows = sweeps.Evaluation.rows

    def interrupted(self, condition, *rest):
        asked.append(condition)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return rows(self, condition, *rest)

    monkeypatch.setattr(sweeps.Evaluation, "rows", interrupted)
    code, _, err = run(monkeypatch, capsys, *QUICK, "--sweep", "snapshots", "--folder", tmp_path, "--json")
    assert code == cli.INTERRUPTED
    assert "everything up to here" in err
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["sweeps"]["snapshots"]) == 4
    assert (tmp_path / "evaluation.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sweep", "speed"), "length, snapshots"),
        (("-d", "omp"), "'omp' is unknown"),
        (("--slots", "1"), "at least 2"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(monkeypatch, capsys, tmp_path, words, said):
    code, _, err = run(monkeypatch, capsys, "evaluate", "uad", "--quick", *words, "--folder", tmp_path / "none")
    assert code == 2
    assert said in err
    assert not (tmp_path / "none").exists()
