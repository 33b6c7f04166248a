"""The small residual networks for 32x32 images (He et al. 2016, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [N, c_in, H, W] -> [N, c_out, H/stride, W/stride].

    Where the shape changes, the shortcut is a 1x1 convolution with BatchNorm (option B of the
    paper). Its ResNet-20 pads with zeros instead (option A), which ties channel i of one stage to
    channel i + c/2 of the next, so that neither stage could be pruned independently.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """A stem and three stages of `blocks` basic blocks, [N, in_channels, 32, 32] -> [N, num_classes].

    Args:
        blocks: basic blocks a stage; the network has 6 * blocks + 2 layers.
        num_classes: outputs.
        in_channels: 1 for the built-in digits, 3 for CIFAR.
        widths: channels of the three stages.

    Source: Deep Residual Learning for Image Recognition, section 4.2; shortcuts of option B.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], blocks, 1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, 2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, 2)
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(c_in, c_out, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def resnet20(num_classes: int = 10, in_channels: int = 1) -> ResNetCifar:
    return ResNetCifar(3, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 1) -> ResNetCifar:
    return ResNetCifar(5, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 1) -> ResNetCifar:
    return ResNetCifar(9, num_classes, in_channels)
