"""Live lines of work that takes longer than a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .common import (
    err,
)

if TYPE_CHECKING:
    from ..flowgraphs import link_run as runner
    from ..flowgraphs import recording as recorder
    from ..models import training as trainer


@contextmanager
def frame_progress(unit: str, quiet: bool) -> Iterator[Callable[[runner.Progress], None] | None]:
    """A live line for runs and replays."""
    if quiet:
        yield None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(unit, total=None, state="starting (compiles at the first run)")

        def update(state: runner.Progress) -> None:
            watched = state.recorder.state() if state.recorder and not state.decided else None
            done = state.decided + state.dropped
            text = f"{unit} decided" if done else "receiving"
            if state.remark:
                text += f", {state.remark}"
            elif state.sent:
                text += f", {state.wrong} wrong user decisions"
            if state.dropped:
                text += f", [yellow]{state.dropped} dropped[/]"
            if watched is not None:
                text = f"{state.sent} frames sent, {watched}"
            bar.update(task, total=state.expected, completed=done or (0 if state.sent == 0 else None), state=text)

        yield update


@contextmanager
def terminal_progress(n_terminals: int, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A live line for terminals that follow a base station elsewhere."""
    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("terminals", total=None, state="starting (compiles at the first run)")

        def update(frame: int, sending: int) -> None:
            heard = "no beacon yet" if frame < 0 else f"frame {frame} heard"
            bar.update(task, state=f"{heard}, {sending} of {n_terminals} terminals know where frames are")

        yield update


@contextmanager
def recorder_progress(quiet: bool) -> Iterator[Callable[[recorder.RecorderState], None] | None]:
    """A live line for recordings: rate, room on the disk, losses, clipping."""
    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=16), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def update(state: recorder.RecorderState) -> None:
            total = None if state.share is None else 1.0
            bar.update(task, description=str(state), total=total, completed=state.share)

        yield update


@contextmanager
def training_progress(quiet: bool) -> Iterator[Callable[[trainer.Progress], None] | None]:
    """A live line for training: loss, figures at the lowest, a middle and the highest length or SNR, time left."""
    from ..models.training import OVER_SNR

    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        logged: Mapping[int, float] = {}

        def update(state: trainer.Progress) -> None:
            nonlocal logged
            lengths = sorted(state.error)
            shown = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]}) if lengths else []
            in_db = state.figure.endswith("_db")
            over = "SNR" if state.figure in OVER_SNR else "L"
            figures = (f"{over}={n} {state.error[n]:{'.2f' if in_db else '.1e'}}{' dB' * in_db}" for n in shown)
            name = state.figure.removesuffix("_db").upper() if in_db else "error"
            errors = f"{name} {', '.join(figures) or 'none yet'}"
            minutes, seconds = divmod(round(state.left_s), 60)
            text = f"step {state.step}, loss {state.loss:.4f}, {errors}, {minutes}:{seconds:02d} left"
            bar.update(task, completed=state.share, description=text)
            # A log gets one line for every validation.
            if not err.is_terminal and state.error != logged:
                logged = state.error
                err.print(text, markup=False, highlight=False, soft_wrap=True)

        yield update


@contextmanager
def share_progress(title: str, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A live line for work that knows its share done."""
    if quiet:
        yield lambda _name, _share: None
        return
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda name, share: bar.update(task, description=f"{title}: {name}", completed=share)
