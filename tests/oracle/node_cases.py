"""Directional derivatives of the single-operator cases of onnx.backend.test, as an oracle.

    PYTHONPATH=third_party/python python3 tests/oracle/node_cases.py FOLDER

For every case with a float input and a float output, writes to FOLDER

    NAME.model.onnx   the case in float32 at an opset of 18 or newer
    NAME.data.onnx    tensors as initializers: at/INPUT, along/INPUT (a random direction for each
                      input that a gradient is checked of), seed/OUTPUT (a random cotangent c),
                      slope/INPUT = [<c, J v>, |c| |J v|] for the direction v

and index.json: for each case its operator and either "checked" with the oracle's name or the
reason it was left out. The oracle is onnx's own ReferenceEvaluator in float64; where that fails or
computes something else than ONNX Runtime does, it is ONNX Runtime in float32. Inputs are moved off
integers, so that maxima, roundings and thresholds are not probed at their kinks.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
NEWEST_OPSET = 26  # of ONNX Runtime 1.28
# Float inputs that say where or how, not what.
STRUCTURAL = {"Resize": (1, 2), "Upsample": (1,), "Dropout": (1,), "Range": (0, 1, 2), "OneHot": (1,),
              "RoiAlign": (1,)}


class Left(Exception):
    """Why a case is left out."""


def retyped(model, float_type):
    """A copy in which every float tensor is of one type."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in list(model.graph.input) + list(model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in FLOATS:
            tensor.elem_type = float_type
    for attribute in model.graph.node[0].attribute:
        if attribute.name in ("to", "dtype") and attribute.i in FLOATS:
            attribute.i = float_type
    return model


def at_supported_opset(model):
    """Sets the lowest opset from 18 on in which the operator has the form the case uses, or the
    newest one that ONNX Runtime knows."""
    node = model.graph.node[0]
    if node.domain not in ("", "ai.onnx"):
        raise Left(f"operator of domain {node.domain}")
    (current,) = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    since = defs.get_schema(node.op_type, current).since_version
    # A form that is too new may only add element types to the one before it.
    opset = min(max(18, since), NEWEST_OPSET)
    if since < 18 and defs.get_schema(node.op_type, opset).since_version != since:
        raise Left("a form older than opset 18")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = min(model.ir_version, 10)


def runner_ort(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(retyped(model, TensorProto.FLOAT).SerializeToString(), options)
    except Exception as e:
        raise Left("ONNX Runtime has no kernel" if "implementation" in str(e) else "ONNX Runtime refuses it") from e
    names = {i.name for i in session.get_inputs()}

    def run(inputs):
        feed = {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in inputs.items() if n in names}
        return [np.asarray(o) for o in session.run(None, feed)]

    return run


def runner_reference(model):
    evaluator = ReferenceEvaluator(retyped(model, TensorProto.DOUBLE))
    return lambda inputs: [np.asarray(o) for o in evaluator.run(None, inputs)]


def derivative(run, inputs, name, direction, kept, h):
    """J v by central differences, with the h^2 term removed."""
    def along(h):
        up, down = (run({**inputs, name: inputs[name] + s * h * direction}) for s in (1, -1))
        return np.concatenate([((up[k].astype(float) - down[k]) / (2 * h)).ravel() for k in kept])
    coarse, fine = along(h), along(h / 2)
    if np.linalg.norm(coarse - fine) > 0.02 * np.linalg.norm(fine) + 1e-4:
        raise Left("not differentiable at the inputs of the case")
    return (4 * fine - coarse) / 3


def prepare(case, random):
    model = case.model
    node = model.graph.node[0]
    at_supported_opset(model)
    arrays = case.data_sets[0][0]
    inputs = {}
    for value, array in zip(model.graph.input, arrays):
        array = np.asarray(array) if isinstance(array, np.generic) else array
        if not isinstance(array, np.ndarray) or not value.type.HasField("tensor_type"):
            raise Left("inputs that are not tensors")
        if array.dtype in (np.float16, np.float32, np.float64):
            array = array.astype(np.float32).astype(np.float64)
            position = list(node.input).index(value.name)
            if position not in STRUCTURAL.get(node.op_type, ()):
                moved = array + random.uniform(0.01, 0.04, array.shape)
                array = np.asarray(moved).astype(np.float32).astype(np.float64)
        inputs[value.name] = array
    wanted = [n for i, n in enumerate(node.input) if n in inputs and inputs[n].dtype == np.float64
              and inputs[n].size and i not in STRUCTURAL.get(node.op_type, ())]
    if not wanted:
        raise Left("no float input to differentiate")
    run_ort = runner_ort(model)
    outputs = run_ort(inputs)
    kept = [k for k, o in enumerate(outputs) if o.dtype == np.float32 and o.size]
    if not kept:
        raise Left("no float output")
    if not all(np.isfinite(outputs[k]).all() for k in kept):
        raise Left("outputs that are not finite")
    if any((a != b).any() for a, b in zip(outputs, run_ort(inputs))):
        raise Left("random outputs")
    run, oracle, h = run_ort, "ONNX Runtime in float32", 4e-3
    try:
        reference = runner_reference(model)
        exact = reference(inputs)
        if all(exact[k].dtype == np.float64 and exact[k].shape == outputs[k].shape
               and np.allclose(exact[k], outputs[k], 1e-3, 1e-4) for k in kept):
            run, oracle, h = reference, "reference in float64", 1e-3
    except Exception:
        pass
    tensors = {f"at/{n}": v.astype(np.float32) if v.dtype == np.float64 else v for n, v in inputs.items()}
    cotangents = [random.normal(size=outputs[k].shape).astype(np.float32) for k in kept]
    flat = np.concatenate([c.ravel() for c in cotangents]).astype(float)
    for k, c in zip(kept, cotangents):
        tensors[f"seed/{model.graph.output[k].name}"] = c
    for name in wanted:
        v = random.uniform(-1, 1, inputs[name].shape).astype(np.float32)
        change = derivative(run, inputs, name, np.asarray(v, dtype=float), kept, h)
        tensors[f"along/{name}"] = np.asarray(v)
        slope = [flat @ change, np.linalg.norm(flat) * np.linalg.norm(change)]
        tensors[f"slope/{name}"] = np.array(slope)
    return retyped(model, TensorProto.FLOAT), tensors, oracle


def holder(tensors):
    """A model that does nothing but hold tensors."""
    initializers = [numpy_helper.from_array(np.ascontiguousarray(t).reshape(t.shape), n) for n, t in tensors.items()]
    outputs = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers[:1]]
    graph = helper.make_graph([], "data", [], outputs, initializers)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for case in collect_testcases(None):
        graph = case.model.graph
        floats = [any(v.type.tensor_type.elem_type in FLOATS for v in vs) for vs in (graph.input, graph.output)]
        if len(graph.node) != 1 or case.name.endswith("_expanded") or not all(floats):
            continue
        random = np.random.default_rng(len(index))
        entry = {"operator": graph.node[0].op_type}
        try:
            model, tensors, oracle = prepare(case, random)
            onnx.save(model, folder / f"{case.name}.model.onnx")
            onnx.save(holder(tensors), folder / f"{case.name}.data.onnx")
            entry["checked"] = oracle
        except Left as reason:
            entry["left"] = str(reason)
        except Exception as e:
            entry["left"] = f"the case does not run: {type(e).__name__}"
        index[case.name] = entry
    (folder / "index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
