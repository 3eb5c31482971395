"""Inference engines: one network's forward, run on one core by torch, ONNX Runtime or OpenVINO.

    engine = make_engine(network, example_inputs, "onnxruntime")
    outputs = engine.run(features, level)           # arrays in, float32 array out

All engines hold the network as it was when they were made, use one thread, and give the same bits for the same
input. Which one is fastest depends on the network: `latencies` measures them on the very inputs.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ScenarioError, SetupError

if TYPE_CHECKING:
    import torch

Arrays = Sequence[NDArray[Any]]
"""float32, or int64 for indices."""

DynamicAxes = Sequence[Sequence[int]]
"""Per input the axes whose sizes may differ from those of the example."""


class Engine(Protocol):
    """Runs a network.

    Attributes:
        name: One of `ENGINES`.
    """

    name: str

    def run(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Compute the network's output.

        Args:
            *inputs: C-contiguous, of the example's types, and of its shapes but for the dynamic axes.

        Returns:
            float32, a new array.
        """
        ...


def make_engine(
    module: torch.nn.Module,
    example_inputs: Arrays,
    name: str = "torch",
    dynamic_axes: DynamicAxes | None = None,
) -> Engine:
    """Prepare a network for inference.

    Args:
        module: Takes real tensors and returns one; put into evaluation mode.
        example_inputs: float32 or int64, one array per input of `forward`, of typical shapes.
        name: One of `ENGINES`.
        dynamic_axes: Per input the axes whose sizes may vary; None: the first of each, the batch. Fixed sizes
            (`[()] * n`) leave more to optimise. Python code in `forward` that depends on a size is frozen at
            the example's, except by torch.

    Raises:
        ScenarioError: there is no engine of this name.
        SetupError: its package is not installed.
        ValueError: `dynamic_axes` does not fit the inputs.
    """
    if name not in ENGINES:
        raise ScenarioError(f"engine {name!r} is unknown; choose one of: {', '.join(ENGINES)}")
    examples = [np.ascontiguousarray(example) for example in example_inputs]
    axes: list[tuple[int, ...]] = [(0,)] * len(examples) if dynamic_axes is None else [tuple(a) for a in dynamic_axes]
    within = all(0 <= axis < example.ndim for example, dynamic in zip(examples, axes, strict=False) for axis in dynamic)
    if len(axes) != len(examples) or not within:
        shapes = [example.shape for example in examples]
        raise ValueError(f"dynamic_axes={axes} does not fit inputs of shapes {shapes}; needs axes of each of them")
    return ENGINES[name](module, examples, axes)


def installed() -> list[str]:
    """The engines whose packages can be imported, in the order of `ENGINES`."""
    return [name for name, needed in _PACKAGES.items() if all(map(importlib.util.find_spec, needed))]


