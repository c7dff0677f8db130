"""Train, prune and fine-tune a small D-FINE or RT-DETR of transformers on the digits: a loop of one's own.

No trainer of Detectron2 and no config: what d2prune adds to any loop is three calls, prune, save and load.
"""

import argparse
import contextlib
import io
import itertools
import sys
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert
from torchvision.transforms.functional import pil_to_tensor

import d2prune

SIDE = 128  # of a scene, in pixels
LOG = 50  # steps between two lines
WIDTHS = [32, 64, 96, 128]  # of the backbone's stages
HEADS = {
    "encoder_in_channels": WIDTHS[1:], "decoder_in_channels": [64] * 3, "encoder_hidden_dim": 64,
    "d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "decoder_layers": 2, "num_queries": 40, "num_denoising": 20,
    "num_labels": 10, "anchor_image_size": None, "freeze_backbone_batch_norms": False,
}  # fmt: skip
HGNET = {
    "stem_channels": [3, 16, 24], "stage_in_channels": [24, *WIDTHS[:3]], "stage_out_channels": WIDTHS,
    "stage_mid_channels": [16, 16, 32, 48], "hidden_sizes": WIDTHS, "stage_num_blocks": [1] * 4,
    "stage_numb_of_layers": [2] * 4, "out_indices": [2, 3, 4],
}  # fmt: skip
RESNET = {
    "embedding_size": 32, "hidden_sizes": WIDTHS, "depths": [1] * 4, "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip


def build(kind: str) -> torch.nn.Module:
    """A detector of ten classes with random weights: "d-fine" or "rt-detr"."""
    try:
        import transformers as hf
    except ImportError as error:
        raise d2prune.PruneError("this example needs transformers: pip install 'd2prune[zoo]'") from error
    if kind == "d-fine":
        backbone = hf.HGNetV2Config(**HGNET)
        model = hf.DFineForObjectDetection(hf.DFineConfig(backbone_config=backbone, depth_mult=0.34, **HEADS))
    else:
        backbone = hf.RTDetrResNetConfig(**RESNET)
        model = hf.RTDetrV2ForObjectDetection(hf.RTDetrV2Config(backbone_config=backbone, **HEADS))
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            module.reset_parameters()  # transformers draws weights of a hundredth, norms too
    return model


class Digits(Dataset):
    """Pictures (3, 128, 128) in [0, 1] with classes and boxes (cx, cy, w, h, of the picture's size)."""

    def __init__(self, root: Path, split: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(root / f"digits_{split}.json"))
        self.folder, self.ids = root / "images" / split.split("_")[0], sorted(self.coco.imgs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        number = self.ids[index]
        picture = pil_to_tensor(Image.open(self.folder / self.coco.imgs[number]["file_name"])) / 255
        found = self.coco.imgToAnns[number]
        boxes = torch.tensor([a["bbox"] for a in found]).reshape(-1, 4) / SIDE
        labels = torch.tensor([a["category_id"] - 1 for a in found], dtype=torch.long)
        return picture, {"class_labels": labels, "boxes": box_convert(boxes, "xywh", "cxcywh")}, number


def loader(data: Digits, batch: int, shuffle: bool = False) -> DataLoader:
    return DataLoader(data, batch, shuffle, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))


def train(model: torch.nn.Module, data: Digits, steps: int, args: argparse.Namespace, what: str) -> None:
    """AdamW, warmed up and annealed; of the model at hand, since a pruned one has other parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, max(steps, 20), pct_start=0.1)
    model.train()
    losses: list[float] = []
    batches = (batch for _ in itertools.count() for batch in loader(data, args.batch, shuffle=True))
    for step, (pictures, targets, _) in enumerate(itertools.islice(batches, steps), 1):
        labels = [{k: v.to(args.device) for k, v in target.items()} for target in targets]
        loss = model(torch.stack(pictures).to(args.device), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        if step % LOG == 0 or step == steps:
            recent = losses[-LOG:]
            print(f"{what}: step {step}, mean loss {sum(recent) / len(recent):.2f}", flush=True)


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: Digits, args: argparse.Namespace) -> dict[str, float]:
    """Box AP and AP50, in %, of the complete model, and its mean loss."""
    model.eval()
    found, losses = [], []
    for pictures, targets, numbers in loader(data, args.batch):
        labels = [{k: v.to(args.device) for k, v in target.items()} for target in targets]
        out = model(torch.stack(pictures).to(args.device), labels=labels)
        losses.append(out.loss.item())
        boxes = box_convert(out.pred_boxes, "cxcywh", "xywh") * SIDE
        scores, classes = out.logits.sigmoid().max(-1)
        for number, *detections in zip(
            numbers, boxes.tolist(), scores.tolist(), classes.tolist(), strict=True
        ):
            found += [
                {"image_id": number, "bbox": b, "score": s, "category_id": c + 1}
                for b, s, c in zip(*detections, strict=True)
            ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCOeval(data.coco, data.coco.loadRes(found), "bbox")
        for step in (coco.evaluate, coco.accumulate, coco.summarize):
            step()
    return {"AP": 100 * coco.stats[0], "AP50": 100 * coco.stats[1], "loss": sum(losses) / len(losses)}


def batches(data: Digits, count: int, args: argparse.Namespace) -> list[tuple[torch.Tensor, list[dict]]]:
    """Pictures and labels to choose and repair channels by."""
    found = []
    for pictures, targets, _ in itertools.islice(loader(data, args.batch, shuffle=True), count):
        labels = [{k: v.to(args.device) for k, v in target.items()} for target in targets]
        found.append((torch.stack(pictures).to(args.device), labels))
    return found


def detections(model: torch.nn.Module, batch: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    out = model(batch[0])
    return out.logits, out.pred_boxes


def loss(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
    return model(batch[0], labels=batch[1]).loss


def main(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    torch.manual_seed(args.seed)
    model = build(args.model).to(args.device)
    learn, test = Digits(args.data, "train"), Digits(args.data, "val_mini")
    args.output.mkdir(parents=True, exist_ok=True)
    train(model, learn, args.steps, args, "train")
    report = {"trained": evaluate(model, test, args)}
    data = batches(learn, 25, args)
    result = d2prune.prune(
        model, args.amount, example_inputs=data[0], forward_fn=detections, data=data, loss=loss
    )
    report["pruned"] = evaluate(result.model, test, args)
    train(result.model, learn, args.finetune_steps, args, "fine-tune")
    report["fine-tuned"] = evaluate(result.model, test, args)
    d2prune.save(result, args.output / "model_pruned.pth")
    loaded = d2prune.load(args.output / "model_pruned.pth", build(args.model)).to(args.device)
    report["reloaded"] = evaluate(loaded, test, args)
    print(result.before, result.after, result.proof, sep="\n")
    for name, row in report.items():
        print(f"{name}: " + ", ".join(f"{what} {value:.2f}" for what, value in row.items()))
    return report


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", choices=("d-fine", "rt-detr"), default="d-fine")
    add("--data", type=Path, default=Path("datasets/digits"), help="what tools/make_digits.py made")
    add("--output", type=Path, default=Path("output/DETR"))
    add("--steps", type=int, default=2000, help="of training, from random weights")
    add("--finetune-steps", type=int, default=500)
    add("--amount", type=float, default=0.5, help="fraction of the MACs to remove")
    add("--batch", type=int, default=8, help="pictures a step")
    add("--lr", type=float, default=5e-4, help="at its highest")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        main(parse())
    except d2prune.PruneError as error:
        sys.exit(f"train_digits: {error}")
