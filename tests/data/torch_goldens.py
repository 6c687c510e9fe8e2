"""Makes tests/data/networks: small networks in ONNX and what torch says of their gradients.

    /usr/bin/python3 tests/data/torch_goldens.py

Needs torch (made with Debian's python3-torch 1.13) and numpy. The networks have random weights and
the structure of the families that hone is for. Weights, biases and running statistics are noised,
so that no two initializers are equal and the exporter merges none; batch norms stay unfused.

goldens.json holds, for L = <cotangent, output> summed over a batch, the norm of dL/dp for every
parameter p and its projection on a random direction, in float64. Inputs, cotangents and directions
are not stored: both sides draw them with numpy's RandomState, whose streams are frozen.
"""

import json
import math
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = pathlib.Path(__file__).resolve().parent / "networks"
BATCH = 3
OPSET = 14


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(self.pool(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, kernel, activation, squeeze):
        super().__init__()
        hidden = 4 * inputs
        self.expand = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), activation())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, inputs, 1), nn.ReLU(),
            nn.Conv2d(inputs, hidden, 1), nn.Hardsigmoid()) if squeeze else None
        self.project = nn.Sequential(
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        y = y * self.squeeze(y) if self.squeeze else y
        y = self.project(y)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            InvertedResidual(8, 8, 1, 3, nn.ReLU6, False),
            InvertedResidual(8, 12, 2, 5, nn.Hardswish, True),
            InvertedResidual(12, 12, 1, 3, nn.Hardswish, True))
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.features(x).mean([2, 3]))


class Encoder(nn.Module):
    """A transformer layer, normalized before (ViT) or after (BERT) each half."""

    def __init__(self, width, heads, before):
        super().__init__()
        self.heads, self.before = heads, before
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x, mask):
        batch, width = x.shape[0], x.shape[2]

        def split(t):
            return t.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        scores = split(self.query(x)) @ split(self.key(x)).transpose(-1, -2)
        scores = scores / math.sqrt(width // self.heads)
        scores = scores if mask is None else scores + mask
        mixed = scores.softmax(-1) @ split(self.value(x))
        return self.out(mixed.transpose(1, 2).reshape(batch, -1, width))

    def feed(self, x):
        return self.down(functional.gelu(self.up(x)))

    def forward(self, x, mask=None):
        if self.before:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask))
        return self.norm2(x + self.feed(x))


class ViT(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) / 10)
        self.layers = nn.ModuleList(Encoder(width, 2, True) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Bert(nn.Module):
    def __init__(self, width=16, words=50):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(32, width)
        self.kinds, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(Encoder(width, 4, False) for _ in range(2))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask, token_type_ids):
        places = self.places(torch.arange(input_ids.shape[1]))
        x = self.norm(self.words(input_ids) + places[None] + self.kinds(token_type_ids))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class UNet(nn.Module):
    """Down, up by interpolation and by a transposed convolution, and across; padded by hand."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, bias=True)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 12, 3, 2, 1)
        self.deep = nn.Conv2d(12, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 8, 4, 2, 1)
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        across = functional.silu(self.norm(self.enter(functional.pad(x, (1, 1, 1, 1)))))
        x = functional.leaky_relu(self.down(across), 0.1)
        y = functional.leaky_relu(self.deep(x), 0.1)
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = functional.interpolate(self.up(x + y), size=(16, 16), mode="nearest")
        return self.leave(torch.cat([across, y], 1))


IMAGE = {"x": {"shape": [3, 32, 32]}}
NETWORKS = {
    "resnet": (ResNet, IMAGE),
    "mobilenet": (MobileNet, IMAGE),
    "vit": (ViT, IMAGE),
    "bert": (Bert, {
        "input_ids": {"shape": [12], "below": 50},
        "attention_mask": {"shape": [12], "below": 2},
        "token_type_ids": {"shape": [12], "below": 2},
    }),
    "unet": (UNet, {"x": {"shape": [3, 16, 16]}}),
}


def draw_inputs(specs, batch):
    """Must stay the same as in tests/oracle/networks.py."""
    random = np.random.RandomState(1)
    inputs = {}
    for name, spec in specs.items():
        shape = [batch, *spec["shape"]]
        if "below" in spec:
            inputs[name] = random.randint(0, spec["below"], shape).astype(np.int64)
        else:
            inputs[name] = random.standard_normal(shape).astype(np.float32)
    return inputs


def noised(network):
    for parameter in network.parameters():
        if parameter.dim() < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in network.named_buffers():
        if "running_mean" in name:
            buffer += 0.1 * torch.randn_like(buffer)
        if "running_var" in name:
            buffer *= 1 + 0.2 * torch.rand_like(buffer)
    return network.eval()


def gradients(network, inputs):
    """Norm and projection of dL/dp for every parameter p."""
    tensors = [torch.from_numpy(v) for v in inputs.values()]
    tensors = [t.double() if t.is_floating_point() else t for t in tensors]
    output = network.double()(*tensors)
    random = np.random.RandomState(2)
    cotangent = random.standard_normal(list(output.shape)).astype(np.float32)
    (output * torch.from_numpy(cotangent).double()).sum().backward()
    found = {}
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.numpy()
        direction = random.standard_normal(gradient.shape)
        found[name] = [float(np.linalg.norm(gradient)), float((gradient * direction).sum())]
    return list(output.shape), found


def main():
    HERE.mkdir(exist_ok=True)
    goldens = {"batch": BATCH, "torch": torch.__version__, "networks": {}}
    for name, (make, specs) in NETWORKS.items():
        torch.manual_seed(0)
        network = noised(make())
        inputs = draw_inputs(specs, BATCH)
        torch.onnx.export(
            network, tuple(torch.from_numpy(v) for v in inputs.values()), str(HERE / f"{name}.onnx"),
            input_names=list(inputs), output_names=["y"], opset_version=OPSET,
            dynamic_axes={i: {0: "N"} for i in [*inputs, "y"]}, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE)
        # oneDNN's backward pass of torch 1.13 is wrong for some layouts.
        with torch.backends.mkldnn.flags(enabled=False):
            shape, found = gradients(network, inputs)
        goldens["networks"][name] = {"inputs": specs, "output": shape, "gradients": found}
    text = json.dumps(goldens, indent=None, separators=(",", ":"))
    (HERE / "goldens.json").write_text(text.replace('"networks":', '\n"networks":') + "\n")


if __name__ == "__main__":
    main()
