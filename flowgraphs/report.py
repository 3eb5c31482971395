"""The report of a run or replay: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..errors import ScenarioError, StorageError
from . import report_sections as build
from .closed_loop import ACCESS
from .report_csi import csi_sections
from .report_data import (
    Judged,
    OnProgress,
    Run,
    judge_other_folder,
    judge_run,
    load_run,
    other_detectors,
    rerun_detectors,
)
from .report_loop import LoopRun, is_loop, load_loop, loop_sections
from .report_semantic import semantic_sections

_RERUN_S = 4.0


def write_report(
    folder: Path,
    on_progress: OnProgress | None = None,
    detectors: list[str] | None = None,
    *,
    rerun_s: float = _RERUN_S,
) -> Path:
    """Write report.html into the folder of a run or of a replay.

    Args:
        folder: of the run (`runs/demo`) or replay (`runs/demo/replays/same`).
        on_progress: called with what is being done and the share done.
        detectors: names of the detectors to set beside the run's own; None: all. One with a replay in the folder
            counts with all that it decided there, others decide the slots that the run kept.
        rerun_s: time for these, all together; slow detectors judge fewer slots, three per length at
            least.

    Returns:
        The file written: HTML with everything inside, no script, nothing fetched.

    Raises:
        RecordingError: the folder is not that of a run, or a table in it is damaged.
        ScenarioError: a detector is unknown, or asked for where the link has none.
        StorageError: the file cannot be written.
    """
    tell = on_progress or (lambda _, __: None)
    tell("reading the run", 0.0)
    if is_loop(Path(folder)):
        if detectors is not None:
            raise ScenarioError(
                "detectors: a closed loop has one, and what others decide goes nowhere; write the report of its access "
                f"stage for that: semair report {Path(folder) / ACCESS}"
            )
        loop = load_loop(Path(folder))
        page = _page("report_loop.html.j2", loop_sections(loop), lambda share: tell("drawing", share))
        _write(loop, page)
        tell("written", 1.0)
        return loop.folder.report
    run = load_run(Path(folder))
    if run.scenario.csi is not None:
        if detectors is not None:
            raise ScenarioError(
                "detectors: runs of CSI feedback and of the picture downlink have none to set beside each other; leave "
                "them out"
            )
        tell("drawing", 0.3)
        pictures = run.scenario.pictures is not None
        made = semantic_sections(run) if pictures else csi_sections(run)
        template = "report_semantic.html.j2" if pictures else "report_csi.html.j2"
        page = _page(template, made, lambda share: tell("drawing", 0.3 + 0.7 * share))
        _write(run, page)
        tell("written", 1.0)
        return run.folder.report
    others = other_detectors(run, detectors)
    own = judge_run(run)
    whole = {name: found for name in others if (found := judge_other_folder(run, name)) is not None}
    again = rerun_detectors(
        run,
        [name for name in others if name not in whole],
        rerun_s,
        lambda text, share: tell(text, 0.05 + 0.6 * share),
    )
    beside = whole | {one.name: one for one in again}
    judged = [own, *(beside[name] for name in others if name in beside)]
    tell("drawing", 0.65)
    page = render(run, own, judged, lambda share: tell("drawing", 0.65 + 0.35 * share))
    _write(run, page)
    tell("written", 1.0)
    return run.folder.report


def render(run: Run, own: Judged, judged: Sequence[Judged], on_progress: Callable[[float], None] | None = None) -> str:
    """The page of a run, its own decisions, and those of all detectors to show."""
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "head": lambda: build.head_section(run, own),
        "settings": lambda: build.settings_section(run),
        "detection": lambda: build.detection_section(run, own, judged),
        "synchronisation": lambda: build.synchronisation_section(run),
        "signals": lambda: build.signals_section(run),
        "activity": lambda: build.activity_section(run),
        "latency": lambda: build.latency_section(run),
        "losses": lambda: build.losses_section(run),
        "reproduce": lambda: build.reproduce_section(run),
    }
    return _page("report.html.j2", makers, on_progress)


def _page(
    template: str,
    makers: dict[str, Callable[[], dict[str, Any]]],
    on_progress: Callable[[float], None] | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=build.number, count=build.count_text, percent=build.percent, level=build.level_text
    )
    sections = {}
    for name, make in makers.items():
        sections[name] = make()
        if on_progress:
            on_progress(len(sections) / len(makers))
    return environment.get_template(template).render(**sections)


def _write(run: Run | LoopRun, page: str) -> None:
    try:
        partial = run.folder.report.with_name(".report.html.partial")
        partial.write_text(page, encoding="utf-8")
        partial.replace(run.folder.report)
    except OSError as error:
        raise StorageError(f"cannot write {run.folder.report}: {error.strerror}") from error
