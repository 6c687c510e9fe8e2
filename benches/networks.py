#!/usr/bin/env python3
"""More trained networks for benches/compare.py: LeNet-300-100, a MobileNetV2-like, a small ViT.

    apt-get install python3-torch dataset-fashion-mnist     # Debian: torch 1.13 (CPU), MIT-licensed data
    /usr/bin/python3 benches/networks.py mlp mobilenet vit  # half an hour on one core

Writes target/networks/NAME.onnx: float32 [N, 1, 28, 28] in 0..1 -> logits
[N, 10], trained on the split of examples/fashion/make.py, so that the calibration and test samples
of the example are theirs too:

    PYTHONPATH=third_party/python python3 benches/compare.py target/release/hone \
        --model target/networks/mlp.onnx
"""
import argparse
import importlib.util
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "target", "networks")
spec = importlib.util.spec_from_file_location("make", os.path.join(HERE, "../examples/fashion/make.py"))
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def convolution(cin, cout, kernel, stride=1, groups=1, act=True):
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([nn.ReLU6()] if act else []))


class Inverted(nn.Module):
    """An inverted residual: widen, one filter a channel, narrow."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.body = nn.Sequential(convolution(cin, 4 * cin, 1), convolution(4 * cin, 4 * cin, 3, stride, 4 * cin),
                                  convolution(4 * cin, cout, 1, act=False))
        self.keeps = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.body(x) if self.keeps else self.body(x)


class MLP(nn.Module):
    """LeNet-300-100, a usual yardstick of pruning."""

    rate, epochs = 1e-3, 8

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU())
        self.head = nn.Linear(100, 10)

    def forward(self, x):
        return self.head(self.body(torch.flatten((x - make.MEAN) / make.STD, 1)))

    def optimizer(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.01)


class MobileNet(nn.Module):
    rate, epochs = 0.1, 4

    def __init__(self):
        super().__init__()
        blocks = [Inverted(16, 24, 1), Inverted(24, 24, 1), Inverted(24, 48, 2), Inverted(48, 48, 1)]
        self.body = nn.Sequential(convolution(1, 16, 3, 2), *blocks, convolution(48, 160, 1))
        self.head = nn.Linear(160, 10)

    def forward(self, x):
        x = self.body((x - make.MEAN) / make.STD)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True, weight_decay=2e-4)


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and around a shortcut."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.width = heads, width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def split(self, x):
        return x.reshape(-1, 16, self.heads, self.width // self.heads).transpose(1, 2)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (self.split(f(y)) for f in (self.query, self.key, self.value))
        attention = torch.softmax(q @ k.transpose(2, 3) / (self.width // self.heads) ** 0.5, -1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(-1, 16, self.width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    rate, epochs = 2e-3, 5

    def __init__(self, width=64, layers=3, heads=4):
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches((x - make.MEAN) / make.STD).reshape(-1, self.width, 16).transpose(1, 2)
        return self.head(self.norm(self.layers(x + self.places)).mean(1))

    def optimizer(self):
        return torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.05)


NETS = {"mlp": MLP, "mobilenet": MobileNet, "vit": ViT}


def train(name, net, epochs):
    """The split, the order and the augmentation of the example, for one net."""
    g = torch.Generator().manual_seed(1)
    x = torch.from_numpy(make.idx("train-images-idx3-ubyte.gz").astype(np.float32) / 255)[:, None]
    y = torch.from_numpy(make.idx("train-labels-idx1-ubyte.gz").astype(np.int64))
    order = torch.randperm(len(x), generator=g)
    rows, held = order[make.HELD_OUT:], order[:make.HELD_OUT]
    steps = epochs * (len(rows) // 128)
    opt = net.optimizer()
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=2 * net.rate, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        start = time.time()
        net.train()
        for batch in rows[torch.randperm(len(rows), generator=g)].split(128)[:len(rows) // 128]:
            loss = F.cross_entropy(net(make.augment(x[batch], g)), y[batch])
            opt.zero_grad()
            loss.backward()
            opt.step()
            plan.step()
        print(f"{name}, epoch {epoch + 1}: held out {make.accuracy(net, x[held], y[held]):.4f}, "
              f"{time.time() - start:.0f} s", flush=True)
    net.eval()
    path = os.path.join(OUT, name + ".onnx")
    torch.onnx.export(net, x[:2], path, opset_version=13, input_names=["image"], output_names=["logits"],
                      dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("nets", nargs="+", choices=sorted(NETS))
    p.add_argument("--epochs", type=int, help="instead of those of each net")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    os.makedirs(OUT, exist_ok=True)
    for name in a.nets:
        torch.manual_seed(1)
        net = NETS[name]()
        print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters")
        train(name, net, a.epochs or net.epochs)


if __name__ == "__main__":
    main()
