"""numpy peers of `benches/mfac.rs`: the published recursion of M-FAC, and the same mathematics
by Woodbury's identity as a user would write it. Usage: peers.py D M; prints a JSON line each."""

import json
import sys
import time

import numpy as np

DAMPING = 1e-3


def recursion(g):
    """The diagonal of the inverse Fisher by the paper's rank-one updates."""
    m = len(g)
    h = g.copy()
    denominator = np.empty(m, np.float32)
    for i in range(m):
        h[i] = g[i] / DAMPING
        if i:
            h[i] -= ((h[:i] @ g[i]) / denominator[:i]) @ h[:i]
        denominator[i] = m + g[i] @ h[i]
    return 1 / DAMPING - np.einsum("ij,ij,i->j", h, h, 1 / denominator)


def woodbury(g):
    """The same by one Cholesky factor of the m by m matrix."""
    m = len(g)
    k = DAMPING * m * np.eye(m) + (g @ g.T).astype(np.float64)
    v = np.linalg.inv(np.linalg.cholesky(k)).astype(np.float32) @ g
    return (1 - np.einsum("ij,ij->j", v, v)) / DAMPING


def batched(g, block):
    """Fisher blocks and their inverses, batched."""
    m, d = g.shape
    parts = g[:, : d // block * block].reshape(m, -1, block).transpose(1, 0, 2)
    fisher = parts.transpose(0, 2, 1) @ parts / m + DAMPING * np.eye(block, dtype=np.float32)
    return np.linalg.inv(fisher)


def report(what, g, block, work):
    start = time.perf_counter()
    work()
    seconds = round(time.perf_counter() - start, 4)
    m, d = g.shape
    print(json.dumps({"what": what, "d": d, "m": m, "block": block, "seconds": seconds}))


def main():
    d, m = int(sys.argv[1]), int(sys.argv[2])
    g = np.random.default_rng(0).uniform(-1, 1, (m, d)).astype(np.float32)
    report("numpy: published recursion, diagonal", g, 0, lambda: recursion(g))
    report("numpy: Woodbury, diagonal", g, 0, lambda: woodbury(g))
    for block in (64, 128, 256):
        report("numpy: batched inverses", g, block, lambda: batched(g, block))


if __name__ == "__main__":
    main()
