"""hone's one-pass scores against ONNX Runtime called from Python on the same half of the graph.

    cargo bench --bench mam --no-run
    PYTHONPATH=third_party/python python3 benches/mam_peers.py BENCH_EXECUTABLE [model.onnx rows.npy]

One thread each, medians in microseconds; the bench executable is that of benches/mam.rs. The two
take turns, and each figure is the best of the rounds, as other work on the machine only adds.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime

BATCHES = [1, 16, 256]
ROUNDS, RUNS = 5, 31


def session(path, output):
    with tempfile.TemporaryDirectory() as folder:
        half = pathlib.Path(folder) / "half.onnx"
        onnx.utils.extract_model(str(path), str(half), ["x"], [output])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(half.read_bytes(), options,
                                            providers=["CPUExecutionProvider"])


def micros(theta, x):
    times = []
    theta.run(["log_p"], {"x": x})
    for _ in range(RUNS):
        start = time.perf_counter()
        theta.run(["log_p"], {"x": x})
        times.append((time.perf_counter() - start) * 1e6)
    return np.median(times)


def main():
    example = pathlib.Path(__file__).resolve().parents[1] / "examples" / "mam"
    bench = sys.argv[1]
    model, data = sys.argv[2:4] or [example / "digits.onnx", example / "test.npy"]
    theta = session(model, "log_p")
    rows = np.load(data)
    rows = rows.reshape(len(rows), -1).astype(np.int64) + 1
    python, hone = {}, {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            x = np.resize(rows[:256], (batch, rows.shape[1]))
            python[batch] = min(python.get(batch, np.inf), micros(theta, x))
        printed = subprocess.run([bench, str(model), str(data)], capture_output=True, text=True,
                                 check=True).stdout
        for line in printed.splitlines()[1:]:
            batch, by_theta = line.split()[:2]
            hone[int(batch)] = min(hone.get(int(batch), np.inf), float(by_theta))
    print("batch   Python       hone   throughput of hone / Python")
    for batch in BATCHES:
        print(f"{batch:5} {python[batch]:8.1f} {hone[batch]:10.1f} "
              f"{python[batch] / hone[batch]:8.2f}")


if __name__ == "__main__":
    main()
