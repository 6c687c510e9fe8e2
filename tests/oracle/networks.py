"""Whole networks: gradients against torch's, and pruning judged by onnx and ONNX Runtime.

    PYTHONPATH=third_party/python python3 tests/oracle/networks.py target/release/hone

The networks and what torch says of them come from tests/data/torch_goldens.py. Exits with 1 if a
check fails, and ends with a line `N passed, N failed`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "networks"
# ONNX Runtime computes in float32, the goldens in float64.
TOLERANCE = 1e-4
# A gradient that is zero by construction (the bias of attention's keys) is noise of this size
# beside the largest one.
NOISE = 1e-5
SPARSITY = 0.5
RUN_SECONDS = 300


class Checks:
    def __init__(self):
        self.passed, self.failed = 0, 0

    def check(self, good, what):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {what}")


def draw_inputs(specs, batch):
    """Must stay the same as in tests/data/torch_goldens.py."""
    random = np.random.RandomState(1)
    inputs = {}
    for name, spec in specs.items():
        shape = [batch, *spec["shape"]]
        if "below" in spec:
            inputs[name] = random.randint(0, spec["below"], shape).astype(np.int64)
        else:
            inputs[name] = random.standard_normal(shape).astype(np.float32)
    return inputs


def run_hone(checks, what, command):
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=RUN_SECONDS)
    checks.check(done.returncode == 0, f"{what}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.returncode == 0


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def check_gradients(checks, hone, name, golden, batch, folder):
    """Norm and projection of every parameter's gradient, summed over the batch."""
    inputs = draw_inputs(golden["inputs"], batch)
    samples, backward = folder / "samples.npz", folder / f"{name}-backward.onnx"
    np.savez(samples, **inputs)
    wanted = [word for parameter in golden["gradients"] for word in ("--wrt", parameter)]
    command = [hone, "gradient", DATA / f"{name}.onnx", "--samples", samples, "--output", backward,
               "--batch", batch, *wanted]
    if not run_hone(checks, f"gradient of {name}", command):
        return
    model = onnx.load(backward)
    onnx.checker.check_model(model, full_check=True)
    metadata = {p.key: json.loads(p.value) for p in model.metadata_props}
    (seed,), outputs = metadata["hone.seeds"].values(), metadata["hone.gradients"]
    random = np.random.RandomState(2)
    inputs[seed] = random.standard_normal(golden["output"]).astype(np.float32)
    names = list(golden["gradients"])
    results = session(backward).run([outputs[n] for n in names], inputs)
    largest = max(norm for norm, _ in golden["gradients"].values())
    for parameter, gradient in zip(names, results):
        norm, projection = golden["gradients"][parameter]
        direction = random.standard_normal(gradient.shape)
        scale = TOLERANCE * norm + NOISE * largest
        here = np.linalg.norm(gradient.astype(np.float64))
        checks.check(abs(here - norm) <= scale, f"{name} {parameter}: norm {here}, torch {norm}")
        here, scale = float((gradient * direction).sum()), scale * np.sqrt(gradient.size)
        checks.check(abs(here - projection) <= scale,
                     f"{name} {parameter}: projection {here}, torch {projection}")


def check_pruning(checks, hone, name, golden, folder):
    """The pruned file is valid, runs, has the zeros it should and differs only where it says."""
    inputs = draw_inputs(golden["inputs"], 32)
    samples, output = folder / "calibration.npz", folder / f"{name}-pruned.onnx"
    report = folder / "report.json"
    np.savez(samples, **inputs)
    command = [hone, "prune", DATA / f"{name}.onnx", "--calibration", samples, "--output", output,
               "--report", report, "--sparsity", SPARSITY, "--gradients", 64, "--stages", 1]
    if not run_hone(checks, f"pruning {name}", command):
        return
    pruned, source = onnx.load(output), onnx.load(DATA / f"{name}.onnx")
    onnx.checker.check_model(pruned, full_check=True)
    results = session(output).run(None, inputs)
    checks.check(all(np.isfinite(r).all() for r in results), f"{name}: outputs are finite")
    report = json.loads(report.read_text())
    before = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in pruned.graph.initializer}
    layers = {layer["name"] for layer in report["layers"]}
    zeros = sum(int((after[layer] == 0).sum()) for layer in layers)
    weights = sum(after[layer].size for layer in layers)
    checks.check(abs(zeros - SPARSITY * weights) <= 1, f"{name}: {zeros} zeros of {weights}")
    changed = {n for n in before if before[n].tobytes() != after[n].tobytes()}
    checks.check(changed <= layers | set(report["adjusted"]), f"{name}: changed {sorted(changed)}")


def main():
    hone = pathlib.Path(sys.argv[1]).resolve()
    goldens, checks = json.loads((DATA / "goldens.json").read_text()), Checks()
    with tempfile.TemporaryDirectory() as folder:
        for name, golden in goldens["networks"].items():
            check_gradients(checks, hone, name, golden, goldens["batch"], pathlib.Path(folder))
            check_pruning(checks, hone, name, golden, pathlib.Path(folder))
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
