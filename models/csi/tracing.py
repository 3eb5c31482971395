"""Start `raytracing/trace.py` in the environment it needs, and follow it.

Sionna RT wants NumPy 2, which GNU Radio's Python bindings of Debian 12 do not bear: it lives in an environment of its
own, made once, and only the file that it writes comes back.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError, ScenarioError, SetupError, StorageError

SCENES = ("munich", "etoile", "simple_street_canyon")
_FOLDER = Path(__file__).parent / "raytracing"
_LIBRARY = "DRJIT_LIBLLVM_PATH"
# The tracer's compiler cannot work with an older one.
_OLDEST_LLVM = 16


def default_environment() -> Path:
    """Folder of the tracer's environment when none is named."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "semair" / "tracing"


def install(environment: Path) -> None:
    """Make the tracer's environment: needs the network, or a package index that pip is set up for.

    Raises:
        SetupError: it could not be made.
    """
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(_python(environment)), "-m", "pip", "install", "-q", "-r", str(_FOLDER / "requirements.txt")],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise SetupError(
                f"{environment}: the tracer's environment could not be made ({said[-1] if said else error}); "
                "pip needs the network or a package index"
            ) from error


def find_llvm(roots: Sequence[Path] = (Path("/usr/lib"), Path("/usr/lib64"))) -> Path:
    """Find LLVM's library: what DRJIT_LIBLLVM_PATH names, or the newest one under `roots`.

    Raises:
        SetupError: there is none, or none new enough.
    """
    named = os.environ.get(_LIBRARY)
    if named:
        if not Path(named).is_file():
            raise SetupError(f"{_LIBRARY}={named}: no such file; name LLVM's library, or unset it")
        return Path(named)
    found: dict[int, Path] = {}
    for root in roots:
        for file in sorted([*root.glob("libLLVM*.so*"), *root.glob("*/libLLVM*.so*")]):
            version = re.search(r"libLLVM(?:\.so\.|-)(\d+)", file.name)
            if version:
                found.setdefault(int(version[1]), file)
    if not found or max(found) < _OLDEST_LLVM:
        have = f"only LLVM {max(found)} is here" if found else "no LLVM is here"
        raise SetupError(f"ray tracing needs LLVM {_OLDEST_LLVM} or newer, and {have}; apt-get install libllvm19")
    return found[max(found)]


def trace(
    output: Path,
    *,
    scenes: Sequence[str] = SCENES,
    options: dict[str, Any] | None = None,
    environment: Path | None = None,
    on_progress: Callable[[str, float], None] = lambda _scene, _share: None,
) -> dict[str, Any]:
    """Trace scenes and write the paths to a file that `raytraced.read_paths` reads.

    Args:
        output: file to write; replaced only when all is traced.
        scenes: names.
        options: of `raytracing/trace.py` by name, e.g. drops, bases, seed.
        environment: folder of the tracer's environment; None is the default one.
        on_progress: called with the scene and the share done of all.

    Returns:
        What was written: file, number of drops, and how many were skipped because no ray reached a user.

    Raises:
        ScenarioError: there is no such scene.
        SetupError: the tracer's environment or LLVM is missing.
        ModelError: the tracer failed.
        StorageError: the folder cannot be written.
    """
    unknown = [name for name in scenes if name not in SCENES]
    if unknown or not scenes:
        raise ScenarioError(f"scenes {', '.join(unknown) or 'none'}: choose of {', '.join(SCENES)}")
    environment = environment or default_environment()
    python = _python(environment)
    if not python.is_file():
        raise SetupError(f"{environment}: ray tracing has no environment there; make it with: semair trace --install")
    library = find_llvm()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{output.parent}: cannot be written ({error})") from error
    if not os.access(output.parent, os.W_OK) or output.is_dir():
        raise StorageError(f"{output}: cannot be written; name a file in a folder that you may write to")
    command = [str(python), str(_FOLDER / "trace.py"), str(output), "--scenes", *scenes]
    for name, value in (options or {}).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return _follow(command, {**os.environ, _LIBRARY: str(library)}, list(scenes), output, on_progress)


def _follow(
    command: list[str],
    environ: dict[str, str],
    scenes: list[str],
    output: Path,
    on_progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """Run the tracer to its end and pass on what it says; it never outlives this call."""
    written: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=complaints, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    news = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if not isinstance(news, dict):
                    continue
                if "written" in news:
                    written = news
                elif "done" in news:
                    scene = str(news["scene"])
                    on_progress(scene, (scenes.index(scene) + news["done"] / news["total"]) / len(scenes))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            output.with_name(output.name + ".part").unlink(missing_ok=True)
            if process.stdout is not None:
                process.stdout.close()
        complaints.seek(0)
        said = deque((line.strip() for line in complaints if line.strip()), maxlen=1)
    if code or written is None:
        reason = said[-1] if said else "it said nothing"
        raise ModelError(f"{output}: tracing ended with code {code}: {reason}")
    return written


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"
