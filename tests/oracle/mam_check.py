"""Judges the answers of `hone mam` by ONNX Runtime and numpy, never by hone.

    PYTHONPATH=third_party/python python3 tests/oracle/mam_check.py target/release/hone

The nets are made here: two perceptrons in one file, and an image net with a mask and a step that
`hone mam adapt` brings under the contract; those that `hone mam train` builds follow. Exits with 1
if a check fails, and ends with a line `N passed, N failed`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

LENGTH, VALUES, HIDDEN, ROWS = 9, 3, 32, 300
TOLERANCE = 1e-4
RUN_SECONDS = 300


class Checks:
    def __init__(self):
        self.passed, self.failed = 0, 0

    def check(self, good, what):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {what}", flush=True)

    def close(self, a, b, what):
        a, b = np.asarray(a, float), np.asarray(b, float)
        good = a.shape == b.shape and np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        self.check(good, f"{what}: {a.ravel()[:4]} is not {b.ravel()[:4]}")


def save(path, nodes, inputs, outputs, constants, metadata):
    def declare(name, element, rest):
        return helper.make_tensor_value_info(name, element, ["B", *rest])

    graph = helper.make_graph(
        nodes, "net", [declare(*i) for i in inputs], [declare(*o) for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"mam.{key}", value=str(value))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def perceptrons(path):
    random = np.random.RandomState(0)
    constants = {
        "depth": np.array([VALUES + 1]), "on_off": np.array([0, 1], np.float32),
        "row_shape": np.array([-1, LENGTH * (VALUES + 1)]), "flat": np.array([-1]),
        "cube": np.array([-1, LENGTH, VALUES]),
    }
    nodes = [
        helper.make_node("OneHot", ["x", "depth", "on_off"], ["hot"]),
        helper.make_node("Reshape", ["hot", "row_shape"], ["row"]),
    ]
    heads = [("theta", 1, "flat", "log_p"), ("phi", LENGTH * VALUES, "cube", "logits")]
    for name, width, shape, output in heads:
        sizes = [LENGTH * (VALUES + 1), HIDDEN, width]
        for i in range(2):
            weight = random.standard_normal(sizes[i:i + 2]) * 2 / np.sqrt(sizes[i])
            constants[f"{name}.w{i}"] = weight.astype(np.float32)
            constants[f"{name}.b{i}"] = random.standard_normal(sizes[i + 1]).astype(np.float32)
        nodes += [
            helper.make_node("Gemm", ["row", f"{name}.w0", f"{name}.b0"], [f"{name}.a"]),
            helper.make_node("Tanh", [f"{name}.a"], [f"{name}.h"]),
            helper.make_node("Gemm", [f"{name}.h", f"{name}.w1", f"{name}.b1"], [f"{name}.o"]),
            helper.make_node("Reshape", [f"{name}.o", shape], [output]),
        ]
    metadata = {"version": 1, "kind": "joint", "length": LENGTH, "vocab": VALUES, "shape": "3,3"}
    save(path, nodes, [("x", TensorProto.INT64, [LENGTH])],
         [("log_p", TensorProto.FLOAT, []), ("logits", TensorProto.FLOAT, [LENGTH, VALUES])],
         constants, metadata)


class Reference:
    """θ and φ of rows in which -1 is missing, by ONNX Runtime."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"])
        self.log_z = self.run(np.full((1, LENGTH), -1))[0][0]

    def run(self, rows):
        return self.session.run(["log_p", "logits"], {"x": rows.astype(np.int64) + 1})

    def theta(self, rows):
        return self.run(rows)[0].astype(float) - self.log_z

    def phi(self, rows):
        logits = self.run(rows)[1].astype(float)
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def chain(self, row, order, start=None):
        current = np.full(LENGTH, -1) if start is None else start.copy()
        total = 0.0
        for site in order:
            total += self.phi(current[None])[0, site, row[site]]
            current[site] = row[site]
        return total


