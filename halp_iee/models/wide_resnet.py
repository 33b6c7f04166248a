"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice, and a shortcut, [N, c_in, H, W] -> [N, c_out, H/stride, W/stride].

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride != 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A stem and three stages, [N, in_channels, 32, 32] -> [N, num_classes].

    Args:
        depth: layers, 6 n + 4 for n blocks a stage.
        widen: k, the factor on the channels 16, 32, 64 of the stages.
        num_classes: outputs.
        in_channels: 1 for the built-in digits, 3 for CIFAR.

    Source: Wide Residual Networks, table 1, without dropout; WRN-22-2 is RigL's and IEE's network on CIFAR.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        stages = []
        c_in = 16
        for width, stride in zip(widths, (1, 2, 2), strict=True):
            first = PreActivationBlock(c_in, width, stride)
            stages.append(nn.Sequential(first, *(PreActivationBlock(width, width, 1) for _ in range(blocks - 1))))
            c_in = width
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(c_in)
        self.fc = nn.Linear(c_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn(y)), 1).flatten(1))


def wide_resnet22_2(num_classes: int = 10, in_channels: int = 1) -> WideResNet:
    return WideResNet(22, 2, num_classes, in_channels)
