"""Finding backends and radios without a list of them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from ..errors import RadioError
from .radio import Radio, RadioInfo

FIND_LIMIT_S = 20.0
PRODUCTS = {"usrp": "uhd", "pluto": "iio"}
_MARK = "RADIOS "


def backends() -> dict[str, type[Radio]]:
    """All backends by kind: every complete Radio subclass defined in a module of this folder.

    Raises:
        ValueError: two backends have the same kind.
    """
    package = importlib.import_module(__package__ or "")
    found: dict[str, type[Radio]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for _, item in inspect.getmembers(module, inspect.isclass):
            if not issubclass(item, Radio) or inspect.isabstract(item) or item.__module__ != module.__name__:
                continue
            if item.kind in found:
                raise ValueError(
                    f"{item.__module__} and {found[item.kind].__module__} both define a radio of kind "
                    f"{item.kind!r}; give one of them another kind"
                )
            found[item.kind] = item
    return dict(sorted(found.items()))


def backend(kind: str) -> type[Radio]:
    """One backend by its name.

    Raises:
        RadioError: there is none of this name.
    """
    known = backends()
    if kind not in known:
        raise RadioError(f"radio {kind!r} is not known; known are {', '.join([*known, *PRODUCTS])}")
    return known[kind]


def named(text: str) -> tuple[str, str]:
    """Kind and address of a radio named as KIND or KIND:ADDRESS; the products of `PRODUCTS` stand for their kinds."""
    word, _, address = text.partition(":")
    return PRODUCTS.get(word.lower(), word), address


@dataclass(frozen=True)
class Search:
    """What a look for radios found.

    Attributes:
        radios: that can be opened now.
        problems: by kind, why a backend could not look.
    """

    radios: list[RadioInfo] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def search(kinds: Iterable[str] | None = None, limit_s: float = FIND_LIMIT_S) -> Search:
    """Look for radios, all backends at once; one that fails, aborts or hangs takes no other away.

    Args:
        kinds: backends to ask; None: all.
        limit_s: time after which a backend is given up.

    Raises:
        RadioError: there is no backend of a given name.
    """
    asked = backends() if kinds is None else {kind: backend(kind) for kind in kinds}
    found: dict[str, list[RadioInfo] | str] = {}

    def look(kind: str, radio: type[Radio]) -> None:
        try:
            found[kind] = _find_apart(kind, limit_s) if radio.foreign else radio.find()
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {error}" if not isinstance(error, RadioError) else str(error)

    # Threads that can be left behind: what hangs in a driver cannot be interrupted.
    threads = {
        kind: threading.Thread(target=look, args=(kind, radio), name=f"find {kind}", daemon=True)
        for kind, radio in asked.items()
    }
    for thread in threads.values():
        thread.start()
    result = Search()
    for kind, thread in threads.items():
        # A process of its own is ended by itself, a little earlier.
        thread.join(limit_s + 2)
        answer = found.get(kind, f"no answer within {limit_s:g} s")
        if isinstance(answer, str):
            result.problems[kind] = answer
        else:
            result.radios.extend(answer)
    return result


def _find_apart(kind: str, limit_s: float) -> list[RadioInfo]:
    """Let a backend look in a process of its own.

    Raises:
        RadioError: it failed.
    """
    command = [sys.executable, "-P", "-m", f"{__package__}.discover", kind]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise RadioError(f"no answer within {limit_s:g} s; see whether its devices and their network answer") from None
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            # What was found counts, even where the driver broke on its way out.
            return [RadioInfo(**info) for info in json.loads(line.removeprefix(_MARK))]
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    raise RadioError(f"its driver failed: {lines[-1]} ({how})" if lines else f"its driver failed ({how})")


def _main() -> None:
    # Drivers write to standard output as they please; a line of our own is found among theirs.
    with contextlib.redirect_stdout(sys.stderr):
        found = backend(sys.argv[1]).find()
    sys.stdout.write(f"\n{_MARK}{json.dumps([asdict(info) for info in found])}\n")


if __name__ == "__main__":
    _main()
