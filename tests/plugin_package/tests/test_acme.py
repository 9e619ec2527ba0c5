"""Acme's models keep the contract. Run it with `pytest` where the package is installed."""

import pytest
import torch

import correlation_aware as ca
from correlation_aware.runtime.export import export


@pytest.fixture(params=ca.list_models("acme*"))
def model(request):
    torch.manual_seed(0)
    return ca.create_model(request.param).eval()


def images(model, templates=1, searches=1):
    sizes = model.sizes.template_size, model.sizes.search_size
    return [torch.randn(n, model.in_chans, side, side) for n, side in zip((templates, searches), sizes)]


def first(output):
    return output.scores if isinstance(output, ca.TrackOutput) else output


@torch.inference_mode()
def test_a_cached_template_gives_the_same_numbers(model):
    template, search = images(model)
    state = model.encode_template(template)
    torch.testing.assert_close(first(model(state, search)), first(model(template, search)))


@torch.inference_mode()
def test_targets_do_not_see_each_other(model):
    templates, search = images(model, templates=3)
    together = first(model(templates, search))
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], first(model(templates[i : i + 1], search)))


def test_every_parameter_is_trained(model):
    outputs = model.train()(*images(model, 2, 2))
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else [outputs.scores, outputs.boxes]
    sum(tensor.square().mean() for tensor in tensors).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@torch.inference_mode()
def test_it_survives_saving(model, tmp_path):
    ca.save_pretrained(model, tmp_path)
    pair = images(model)
    assert torch.equal(first(ca.from_pretrained(tmp_path).eval()(*pair)), first(model(*pair)))


def test_it_exports(model, tmp_path):
    (made,) = export(model, tmp_path, "torch", ["search"])  # raises if the numbers differ
    assert made.difference < 1e-5
