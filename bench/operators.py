"""The compiled operators that torchvision, which lucent needs, looks for when it is imported: declared, not defined.

Without them the import fails where torchvision was built for another torch, and that of transformers with it; so
this comes before every other import.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
