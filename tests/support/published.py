"""The published runs of VideoMAE and VideoMAE V2, as their papers, scripts and model zoos give them.

Numbers that no source gives are None; there the recipe says ``# not published, ours``. ``lr`` is the rate that the
optimizer gets at its peak, which scripts write per 256 visits.
"""

from dataclasses import dataclass

ROWS = {
    "k400": 240_436,
    "k600": 366_006,
    "k710": 658_340,
    "ssv2": 168_913,
    "ucf101": 9_537,
    "hmdb51": 3_570,
    "hybrid": 1_350_000,
}
"""Training videos; of UCF101 and HMDB51 in their first split, of the hybrid set as far as its README says."""
CLASSES = {"k400": 400, "k600": 600, "k710": 710, "ssv2": 174, "ucf101": 101, "hmdb51": 51}
PRETRAINED = {
    "vit_s": 24_029_376,
    "vit_b": 94_210_944,
    "vit_l": 342_996_992,
    "vit_h": 692_487_296,
    "vit_l_v2": 317_782_016,
    "vit_h_v2": 645_659_392,
    "vit_g": 1_026_306_560,
}
"""Parameters of the pretraining model."""
FINETUNED = {
    "vit_s": (22_033_936, 400, 384),
    "vit_b": (86_534_800, 400, 768),
    "vit_l": (304_270_736, 400, 1024),
    "vit_h": (632_119_440, 400, 1280),
    "vit_l_v2": (304_588_486, 710, 1024),
    "vit_h_v2": (632_516_550, 710, 1280),
    "vit_g": (1_012_611_142, 710, 1408),
}
"""Parameters of a classifier, of how many classes, and the width of its features."""


@dataclass(frozen=True)
class Pretraining:
    """A row of the pretraining tables."""

    preset: str
    data: str
    gpus: int
    per_gpu: int
    lr: float
    epochs: int
    warmup: int | None
    stride: int
    ratio: float
    copies: int = 1
    decoder_ratio: float | None = None
    clip_grad: float | None = None

    @property
    def batch(self) -> int:
        """Visits of a step."""
        return self.gpus * self.per_gpu


@dataclass(frozen=True)
class Finetuning:
    """A row of the fine-tuning tables; ``views`` are segments and crops of the test."""

    preset: str
    data: str
    gpus: int | None
    per_gpu: int | None
    copies: int | None
    lr: float | None
    layer_decay: float | None
    drop_path: float | None
    dropout: float | None
    epochs: int | None
    views: tuple[int, int]
    top1: float | None
    weight_decay: float | None = 0.05
    min_lr: float | None = 1e-6
    """Per 256 visits."""
    warmup: int | None = 5
    frames: int = 16
    size: int = 224
    stride: int = 4
    clip_grad: float | None = None

    @property
    def batch(self) -> int | None:
        """Visits of a step."""
        return None if self.gpus is None or self.per_gpu is None else self.gpus * self.per_gpu


