#!/usr/bin/env python3
"""Gradual pruning against pruning in one go and fine-tuning afterwards, with as many training steps.

    PYTHONPATH=third_party/python python3 benches/gradual.py target/release/hone

Both see the example's 1,024 calibration samples only, with their labels and the dense model as the
teacher, half each. Prints Markdown: accuracy on the example's 4,000 test images by `hone`'s own
evaluation, and seconds of the whole runs.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "fashion")
MODEL, DATA, TEST = (os.path.join(EXAMPLE, n) for n in ("model.onnx", "calibration.npz", "test.npz"))


class Bench:
    def __init__(self, a, folder):
        self.a, self.folder = a, folder

    def hone(self, *arguments):
        """The report of a run and its seconds."""
        report = os.path.join(self.folder, "report.json")
        command = [self.a.hone, *map(str, arguments), "--report", report, "--evaluation", TEST]
        if self.a.threads:
            command += ["--threads", str(self.a.threads)]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        with open(report) as f:
            return json.load(f), time.time() - start

    def row(self, sparsity):
        a, pruned, out = self.a, os.path.join(self.folder, "pruned.onnx"), os.path.join(self.folder, "out.onnx")
        prune = ["prune", MODEL, "--calibration", DATA, "--sparsity", sparsity]
        tuning = ["--optimizer", a.optimizer] + (["--learning-rate", a.learning_rate] if a.learning_rate else [])
        gradual, gradual_s = self.hone(*prune, "--schedule", "gradual", "--steps", a.steps, "--tune-steps",
                                       a.tune_steps, "--final-steps", a.final_steps, *tuning, "--output", out)
        once, once_s = self.hone(*prune, "--output", pruned)
        tuned, tuned_s = self.hone("finetune", pruned, "--data", DATA, "--distill", MODEL, "--steps",
                                   a.total, *tuning, "--output", out)
        values = (once["evaluation"]["pruned"], tuned["evaluation"]["after"], gradual["evaluation"]["pruned"])
        before, after, steps = (f"{100 * v['accuracy']:.2f}" for v in values)
        return (f"| {100 * sparsity:g} % | {before} | {after} | **{steps}** | {once_s + tuned_s:.0f} s | "
                f"{gradual_s:.0f} s |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("hone", help="the program")
    p.add_argument("--sparsity", nargs="*", type=float, default=[0.9, 0.95, 0.98])
    p.add_argument("--steps", type=int, default=4, help="pruning steps")
    p.add_argument("--tune-steps", type=int, default=48, help="training steps after each but the last")
    p.add_argument("--final-steps", type=int, default=384, help="training steps after the last")
    p.add_argument("--optimizer", default="mfac", choices=["mfac", "adam", "sgd"])
    p.add_argument("--learning-rate", type=float, help="the usual one of the optimizer by default")
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    a.total = (a.steps - 1) * a.tune_steps + a.final_steps
    print(f"{a.steps - 1} x {a.tune_steps} + {a.final_steps} training steps of 64 samples, {a.optimizer}\n")
    print("| zeros | in one go | fine-tuned | gradual | seconds, one go + fine-tuning | seconds, gradual |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in a.sparsity:
            print(Bench(a, folder).row(sparsity), flush=True)


if __name__ == "__main__":
    main()
