"""From what a person writes after `--model` to a network."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from halp_iee.errors import HalpError, UsageError
from halp_iee.models import mobilenet_v1, resnet_cifar, vgg_cifar, wide_resnet
from halp_iee.models.from_file import from_file, looks_like_file

Shape = tuple[int, int, int]
"""Channels, height, width of one image."""

# name -> (function, the shape of image it is made for)
OWN: dict[str, tuple[Callable[..., nn.Module], Shape]] = {
    "resnet20": (resnet_cifar.resnet20, (1, 32, 32)),
    "resnet32": (resnet_cifar.resnet32, (1, 32, 32)),
    "resnet56": (resnet_cifar.resnet56, (1, 32, 32)),
    "mobilenet_v1": (mobilenet_v1.mobilenet_v1, (3, 224, 224)),
    "mobilenet_v1_cifar": (mobilenet_v1.mobilenet_v1_cifar, (1, 32, 32)),
    "vgg19_cifar": (vgg_cifar.vgg19_cifar, (1, 32, 32)),
    "wide_resnet22_2": (wide_resnet.wide_resnet22_2, (1, 32, 32)),
}


def available() -> tuple[str, ...]:
    """Names that `build` knows without a prefix: this package's and torchvision's."""
    return (*OWN, *_torchvision_names())


def build(
    spec: str, num_classes: int | None = None, in_channels: int | None = None, image_size: int | None = None
) -> nn.Module:
    """Build a network with random weights; nothing is downloaded.

    Args:
        spec: a name from `available()`, `timm:NAME`, or `path/to/file.py:function`.
        num_classes: outputs; None: what the network has by default.
        in_channels: channels of the image; None: what the network has by default. A torchvision
            network is made for 3: for another number its first convolution is replaced.
        image_size: height and width; only networks whose weights depend on it (vision
            transformers) look at it.

    Raises:
        UsageError: the name is unknown, or the network cannot be built so.
    """
    if looks_like_file(spec):
        return from_file(spec, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if spec.startswith("timm:"):
        return _from_timm(spec.removeprefix("timm:"), num_classes, in_channels, image_size)
    if spec in OWN:
        options = {"num_classes": num_classes, "in_channels": in_channels}
        return OWN[spec][0](**{name: value for name, value in options.items() if value is not None})
    if spec in _torchvision_names():
        return _from_torchvision(spec, num_classes, in_channels, image_size)
    raise _unknown(spec)


def default_input_shape(spec: str) -> Shape:
    """The image that a network is made for when no data set says otherwise.

    The networks for small images take that of the built-in digits, (1, 32, 32); torchvision's what
    the smallest of their published weights was trained on; timm's what their configuration says;
    a file's, (3, 224, 224).

    Raises:
        UsageError: the name is unknown.
    """
    if looks_like_file(spec):
        return (3, 224, 224)
    if spec.startswith("timm:"):
        timm = _timm()
        name = spec.removeprefix("timm:")
        if not timm.is_model(name):
            raise _unknown_to_timm(name, timm.list_models())
        config = timm.get_pretrained_cfg(name)
        return tuple(config.input_size) if config is not None else (3, 224, 224)
    if spec in OWN:
        return OWN[spec][1]
    if spec not in _torchvision_names():
        raise _unknown(spec)
    from torchvision.models import get_model_weights

    sizes = []
    for weights in get_model_weights(spec):
        crop = getattr(weights.transforms(), "crop_size", None)
        if isinstance(crop, (list, tuple)) and len(set(crop)) == 1:
            sizes.append(int(crop[0]))
    side = min(sizes, default=224)
    return (3, side, side)


def check_fits(model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Run two blank images through the network and look at what comes out.

    Args:
        model: leaves as it came: the mode, the parameters and the statistics are untouched.
        input_shape: of one image, [C, H, W].
        num_classes: outputs that the data set needs.

    Raises:
        UsageError: the network cannot read such images, or gives something else than
            logits [N, num_classes].
    """
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), torch.zeros(()))
    try:
        model.eval()
        with torch.no_grad():
            out = model(torch.zeros(2, *input_shape, device=parameter.device, dtype=parameter.dtype))
    except HalpError:
        raise
    except Exception as error:
        raise UsageError(
            f"the network {type(model).__name__} does not take images of shape {tuple(input_shape)}",
            _first_line(error),
            "choose another network or data set, or one that suits this image size",
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    found = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
    if not isinstance(out, torch.Tensor) or out.shape != (2, num_classes):
        raise UsageError(
            f"the network {type(model).__name__} does not fit the data set",
            f"for 2 images it returns {found}, and logits of shape (2, {num_classes}) are needed",
            f"build it with num_classes={num_classes} and let it return the logits alone",
        )


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name, available(), n=3, cutoff=0.5)
    remedy = f"did you mean {', '.join(near)}" if near else "try resnet20 or resnet50"
    return UsageError(
        f"unknown network {name!r}", "neither halp_iee.models nor torchvision has it",
        f"{remedy}; timm:NAME and path/to/file.py:function work too",
    )  # fmt: skip


