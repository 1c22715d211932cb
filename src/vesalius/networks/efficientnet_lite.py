"""EfficientNet-Lite (Tan & Le 2019, arXiv 1905.11946; Liu 2020): inverted residuals without squeeze-excitation.

Beside MobileNetV2 it has other stages and 5×5 filters; its modules have the same names.
"""

import math

from vesalius.networks.mobilenet_v2 import MobileNetV2, Stage

STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, kernel=5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, kernel=5),
    Stage(6, 192, 4, 2, kernel=5),
    Stage(6, 320, 1, 1),
)


class EfficientNetLite(MobileNetV2):
    """Lite0 by default; `width` and `depth` multiply the channels and the blocks of the inner stages.

    Lite1 is (1.0, 1.1), Lite2 (1.1, 1.2). The first and the last stage keep their one block.
    """

    def __init__(self, *, width: float = 1.0, depth: float = 1.0, classes: int = 1000) -> None:
        ends = (STAGES[0], STAGES[-1])
        stages = [
            stage._replace(
                width=whole_channels(stage.width * width),
                blocks=stage.blocks if stage in ends else math.ceil(stage.blocks * depth),
            )
            for stage in STAGES
        ]
        super().__init__(stages=stages, classes=classes)


def whole_channels(width: float) -> int:
    """The nearest multiple of 8 that is not smaller by more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded
