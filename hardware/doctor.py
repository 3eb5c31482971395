"""Examining the machine: what is there, what does not fit, and how to mend it.

Nothing here needs what it examines: this module imports with the standard library alone, libraries that may abort a
process are imported in a process of their own, and whatever does not answer in time is reported as such.

One more check is one more function with the decorator `check`, or `radio_check` where it concerns one radio.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from ..captures.storage import free_bytes, write_all
from ..errors import ScenarioError

NEED_BYTES_S = 4 * 10e6 * 4
"""Rate of the largest recording aimed at: 4 antennas x 10 MS/s x 4 bytes (ci16)."""
CHECK_LIMIT_S = 90.0
ANSWER_LIMIT_S = 60.0
UHD_BUFFER_BYTES = 33_554_432
"""Socket buffers that Ettus recommends for USRPs on 10 Gbit/s Ethernet."""
USB_BUFFER_MB = 1000
"""Memory for transfers over USB that makers of USB 3 radios recommend; Linux begins with 16."""

_PACKAGE = Path(__file__).resolve().parents[1]
_PYTHON = (3, 11)
_GNURADIO = (3, 10)
_BLOCK_BYTES = 8 << 20
_MEASURED_BYTES = 2 << 30
_SCANNED_FOLDERS = 2000
_SCANNED_DEPTH = 3
_GNURADIO_CODE = "import json, pmt; from gnuradio import gr; print(json.dumps(gr.version()))"
_UHD_CODE = "import json; from gnuradio import uhd; print(json.dumps(uhd.get_version_string()))"
_GTK_CODE = "import json, gi; gi.require_version('Gtk', '3.0'); print(json.dumps(gi.__version__))"
_SYSTEM_PYTHON = "/usr/bin/python3"
_IIO_CODE = "import json, iio; print(json.dumps(list(iio.version[:2])))"
_SOAPY_CODE = "import json, SoapySDR; print(json.dumps(list(SoapySDR.listModules())))"
_ZMQ_CODE = "import json, zmq; print(json.dumps([zmq.__version__, zmq.zmq_version()]))"
_USBFS = "sys/module/usbcore/parameters/usbfs_memory_mb"
_UHD_IMAGES = ("usr/share/uhd/images", "usr/share/uhd/*/images", "usr/local/share/uhd/images")
_IMAGE_SUFFIXES = {".bit", ".bin", ".hex", ".ihx", ".rbf", ".lvbitx"}
_ENVIRONMENT = "run `make setup`, or make a new environment: `/usr/bin/python3 -m venv --system-site-packages .venv`"

_TRIAL_S = 80.0

Status = Literal["ok", "warning", "failure"]
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: of the check.
        status: "failure": something will not work; "warning": it will, but slower or not for all radios.
        found: what is there.
        remedy: what to do; empty when ok.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") == bool(self.remedy):
            raise ValueError(
                f"check {self.name!r}: status {self.status!r} with remedy {self.remedy!r}; a remedy belongs to a "
                "warning or a failure, and only there"
            )


@dataclass(frozen=True)
class Verdict:
    """A check without its name, as the functions below give it."""

    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class PythonFacts:
    """The interpreter.

    Attributes:
        version: major, minor, micro.
        prefix: of the environment.
        is_venv: whether the environment is a virtual one.
        sees_system: whether it sees the packages of the interpreter it was made from.
    """

    version: tuple[int, int, int]
    prefix: str
    is_venv: bool
    sees_system: bool


@dataclass(frozen=True)
class Answer:
    """What a process of its own told.

    Attributes:
        value: what it printed last, read as JSON; None where it failed.
        problem: why it failed, empty where it did not.
    """

    value: Any = None
    problem: str = ""


@dataclass(frozen=True)
class RadioRequest:
    """A radio to listen to. Nothing is transmitted.

    Attributes:
        kind: its backend.
        address: which radio of this kind.
        rates_hz: sample rates to try, rising; the first at which samples are lost is the last.
        frequency_hz: centre frequency.
        n_rx: receive channels.
        seconds: to listen at each rate.
    """

    kind: str
    address: str = ""
    rates_hz: tuple[float, ...] = (1e6, 2e6, 5e6, 10e6, 20e6)
    frequency_hz: float = 2.4e9
    n_rx: int = 1
    seconds: float = 2.0


class Machine:
    """The questions that checks ask. Tests give a machine with other answers.

    Args:
        folder: where recordings would go.
        root: where /proc, /sys and /usr are looked for.
        radio: to be examined as well.
    """

    def __init__(self, folder: Path, root: Path = Path("/"), radio: RadioRequest | None = None) -> None:
        self.folder = folder
        self.root = root
        self.radio = radio
        self._trial: Answer | None = None
        self._answers: dict[tuple[str, str], Answer] = {}

    def python(self) -> PythonFacts:
        """The interpreter that runs this."""
        is_venv = sys.prefix != sys.base_prefix
        sees_system = not is_venv
        if is_venv:
            config = self._read(Path(sys.prefix, "pyvenv.cfg")) or ""
            sees_system = bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true\s*$", config))
        return PythonFacts(sys.version_info[:3], sys.prefix, is_venv, sees_system)

    def has_module(self, name: str) -> bool:
        """Whether a top-level module is there, without importing it."""
        return importlib.util.find_spec(name) is not None

    def version(self, distribution: str) -> str | None:
        """Version of an installed Python distribution."""
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return None

    def requirements(self) -> list[str] | None:
        """Requirements of the installed semair; None where it is not installed."""
        try:
            return metadata.requires("semair") or []
        except metadata.PackageNotFoundError:
            return None

    def ask(self, code: str, python: str = sys.executable) -> Answer:
        """Run Python code in a process of its own; the same code is run once. Its last line printed is JSON."""
        if (code, python) not in self._answers:
            self._answers[code, python] = run_python(code, python=python)
        return self._answers[code, python]

    def listen(self) -> Answer:
        """What a process of its own tells after listening to the radio, once."""
        if self._trial is None:
            self._trial = Answer(problem="no radio is named") if self.radio is None else _listen(self.radio)
        return self._trial

    def program(self, name: str) -> str | None:
        """Path of a program."""
        return shutil.which(name)

    def shared_library(self, name: str) -> str | None:
        """File name of a shared library, e.g. libiio.so.0."""
        return ctypes.util.find_library(name)

    def environment(self, name: str) -> str | None:
        """Value of an environment variable."""
        return os.environ.get(name)

    def text(self, path: str) -> str | None:
        """Contents of a system file, given without the leading slash; None where it is missing."""
        return self._read(self.root / path)

    def paths(self, pattern: str) -> list[Path]:
        """System files that fit a pattern, given without the leading slash."""
        return sorted(self.root.glob(pattern))

    def cores(self) -> int:
        """Processor cores that this process may use."""
        return len(os.sched_getaffinity(0))

    def grc_folder(self) -> Path:
        """Folder of our block descriptions."""
        return _PACKAGE / "blocks" / "grc"

    def free_bytes(self) -> int:
        """Bytes free where the folder is or would be."""
        place = self.folder.resolve()
        while not place.exists():
            place = place.parent
        return free_bytes(place)

    def write_rate_bytes_s(self) -> float:
        """Sustained write rate of the folder."""
        return write_rate_bytes_s(self.folder)

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None


Examination = Callable[[Machine], Check]

CHECKS: dict[str, Examination] = {}
"""All checks of the machine by name, in the order in which they are made."""
RADIO_CHECKS: dict[str, Examination] = {}
"""Those of one radio, made after them where a radio is named."""


def radio_check(name: str) -> Callable[[Callable[[Machine], Verdict]], Examination]:
    """Make a function a check of the radio that is named. Otherwise as `check`."""
    return check(name, RADIO_CHECKS)


def check(
    name: str, where: dict[str, Examination] | None = None
) -> Callable[[Callable[[Machine], Verdict]], Examination]:
    """Make a function a check. It is given the machine and says what it found.

    Raises:
        ValueError: the name is taken.
    """
    if name in CHECKS or name in RADIO_CHECKS:
        raise ValueError(f"there is a check {name!r} already; give this one another name")

    def register(function: Callable[[Machine], Verdict]) -> Examination:
        def examination(machine: Machine) -> Check:
            verdict = function(machine)
            return Check(name, verdict.status, verdict.found, verdict.remedy)

        examination.__doc__ = function.__doc__
        (CHECKS if where is None else where)[name] = examination
        return examination

    return register


def examine(
    folder: Path | None = None,
    only: Iterable[str] | None = None,
    on_progress: OnProgress | None = None,
    *,
    machine: Machine | None = None,
    radio: RadioRequest | None = None,
    limit_s: float = CHECK_LIMIT_S,
) -> list[Check]:
    """Examine this machine.

    Args:
        folder: where recordings would go; None: the current folder.
        only: names of the checks to make; None: all of them.
        on_progress: called with the name of each check as it begins and the share done, 0 to 1.
        machine: to examine another one than this.
        radio: to be examined as well.
        limit_s: time after which a check that does not end is given up.

    Returns:
        One result per check. A check that breaks or does not end is a failure.

    Raises:
        ScenarioError: there is no check of a given name.
    """
    machine = machine or Machine((folder or Path()).absolute(), radio=radio)
    known = CHECKS if machine.radio is None else {**CHECKS, **RADIO_CHECKS}
    names = list(known) if only is None else list(only)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ScenarioError(f"check {unknown[0]!r} is not known; known are {', '.join(known)}")
    results = []
    for done, name in enumerate(names):
        if on_progress:
            on_progress(name, done / len(names))
        results.append(_within(name, machine, limit_s))
    if on_progress and names:
        on_progress(names[-1], 1.0)
    return results


def _within(name: str, machine: Machine, limit_s: float) -> Check:
    """Make one check in a thread that can be left behind: a dead network drive cannot be interrupted."""
    results: list[Check] = []

    def run() -> None:
        try:
            results.append((CHECKS.get(name) or RADIO_CHECKS[name])(machine))
        except Exception as error:
            found = f"the check itself broke: {type(error).__name__}: {error}"
            results.append(Check(name, "failure", found, "report this as a defect of semair"))

    thread = threading.Thread(target=run, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    remedy = f"see whether the drive of {machine.folder} answers and whether the machine is busy, then try again"
    return Check(name, "failure", f"no answer within {limit_s:g} s", remedy)


def run_python(
    code: str, limit_s: float = ANSWER_LIMIT_S, python: str = sys.executable, mark: str | None = None
) -> Answer:
    """Run Python code in a process of its own, for imports that may abort or hang.

    Args:
        code: prints JSON as its last line.
        limit_s: time after which the process is killed.
        python: the interpreter.
        mark: with which the line begins instead of being the last; then it counts however the process ends.
    """
    # -P: a folder named like a module must not stand in for it because the user happens to be beside it.
    command = [python, "-P", "-c", code]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return Answer(problem=f"no answer within {limit_s:g} s")
    except OSError as error:
        return Answer(problem=f"{python} cannot be started: {error.strerror}")
    if mark is not None:
        marked = [line.removeprefix(mark) for line in done.stdout.splitlines() if line.startswith(mark)]
        if marked:
            return Answer(json.loads(marked[-1]))
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return Answer(problem=f"{lines[-1].strip()} ({how})" if lines else how)
    try:
        return Answer(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return Answer(problem=f"unexpected answer {done.stdout[-200:]!r}")


def write_rate_bytes_s(folder: Path, duration_s: float = 1.0) -> float:
    """Measure the rate at which a folder takes data for good, as a recording does: in pieces, each synchronised.

    Args:
        folder: gets a temporary file without a name, which vanishes with the process.
        duration_s: of the measurement; it ends earlier where a quarter of the free space is used.

    Raises:
        OSError: the folder is missing, cannot be written, or is full.
    """
    # Noise, since some file systems compress.
    block = os.urandom(_BLOCK_BYTES)
    room = min(_MEASURED_BYTES, free_bytes(folder) // 4)
    written = 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begin = time.perf_counter()
        elapsed = 0.0
        while written == 0 or (elapsed < duration_s and written + _BLOCK_BYTES <= room):
            write_all(file.fileno(), block)
            os.fdatasync(file.fileno())
            written += _BLOCK_BYTES
            elapsed = time.perf_counter() - begin
    return written / elapsed


def probe_numba_cache() -> dict[str, Any]:
    """Compile a function of this package, and load it again from Numba's cache.

    Returns:
        path: folder of the cache, None without; hits: functions loaded from it.
    """
    numba = import_module("numba")
    # The cache belongs to the file that defines the function, so the probe must be defined in this package.
    for _ in range(2):
        compiled = numba.njit(cache=True)(_twice)
        compiled(1)
    if not hasattr(compiled, "stats"):
        return {"path": None, "hits": 0}
    return {"path": compiled.stats.cache_path, "hits": sum(compiled.stats.cache_hits.values())}


def _twice(x: int) -> int:
    return 2 * x


@check("python")
def _python(machine: Machine) -> Verdict:
    """Python's version, and whether it sees the distribution's GNU Radio."""
    facts = machine.python()
    found = f"Python {'.'.join(map(str, facts.version))} in {facts.prefix}"
    if facts.version < _PYTHON:
        return Verdict("failure", found, f"semair needs Python {_numbers(_PYTHON)} or later; {_ENVIRONMENT}")
    if facts.is_venv and not facts.sees_system:
        found += ", which does not see the system's packages"
        if not machine.has_module("gnuradio"):
            return Verdict("failure", found, f"GNU Radio comes from the distribution; {_ENVIRONMENT}")
    return Verdict("ok", found)


@check("numpy")
def _numpy(machine: Machine) -> Verdict:
    """NumPy's major version against the one that GNU Radio was compiled for."""
    version = machine.version("numpy")
    if version is None:
        return Verdict("failure", "no NumPy", "run `pip install 'numpy<2'`")
    if _leading_numbers(version) < (2,):
        return Verdict("ok", f"NumPy {version}")
    if machine.has_module("gnuradio"):
        found = f"NumPy {version} beside GNU Radio, whose blocks need NumPy below 2"
        return Verdict("failure", found, "run `pip install 'numpy<2'` in this environment")
    found = f"NumPy {version}; models and captures run with it, GNU Radio blocks do not"
    return Verdict("warning", found, "for radio work run `pip install 'numpy<2'`")


