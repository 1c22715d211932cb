"""Pictures drawn from a formula, to ask a unit of a vision network about one property at a time.

Orientation, here and in everything that speaks of one (`vesalius.rules`, joint tuning): degrees counter-
clockwise as the picture is seen, 0 to the right, of the direction in which a thing faces. A curve or an angle
faces where it bulges: ")" is 0, "∩" is 90, "(" is 180. An edge faces its bright side, a boundary its high
frequencies or its first hue; a bar and a grating face along their normal, so an upright bar is 0. Turning a
picture counter-clockwise by φ turns its orientation θ into θ + φ.

Every family is one file with one function that `family` registers: two properties, one value of each per picture, and
keyword-only looks. It returns `[picture, 3, size, size]` in 0..1, always the same bits. The origin is the exact middle
of the picture (between the pixels of an even size) unless `centre` says otherwise. Pictures are anti-aliased by
formula: waves are averaged over each pixel exactly, contours fall over one pixel of distance.
"""

import importlib
import pkgutil

from vesalius.stimuli.family import Axis, Family, families, named

__all__ = ["Axis", "Family", "families", "named"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
for _family in families().values():
    globals()[_family.name] = _family.draw