def hone(checks, binary, *arguments, code=0):
    done = subprocess.run([str(binary), "mam", *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=RUN_SECONDS)
    checks.check(done.returncode == code,
                 f"{arguments}: exit code {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def scores(checks, binary, model, reference, folder):
    random = np.random.RandomState(1)
    rows = random.randint(-1, VALUES, (ROWS, LENGTH))
    np.save(folder / "rows.npy", rows)
    found = lines(hone(checks, binary, "score", model, "--data", folder / "rows.npy", "--method",
                       "theta", "--conflict"))
    checks.close([f["theta"] for f in found], reference.theta(rows), "theta of many rows")
    checks.check([f["row"] for f in found] == list(range(ROWS)), "rows in order")
    checks.check(all(f["theta_normalised"] is None for f in found), "theta is no likelihood")
    single = {}
    for site in range(LENGTH):
        one_known = np.full((VALUES, LENGTH), -1)
        one_known[:, site] = np.arange(VALUES)
        single[site] = reference.theta(one_known)
    apart = [sum(single[i][v] for i, v in enumerate(row) if v >= 0) for row in rows]
    checks.close([f["conflict"] for f in found], apart - reference.theta(rows), "conflict")

    few = rows[:6]
    np.savez(folder / "few.npz", x=np.where(few < 0, 1, few), known=few >= 0)
    found = lines(hone(checks, binary, "score", model, "--data", folder / "few.npz", "--orders",
                       "forward", "--surprise"))
    for row, f in zip(few, found):
        chain = reference.chain(row, [i for i in range(LENGTH) if row[i] >= 0])
        theta = reference.theta(row[None])[0]
        checks.close(f["phi"]["log_p"], chain, "the forward chain")
        checks.close(f["lower"], chain, "the lower bound")
        checks.close(f["upper"], np.exp(chain - theta) + theta - 1, "the upper bound")
        for s in f["surprise"]:
            rest = row.copy()
            rest[s["site"]] = -1
            log = reference.phi(rest[None])[0, s["site"], row[s["site"]]]
            checks.close(s["surprise"], -log, "surprise")

    # A bad row has an error, the others their answers.
    broken = few.copy()
    broken[2, 5] = VALUES
    np.save(folder / "broken.npy", broken)
    found = lines(hone(checks, binary, "score", model, "--data", folder / "broken.npy", "--method",
                       "theta", code=6))
    checks.check("site 5" in found[2]["error"], "the bad site is named")
    good = [0, 1, 3, 4, 5]
    checks.close([found[i]["theta"] for i in good], reference.theta(few[good]), "the other rows")


def conditionals(checks, binary, model, reference, folder):
    random = np.random.RandomState(2)
    rows = random.randint(-1, VALUES, (5, LENGTH))
    np.savetxt(folder / "rows.csv", rows, fmt="%d", delimiter=",")
    for source in ["phi", "theta"]:
        found = lines(hone(checks, binary, "condition", model, "--data", folder / "rows.csv",
                           "--source", source))
        for row, f in zip(rows, found):
            sites = [m["site"] for m in f["missing"]]
            checks.check(sites == [i for i in range(LENGTH) if row[i] < 0], "the missing sites")
            for m in f["missing"]:
                full = np.repeat(row[None], VALUES, 0)
                full[:, m["site"]] = np.arange(VALUES)
                theta = np.exp(reference.theta(full))
                by = {"phi": np.exp(reference.phi(row[None])[0, m["site"]]),
                      "theta": theta / theta.sum()}
                checks.close(m["p"], by[source], f"a distribution by {source}")
    rows = random.randint(0, VALUES, (4, LENGTH))
    given = random.rand(4, LENGTH) < 0.5
    np.savez(folder / "given.npz", x=rows, given=given)
    found = lines(hone(checks, binary, "condition", model, "--data", folder / "given.npz",
                       "--orders", "forward"))
    for row, evidence, f in zip(rows, given, found):
        start = np.where(evidence, row, -1)
        chain = reference.chain(row, np.flatnonzero(~evidence), start)
        ratio = reference.theta(row[None])[0] - reference.theta(start[None])[0]
        checks.close([f["chain"]["log_p"], f["ratio"], f["gap"]], [chain, ratio, ratio - chain],
                     "a conditional")


def draws(checks, binary, model, reference, folder):
    order = np.random.RandomState(3).permutation(LENGTH)
    text = ",".join(map(str, order))
    found = lines(hone(checks, binary, "sample", model, "--count", 4, "--order", text))
    for f in found:
        checks.close(f["log_q"], reference.chain(f["values"], order), "log q of a sample")
    evidence = np.full((2, LENGTH), -1)
    evidence[0, 2], evidence[1, 4] = 1, 2
    np.save(folder / "evidence.npy", evidence)
    common = ["--data", folder / "evidence.npy", "--count", 50, "--seed", 5]
    for threads, batch in [(1, 64), (3, 7)]:
        output = folder / f"imputed{threads}.npy"
        hone(checks, binary, "impute", model, *common, "--threads", threads, "--batch", batch,
             "--output", output)
    first, second = (np.load(folder / f"imputed{t}.npy") for t in [1, 3])
    checks.check(first.shape == (100, 3, 3) and (first == second).all(), "same for any threads")
    flat = first.reshape(100, LENGTH)
    checks.check((flat[:50, 2] == 1).all() and (flat[50:, 4] == 2).all(), "evidence is kept")

    # Marginals of single sites over many samples against the chain of all states would take long;
    # the first site of a forward order is drawn from phi of the empty row.
    hone(checks, binary, "sample", model, "--count", 5000, "--order", "forward", "--output",
         folder / "many.npy")
    counts = np.bincount(np.load(folder / "many.npy").reshape(5000, LENGTH)[:, 0],
                         minlength=VALUES) / 5000
    p = np.exp(reference.phi(np.full((1, LENGTH), -1))[0, 0])
    checks.check(np.abs(counts - p).max() < 0.03, f"frequencies {counts} are not {p}")


def normaliser(checks, binary, model, reference, folder):
    """All 3^9 states are few enough to sum here, too many for hone's enumeration."""
    states = np.stack(np.meshgrid(*[np.arange(VALUES)] * LENGTH), -1).reshape(-1, LENGTH)
    theta = reference.theta(states)
    truth = theta.max() + np.log(np.exp(theta - theta.max()).sum())
    found = json.loads(hone(checks, binary, "check", model, "--json", "--limit", 32,
                            "--draws", 20000))["normaliser"]
    off = abs(found["log_sum"] - truth)
    checks.check(found["exact"] or off < max(5 * found["error"], 0.02),
                 f"log sum {found['log_sum']} +- {found['error']} is not {truth}")
    steps = states[:5]
    np.save(folder / "states.npy", steps)
    corrected = lines(hone(checks, binary, "score", model, "--data", folder / "states.npy",
                           "--method", "theta", "--correct", 30000))
    checks.close([c["theta_normalised"] for c in corrected], reference.theta(steps) - truth,
                 "theta corrected by an enumeration")


def image_net(checks, binary, folder):
    """Values -1 and +1 as [B, 1, 2, 3], a mask of what is missing, the step as int64 [B, 1]."""
    constants = {
        "weight": np.arange(1, 7, dtype=np.float32).reshape(1, 1, 2, 3),
        "axes": np.array([1, 2, 3]), "step_axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Mul", ["pixels", "weight"], ["weighted"]),
        helper.make_node("Cast", ["hidden"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["weighted", "h"], ["sum"]),
        helper.make_node("ReduceSum", ["sum", "axes"], ["total"], keepdims=0),
        helper.make_node("Cast", ["t"], ["tf"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["tf", "step_axis"], ["step"]),
        helper.make_node("Add", ["total", "step"], ["score"]),
    ]
    net, model = folder / "net.onnx", folder / "adapted.onnx"
    save(net, nodes,
         [("pixels", TensorProto.FLOAT, [1, 2, 3]), ("hidden", TensorProto.BOOL, [1, 2, 3]),
          ("t", TensorProto.INT64, [1])], [("score", TensorProto.FLOAT, [])], constants, {})
    hone(checks, binary, "adapt", net, "--length", 6, "--shape", "2,3", "--values=-1,1",
         "--missing", 0, "--values-input", "pixels", "--mask-input", "hidden",
         "--mask-is-missing", "--step-input", "t", "--log-p", "score", "--output", model)
    onnx.checker.check_model(str(model), full_check=True)
    rows = np.random.RandomState(4).randint(-1, 2, (20, 6))
    np.save(folder / "pixels.npy", rows)
    found = lines(hone(checks, binary, "score", model, "--data", folder / "pixels.npy"))
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])

    def score(rows):
        known = rows >= 0
        pixels = np.where(known, 2.0 * rows - 1, 0).astype(np.float32).reshape(-1, 1, 2, 3)
        feeds = {"pixels": pixels, "hidden": ~known.reshape(pixels.shape),
                 "t": known.sum(1, keepdims=True)}
        return session.run(None, feeds)[0]

    checks.close([f["theta"] for f in found], score(rows) - score(np.full((1, 6), -1)),
                 "an adapted net")


def trained_nets(checks, binary, folder):
    """Each network that hone builds: a file that ONNX's checker takes, and the same answers."""
    random = np.random.RandomState(5)
    rows = random.randint(0, VALUES, (80, LENGTH))
    data = folder / "train.csv"
    np.savetxt(data, rows, fmt="%d", delimiter=",")
    asked = np.where(random.rand(80, LENGTH) < 0.4, -1, rows)
    masked = folder / "masked.csv"
    np.savetxt(masked, asked, fmt="%d", delimiter=",")
    nets = [["mlp"], ["transformer", "--heads", 2], ["conv"], ["conv", "--padding", "torus"]]
    for i, network in enumerate(nets):
        model = folder / f"trained{i}.onnx"
        hone(checks, binary, "train", "--data", data, "--shape", "3,3", "--output", model,
             "--conditional-steps", 20, "--marginal-steps", 20, "--hidden", 8, "--layers", 2,
             "--network", *network)
        onnx.checker.check_model(str(model), full_check=True)
        lines = hone(checks, binary, "score", model, "--data", masked, "--method", "theta")
        theta = [json.loads(line)["theta"] for line in lines.splitlines()]
        checks.close(theta, Reference(model).theta(asked), f"theta of {network}")


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    checks = Checks()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = folder / "model.onnx"
        perceptrons(model)
        reference = Reference(model)
        for part in [scores, conditionals, draws, normaliser]:
            part(checks, binary, model, reference, folder)
        image_net(checks, binary, folder)
        trained_nets(checks, binary, folder)
        inspected = json.loads(hone(checks, binary, "inspect", model, "--json"))
        checks.close(inspected["log_z"], reference.log_z, "log Z")
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(checks.failed != 0)


if __name__ == "__main__":
    main()
