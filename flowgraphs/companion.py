"""GNU Radio Companion with the blocks of semair: its environment, its start, and its compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from ..errors import ScenarioError, SetupError, StorageError

_PACKAGE = Path(__file__).resolve().parents[1]
_BLOCKS = _PACKAGE / "blocks" / "grc"
_FLOWGRAPHS = Path(__file__).resolve().parent


def shipped_flowgraphs() -> dict[str, Path]:
    """The .grc files that come with semair, by name."""
    return {path.stem: path for path in sorted(_FLOWGRAPHS.glob("*.grc"))}


def environment() -> dict[str, str]:
    """Environment variables with which GNU Radio Companion and grcc know semair.

    Both programs are run by the system's Python. GRC_BLOCKS_PATH tells them where the block descriptions are, and
    PYTHONPATH where that Python finds semair and the packages of the environment semair is installed in. What the
    two variables hold already is kept behind it.

    Returns:
        The two variables with their whole values.

    Raises:
        StorageError: the link by which other interpreters find an editable install cannot be made.
    """
    packages = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return {
        "GRC_BLOCKS_PATH": _joined([str(_BLOCKS)], os.environ.get("GRC_BLOCKS_PATH", "")),
        "PYTHONPATH": _joined([str(_import_folder()), *packages], os.environ.get("PYTHONPATH", "")),
    }


def compile_flowgraph(grc: Path, out_folder: Path) -> Path:
    """Generate the Python program of a .grc file with grcc.

    Args:
        grc: the flowgraph.
        out_folder: where the program is written; made when missing.

    Returns:
        Path of the program.

    Raises:
        ScenarioError: the file is missing, or GNU Radio Companion finds errors in it, which are told.
        SetupError: grcc is not installed.
        StorageError: the folder cannot be made.
    """
    program = _program("grcc")
    _check_file(grc)
    try:
        out_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make folder {out_folder}: {error.strerror}") from error
    before = {path: path.stat().st_mtime_ns for path in out_folder.glob("*.py")}
    done = subprocess.run(
        [program, "-o", str(out_folder), str(grc)],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    written = [p for p in out_folder.glob("*.py") if before.get(p) != p.stat().st_mtime_ns]
    if done.returncode or not written:
        said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line.strip())
        raise ScenarioError(f"{grc} cannot be compiled; GNU Radio Companion says:\n{said}")
    return max(written, key=lambda path: path.stat().st_mtime_ns)


def open_companion(file: Path | None = None) -> int:
    """Start GNU Radio Companion with the blocks of semair, and wait until it is closed.

    A shipped flowgraph is copied into the current folder, and the copy is opened: it is the user's to change, and
    GNU Radio Companion writes the program beside it. A copy that is there already is opened as it is.

    Args:
        file: flowgraph to open; None: what was open last.

    Returns:
        Its exit status.

    Raises:
        ScenarioError: the file is missing.
        SetupError: GNU Radio Companion, its GTK, or a display is missing.
        StorageError: a shipped flowgraph cannot be copied.
    """
    program = _program("gnuradio-companion")
    if file is not None:
        _check_file(file)
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise SetupError(
            "GNU Radio Companion needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set: "
            "run it on a desktop, or log in with `ssh -X`"
        )
    try:
        import gi

        gi.require_version("Gtk", "3.0")
    except (ImportError, ValueError) as error:
        raise SetupError(
            f"GNU Radio Companion needs GTK 3 for Python ({error}): "
            "install it with `apt install python3-gi gir1.2-gtk-3.0`"
        ) from error
    if file is not None and file.resolve().parent == _FLOWGRAPHS:
        file = _working_copy(file)
    arguments = [program] if file is None else [program, str(file)]
    return subprocess.run(arguments, env={**os.environ, **environment()}, check=False).returncode


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SetupError(f"{name} is not installed; install it with `apt install gnuradio`")
    return found


def _check_file(file: Path) -> None:
    if not file.is_file():
        known = ", ".join(shipped_flowgraphs())
        raise ScenarioError(f"{file} is not a file; flowgraphs that come with semair: {known}")


def _working_copy(file: Path) -> Path:
    copy = Path.cwd() / file.name
    if not copy.exists():
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise StorageError(
                f"cannot copy the flowgraph to {copy}: {error.strerror}; change to a folder that can be written"
            ) from error
    return copy


def _joined(first: list[str], present: str) -> str:
    """Search path with `first` in front of what is there, each folder once."""
    return os.pathsep.join(dict.fromkeys([*first, *(part for part in present.split(os.pathsep) if part)]))


def _import_folder() -> Path:
    """A folder in which an interpreter of another environment finds the package `semair`.

    An editable install maps the package onto a source folder of any name through an import hook, which only the
    environment's own interpreter loads. A link of the right name inside the environment serves all others.
    """
    if _PACKAGE.parent == Path(sysconfig.get_path("purelib")).resolve():
        return _PACKAGE.parent
    folder = Path(sys.prefix) / "share" / "semair" / "python"
    link = folder / "semair"
    try:
        if not (link.is_symlink() and link.resolve() == _PACKAGE):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".semair-{os.getpid()}"
            partial.symlink_to(_PACKAGE, target_is_directory=True)
            partial.replace(link)
    except OSError as error:
        raise StorageError(
            f"cannot make the link {link} to {_PACKAGE}, by which GNU Radio Companion finds semair: "
            f"{error.strerror}; make the folder writable, or rename the source folder to `semair`"
        ) from error
    return folder
