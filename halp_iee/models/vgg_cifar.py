"""VGG-19 with BatchNorm for 32x32 images, as the sparse-training papers use it on CIFAR."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the sixteen convolutions; "M" halves the resolution (VGG's configuration E). The last
# pooling is left to the global average.
_LAYERS: tuple[int | str, ...] = (
    64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512,
)  # fmt: skip


class VggCifar(nn.Module):
    """[N, in_channels, 32, 32] -> [N, num_classes]; one linear layer after a global average.

    Source: Very Deep Convolutional Networks, table 1 configuration E; the three wide linear layers
    give way to one, as is usual on CIFAR.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in _LAYERS:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def vgg19_cifar(num_classes: int = 10, in_channels: int = 1) -> VggCifar:
    return VggCifar(num_classes, in_channels)