def latencies(
    module: torch.nn.Module,
    inputs: Arrays,
    n_runs: int = 500,
    names: Sequence[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Time every engine on one input, turn about, so that all see the same company on the machine.

    Args:
        module: The network.
        inputs: float32 or int64, what is run, again and again.
        n_runs: Timed runs of each engine.
        names: Engines; None: those installed.
        dynamic_axes: see `make_engine`; None: all sizes are fixed.

    Returns:
        Engine -> float64, (n_runs,): wall time of each run in seconds.
    """
    chosen = installed() if names is None else names
    axes = [()] * len(inputs) if dynamic_axes is None else dynamic_axes
    engines = [make_engine(module, inputs, name, axes) for name in chosen]
    times = np.empty((len(engines), n_runs))
    for engine in engines:
        for _ in range(10):
            engine.run(*inputs)
    for i in range(n_runs):
        for k, engine in enumerate(engines):
            begin = time.perf_counter()
            engine.run(*inputs)
            times[k, i] = time.perf_counter() - begin
    return dict(zip(chosen, times, strict=True))


class _Torch:
    name = "torch"

    def __init__(self, module: torch.nn.Module, examples: Arrays, axes: DynamicAxes) -> None:
        self._torch = _packages("torch")
        self._module = _copy(module)
        self.run(*examples)

    def run(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        torch = self._torch
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                # Copies lie where torch puts its own tensors: bits do not depend on where the input lay.
                return self._module(*(torch.tensor(values) for values in inputs)).numpy()
        finally:
            torch.set_num_threads(threads)


class _OnnxRuntime:
    name = "onnxruntime"

    def __init__(self, module: torch.nn.Module, examples: Arrays, axes: DynamicAxes) -> None:
        runtime = _packages("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = onnx_model(module, examples, axes)
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        # What the network leaves unused is no input of the model.
        used = {value.name for value in self._session.get_inputs()}
        self._names = [name if name in used else None for name in _input_names(len(examples))]

    def run(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        feed = {name: values for name, values in zip(self._names, inputs, strict=True) if name is not None}
        return self._session.run(None, feed)[0]


class _OpenVino:
    name = "openvino"

    def __init__(self, module: torch.nn.Module, examples: Arrays, axes: DynamicAxes) -> None:
        openvino = _packages("openvino")
        torch = _packages("torch")
        shapes = [
            [-1 if axis in dynamic else size for axis, size in enumerate(example.shape)]
            for example, dynamic in zip(examples, axes, strict=True)
        ]
        tensors = tuple(torch.tensor(example) for example in examples)
        with _tracing():
            model = openvino.convert_model(_copy(module), example_input=tensors, input=shapes)
        settings = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Half precision, which it would choose on some processors, changes decisions.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        found = self._request.infer(list(inputs), share_inputs=True, share_outputs=True)
        return np.array(found[0])


ENGINES: dict[str, Callable[[Any, Any, Any], Engine]] = {
    "torch": _Torch,
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
}
"""Engines by name."""


def onnx_model(module: torch.nn.Module, example_inputs: Arrays, dynamic_axes: DynamicAxes | None = None) -> bytes:
    """Export a network as ONNX with inputs `input_0`, `input_1` ..., as far as it uses them, and output `output`.

    Args:
        module, example_inputs, dynamic_axes: see `make_engine`.

    Returns:
        The serialised model.
    """
    torch = _packages("torch")
    axes = [(0,)] * len(example_inputs) if dynamic_axes is None else dynamic_axes
    tensors = tuple(torch.tensor(example) for example in example_inputs)
    names = _input_names(len(tensors))
    # One symbol per distinct size, so that axes that grow together stay together.
    named = {
        name: {axis: f"size_{tensor.shape[axis]}" if axis else "batch" for axis in dynamic}
        for name, tensor, dynamic in zip(names, tensors, axes, strict=True)
        if dynamic
    }
    if named:
        named["output"] = {0: "batch"}
    target = io.BytesIO()
    with _tracing():
        # The exporter through torch.export needs onnxscript, which nothing else here does.
        torch.onnx.export(
            _copy(module), tensors, target, dynamo=False, input_names=names, output_names=["output"], dynamic_axes=named
        )
    return target.getvalue()


def _input_names(n_inputs: int) -> list[str]:
    return [f"input_{k}" for k in range(n_inputs)]


_PACKAGES = {"torch": ("torch",), "onnxruntime": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
"""What each engine imports; torch, which holds the network, comes on top for all."""


def _packages(engine: str) -> Any:
    """Import what an engine needs; return the last of its packages."""
    try:
        return [importlib.import_module(name) for name in _PACKAGES[engine]][-1]
    except ImportError as error:
        raise SetupError(
            f"engine {engine!r} cannot be used here ({error}); install what it needs with "
            f"`pip install {' '.join(_PACKAGES[engine])}`, or choose another engine: {', '.join(ENGINES)}"
        ) from error


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy for inference, which later training of the module does not reach."""
    return copy.deepcopy(module).cpu().eval().requires_grad_(False)


@contextmanager
def _tracing() -> Iterator[None]:
    """Let converters trace a network: no gradients, and none of their warnings of constants and of their own age."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Plain(TorchFunctionMode):
        """Writes `x.mT`, which converters do not know, as the transpose that it is."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func == torch.Tensor.mT.__get__:  # type: ignore[attr-defined]
                return args[0].transpose(-2, -1)
            return func(*args, **(kwargs or {}))

    with warnings.catch_warnings(), torch.inference_mode(), Plain():
        warnings.simplefilter("ignore")
        yield
