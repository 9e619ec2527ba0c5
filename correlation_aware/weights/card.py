"""Model cards: what a repository on the Hub, or a saved folder, says about its model."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from correlation_aware.models.contract import Sizes
from correlation_aware.models.registry import registered_models
from correlation_aware.models.tracker import TrackModel
from correlation_aware.weights.manifest import Measurement

__all__ = ["LICENSES", "check_license", "model_card"]

# identifiers that the Hub knows: SPDX identifiers in lower case, and some of its own
_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa
odbl odc-by openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib other unknown
"""
LICENSES = frozenset(_LICENSES.split())


def check_license(license: str) -> None:
    """Raises `ValueError` unless the Hub knows the license; the message lists similar identifiers."""
    if license not in LICENSES:
        words = re.findall(r"[a-z]+", license.lower())
        near = sorted(known for known in LICENSES if any(known.startswith(word) for word in words))
        hint = f"Near: {', '.join(near[:6])}. " if near else ""
        raise ValueError(
            f"license={license!r} is not an identifier that the Hub knows, such as apache-2.0 or mit. "
            f"{hint}Use 'other' for a license of your own and put its text into the repository."
        )


def model_card(
    model: nn.Module,
    name: str | None = None,
    location: str | None = None,
    *,
    training: str = "Not described.",
    license: str | None = None,
    results: Sequence[Measurement] = (),
    sha256: str | None = None,
) -> str:
    """Text of a README.md with the metadata that the Hub reads.

    Args:
        model: A model of `create_model`.
        name: Title, such as `model.tag`; by default the architecture.
        location: `hf-hub:organisation/name` or a path, as the usage example has it.
        training: Description of the training.
        license: Identifier that the Hub knows; by default that of the weights the model was made with.
        results: Measurements, as a table and in the metadata.
        sha256: Hash of the file of weights.

    Raises:
        ValueError: An unknown license.
    """
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if license is not None:
        check_license(license)
    elif cfg.get("license") in LICENSES:
        license = cfg["license"]
    name = name or cfg["architecture"]
    package, about, arxiv = _family(cfg["architecture"], model)
    task, usage = _usage(model, location or "path/to/this/folder")
    data = ModelCardData(
        license=license,
        library_name="correlation_aware",
        tags=["correlation_aware", "visual-object-tracking", *(f"arxiv:{number}" for number in arxiv)],
        pipeline_tag=None if task == "visual-object-tracking" else task,  # the Hub has no such pipeline
        model_name=name if results else None,  # of the results
        eval_results=[_eval_result(result, task) for result in results] or None,
    )
    install = "" if package == "correlation_aware" else f" It needs the plug-in package `{package}`."
    rows = [
        f"| {_cell(r.dataset)} | {_cell(r.metric)} | {r.value:g} | `{_cell(r.command)}` |" for r in results
    ]
    table = ["| Dataset | Metric | Value | Command |", "|---|---|---|---|", *rows]
    parts = [
        f"---\n{data.to_yaml().strip()}\n---\n# {name}",
        f"`{cfg['architecture']}` of `correlation_aware`, a zoo of networks for visual tracking.{install}",
        about,
        f"```python\nimport correlation_aware as ca\n\n{usage}\n```",
        f"Pixels in 0..1 are normalized with mean {_numbers(cfg['mean'])} and std {_numbers(cfg['std'])}.",
        f"## Training\n{training}",
        "## Results\n" + ("\n".join(table) if results else "No measurements."),
        f"sha256 of `model.safetensors`: `{sha256}`" if sha256 else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _family(architecture: str, model: nn.Module) -> tuple[str, str, list[str]]:
    """Package, description and arXiv numbers of a model, from the docstring of the module that defines it.

    By timm's convention that begins with a sentence on the family, and a paragraph has its paper and link.
    """
    module = registered_models().get(architecture, type(model)).__module__
    paragraphs = (getattr(sys.modules.get(module), "__doc__", None) or "").strip().split("\n\n")
    links = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")
    chosen = [p for i, p in enumerate(paragraphs) if i == 0 or links.search(p)]
    text = "\n\n".join(" ".join(p.split()) for p in chosen)
    return module.partition(".")[0], text, list(dict.fromkeys(links.findall(text)))


def _usage(model: nn.Module, location: str) -> tuple[str, str]:
    """Task and example of use."""
    channels = getattr(model, "in_chans", 3)
    sizes = getattr(model, "sizes", None)
    if isinstance(model, TrackModel):
        return "visual-object-tracking", (
            f'tracker = ca.create_tracker("{location}")\n'
            "tracker.init(frame, box)  # RGB frame, uint8, (H, W, 3); x, y, w, h of the target in pixels\n"
            "result = tracker.update(next_frame)  # result.box, result.score, result.lost"
        )
    load = f'model = ca.create_model("{location}", pretrained=True).eval()\n'
    if isinstance(sizes, Sizes):
        z, x = sizes.template_size, sizes.search_size
        return "image-feature-extraction", (
            f"{load}# normalized images: (B, {channels}, {z}, {z}) and (B, {channels}, {x}, {x})\n"
            "features = model(template, search)"
        )
    side = model.pretrained_cfg["input_size"][-1]  # type: ignore[index]
    num_classes = getattr(model, "num_classes", 0)
    task, output = (
        ("image-classification", "logits") if num_classes else ("image-feature-extraction", "features")
    )
    return task, f"{load}{output} = model(image)  # normalized image, (B, {channels}, {side}, {side})"


def _eval_result(result: Measurement, task: str) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=_slug(result.dataset),
        dataset_name=result.dataset,
        metric_type=_slug(result.metric),
        metric_name=result.metric,
        metric_value=result.value,
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "other"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
