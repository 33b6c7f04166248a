"""MobileNetV1 (Howard et al. 2017), for 224x224 and for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Output channels and stride of the thirteen depthwise-separable layers (the paper's table 1).
_LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1),
    (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class MobileNetV1(nn.Module):
    """[N, in_channels, H, W] -> [N, num_classes].

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: the paper's width multiplier alpha; channels are rounded to multiples of 8, at least 8.
        stem_stride: 2 for 224x224; 1 for 32x32, where two would leave a single pixel.

    Source: MobileNets, table 1.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0, stem_stride: int = 2) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, int(channels * width / 8 + 0.5) * 8)

        channels = scaled(32)
        layers = _conv(in_channels, channels, 3, stem_stride)
        for c_out, stride in _LAYERS:
            layers += _conv(channels, channels, 3, stride, groups=channels)
            layers += _conv(channels, scaled(c_out), 1)
            channels = scaled(c_out)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def mobilenet_v1(num_classes: int = 1000, in_channels: int = 3) -> MobileNetV1:
    return MobileNetV1(num_classes, in_channels)


def mobilenet_v1_cifar(num_classes: int = 10, in_channels: int = 1) -> MobileNetV1:
    return MobileNetV1(num_classes, in_channels, stem_stride=1)
