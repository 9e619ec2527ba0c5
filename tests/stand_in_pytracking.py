"""A small stand-in that states what the DiMP adapter needs of pytracking: names, shapes, the order of calls.

Written for the tests; where pytracking has a ResNet, an optimizer of filters and an IoU network, this has a
convolution, a pooled filter and a linear layer.
"""

import importlib
import inspect
import math
from collections import OrderedDict
from functools import wraps
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

POOL = "ltr.external.PreciseRoIPooling.pytorch.prroi_pool"


class NetConstructor:
    """How a checkpoint remembers to build its network: by the names of a function and of its module."""

    def __init__(self, function, args, kwds):
        self.fun_name, self.fun_module = function.__name__, function.__module__
        self.args, self.kwds = args, kwds

    def function(self):
        return getattr(importlib.import_module(self.fun_module), self.fun_name)


def model_constructor(function):
    @wraps(function)
    def build(*args, **kwds):
        net = function(*args, **kwds)
        net.constructor = NetConstructor(function, args, kwds)
        return net

    return build


def save_network(net, path):
    torch.save({"net": net.state_dict(), "constructor": net.constructor}, path)


def load_network(path):
    checkpoint = torch.load(path, weights_only=False)
    constructor = checkpoint["constructor"]
    if "backbone_pretrained" in inspect.signature(constructor.function()).parameters:
        constructor.kwds["backbone_pretrained"] = False  # as pytracking's tracker always does
    net = constructor.function()(*constructor.args, **constructor.kwds)
    net.load_state_dict(checkpoint["net"])
    return net


class Backbone(nn.Module):
    """Freezes, at the first `train()`, the layers that are named: `getattr(self, name)` must exist."""

    def __init__(self, frozen_layers=()):
        super().__init__()
        self.frozen_layers = () if frozen_layers == "none" else frozen_layers

    def train(self, mode=True):
        super().train(mode)
        frozen = [self] if self.frozen_layers == "all" else [getattr(self, n) for n in self.frozen_layers]
        for layer in frozen:
            nn.Module.train(layer, False)
            layer.requires_grad_(False)
        return self


