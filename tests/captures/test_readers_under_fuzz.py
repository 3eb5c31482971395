"""Whatever a file holds, readers answer with a recording or an error meant for the user, inside the folder, in memory.

The coverage-guided search is tests/fuzz/fuzz.py; here are its seeds, changed at random, in a few seconds.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[1] / "fuzz"
EXAMPLES = {"meta": 12, "collection": 8, "journal": 30, "archive": 40, "raw": 15, "index": 15}
SLOW = {**EXAMPLES, "mat": 3}


def load() -> ModuleType:
    if "fuzz_readers" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fuzz_readers", FOLDER / "readers.py")
        assert spec is not None and spec.loader is not None
        sys.modules["fuzz_readers"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fuzz_readers"])
    return sys.modules["fuzz_readers"]


@pytest.fixture(scope="module")
def readers() -> ModuleType:
    return load()


@pytest.fixture(scope="module")
def sandbox(readers, tmp_path_factory):
    return readers.Sandbox(tmp_path_factory.mktemp("box"))


@pytest.fixture(scope="module")
def seeds(readers, tmp_path_factory) -> dict[str, list[bytes]]:
    return {name: readers.seeds(name, tmp_path_factory.mktemp("seeds")) for name in readers.TARGETS}


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "put", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.sampled_from([b"9" * 5000, b"-1", b"null", b"[[[", b"../", b"\xff\xff\xff\x7f", b"NaN", b"", b"\x00" * 512]),
    ),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, steps: list[tuple[str, float, int, bytes]]) -> bytes:
    out = bytearray(content)
    for kind, place, value, piece in steps:
        at = int(place * len(out))
        if kind == "flip" and out:
            out[at] ^= max(value, 1)
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "put":
            out[at:at] = piece
        elif kind == "end":
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("target", EXAMPLES)
def test_changed_files_are_read_or_refused(readers, sandbox, seeds, target):
    for seed in seeds[target]:
        sandbox.run(readers.TARGETS[target], seed)

    @settings(max_examples=EXAMPLES[target])
    @given(st.sampled_from(seeds[target]), edits)
    def run(seed: bytes, steps: list[tuple[str, float, int, bytes]]) -> None:
        sandbox.run(readers.TARGETS[target], changed(seed, steps))

    run()


@pytest.mark.slow
@pytest.mark.parametrize("target", SLOW)
def test_many_changed_files_are_read_or_refused(readers, sandbox, seeds, target):
    @settings(max_examples=8 * SLOW[target])
    @given(st.sampled_from(seeds[target]), edits)
    def run(seed: bytes, steps: list[tuple[str, float, int, bytes]]) -> None:
        sandbox.run(readers.TARGETS[target], changed(seed, steps))

    run()


def test_the_sandbox_notices_what_it_is_there_for(readers, sandbox, tmp_path):
    def strays(content: bytes, folder: Path) -> None:
        (folder / ".." / ".." / "out").write_bytes(content)

    def hoards(_content: bytes, _folder: Path) -> None:
        bytearray(readers.ALLOWANCE_BYTES * 2)

    def breaks(_content: bytes, _folder: Path) -> None:
        raise KeyError("x")

    with pytest.raises(readers.OutsideError, match="outside the sandbox"):
        sandbox.run(strays, b"")
    with pytest.raises(MemoryError):
        sandbox.run(hoards, b"")
    with pytest.raises(KeyError):
        sandbox.run(breaks, b"")
