"""The linear layer, whichever library multiplies."""

import gc
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import correlation_aware as ca
from correlation_aware import ops
from correlation_aware.ops import apply_linear
from correlation_aware.ops.linear import X86, packed_weights

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


@needs_onednn
def test_packed_weights_follow_the_weights():
    packed = importlib.import_module("correlation_aware.ops.linear")._packed
    gc.collect()  # of layers that other tests left
    before = len(packed)
    tokens, weight, bias = (t.detach() for t in operands(640, 48, 96))
    layer = nn.Linear(48, 96)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)

    def run(tokens, layer=layer):
        with Called() as called, torch.inference_mode(), packed_weights():
            output = apply_linear(layer, tokens)
        assert "_linear_pointwise" in called.names
        return output, "_reorder_linear_weight" in called.names

    for _ in range(2):
        output, new = run(tokens)
        torch.testing.assert_close(output, F.linear(tokens, layer.weight, layer.bias))
    assert not new and len(packed) == before + 1
    longer = torch.randn(3, 500, 48)
    torch.testing.assert_close(run(longer)[0], F.linear(longer, layer.weight, layer.bias))
    spaced = torch.randn(640, 96)[:, ::2]
    torch.testing.assert_close(run(spaced)[0], F.linear(spaced, layer.weight, layer.bias))
    with torch.no_grad():
        layer.weight.add_(1)
    output, new = run(tokens)
    assert new
    torch.testing.assert_close(output, F.linear(tokens, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert run(tokens)[1]
    del layer, run
    gc.collect()
    assert len(packed) == before


@needs_onednn
def test_weights_are_packed_in_sessions_alone():
    from correlation_aware.runtime.session import InferenceSession

    layer, tokens = nn.Linear(48, 96), torch.randn(640, 48)
    with Called() as called:
        with torch.inference_mode():
            apply_linear(layer, tokens)
        with packed_weights():
            apply_linear(layer, tokens)  # for a gradient
            with torch.inference_mode():
                ops.linear(tokens, layer.weight.detach(), None)  # not the weight of a layer
    assert "_linear_pointwise" not in called.names
    model = ca.create_model("sbt_test").eval()
    session = InferenceSession(model)
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    with Called() as called:
        session.set_template(template)
        (features,) = session(search)
    assert "_linear_pointwise" in called.names
    torch.testing.assert_close(features, model(template, search).detach(), rtol=0, atol=1e-5)
