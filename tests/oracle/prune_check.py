"""Judges what `hone prune` writes by onnx, ONNX Runtime and numpy, never by hone.

    PYTHONPATH=third_party/python python3 tests/oracle/prune_check.py target/release/hone

Each run of the binary prunes the example with small settings. Exits with 1 if a check fails, and
ends with a line `N passed, N failed`.
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

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "fashion"
MODEL = EXAMPLE / "model.onnx"
# Two highest logits nearer than this may change places with the batch size or the fusions.
TIE = 1e-3
RUN_SECONDS = 900

SMALL = ["--stages", "1", "--gradients", "128"]
RUNS = {
    "joint": ["--sparsity", "0.8", *SMALL],
    "2:4": ["--pattern", "2:4", *SMALL],
    "magnitude": ["--method", "magnitude", "--sparsity", "0.8"],
    "independent": ["--update", "independent", "--sparsity", "0.6", *SMALL],
    "skip": ["--sparsity", "0.5", "--skip", "head.*", *SMALL],
}

NUMBER = (int, float)
MAYBE = type(None)
# Every field of hone.report/1 and the types it may have.
SCHEMA = {
    "schema": str,
    "hone_version": str,
    "files": {"model": str, "calibration": (str, MAYBE), "evaluation": (str, MAYBE), "output": str},
    "options": {
        "method": str, "sparsity": NUMBER, "pattern": str, "scope": str, "update": (str, MAYBE),
        "selection": (str, MAYBE), "stages": int, "block_size": (int, MAYBE),
        "damping_kind": (str, MAYBE), "damping": (*NUMBER, MAYBE), "fisher": (str, MAYBE),
        "gradients": (int, MAYBE), "fisher_batch": (int, MAYBE), "match_statistics": bool,
        "seed": int, "device": str, "threads": int, "memory_limit_bytes": (int, MAYBE),
    },
    "layers": [{
        "name": str, "shape": list, "weights": int, "zeros": int, "sparsity": NUMBER,
        "predicted_loss": (*NUMBER, MAYBE),
    }],
    "adjusted": [str],
    "skipped": [{"name": str, "shape": list, "weights": int, "reason": str}],
    "total": {
        "weights": int, "zeros": int, "sparsity": NUMBER, "predicted_loss": (*NUMBER, MAYBE),
        "measured_loss": (*NUMBER, MAYBE),
    },
    "evaluation": {
        "samples": int,
        "dense": {"accuracy": NUMBER, "loss": NUMBER},
        "pruned": {"accuracy": NUMBER, "loss": NUMBER},
        "divergence": {"relative_error": NUMBER, "agreement": (*NUMBER, MAYBE)},
    },
    "size": {
        "dense_bytes": int, "pruned_bytes": int, "dense_zstd_bytes": int, "pruned_zstd_bytes": int,
        "zstd_level": int,
    },
    "latency": {
        "batch": int, "runs": int, "dense_median_ms": NUMBER, "pruned_median_ms": NUMBER,
    },
    "phases": [{"name": str, "seconds": NUMBER}],
    "cost": {
        "total_seconds": NUMBER, "forward_seconds": (*NUMBER, MAYBE),
        "gradients_multiple": (*NUMBER, MAYBE), "pruning_multiple": (*NUMBER, MAYBE),
        "total_multiple": (*NUMBER, MAYBE), "peak_memory_bytes": (int, MAYBE),
    },
    "gradual": (dict, MAYBE),
}


class Checks:
    """Counts what held and what did not."""

    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, holds, what):
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}", flush=True)
        return holds


class Test:
    """The labelled samples, and what ONNX Runtime says of a model on them."""

    def __init__(self):
        data = np.load(EXAMPLE / "test.npz")
        self.images, self.labels = data["image"], data["labels"]

    def accuracy(self, path):
        """The accuracy, and the fraction of samples that are too close to call."""
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        parts = np.array_split(self.images, 16)
        logits = np.concatenate([session.run(None, {"image": part})[0] for part in parts])
        top = np.sort(logits, axis=1)
        return (logits.argmax(1) == self.labels).mean(), (top[:, -1] - top[:, -2] < TIE).mean()


def prune(hone, output, options, evaluate=True):
    """Runs hone; returns the report, or None and the reason."""
    report = output.with_suffix(".json")
    command = [
        hone, "prune", MODEL, "--calibration", EXAMPLE / "calibration.npz", "--output", output,
        "--report", report, *options,
    ]
    if evaluate:
        command += ["--evaluation", EXAMPLE / "test.npz"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=RUN_SECONDS)
    if done.returncode != 0 or not report.exists():
        return None, f"exit code {done.returncode}: {done.stderr[-500:]}"
    return json.loads(report.read_text()), ""


def initializers(model):
    return {t.name: t for t in model.graph.initializer}


def differences(value, schema, where="report"):
    """Where `value` lacks a field of `schema` or has another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        found = [f"{where}.{key} is not documented" for key in value if key not in schema]
        for key, inner in schema.items():
            name = f"{where}.{key}"
            found += differences(value[key], inner, name) if key in value else [f"{name} is missing"]
        return found
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [d for i, v in enumerate(value) for d in differences(v, schema[0], f"{where}[{i}]")]
    # True is an int in Python, but not in JSON.
    right = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
    return [] if right else [f"{where} is {value!r}"]


