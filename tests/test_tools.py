"""Tools that look into a network see all of it: profilers, quantizers, hooks, tracers, torch.func."""

import copy
import re
import types
from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from timm.models import FeatureHookNet, create_feature_extractor, group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import correlation_aware as ca
from correlation_aware.ops import can_bypass

KINDS = ("sbt_test", "sbt_test_track", "sbt_test_cls")
CONFIGURATIONS = ({}, {"attention": "pooled"}, {"position": "absolute", "patch_embed": "patchify"})


def make(name, **arguments):
    torch.manual_seed(0)
    return ca.create_model(name, **arguments).eval()


def images(name, batch=1):
    generator = torch.Generator().manual_seed(1)
    pair = [torch.randn(batch, 3, side, side, generator=generator) for side in (64, 128)]
    return pair[1:] if name.endswith("_cls") else pair


def features(model, *inputs):
    """One tensor of a model's output."""
    output = model(*inputs)
    return output if isinstance(output, torch.Tensor) else torch.cat([output.logits, output.boxes], dim=1)


def layers(model, *kinds):
    return {name: m for name, m in model.named_modules() if type(m) in (kinds or (nn.Linear, nn.Conv2d))}


@pytest.mark.parametrize("arguments", CONFIGURATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_layers_are_of_the_exact_types_that_tools_look_for(name, arguments):
    model = make(name, **arguments)
    parameters = [name for name, _ in model.named_parameters() if not name.endswith("pos_embed")]
    assert {name.rpartition(".")[0] for name in parameters} == layers(
        model, nn.Linear, nn.Conv2d, nn.LayerNorm
    ).keys()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_hooks_on_the_types_count_every_multiplication(name):
    """As thop counts; the products of the attention have no layer."""
    model, inputs, macs = make(name), images(name), 0

    def count(module, _, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    operators = counter.get_flop_counts()["Global"].items()
    expected = sum(flops for operator, flops in operators if "attention" not in str(operator)) // 2
    for layer in layers(model).values():
        layer.register_forward_hook(count)
    model(*inputs)
    assert macs == expected > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_dynamic_quantization_reaches_every_linear_layer(name):
    model = make(name)
    expected = features(model, *images(name))
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    kinds = Counter(type(m).__module__.partition(".nn.")[0] for m in quantized.modules())
    assert not layers(quantized, nn.Linear) and kinds["torch.ao"] >= len(layers(model, nn.Linear))
    error = (features(quantized, *images(name)) - expected).abs().max()
    assert 0 < error < 0.1 * expected.abs().max()  # eight bits


class Halved(torch.Tensor):
    """A weight of which `F.linear` alone knows what to do, as those of torchao are."""

    @classmethod
    def __torch_function__(cls, function, classes, args=(), kwargs=None):
        if function is F.linear:
            tokens, weight, bias = args
            return F.linear(tokens, weight.as_subclass(torch.Tensor) / 2, bias)
        assert function not in (F.conv2d, torch.Tensor.__getitem__), function
        return super().__torch_function__(function, classes, args, kwargs)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_weights_of_another_tensor_type(name):
    model, expected = make(name), make(name)
    for layer, twin in zip(layers(model, nn.Linear).values(), layers(expected, nn.Linear).values()):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Halved), requires_grad=False)
        twin.weight.div_(2)
    inputs = images(name)
    torch.testing.assert_close(features(model, *inputs), features(expected, *inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_forward_hooks_of_all_modules_fire_and_change_nothing(name, gradients):
    model, inputs, seen = make(name), images(name), {}
    with torch.set_grad_enabled(gradients):
        expected = features(model, *inputs)
        for path, module in model.named_modules():
            module.register_forward_hook(lambda m, i, output, path=path: seen.update({path: output}))
        torch.testing.assert_close(features(model, *inputs), expected, rtol=0, atol=1e-5)
    containers = {path for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    assert seen.keys() == {path for path, _ in model.named_modules()} - containers
    convs = [path for path in seen if path.endswith("dwconv")]
    assert convs and all((seen[path] < -0.2).any() for path in convs)  # GELU, in place, would leave none


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", KINDS)
def test_backward_hooks_of_all_modules_fire(name):
    model, seen = make(name), set()
    for path, module in model.named_modules():
        module.register_full_backward_hook(lambda m, i, o, path=path: seen.add(path))
    features(model, *images(name)).square().sum().backward()
    containers = {path for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    assert seen == {path for path, _ in model.named_modules()} - containers


def test_grad_cam_on_the_last_norm():
    model, maps, slopes = make("sbt_test_cls", num_classes=5), [], []
    model.stages[-1].norm.register_forward_hook(lambda m, i, output: maps.append(output))
    model.stages[-1].norm.register_full_backward_hook(lambda m, i, output: slopes.append(output[0]))
    model(*images("sbt_test_cls"))[0, 3].backward()
    assert maps[0].shape == slopes[0].shape == (16, 32)  # 4 x 4 locations
    torch.testing.assert_close(slopes[0][0], model.head.weight[3] / 16)


@torch.no_grad()
def test_a_replaced_forward_and_a_global_hook_are_called():
    net, inputs = make("sbt_test"), images("sbt_test")
    calls = Counter()
    for layer in layers(net, nn.Linear, nn.LayerNorm, nn.Conv2d).values():
        forward = layer.forward

        def count(self, x, forward=forward):
            calls[type(self)] += 1
            return forward(x)

        layer.forward = types.MethodType(count, layer)  # as accelerate's hooks do
    net(*inputs)
    replaced = copy.deepcopy(calls)
    assert min(replaced[kind] for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d)) > 0
    calls.clear()
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.update([type(m)]))
    make("sbt_test")(*inputs)
    hook.remove()
    assert {kind: calls[kind] for kind in replaced} == replaced


@torch.no_grad()
def test_pruned_and_parametrized_weights_count():
    net, expected, inputs = make("sbt_test"), make("sbt_test"), images("sbt_test")

    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    kinds = nn.Linear, nn.LayerNorm, nn.Conv2d
    for layer, twin in zip(layers(net, *kinds).values(), layers(expected, *kinds).values()):
        prune.identity(layer, "weight")
        layer.weight_orig.div_(2)  # the hook of `prune` makes the weight of it
        twin.weight.div_(2)
    torch.testing.assert_close(net(*inputs), expected(*inputs), rtol=0, atol=1e-5)
    again = make("sbt_test")
    for layer in list(layers(again, *kinds).values()):
        parametrize.register_parametrization(layer, "weight", Half())
    torch.testing.assert_close(again(*inputs), expected(*inputs), rtol=0, atol=1e-5)


def test_only_layers_that_nobody_watches_are_bypassed():
    layer = nn.Linear(2, 2)
    assert can_bypass(layer, nn.Linear)
    assert not can_bypass(layer, nn.Conv2d)
    for register in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        name = f"register_{register}_hook"
        handle = getattr(layer, name)(lambda *_: None)
        assert not can_bypass(layer, nn.Linear), name
        handle.remove()
    assert can_bypass(layer, nn.Linear)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Halved))
    assert not can_bypass(layer, nn.Linear)


