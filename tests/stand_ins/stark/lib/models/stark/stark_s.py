"""The interface of the STARK-S network: backbone calls one by one, then the transformer on their sequence."""

from torch import nn

from .backbone import build_backbone


class STARKS(nn.Module):
    def __init__(self, backbone, hidden_dim):
        super().__init__()
        self.backbone = backbone
        self.bottleneck = nn.Conv2d(backbone.num_channels, hidden_dim, 1)
        self.transformer = nn.TransformerEncoderLayer(hidden_dim, 1, hidden_dim, dropout=0.0)
        self.box_head = nn.Linear(hidden_dim, 4)
        self.cls_head = nn.Linear(hidden_dim, 1)

    def forward_backbone(self, tensor_list):
        maps, positions = self.backbone(tensor_list)
        features = self.bottleneck(maps[-1].tensors)
        rows = features.view(*features.shape[:2], -1).permute(2, 0, 1)  # HW, B, C; needs contiguous maps
        return {
            "feat": rows,
            "mask": maps[-1].mask.flatten(1),
            "pos": positions[-1].flatten(2).permute(2, 0, 1),
        }

    def forward_transformer(self, seq_dict):
        tokens = seq_dict["feat"] + seq_dict["pos"]
        memory = self.transformer(tokens, src_key_padding_mask=seq_dict["mask"]).mean(dim=0)  # B, C
        return self.box_head(memory).sigmoid(), self.cls_head(memory)

    def forward(self, img=None, seq_dict=None, mode="backbone"):
        return self.forward_backbone(img) if mode == "backbone" else self.forward_transformer(seq_dict)


def build_starks(cfg):
    return STARKS(build_backbone(cfg), cfg.MODEL.HIDDEN_DIM)
