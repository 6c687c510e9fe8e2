#!/usr/bin/env python3
"""Makes the example of this folder: a residual classifier for Fashion-MNIST and its data.

    apt-get install python3-torch dataset-fashion-mnist     # Debian: torch 1.13 (CPU), MIT-licensed data
    pip install onnx==1.23.2                                # to give the weights readable names
    /usr/bin/python3 examples/fashion/make.py               # about 40 minutes on one core

Writes beside itself
    model.onnx         float32 [N, 1, 28, 28] in 0..1 -> logits [N, 10]; BatchNorm folded by the exporter
    calibration.npz    1,024 images the net has never seen (held out of the training split)
    test.npz           4,000 images of the official test split
Both archives hold `image` (float32, named as the model's input) and `labels` (int64).

The training split is cut in two: 55,000 images train the net, 5,000 are held out; calibration
samples come from the held-out part, because a sample that was trained on has almost no gradient
left. The seed fixes the data order, the initial weights and the subsets.
"""
import argparse
import gzip
import os
import struct
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = "/usr/share/datasets/fashion-mnist"
MEAN, STD = 0.2860, 0.3530
HELD_OUT, CALIBRATION, TEST = 5000, 1024, 4000


def idx(name):
    """An array from a gzipped IDX file: magic, dimensions, bytes."""
    with gzip.open(os.path.join(DATA, name)) as f:
        _, dims = struct.unpack(">HxB", f.read(4))
        shape = struct.unpack(">" + "I" * dims, f.read(4 * dims))
        return np.frombuffer(f.read(), np.uint8).reshape(shape)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, as in ResNet-18."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = None
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.blocks(self.stem((x - MEAN) / STD))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def augment(x, g):
    """A random mirror image and a random shift of up to two pixels, per sample."""
    flip = torch.rand(len(x), generator=g) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2))
    dx, dy = torch.randint(0, 5, (2, len(x)), generator=g)
    rows = (dy[:, None] + torch.arange(28))[:, :, None]
    cols = (dx[:, None] + torch.arange(28))[:, None, :]
    return padded[torch.arange(len(x))[:, None, None], 0, rows, cols][:, None]


def name_weights(path):
    """Names weights after their layers: the exporter calls what it folds `onnx::Conv_92`."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            # "/blocks/blocks.0/short/short.0/Conv": a part repeats the name of the one before it.
            parts = node.name.split("/")[1:-1]
            layer = ".".join(p for i, p in enumerate(parts) if not any(q.startswith(p + ".") for q in parts[i + 1:]))
            for slot, kind in ((1, "weight"), (2, "bias")):
                for tensor in model.graph.initializer:
                    if tensor.name == node.input[slot]:
                        tensor.name = f"{layer}.{kind}"
                        node.input[slot] = tensor.name
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@torch.no_grad()
def accuracy(net, x, y):
    net.eval()
    return np.mean([(net(a).argmax(1) == b).float().mean().item() for a, b in zip(x.split(500), y.split(500))])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=int, default=16)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    g = torch.Generator().manual_seed(a.seed)

    def tensor(images):
        return torch.from_numpy(images.astype(np.float32) / 255)[:, None]

    x, y = tensor(idx("train-images-idx3-ubyte.gz")), torch.from_numpy(idx("train-labels-idx1-ubyte.gz").astype(np.int64))
    tx, ty = tensor(idx("t10k-images-idx3-ubyte.gz")), torch.from_numpy(idx("t10k-labels-idx1-ubyte.gz").astype(np.int64))
    order = torch.randperm(len(x), generator=g)
    train, held = order[HELD_OUT:], order[:HELD_OUT]

    net = Net()
    print(sum(p.numel() for p in net.parameters()), "parameters")
    steps = a.epochs * (len(train) // 128)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.2, total_steps=steps, pct_start=0.2)
    for epoch in range(a.epochs):
        start = time.time()
        net.train()
        for batch in train[torch.randperm(len(train), generator=g)].split(128):
            if len(batch) < 128:
                continue
            loss = F.cross_entropy(net(augment(x[batch], g)), y[batch])
            opt.zero_grad()
            loss.backward()
            opt.step()
            plan.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, held out {accuracy(net, x[held], y[held]):.4f}, "
              f"{time.time() - start:.0f} s", flush=True)
    print(f"test accuracy (10,000 images): {accuracy(net, tx, ty):.4f}")

    net.eval()
    torch.onnx.export(net, x[:1], os.path.join(HERE, "model.onnx"), opset_version=13, input_names=["image"],
                      output_names=["logits"], dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}})
    name_weights(os.path.join(HERE, "model.onnx"))
    for name, images, labels, rows in (
        ("calibration", x, y, held[:CALIBRATION]),
        ("test", tx, ty, torch.randperm(len(tx), generator=g)[:TEST]),
    ):
        np.savez_compressed(os.path.join(HERE, name + ".npz"), image=images[rows].numpy(), labels=labels[rows].numpy())


if __name__ == "__main__":
    main()