@torch.no_grad()
def test_a_convolution_of_another_geometry_is_called():
    net, inputs = make("sbt_test"), images("sbt_test")
    before = net(*inputs)
    for block in (block for stage in net.stages for block in stage.blocks):
        block.mlp.dwconv.padding_mode = "circular"
    assert (net(*inputs) - before).abs().max() > 0.01


@torch.no_grad()
def test_a_hook_gets_the_maps_of_a_stage():
    model = make("sbt_test_cls")
    image = images("sbt_test_cls")[0]
    hooked = FeatureHookNet(copy.deepcopy(model), out_indices=(0, 1, 2, 3))(image)
    expected = model.forward_intermediates(image, intermediates_only=True)
    assert len(hooked) == 4
    for actual, intermediate in zip(hooked, expected):
        assert torch.equal(actual, intermediate)

    net, seen = make("sbt_test"), []
    for stage in net.stages:
        stage.register_forward_hook(lambda m, i, output: seen.append(output))
    z, x = images("sbt_test")
    intermediates = net.forward_intermediates(z, x)
    assert len(seen) == 6  # template, then search
    for actual, intermediate in zip(seen[3:], intermediates):
        assert torch.equal(actual, intermediate)
    seen.clear()
    pair = net.forward_features(net.encode_template(z), x)
    assert all(torch.equal(actual, expected) for actual, expected in zip(seen[-1], pair))


