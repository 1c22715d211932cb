"""Feature visualisation, 16 channels of mixed3b at 128 px for equal steps: ours against torch-lucent.

Both run lucent's own InceptionV1 with the same random weights, with its list of transforms and its learning rate.
Lucent draws one channel at a time, as its `render_vis` does, through the rectifiers it redirects in its own way;
ours runs all of them with ordinary ones. To keep the minutes few it draws `PEER` channels where ours draws 16, so
the ratio for each channel is the one printed times `PEER` / 16. What is returned is the mean of each channel over
its final picture, the objective both were given.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

import vesalius as vs
from vesalius.access import record
from vesalius.preprocessing import Preprocessing
from vesalius.visualization import visualise

CHANNELS, PEER, STEPS = tuple(range(320, 336)), 2, 32
SITE = "mixed3b"


def inception(*, redirected: bool) -> nn.Module:
    """Lucent's InceptionV1 with seeded weights that keep the scale of what passes through them."""
    from lucent.modelzoo.inceptionv1.InceptionV1 import InceptionV1

    module = InceptionV1(pretrained=False, redirected_ReLU=redirected).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return module


@cache
def model() -> vs.Model:
    pixels = Preprocessing(size=(224, 224), mean=(117 / 255,) * 3, sd=(1 / 255,) * 3)
    return vs.Model(inception(redirected=False), preprocessing=pixels, name="inception-random")


def activation(images: Tensor) -> Tensor:
    """The mean of each channel over its own picture."""
    with torch.no_grad(), record(model(), SITE, stop=True) as acts:
        model()(images)
    return torch.stack([acts[SITE][number, channel].mean() for number, channel in enumerate(CHANNELS[:PEER])])


def ours(steps: int = STEPS, channels: int = len(CHANNELS)) -> Callable[[], Tensor]:
    features = [vs.neurons(SITE)[channel] for channel in CHANNELS[:channels]]

    def run() -> Tensor:
        made = visualise(model(), features, size=128, steps=steps, transforms="lucid", batch=16, cached=False)
        return activation(made.images[:PEER].float() / 255)

    return run


def peer(steps: int = STEPS) -> Callable[[], Tensor]:
    import numpy as np

    module = inception(redirected=True)
    os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())
    from lucent.optvis import objectives, render

    def run() -> Tensor:
        np.random.seed(0)  # lucent draws its transforms from both
        torch.manual_seed(0)
        with torch.enable_grad():
            made = [
                render.render_vis(
                    module,
                    objectives.channel(SITE, channel),
                    thresholds=(steps,),
                    progress=False,
                    show_image=False,
                )[-1]
                for channel in CHANNELS[:PEER]
            ]
        return activation(torch.tensor(np.concatenate(made)).permute(0, 3, 1, 2))

    return run
