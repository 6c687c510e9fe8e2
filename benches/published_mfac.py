#!/usr/bin/env python3
"""The published static M-FAC pruner (Frantar, Kurtic, Alistarh 2021), as a peer to measure against.

    scripts/setup --tests                       # numpy, onnx
    apt-get install python3-torch               # Debian: torch 1.13 (CPU)
    PYTHONPATH=third_party/python /usr/bin/python3 benches/published_mfac.py \
        --model examples/fashion/model.onnx --calibration examples/fashion/calibration.npz \
        --test examples/fashion/test.npz --sparsity 0.7 0.8 0.9 0.95

A fresh implementation of what the authors' code (IST-DASLab/M-FAC, prun.py and main_prun.py) does,
reading an ONNX file instead of its built-in ResNet-20. With g_i the gradient of the mean
cross-entropy of mini-batch i, over the weights that are still alive in one long vector cut into
blocks of B entries (which therefore cross layers),

    F = λI + 1/m Σ g_i g_iᵀ                     per block, λ absolute
    h_i = g_i/λ − Σ_{k<i} h_k (h_kᵀ g_i)/δ_k     δ_i = m + g_iᵀ h_i
    F⁻¹ = I/λ − Σ h_i h_iᵀ/δ_i
    ρ_j = w_j² / (2 [F⁻¹]_jj)                   the lowest of all weights go at once
    w ← w − F⁻¹ Σ_dropped e_j w_j/[F⁻¹]_jj       the sum of single-weight updates; dropped stay 0

A run may be cut into steps on a geometric schedule of densities, each with new gradients
(--recomputations). Where the authors' code has a defect this one is generous to it: the last
gradient is kept (theirs is lost), and `--inverse dense` forms and inverts each block in float64
where the float32 recursion loses its digits (small λ) or takes minutes (many gradients). The
linear algebra is numpy's, whose wheel brings a good BLAS; torch only takes gradients.
"""
import argparse
import math
import os
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: BLAS threads only spin
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

CHUNK_BYTES = 64 << 20  # blocks treated in one batched product; bounds what `dense` adds to memory


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    model = onnx.load(a.model)
    net = Network(model.graph)
    images, labels = samples(a.calibration, net.input)
    dense = net.flat()
    judge = Judge(net, a.test)
    print(f"{os.path.basename(a.model)}: {dense.size} prunable weights in {len(net.prunable)} "
          f"tensors, {len(images)} calibration samples, dense accuracy {judge(dense)} %")
    block = "full" if a.block < 0 else f"B={a.block}"
    print(f"M-FAC: m={a.ngrads} gradients of {a.batch} samples, {block}, λ={a.damp:g}, "
          f"{a.recomputations} step(s), seed {a.seed}, {a.inverse}, {a.threads} thread(s)\n")
    print("| sparsity | magnitude % | M-FAC % | gradients, CPU s | F⁻¹, CPU s | update, CPU s |")
    print("|---|---|---|---|---|---|")

    first = None  # the first step starts from the dense net whatever the sparsity
    for sparsity in a.sparsity:
        spent = {"gradients": 0.0, "inverse": 0.0, "update": 0.0}
        w, alive = dense.copy(), np.ones(dense.size, bool)
        for step in range(1, a.recomputations + 1):
            density = (1 - sparsity) ** (step / a.recomputations)
            if step > 1 or first is None:
                net.load(w)
                source = np.random.default_rng([a.seed, step])
                g, seconds = timed(gradients, net, images, labels, alive, a.ngrads, a.batch, source)
                curvature, more = timed(INVERSES[a.inverse], g, a.block, a.damp)
                del g
                if step == 1:
                    first = (curvature, seconds, more)
            else:
                curvature, seconds, more = first
            spent["gradients"] += seconds
            spent["inverse"] += more
            keep = round(density * dense.size)
            _, seconds = timed(prune, w, alive, keep, curvature)
            spent["update"] += seconds
        magnitude = dense.copy()
        magnitude[lowest(np.abs(dense), dense.size - keep)] = 0
        print(f"| {sparsity:g} | {judge(magnitude)} | {judge(w)} | {spent['gradients']:.1f} | "
              f"{spent['inverse']:.1f} | {spent['update']:.2f} |", flush=True)
        if a.output_dir:
            os.makedirs(a.output_dir, exist_ok=True)
            net.load(w)
            net.save(model, os.path.join(a.output_dir, f"mfac-{sparsity:g}.onnx"))


