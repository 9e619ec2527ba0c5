"""The checkpoint filter: other people's parameter names to ours. The one place where keys are renamed."""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["KEY_FORMATS", "convert_state_dict"]

KEY_FORMATS = ("auto", "correlation_aware", "sbt", "pvt_v2")

# (pattern, replacement); \d is 1-indexed in the original code of PVTv2 and SBT, 0-indexed in timm and here
_ORIGINAL = (
    (r"patch_embed([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.embed."),
    (r"block([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"norm([1-9])\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
)
_TIMM = (
    (r"patch_embed\.", lambda m: "stages.0.embed."),
    (r"(stages\.\d+)\.downsample\.", lambda m: f"{m[1]}.embed."),
)
_HEADS = (
    (r"box_head\.class_head\.", lambda m: "head.cls."),
    (r"box_head\.bbox_head\.", lambda m: "head.box."),
)


def convert_state_dict(state_dict: Mapping[str, Tensor], source: str = "auto") -> dict[str, Tensor]:
    """Renames and reshapes the tensors of a checkpoint to the names and layouts of this package.

    Args:
        state_dict: Tensors by name.
        source: `sbt` for the authors' trackers (`backbone.*`, `box_head.*`), `pvt_v2` for PVTv2 classifiers
            in the original naming or timm's, `correlation_aware` for our own (returned as they are), `auto`
            to tell by the names.

    Returns:
        Tensors by our names. The closing norms of the authors' first two stages are left out: their forward
        pass never uses them.

    Raises:
        ValueError: An unknown `source`, or names that fit none.
    """
    if source not in KEY_FORMATS:
        raise ValueError(f"source={source!r} is not one of {', '.join(KEY_FORMATS)}.")
    if source == "auto":
        source = _detect(state_dict)
    if source == "correlation_aware":
        return dict(state_dict)
    if source == "sbt":
        last = max(
            (int(m[1]) for m in (re.match(r"backbone\.norm(\d)\.", k) for k in state_dict) if m), default=0
        )
        unused = tuple(f"backbone.norm{i}." for i in range(1, last))
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(unused)}
    out = {_rename(key): tensor for key, tensor in state_dict.items()}
    return {
        key: _as_linear(tensor) if key.endswith("attn.sr.weight") else tensor for key, tensor in out.items()
    }


def _detect(state_dict: Mapping[str, Tensor]) -> str:
    if any(k.startswith(("backbone.patch_embed1.", "backbone.block1.")) for k in state_dict):
        return "sbt"
    if any(k.startswith(("patch_embed1.", "patch_embed.proj.")) for k in state_dict):
        return "pvt_v2"
    if any(k.startswith(("stages.0.embed.", "backbone.stages.0.embed.")) for k in state_dict):
        return "correlation_aware"
    raise ValueError(
        f"The parameter names ({', '.join(list(state_dict)[:3]) or 'none at all'}, ...) are neither SBT's, "
        "PVTv2's nor this package's. Name the source with source='sbt' or source='pvt_v2' if you know it."
    )


def _rename(key: str) -> str:
    prefix, rest = ("backbone.", key[9:]) if key.startswith("backbone.") else ("", key)
    for pattern, replacement in (*_ORIGINAL, *_TIMM, *_HEADS):
        rest, found = re.subn(f"^{pattern}", replacement, rest)
        if found:
            break
    rest = rest.replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
    rest = rest.replace("layers_channle.", "channel.").replace("layers_spatial.", "spatial.")
    return prefix + rest


def _as_linear(weight: Tensor) -> Tensor:
    """(out, in, r, r) of a convolution -> (out, r * r * in) of a linear layer on channels-last patches."""
    return weight.permute(0, 2, 3, 1).flatten(1).contiguous() if weight.ndim == 4 else weight
