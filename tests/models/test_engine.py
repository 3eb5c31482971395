"""Inference engines: all of them compute what the network computes, on fixed and on varying sizes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from semair.errors import ScenarioError, SetupError
from semair.models import engine as engines
from semair.models.engine import ENGINES, installed, latencies, make_engine

torch = pytest.importorskip("torch")


class Mixer(torch.nn.Module):
    """Attention over tokens with a second input per sample: the operations that the networks here are made of."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(5, width)
        self.level = torch.nn.Linear(2, width)
        self.norm = torch.nn.LayerNorm(width)
        self.heads = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, 1)

    def forward(self, tokens, level):
        z = self.norm(self.embed(tokens) + self.level(level)[:, None, :])
        q, k, v = self.heads(z).chunk(3, dim=-1)
        z = z + torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return 10 * torch.tanh(self.out(torch.relu(z)))[..., 0]


@pytest.fixture
def network():
    torch.manual_seed(3)
    return Mixer()


@pytest.fixture(params=list(ENGINES))
def name(request):
    if request.param not in installed():
        pytest.skip(f"{request.param} is not installed")
    return request.param


def draw(rng, n_samples=2, n_tokens=7):
    shapes = (n_samples, n_tokens, 5), (n_samples, 2)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def exact(network, inputs):
    """The output in double precision."""
    import copy

    double = copy.deepcopy(network).double()
    with torch.no_grad():
        return double(*(torch.tensor(values, dtype=torch.float64) for values in inputs)).numpy()


def test_output_is_that_of_the_network(name, network, rng):
    inputs = draw(rng)
    engine = make_engine(network, inputs, name)
    found = engine.run(*inputs)
    assert engine.name == name
    assert found.dtype == np.float32
    # Single precision: a few hundred roundings of 6e-8 each, on values of at most 10.
    np.testing.assert_allclose(found, exact(network, inputs), rtol=0, atol=2e-5)


def test_any_batch_size(name, network, rng):
    engine = make_engine(network, draw(rng), name)
    for n_samples in (1, 5, 3):
        inputs = draw(rng, n_samples)
        np.testing.assert_allclose(engine.run(*inputs), exact(network, inputs), rtol=0, atol=2e-5)


def test_any_number_of_tokens_where_asked_for(name, network, rng):
    engine = make_engine(network, draw(rng), name, dynamic_axes=[(0, 1), (0,)])
    for n_samples, n_tokens in ((1, 7), (4, 11), (2, 3)):
        inputs = draw(rng, n_samples, n_tokens)
        np.testing.assert_allclose(engine.run(*inputs), exact(network, inputs), rtol=0, atol=2e-5)


def test_fixed_sizes(name, network, rng):
    inputs = draw(rng, 1)
    engine = make_engine(network, inputs, name, dynamic_axes=[(), ()])
    np.testing.assert_allclose(engine.run(*inputs), exact(network, inputs), rtol=0, atol=2e-5)


def test_same_bits_every_time_wherever_the_input_lies(name, network, rng):
    inputs = draw(rng, 1, 33)
    engine = make_engine(network, inputs, name, dynamic_axes=[(), ()])
    first = engine.run(*inputs)
    kept = first.copy()
    for offset in range(9):
        room = np.empty(inputs[0].size + 16, np.float32)
        moved = room[offset : offset + inputs[0].size].reshape(inputs[0].shape)
        moved[:] = inputs[0]
        np.testing.assert_array_equal(engine.run(moved, inputs[1]), kept)
    # Results are the caller's own: later runs leave them alone.
    engine.run(*draw(rng, 1, 33))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(make_engine(network, inputs, name, dynamic_axes=[(), ()]).run(*inputs), kept)


def test_training_that_goes_on_does_not_reach_an_engine(name, network, rng):
    inputs = draw(rng)
    network.train()
    engine = make_engine(network, inputs, name)
    assert network.training
    before = engine.run(*inputs)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(engine.run(*inputs), before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_torch_engine_leaves_the_number_of_threads_alone(network, rng):
    inputs = draw(rng)
    engine = make_engine(network, inputs, "torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine.run(*inputs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_network_without_gradients_or_parameters(name, rng):
    class Square(torch.nn.Module):
        def forward(self, x):
            return x * x

    x = rng.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(make_engine(Square(), [x], name).run(x), x * x, rtol=1e-6)


def test_matrix_transposes_as_networks_write_them(name, rng):
    class Gram(torch.nn.Module):
        def forward(self, x):
            return x @ x.mT + x.transpose(1, 2).sum(1)[:, None]

    x = rng.standard_normal((2, 3, 3)).astype(np.float32)
    expected = x @ x.transpose(0, 2, 1) + x.sum(axis=2)[:, None, :]
    np.testing.assert_allclose(make_engine(Gram(), [x], name).run(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unused", [0, 1, 2])
def test_an_input_that_the_network_leaves_unused(name, unused, rng):
    class Partial(torch.nn.Module):
        def forward(self, *inputs):
            first, second = (values for k, values in enumerate(inputs) if k != unused)
            return first - 2 * second

    inputs = [rng.standard_normal((2, 3)).astype(np.float32) for _ in range(3)]
    first, second = (values for k, values in enumerate(inputs) if k != unused)
    np.testing.assert_allclose(make_engine(Partial(), inputs, name).run(*inputs), first - 2 * second, rtol=1e-6)


def test_unknown_engine_and_axes_that_do_not_fit(network, rng):
    inputs = draw(rng)
    with pytest.raises(ScenarioError, match=r"'tensorrt' is unknown.*torch.*onnxruntime.*openvino"):
        make_engine(network, inputs, "tensorrt")
    for axes in ([(0,)], [(0,), (2,)], [(-1,), ()]):
        with pytest.raises(ValueError, match="dynamic_axes"):
            make_engine(network, inputs, "torch", dynamic_axes=axes)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "openvino"])
def test_missing_package_is_named_with_what_to_type(missing, network, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    name = "openvino" if missing == "openvino" else "onnxruntime"
    with pytest.raises(SetupError, match=rf"(?s){name}.*{missing}.*pip install .*{missing}.*torch"):
        make_engine(network, draw(rng), name)


def test_latencies_of_every_engine(network, rng):
    found = latencies(network, draw(rng, 1), n_runs=4)
    assert list(found) == installed()
    for times in found.values():
        assert times.shape == (4,)
        assert (times > 0).all()
    assert list(latencies(network, draw(rng, 1), n_runs=2, names=["torch"])) == ["torch"]


def test_importing_engines_loads_none_of_them():
    code = "import sys, semair.models.engine; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "openvino"} & set(loaded)


def test_every_engine_says_what_it_needs():
    assert set(engines._PACKAGES) == set(ENGINES)
