#!/usr/bin/env python3
"""Fine-tuning a pruned model: M-FAC, Adam and SGD with tuned learning rates, the same steps for all.

    scripts/setup --tests && cargo build --release
    apt-get install dataset-fashion-mnist        # Debian, MIT-licensed data
    PYTHONPATH=third_party/python python3 benches/finetune.py target/release/hone

The example is pruned to 90 % and trained further on the 60,000 training images less 4,000, on which
the learning rate of each optimizer is chosen (one seed, by accuracy, then by loss). With that rate
every seed is trained, and ONNX Runtime judges the files on all 10,000 test images from here.
Nothing but the optimizer and its rate differs between rows. Prints Markdown: mean ± standard
deviation over the seeds, the time of a step as a multiple of its forward and backward passes, and
every rate that was tried.
"""
import argparse
import gzip
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLE = os.path.join(HERE, "..", "examples", "fashion")
VALIDATION = 4000

# Row: title, arguments of `hone finetune`, learning rates to try.
OPTIMIZERS = {
    "mfac": ("M-FAC (`--optimizer mfac --window 512`)", ["--optimizer", "mfac", "--window", "512"],
             [2e-3, 4e-3, 8e-3]),
    "adam": ("Adam (`--optimizer adam`)", ["--optimizer", "adam"], [3e-4, 1e-3, 2e-3, 4e-3]),
    "sgd": ("SGD with momentum (`--optimizer sgd`)", ["--optimizer", "sgd"], [5e-4, 1e-3, 2e-3, 4e-3]),
    "identity": ("M-FAC (`--damping-metric identity --window 512`)",
                 ["--optimizer", "mfac", "--damping-metric", "identity", "--window", "512"], [0.5, 1.0, 2.0]),
}


def idx(folder, name):
    """An array from a gzipped IDX file: magic, dimensions, bytes."""
    with gzip.open(os.path.join(folder, name)) as f:
        _, dims = struct.unpack(">HxB", f.read(4))
        shape = struct.unpack(">" + "I" * dims, f.read(4 * dims))
        return np.frombuffer(f.read(), np.uint8).reshape(shape)


def split(folder, part):
    images = idx(folder, f"{part}-images-idx3-ubyte.gz")[:, None]
    return images, idx(folder, f"{part}-labels-idx1-ubyte.gz").astype(np.int64)


def judge(path, images, labels):
    """Accuracy in percent and cross-entropy, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = loss = 0
    for i in range(0, len(labels), 500):
        of = labels[i:i + 500]
        logits = session.run(None, {"image": images[i:i + 500].astype(np.float32) / 255})[0].astype(np.float64)
        right += int((logits.argmax(1) == of).sum())
        loss += float((np.logaddexp.reduce(logits, 1) - logits[np.arange(len(of)), of]).sum())
    return 100 * right / len(labels), loss / len(labels)


class Bench:
    def __init__(self, a, folder):
        self.a, self.folder = a, folder
        images, labels = split(a.data, "train")
        order = np.random.default_rng(0).permutation(len(labels))
        for name, rows in (("valid", order[:VALIDATION]), ("train", order[VALIDATION:])):
            np.savez(self.path(name + ".npz"), image=images[rows], labels=labels[rows])
        self.test = split(a.data, "t10k")
        self.pruned = a.pruned or self.prune()

    def path(self, name):
        return os.path.join(self.folder, name)

    def prune(self):
        out = self.path("pruned.onnx")
        self.hone("prune", os.path.join(EXAMPLE, "model.onnx"), "--calibration",
                  os.path.join(EXAMPLE, "calibration.npz"), "--sparsity", "0.9", "--output", out)
        return out

    def hone(self, *arguments):
        command = [self.a.hone, *map(str, arguments)]
        if self.a.threads:
            command += ["--threads", str(self.a.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")

    def tune(self, arguments, rate, seed):
        """A fine-tuned model and its report."""
        out, report = self.path("tuned.onnx"), self.path("report.json")
        self.hone("finetune", self.pruned, "--data", self.path("train.npz"), "--scale", "1/255",
                  "--evaluation", self.path("valid.npz"), "--evaluate-every", self.a.steps,
                  "--steps", self.a.steps, "--batch", self.a.batch, "--learning-rate", rate,
                  "--seed", seed, "--output", out, "--report", report, *arguments)
        with open(report) as f:
            return out, json.load(f)

    def row(self, title, arguments, rates):
        tried = {}
        for rate in rates:
            after = self.tune(arguments, rate, 0)[1]["evaluation"]["after"]
            tried[rate] = (after["accuracy"], -after["loss"])
            print(f"<!-- {title} {rate}: {after} -->", flush=True)
        best = max(tried, key=tried.get)
        results, losses, seconds = [], [], []
        for seed in range(1, 1 + self.a.seeds):
            model, report = self.tune(arguments, best, seed)
            result, loss = judge(model, *self.test)
            results.append(result)
            losses.append(loss)
            seconds.append(report["training_seconds"] / report["gradient_seconds"])
            print(f"<!-- {title} seed {seed}: {result:.2f} {loss:.4f} -->", flush=True)
        spread = statistics.stdev(results) if len(results) > 1 else 0
        rates = ", ".join(f"{r:g}: {100 * v[0]:.2f}" for r, v in tried.items())
        each = statistics.median(seconds)
        return f"| {title} | {best:g} | **{statistics.mean(results):.2f}** ± {spread:.2f} | {statistics.mean(losses):.4f} | {each:.2f} | {rates} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("hone", help="the program")
    p.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the IDX files")
    p.add_argument("--pruned", help="a pruned example; made anew by default")
    p.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a, folder)
        dense = judge(os.path.join(EXAMPLE, "model.onnx"), *bench.test)[0]
        pruned = judge(bench.pruned, *bench.test)[0]
        rows = [bench.row(*OPTIMIZERS[name]) for name in a.optimizers]
    print(f"{a.steps} steps of {a.batch} samples, {a.seeds} seeds; dense {dense:.2f} %, pruned {pruned:.2f} %\n")
    print("| optimizer | learning rate | test accuracy | test loss | step / passes | validation accuracy by rate |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