def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="ONNX classifier, float32, one input, logits out")
    p.add_argument("--calibration", required=True, help=".npz: the model's input and `labels`")
    p.add_argument("--test", help=".npz: likewise; without it no accuracies are printed")
    p.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95])
    p.add_argument("--ngrads", type=int, default=64, help="gradients m per step")
    p.add_argument("--batch", type=int, default=16, help="samples averaged into one gradient")
    p.add_argument("--block", type=int, default=128, help="block size B; -1 is the full matrix")
    p.add_argument("--damp", type=float, default=1e-5, help="λ, absolute")
    p.add_argument("--recomputations", type=int, default=1, help="steps, each with new gradients")
    p.add_argument("--inverse", choices=sorted(INVERSES), default="recursion",
                   help="recursion (as published, float32) or dense (the same in float64)")
    p.add_argument("--seed", type=int, default=0, help="order of the calibration samples")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--output-dir", help="where pruned models go, as mfac-SPARSITY.onnx")
    a = p.parse_args()
    if min(a.ngrads, a.batch, a.recomputations, a.threads) < 1 or a.damp <= 0 or a.block == 0:
        p.error("counts and --damp must be positive, and --block positive or -1")
    if a.block < 0 and a.inverse == "dense":
        p.error("--inverse dense would hold the full matrix: use it with blocks")
    if not all(0 < s < 1 for s in a.sparsity):
        p.error("--sparsity must lie between 0 and 1")
    return a


def timed(f, *args):
    """A call's result and its CPU seconds, all threads together."""
    start = time.process_time()
    return f(*args), time.process_time() - start


def samples(path, name):
    with np.load(path) as archive:
        x = torch.from_numpy(archive[name].astype(np.float32))
        return x, torch.from_numpy(archive["labels"].astype(np.int64))


# ---- the pruner ----


def gradients(net, images, labels, alive, m, batch, source):
    """G [m, alive]: mean cross-entropy gradients of mini-batches drawn in shuffled passes."""
    g = np.empty((m, np.count_nonzero(alive)), np.float32)
    queue = np.empty(0, np.int64)
    for i in range(m):
        while len(queue) < batch:
            queue = np.concatenate([queue, source.permutation(len(images))])
        rows, queue = torch.from_numpy(queue[:batch]), queue[batch:]
        if batch == 1:
            # The mean over a sample and itself is the same, and torch keeps its fast convolutions
            # for batches of more than one.
            rows = rows.repeat(2)
        loss = F.cross_entropy(net(images[rows]), labels[rows])
        parts = torch.autograd.grad(loss, [net.values[n] for n in net.prunable])
        g[i] = np.concatenate([p.numpy().ravel() for p in parts])[alive]
    return g


def prune(w, alive, keep, curvature):
    """One step on the flat weights, in place: score, drop down to `keep`, add up the updates."""
    index = np.flatnonzero(alive)
    old = w[index]
    diagonal = curvature.diagonal()
    bad = np.count_nonzero(diagonal <= 0)
    if bad:
        print(f"warning: {bad} of {len(diagonal)} diagonal entries of F⁻¹ are not positive: "
              "float32 is too coarse for this λ (try --inverse dense)", file=sys.stderr)
    drop = lowest(old ** 2 / (2 * diagonal), len(index) - keep)
    t = np.zeros_like(old)
    t[drop] = -old[drop] / diagonal[drop]
    new = old + curvature.product(t)
    new[drop] = 0
    w[index] = new
    alive[index[drop]] = False


def lowest(scores, count):
    return np.argsort(scores, kind="stable")[:count]


class Recursion:
    """F⁻¹ per block as the pairs (h_i, δ_i), each h_i from those before it."""

    def __init__(self, g, block, damp):
        self.damp, self.width, self.parts = damp, g.shape[1], []
        m = len(g)
        for h in chunks(g, block):  # [blocks, m, B], g_i on entry and h_i on exit
            delta = np.empty(h.shape[:2], np.float32)
            for i in range(m):
                x = h[:, i].copy()
                c = (h[:, :i] @ x[:, :, None])[:, :, 0] / delta[:, :i]
                h[:, i] = x / damp - (c[:, None, :] @ h[:, :i])[:, 0]
                delta[:, i] = m + (x * h[:, i]).sum(1)
            self.parts.append((h, delta))

    def diagonal(self):
        return self.join(1 / self.damp - (h ** 2 / delta[:, :, None]).sum(1)
                         for h, delta in self.parts)

    def product(self, x):
        out = []
        for (h, delta), part in zip(self.parts, self.split(x)):
            c = (h @ part[:, :, None])[:, :, 0] / delta
            out.append(part / self.damp - (c[:, None, :] @ h)[:, 0])
        return self.join(out)

    def split(self, x):
        """A vector as [blocks, B] for each part; the last block is filled up with zeros."""
        start = 0
        for h, _ in self.parts:
            n, b = h.shape[0], h.shape[2]
            part = x[start:start + n * b]
            yield np.pad(part, (0, n * b - len(part))).reshape(n, b)
            start += n * b

    def join(self, parts):
        return np.concatenate([p.ravel() for p in parts])[:self.width].astype(np.float32)


