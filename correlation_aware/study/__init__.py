"""The design study of the paper: its variants by name, and their training at a small scale.

Paper: `Correlation-Aware Deep Tracking` (Xie et al., CVPR 2022) - https://arxiv.org/abs/2203.01666,
Tables 1, 2, 7 to 10, Figures 4 and 8. Its other figures, of what a network sees, are in `explain`.
"""

from correlation_aware.study.settings import (
    CLAIMS,
    CONVERGENCE,
    FIG_4,
    FIG_8,
    TABLE_1,
    TABLE_2,
    TABLE_7,
    TABLE_8,
    TABLE_9,
    TABLE_10,
    TABLES,
    Claim,
    Reported,
    Setting,
    table,
)

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
    "table",
]
