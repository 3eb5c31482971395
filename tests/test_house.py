"""The house: arrows between rooms point down, each room says what it is, and light imports stay light."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
ROOMS = ("flowgraphs", "hardware", "blocks", "captures", "models")
# What each floor may import of the others.
BELOW = {
    "cli": {"flowgraphs", "hardware", "blocks", "captures", "models"},
    "flowgraphs": {"hardware", "blocks", "captures", "models"},
    "hardware": {"blocks", "captures", "models"},
    "blocks": {"captures", "models"},
    "captures": set(),
    "models": set(),
}
HEAVY = {"gnuradio", "pmt", "torch"}


def modules() -> list[Path]:
    files = [HOUSE / "errors.py", HOUSE / "__init__.py"]
    files += sorted((HOUSE / "cli").rglob("*.py"))
    for room in ROOMS:
        files += sorted((HOUSE / room).rglob("*.py"))
    return [file for file in files if file.is_file()]


def dotted(file: Path) -> tuple[str, ...]:
    """Package path inside semair: ("blocks", "waveforms", "ofdm")."""
    return file.relative_to(HOUSE).with_suffix("").parts


def imports(file: Path, top_level_only: bool = False) -> set[tuple[str, ...]]:
    """Everything that a module imports, as absolute paths; those inside semair start with "semair"."""
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = ("semair", *dotted(file)[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return found


def room_of(file: Path) -> str:
    return dotted(file)[0]


def test_the_rooms_are_found():
    # A house that moved would make every test below pass on nothing.
    assert {room_of(file) for file in modules()} >= set(ROOMS)
    assert len(modules()) > 40


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(HOUSE)))
def test_arrows_point_down(file):
    room = room_of(file)
    allowed = BELOW.get(room, set()) | {room, "errors", "__version__"}
    for path in imports(file):
        assert path[0] not in ROOMS, f"{file}: {'.'.join(path)} must be imported relatively"
        assert path[0] != "tests", f"{file} imports tests"
        if path[0] == "semair":
            assert path[1] in allowed, f"{file} imports {'.'.join(path)}, which lies above or beside it"


@pytest.mark.parametrize("room", ["captures", "models", "blocks/waveforms"])
def test_numpy_rooms_never_import_gnu_radio(room):
    for file in sorted((HOUSE / room).rglob("*.py")):
        for path in imports(file):
            assert path[0] not in {"gnuradio", "pmt"}, f"{file} imports {'.'.join(path)}"
            assert path[:3] != ("semair", "blocks", "runtime"), f"{file} imports the GNU Radio runtime"


@pytest.mark.parametrize("room", ["captures", "blocks", "hardware", "flowgraphs"])
def test_only_models_may_import_torch(room):
    for file in sorted((HOUSE / room).rglob("*.py")):
        assert "torch" not in {path[0] for path in imports(file)}, f"{file} imports torch"


def test_gnu_radio_is_asked_for_in_one_place():
    for file in modules():
        if dotted(file) != ("blocks", "runtime"):
            for path in imports(file, top_level_only=True):
                assert path[:2] != ("gnuradio", "gr"), f"{file}: take gr from blocks/runtime.py"


def test_every_package_is_installed():
    """A package that the list lacks is missing only for those who do not install in place."""
    settings = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(["semair", *file.parent.relative_to(HOUSE).parts])
        for room in (*ROOMS, "cli")
        for file in (HOUSE / room).rglob("__init__.py")
    }
    assert set(settings["packages"]) == {"semair", *found}


def test_root_holds_the_version_alone():
    tree = ast.parse((HOUSE / "__init__.py").read_text())
    docstring, assignment = tree.body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(assignment, ast.Assign)
    assert [target.id for target in assignment.targets] == ["__version__"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_short_text(room):
    texts = [HOUSE / room / "README.md", *(HOUSE / room).glob("*/README.md")]
    for file in texts:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert 200 < len(text) < 6000, f"{file}: {len(text)} characters"


def loaded_after(code: str) -> set[str]:
    """Top-level modules loaded after a piece of code in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import semair",
        "import semair.captures.reader, semair.captures.writer, semair.captures.verify",
        "import semair.models.channels, semair.models.uad.detectors as d; d.available()",
        "import semair.blocks.waveforms.frame_sync, semair.blocks.waveforms.air",
        "import semair.flowgraphs.scenario",
    ],
)
def test_light_imports_load_neither_gnu_radio_nor_torch(code):
    assert not loaded_after(code) & HEAVY


@pytest.mark.skipif(importlib.util.find_spec("typer") is None, reason="the command line needs typer")
def test_command_line_starts_without_gnu_radio():
    assert not loaded_after("import semair.cli") & HEAVY


def test_nothing_in_the_house_names_the_place_where_it_lies():
    for file in modules():
        assert str(HOUSE) not in file.read_text(encoding="utf-8"), f"{file} names a path of one machine"
