"""Writes table.onnx: a marginalization model whose halves are lookup tables of the exact
probabilities p(x) = (1 + x0 + 2·x1·x2 + 3·x0·x2) / 22 of three bits, so that every answer is known.

    PYTHONPATH=third_party/python python3 tests/data/mam/table.py
"""
import itertools
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LENGTH, VOCAB = 3, 2


def weight(x):
    return 1 + x[0] + 2 * x[1] * x[2] + 3 * x[0] * x[2]


def marginal(partial):
    """The probability of the known values; None is missing."""
    total = sum(weight(x) for x in itertools.product(range(VOCAB), repeat=LENGTH))
    fits = lambda x: all(p is None or p == v for p, v in zip(partial, x))
    return sum(weight(x) for x in itertools.product(range(VOCAB), repeat=LENGTH) if fits(x)) / total


log_p, logits = [], []
# Rows as the net sees them: 0 is missing, otherwise value + 1.
for stored in itertools.product(range(VOCAB + 1), repeat=LENGTH):
    partial = [None if s == 0 else s - 1 for s in stored]
    log_p.append(np.log(marginal(partial)))
    for site in range(LENGTH):
        for value in range(VOCAB):
            asked = list(partial)
            asked[site] = value
            known = partial[site] is not None
            logits.append(0.0 if known else np.log(marginal(asked) / marginal(partial)))

tables = {
    "powers": np.array([9, 3, 1], np.int64),
    "axes": np.array([1], np.int64),
    "log_p_table": np.array(log_p, np.float32),
    "logits_table": np.array(logits, np.float32).reshape(-1, LENGTH, VOCAB),
}
nodes = [
    helper.make_node("Mul", ["x", "powers"], ["digits"]),
    helper.make_node("ReduceSum", ["digits", "axes"], ["code"], keepdims=0),
    helper.make_node("Gather", ["log_p_table", "code"], ["log_p"]),
    helper.make_node("Gather", ["logits_table", "code"], ["logits"]),
]
graph = helper.make_graph(
    nodes,
    "table",
    [helper.make_tensor_value_info("x", TensorProto.INT64, ["B", LENGTH])],
    [
        helper.make_tensor_value_info("log_p", TensorProto.FLOAT, ["B"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", LENGTH, VOCAB]),
    ],
    [numpy_helper.from_array(value, name) for name, value in tables.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
facts = {"version": "1", "kind": "joint", "length": str(LENGTH), "vocab": str(VOCAB), "z_kind": "exact"}
helper.set_model_props(model, {f"mam.{key}": value for key, value in facts.items()})
onnx.checker.check_model(model)
onnx.save(model, os.path.join(os.path.dirname(os.path.abspath(__file__)), "table.onnx"))
