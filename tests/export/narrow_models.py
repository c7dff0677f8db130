"""Narrow random models of the embedded data's config, and what their results must share."""

import torch
from detectron2.modeling import build_model
from torch import nn

import d2prune.modeling  # noqa: F401  registers the architectures
from d2prune.config import get_cfg
from d2prune.pruning import prune
from d2prune.report.matching import match
from tests.each import each

CONFIG = "configs/BlendMask/digits_R_18.yaml"
SIZE = (128, 128)
SMALL = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.BASIS_MODULE.CONVS_DIM", 16,
    "MODEL.BASIS_MODULE.NUM_CONVS", 1,
    "MODEL.FCOS.NUM_CLS_CONVS", 0,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.FCOS.POST_NMS_TOPK_TEST", 20,
    "MODEL.BLENDMASK.ATTN_SIZE", 7,
]  # fmt: skip
PANOPTIC = ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3"],
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6]  # fmt: skip
FIVE_LEVELS = ["MODEL.FCOS.TOP_LEVELS", 2, "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"],
               "MODEL.FCOS.FPN_STRIDES", [8, 16, 32, 64, 128],
               "MODEL.FCOS.SIZES_OF_INTEREST", [64, 128, 256, 512]]  # fmt: skip


SHARED_TOWERS = ["MODEL.FCOS.NORM", "BN", "MODEL.FCOS.NUM_SHARE_CONVS", 1]


def narrow_cfg(pytestconfig, arch, *pairs):
    cfg = get_cfg()
    cfg.merge_from_file(str(pytestconfig.rootpath / CONFIG))
    available = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if available else torch.get_default_device()
    cfg.merge_from_list([*SMALL, "MODEL.META_ARCHITECTURE", arch, "MODEL.DEVICE", str(device)])
    cfg.merge_from_list(list(pairs))
    return cfg


def narrow_model(cfg, pruned):
    """A random model that finds something; its norms do something, too."""
    torch.manual_seed(0)
    model = build_model(cfg)
    head = model.proposal_generator.fcos_head
    nn.init.normal_(head.cls_logits.weight, std=0.3)
    nn.init.zeros_(head.cls_logits.bias)
    nn.init.constant_(head.bbox_pred.bias, 2.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return prune(model, 0.5, input_size=(256, 256)).model if pruned else model


def batch(sizes=((96, 120), (128, 104))):
    """Two images of different sizes, one wanted at another size than it has."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *size), generator=generator) for size in sizes]
    items = [{"image": image.to(torch.uint8)} for image in images]
    items[0].update(height=200, width=250)
    return items


def same_results(model, predictor, **sizes):
    """Every field of every detection: close where it is a number, else nearly all the same."""
    with torch.no_grad():
        results = model.eval()(batch(**sizes))
    for eager, other in each(zip(results, predictor(batch(**sizes)), strict=True)):
        assert eager.keys() == other.keys()
        same_instances(eager["instances"], other["instances"])
        if "sem_seg" in eager:
            wanted = eager["sem_seg"].to(other["sem_seg"])
            torch.testing.assert_close(other["sem_seg"], wanted, rtol=1e-4, atol=1e-4)
            assert len(eager["panoptic_seg"][1]) == len(other["panoptic_seg"][1])


def same_instances(eager, other):
    assert len(other) == len(eager) > 0
    assert other.image_size == eager.image_size
    assert other.get_fields().keys() == eager.get_fields().keys()
    eager = eager.to(other.scores.device)
    pairs = torch.tensor(match(eager, other, 0.99))  # near ties may come in another order
    assert len(pairs) == len(eager)
    eager, other = eager[pairs[:, 0]], other[pairs[:, 1]]
    for name in ("pred_classes", "fpn_levels", "locations"):
        assert torch.equal(other.get(name), eager.get(name))
    torch.testing.assert_close(other.scores, eager.scores, rtol=1e-4, atol=1e-5)
    if eager.has("pred_masks"):
        assert (eager.pred_masks != other.pred_masks).float().mean() < 1e-3
