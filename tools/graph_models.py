"""The models that `bench_graph.py` sweeps, each with the smallest inputs that it accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FIRST = (
    "resnet18", "fasterrcnn_mobilenet_v3_large_320_fpn", "vit_b_32", "swin_t", "swin3d_t", "mvit_v2_s", "raft_small",
    "lraspp_mobilenet_v3_large", "s3d", "r3d_18", "ssdlite320_mobilenet_v3_large", "maxvit_t", "swin_v2_t",
    "fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn", "ssd300_vgg16", "fcn_resnet50", "deeplabv3_resnet50", "googlenet",
    "shufflenet_v2_x0_5",
    "densenet121", "resnet50", "inception_v3", "convnext_tiny", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf",
    "mnasnet0_5", "squeezenet1_0", "alexnet", "vgg11", "mvit_v1_b", "raft_large", "mc3_18", "r2plus1d_18",
)  # fmt: skip
"""One of each family before its siblings: what breaks shows early."""

LAST = ("vit_h_14", "regnet_y_128gf", "vit_l_16", "vit_l_32", "maxvit_t", "mvit_v2_s", "mvit_v1_b", "swin3d_b")
"""The giants and the slow: after all others."""

TIMM = (
    "beit_base_patch16_224", "botnet26t_256", "gernet_s", "cait_xxs24_224", "coat_tiny",
    "coatnet_0_rw_224", "convit_tiny", "convmixer_768_32", "convnext_atto", "convnextv2_atto", "crossvit_tiny_240",
    "cs3darknet_s", "cspresnet50", "darknet53", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla34",
    "dm_nfnet_f0", "dpn48b", "eca_resnet33ts", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientnet_b0", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcresnet33ts", "gcvit_xxtiny", "ghostnet_050", "ghostnetv2_100", "gmixer_12_224",
    "gmlp_ti16_224", "hardcorenas_a", "hgnet_tiny", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small",
    "inception_next_atto", "inception_resnet_v2", "inception_v4", "lambda_resnet26t", "lcnet_050", "levit_128s",
    "mambaout_femto", "maxvit_rmlp_pico_rw_256", "mixer_s32_224", "mixnet_s", "mnasnet_small", "mobilenetv1_100",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050",
    "mvitv2_tiny", "nasnetalarge", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pnasnet5large",
    "poolformer_s12", "bat_resnext26ts", "halonet26t",
    "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "regnety_002", "repghostnet_050", "repvgg_a0",
    "repvit_m0_9", "res2net50_26w_4s", "resmlp_12_224", "resnest14d", "resnet18", "resnetv2_50", "resnext50_32x4d",
    "rexnet_100", "samvit_base_patch16_224", "selecsls42", "semnasnet_050", "senet154", "sequencer2d_s",
    "shvit_s1", "skresnet18", "starnet_s1", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "tf_efficientnetv2_b0", "tiny_vit_5m_224", "tinynet_e",
    "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_patch16_224",
    "vit_relpos_small_patch16_224", "vitamin_small_224", "volo_d1_224", "vovnet39a", "wide_resnet50_2", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
"""One small model of each family."""


WHOLE_SIZE = ("mlp", "mixer", "bat_", "halonet", "lambda")
"""Parts of names of networks that only run at the size they were made for, without saying so."""


def torchvision_names() -> list[str]:
    """Every model, the quantised copies aside; one of each family first, the giants last."""
    from torchvision import models

    names = [name for name in models.list_models() if not name.startswith("quantized_")]
    first = [name for name in FIRST if name in names and name not in LAST]
    return [*first, *(n for n in names if n not in (*FIRST, *LAST)), *(n for n in LAST if n in names)]


def timm_names() -> list[str]:
    import timm

    known = set(timm.list_models())
    return [name for name in TIMM if name in known]


def _kind(name: str) -> str:
    from torchvision import models

    module = models.get_model_builder(name).__module__.removeprefix("torchvision.models")
    return next((k for k in ("segmentation", "detection", "video", "optical_flow") if k in module), "classification")


@dataclass(frozen=True)
class Case:
    """One model of the sweep."""

    suite: str
    name: str

    @property
    def kind(self) -> str:
        return _kind(self.name) if self.suite == "torchvision" else "classification"

    @property
    def family(self) -> str:
        """The file of timm that defines it: networks of one design."""
        if self.suite != "timm":
            return ""
        from timm.models import _registry

        return str(_registry._model_to_module.get(self.name, ""))

    def build(self) -> nn.Module:
        """The model with random weights, at the smallest input size it allows."""
        if self.suite == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False, num_classes=10)
        from torchvision import models

        more: dict[str, Any] = {}
        if self.kind in ("detection", "segmentation"):
            more["weights_backbone"] = None
        if self.kind == "detection" and not self.name.startswith("ssd"):
            more |= {"min_size": 96, "max_size": 128}
        if "rcnn" in self.name:
            more["box_detections_per_img"] = 5
        if self.name.startswith("vit_"):
            more["image_size"] = self.size
        if self.name in ("googlenet", "inception_v3"):
            more["init_weights"] = False
        return models.get_model(self.name, weights=None, **more)

    @property
    def size(self) -> int:
        if self.suite == "timm":
            import timm

            given = timm.get_pretrained_cfg(self.name)
            small = given is None or given.fixed_input_size or any(k in self.name for k in WHOLE_SIZE)
            return max((given.input_size if given else (3, 224, 224))[1:]) if small else 96
        special = {
            "inception_v3": 299,  # less leaves nothing to its auxiliary head in train mode
            "maxvit_t": 224,
            "s3d": 224,
            "vit_h_14": 56,
            "raft_large": 128,
            "raft_small": 128,
        }
        if self.name.startswith("mvit"):  # its position tables are made for this size
            return 224
        return special.get(self.name, 96 if self.kind == "detection" else 64)

    def inputs(self, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
        size = self.size
        torch.manual_seed(0)
        if self.kind == "detection":
            return ([torch.rand(3, size, size) for _ in range(batch)],), {}
        if self.kind == "optical_flow":
            pair = torch.rand(2, batch, 3, size, size)
            return (), {"image1": pair[0], "image2": pair[1], "num_flow_updates": 2}
        if self.kind == "video":
            frames = 16 if self.name.startswith("mvit") else 14 if self.name == "s3d" else 4
            return (torch.randn(batch, 3, frames, size, size),), {}
        if self.suite == "timm":
            import timm

            given = timm.get_pretrained_cfg(self.name)
            return (torch.randn(batch, given.input_size[0] if given else 3, size, size),), {}
        return (torch.randn(batch, 3, size, size),), {}

    def train_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batch of two; detectors want to be told what is in the picture."""
        args, kwargs = self.inputs(batch=2)
        if self.kind != "detection":
            return args, kwargs

        def target() -> dict[str, Tensor]:
            found = {"boxes": torch.tensor([[10.0, 12.0, 70.0, 80.0]]), "labels": torch.tensor([1])}
            if "mask" in self.name:
                found["masks"] = torch.ones(1, self.size, self.size, dtype=torch.uint8)
            if "keypoint" in self.name:
                found["keypoints"] = torch.tensor([[[20.0, 30.0, 1.0]] * 17])
            return found

        return (args[0], [target(), target()]), kwargs