@check("gnuradio")
def _gnuradio(machine: Machine) -> Verdict:
    """Whether GNU Radio can be imported, and is new enough."""
    if not machine.has_module("gnuradio"):
        return Verdict("failure", "no GNU Radio", f"run `apt install gnuradio`; then {_ENVIRONMENT}")
    answer = machine.ask(_GNURADIO_CODE)
    if answer.problem:
        remedy = (
            f"see the checks python and numpy; if both are well, `apt install --reinstall gnuradio`; {_ENVIRONMENT}"
        )
        return Verdict("failure", f"GNU Radio cannot be imported: {answer.problem}", remedy)
    if _leading_numbers(str(answer.value)) < _GNURADIO:
        remedy = f"semair needs GNU Radio {_numbers(_GNURADIO)} or later, as in Debian 12; upgrade the distribution"
        return Verdict("failure", f"GNU Radio {answer.value}", remedy)
    return Verdict("ok", f"GNU Radio {answer.value}")


@check("grc")
def _grc(machine: Machine) -> Verdict:
    """GNU Radio Companion, its compiler, and the GTK that its window needs."""
    places = {name: machine.program(name) for name in ("gnuradio-companion", "grcc")}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        remedy = "run `apt install gnuradio`, and see that /usr/bin is on PATH; only drawing flowgraphs needs it"
        return Verdict("warning", f"{' and '.join(missing)} not on PATH", remedy)
    # The distribution's programs are run by its own Python, not by that of an environment.
    gtk = machine.ask(_GTK_CODE, _SYSTEM_PYTHON)
    if gtk.problem:
        found = f"GNU Radio Companion cannot open a window, GTK 3 for {_SYSTEM_PYTHON} is missing: {gtk.problem}"
        remedy = "run `apt install python3-gi gir1.2-gtk-3.0`; only drawing flowgraphs needs it"
        return Verdict("warning", found, remedy)
    return Verdict("ok", f"{', '.join(str(place) for place in places.values())}, with GTK 3")


