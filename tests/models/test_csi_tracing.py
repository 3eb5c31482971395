"""Starting the ray tracer in its own environment: what it is given, what it says, and what happens when it fails."""

from __future__ import annotations

import ast
import os
import sys
import time
from pathlib import Path

import pytest
from semair.errors import ModelError, ScenarioError, SetupError, StorageError
from semair.models.csi import raytraced, tracing
from semair.models.csi.channels import ChannelConfig, stream

SCRIPT = Path(tracing.__file__).parent / "raytracing" / "trace.py"


@pytest.fixture
def llvm(tmp_path, monkeypatch):
    library = tmp_path / "libLLVM.so.19.1"
    library.touch()
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(library))
    return library


def environment(tmp_path, body):
    """An environment whose Python runs `body` instead of the script it is given; `argv` is what it was given."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(f"import json, os, sys, time\nargv = sys.argv[1:]\n{body}\n", encoding="utf-8")
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return tmp_path / "env"


GOOD = """
print("a line that is no news", flush=True)
for scene in argv[argv.index("--scenes") + 1 :]:
    if scene.startswith("--"):
        break
    for done in (1, 2):
        print(json.dumps({"done": done, "total": 2, "scene": scene}), flush=True)
open(argv[1], "w").write(json.dumps([argv, os.environ["DRJIT_LIBLLVM_PATH"]]))
print(json.dumps({"written": argv[1], "drops": 4, "skipped": 1}), flush=True)
"""


def test_arguments_progress_and_result(tmp_path, llvm):
    news = []
    output = tmp_path / "new" / "paths.safetensors"
    done = tracing.trace(
        output,
        scenes=("etoile", "munich"),
        options={"frequency_hz": 5e9, "drops": 2},
        environment=environment(tmp_path, GOOD),
        on_progress=lambda scene, share: news.append((scene, share)),
    )
    assert done == {"written": str(output), "drops": 4, "skipped": 1}
    assert news == [("etoile", 0.25), ("etoile", 0.5), ("munich", 0.75), ("munich", 1.0)]
    argv, library = ast.literal_eval(output.read_text(encoding="utf-8"))
    assert argv[0] == str(SCRIPT)
    assert argv[1:] == [str(output), "--scenes", "etoile", "munich", "--frequency-hz", "5000000000.0", "--drops", "2"]
    assert library == str(llvm)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "print('first', file=sys.stderr); print('no such card', file=sys.stderr); sys.exit(3)",
            "code 3: no such card",
        ),
        ("sys.exit(0)", "code 0: it said nothing"),
        ("os.kill(os.getpid(), 9)", "code -9"),
    ],
)
def test_a_tracer_that_fails_is_one_line(tmp_path, llvm, body, message):
    with pytest.raises(ModelError, match=message):
        tracing.trace(tmp_path / "paths", environment=environment(tmp_path, body))


def test_an_interrupted_tracer_is_gone_and_leaves_nothing(tmp_path, llvm):
    body = """
open(argv[1] + ".part", "w").write("half")
print(json.dumps({"done": os.getpid(), "total": 10**9, "scene": "munich"}), flush=True)
time.sleep(600)
"""
    seen = []

    def stop(_scene, share):
        seen.append(round(share * len(tracing.SCENES) * 10**9))
        raise KeyboardInterrupt

    output = tmp_path / "paths"
    with pytest.raises(KeyboardInterrupt):
        tracing.trace(output, environment=environment(tmp_path, body), on_progress=stop)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{seen[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{seen[0]}").exists()
    assert not output.exists() and not output.with_name("paths.part").exists()


def test_what_is_missing_is_named(tmp_path, llvm, monkeypatch):
    with pytest.raises(SetupError, match=r"semair trace --install"):
        tracing.trace(tmp_path / "paths", environment=tmp_path / "nowhere")
    ready = environment(tmp_path, GOOD)
    with pytest.raises(ScenarioError, match="moon"):
        tracing.trace(tmp_path / "paths", scenes=("moon",), environment=ready)
    with pytest.raises(StorageError, match="cannot be written"):
        tracing.trace(tmp_path, environment=ready)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        tracing.trace(tmp_path / "file" / "paths", environment=ready)
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", str(tmp_path / "gone.so"))
    with pytest.raises(SetupError, match=r"gone\.so"):
        tracing.trace(tmp_path / "paths", environment=ready)


def test_the_newest_llvm_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    with pytest.raises(SetupError, match="no LLVM"):
        tracing.find_llvm((tmp_path,))
    (tmp_path / "x86_64-linux-gnu").mkdir()
    for name in ("libLLVM-15.so.1", "libLLVM-9.so"):
        (tmp_path / "x86_64-linux-gnu" / name).touch()
    with pytest.raises(SetupError, match="only LLVM 15"):
        tracing.find_llvm((tmp_path,))
    for name in ("libLLVM-17.so", "libLLVM.so.19.1"):
        (tmp_path / "x86_64-linux-gnu" / name).touch()
    assert tracing.find_llvm((tmp_path,)).name == "libLLVM.so.19.1"


def test_an_environment_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="could not be made"):
        tracing.install(tmp_path / "file" / "env")


def test_the_default_environment_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tracing.default_environment() == tmp_path / "semair" / "tracing"


def test_script_and_reader_agree():
    # The script runs where this package is not installed, and can be asked nothing here.
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant | ast.Tuple)
    }
    assert constants["FORMAT"] == raytraced.FORMAT
    assert constants["SCENES"] == tracing.SCENES


@pytest.mark.slow
def test_a_real_scene(tmp_path):
    place = Path(os.environ.get("SEMAIR_TRACING", tracing.default_environment()))
    if not (place / "bin" / "python").exists():
        pytest.skip(
            f"no ray tracer in {place}; make it with: semair trace --install, or name its folder: SEMAIR_TRACING"
        )
    output = tmp_path / "paths.safetensors"
    options = {"drops": 6, "bases": 2, "samples": 20_000}
    done = tracing.trace(output, scenes=("simple_street_canyon",), options=options, environment=place)
    file = raytraced.read_paths(output)
    assert file.scenes == ("simple_street_canyon",)
    assert done["drops"] == len(file.arrays["scene"]) > 0
    # With a line of sight the strongest path is the first, and departs where the user is.
    arrays = file.arrays
    los = arrays["line_of_sight"].astype(bool)
    power = arrays["gains_re"] ** 2 + arrays["gains_im"] ** 2
    towards = arrays["positions_m"][..., 1] / ((arrays["positions_m"] ** 2).sum(-1) + (10.0 - 1.5) ** 2) ** 0.5
    first = (arrays["delays_s"] == 0) & (power > 0)
    assert abs((arrays["cosines"] - towards[..., None]) * first)[los].max() < 1e-2
    split = raytraced.SPLITS[int(arrays["split"][0])]
    drawn = raytraced.RayTraced(file, split, config=ChannelConfig(n_antennas=4)).draw(4, stream(split, 1))
    assert drawn.h.shape == (4, 2, 256, 4)
