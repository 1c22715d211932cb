"""Pictures drawn from a formula, to ask a unit of a vision network about one property at a time.

Orientation, here and in everything that speaks of one (joint tuning, the handwritten curve network): degrees
counter-clockwise as the picture is seen, of the direction that points from the contour to its inside. A curve of
orientation 0 has its centre of curvature to its right, like "("; at 90 it opens upwards, like "∪"; at 180 it is
")". An edge or a bar of orientation 0 is vertical, and an edge has its inside (the bright side, the high frequencies, the
first colour) to the right; the wave vector of a grating points along its orientation. Turning a picture
counter-clockwise by φ turns its orientation θ into θ + φ.

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
    __all__.append(_family.name)
