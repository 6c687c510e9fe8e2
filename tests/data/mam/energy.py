"""Writes energy.onnx, an energy to learn from: log f(x) = x_0 - x_1 + x_2 / 2 of 3 sites of 2
values, so that log Z = log(1 + e) + log(1 + 1/e) + log(1 + sqrt(e)).

    python3 tests/data/mam/energy.py
"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

nodes = [
    helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
    helper.make_node("MatMul", ["numbers", "slopes"], ["log_f"]),
]
graph = helper.make_graph(
    nodes,
    "energy",
    [helper.make_tensor_value_info("x", TensorProto.INT64, ["B", 3])],
    [helper.make_tensor_value_info("log_f", TensorProto.FLOAT, ["B"])],
    [numpy_helper.from_array(numpy.array([1, -1, 0.5], numpy.float32), "slopes")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, pathlib.Path(__file__).with_suffix(".onnx"))
