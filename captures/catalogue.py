"""What recordings there are under some folders, with an index that makes the second look fast."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sigmf import keys

from ..errors import RecordingError
from .meta import DATA_SUFFIX, META_SUFFIX
from .reader import OnShare, Recording

INDEX_NAME = ".semair-index.sqlite"
_FORMAT = 1
_TABLE = "CREATE TABLE recordings (path TEXT PRIMARY KEY, state TEXT NOT NULL, row TEXT NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True)
class Row:
    """One recording in a catalogue.

    Args:
        path: of its meta file, relative to the folder that was looked through.
        name: base name.
        run: name of its folder.
        date: of the first sample, UTC; else of the file, see `date_from`.
        date_from: ``recording`` or ``file``.
        rate_hz: sample rate, None if not recorded.
        frequency_hz: centre frequency of the first segment.
        n_channels: interleaved channels.
        n_samples: samples per channel.
        duration_s: of the stored samples; None without a rate.
        gaps: places where samples are missing.
        lost_samples: how many, per channel.
        labels: annotations by label.
        snr_db: median over the recording and its annotations, where they say it.
        complete: None if the recording does not say.
        problem: why it cannot be opened; empty if it can.
    """

    path: str
    name: str
    run: str
    date: str
    date_from: str = "file"
    rate_hz: float | None = None
    frequency_hz: float | None = None
    n_channels: int = 0
    n_samples: int = 0
    duration_s: float | None = None
    gaps: int = 0
    lost_samples: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    snr_db: float | None = None
    complete: bool | None = None
    problem: str = ""


@dataclass
class Catalogue:
    """Recordings under a folder.

    Args:
        folder: that was looked through.
        rows: by path.
        read: how many had to be opened; the others came from the index.
        notes: on the index, for people.
    """

    folder: Path
    rows: list[Row]
    read: int
    notes: list[str] = field(default_factory=list)


def catalogue(
    folder: Path, *, rebuild: bool = False, use_index: bool = True, on_share: OnShare | None = None
) -> Catalogue:
    """List all recordings in a folder and those below it.

    An index in the folder remembers them. Each of its rows counts only as long as size, time and inode of the meta file
    and size of the data are those seen when it was made. A damaged or foreign index is made anew; where it cannot be
    written, the listing does without.

    Args:
        folder: to look through; links to other folders are not followed.
        rebuild: open every recording, and make the index anew.
        use_index: False: neither read nor write one.
        on_share: told the share done.

    Raises:
        RecordingError: it is no folder.
    """
    if not folder.is_dir():
        raise RecordingError(f"{folder} is no folder; name one that holds recordings")
    found = dict(_found(folder))
    notes: list[str] = []
    known: dict[str, tuple[str, str]] = {}
    index = folder / INDEX_NAME
    if use_index and index.is_symlink():
        notes.append(f"{index} is a link and not used")
        use_index = False
    if use_index and not rebuild:
        known = _read_index(index, notes)
    rows: list[Row] = []
    fresh: dict[str, tuple[str, str]] = {}
    for count, (path, state) in enumerate(sorted(found.items())):
        row = _row(known[path][1]) if path in known and known[path][0] == state else None
        if row is None or row.path != path:
            row = _look(folder, path)
            fresh[path] = (state, json.dumps(asdict(row)))
        rows.append(row)
        if on_share is not None and count % 64 == 0:
            on_share(count / len(found))
    gone = set(known) - set(found)
    if use_index and (fresh or gone or (rebuild and index.exists())):
        _write_index(index, fresh, gone, notes, anew=rebuild or not known)
    return Catalogue(folder, rows, len(fresh), notes)


def select(
    rows: Sequence[Row],
    *,
    label: str | None = None,
    since: datetime | None = None,
    min_rate_hz: float | None = None,
    min_channels: int | None = None,
    gaps: bool | None = None,
) -> list[Row]:
    """Rows that fit all that is asked for; None asks for nothing."""

    def fits(row: Row) -> bool:
        return (
            (label is None or label in row.labels)
            and (since is None or datetime.fromisoformat(row.date) >= since)
            and (min_rate_hz is None or (row.rate_hz or 0.0) >= min_rate_hz)
            and (min_channels is None or row.n_channels >= min_channels)
            and (gaps is None or (row.gaps > 0) == gaps)
        )

    return [row for row in rows if fits(row)]


def parse_date(text: str) -> datetime:
    """Date that a user typed; UTC where no zone is given.

    Raises:
        RecordingError: it is none.
    """
    try:
        date = datetime.fromisoformat(text)
    except ValueError as err:
        raise RecordingError(f"{text!r} is no date; give one such as 2026-10-01 or 2026-10-01T14:30") from err
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _found(folder: Path) -> Iterator[tuple[str, str]]:
    """Relative path of each meta file, and what must be unchanged for its row to hold."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                items = list(entries)
        except OSError:
            continue
        names = {entry.name: entry for entry in items if not entry.name.startswith(".")}
        for name, entry in names.items():
            try:
                path = os.path.join(inside, name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif name.endswith(META_SUFFIX) and entry.is_file():
                    meta = entry.stat()
                    data = names.get(name.removesuffix(META_SUFFIX) + DATA_SUFFIX)
                    size = data.stat().st_size if data is not None else -1
                    path.encode()
                    yield path, f"{meta.st_mtime_ns} {meta.st_size} {meta.st_ino} {size}"
            except (OSError, UnicodeEncodeError):
                continue


def _look(folder: Path, path: str) -> Row:
    meta_path = folder / path
    try:
        date = datetime.fromtimestamp(meta_path.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        date = datetime.fromtimestamp(0, UTC)
    plain: dict[str, Any] = {"path": path, "name": meta_path.name.removesuffix(META_SUFFIX)}
    plain["run"] = meta_path.parent.name or folder.resolve().name
    text = f"{date:%Y-%m-%dT%H:%M:%S}+00:00"
    try:
        recording = Recording.open(meta_path)
    except RecordingError as err:
        return Row(**plain, date=text, problem=str(err)[:400])
    told = _date(recording)
    gaps = [a for a in recording.annotations if a.fields.get("kind") == "gap"]
    lost = recording.global_fields.get("lost_samples", 0)
    noted = (recording.global_fields, *(a.fields for a in recording.annotations))
    snr = [fields["snr_db"] for fields in noted if _is_number(fields.get("snr_db"))]
    rate_hz = recording.sample_rate_hz
    return Row(
        **plain,
        date=told or text,
        date_from="recording" if told else "file",
        rate_hz=rate_hz,
        frequency_hz=recording.frequency_hz,
        n_channels=recording.n_channels,
        n_samples=recording.n_samples,
        duration_s=None if rate_hz is None else recording.n_samples / rate_hz,
        gaps=len(gaps),
        lost_samples=lost if isinstance(lost, int) else 0,
        labels=dict(Counter(a.label for a in recording.annotations if a.label)),
        snr_db=round(statistics.median(snr), 2) if snr else None,
        complete=recording.complete if isinstance(recording.complete, bool) else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _date(recording: Recording) -> str | None:
    """Date of the first sample in UTC, as ISO 8601 with seconds; None if the recording does not say it."""
    text = recording.segments[0].raw.get(keys.DATETIME_KEY) if recording.segments else None
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        # Python takes six digits of a second, the format any number.
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").strftime("%Y-%m-%dT%H:%M:%S") + "+00:00"
    except ValueError:
        return None


def _row(text: str) -> Row | None:
    """Row from the index; None if it is none."""
    try:
        fields = json.loads(text)
        row = Row(**fields)
        datetime.fromisoformat(row.date)
        numbers = (row.rate_hz, row.frequency_hz, row.duration_s, row.snr_db, row.n_channels, row.n_samples, row.gaps)
        texts = (row.path, row.name, row.run, row.date_from, row.problem)
        good = all(n is None or isinstance(n, int | float) for n in numbers) and all(isinstance(t, str) for t in texts)
        return row if good and isinstance(row.labels, dict) and isinstance(row.lost_samples, int) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _read_index(index: Path, notes: list[str]) -> dict[str, tuple[str, str]]:
    if not index.exists():
        return {}
    try:
        with closing(_connect(index, "ro")) as database:
            # Whatever else a file made by others may hold, views and triggers among it, is not executed.
            schema = database.execute("SELECT type, sql FROM sqlite_schema").fetchall()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if schema != [("table", _TABLE)] or version != _FORMAT:
                raise sqlite3.DatabaseError("it is of another kind or version")
            rows = database.execute("SELECT path, state, row FROM recordings").fetchall()
            if not all(isinstance(cell, str) for row in rows for cell in row):
                raise sqlite3.DatabaseError("it holds something else")
            return {path: (state, row) for path, state, row in rows}
    except (sqlite3.Error, OSError, ValueError) as err:
        notes.append(f"{index} could not be used ({err}); recordings were opened one by one")
        return {}


def _write_index(
    index: Path, fresh: dict[str, tuple[str, str]], gone: set[str], notes: list[str], *, anew: bool
) -> None:
    try:
        if anew:
            index.unlink(missing_ok=True)
        with closing(_connect(index, "rwc")) as database, database:
            if anew:
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.executemany("DELETE FROM recordings WHERE path = ?", [(path,) for path in gone])
            rows = [(path, state, row) for path, (state, row) in fresh.items()]
            database.executemany("INSERT OR REPLACE INTO recordings VALUES (?, ?, ?)", rows)
    except (sqlite3.Error, OSError) as err:
        notes.append(f"{index} could not be written ({err}); the next listing will take as long")


def _connect(index: Path, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(f"{index.resolve().as_uri()}?mode={mode}", uri=True, timeout=2.0)
    database.execute("PRAGMA trusted_schema = OFF")
    return database
