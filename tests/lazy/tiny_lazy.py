"""A LazyConfig: Mask R-CNN on a narrow ResNet with frozen norms, trained on tiny_runs.py's rectangles."""

from detectron2 import model_zoo

from tests.adapters.families import narrow_rcnn, small_resnet
from tests.tiny_blendmask import device

SIDE = 64

_zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, train = narrow_rcnn(_zoo.model, 16), _zoo.dataloader, _zoo.train
optimizer, lr_multiplier = _zoo.optimizer, _zoo.lr_multiplier

model.backbone.bottom_up = small_resnet("FrozenBN", freeze_at=2)
model.roi_heads.num_classes = 3
model.roi_heads.box_predictor.test_score_thresh = 0.0

dataloader.train.dataset.names, dataloader.test.dataset.names = "tiny_train", "tiny_val"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
for _part in (dataloader.train, dataloader.test):
    _part.mapper.augmentations[0].update(short_edge_length=SIDE, max_size=SIDE)
dataloader.train.mapper.augmentations[0].sample_style = "choice"
dataloader.train.mapper.augmentations[0].short_edge_length = [SIDE]

train.update(init_checkpoint="", max_iter=2, eval_period=0, log_period=1, seed=1)
train.device = device()
prune = dict(round_to=1, amount=0.4)