def test_stages_can_be_sharded():
    """FSDP2 gathers a stage's parameters in a hook on its call."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_gloo_available():
        pytest.skip("needs the gloo backend")
    if torch.__version__.startswith("2.6."):
        pytest.skip("FSDP2 of PyTorch 2.6 does not run on a CPU")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in KINDS:
            model, inputs = make(name), images(name)
            expected = features(model, *inputs)
            expected.square().mean().backward()
            grads = [p.grad for p in model.parameters()]
            sharded = make(name)
            for stage in getattr(sharded, "backbone", sharded).stages:
                fully_shard(stage, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            output = features(sharded, *inputs)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
            output.square().mean().backward()
            for p, expected_grad in zip(sharded.parameters(), grads):
                torch.testing.assert_close(p.grad.full_tensor(), expected_grad, rtol=1e-3, atol=1e-6)
    finally:
        dist.destroy_process_group()


def lr_scales(model):
    groups = param_groups_layer_decay(model, layer_decay=0.75)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: scales[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "arguments", "head"),
    [
        ("sbt_test", {}, ""),
        ("sbt_test_track", {}, "head."),
        ("sbt_test_cls", {}, "head."),
        ("sbt_test", {"features_only": True}, ""),
        ("sbt_test", {"position": "absolute", "stage_norms": True}, ""),
    ],
)
def test_layer_decay_grows_with_depth(name, arguments, head):
    model = ca.create_model(name, **arguments)
    network = getattr(model, "backbone", getattr(model, "model", model))
    depth = {}  # (stage, block): scales; the first embedding is a group, others belong to their first block
    for parameter, scale in lr_scales(model).items():
        match = re.search(r"stages\.(\d)\.(\w+)(?:\.(\d+))?", parameter)
        if match is None:
            assert parameter.startswith("head.") and scale == 1
            continue
        stage, part, block = int(match[1]), match[2], match[3]
        if part == "norm":
            block = len(network.stages[stage].blocks) - 1
        elif part != "blocks":
            block = 0 if stage else -1
        depth.setdefault((stage, int(block)), set()).add(scale)
    assert all(len(scales) == 1 for scales in depth.values())
    order = [scales.pop() for _, scales in sorted(depth.items())]
    assert all(later == pytest.approx(scale / 0.75) for scale, later in pairwise(order))
    assert order[-1] == (0.75 if head else 1)


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_of_the_classifier_are_those_of_pvt_v2(coarse):
    import timm

    def groups(model):
        found = {}
        for name, group in group_parameters(model, model.group_matcher(coarse), reverse=True).items():
            name = name.replace("patch_embed.", "stages.0.embed.").replace("downsample.", "embed.")
            where = name if name.startswith("stages.0.embed") else ".".join(name.split(".")[:2])
            found.setdefault(where.rpartition("embed")[0] or where, set()).add(group)
        return found

    ours = groups(ca.create_model("sbt_test_cls", depths=(1, 1, 1, 1)))
    assert ours == groups(timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1)))  # a block a stage: the same


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_traces_are_the_same_with_and_without_gradients(name):
    model, inputs = make(name), images(name)
    traced = torch.jit.trace(model, tuple(inputs))  # checks itself, without gradients
    with torch.no_grad():
        torch.testing.assert_close(features(model, *inputs), _joined(traced(*inputs)), rtol=0, atol=1e-5)


def _joined(output):
    return output if isinstance(output, torch.Tensor) else torch.cat([output[0], output[2]], dim=1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_torch_script_is_refused_with_the_alternatives(name):
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile SBT.*torch\.export"):
        torch.jit.script(make(name))


@torch.no_grad()
def test_fx_takes_a_stage_as_a_leaf():
    model = make("sbt_test_cls")
    (image,) = images("sbt_test_cls")
    extractor = create_feature_extractor(model, {"stages.1": "stride 8", "head": "logits"})
    output = extractor(image)
    assert torch.equal(output["logits"], model(image))
    (expected,) = model.forward_intermediates(image, [1], intermediates_only=True)
    assert torch.equal(output["stride 8"], expected)
    with pytest.raises(TypeError, match="leaf module"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(TypeError, match="features_only=True"):
        torch.fx.symbolic_trace(make("sbt_test"))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_name_their_layers(strict):
    stage = make("sbt_test", stage_norms=True).stages[0]
    program = torch.export.export(stage, tuple(images("sbt_test")[:1]), strict=strict)
    stacks = (node.meta.get("nn_module_stack", {}).values() for node in program.graph.nodes)
    paths = {path for stack in stacks for path, _ in stack}
    assert {"norm", "blocks.0.norm2", "blocks.0.mlp.fc1", "blocks.0.mlp.dwconv"} <= paths


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", KINDS)
def test_per_sample_gradients_and_ensembles(name):
    model, inputs = make(name), images(name, batch=3)
    if name == "sbt_test_cls":
        model.reset_classifier(5)
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    goal = torch.randn(features(model, *(i[:1] for i in inputs)).shape, generator=generator)

    def loss(parameters, *inputs):
        output = functional_call(model, parameters, tuple(i[None] for i in inputs))
        return (_joined(output) * goal).sum()

    axes = (None, *(0 for _ in inputs))
    singly = [[i[b] for i in inputs] for b in range(3)]
    expected = torch.stack([loss(parameters, *sample) for sample in singly])
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(vmap(loss, axes)(parameters, *inputs), expected, rtol=1e-4, atol=1e-3)
    grads = vmap(grad(loss), axes)(parameters, *inputs)
    for b, sample in enumerate(singly):
        for key, exact in grad(loss)(parameters, *sample).items():
            assert (grads[key][b] - exact).norm() <= 1e-4 * exact.norm() + 1e-4, key
    both = {key: torch.stack([value, 1.01 * value]) for key, value in parameters.items()}
    ensemble = vmap(loss, (0, *(None for _ in inputs)))(both, *singly[0])
    torch.testing.assert_close(ensemble[0], expected[0], rtol=1e-4, atol=1e-3)
    assert ensemble[1] != ensemble[0]
