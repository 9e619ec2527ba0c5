"""Kernels against their definitions: on a CUDA GPU, and elsewhere through Triton's interpreter."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import correlation_aware as ca
from correlation_aware import ops

triton = pytest.importorskip("triton", reason="Triton is not part of this build of PyTorch")

CUDA = torch.cuda.is_available()


@triton.jit
def count(zeros):
    for _ in range(triton.language.program_id(0), 1):
        pass


try:
    count[(1,)](torch.zeros(1, device="cuda" if CUDA else "cpu"))
except Exception as error:
    if CUDA or "only 0-dimensional arrays" not in str(error):
        raise
    words = f"the interpreter of Triton {triton.__version__} does not run with NumPy {np.__version__}"
    pytest.skip(f"{words}; NumPy 2.3 serves", allow_module_level=True)

DEVICE = "cuda" if CUDA else "cpu"
# Largest ||difference|| / ||definition in float64||. Storing a result costs up to 2^-9 in bf16 and 2^-12
# in float16; a gradient passes through a few rounded intermediates. float32 is another order of summation.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
DTYPES = list(TOLERANCE)

# (batch, height, width) of the streams; why each is there
SHAPES = {
    "one stream": [(2, 5, 6)],
    "template and search": [(1, 4, 4), (1, 8, 8)],
    "non-square, no side a power of two": [(2, 3, 7), (2, 9, 5)],
    "template larger than search": [(1, 11, 6), (1, 4, 3)],
    "rows and columns left over by the reduction": [(1, 5, 5), (1, 7, 9)],
    "fewer queries than any block": [(1, 2, 2), (1, 2, 3)],
}
LARGE = {  # sbt_base at 128 and 256 px, stage 1 and 3; on a GPU alone, for the interpreter's sake
    "stage 1": [(2, 32, 32), (2, 64, 64)],
    "stage 3": [(2, 16, 16), (2, 32, 32)],
}
SHAPES |= LARGE if CUDA else {}
CASES = [pytest.param(shapes, id=name) for name, shapes in SHAPES.items()]


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory is filled with NaN, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def bf16_products(monkeypatch):
    """Triton's interpreter multiplies the bits of bfloat16 as whole numbers: turn them into float32 first."""
    if CUDA:
        return
    from triton import language as tl
    from triton.runtime import interpreter

    product = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: product(self, widened(a), widened(b), *rest),
    )


def tokens(shapes):
    return sum(b * h * w for b, h, w in shapes)


