"""The embedded data's BlendMask, so small that a test can train, prune and load it in no time."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from d2prune.config import get_cfg
from d2prune.pruning import prune

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "BlendMask" / "digits_R_18.yaml"
SIDE = 64
TINY = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FCOS.NUM_CLASSES": 3,
    "MODEL.FCOS.NUM_CLS_CONVS": 1,
    "MODEL.FCOS.NUM_BOX_CONVS": 1,
    "MODEL.BLENDMASK.ATTN_SIZE": 7,
    "MODEL.BASIS_MODULE.NUM_CLASSES": 3,
    "MODEL.BASIS_MODULE.CONVS_DIM": 16,
    "MODEL.BASIS_MODULE.NUM_CONVS": 1,
    "MODEL.FCOS.POST_NMS_TOPK_TEST": 8,
    "MODEL.PRUNING.ROUND_TO": 1,
    "MODEL.PRUNING.RATIOS": [["basis_module.*", 0.125], ["*_tower.*", 0.5]],
    "INPUT.MIN_SIZE_TRAIN": (SIDE,),
    "INPUT.MAX_SIZE_TRAIN": SIDE,
    "INPUT.MIN_SIZE_TEST": SIDE,
    "INPUT.MAX_SIZE_TEST": SIDE,
    "DATALOADER.NUM_WORKERS": 0,
}
NARROW_R_50 = [
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.NORM", "FrozenBN",
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.BACKBONE.FREEZE_AT", 2,
]  # fmt: skip


def device():
    """The accelerator, where there is one."""
    if torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    return str(torch.get_default_device())


def tiny_cfg(*pairs):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = device()
    cfg.merge_from_list([x for pair in TINY.items() for x in pair])
    cfg.merge_from_list(list(pairs))
    return cfg


def tiny_model(*pairs, seed=0):
    """A random model in eval mode that finds something, and whose norms do something."""
    torch.manual_seed(seed)
    model = build_model(tiny_cfg(*pairs))
    head = model.proposal_generator.fcos_head
    nn.init.normal_(head.cls_logits.weight, std=0.3)
    nn.init.zeros_(head.cls_logits.bias)
    nn.init.constant_(head.bbox_pred.bias, 2.0)
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def tiny_prune(model, amount=0.5, **kwargs):
    return prune(model, amount, input_size=(SIDE, SIDE), **kwargs)


def picture(seed=0):
    """(SIDE, SIDE, 3) uint8: what DefaultPredictor takes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8).numpy()


def batch(seed=0):
    image = torch.from_numpy(picture(seed)).permute(2, 0, 1).float()
    return [{"image": image, "height": SIDE, "width": SIDE}]


def training_batch():
    """One noisy image with one square instance."""
    instances = Instances((SIDE, SIDE))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    instances.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    masks[:, 8:40, 8:40] = True
    instances.gt_masks = BitMasks(masks)
    return [{**batch()[0], "instances": instances, "basis_sem": masks[0].long()}]


def train_step(model):
    """Whether losses and gradients of one step are finite, and the semantic branch has a loss."""
    losses = model.train()(training_batch())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    fine = all(torch.isfinite(t).all() for t in (*losses.values(), *gradients))
    return fine and len(gradients) > 50, "loss_basis_sem" in losses


@torch.no_grad()
def detect(model, seed=0):
    """The fields of what an eval-mode model finds in one noisy image."""
    found = model.eval()(batch(seed))[0]["instances"]
    assert len(found) > 0
    fields = {name: getattr(value, "tensor", value) for name, value in found.get_fields().items()}
    return {name: value.cpu() for name, value in fields.items()}


def equal(one, other):
    """Whether two dicts of tensors have the same keys and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def snapshot(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
