"""Every network definition, with what is published of it: one table for several tests."""

from functools import partial

from vesalius.networks.alexnet import AlexNet, OneTower
from vesalius.networks.efficientnet_lite import EfficientNetLite
from vesalius.networks.inception_v1 import InceptionV1
from vesalius.networks.inception_v3 import InceptionV3
from vesalius.networks.mobilenet_v2 import MobileNetV2
from vesalius.networks.resnet_v2 import ResNetV2
from vesalius.networks.thin_resnet import ThinResNet
from vesalius.networks.vgg import HED, VGG, VGG19

NETWORKS = {  # definition, pixels, learnt parameters as published
    "inceptionv1": (InceptionV1, 224, 7_066_380),  # one head of 1008
    "inceptionv3": (InceptionV3, 299, 23_817_352 + 17_216),  # Keras has no gains in the batch norms
    "alexnet": (AlexNet, 227, 60_965_224),
    "alexnet-one-tower": (OneTower, 224, 61_100_840),
    "vgg16": (VGG, 224, 138_357_544),
    "vgg19": (partial(VGG, convolutions=VGG19), 224, 143_667_240),
    "vgg16-hed": (HED, 224, 14_716_171),
    "resnetv2-50": (ResNetV2, 224, 25_568_360),
    "mobilenetv2": (MobileNetV2, 224, 3_504_872),
    "efficientnet-lite0": (EfficientNetLite, 224, 4_652_008),
    "efficientnet-lite1": (partial(EfficientNetLite, depth=1.1), 240, 5_416_680),
    "efficientnet-lite2": (partial(EfficientNetLite, width=1.1, depth=1.2), 260, 6_092_072),
    "open-nsfw": (ThinResNet, 224, 5_891_266),
}
