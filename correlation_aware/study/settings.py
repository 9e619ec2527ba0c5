"""The variants that the paper compares, as data: a model of the zoo, its arguments, and the paper's figures.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666

`origin` says how much of a setting the paper states:

- `stated`: the text or a table has all of it.
- `inferred`: the paper has it in a drawing, or in part; what is here agrees with every sentence about it, and
  so may something else. `note` says what was inferred.

Blocks are 1-indexed in the paper and in `crosses`, S3B6 being the 6th block of the 3rd stage; `cross_blocks`
of a model is 0-indexed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from correlation_aware.models.registry import near_names

__all__ = [
    "CLAIMS",
    "CONVERGENCE",
    "FIG_4",
    "FIG_8",
    "TABLES",
    "TABLE_1",
    "TABLE_2",
    "TABLE_7",
    "TABLE_8",
    "TABLE_9",
    "TABLE_10",
    "Claim",
    "Reported",
    "Setting",
    "Settings",
    "crosses",
    "table",
]

Settings = Mapping[str, "Setting"]


class Reported(NamedTuple):
    """Figures of the paper; None where it has none.

    Attributes:
        params: Parameters in millions.
        gmacs: "FLOPs" in G, which are multiply-accumulates.
        ao: Average overlap on the test set of GOT-10k in percent.
    """

    params: float | None = None
    gmacs: float | None = None
    ao: float | None = None


NOTHING = Reported()


@dataclass(frozen=True)
class Setting:
    """A variant.

    Attributes:
        name: Name in its table, such as `A2`.
        model: Name of a `_track` model.
        overrides: Arguments of `create_model`.
        reported: Figures of the paper.
        origin: `stated` or `inferred`, see the module.
        note: What the paper leaves open, and why parameters and multiply-accumulates are not the paper's.
        pretrained_blocks: Blocks of the backbone that start from pretrained weights; None for all, 0 for
            none. Of effect only in `FIG_8` and `CONVERGENCE`, whose subject it is.
    """

    name: str
    model: str = "sbt_base_track"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reported: Reported = NOTHING
    origin: Literal["stated", "inferred"] = "stated"
    note: str = ""
    pretrained_blocks: int | None = None


def crosses(*blocks: int, second: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """`cross_blocks` of three stages from 1-indexed blocks of the third, and of the second."""
    return (), tuple(b - 1 for b in second), tuple(b - 1 for b in blocks)


def _table(*settings: Setting) -> Settings:
    return MappingProxyType({setting.name: setting for setting in settings})


WITH_HEAD = "Counted with the mixer head, whose size the paper does not state."
INTERLEAVED = ((), (), (1, 3, 5), ())
FOUR = {
    "dims": (64, 128, 320, 512),
    "heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 4, 4, 4),
    "sr_ratios": (8, 4, 2, 1),
    "strides": (4, 2, 1, 1),
    "cross_blocks": INTERLEAVED,
}
FOURTH = "Heads and reduction of the fourth stage, 8 and 1, are those of Table 2. " + WITH_HEAD

TABLE_1 = _table(
    Setting(
        "A1",
        overrides={
            "dims": (384,),
            "heads": (6,),
            "depths": (12,),
            "mlp_ratios": (4,),
            "sr_ratios": (1,),
            "strides": (4,),
            "cross_blocks": ((1, 3, 5, 7, 9, 11),),
            "attention": "global",
            "position": "sinusoidal",
            "patch_embed": "patchify",
        },
        reported=Reported(22.5, 35.1, 47.5),
        origin="inferred",
        note="Width and depth are those of ViT-S, 21.3 M here without a head: the mixer head for 64 x 64 "
        "locations has 6.6 M. Absolute positions are sinusoidal, as Sec. 3.3 says; a learned table would add "
        "1.6 M. The reported FLOPs do not fit the stride of 4 that the paper states (footnotes "
        "1 and 3): 4096 search tokens cost 226 GMACs; at stride 8 it would be 34.7.",
    ),
    Setting(
        "A2",
        overrides={
            "attention": "shifted_window",
            "position": "relative",
            "patch_embed": "patchify",
            "template_size": 224,
            "search_size": 224,
        },
        reported=Reported(40.2, 36.5, 56.4),
        origin="inferred",
        note="Relative positions are Swin's learned bias, where Sec. 3.3 speaks of sinusoidal functions of "
        "distances. The paper gives no widths and depths; those of SBT-base keep the comparison to the "
        "attention, with a third of the parameters. Swin-S's first three stages with this head: 34.7 M, "
        "53.4 G.",
    ),
    Setting(
        "A3",
        overrides={"attention": "depthwise_reduction"},
        reported=Reported(23.9, 20.2, 63.7),
        note="ResT's reduction is depth-wise and has fewer parameters than PVT's, so A3 should be smaller "
        "than A5; the paper's is larger by 2.6 M, which its description does not explain.",
    ),
    Setting(
        "A4",
        overrides={"patch_embed": "patchify"},
        reported=Reported(20.1, 18.9, 61.7),
        note=WITH_HEAD,
    ),
    Setting("A5", reported=Reported(21.3, 19.6, 63.5), note=f"SBT-base from random weights. {WITH_HEAD}"),
    Setting(
        "A6",
        overrides={"position": "relative"},
        reported=Reported(21.0, 19.3, 63.1),
        note="Relative positions in EoC-SA blocks alone: between two images the paper does not say what. "
        "They are Swin's learned bias, where Sec. 3.3 speaks of sinusoidal functions of distances.",
    ),
    Setting(
        "A7",
        overrides={"attention": "local", "cross_attention": "spatial_reduction"},
        reported=Reported(19.6, 17.5, 60.1),
        note="Windows of 7 tokens, as in Swin and Twins. Parameters and FLOPs of the paper seem to be "
        "interchanged: 17.5 M and 19.6 GMACs is what this is.",
    ),
    Setting("B1", reported=Reported(21.3, 19.6, 63.5), note=f"A5 again. {WITH_HEAD}"),
    Setting(
        "B2", overrides=FOUR | {"depths": (4, 2, 6, 1)}, reported=Reported(18.6, 19.3, 57.4), note=FOURTH
    ),
    Setting(
        "B3", overrides=FOUR | {"depths": (2, 2, 6, 2)}, reported=Reported(21.1, 22.5, 60.9), note=FOURTH
    ),
    Setting(
        "B4",
        overrides={
            "dims": (64, 128, 512),
            "heads": (1, 2, 8),
            "depths": (2, 2, 4),
            "cross_blocks": crosses(2, 4),
        },
        reported=Reported(20.5, 19.2, 56.7),
        note=f"8 heads for 512 channels. {WITH_HEAD}",
    ),
    Setting("B5", overrides={"strides": (4, 1, 2)}, reported=Reported(20.8, 24.4, 63.3), note=WITH_HEAD),
    Setting(
        "B6",
        overrides=FOUR | {"depths": (2, 4, 6, 1)},
        reported=Reported(19.3, 24.7, 60.6),
        note="The paper's FLOPs, 5.4 G above those of B2, do not follow from two blocks that move from the "
        f"first stage to the second. {FOURTH}",
    ),
    Setting(
        "B7",
        overrides={
            "depths": (3, 4, 12),
            "strides": (4, 2, 2),
            "search_size": 320,
            "cross_blocks": crosses(2, 4, 6, 8, 10, 12),
        },
        reported=Reported(20.8, 12.1, 52.2),
        note="Reduction 2 in the third stage as elsewhere; with 1 it would be 18.9 M and 11.0 GMACs.",
    ),
    Setting(
        "B8",
        overrides={"dims": (32, 64, 320)},
        reported=Reported(15.1, 14.5, 56.2),
        note="The third stage has most of the parameters, and is that of B1: 15.1 M do not follow from the "
        "widths that the table states. With 256 channels instead of 320 it would be 12.7 M.",
    ),
)

HEADLESS = (
    "Without the head, which the paper's parameters seem to leave out, 3.02 M and 3.04 GMACs: 20 % below the "
    "paper's GMACs, unexplained."
)
TABLE_2 = _table(
    *(
        Setting(f"sbt_{size}", f"sbt_{size}_track", reported=Reported(*figures), note=note)
        for size, figures, note in (
            ("light", (3.03, 3.81, 60.2), HEADLESS),
            ("small", (13.80, 11.92, 66.8), WITH_HEAD),
            ("base", (21.27, 19.27, 69.9), WITH_HEAD),
            ("large", (35.20, 31.46, 70.4), WITH_HEAD),
        )
    )
)

DRAWN = "The drawing of Fig. 4 (a) is not in the text. "
FIG_4 = _table(
    *(
        Setting(
            name,
            overrides={"cross_blocks": blocks},
            reported=Reported(ao=ao),
            origin="inferred",
            note=DRAWN + note,
        )
        for name, blocks, ao, note in (
            ("C1", crosses(7, 8, 9, 10), None, "Separated; as many EoC-CA blocks as C4, later (Sec. 4)."),
            ("C2", crosses(6, 7, 8, 9, 10), None, "C1 with one more; as many as C6, later."),
            ("C3", crosses(8, 10), 61.1, "Interleaved; fewer than C1, and the first is later."),
            ("C4", crosses(4, 6, 8, 10), None, "C3 with two more; 4.9 points above C1."),
            ("C5", crosses(1, 2, 3, 4), None, "Not mentioned in the text: C1 with the order reversed."),
            ("C6", crosses(2, 4, 6, 8, 10), None, "Interleaved, SBT-base; 6.5 points above C2."),
            ("C7", crosses(2, 5, 8), None, "Not mentioned in the text: interval 2, early."),
            ("C8", crosses(*range(1, 11)), None, "Not mentioned in the text: every block."),
            (
                "C9",
                crosses(2, 4, 6, 8, 10, second=(2, 4)),
                67.2,
                "C6 with more, interval 1: in the second stage, as the third has no room.",
            ),
            ("C10", crosses(7, 10), 59.2, "C3 with interval 2."),
        )
    )
)

LAYERS = ("S3B6", "S3B8", "S3B10")
TOWER = "The same head for all rows. The paper has no cost for them."
TABLE_7 = _table(
    Setting("1", "siam_resnet50_dw_track", reported=Reported(ao=56.2), note=TOWER),
    Setting("2", "siam_resnet50_ca_track", reported=Reported(ao=57.5), note=TOWER),
    Setting(
        "3",
        "siam_resnet50_dcf_track",
        {"levels": (4,)},
        Reported(ao=30.3),
        "inferred",
        "The paper integrates the network into ECO, without training it for that; here the filter is a "
        f"layer, and the network is trained with it. {TOWER}",
    ),
    Setting("4", "siam_sbt_base_dw_track", {"levels": LAYERS}, Reported(ao=60.1), note=TOWER),
    Setting("5", "siam_sbt_base_ca_track", {"levels": LAYERS}, Reported(ao=61.5), note=TOWER),
    Setting(
        "6",
        "siam_sbt_base_dcf_track",
        {"levels": LAYERS},
        Reported(ao=31.5),
        "inferred",
        f"See row 3 for the filter. {TOWER}",
    ),
    Setting(
        "7",
        "sbt_base_track",
        {"head": "tower"},
        Reported(ao=65.0),
        "inferred",
        "Correlation in the network alone: the column for a further correlation is empty, and 65.0 is "
        f"compared with row 5. {TOWER}",
    ),
    Setting(
        "8",
        "siam_sbt_base_dw_track",
        {"levels": LAYERS, "embedded": True},
        Reported(ao=65.9),
        note=f"The table has +4.8 over row 4, the difference of its own figures is 5.8. {TOWER}",
    ),
    Setting(
        "9",
        "siam_sbt_base_dcf_track",
        {"levels": LAYERS, "embedded": True},
        Reported(ao=35.2),
        "inferred",
        f"39.2 in the text, 35.2 in the table. See row 3 for the filter. {TOWER}",
    ),
)

PARTIAL = "The table's columns are incomplete in the text; "
TABLE_8 = _table(
    *(
        Setting(
            name,
            overrides={"cross_blocks": crosses(*blocks)},
            reported=Reported(ao=ao),
            origin="inferred",
            note=f"From pretrained weights in the paper. {PARTIAL}{note}",
        )
        for name, blocks, ao, note in (
            ("A1", (6, 8, 10), 65.0, "interleaved, three EoC-CA blocks."),
            ("A2", (8, 9, 10), 61.0, "the Siamese style: all at the end."),
            ("A3", (6, 9, 10), 63.2, "the first of B9 and B10 is inferred."),
            ("A4", (4, 9, 10), 64.6, "the first is earlier than in A3; which block is inferred."),
            ("A5", (2, 9, 10), 65.7, "the first is earlier than in A4; which block is inferred."),
        )
    )
)

TABLE_9 = _table(
    *(
        Setting(
            name,
            overrides={"depths": depths, "cross_blocks": crosses(*range(2, depths[2] + 1, 2))},
            reported=Reported(ao=ao),
            origin=origin,  # type: ignore[arg-type]
            note=note,
        )
        for name, depths, ao, origin, note in (
            ("B1", (4, 4, 10), 62.3, "inferred", "N3 is not in the text, fewer than in B2."),
            ("B2", (4, 4, 14), 64.0, "stated", "4, 4 and 14 blocks (Sec. B.2)."),
            ("B3", (2, 2, 10), 61.5, "inferred", "N3 is not in the text."),
            ("B4", (2, 2, 14), 62.0, "inferred", "N3 is not in the text."),
            ("B5", (2, 2, 18), 63.1, "inferred", "N3 is not in the text; the only one above 14 (Sec. B.2)."),
        )
    )
)

TABLE_10 = _table(
    *(
        Setting(
            name,
            overrides={"dims": dims, "heads": tuple(max(1, dim // 64) for dim in dims)},
            reported=Reported(ao=ao),
            origin=origin,  # type: ignore[arg-type]
            note=note,
        )
        for name, dims, ao, origin, note in (
            ("C1", (64, 128, 256), 63.6, "stated", "Sec. B.3."),
            ("C2", (32, 64, 128), 58.7, "inferred", "Dimensions are not in the text; the smallest."),
            ("C3", (64, 128, 320), 63.7, "inferred", "Dimensions are not in the text; larger than C1."),
            ("C4", (32, 128, 256), 62.8, "inferred", "Dimensions are not in the text."),
            ("C5", (32, 64, 320), 61.1, "inferred", "Dimensions are not in the text."),
            ("C6", (64, 128, 512), 61.8, "stated", "Sec. B.3."),
            ("C7", (128, 256, 256), 63.6, "inferred", "More channels than C1 in the shallow stages alone."),
        )
    )
)

PRETRAINED = "Starts from the weights that `--start` names; the paper has ImageNet weights."
FIG_8 = _table(
    *(
        Setting(str(count), origin="inferred", note=PRETRAINED, pretrained_blocks=count)
        for count in (0, 3, 7, 9, 11, 13, 15, 17)
    )
)
CONVERGENCE = _table(
    Setting("scratch", note="From random weights.", pretrained_blocks=0),
    Setting("pretrained", note=PRETRAINED),
)

TABLES: Mapping[str, Settings] = MappingProxyType(
    {
        "table1": TABLE_1,
        "table2": TABLE_2,
        "fig4": FIG_4,
        "table7": TABLE_7,
        "table8": TABLE_8,
        "table9": TABLE_9,
        "table10": TABLE_10,
        "fig8": FIG_8,
        "convergence": CONVERGENCE,
    }
)


class Claim(NamedTuple):
    """A sentence of the paper that one setting of a table is better than another.

    Attributes:
        better: Setting that is better in the paper.
        worse: Setting that is worse there.
        text: What the better one has.
        points: By how many points of AO on GOT-10k; None where the paper has no figure.
    """

    better: str
    worse: str
    text: str
    points: float | None = None


CLAIMS: Mapping[str, tuple[Claim, ...]] = MappingProxyType(
    {
        "fig4": (
            Claim("C4", "C3", "more EoC-CA blocks, interleaved"),
            Claim("C2", "C1", "more EoC-CA blocks, separated"),
            Claim("C9", "C6", "more EoC-CA blocks, interval 1"),
            Claim("C4", "C1", "as many EoC-CA blocks, earlier", 4.9),
            Claim("C6", "C2", "as many EoC-CA blocks, earlier", 6.5),
            Claim("C3", "C1", "interleaved, although fewer and later"),
            Claim("C3", "C10", "interval 1 instead of 2", 1.9),
        ),
        "table7": (
            Claim("2", "1", "CA instead of DW-Corr, on ResNet-50", 1.3),
            Claim("5", "4", "CA instead of DW-Corr, on SBT", 1.4),
            Claim("4", "1", "SBT instead of ResNet-50, with DW-Corr", 3.9),
            Claim("5", "2", "SBT instead of ResNet-50, with CA", 4.0),
            Claim("6", "3", "SBT instead of ResNet-50, with DCF", 1.2),
            Claim("7", "5", "correlation embedded, instead of CA after the network", 3.5),
            Claim("8", "4", "correlation embedded, with DW-Corr after the network", 5.8),
            Claim("9", "6", "correlation embedded, with DCF after the network", 3.7),
        ),
    }
)


def table(name: str) -> Settings:
    """The settings of a table by its name in `TABLES`.

    Raises:
        ValueError: There is no such table; the message lists all.
    """
    if name not in TABLES:
        near = ", ".join(near_names(name, TABLES))
        raise ValueError(f"There is no table {name!r}. Near: {near}; all: {', '.join(TABLES)}.")
    return TABLES[name]
