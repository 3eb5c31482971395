"""Each check on machines where it is well and where it is not, and on the one at hand."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from semair.captures.writer import RecordingWriter
from semair.errors import ScenarioError
from semair.hardware import doctor
from semair.hardware.doctor import (
    CHECKS,
    RADIO_CHECKS,
    Answer,
    Check,
    Machine,
    PythonFacts,
    RadioRequest,
    examine,
    run_python,
)

VENV = PythonFacts((3, 11, 2), "/lab/.venv", True, True)


class OtherMachine(Machine):
    """A machine in good order, apart from what is given."""

    def __init__(self, root: Path, **facts) -> None:
        super().__init__(facts.pop("folder", root), root)
        self.facts = {
            "python": VENV,
            "modules": {"gnuradio"},
            "versions": {"numpy": "1.26.4"},
            "requirements": ["numpy>=1.24"],
            "answers": {
                "gr.version": Answer("3.10.5.1"),
                "uhd": Answer("4.3.0.0"),
                "probe": Answer(),
                "import json, iio": Answer([0, 24]),
                "SoapySDR": Answer(["/usr/lib/SoapySDR/modules0.8/libuhdSupport.so"]),
                "zmq": Answer(["24.0.1", "4.3.4"]),
                "Gtk": Answer("3.42.2"),
            },
            "programs": {"gnuradio-companion": "/usr/bin/gnuradio-companion", "grcc": "/usr/bin/grcc"},
            "library": "libiio.so.0",
            "environment": {},
            "cores": 8,
            "grc_folder": root / "grc",
            "free": 10**12,
            "rate": 1e9,
            "trial": Answer(problem="no radio is named"),
        } | facts
        self.radio = self.facts.get("radio")

    def listen(self):
        return self.facts["trial"]

    def python(self):
        return self.facts["python"]

    def has_module(self, name):
        return name in self.facts["modules"]

    def version(self, distribution):
        return self.facts["versions"].get(distribution)

    def requirements(self):
        return self.facts["requirements"]

    def ask(self, code, python=sys.executable):
        assert python == ("/usr/bin/python3" if "Gtk" in code else sys.executable)
        return next(answer for part, answer in self.facts["answers"].items() if part in code)

    def program(self, name):
        return self.facts["programs"].get(name)

    def shared_library(self, name):
        assert name == "iio"
        return self.facts["library"]

    def environment(self, name):
        return self.facts["environment"].get(name)

    def cores(self):
        return self.facts["cores"]

    def grc_folder(self):
        return self.facts["grc_folder"]

    def free_bytes(self):
        return self.facts["free"]

    def write_rate_bytes_s(self):
        if isinstance(self.facts["rate"], OSError):
            raise self.facts["rate"]
        return self.facts["rate"]


@pytest.fixture
def result(tmp_path):
    """Give the result of one check on a machine with the given facts."""

    def check(name: str, **facts) -> Check:
        (found,) = examine(only=[name], machine=OtherMachine(tmp_path, **facts))
        assert found.name == name
        return found

    return check


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def expect(check: Check, status: str, *words: str) -> None:
    assert check.status == status, check
    for word in words:
        assert word in check.found + check.remedy, check


# The whole examination


def test_this_machine_is_examined_without_failures_and_leaves_nothing(tmp_path):
    steps: list[tuple[str, float]] = []
    checks = examine(tmp_path, on_progress=lambda *step: steps.append(step))
    assert [check.name for check in checks] == list(CHECKS)
    # The tests themselves could not run with any of these failing.
    state = {check.name: check for check in checks}
    for name in ("python", "numpy", "dependencies", "disk-rate", "numba-cache"):
        assert state[name].status != "failure", state[name]
    assert list(tmp_path.iterdir()) == []
    assert [name for name, _ in steps] == [*CHECKS, list(CHECKS)[-1]]
    shares = [share for _, share in steps]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_importing_the_doctor_imports_nothing_that_it_examines():
    code = (
        "import json, sys, semair.hardware.doctor; "
        "print(json.dumps([m for m in ('numpy', 'numba', 'gnuradio', 'pmt', 'sigmf', 'yaml') if m in sys.modules]))"
    )
    assert run_python(code) == Answer([])


def test_only_the_checks_asked_for_are_made_in_that_order(tmp_path):
    checks = examine(only=["numpy", "python"], machine=OtherMachine(tmp_path))
    assert [check.name for check in checks] == ["numpy", "python"]
    assert examine(only=[], machine=OtherMachine(tmp_path), on_progress=pytest.fail) == []


def test_an_unknown_check_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ScenarioError, match=r"'pythno' is not known; known are python, numpy"):
        examine(tmp_path, only=["pythno"])


def test_a_new_function_is_a_new_check_and_names_are_unique(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "CHECKS", dict(CHECKS))

    @doctor.check("lamp")
    def lamp(machine):
        return doctor.Verdict("warning", f"no lamp beside {machine.folder}", "buy one")

    assert examine(tmp_path, only=["lamp"]) == [Check("lamp", "warning", f"no lamp beside {tmp_path}", "buy one")]
    with pytest.raises(ValueError, match="lamp"):
        doctor.check("lamp")


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(tmp_path):
    class Broken(OtherMachine):
        def version(self, distribution):
            raise RuntimeError("no versions today")

    numpy, python = examine(only=["numpy", "python"], machine=Broken(tmp_path))
    expect(numpy, "failure", "RuntimeError: no versions today")
    assert python.status == "ok"


def test_a_check_that_hangs_is_given_up(tmp_path):
    wake = threading.Event()

    class Hanging(OtherMachine):
        def free_bytes(self):
            wake.wait(60)
            return 0

    space, python = examine(only=["disk-space", "python"], machine=Hanging(tmp_path), limit_s=2)
    wake.set()
    expect(space, "failure", "no answer within 2 s", str(tmp_path))
    assert python.status == "ok"


@pytest.mark.parametrize(("status", "remedy"), [("ok", "do something"), ("warning", ""), ("failure", "")])
def test_a_remedy_belongs_to_what_is_not_ok(status, remedy):
    with pytest.raises(ValueError, match="remedy"):
        Check("lamp", status, "found", remedy)


# Asking other processes


def test_answers_of_other_processes():
    assert run_python("print('noise'); print('[1, null]')") == Answer([1, None])
    assert "ZeroDivisionError" in run_python("1 / 0").problem
    assert "signal 6" in run_python("import os; os.abort()").problem
    assert "exit code 3" in run_python("import sys; sys.exit(3)").problem
    assert "unexpected" in run_python("print('no JSON')").problem
    assert "unexpected" in run_python("pass").problem


def test_a_process_that_hangs_is_killed():
    begin = time.monotonic()
    answer = run_python("import time; time.sleep(60)", limit_s=0.2)
    assert answer == Answer(problem="no answer within 0.2 s")
    assert time.monotonic() - begin < 50


def test_a_folder_beside_the_user_does_not_stand_in_for_a_module(tmp_path, monkeypatch):
    write(tmp_path / "colorsys.py", "raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert run_python("import colorsys; print(1)") == Answer(1)


def test_the_same_question_starts_one_process(tmp_path):
    machine = Machine(tmp_path)
    code = "import json, os; print(json.dumps(os.getpid()))"
    assert machine.ask(code) == machine.ask(code)


# Python and its libraries


def test_python(result):
    expect(result("python"), "ok", "3.11.2", "/lab/.venv")
    expect(result("python", python=PythonFacts((3, 10, 9), "/usr", False, True)), "failure", "3.10.9", "3.11")
    blind = PythonFacts((3, 11, 2), "/lab/.venv", True, False)
    expect(result("python", python=blind, modules=set()), "failure", "--system-site-packages")
    # GNU Radio may be inside the environment itself, as conda installs it.
    expect(result("python", python=blind), "ok")


def test_the_environment_says_whether_it_sees_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for text, sees in [
        ("include-system-site-packages = true\n", True),
        ("include-system-site-packages = false", False),
    ]:
        write(tmp_path / "pyvenv.cfg", f"home = /usr/bin\n{text}")
        facts = Machine(tmp_path).python()
        assert (facts.is_venv, facts.sees_system) == (True, sees)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert Machine(tmp_path).python().sees_system


def test_numpy(result):
    expect(result("numpy"), "ok", "1.26.4")
    two = {"numpy": "2.1.0rc1"}
    expect(result("numpy", versions=two), "failure", "2.1.0rc1", "numpy<2")
    expect(result("numpy", versions=two, modules=set()), "warning", "numpy<2")
    expect(result("numpy", versions={}), "failure", "no NumPy")


def test_gnuradio(result):
    expect(result("gnuradio"), "ok", "3.10.5.1")
    expect(result("gnuradio", modules=set()), "failure", "apt install gnuradio")
    expect(result("gnuradio", answers={"gr.version": Answer("v3.9.8.0")}), "failure", "v3.9.8.0", "3.10")
    expect(result("gnuradio", answers={"gr.version": Answer("v3.11.0.0git-54-g1f")}), "ok")
    aborted = Answer(problem="killed by signal 6")
    expect(result("gnuradio", answers={"gr.version": aborted}), "failure", "signal 6", "numpy")


def test_gnuradio_that_cannot_be_imported_is_told_not_suffered(tmp_path, monkeypatch):
    write(tmp_path / "gnuradio" / "__init__.py", "")
    write(tmp_path / "gnuradio" / "gr.py", "import os; os.abort()")
    write(tmp_path / "pmt.py", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (check,) = examine(tmp_path, only=["gnuradio"])
    expect(check, "failure", "signal 6")


def test_dependencies(result):
    expect(result("dependencies"), "ok", "numpy 1.26.4")
    wanted = ["numpy>=1.24", "sigmf<2,>=1.7", 'pytest>=8; extra == "dev"', 'pywin32; sys_platform == "win32"']
    expect(result("dependencies", requirements=wanted), "failure", "sigmf is missing", "pip install")
    versions = {"numpy": "1.23.5", "sigmf": "2.0.1"}
    wrong = result("dependencies", requirements=wanted, versions=versions)
    expect(wrong, "failure", "numpy 1.23.5 does not fit >=1.24", "sigmf 2.0.1")
    assert "pytest" not in wrong.found
    expect(result("dependencies", requirements=wanted, versions={"numpy": "1.26", "sigmf": "1.8"}), "ok")
    expect(result("dependencies", requirements=None), "failure", "not installed")


@pytest.mark.parametrize(
    ("output", "status", "words"),
    [
        (Answer({"path": str(Path(doctor.__file__).parent / "__pycache__"), "hits": 1}), "ok", ["__pycache__"]),
        (Answer({"path": "/home/x/.cache/numba", "hits": 1}), "ok", ["outside the installation"]),
        (Answer({"path": "/usr/lib/x", "hits": 0}), "warning", ["NUMBA_CACHE_DIR", "every start compiles"]),
        (Answer({"path": None, "hits": 0}), "warning", ["NUMBA_DISABLE_JIT"]),
        (Answer(problem="ModuleNotFoundError: No module named 'numba'"), "failure", ["see the check dep", "'numba'"]),
    ],
)
def test_numba_cache(result, output, status, words):
    expect(result("numba-cache", answers={"probe": output}), status, *words)


def test_numba_really_caches_where_it_is_told_to_or_says_that_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    (kept,) = examine(tmp_path, only=["numba-cache"])
    expect(kept, "ok", str(tmp_path / "cache"), "outside the installation")
    assert list((tmp_path / "cache").rglob("*.nbc"))
    # The only place allowed is inside an archive, where this package is not: as on a machine without any.
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    (nowhere,) = examine(tmp_path, only=["numba-cache"])
    expect(nowhere, "failure", "cannot cache", "NUMBA_CACHE_DIR")


# GNU Radio Companion


def test_grc(result):
    expect(result("grc"), "ok", "/usr/bin/grcc", "GTK 3")
    missing = result("grc", programs={"grcc": "/usr/bin/grcc"})
    expect(missing, "warning", "gnuradio-companion not on PATH", "apt install gnuradio")
    assert "grcc" not in missing.found


def test_grc_needs_the_gtk_of_the_systems_python(result, tmp_path, monkeypatch):
    unbound = {"Gtk": Answer(problem="ValueError: Namespace Gtk not available (exit code 1)")}
    expect(result("grc", answers=unbound), "warning", "Namespace Gtk not available", "apt install", "gir1.2-gtk-3.0")
    if not Path("/usr/bin/python3").exists():
        pytest.skip("this system has no Python of its own")

    def answer_with(bindings: str) -> Check:
        write(tmp_path / "bindings" / "gi.py", bindings)
        machine = Machine(tmp_path)
        monkeypatch.setattr(machine, "program", lambda name: f"/usr/bin/{name}")
        return examine(only=["grc"], machine=machine)[0]

    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bindings"))
    unknown = answer_with("def require_version(name, version): raise ValueError(f'Namespace {name} not available')")
    expect(unknown, "warning", "Namespace Gtk not available", "gir1.2-gtk-3.0")
    known = answer_with("__version__ = '3'\ndef require_version(*wanted): assert wanted == ('Gtk', '3.0')")
    expect(known, "ok", "GTK 3")


def test_grc_blocks(result, tmp_path):
    expect(result("grc-blocks"), "failure", "no block descriptions")
    write(tmp_path / "grc" / "a.block.yml", "id: semair_a\nfile_format: 1\n")
    expect(result("grc-blocks"), "ok", "1 block description")
    for text in ("id: [", "- a list", "label: no id\nfile_format: 1"):
        write(tmp_path / "grc" / "b.block.yml", text)
        expect(result("grc-blocks"), "failure", "b.block.yml")
    (tmp_path / "grc" / "b.block.yml").write_bytes(b"id: \xff\xfe")
    expect(result("grc-blocks"), "failure", "b.block.yml")


# Radios


@pytest.mark.parametrize(
    ("binding", "library", "status", "words"),
    [
        ("0.25", "libiio.so.0", "ok", ["0.25", "libiio.so.0"]),
        ("1.0", "libiio.so.0", "failure", ["majors differ", "pylibiio>=0,<1"]),
        ("0.25", "libiio.so.1", "failure", ["pylibiio>=1,<2"]),
        ("1.0", None, "failure", ["no libiio", "apt install libiio0"]),
        (None, "libiio.so.0", "ok", ["no pylibiio"]),
        (None, None, "ok", ["no libiio"]),
    ],
)
def test_libiio(result, binding, library, status, words):
    versions = {} if binding is None else {"pylibiio": binding}
    expect(result("libiio", versions=versions, library=library), status, *words)


def test_libiio_is_really_imported(result):
    versions = {"pylibiio": "0.25"}
    expect(result("libiio", versions=versions), "ok", "libiio 0.24 as libiio.so.0, pylibiio 0.25")
    broken = {"import json, iio": Answer(problem="AttributeError: undefined symbol: iio_get_backends_count")}
    expect(result("libiio", versions=versions, answers=broken), "failure", "undefined symbol", "pylibiio>=0.25,<1")


def test_soapy_and_zmq(result):
    expect(result("soapy"), "ok", "SoapySDR with libuhdSupport")
    expect(result("soapy", answers={"SoapySDR": Answer([])}), "ok", "without any driver", "apt install")
    missing = Answer(problem="ModuleNotFoundError: No module named 'SoapySDR'")
    expect(result("soapy", answers={"SoapySDR": missing}), "ok", "finds none of its devices", "python3-soapysdr")
    expect(result("zmq"), "ok", "pyzmq 24.0.1, libzmq 4.3.4")
    expect(result("zmq", answers={"zmq": missing}), "warning", "pip install 'pyzmq>=24'")


def test_usb_buffers_only_inform(result, tmp_path):
    expect(result("usb-buffers"), "ok", "no USB here")
    write(tmp_path / "sys/module/usbcore/parameters/usbfs_memory_mb", "16\n")
    expect(result("usb-buffers"), "ok", "usbfs_memory_mb = 16", "echo 1000 > /sys/module/usbcore")
    # 0 is without a limit.
    for enough in ("0", "1000"):
        write(tmp_path / "sys/module/usbcore/parameters/usbfs_memory_mb", enough)
        assert result("usb-buffers").found == f"usbfs_memory_mb = {enough}"


# One radio


RADIO = RadioRequest("uhd", "addr=192.168.10.2")


def trial(rate_hz: float, lost: int = 0, share: float = 1.0, problem: str = "", **counts: int) -> dict:
    received = 0 if problem else int(share * 2 * rate_hz)
    clean = not problem and not lost and share > 0.98
    return {"rate_hz": rate_hz, "received": received, "lost": lost, "seconds": 2.0, "counts": counts,
            "problem": problem, "clean": clean}  # fmt: skip


def told(*rates: dict, locks: dict[str, bool] | None = None, waits: bool = False) -> Answer:
    radio = {
        "capabilities": {"n_rx": 2, "n_tx": 1, "has_hw_time": True},
        "facts": {"driver": "UHD 4.3", "serials": ["F00"]},
    }
    return Answer({"radio": radio, "locks": locks or {}, "rates": list(rates), "waits": waits})


def test_a_radio_in_order(result):
    well = told(trial(1e6), trial(5e6), locks={"reference 0": True})
    expect(result("radio", radio=RADIO, trial=well), "ok", "uhd addr=192.168.10.2: UHD 4.3, serial F00, 2 receive")
    expect(result("radio-locks", radio=RADIO, trial=well), "ok", "locked: reference 0")
    expect(result("radio-rate", radio=RADIO, trial=well), "ok", "5 MS/s: 0 samples lost in 2.0 s")


def test_a_radio_that_cannot_be_used(result):
    gone = Answer(problem="UHD cannot open 'addr=192.168.10.2'")
    expect(result("radio", radio=RADIO, trial=gone), "failure", "UHD cannot open", "semair radios")
    for name in ("radio-locks", "radio-rate"):
        assert result(name, radio=RADIO, trial=gone).status == "ok"


def test_a_radio_without_its_reference(result):
    loose = told(trial(1e6), locks={"reference 0": False, "rx oscillator 0": True})
    expect(result("radio-locks", radio=RADIO, trial=loose), "failure", "not locked: reference 0", "reference is conn")
    expect(result("radio-locks", radio=RADIO, trial=told(trial(1e6))), "ok", "does not tell")


def test_rates_that_are_too_high(result):
    lossy = told(trial(1e6), trial(5e6, lost=4711, overflow=3))
    expect(result("radio-rate", radio=RADIO, trial=lossy), "warning", "4711 samples lost", "overflow 3", "governor")
    slow = told(trial(1e6, share=0.5))
    expect(result("radio-rate", radio=RADIO, trial=slow), "failure", "0.5 MS/s came", "--rate")
    # A rate that the radio cannot have is no loss.
    odd = told(trial(1e6), trial(2.3e6, problem="sample_rate_hz=2300000 cannot be had"))
    expect(result("radio-rate", radio=RADIO, trial=odd), "ok", "cannot be had")
    emulated = told(trial(1e6, share=3), trial(20e6, share=0.3), waits=True)
    expect(result("radio-rate", radio=RADIO, trial=emulated), "ok", "waits for whoever takes its samples")


def test_a_radio_is_examined_only_where_one_is_named(tmp_path):
    assert "radio" not in CHECKS
    with pytest.raises(ScenarioError, match="'radio' is not known"):
        examine(only=["radio"], machine=OtherMachine(tmp_path))
    checks = examine(only=["radio-rate", "numpy"], machine=OtherMachine(tmp_path, radio=RADIO, trial=told(trial(1e6))))
    assert [check.name for check in checks] == ["radio-rate", "numpy"]
    with pytest.raises(ValueError, match="there is a check 'radio' already"):
        doctor.check("radio")


def test_this_machine_listens_to_its_own_loopback_radio(tmp_path):
    pytest.importorskip("gnuradio.blocks", reason="GNU Radio is not installed")
    request = RadioRequest("loopback", rates_hz=(1e5,), seconds=0.2, n_rx=2)
    checks = examine(tmp_path, list(RADIO_CHECKS), radio=request)
    assert [check.status for check in checks] == ["ok"] * 3, checks
    assert "2 receive, 1 transmit, with hardware time" in checks[0].found
    assert "0.1 MS/s: 0 samples lost" in checks[2].found


def test_a_radio_that_is_not_there_is_told(tmp_path):
    pytest.importorskip("gnuradio.blocks", reason="GNU Radio is not installed")
    (check,) = examine(tmp_path, ["radio"], radio=RadioRequest("nope"))
    expect(check, "failure", "radio 'nope' is not known; known are")


def test_uhd(result):
    expect(result("uhd"), "ok", "gnuradio.uhd 4.3.0.0")
    expect(result("uhd", modules={"gnuradio", "uhd"}), "ok", "cannot be imported in one process")
    missing = {"uhd": Answer(problem="ImportError: cannot import name 'uhd'")}
    expect(result("uhd", answers=missing), "ok", "only USRPs need it")
    expect(result("uhd", answers=missing, modules={"gnuradio", "uhd"}), "warning", "cannot import name")
    expect(result("uhd", modules=set()), "ok")


def test_uhd_images(result, tmp_path):
    expect(result("uhd-images"), "warning", "uhd_images_downloader")
    expect(result("uhd-images", modules=set()), "ok")
    place = tmp_path / "usr/share/uhd/4.3.0/images"
    write(place / "readme.txt", "")
    expect(result("uhd-images"), "warning", str(place))
    write(place / "usrp_b210_fpga.bin", "")
    expect(result("uhd-images"), "ok", f"1 images in {place}")
    # What the user chose is where UHD looks, and nowhere else.
    chosen = {"UHD_IMAGES_DIR": str(tmp_path / "chosen")}
    expect(result("uhd-images", environment=chosen), "warning", "chosen")
    write(tmp_path / "chosen" / "usrp_x310_fpga_HG.bit", "")
    expect(result("uhd-images", environment=chosen), "ok", "chosen")


def test_network_buffers_only_inform(result, tmp_path):
    expect(result("network-buffers"), "ok", "cannot be read")
    write(tmp_path / "proc/sys/net/core/rmem_max", "212992\n")
    write(tmp_path / "proc/sys/net/core/wmem_max", "50000000\n")
    low = result("network-buffers")
    expect(low, "ok", "rmem_max = 212992", "sysctl -w net.core.rmem_max=33554432")
    assert "sysctl -w net.core.wmem_max" not in low.found


# Processor and disk


def test_cores(result, tmp_path):
    expect(result("cores"), "ok", "8 cores")
    expect(result("cores", cores=1), "warning", "1 cores")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000\n")
    expect(result("cores"), "ok")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "150000 100000\n")
    expect(result("cores"), "warning", "may use 1.5")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "1600000 100000\n")
    expect(result("cores"), "ok", "8 cores")


def test_governor(result, tmp_path):
    expect(result("governor"), "ok", "virtual machine")
    places = [tmp_path / f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor" for n in range(2)]
    for place in places:
        write(place, "performance\n")
    expect(result("governor"), "ok", "performance")
    write(places[1], "powersave\n")
    expect(result("governor"), "warning", "performance, powersave", "cpupower")


def test_disk_space(result):
    expect(result("disk-space"), "ok", "1000.0 GB")
    # One minute of 160 MB/s is 9.6 GB.
    expect(result("disk-space", free=9_700_000_000), "ok", "1.0 min")
    expect(result("disk-space", free=9_500_000_000), "warning", "free space")
    expect(result("disk-space", free=999_999_999), "failure", "free space")


def test_free_space_is_told_for_folders_to_come(tmp_path):
    free, existing = Machine(tmp_path / "runs" / "one").free_bytes(), Machine(tmp_path).free_bytes()
    assert free == pytest.approx(existing, rel=0.05)
    assert not (tmp_path / "runs").exists()


def test_disk_rate(result, tmp_path):
    expect(result("disk-rate"), "ok", "1000 MB/s", "160 MB/s")
    expect(result("disk-rate", rate=159e6), "warning", "39.8 MS/s")
    expect(result("disk-rate", rate=OSError(28, "No space left on device")), "failure", "No space left on device")
    expect(result("disk-rate", folder=tmp_path / "later"), "warning", "mkdir -p")
    assert not (tmp_path / "later").exists()


def test_the_write_rate_counts_what_was_synchronised(tmp_path, monkeypatch):
    clock = itertools.count()
    synchronised = []
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(clock) / 4)
    monkeypatch.setattr(doctor.os, "fdatasync", lambda fd: synchronised.append(os.fstat(fd).st_size))
    # A clock that advances by a quarter of a second per piece: four pieces of 8 MiB in one second.
    assert doctor.write_rate_bytes_s(tmp_path, 1.0) == 4 * 8 * 2**20
    assert synchronised == [8 * 2**20 * k for k in (1, 2, 3, 4)]
    assert list(tmp_path.iterdir()) == []


def test_the_measurement_leaves_room_on_a_small_disk(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: 80 * 2**20)
    monkeypatch.setattr(doctor.os, "fdatasync", lambda fd: sizes.append(os.fstat(fd).st_size))
    doctor.write_rate_bytes_s(tmp_path, 60.0)
    assert sizes[-1] <= 20 * 2**20


def test_a_folder_that_is_a_file_is_told(tmp_path):
    write(tmp_path / "runs", "")
    with pytest.raises(OSError, match="runs"):
        doctor.write_rate_bytes_s(tmp_path / "runs", 0.01)
    (check,) = examine(tmp_path / "runs", only=["disk-rate"])
    expect(check, "warning", "is not there")


# Interrupted recordings


def interrupted(folder: Path, name: str) -> None:
    """Leave behind what a killed writer does."""
    code = f"""
