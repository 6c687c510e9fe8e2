#!/usr/bin/env python3
"""Accuracy of one-shot pruned models: hone, its published update, magnitude, published M-FAC.

    scripts/setup --tests && cargo build --release
    PYTHONPATH=third_party/python python3 benches/compare.py target/release/hone --seeds 3

Every pruned model is written as ONNX and judged here by ONNX Runtime, never by the program that
made it: accuracy on the test samples and the share of zeros among the prunable weights. The
published M-FAC is benches/published_mfac.py (needs torch; --torch-python says which interpreter
has it), fed with the same calibration samples, in the published shape (means over mini-batches)
and with single samples as hone takes them, which serves it better. Compare rows with the same
number of steps: each step goes over the samples again, for every method.

Prints Markdown: mean ± standard deviation over the seeds, and CPU seconds per model (the peer takes
all sparsities in one process and shares the first step). Rows without randomness run once; the peer
on single samples is one where a step takes every sample, because the seed only orders a sum then.
"""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLE = os.path.join(HERE, "..", "examples", "fashion")
PEER = os.path.join(HERE, "published_mfac.py")

# Row: title, arguments of `hone prune`, whether the seed matters.
HONE = {
    "hone": ("**hone**", [], True),
    "16-steps": ("hone, 16 sets of gradients (`--stages 16`)", ["--stages", "16"], True),
    "one-step": ("hone, one set of gradients (`--stages 1`)", ["--stages", "1"], True),
    "independent": ("published update, hone's gradients (`--update independent`)",
                    ["--update", "independent"], True),
    "independent-one-step": ("published update, one set of gradients (`--stages 1`)",
                             ["--update", "independent", "--stages", "1"], True),
    "magnitude": ("magnitude (`--method magnitude`)", ["--method", "magnitude"], False),
}
# Rows that are made only when named: what the Fisher is made of, and how wide its blocks are.
CHOICES = {
    **{kind: (f"hone, `--fisher {kind}`", ["--fisher", kind], True)
       for kind in ("gaussian", "sampled", "labels")},
    **{f"block-{width}": (f"hone, `--block {width} --stages 1`",
                          ["--block", width, "--stages", "1"], True)
       for width in ("512", "1024", "layer")},
}
# Row: title, arguments of published_mfac.py. Every one goes over 1,024 samples a step.
SINGLE = ["--ngrads", "1024", "--batch", "1", "--inverse", "dense"]
BATCHES = ["--ngrads", "64", "--batch", "16"]
PUBLISHED = {
    "published": ("published M-FAC, 1024 gradients of 1 sample, 4 recomputations",
                  [*SINGLE, "--recomputations", "4"]),
    "published-16": ("published M-FAC, 1024 gradients of 1 sample, 16 recomputations",
                     [*SINGLE, "--recomputations", "16"]),
    "published-one-step": ("published M-FAC, 1024 gradients of 1 sample, one step",
                           [*SINGLE, "--recomputations", "1"]),
    "published-batches": ("published M-FAC, 64 gradients of 16 samples, 4 recomputations",
                          [*BATCHES, "--recomputations", "4"]),
    "published-batches-16": ("published M-FAC, 64 gradients of 16 samples, 16 recomputations",
                             [*BATCHES, "--recomputations", "16"]),
}
ROWS = {**HONE, **CHOICES}


