"""The linear layer, whichever library multiplies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from correlation_aware import ops
from correlation_aware.models.eoc import apply_linear
from correlation_aware.ops.linear import X86

needs_onednn = pytest.mark.skipif(
    not (X86 and torch.backends.mkldnn.is_available()), reason="oneDNN is for x86 CPUs"
)


class Called(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


class Packed(torch.Tensor):
    """A weight that only `F.linear` takes, such as an eight-bit one of torchao."""

    @classmethod
    def __torch_function__(cls, function, classes, args=(), kwargs=None):
        assert function is F.linear, function
        return F.linear(args[0], args[1].as_subclass(torch.Tensor), args[2])


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, tokens):
        return apply_linear(self.fc, tokens)


def operands(rows, inputs, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def convolves(tokens, weight, bias):
    with Called() as called:
        ops.linear(tokens, weight, bias)
    return "convolution" in called.names


@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 32, 64), (20481, 1, 7), (641, 33, 1), (1280, 320, 640)]
)
def test_outputs_and_gradients_are_those_of_a_linear_layer(rows, inputs, outputs):
    leaves = operands(rows, inputs, outputs)
    upstream = torch.randn(outputs, rows, generator=torch.Generator().manual_seed(1)).T  # not contiguous
    found = ops.linear(*leaves)
    assert found.shape == (rows, outputs) and found.is_contiguous()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = F.linear(*exact)
    results = zip(
        [found, *torch.autograd.grad(found, leaves, upstream)],
        [wanted, *torch.autograd.grad(wanted, exact, upstream.double())],
    )
    for ours, theirs in results:  # float32 sums of up to 20481 numbers; F.linear has up to 4e-6 itself
        assert (ours - theirs).norm() <= 5e-6 * theirs.norm()


def test_takes_tokens_that_do_not_lie_close():
    tokens, weight, bias = operands(2000, 24, 16)
    for view in (tokens[::2], tokens[800:], tokens.T.contiguous().T):
        torch.testing.assert_close(ops.linear(view, weight, bias), F.linear(view, weight, bias))
    maps = tokens.view(2, 25, 40, 24)
    torch.testing.assert_close(ops.linear(maps, weight, None), F.linear(maps, weight))


@needs_onednn
def test_eager_float32_on_a_cpu_goes_through_onednn():
    assert convolves(*operands(1024, 32, 32))


def test_everything_else_is_the_reference(monkeypatch):
    assert not convolves(*operands(1024, 32, 32, torch.bfloat16))
    assert not convolves(*operands(16, 32, 32))
    with ops.set_backend("reference"):
        assert not convolves(*operands(1024, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolves(*operands(1024, 32, 32))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not convolves(*operands(1024, 32, 32))
    monkeypatch.undo()
    assert convolves(*operands(1024, 32, 32))
    tokens, weight, bias = (t.detach() for t in operands(1024, 32, 32))
    assert torch.equal(ops.linear(tokens, weight.as_subclass(Packed), bias), F.linear(tokens, weight, bias))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_graphs_have_linear_layers():
    """A convolution that is quick on this CPU is none on a GPU or in another runtime."""
    layer, tokens = Projection(), torch.zeros(1024, 32)
    exported = torch.export.export(layer, (tokens,), strict=True).graph_module.code
    traced = str(torch.jit.trace(layer, (tokens,)).inlined_graph)
    traced_operation = str(torch.jit.trace(ops.linear, (tokens, layer.fc.weight, layer.fc.bias)).graph)
    compiled = []
    operation = torch.compile(ops.linear, backend=lambda module, _: compiled.append(module.code) or module)
    operation(tokens, layer.fc.weight, layer.fc.bias)
    for graph in (exported, traced, traced_operation, *compiled):
        assert "linear" in graph and "conv" not in graph


@needs_onednn
def test_a_layer_goes_the_way_of_the_operation():
    layer, tokens = Projection(), torch.randn(1024, 32)
    with Called() as called:
        layer(tokens)
    assert "convolution" in called.names
    layer.fc.register_forward_hook(lambda *_: None)
    with Called() as called:
        layer(tokens)
    assert "convolution" not in called.names
