"""The interface of OSTrack's network: one backbone call on both images, then the head on search tokens."""

import torch
from torch import nn


class ViT(nn.Module):
    """OSTrack's own backbone: tokens of both images in, tokens of both out."""

    embed_dim = 24

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, self.embed_dim, 16, stride=16)

    def forward(self, z, x, **_):
        tokens = [self.patch_embed(image).flatten(2).transpose(1, 2) for image in (z, x)]
        return torch.cat(tokens, dim=1), {"attn": None}


class CenterHead(nn.Module):
    def __init__(self, channels, feat_sz):
        super().__init__()
        self.feat_sz = feat_sz
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 5, 1)  # score, size, offset

    def forward(self, features, gt_score_map=None):
        return self.conv2(self.conv1(features).relu()).sigmoid()


def build_box_head(cfg, hidden_dim):
    return CenterHead(hidden_dim, cfg.DATA.SEARCH.SIZE // cfg.MODEL.BACKBONE.STRIDE)


class OSTrack(nn.Module):
    def __init__(self, transformer, box_head, aux_loss=False, head_type="CENTER"):
        super().__init__()
        self.backbone, self.box_head, self.head_type = transformer, box_head, head_type
        self.side = box_head.feat_sz

    def forward(self, template, search, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False):
        tokens, extra = self.backbone(
            z=template,
            x=search,
            ce_template_mask=ce_template_mask,
            ce_keep_rate=ce_keep_rate,
            return_last_attn=return_last_attn,
        )
        last = tokens[:, -(self.side**2) :].permute(0, 2, 1).contiguous()  # B, C, HW
        out = self.box_head(last.view(*last.shape[:2], self.side, self.side))
        return {"score_map": out[:, :1], "maps": out[:, 1:], "backbone_feat": tokens, **extra}


def build_ostrack(cfg, training=True):
    backbone = ViT()
    return OSTrack(backbone, build_box_head(cfg, backbone.embed_dim), head_type=cfg.MODEL.HEAD.TYPE)
