"""Sessions on a CPU fuse batch norms into convolutions, and nobody can tell but by the clock."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Conv2dSame, create_conv2d
from torch import nn

import correlation_aware as ca
from correlation_aware.ops.linear import X86
from correlation_aware.runtime.fused_convolutions import (
    MAX_LAYOUTS,
    FusedConvolution,
    fuse_convolutions,
    refresh,
)
from correlation_aware.runtime.session import InferenceSession

pytestmark = pytest.mark.skipif(
    not (X86 and torch.backends.mkldnn.is_available()), reason="oneDNN for x86 is not there"
)


def trained_like(model: nn.Module) -> nn.Module:
    """Batch norms that change their input."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                tensor.uniform_(low, low + 1, generator=generator)
            for parameter, low in ((module.weight, 0.5), (module.bias, -0.5)):
                parameter.data.uniform_(low, low + 1, generator=generator)
    return model.eval()


def fused(model: nn.Module) -> list[FusedConvolution]:
    return [module for module in model.modules() if isinstance(module, FusedConvolution)]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "tf_efficientnet_lite0", "resnet18"])
def test_networks_of_timm(name):
    torch.manual_seed(0)
    model, image = trained_like(timm.create_model(name, num_classes=0)), torch.randn(2, 3, 45, 64)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    copied = fuse_convolutions(model, lambda network: network(image))
    assert len(fused(copied)) == norms and not fused(model)
    # other sizes need other padding; odd ones pad by the same on both sides
    with torch.inference_mode():
        for size in ((45, 64), (64, 45), (64, 64), (47, 33)):
            image = torch.randn(2, 3, *size)
            torch.testing.assert_close(copied(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@torch.inference_mode()
def test_padding_as_of_tensorflow(kernel, stride):
    torch.manual_seed(0)
    conv = create_conv2d(4, 8, kernel, stride=stride, padding="same")
    if type(conv) is not Conv2dSame:  # timm gives plain convolutions where padding is the same everywhere
        conv = Conv2dSame(4, 8, kernel, stride=stride)
    norm = trained_like(nn.BatchNorm2d(8))
    replacement = FusedConvolution(conv, norm)
    for height in range(1, 9):
        for width in (7, 8, 9):
            image = torch.randn(1, 4, height, width)
            torch.testing.assert_close(replacement(image), norm(conv(image)), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_images_in_any_memory_format():
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), trained_like(nn.BatchNorm2d(8))
    replacement, image = FusedConvolution(conv, norm), torch.randn(2, 16, 16, 3).permute(0, 3, 1, 2)
    for same in (image, image.contiguous(), image.mT):
        torch.testing.assert_close(replacement(same), norm(conv(same)), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_weights_are_kept_for_a_few_sizes_until_refresh():
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), trained_like(nn.BatchNorm2d(8))
    replacement = FusedConvolution(conv, norm)
    for size in (*range(4, 12), 4):
        image = torch.randn(1, 3, size, size)
        torch.testing.assert_close(replacement(image), norm(conv(image)), rtol=0, atol=1e-5)
        assert len(replacement._fused) <= MAX_LAYOUTS
    before = replacement(image)
    conv.weight.mul_(2)
    assert torch.equal(replacement(image), before)
    replacement.refresh()
    torch.testing.assert_close(replacement(image), norm(conv(image)), rtol=0, atol=1e-5)


def test_a_convolution_with_two_readers_or_weights_of_its_own_kind_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.plain, self.c = nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(4)
            self.text, self.e = nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)
            self.wide, self.f = Conv2dSame(3, 4, 3, stride=2, dilation=2), nn.BatchNorm2d(4)
            self.last, self.d = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y, z = self.conv(x), self.last(x)
            last = self.d(z) + z if self.reads_twice else self.d(z)
            wide = self.f(self.wide(x)).mean() + self.e(self.text(x))[:, :, 2:, 2:]
            return torch.cat([self.a(y), self.b(y), self.c(self.plain(x))[:, :, 2:, 2:], wide, last])

    model, image = trained_like(Two()), torch.randn(1, 3, 8, 8)
    model.reads_twice = False
    assert [m.conv for m in fused(fuse_convolutions(model, lambda network: network(image)))] == [model.last]
    model.reads_twice = True
    assert fuse_convolutions(model, lambda network: network(image)) is model
    sbt = ca.create_model("sbt_test").eval()
    assert InferenceSession(sbt)._network is sbt
    assert InferenceSession(ca.create_model("siam_test"), dtype=torch.float64)._network.num_features == 16


def test_a_session_gives_the_numbers_of_its_model():
    torch.manual_seed(0)
    model = trained_like(ca.create_model("siam_test_track", neck="dw_corr"))
    session = InferenceSession(model)
    assert session.model is model and fused(session._network) and not fused(model)
    assert session._network.head is model.head  # modules without a batch norm are shared
    template, search = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128)

    def check(session: InferenceSession) -> None:
        with torch.inference_mode():
            expected = model(template, search)
        scores, boxes = session(search)
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=1e-5)

    session.set_template(template)
    check(session)
    check(copy.deepcopy(session))
    check(pickle.loads(pickle.dumps(session)))
    model.backbone.extractor.bn1.weight.data.mul_(2)  # new weights count from the next template on
    session.set_template(template)
    check(session)
    calls = []
    model.backbone.extractor.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    session(search)
    assert len(calls) == 1


def test_gradients_and_training_see_the_plain_layers():
    model, image = trained_like(timm.create_model("test_resnet", num_classes=0)), torch.randn(1, 3, 32, 32)
    copied = fuse_convolutions(model, lambda network: network(image))
    copied(image).sum().backward()
    assert model.conv1[0].weight.grad.abs().max() > 0
    before = model.bn1.running_mean.clone()
    copied.train()(image.repeat(2, 1, 1, 1))
    assert not torch.equal(model.bn1.running_mean, before)
    refresh(copied.eval())
    with torch.inference_mode():
        torch.testing.assert_close(copied(image), model(image), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_bfloat16():
    model = trained_like(ca.create_model("siam_test_track"))
    template, search = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    expected = model(template, search).boxes
    session = InferenceSession(model, dtype=torch.bfloat16)
    session.set_template(template)
    assert (session(search)[1] - expected).abs().max() < 0.05