class Dense(Recursion):
    """The same F⁻¹ with every block formed and inverted in float64."""

    def __init__(self, g, block, damp):
        self.width, self.parts = g.shape[1], []
        for part in chunks(g, block):
            part = part.astype(np.float64)
            f = part.transpose(0, 2, 1) @ part / len(g) + damp * np.eye(part.shape[2])
            self.parts.append((np.linalg.inv(f), None))

    def diagonal(self):
        return self.join(f.diagonal(axis1=1, axis2=2) for f, _ in self.parts)

    def product(self, x):
        return self.join((f @ part[:, :, None])[:, :, 0]
                         for (f, _), part in zip(self.parts, self.split(x)))


INVERSES = {"recursion": Recursion, "dense": Dense}


def chunks(g, block):
    """G [m, d] as copies [blocks, m, B] of bounded size; the last block is filled up with zeros."""
    m, d = g.shape
    block = d if block < 0 else block
    step = block * max(1, CHUNK_BYTES // (4 * m * block))
    for start in range(0, d, step):
        part = g[:, start:start + step]
        blocks = math.ceil(part.shape[1] / block)
        part = np.pad(part, ((0, 0), (0, blocks * block - part.shape[1])))
        yield np.ascontiguousarray(part.reshape(m, blocks, block).transpose(1, 0, 2))


# ---- the model ----


class Network:
    """An ONNX graph run by torch; the weights of Conv, Gemm and MatMul are to be pruned."""

    def __init__(self, graph):
        self.nodes, self.output = graph.node, graph.output[0].name
        self.values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
                       for t in graph.initializer}
        self.input = next(i.name for i in graph.input if i.name not in self.values)
        weights = (n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul"))
        self.prunable = list(dict.fromkeys(w for w in weights if w in self.values))
        for name in self.prunable:
            self.values[name].requires_grad_()
        unknown = sorted({n.op_type for n in graph.node} - set(OPERATORS))
        if unknown:
            sys.exit(f"no torch counterpart for {', '.join(unknown)}: add it to OPERATORS")

    def __call__(self, x):
        values = {**self.values, self.input: x}
        for node in self.nodes:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [values[name] if name else None for name in node.input]
            values[node.output[0]] = OPERATORS[node.op_type](attributes, *inputs)
        return values[self.output]

    def flat(self):
        return np.concatenate([self.values[n].detach().numpy().ravel() for n in self.prunable])

    @torch.no_grad()
    def load(self, flat):
        start = 0
        for value in (self.values[n] for n in self.prunable):
            part = torch.from_numpy(flat[start:start + value.numel()])
            value.copy_(part.view(value.shape))
            start += value.numel()

    def save(self, model, path):
        """The source file with the present weights in place of its own."""
        for tensor in model.graph.initializer:
            if tensor.name in self.prunable:
                value = self.values[tensor.name].detach().numpy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(model, path)


class Judge:
    """Test accuracy of flat weights, in per cent, as text."""

    def __init__(self, net, path):
        self.net, self.test = net, path and samples(path, net.input)

    @torch.no_grad()
    def __call__(self, flat):
        if not self.test:
            return "–"
        self.net.load(flat)
        x, labels = self.test
        hits = sum(int((self.net(p).argmax(1) == q).sum())
                   for p, q in zip(x.split(500), labels.split(500)))
        return f"{100 * hits / len(labels):.2f}"


def convolution(a, x, w, b=None):
    if a.get("auto_pad", b"NOTSET") != b"NOTSET":
        sys.exit("Conv with auto_pad is not supported: write the padding out in the model")
    n = w.dim() - 2
    pads = a.get("pads", [0] * 2 * n)
    padding = pads[:n]
    if pads[n:] != padding:
        # ONNX lists all beginnings, then all ends; torch wants (begin, end) from the last axis on.
        x = F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])])
        padding = 0
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    return conv(x, w, b, a.get("strides", 1), padding, a.get("dilations", 1), a.get("group", 1))


def gemm(a, x, w, c=0):
    x = x.t() if a.get("transA") else x
    w = w.t() if a.get("transB") else w
    return a.get("alpha", 1.0) * (x @ w) + a.get("beta", 1.0) * c


OPERATORS = {
    "Add": lambda a, x, y: x + y,
    "Clip": lambda a, x, low=None, high=None: torch.clamp(x, low, high),
    "Constant": lambda a: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
    "Conv": convolution,
    "Div": lambda a, x, y: x / y,
    "Erf": lambda a, x: torch.erf(x),
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[:a.get("axis", 1)]), -1),
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "Identity": lambda a, x: x,
    "MatMul": lambda a, x, y: x @ y,
    "Mul": lambda a, x, y: x * y,
    "Pow": lambda a, x, y: x ** y,
    "ReduceMean": lambda a, x: x.mean(a["axes"], keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda a, x: torch.relu(x),
    "Reshape": lambda a, x, shape: x.reshape(tuple(shape.tolist())),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Sqrt": lambda a, x: torch.sqrt(x),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}


if __name__ == "__main__":
    main()
