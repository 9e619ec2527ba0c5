"""SBT in plain, unoptimized PyTorch, as a baseline of benchmarks: the usual eager code of such networks.

Tokens are (B, N, C). Every layer runs once for the template and once for the search image; the spatial
reduction is a strided convolution; attention is written out as matrix products.
"""

import torch
from torch import Tensor, nn

from correlation_aware.models.sbt import SBTConfig


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr, self.norm = nn.Conv2d(dim, dim, sr_ratio, sr_ratio), nn.LayerNorm(dim)

    def forward(self, x: Tensor, source: Tensor, size: torch.Size) -> Tensor:
        """Attention from tokens `x` to tokens `source`, a feature map of `size` (height, width)."""
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).permute(0, 2, 1, 3)
        image = source.permute(0, 2, 1).reshape(b, c, *size)
        reduced = self.norm(self.sr(image).reshape(b, c, -1).permute(0, 2, 1))
        k, v = self.kv(reduced).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class PlainMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        x = self.fc1(x)
        image = x.transpose(1, 2).reshape(x.shape[0], -1, *size)
        return self.fc2(nn.functional.gelu(self.dwconv(image).flatten(2).transpose(1, 2)))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_ratio: float, sr_ratio: int, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = PlainAttention(dim, heads, sr_ratio), PlainMlp(dim, int(dim * mlp_ratio))

    def forward(self, z: Tensor, x: Tensor, z_size: torch.Size, x_size: torch.Size) -> tuple[Tensor, Tensor]:
        nz, nx = self.norm1(z), self.norm1(x)
        if self.cross:  # EoC-CA
            z, x = z + self.attn(nz, nx, x_size), x + self.attn(nx, nz, z_size)
        else:  # EoC-SA
            z, x = z + self.attn(nz, nz, z_size), x + self.attn(nx, nx, x_size)
        return z + self.mlp(self.norm2(z), z_size), x + self.mlp(self.norm2(x), x_size)


class PlainEmbed(nn.Module):
    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2), nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> tuple[Tensor, torch.Size]:
        image = self.proj(image)
        return self.norm(image.flatten(2).transpose(1, 2)), image.shape[2:]


class PlainSBT(nn.Module):
    """The network with this package's parameter names.

    Args:
        cfg: `correlation_aware.SBTConfig` with the default kinds of layers.
    """

    def __init__(self, cfg) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for i, dim in enumerate(cfg.dims):
            stage = nn.Module()
            stage.embed = PlainEmbed(cfg.dims[i - 1] if i else 3, dim, 3 if i else 7, cfg.strides[i])
            stage.blocks = nn.ModuleList(
                PlainBlock(dim, cfg.heads[i], cfg.mlp_ratios[i], cfg.sr_ratios[i], j in cfg.cross_blocks[i])
                for j in range(cfg.depths[i])
            )
            self.stages.append(stage)
        stage.norm = nn.LayerNorm(cfg.dims[-1], eps=1e-6)

    def load_ours(self, state_dict: dict[str, Tensor]) -> None:
        """Loads weights of `correlation_aware`'s SBT, whose spatial reduction is a linear layer."""
        own = self.state_dict()
        for name, tensor in state_dict.items():
            if name.endswith("sr.weight"):
                out, inner, r, _ = own[name].shape
                tensor = tensor.view(out, r, r, inner).permute(0, 3, 1, 2)
            own[name] = tensor.clone()
        self.load_state_dict(own)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        z, x = template, search
        for stage in self.stages:
            (z, z_size), (x, x_size) = stage.embed(z), stage.embed(x)
            for block in stage.blocks:
                z, x = block(z, x, z_size, x_size)
            if hasattr(stage, "norm"):
                x = stage.norm(x)
            z, x = (
                t.reshape(t.shape[0], *size, -1).permute(0, 3, 1, 2).contiguous()
                for t, size in ((z, z_size), (x, x_size))
            )
        return x


def plain(model: nn.Module) -> PlainSBT:
    """A `PlainSBT` with the model's weights, for `correlation-aware bench model --contender plain_sbt:plain`.

    Args:
        model: Bare `sbt_*` network without a head.

    Raises:
        TypeError: Another model.
    """
    if not isinstance(getattr(model, "config", None), SBTConfig):
        raise TypeError(
            f"plain_sbt:plain is an SBT without a head and takes no {type(model).__name__}; "
            "compare it with a bare network, such as sbt_base."
        )
    parameter = next(model.parameters())
    net = PlainSBT(model.config)
    net.load_ours(model.state_dict())
    return net.to(parameter.device, parameter.dtype).eval()