def check_zeros(check, name, report, tensors):
    """The report's counts are those of the file, and sum up to what was asked for."""
    zeros = weights = 0
    for layer in report["layers"]:
        values = numpy_helper.to_array(tensors[layer["name"]])
        found = int((values == 0).sum())
        check(found == layer["zeros"] and values.size == layer["weights"],
              f"{name}: {layer['name']} has {found} zeros of {values.size}, reported {layer}")
        check(bool(np.isfinite(values).all()), f"{name}: {layer['name']} is finite")
        zeros, weights = zeros + found, weights + values.size
    total = report["total"]
    check((zeros, weights) == (total["zeros"], total["weights"]), f"{name}: totals {total}")
    wanted = report["options"]["sparsity"] * weights
    check(abs(zeros - wanted) <= 1 or report["options"]["pattern"] != "unstructured",
          f"{name}: {zeros} zeros where {wanted:.1f} were asked for")


def check_pattern(check, name, report, tensors, keep, of):
    """Axis 1 of Conv and of transposed Gemm weights is the input; groups lie along it."""
    for layer in report["layers"]:
        values = np.moveaxis(numpy_helper.to_array(tensors[layer["name"]]), 1, -1)
        width = values.shape[-1]
        most = 0
        for start in range(0, width, of):
            group = values[..., start:start + of]
            allowed = -(-group.shape[-1] * keep // of)
            most = max(most, int((group != 0).sum(-1).max()) - allowed)
        check(most <= 0, f"{name}: a group of {layer['name']} has {most} non-zeros too many")


def check_untouched(check, name, report, pruned, source):
    """Put the source's numbers back where the report says they changed: the models are the same."""
    named = {layer["name"] for layer in report["layers"]} | set(report["adjusted"])
    old = initializers(source)
    restored = onnx.ModelProto.FromString(pruned.SerializeToString())
    changed = 0
    for tensor in restored.graph.initializer:
        if tensor.name in named:
            changed += tensor.raw_data != old[tensor.name].raw_data
            tensor.raw_data = old[tensor.name].raw_data
    check(changed > 0, f"{name}: something changed")
    check(restored.SerializeToString(deterministic=True)
          == source.SerializeToString(deterministic=True),
          f"{name}: something changed that the report does not name")


def check_run(check, name, report, path, source, test):
    onnx.checker.check_model(str(path), full_check=True)
    check(True, f"{name}: onnx accepts the model")
    pruned = onnx.load(path)
    tensors = initializers(pruned)
    wrong = differences(report, SCHEMA)
    check(report["schema"] == "hone.report/1" and not wrong, f"{name}: report: {wrong}")
    check_zeros(check, name, report, tensors)
    check_untouched(check, name, report, pruned, source)
    pattern = report["options"]["pattern"]
    if pattern != "unstructured":
        check_pattern(check, name, report, tensors, *map(int, pattern.split(":")))
    for which, file in (("dense", MODEL), ("pruned", path)):
        accuracy, ties = test.accuracy(file)
        said = report["evaluation"][which]["accuracy"]
        check(abs(said - accuracy) <= ties + 1e-9,
              f"{name}: {which} accuracy {said}, ONNX Runtime from Python {accuracy} ± {ties}")
    check(path.stat().st_size == report["size"]["pruned_bytes"], f"{name}: size of the file")


def check_determinism(check, hone, folder):
    """The bytes depend on the seed, not on the number of threads or the moment."""
    options = ["--sparsity", "0.7", "--stages", "1", "--gradients", "64"]
    variants = {
        "first": ["--threads", "1"], "again": ["--threads", "1"], "two threads": ["--threads", "2"],
        "other seed": ["--threads", "2", "--seed", "1"],
    }
    files = {}
    for name, extra in variants.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        report, why = prune(hone, path, options + extra, evaluate=False)
        if not check(report is not None, f"determinism, {name}: {why}"):
            return
        files[name] = path.read_bytes()
    check(files["first"] == files["again"], "the same seed gives the same bytes")
    check(files["first"] == files["two threads"], "1 and 2 threads give the same bytes")
    check(files["first"] != files["other seed"], "another seed gives other bytes")


def main(hone):
    hone = pathlib.Path(hone).resolve()
    check, test, source = Checks(), Test(), onnx.load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for i, (name, options) in enumerate(RUNS.items()):
            path = folder / f"pruned-{i}.onnx"
            report, why = prune(hone, path, options)
            if not check(report is not None, f"{name}: {why}"):
                continue
            try:
                check_run(check, name, report, path, source, test)
            except Exception as e:  # one broken run must not hide the others
                check(False, f"{name}: {type(e).__name__}: {e}")
            print(f"{name}: checked", flush=True)
        check_determinism(check, hone, folder)
    print(f"{check.passed} passed, {check.failed} failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