@check("grc-blocks")
def _grc_blocks(machine: Machine) -> Verdict:
    """Our block descriptions for GNU Radio Companion."""
    folder = machine.grc_folder()
    reinstall = "reinstall semair: `pip install --force-reinstall --no-deps .` in its folder"
    files = sorted(folder.glob("*.yml")) if folder.is_dir() else []
    if not files:
        return Verdict("failure", f"no block descriptions in {folder}", reinstall)
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        return Verdict("warning", "no PyYAML, which GNU Radio Companion reads with", "run `apt install python3-yaml`")
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "id" not in content or "file_format" not in content:
                raise ValueError("it has no id or no file_format")
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            return Verdict("failure", f"{file} cannot be read: {reason}", reinstall)
    return Verdict("ok", f"{len(files)} block descriptions in {folder}; start with `semair grc`")


@check("dependencies")
def _dependencies(machine: Machine) -> Verdict:
    """Versions of the Python libraries against what semair asks for."""
    try:
        requirements: Any = import_module("packaging.requirements")
    except ImportError:
        return Verdict("failure", "no packaging, so versions cannot be compared", "run `pip install packaging`")
    texts = machine.requirements()
    if texts is None:
        return Verdict(
            "failure", "semair is not installed here", "run `make setup`, or `pip install -e .` in its folder"
        )
    wrong, right = [], []
    for requirement in map(requirements.Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = machine.version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
        else:
            right.append(f"{requirement.name} {version}")
    if wrong:
        return Verdict("failure", "; ".join(wrong), "run `make setup`, or `pip install -e .` in the folder of semair")
    return Verdict("ok", ", ".join(right))


@check("libiio")
def _libiio(machine: Machine) -> Verdict:
    """Whether libiio and its Python binding are of the same generation."""
    binding, library = machine.version("pylibiio"), machine.shared_library("iio")
    have = f"{library or 'no libiio'}, {f'pylibiio {binding}' if binding else 'no pylibiio'}"
    if binding is None:
        return Verdict("ok", f"{have}; only the Python tools of ADALM-Pluto and other AD936x need pylibiio")
    if library is None:
        return Verdict("failure", f"{have}: the binding cannot be imported", "run `apt install libiio0`")
    soname = re.search(r"\.so\.(\d+)", library)
    major = _leading_numbers(binding)[0]
    if soname is None or int(soname[1]) == major:
        answer = machine.ask(_IIO_CODE)
        if answer.problem:
            remedy = "run `pip install --force-reinstall 'pylibiio>=0.25,<1'` and `apt install --reinstall libiio0`"
            return Verdict("failure", f"{have}: the binding cannot be imported: {answer.problem}", remedy)
        return Verdict("ok", f"libiio {_numbers(tuple(answer.value))} as {have}")
    wanted = f">={soname[1]},<{int(soname[1]) + 1}"
    return Verdict("failure", f"{have}: the majors differ", f"run `pip install 'pylibiio{wanted}'`")


@check("uhd")
def _uhd(machine: Machine) -> Verdict:
    """UHD in GNU Radio, and its Python binding of its own."""
    inside = machine.ask(_UHD_CODE) if machine.has_module("gnuradio") else Answer(problem="no GNU Radio")
    own = machine.has_module("uhd")
    if inside.problem and own:
        found = f"a Python module uhd, but gnuradio.uhd cannot be imported: {inside.problem}"
        return Verdict("warning", found, "for USRPs run `apt install --reinstall gnuradio`, and see the check gnuradio")
    if inside.problem:
        return Verdict("ok", "no gnuradio.uhd; only USRPs need it")
    found = f"gnuradio.uhd {inside.value}"
    if own:
        found += "; the Python module uhd is there too, but the two cannot be imported in one process"
    return Verdict("ok", found)


@check("uhd-images")
def _uhd_images(machine: Machine) -> Verdict:
    """Firmware and FPGA images, which most USRPs load at start."""
    if not machine.has_module("gnuradio") or machine.ask(_UHD_CODE).problem:
        return Verdict("ok", "not looked for, since gnuradio.uhd is not there")
    chosen = machine.environment("UHD_IMAGES_DIR")
    if chosen:
        places = [Path(part) for part in chosen.split(os.pathsep) if part]
    else:
        places = [place for pattern in _UHD_IMAGES for place in machine.paths(pattern)]
    for place in places:
        images = sum(1 for path in place.rglob("*") if path.suffix in _IMAGE_SUFFIXES)
        if images:
            return Verdict("ok", f"{images} images in {place}")
    where = ", ".join(map(str, places)) or "the usual folders"
    remedy = "for USRPs run `apt install uhd-host` and `uhd_images_downloader`; without a USRP nothing is missing"
    return Verdict("warning", f"no UHD images in {where}", remedy)


@check("soapy")
def _soapy(machine: Machine) -> Verdict:
    """SoapySDR's Python module, which finds its devices, and the drivers that it loads."""
    answer = machine.ask(_SOAPY_CODE)
    remedy = "for radios of SoapySDR run `apt install python3-soapysdr` and a driver, e.g. soapysdr-module-lms7"
    if answer.problem:
        return Verdict("ok", f"no Python module SoapySDR, so `semair radios` finds none of its devices; {remedy}")
    drivers = ", ".join(Path(path).stem for path in answer.value)
    return Verdict("ok", f"SoapySDR with {drivers}" if drivers else f"SoapySDR without any driver; {remedy}")


@check("zmq")
def _zmq(machine: Machine) -> Verdict:
    """ZeroMQ, for radios on other hosts."""
    answer = machine.ask(_ZMQ_CODE)
    if answer.problem:
        found = f"ZeroMQ cannot be imported: {answer.problem}"
        return Verdict("warning", found, "for radios on other hosts run `pip install 'pyzmq>=24'`")
    return Verdict("ok", f"pyzmq {answer.value[0]}, libzmq {answer.value[1]}")


@check("usb-buffers")
def _usb_buffers(machine: Machine) -> Verdict:
    """Memory for transfers over USB. What is enough depends on the radio, so this only informs."""
    value = machine.text(_USBFS)
    if value is None or not value.isdigit():
        return Verdict("ok", "no USB here, or its buffers cannot be read")
    found = f"usbfs_memory_mb = {value}"
    if 0 < int(value) < USB_BUFFER_MB:
        found += f"; for a radio on USB 3 at high rates run `echo {USB_BUFFER_MB} > /{_USBFS}` as root"
    return Verdict("ok", found)


@check("network-buffers")
def _network_buffers(machine: Machine) -> Verdict:
    """Socket buffers, for USRPs on Ethernet. What is enough depends on the radio, so this only informs."""
    parts, low = [], []
    for name in ("rmem_max", "wmem_max"):
        value = machine.text(f"proc/sys/net/core/{name}")
        if value is None or not value.isdigit():
            return Verdict("ok", f"net.core.{name} cannot be read here")
        parts.append(f"net.core.{name} = {value} bytes")
        if int(value) < UHD_BUFFER_BYTES:
            low.append(f"`sysctl -w net.core.{name}={UHD_BUFFER_BYTES}`")
    found = ", ".join(parts)
    if low:
        found += f"; for a USRP on 10 Gbit/s Ethernet set {' and '.join(low)}"
    return Verdict("ok", found)


@check("cores")
def _cores(machine: Machine) -> Verdict:
    """Processor cores, which the threads of a flowgraph share."""
    cores = float(machine.cores())
    found = f"{machine.cores()} cores"
    quota, _, period = (machine.text("sys/fs/cgroup/cpu.max") or "max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) and int(quota) / int(period) < cores:
        cores = int(quota) / int(period)
        found += f", of which this container may use {cores:g}"
    if cores < 2:
        return Verdict("warning", found, "use 2 or more: every block of a flowgraph is a thread")
    return Verdict("ok", found)


@check("governor")
def _governor(machine: Machine) -> Verdict:
    """CPU frequency governor: one that saves power reacts too late for a stream."""
    files = machine.paths("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    governors = sorted({text for file in files if (text := machine.text(str(file.relative_to(machine.root))))})
    if not governors:
        return Verdict("ok", "the frequency is not set from here (a virtual machine, or no frequency scaling)")
    found = f"governor {', '.join(governors)}"
    if governors != ["performance"]:
        return Verdict("warning", found, "for radio work run `cpupower frequency-set -g performance` as root")
    return Verdict("ok", found)


@check("disk-space")
def _disk_space(machine: Machine) -> Verdict:
    """Room for recordings."""
    free = machine.free_bytes()
    minutes = free / NEED_BYTES_S / 60
    found = f"{free / 1e9:.1f} GB free for {machine.folder}: {minutes:.1f} min of 4 x 10 MS/s"
    remedy = "free space, or record into a folder on another disk"
    if free < 1e9:
        return Verdict("failure", found, remedy)
    if minutes < 1:
        return Verdict("warning", found, remedy)
    return Verdict("ok", found)


@check("disk-rate")
def _disk_rate(machine: Machine) -> Verdict:
    """Sustained write rate against the largest recording aimed at."""
    if not machine.folder.is_dir():
        remedy = f"run `mkdir -p {machine.folder}`, or name the folder in which recordings would go"
        return Verdict("warning", f"{machine.folder} is not there, so its rate was not measured", remedy)
    try:
        rate = machine.write_rate_bytes_s()
    except OSError as error:
        remedy = "choose a folder that can be written, on a disk with room"
        return Verdict("failure", f"{machine.folder} cannot be written: {error.strerror or error}", remedy)
    found = f"{rate / 1e6:.0f} MB/s into {machine.folder}; 4 x 10 MS/s need {NEED_BYTES_S / 1e6:.0f} MB/s"
    if rate < NEED_BYTES_S:
        msps = rate / (NEED_BYTES_S / 40)
        return Verdict("warning", found, f"record at most {msps:.1f} MS/s over all antennas, or use a faster disk")
    return Verdict("ok", found)


@check("leftovers")
def _leftovers(machine: Machine) -> Verdict:
    """What interrupted recordings left behind."""
    try:
        from ..captures.journal import leftovers
        from ..captures.writer import is_locked
    except ImportError as error:
        return Verdict("failure", f"recordings cannot be looked at: {error}", "see the check dependencies")
    found: list[Any] = []
    for folder in _folders(machine.folder):
        found += [paths for paths in leftovers(folder) if not is_locked(paths.journal)]
    if not found:
        return Verdict("ok", f"no interrupted recordings in {machine.folder}")
    names = ", ".join(str(paths.folder / paths.name) for paths in found[:5]) + (", ..." if len(found) > 5 else "")
    commands = " and ".join(f"`semair capture recover {folder}`" for folder in sorted({p.folder for p in found})[:5])
    remedy = f"run {commands}; once content with the result, delete the hidden files .NAME.* beside it"
    return Verdict("warning", f"{len(found)} interrupted: {names}", remedy)


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and those in it, hidden ones left out; bounded in depth and number."""
    for place, names, _ in itertools.islice(os.walk(folder), _SCANNED_FOLDERS):
        yield Path(place)
        depth = len(Path(place).relative_to(folder).parts)
        names[:] = sorted(n for n in names if not n.startswith(".")) if depth < _SCANNED_DEPTH else []


@check("numba-cache")
def _numba_cache(machine: Machine) -> Verdict:
    """Whether compiled functions are kept: without, every start compiles for up to a minute."""
    answer = machine.ask(
        f"import json; from {__name__} import probe_numba_cache; print(json.dumps(probe_numba_cache()))"
    )
    remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
    if answer.problem:
        # Numba refuses to define a cached function where no place for its cache can be written.
        remedy = remedy if "locator" in answer.problem else "see the check dependencies"
        return Verdict("failure", f"Numba cannot compile and cache: {answer.problem}", remedy)
    path, hits = answer.value["path"], answer.value["hits"]
    if path is None:
        return Verdict("warning", "Numba does not compile: NUMBA_DISABLE_JIT is set", "unset NUMBA_DISABLE_JIT")
    if not hits:
        return Verdict("warning", f"Numba's cache in {path} does not keep anything: every start compiles", remedy)
    elsewhere = "" if Path(path).is_relative_to(_PACKAGE) else ", outside the installation"
    return Verdict("ok", f"compiled functions are kept in {path}{elsewhere}")


@radio_check("radio")
def _radio(machine: Machine) -> Verdict:
    """Whether the radio can be opened and set."""
    name, answer = _radio_name(machine), machine.listen()
    if answer.problem:
        remedy = "see `semair radios`, the checks above, and whether another program has it"
        return Verdict("failure", f"{name} cannot be used: {answer.problem}", remedy)
    can, facts = answer.value["radio"]["capabilities"], answer.value["radio"]["facts"]
    serials = ", ".join(filter(None, map(str, facts.get("serials", ()))))
    found = f"{name}: {facts.get('driver', 'driver unknown')}{f', serial {serials}' if serials else ''}"
    time_ = "with hardware time" if can["has_hw_time"] else "without hardware time"
    return Verdict("ok", f"{found}, {can['n_rx']} receive, {can['n_tx']} transmit, {time_}")


@radio_check("radio-locks")
def _radio_locks(machine: Machine) -> Verdict:
    """Whether its references and oscillators are locked."""
    answer = machine.listen()
    locks: dict[str, bool] = (answer.value or {}).get("locks", {})
    unlocked = [name for name, locked in locks.items() if not locked]
    if unlocked:
        remedy = "see whether the reference is connected and strong enough, and radio.clock_source names it"
        return Verdict("failure", f"not locked: {', '.join(unlocked)}", remedy)
    if not locks:
        return Verdict("ok", "not known" if answer.problem else "this radio does not tell")
    return Verdict("ok", f"locked: {', '.join(locks)}")


@radio_check("radio-rate")
def _radio_rate(machine: Machine) -> Verdict:
    """The highest sample rate at which nothing is lost."""
    answer = machine.listen()
    if answer.problem:
        return Verdict("ok", "not measured, since the radio cannot be used")
    tried = answer.value["rates"]
    found = "; ".join(_trial_text(trial) for trial in tried)
    if answer.value["waits"]:
        return Verdict("ok", f"{found}; this radio waits for whoever takes its samples")
    lossy = [trial for trial in tried if not trial["clean"] and trial["received"]]
    if not any(trial["clean"] for trial in tried):
        remedy = "see the checks governor, cores, network-buffers and usb-buffers; try lower rates with --rate"
        return Verdict("failure", found, remedy)
    if lossy:
        remedy = (
            "stay below that rate, or mend what the checks governor, cores, network-buffers and usb-buffers tell; "
            "for USRPs on Ethernet add recv_frame_size=8000,send_frame_size=8000 to the address"
        )
        return Verdict("warning", found, remedy)
    return Verdict("ok", found)


def _trial_text(trial: dict[str, Any]) -> str:
    rate = f"{trial['rate_hz'] / 1e6:g} MS/s"
    if trial["problem"]:
        return f"{rate}: {trial['problem']}"
    reached = trial["received"] / trial["seconds"] / 1e6
    counted = ", ".join(f"{name} {n}" for name, n in trial["counts"].items() if isinstance(n, int) and n)
    text = f"{rate}: {trial['lost']} samples lost in {trial['seconds']:.1f} s, {reached:.4g} MS/s came"
    return f"{text} ({counted})" if counted else text


def _radio_name(machine: Machine) -> str:
    assert machine.radio is not None
    return f"{machine.radio.kind} {machine.radio.address}".strip()


def _listen(radio: RadioRequest) -> Answer:
    """Listen to a radio in a process of its own."""
    code = (
        "import sys; from semair.hardware import trial; "
        f"sys.argv[1:] = [{json.dumps(json.dumps(vars(radio)))}]; trial._main()"
    )
    answer = run_python(code.replace("semair.hardware", __package__ or "semair.hardware"), _TRIAL_S, mark="TRIAL ")
    if isinstance(answer.value, dict) and "problem" in answer.value:
        return Answer(problem=str(answer.value["problem"]))
    return answer


def _leading_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, whatever stands around them."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _numbers(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