def _unknown_to_timm(name: str, names: list[str]) -> UsageError:
    near = [f"timm:{found}" for found in difflib.get_close_matches(name, names, n=3, cutoff=0.5)]
    remedy = f"did you mean {', '.join(near)}" if near else "try timm:resnet18"
    return UsageError(f"unknown network 'timm:{name}'", "timm has none of this name", remedy)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _torchvision_names() -> tuple[str, ...]:
    from torchvision.models import list_models

    # The quantised twins are int8 forms of networks that the list has anyway.
    return tuple(name for name in list_models() if not name.startswith("quantized_"))


def _from_torchvision(name: str, num_classes: int | None, in_channels: int | None, image_size: int | None) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {"weights": None}
    if num_classes is not None:
        options["num_classes"] = num_classes
    if name in ("googlenet", "inception_v3"):
        # Their second heads exist only in training: the network measured would not be the one trained.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and image_size is not None:
        options["image_size"] = image_size
    if any(family in name for family in ("rcnn", "retinanet", "fcos", "ssd", "fcn_", "deeplab", "lraspp")):
        options["weights_backbone"] = None  # else torchvision downloads it
    try:
        model = get_model(name, **options)
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"torchvision cannot build {name!r}",
            _first_line(error),
            "change the number of classes or image size",
        ) from error
    if in_channels not in (None, 3):
        _replace_stem(model, name, int(in_channels or 3))
    return model


def _replace_stem(model: nn.Module, name: str, in_channels: int) -> None:
    for path, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.in_channels == 3 and module.groups == 1:
            options: dict[str, Any] = {
                name: getattr(module, name)
                for name in ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            stem = type(module)(in_channels, bias=module.bias is not None, **options)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, stem)
            return
    raise UsageError(
        f"{name!r} cannot take images of {in_channels} channels",
        "it has no first convolution over 3 channels that could be replaced",
        "use images of 3 channels or another network",
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            "networks of timm cannot be built", "timm is not installed", "pip install 'halp-iee[timm]'"
        ) from error
    return timm


def _from_timm(name: str, num_classes: int | None, in_channels: int | None, image_size: int | None) -> nn.Module:
    timm = _timm()
    if not timm.is_model(name):
        raise _unknown_to_timm(name, timm.list_models())
    options = {"num_classes": num_classes, "in_chans": in_channels, "img_size": image_size}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        try:
            return timm.create_model(name, pretrained=False, **options)
        except TypeError:
            # Only networks whose weights depend on the image's size know this option.
            options.pop("img_size", None)
            return timm.create_model(name, pretrained=False, **options)
    except Exception as error:
        raise UsageError(f"timm cannot build {name!r}", _first_line(error), "choose another network") from error
