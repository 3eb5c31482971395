"""Models on disk: what is saved comes back, and anything else is refused with a reason."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from semair.errors import ModelError, StorageError
from semair.models.cards import (
    CARD_FILE,
    WEIGHTS_FILE,
    Card,
    Metric,
    NetworkSection,
    TrainingSection,
    halved,
    load_card,
    load_model,
    save_model,
)


def card(**fields):
    return Card(
        name="small",
        task="uad",
        network=NetworkSection(kind="any", config={"width": 3}, n_parameters=9),
        training=TrainingSection(command="semair train uad --config small", steps=5, samples=40, time_s=1.5),
        metrics=(Metric(name="error_probability", value=0.1, low=0.05, high=0.2, conditions={"length": 8}),),
        scenario={"n_users": 4, "max_length": 8},
        **fields,
    )


def tensors():
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn((3, 2), generator=generator),
        "a.count": torch.tensor(7),
        "b": torch.randn((5,), generator=generator).to(torch.float16),
    }


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", card(), tensors())
    return tmp_path / "model"


def edited(folder, change):
    data = json.loads((folder / CARD_FILE).read_text())
    change(data)
    (folder / CARD_FILE).write_text(json.dumps(data))


def test_what_is_saved_comes_back(folder):
    read, weights = load_model(folder, task="uad")
    assert weights.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)
    assert read.model_copy(update={"weights": None, "versions": {}, "git_commit": None, "created": ""}) == card()
    assert read.versions["torch"] == torch.__version__
    assert load_card(folder) == read


def test_saving_fills_in_what_the_caller_cannot_know(tmp_path):
    written = save_model(tmp_path, card(), tensors())
    assert written.weights is not None
    assert written.weights.n_bytes == (tmp_path / WEIGHTS_FILE).stat().st_size
    assert written.weights.tensors["a.weight"] == ("float32", (3, 2))
    assert len((written.git_commit or "0" * 40).removesuffix("-dirty")) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_views_that_share_memory_are_saved_apart(tmp_path):
    whole = torch.arange(6.0)
    save_model(tmp_path, card(), {"left": whole[:3], "all": whole, "turned": whole.reshape(2, 3).T})
    _, weights = load_model(tmp_path)
    assert torch.equal(weights["turned"], whole.reshape(2, 3).T)
    assert torch.equal(weights["left"], whole[:3])


def test_half_precision_is_kept_where_it_is_enough():
    whole = {
        "normal": torch.linspace(-3, 3, 100)[None],
        "vector": torch.linspace(-3, 3, 100),
        "large": torch.tensor([[1.0, 7e4]]),
        "small": torch.tensor([[1e-8, 3e-8]]),
        "zero": torch.zeros(3, 1),
        "count": torch.tensor(70001),
        "double": torch.ones(2, dtype=torch.float64),
    }
    kept = halved(whole)
    assert {name for name, tensor in kept.items() if tensor.dtype == torch.float16} == {"normal", "zero"}
    assert all(torch.allclose(kept[name].to(tensor.dtype), tensor, rtol=1e-3) for name, tensor in whole.items())
    layer = torch.nn.Linear(2, 2)
    layer.load_state_dict(halved(layer.state_dict()))
    assert layer.weight.dtype == torch.float32


def test_saving_again_replaces_the_model(folder):
    save_model(folder, card(description="second"), {"other": torch.ones(2)})
    read, weights = load_model(folder)
    assert read.description == "second"
    assert weights.keys() == {"other"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, value):
    with pytest.raises(ModelError, match=r"a\.weight hold NaN or infinity"):
        save_model(tmp_path / "x", card(), {"a.weight": torch.tensor([1.0, value])})
    assert not (tmp_path / "x").exists()


def test_weights_that_are_no_numbers_are_not_loaded(folder):
    # The fingerprint fits: only the values are bad.
    import hashlib

    bad = {**tensors(), "a.weight": torch.full((3, 2), math.nan)}
    save_file(bad, folder / WEIGHTS_FILE)
    data = (folder / WEIGHTS_FILE).read_bytes()
    edited(folder, lambda c: c["weights"].update(sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data)))
    with pytest.raises(ModelError, match=r"a\.weight hold NaN"):
        load_model(folder)


def test_cut_weights_are_refused(folder):
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-1])
    with pytest.raises(ModelError, match=f"has {len(data) - 1} bytes, its card says {len(data)}"):
        load_model(folder)


@given(st.data())
@settings(max_examples=40)
def test_any_flipped_bit_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    save_model(folder, card(), tensors())
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        load_model(folder)


def test_foreign_weights_are_refused(folder):
    save_file({"someone": torch.ones(3)}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"cut or foreign|SHA-256"):
        load_model(folder)


def test_weights_of_other_shapes_than_the_card_are_refused(folder):
    edited(folder, lambda c: c["weights"]["tensors"].update({"b": ["float16", [6]]}))
    with pytest.raises(ModelError, match="other tensors than its card"):
        load_model(folder)


def test_a_pickle_is_refused_unread(folder):
    import hashlib

    torch.save({"weight": torch.ones(2)}, folder / WEIGHTS_FILE)
    data = (folder / WEIGHTS_FILE).read_bytes()
    edited(folder, lambda c: c["weights"].update(sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data)))
    with pytest.raises(ModelError, match="no safetensors file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / CARD_FILE).unlink(), "no model: it has no card.json"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot be read"),
        (lambda folder: (folder / CARD_FILE).write_text("{"), "as JSON"),
        (lambda folder: (folder / CARD_FILE).write_bytes(b"\xff\xfe"), "as JSON"),
        (lambda folder: (folder / CARD_FILE).write_text("[]"), "not the card of a semair model"),
        (lambda folder: (folder / CARD_FILE).write_text('{"format": "other"}'), "not the card of a semair model"),
        (lambda folder: edited(folder, lambda c: c.update(colour="red")), "colour: unknown field"),
        (lambda folder: edited(folder, lambda c: c.pop("network")), "network: missing"),
        (lambda folder: edited(folder, lambda c: c.update(format_version=2)), "format_version: given 2, allowed: 1"),
        (lambda folder: edited(folder, lambda c: c.pop("weights")), "no fingerprint"),
        (lambda folder: edited(folder, lambda c: c["metrics"][0].update(value=math.nan)), "value"),
    ],
    ids=[
        "no-card",
        "no-weights",
        "cut-card",
        "not-utf8",
        "a-list",
        "foreign",
        "extra",
        "missing",
        "newer",
        "bare",
        "nan",
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(ModelError, match=reason):
        load_model(folder)


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_whatever_stands_in_the_card_only_model_errors_leave(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("card")
    (folder / CARD_FILE).write_bytes(content)
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_model_for_another_task_is_refused(folder):
    with pytest.raises(ModelError, match="task 'uad', not for 'csi'"):
        load_model(folder, task="csi")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_model(tmp_path / "file" / "model", card(), tensors())


def test_a_card_is_read_without_torch(folder):
    code = (
        "import sys\nfrom semair.models.cards import load_card\n"
        f"assert load_card({str(folder)!r}).name == 'small'\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