def main():
    a = arguments()
    judge = Judge(a.model, a.test)
    print(f"Dense: {100 * judge.dense:.2f} % of {len(judge.labels)} test samples; "
          f"{judge.weights} prunable weights; accuracy in %, {a.seeds} seed(s).\n")
    header = " | ".join(f"{100 * s:g} %" for s in a.sparsity)
    print(f"| | {header} | CPU s a model |\n|---|{'---|' * (len(a.sparsity) + 1)}", flush=True)
    torch = has_torch(a.torch_python)
    for row in a.rows:
        if row in PUBLISHED and not torch:
            print(f"skipped {row}: {a.torch_python} has no torch "
                  "(apt-get install python3-torch, or name another with --torch-python)",
                  file=sys.stderr)
            continue
        seeds = range(a.seeds if is_random(row, a.calibration) else 1)
        with tempfile.TemporaryDirectory() as folder:
            run = run_published if row in PUBLISHED else run_hone
            start = children_seconds()
            models = [run(a, row, seed, folder) for seed in seeds]
            seconds = (children_seconds() - start) / (len(seeds) * len(a.sparsity))
            cells = [spread([judge.accuracy(m[i], s) for m in models])
                     for i, s in enumerate(a.sparsity)]
        title = (PUBLISHED.get(row) or ROWS[row])[0]
        print(f"| {title} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def arguments():
    usual = [*HONE, *PUBLISHED]
    rows = [*usual, *CHOICES]
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("hone", help="the hone binary")
    p.add_argument("--model", default=os.path.join(EXAMPLE, "model.onnx"))
    p.add_argument("--calibration", default=os.path.join(EXAMPLE, "calibration.npz"))
    p.add_argument("--test", default=os.path.join(EXAMPLE, "test.npz"))
    p.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95])
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    p.add_argument("--rows", nargs="+", choices=rows, default=usual, metavar="ROW",
                   help="of " + ", ".join(rows) + f"; by default all but {', '.join(CHOICES)}")
    p.add_argument("--torch-python", default="/usr/bin/python3", help="an interpreter with torch")
    a = p.parse_args()
    a.hone = os.path.abspath(a.hone)
    if a.seeds < 1 or a.threads < 1:
        p.error("--seeds and --threads must be at least 1")
    return a


def is_random(row, calibration):
    """Whether the seed can change a row's result by more than rounding."""
    if row in ROWS:
        return ROWS[row][2]
    with np.load(calibration) as archive:
        whole = 1024 % len(archive["labels"]) == 0
    return not (whole and PUBLISHED[row][1][:len(SINGLE)] == SINGLE)


def run_hone(a, row, seed, folder):
    models = [os.path.join(folder, f"{seed}-{s:g}.onnx") for s in a.sparsity]
    for sparsity, model in zip(a.sparsity, models):
        execute([a.hone, "prune", a.model, "--calibration", a.calibration, "--output", model,
                 "--sparsity", sparsity, "--seed", seed, "--threads", a.threads, *ROWS[row][1]])
    return models


def run_published(a, row, seed, folder):
    out = os.path.join(folder, str(seed))
    execute([a.torch_python, PEER, "--model", a.model, "--calibration", a.calibration,
             "--output-dir", out, "--seed", seed, "--threads", a.threads, *PUBLISHED[row][1],
             "--sparsity", *a.sparsity])
    return [os.path.join(out, f"mfac-{s:g}.onnx") for s in a.sparsity]


def execute(command):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed with {done.returncode}:\n{done.stderr}")


def children_seconds():
    """CPU seconds of all finished child processes: unlike wall time, fair on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def has_torch(python):
    try:
        return subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    except OSError:
        return False


def spread(values):
    """Mean ± sample standard deviation of accuracies, in per cent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


class Judge:
    """Runs models on the test samples with ONNX Runtime, and counts their zeros."""

    def __init__(self, model, test):
        graph = onnx.load(model).graph
        initializers = {t.name for t in graph.initializer}
        weights = (n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul"))
        self.prunable = {w for w in weights if w in initializers}
        with np.load(test) as archive:
            self.input = next(i.name for i in graph.input if i.name not in initializers)
            self.x, self.labels = archive[self.input], archive["labels"]
        zeros, self.weights = self.count(model)
        self.before = zeros / self.weights
        self.dense = self.score(model)

    def accuracy(self, model, sparsity):
        zeros, weights = self.count(model)
        if weights != self.weights or abs(zeros / weights - sparsity) > 1e-3 + self.before:
            sys.exit(f"{model}: {zeros} zeros among {weights} prunable weights, "
                     f"not {sparsity:g} of {self.weights}")
        return self.score(model)

    def score(self, model):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        hits = 0
        for i in range(0, len(self.labels), 500):
            logits = session.run(None, {self.input: self.x[i:i + 500]})[0]
            hits += int((logits.argmax(1) == self.labels[i:i + 500]).sum())
        return hits / len(self.labels)

    def count(self, model):
        arrays = [numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer
                  if t.name in self.prunable]
        return sum(int((v == 0).sum()) for v in arrays), sum(v.size for v in arrays)


if __name__ == "__main__":
    main()