PRETRAINING = {
    "vit_s_k400": Pretraining("vit_s", "k400", 32, 32, 6e-4, 1600, 40, 4, 0.9),
    "vit_b_k400": Pretraining("vit_b", "k400", 64, 32, 1.2e-3, 800, 40, 4, 0.9),
    "vit_b_k400_1600e": Pretraining("vit_b", "k400", 64, 32, 1.2e-3, 1600, 40, 4, 0.9),
    "vit_l_k400": Pretraining("vit_l", "k400", 64, 8, 3e-4, 1600, 40, 4, 0.9),
    "vit_h_k400": Pretraining("vit_h", "k400", 64, 16, 6e-4, 1600, 40, 4, 0.9),
    "vit_s_ssv2": Pretraining("vit_s", "ssv2", 32, 32, 6e-4, 2400, 40, 2, 0.9),
    "vit_b_ssv2": Pretraining("vit_b", "ssv2", 64, 32, 1.2e-3, 800, 40, 2, 0.9),
    "vit_b_ssv2_2400e": Pretraining("vit_b", "ssv2", 64, 32, 1.2e-3, 2400, 40, 2, 0.9),
    "vit_b_ucf101": Pretraining("vit_b", "ucf101", 8, 24, 2.25e-4, 3200, 40, 4, 0.75),
    "vit_b_hmdb51": Pretraining("vit_b", "hmdb51", 8, 24, 2.25e-4, 4800, None, 2, 0.75),
    "vit_b_hybrid": Pretraining("vit_b", "hybrid", 32, 32, 4e-3, 200, 20, 4, 0.9, 4, 0.5),
    "vit_l_hybrid": Pretraining("vit_l_v2", "hybrid", 48, 32, 6e-3, 300, 30, 4, 0.9, 4, 0.5),
    "vit_h_hybrid": Pretraining("vit_h_v2", "hybrid", 64, 32, 8e-3, 300, 30, 4, 0.9, 4, 0.5),
    "vit_g_hybrid": Pretraining("vit_g", "hybrid", 64, 32, 4.8e-3, 300, 30, 4, 0.9, 4, 0.5, 0.02),
}
F = Finetuning
FINETUNING = {
    # VideoMAE: scripts and model zoo
    "vit_s_k400": F("vit_s", "k400", 32, 12, 2, 7.5e-4, 0.75, 0.1, 0.0, 150, (5, 3), 79.0),
    "vit_b_k400": F("vit_b", "k400", 64, 8, 1, 2e-3, 0.75, 0.1, 0.0, 100, (5, 3), 80.0),
    "vit_b_k400_copies2": F(
        "vit_b",
        "k400",
        None,
        None,
        2,
        None,
        None,
        None,
        None,
        None,
        (5, 3),
        81.0,
        weight_decay=None,
        min_lr=None,
        warmup=None,
    ),
    "vit_b_k400_1600e": F("vit_b", "k400", 64, 6, 2, 7.5e-4, 0.75, 0.1, 0.0, 75, (5, 3), 81.5),
    "vit_l_k400": F("vit_l", "k400", 64, 2, 2, 1e-3, 0.75, 0.1, 0.0, 35, (5, 3), 85.2),
    "vit_h_k400": F("vit_h", "k400", 64, 8, 2, 2e-3, 0.75, 0.2, 0.5, 50, (5, 3), 86.6, min_lr=1e-5),
    "vit_s_ssv2": F("vit_s", "ssv2", 32, 12, 2, 1.5e-3, 0.7, 0.1, 0.0, 40, (2, 3), 66.8),
    "vit_b_ssv2": F("vit_b", "ssv2", 64, 8, 1, 1e-3, 0.75, 0.1, 0.0, 50, (2, 3), 69.6),
    "vit_b_ssv2_2400e": F("vit_b", "ssv2", 64, 6, 2, 7.5e-4, 0.75, 0.1, 0.0, 30, (2, 3), 70.8),
    "vit_b_ucf101": F(
        "vit_b", "ucf101", 8, 16, 2, 2.5e-4, 0.7, 0.2, 0.5, 100, (5, 3), 91.3, min_lr=1e-5
    ),
    "vit_b_hmdb51": F(
        "vit_b", "hmdb51", 8, 16, 2, 5e-4, 0.7, 0.2, None, 50, (10, 3), 62.6, min_lr=None, stride=2
    ),
    # VideoMAE: published figures whose scripts were not
    "vit_l_ssv2": F("vit_l", "ssv2", None, None, None, None, 0.75, None, None, 30, (2, 3), 74.3),
    "vit_l_ssv2_32f": F(
        "vit_l", "ssv2", None, None, None, None, 0.75, None, None, 30, (1, 3), 75.4, frames=32
    ),
    "vit_l_k400_32f_320": F(
        "vit_l",
        "k400",
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        (4, 3),
        86.1,
        frames=32,
        size=320,
    ),
    "vit_h_k400_32f_320": F(
        "vit_h",
        "k400",
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        (4, 3),
        87.4,
        frames=32,
        size=320,
    ),
    "vit_b_k400_to_ssv2": F(
        "vit_b", "ssv2", None, None, None, None, 0.75, None, None, 40, (2, 3), 69.7
    ),
    "vit_l_k400_to_ssv2": F(
        "vit_l", "ssv2", None, None, None, None, 0.75, None, None, 30, (2, 3), 74.0
    ),
    "vit_b_k400_to_ucf101": F(
        "vit_b", "ucf101", None, None, None, None, None, None, None, None, (5, 3), 96.1
    ),
    "vit_b_k400_to_hmdb51": F(
        "vit_b", "hmdb51", None, None, None, None, None, None, None, None, (10, 3), 73.3, stride=2
    ),
    # VideoMAE V2: scripts and model zoo
    "vit_b_k400_v2": F("vit_b", "k400", 32, 16, 2, 1.4e-3, 0.75, 0.1, 0.0, 90, (5, 3), None),
    "vit_b_k710_v2": F("vit_b", "k710", 32, 16, 2, 1.4e-3, 0.75, 0.1, 0.0, 90, (5, 3), None),
    "vit_b_ssv2_v2": F("vit_b", "ssv2", 16, 16, 2, 2e-3, 0.65, 0.1, 0.0, 25, (2, 3), None),
    "vit_l_k400_v2": F("vit_l_v2", "k400", 32, 6, 2, 1.5e-3, 0.75, 0.2, 0.0, 35, (5, 3), None),
    "vit_l_ssv2_v2": F("vit_l_v2", "ssv2", 32, 6, 2, 3.75e-4, 0.75, 0.2, 0.0, 20, (2, 3), None),
    "vit_h_k400_v2": F("vit_h_v2", "k400", 32, 4, 2, 5e-4, 0.8, 0.2, 0.5, 40, (5, 3), None),
    "vit_h_k600_v2": F("vit_h_v2", "k600", 32, 4, 2, 5e-4, 0.8, 0.2, 0.5, 40, (5, 3), None),
    "vit_h_k710_v2": F("vit_h_v2", "k710", 32, 4, 2, 5e-4, 0.8, 0.2, 0.5, 40, (5, 3), None),
    "vit_h_ssv2_v2": F("vit_h_v2", "ssv2", 32, 4, 2, 2.5e-4, 0.8, 0.2, 0.0, 20, (2, 3), None),
    "vit_g_k400": F(
        "vit_g", "k400", 64, 3, 2, 7.5e-4, 0.9, 0.2, 0.0, 30, (5, 3), 87.2, weight_decay=0.1
    ),
    "vit_g_k710": F(
        "vit_g",
        "k710",
        32,
        3,
        2,
        3.75e-4,
        0.9,
        0.3,
        0.0,
        35,
        (5, 3),
        83.8,
        weight_decay=0.1,
        clip_grad=5.0,
    ),
    "vit_g_k710_to_k400": F(
        "vit_g",
        "k400",
        32,
        3,
        2,
        3.75e-6,
        0.9,
        0.25,
        0.0,
        3,
        (5, 3),
        88.4,
        weight_decay=0.1,
        warmup=1,
    ),
    "vit_g_k710_to_k600": F(
        "vit_g",
        "k600",
        32,
        3,
        2,
        3.75e-6,
        0.9,
        0.25,
        0.0,
        3,
        (5, 3),
        88.8,
        weight_decay=0.1,
        warmup=1,
    ),
    "vit_g_ssv2": F("vit_g", "ssv2", 32, 3, 2, 1.125e-4, 0.9, 0.25, 0.0, 20, (2, 3), 77.0),
    "vit_g_k710_to_ucf101": F(
        "vit_g", "ucf101", 8, 3, 2, 9.375e-5, 0.9, 0.35, 0.5, 50, (5, 3), 99.6
    ),
    "vit_g_k710_to_hmdb51": F(
        "vit_g", "hmdb51", 8, 3, 2, 4.6875e-5, 0.9, 0.35, 0.5, 15, (5, 3), 88.1, stride=2
    ),
}
