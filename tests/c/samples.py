#!/usr/bin/env python3
"""48 random samples of tests/data/networks/resnet.onnx with labels, for runs under valgrind.

    samples.py OUTPUT.npz
"""
import array
import random
import sys
import zipfile

ROWS, SHAPE, CLASSES = 48, (3, 32, 32), 10


def npy(kind, shape, numbers):
    """An .npy of format 1.0, as bytes."""
    head = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(11 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + numbers.tobytes()


def main():
    uniform = random.Random(0).uniform
    count = ROWS * SHAPE[0] * SHAPE[1] * SHAPE[2]
    images = array.array("f", (uniform(-1, 1) for _ in range(count)))
    labels = array.array("q", (i % CLASSES for i in range(ROWS)))
    with zipfile.ZipFile(sys.argv[1], "w") as out:
        out.writestr("x.npy", npy("<f4", (ROWS, *SHAPE), images))
        out.writestr("labels.npy", npy("<i8", (ROWS,), labels))


if __name__ == "__main__":
    main()
