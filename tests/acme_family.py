"""A family of networks as a stranger's package has it: nothing of SBT, and a state of two tensors."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from correlation_aware.models.contract import Sizes, TemplateState, TwoInputModel, make_state


class AcmeNet(TwoInputModel):
    """Convolutions of stride 4, 8 and 8 or 16; then every location attends to those of the template.

    The state of a template is its feature map, (B, C, H, W), and its keys, (B, H * W, C).
    """

    def __init__(self, output_stride=16, in_chans=3, **sizes):
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride={output_stride} is not one of 8, 16.")
        widths, strides = (8, 12, 16), (4, 2, output_stride // 8)
        levels = [
            {"num_chs": width, "reduction": reduction, "module": name}
            for width, reduction, name in zip(widths, (4, 8, output_stride), ("stem", "middle", "last"))
        ]
        super().__init__(levels, in_chans, Sizes(**{"template_size": 64, "search_size": 128, **sizes}))
        for level, before, width, stride in zip(levels, (in_chans, *widths), widths, strides):
            conv = nn.Conv2d(
                before, width, 7 if before == in_chans else 3, stride, 3 if before == in_chans else 1
            )
            layers = {"conv": conv, "norm": nn.GroupNorm(2, width), "act": nn.GELU()}
            self.add_module(level["module"], nn.Sequential(OrderedDict(layers)))
        self.key, self.mix = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def levels(self, image):
        if image.shape[1] != self.in_chans:
            raise ValueError(f"expected {self.in_chans} channels, not {image.shape[1]}")
        stem = self.stem(image)
        middle = self.middle(stem)
        return [stem, middle, self.last(middle)]

    def attend(self, features, keys):
        batch = max(len(features), len(keys))
        features, keys = features.expand(batch, -1, -1, -1), keys.expand(batch, -1, -1)
        queries = features.flatten(2).transpose(1, 2)
        found = F.scaled_dot_product_attention(queries, keys, keys).transpose(1, 2).reshape(features.shape)
        return self.mix(features + found)

    def encode_template(self, template):
        features = self.levels(template)[-1]
        return TemplateState([features, self.key(features).flatten(2).transpose(1, 2)])

    def forward_features(self, template, search):
        features, keys = self.state_of(template)
        return self.attend(features, keys), self.attend(self.levels(search)[-1], keys)

    def forward_intermediates(self, template, search, indices=None):
        maps = self.levels(search)
        maps[-1] = self.attend(maps[-1], self.state_of(template)[1])
        return [maps[i] for i in (range(3) if indices is None else indices)]

    def join_templates(self, states):
        return TemplateState([states[0][0], torch.cat([keys for _, keys in states], dim=1)])


class RigidNet(AcmeNet):
    """Stride 16 alone, and one template."""

    join_templates = TwoInputModel.join_templates


class MaskedNet(TwoInputModel):
    """Search features times a factor; the state has a mask of locations and the index of the best one."""

    strength = (1.0,)  # of the class: no attribute of the network shows it

    def __init__(self):
        levels = [{"num_chs": 4, "reduction": 8, "module": "conv"}]
        super().__init__(levels, sizes=Sizes(template_size=16, search_size=32))
        self.conv = nn.Conv2d(3, 4, 8, 8)

    def encode_template(self, template):
        maps = self.conv(template).flatten(2)  # B, 4, locations
        values = maps.mean(dim=1)
        return make_state([maps, values > 0, values.argmax(dim=1, keepdim=True)])

    def forward(self, template, search):
        maps, mask, best = self.state_of(template)
        factor = torch.where(mask[:, None], maps, 0).sum(dim=2, keepdim=True)
        factor = factor + maps.gather(2, best[:, None].expand(-1, 4, -1))
        return self.conv(search) * factor[..., None] * self.strength[0]


def acme(**kwargs):
    return AcmeNet(**kwargs)


def acme_rigid(in_chans=3):
    return RigidNet(in_chans=in_chans)
