"""Our networks give the numbers of the authors' released code, with their weights under their names."""

import pytest
import torch
from golden import CASES, OUTPUTS, image, state_dict

import correlation_aware as ca
from correlation_aware.weights import convert_state_dict

# Sums run in another order (packed streams, fused attention); seen: under 1e-5.
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_features_and_head_equal_the_authors(name):
    case = CASES[name]
    model = ca.create_model(f"{name}_track").eval()
    model.load_state_dict(convert_state_dict(state_dict(case), source="sbt"), strict=True)
    for i, run in enumerate(case["runs"]):
        template = image(run["template_seed"], run["template_hw"])
        search = image(run["search_seed"], run["search_hw"])
        features = model.backbone(template, search)
        tokens = features.flatten(2).mT[1:, ::32, ::5]
        torch.testing.assert_close(tokens, OUTPUTS[f"{name}.run{i}.search_tokens"], **TOLERANCE)
        assert features.mean().item() == pytest.approx(run["mean"], abs=1e-5)
        assert features.std().item() == pytest.approx(run["std"], abs=1e-5)
        if i == 0:
            out = model.head(features)
            logits, boxes = (t.flatten(2).mT[1:, ::4] for t in (out.logits, out.boxes))
            torch.testing.assert_close(logits, OUTPUTS[f"{name}.run0.pred_logits"], **TOLERANCE)
            torch.testing.assert_close(boxes, OUTPUTS[f"{name}.run0.pred_boxes"], **TOLERANCE)


def test_conversion_leaves_out_what_the_forward_pass_never_uses():
    converted = convert_state_dict(state_dict(CASES["sbt_light"]), source="sbt")
    own = ca.create_model("sbt_light_track").state_dict()
    assert converted.keys() == own.keys()
    assert len(CASES["sbt_light"]["parameters"]) - len(converted) == 4  # weight and bias of two closing norms