def random(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def compare(function, inputs, dtype):
    """Outputs and every gradient of the kernel, against the definition in float64 on the same numbers."""
    results = []
    for backend, precision in (("triton", dtype), ("reference", torch.float64)):
        leaves = [x.to(dtype).to(DEVICE, precision).requires_grad_() for x in inputs]
        with ops.set_backend(backend):
            out = function(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        upstream = [random(*o.shape, seed=i).to(dtype).to(o) for i, o in enumerate(outputs)]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    for i, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert actual.dtype == dtype and actual.shape == expected.shape
        difference = (actual.double() - expected).norm() / expected.norm()
        assert difference < TOLERANCE[dtype], f"result {i} is off by {difference:.1e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, dim", [(1, 32), (7, 64), (130, 320), (65, 33)])
def test_add_layer_norm(rows, dim, dtype):
    inputs = [random(rows, dim), random(rows, dim, seed=1), random(dim, seed=2), random(dim, seed=3)]
    compare(lambda *x: ops.add_layer_norm(*x, 1e-6), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [*CASES, pytest.param([(1, 1, 1)], id="one token")])
def test_dwconv_gelu(shapes, dtype):
    dim = 72  # no multiple of the block of channels
    inputs = [random(tokens(shapes), dim), random(dim, 1, 3, 3, seed=1) / 3, random(dim, seed=2)]
    compare(lambda *x: ops.dwconv_gelu(*x, shapes), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", CASES)
def test_gather_patches(shapes, dtype):
    compare(lambda x: ops.gather_patches(x, shapes, 2)[0], [random(tokens(shapes), 33)], dtype)


def test_gather_patches_moves_and_says_where():
    x, shapes = random(tokens([(1, 9, 8), (1, 16, 13)]), 8).to(DEVICE), [(1, 9, 8), (1, 16, 13)]
    for ratio in (2, 4, 8):
        expected, sizes = ops.gather_patches(x, shapes, ratio)
        with ops.set_backend("triton"):
            actual, same = ops.gather_patches(x, shapes, ratio)
        assert torch.equal(actual, expected) and same == sizes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cross", [False, True], ids=["EoC-SA", "EoC-CA"])
@pytest.mark.parametrize("shapes", CASES)
def test_eoc_attention(shapes, cross, dtype):
    heads, dim = (2, 64) if dtype != torch.bfloat16 else (1, 64)  # heads of 32 and of 64
    keys = [(b, h, w // 2) for b, h, w in shapes]
    inputs = [random(tokens(shapes), dim), random(tokens(keys), 2 * dim, seed=1)]
    compare(lambda q, kv: ops.eoc_attention(q, kv, heads, shapes, keys, cross), inputs, dtype)


@pytest.mark.parametrize("heads, dim", [(3, 24), (1, 40)])
def test_eoc_attention_with_odd_heads_one_token_and_many_keys(heads, dim):
    shapes, keys = [(1, 1, 1), (1, 5, 3)], [(1, 1, 2), (1, 13, 11)]  # more than one block of keys
    inputs = [random(tokens(shapes), dim), random(tokens(keys), 2 * dim, seed=1)]
    for cross in (False, True):
        compare(
            lambda q, kv, c=cross: ops.eoc_attention(q, kv, heads, shapes, keys, c), inputs, torch.float32
        )


def test_attention_to_one_key_is_its_value():
    q, kv = random(4, 32).to(DEVICE).requires_grad_(), random(1, 64, seed=1).to(DEVICE)
    with ops.set_backend("triton"):
        actual = ops.eoc_attention(q, kv, 1, [(1, 2, 2)], [(1, 1, 1)], False)
    assert torch.equal(actual, kv[:, 32:].expand(4, -1))
    (grad,) = torch.autograd.grad(actual, q, random(4, 32, seed=2).to(DEVICE))
    assert grad.abs().max() < 1e-5  # zero but for the order of two sums of 32 products


def test_attention_survives_large_scores():
    q, kv = 80 * random(16, 32).to(DEVICE), 80 * random(16, 64, seed=1).to(DEVICE)
    expected = ops.eoc_attention(q, kv, 1, [(1, 4, 4)], [(1, 4, 4)], False)
    with ops.set_backend("triton"):
        actual = ops.eoc_attention(q, kv, 1, [(1, 4, 4)], [(1, 4, 4)], False)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-3)  # values are about 80


def test_search_only_meets_the_template_alone():
    """The last EoC-CA block asks with the search stream alone: one stream of each, of different sizes."""
    shapes, keys = [(2, 6, 6)], [(2, 2, 3)]
    inputs = [random(tokens(shapes), 64), random(tokens(keys), 128, seed=1)]
    compare(lambda q, kv: ops.eoc_attention(q, kv, 2, shapes, keys, True), inputs, torch.float32)


def operations():
    from correlation_aware.ops.add_layer_norm import triton as norm
    from correlation_aware.ops.dwconv_gelu import triton as conv
    from correlation_aware.ops.eoc_attention import triton as attention
    from correlation_aware.ops.gather_patches import triton as patches

    x, flat = random(20, 32), [1, 2, 2, 1, 4, 4]
    return {
        "add_layer_norm": (norm.add_layer_norm, (x, x + 1, random(32), random(32), 1e-6)),
        "dwconv_gelu": (conv.dwconv_gelu, (x, random(32, 1, 3, 3), random(32), flat)),
        "eoc_attention": (attention.eoc_attention, (x, random(20, 64), 1, flat, flat, True)),
        "gather_patches": (patches.gather_patches, (x, flat, 2)),
    }


@pytest.mark.parametrize("name", ["add_layer_norm", "dwconv_gelu", "eoc_attention", "gather_patches"])
def test_torch_sees_a_well_behaved_operation(name):
    operation, arguments = operations()[name]
    leaves = [a.to(DEVICE).requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    outcome = torch.library.opcheck(operation, leaves)
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.fixture
def network():
    """EoC-SA, EoC-CA of both streams, EoC-SA, and EoC-CA of the search stream alone."""
    torch.manual_seed(0)
    net = ca.create_model("sbt_test", depths=(1, 1, 2), cross_blocks=((), (0,), (1,))).to(DEVICE)
    return net, random(1, 3, 32, 40).to(DEVICE), random(1, 3, 40, 48, seed=1).to(DEVICE)


def test_a_network_on_kernels_is_the_same_network(network):
    net, template, search = network
    results = []
    for backend in ("reference", "triton"):
        net.zero_grad()
        with ops.set_backend(backend):
            features = net(template, search)
        features.square().mean().backward()
        results.append([features.detach(), *(p.grad.clone() for p in net.parameters())])
    size = torch.stack([expected.norm() for expected in results[0]]).norm()
    for expected, actual in zip(
        *results
    ):  # float32 through a dozen layers; keys' biases have no gradient but noise
        assert (actual - expected).norm() <= 1e-4 * expected.norm() + 1e-6 * size


def test_autocast_goes_through_the_kernels(network):
    net, template, search = network
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = net(template, search)
        with ops.set_backend("triton"):
            actual = net(template, search)
    assert actual.dtype == expected.dtype
    assert (actual - expected).norm() < 2e-2 * expected.norm()  # bf16 products, rounded at other places


def test_compile_and_export_see_through(network):
    net, template, search = network
    net.eval()
    with torch.no_grad(), ops.set_backend("triton"):
        expected = net(template, search)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(template, search), expected)
        program = torch.export.export(net, (template, search))
        torch.testing.assert_close(program.module()(template, search), expected)
    called = {str(n.target) for n in program.graph.nodes if str(n.target).startswith("correlation_aware.")}
    assert called == {f"correlation_aware.{name}.default" for name in operations()}


def test_backends_are_named_and_restored():
    assert ops.get_backend() == "auto"
    with pytest.raises(ValueError, match=r"backend='cuda' is not one of auto, reference, triton"):
        ops.set_backend("cuda")
    with pytest.raises(KeyError), ops.set_backend("triton"):
        raise KeyError
    assert ops.get_backend() == "auto"
    ops.set_backend("reference")
    assert ops.get_backend() == "reference"
    with ops.set_backend("triton"):
        assert ops.get_backend() == "triton"
    assert ops.get_backend() == "reference"  # the one before, not the default
    ops.set_backend("auto")


def test_kernels_that_cannot_run_say_why(monkeypatch):
    x = random(4, 8)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # on a machine with a GPU it is not set
    with ops.set_backend("triton"):
        with pytest.raises(RuntimeError, match=r"not torch\.float64"):
            ops.gather_patches(x.double(), [(1, 2, 2)], 2)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="device=cpu: move the model to a CUDA GPU"):
            ops.gather_patches(x, [(1, 2, 2)], 2)


def test_environment_sets_the_backend(monkeypatch):
    from correlation_aware.ops import backend

    for value in ("reference", "auto"):
        monkeypatch.setenv("CORRELATION_AWARE_OPS", value)
        importlib.reload(backend)
        assert backend.get_backend() == ops.get_backend() == value
    monkeypatch.setenv("CORRELATION_AWARE_OPS", "fastest")
    with pytest.raises(ValueError, match="CORRELATION_AWARE_OPS='fastest' is not one of"):
        importlib.reload(backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtypes"), [(80, ("bfloat16",)), (90, ("float32", "float16", "bfloat16"))]
)
def test_every_kernel_compiles_for_gpus_that_are_not_here(capability, dtypes, tmp_path):
    """Triton brings the assembler: machine code for A100 and H100, at the zoo's shapes, without a GPU."""
    script = Path(__file__).parent.parent / "benchmarks" / "compile_kernels.py"
    command = [sys.executable, script, "--capability", str(capability), "--json", tmp_path / "kernels.json"]
    command += ["--dtype", *dtypes] if len(dtypes) == 1 else []
    done = subprocess.run(
        command, env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads((tmp_path / "kernels.json").read_text())
    expected = {
        "add_layer_norm": {"_forward", "_backward"},
        "dwconv_gelu": {"_convolve", "_gelu_backward"},
        "eoc_attention": {"_forward", "_backward_queries", "_backward_keys"},
        "gather_patches": {"_move"},
    }
    actual = {op: {k["kernel"] for k in kernels if k["operation"] == op} for op in expected}
    assert actual == expected
    assert {k["dtype"] for k in kernels} == set(dtypes)
    assert max(k["stack"] for k in kernels) <= 64, "registers are spilled"
    assert max(k["shared"] for k in kernels) <= 99 * 1024  # bytes a block, on the smaller GPUs of these kinds
