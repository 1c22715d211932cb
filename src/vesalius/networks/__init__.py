"""Published convolutional networks in plain torch, one file each; a module's path is the paper's name for it.

Wherever a layer `NAME` is rectified, `NAME` is the map after the rectifier and `NAME_pre_relu` the map before it.
What weights they can be given, and how pictures are prepared for those, is in `vesalius.formats.published`.
"""