import os, numpy as np
from semair.captures.writer import RecordingWriter
writer = RecordingWriter({str(folder)!r}, {name!r}, n_channels=1, datatype="ci16_le", sample_rate_hz=1e6)
writer.write(np.zeros((1, 1000), np.complex64))
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_leftovers(result, tmp_path):
    folder = tmp_path / "runs"
    expect(result("leftovers", folder=folder), "ok", "no interrupted")
    interrupted(folder / "monday" / "a", "bs-rx")
    found = result("leftovers", folder=folder)
    expect(found, "warning", "1 interrupted", str(folder / "monday" / "a" / "bs-rx"))
    assert f"semair capture recover {folder / 'monday' / 'a'}" in found.remedy


def test_the_search_for_leftovers_is_bounded(result, tmp_path):
    """The current folder may be somebody's home."""
    write(tmp_path / "1/2/3/4/.deep.journal.jsonl", "")
    write(tmp_path / ".hidden/.elsewhere.journal.jsonl", "")
    expect(result("leftovers"), "ok")
    write(tmp_path / "1/2/3/.near.journal.jsonl", "")
    expect(result("leftovers"), "warning", "1 interrupted", "3/near")


def test_a_recording_being_written_is_no_leftover(result, tmp_path):
    options = {"n_channels": 1, "datatype": "ci16_le", "sample_rate_hz": 1e6}
    with RecordingWriter(tmp_path, "now", **options) as writer:
        writer.write(np.zeros((1, 1000), np.complex64))
        expect(result("leftovers"), "ok")
    expect(result("leftovers"), "ok")
