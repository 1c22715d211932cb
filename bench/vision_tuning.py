"""Joint tuning: crops as small as the receptive field, turned and run in batches no further than the layer, against the
plain loop that turns one whole picture at a time and runs the whole network.

InceptionV1 with seeded weights, all 480 units of mixed3b. Cost grows with the number of pictures alone, so that
12 angles of 4 examples stand for 360 of 32. Both sides turn about the same point within the same circle, and must
agree.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

import vesalius as vs
from vesalius import tuning
from vesalius.examples import field_of
from vesalius.formats.published import NETWORKS
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.responses import Window, turned_answers, turns, window

SITE, EXAMPLES, ANGLES = "mixed3b", 4, 12


@cache
def inception() -> vs.Model:
    module = InceptionV1().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * ((2 / fan) ** 0.5 if fan > 1 else 0.1)
            )
    return vs.Model(module, preprocessing=NETWORKS["inceptionv1"].preprocessing, name="inceptionv1-random")


def whole() -> tuple[Tensor, Window]:
    """The pictures, and the place of the middle unit in them as a window of the whole size."""
    size, field = inception().preprocessing.size[0], field_of(inception(), SITE)
    position = inception().map_shape(SITE)[1] // 2
    top = field.box(position, position)[0]
    noise = torch.rand(EXAMPLES, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear")
    return pictures, Window(size, field.size, top, position, top + (field.size - 1) / 2)


def turned_crops() -> Callable[[], Tensor]:
    model, seen = inception(), window(inception(), SITE)
    pictures, place = whole()
    start = place.start - seen.start
    crops = pictures[..., start : start + seen.size, start : start + seen.size]
    return lambda: turned_answers(model, SITE, crops, seen=seen, degrees=tuning.angles(ANGLES), batch=16)


def plain_loop() -> Callable[[], Tensor]:
    model = inception()
    pictures, place = whole()
    kept = []
    model.module.get_submodule(SITE).register_forward_hook(lambda module, inputs, output: kept.append(output))

    def run() -> Tensor:
        kept.clear()
        for picture in pictures:
            for angle in tuning.angles(ANGLES):
                model(turns(picture, angle[None], seen=place))
        middle = torch.cat(kept)[:, :, place.position, place.position]
        return middle.reshape(EXAMPLES, ANGLES, -1)

    return run