class StockBackbone(Backbone):
    """(B, 3, H, W) -> layer2 (B, 512, H / 8, W / 8), layer3 (B, 1024, H / 16, W / 16)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 8, stride=8)
        self.layer2, self.layer3 = nn.Conv2d(8, 512, 1), nn.Conv2d(8, 1024, 2, stride=2)

    def forward(self, x, output_layers):
        x = self.conv1(x)
        return OrderedDict((name, getattr(self, name)(x)) for name in output_layers)


class Classifier(nn.Module):
    """A filter pooled from the first train image, applied to every test image."""

    filter_size = 4

    def __init__(self):
        super().__init__()
        self.feature_extractor = nn.Conv2d(1024, 16, 3, padding=1, bias=False)
        self.filter_initializer = nn.Conv2d(16, 16, 1)
        self.filter_optimizer = nn.Conv2d(16, 16, 1)
        self.pool = importlib.import_module(POOL).PrRoIPool2D(1, 1, 1 / 16)

    def extract_classification_feat(self, feat):
        return F.normalize(self.feature_extractor(feat.view(-1, *feat.shape[-3:])))  # .view: contiguous

    def forward(self, train_feat, test_feat, train_bb):
        sequences = train_bb.shape[1]
        train, test = (
            self.extract_classification_feat(f).unflatten(0, (-1, sequences)) for f in (train_feat, test_feat)
        )
        weights = self.pool(train[0], rois(train_bb[0]))  # sequences, 16, 1, 1
        steps = [self.filter_initializer(weights)]
        steps.append(self.filter_optimizer(steps[0]))
        return [(test * weights[None]).sum(2) for weights in steps]


class BoxRegressor(nn.Module):
    """Overlap of proposals, from both layers, modulated by the first train image."""

    def __init__(self):
        super().__init__()
        self.reduce = nn.ModuleList([nn.Conv2d(512, 8, 1), nn.Conv2d(1024, 8, 1)])
        pool = importlib.import_module(POOL).PrRoIPool2D
        self.pools = nn.ModuleList([pool(3, 3, 1 / 8), pool(3, 3, 1 / 16)])
        self.predictor = nn.Linear(2 * 8 * 9, 1)

    def pooled(self, feat, boxes):
        return torch.cat(
            [pool(conv(f), rois(boxes)).flatten(1) for f, conv, pool in zip(feat, self.reduce, self.pools)], 1
        )

    def get_modulation(self, feat, boxes):
        return self.pooled(feat, boxes)

    def forward(self, train_feat, test_feat, train_bb, proposals):
        images, sequences, number, _ = proposals.shape
        first = [f.view(-1, sequences, *f.shape[-3:])[0] for f in train_feat]
        modulation = self.get_modulation(first, train_bb[0]).repeat(images, 1).repeat_interleave(number, 0)
        overlap = self.predictor(modulation * self.pooled(test_feat, proposals.flatten(0, 1)))
        return overlap.view(images, sequences, number)


def rois(boxes):
    """(N, 4) or (N, P, 4) x, y, w, h -> (N * P, 5) index, x0, y0, x1, y1."""
    number = boxes[:, None].shape[1] if boxes.ndim == 2 else boxes.shape[1]
    index = torch.arange(len(boxes), dtype=boxes.dtype).repeat_interleave(number)[:, None]
    boxes = boxes.reshape(-1, 4)
    return torch.cat([index, boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


class DiMPnet(nn.Module):
    def __init__(self, feature_extractor, classifier, bb_regressor, classification_layer, bb_regressor_layer):
        super().__init__()
        self.feature_extractor, self.classifier = feature_extractor, classifier
        self.bb_regressor, self.bb_regressor_layer = bb_regressor, bb_regressor_layer
        self.classification_layer = [classification_layer]
        self.output_layers = sorted({classification_layer, *bb_regressor_layer})

    def extract_backbone_features(self, im, layers=None):
        return self.feature_extractor(im, layers or self.output_layers)

    def get_backbone_clf_feat(self, features):
        return features[self.classification_layer[0]]

    def get_backbone_bbreg_feat(self, features):
        return [features[name] for name in self.bb_regressor_layer]

    def extract_classification_feat(self, features):
        return self.classifier.extract_classification_feat(self.get_backbone_clf_feat(features))


@model_constructor
def dimpnet50(
    filter_size=1,
    optim_iter=5,
    optim_init_step=1.0,
    optim_init_reg=0.01,
    classification_layer="layer3",
    feat_stride=16,
    backbone_pretrained=True,
    clf_feat_blocks=0,
    clf_feat_norm=True,
    init_filter_norm=False,
    final_conv=True,
    out_feature_dim=512,
    init_gauss_sigma=1.0,
    num_dist_bins=5,
    bin_displacement=1.0,
    mask_init_factor=4.0,
    iou_input_dim=(256, 256),
    iou_inter_dim=(256, 256),
    score_act="relu",
    act_param=None,
    target_mask_act="sigmoid",
    detach_length=math.inf,
    frozen_backbone_layers=(),
):
    return DiMPnet(StockBackbone(), Classifier(), BoxRegressor(), "layer3", ["layer2", "layer3"])


class NetWithBackbone:
    """The network of a checkpoint, loaded by `initialize`, and images of 0..255 into it."""

    def __init__(self, net_path):
        self.net_path, self.net = net_path, None

    def initialize(self):
        self.net = load_network(self.net_path).eval()

    def __getattr__(self, name):
        return getattr(self.net, name)

    def preprocess_image(self, im):
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        return (im / 255 - mean) / std

    def extract_backbone(self, im):
        return self.net.extract_backbone_features(self.preprocess_image(im))


def sample_patch(im, pos, sample_sz, output_sz):
    """Crop of `sample_sz` around `pos` (row, column), and its (1, 4) top, left, bottom, right in pixels."""
    size = torch.tensor([im.shape[2], im.shape[3]])
    theta = torch.diag_embed((sample_sz / size).flip(0))
    theta = torch.cat([theta, ((2 * pos + 1) / size - 1).flip(0)[:, None]], 1)[None]
    grid = F.affine_grid(theta, [1, 1, *output_sz.long().tolist()], align_corners=False)
    patch = F.grid_sample(im, grid, padding_mode="border", align_corners=False)
    return patch, torch.cat([pos + 0.5 - sample_sz / 2, pos + 0.5 + sample_sz / 2])[None]


class DiMP:
    def __init__(self, params):
        self.params = params

    def initialize(self, image, info):
        self.params.net.initialize()
        self.net = self.params.net
        x, y, w, h = info["init_bbox"]
        self.pos = torch.tensor([y + (h - 1) / 2, x + (w - 1) / 2])
        self.target_sz = torch.tensor([float(h), float(w)])
        self.img_sample_sz = torch.full((2,), float(self.params.image_sample_size))
        self.target_scale = (5 * self.target_sz).prod().sqrt() / self.img_sample_sz.prod().sqrt()
        self.memory = [self.get_classification_features(self.generate_init_samples(as_tensor(image)))]

    def track(self, image):
        scales = self.target_scale * torch.ones(1)
        features, _, _ = self.extract_backbone_features(
            as_tensor(image), self.pos, scales, self.img_sample_sz
        )
        self.memory.append(self.get_classification_features(features))
        return features

    @torch.no_grad()
    def generate_init_samples(self, im):
        patch, _ = sample_patch(
            im, self.pos.round(), self.target_scale * self.img_sample_sz, self.img_sample_sz
        )
        return self.net.extract_backbone(torch.cat([patch, patch.flip(3)]))

    @torch.no_grad()
    def extract_backbone_features(self, im, pos, scales, sz):
        patches, coords = zip(*(sample_patch(im, pos, s * sz, sz) for s in scales))
        return self.net.extract_backbone(torch.cat(patches)), torch.cat(coords), torch.cat(patches)

    @torch.no_grad()
    def get_classification_features(self, features):
        return self.net.extract_classification_feat(features)

    def get_sample_location(self, coords):
        centers = 0.5 * (coords[:, :2] + coords[:, 2:] - 1)
        return centers, ((coords[:, 2:] - coords[:, :2]) / self.img_sample_sz).prod(1).sqrt()

    def get_iounet_box(self, pos, sz, sample_pos, sample_scale):
        """Box (x, y, w, h) in pixels of the sample."""
        center = (pos - sample_pos) / sample_scale + (self.img_sample_sz - 1) / 2
        return torch.cat([(center - (sz / sample_scale - 1) / 2).flip(0), (sz / sample_scale).flip(0)])


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float().permute(2, 0, 1)[None]


def parameters(net_path, image_sample_size):
    return SimpleNamespace(net=NetWithBackbone(net_path), image_sample_size=image_sample_size)


def modules() -> dict[str, ModuleType]:
    """What to put into `sys.modules`."""
    contents = {
        "ltr": (model_constructor, load_network),
        "ltr.models.backbone.base": (Backbone,),
        "ltr.models.tracking.dimpnet": (DiMPnet, dimpnet50),
        "pytracking.features.preprocessing": (sample_patch,),
        "pytracking.features.net_wrappers": (NetWithBackbone,),
        "pytracking.tracker.dimp.dimp": (DiMP,),
    }
    made = {name: ModuleType(name) for name in contents}
    for name, objects in contents.items():
        for thing in objects:
            setattr(made[name], thing.__name__, thing)
    return made
