"""numpy peers of `benches/mfac.rs`: M-FAC as published, and the same mathematics as a user of numpy
would write it. Usage: peers.py [--quick] full|blocks; prints a JSON line each.

The recursions are those of the published code: `recursion` of HInvFastSwap with one page (rank-one
updates over all weights), `block_recursion` of HInvFastBatch (the same over all blocks at once, by
batched products). The slowest run on fewer weights, as `d` says; their cost is linear in it."""

import json
import sys
import time

import numpy as np

DAMPING = 1e-3
BLOCKS = (64, 128, 256)


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


def by_blocks(g, block):
    """G as [blocks, m, B]."""
    m, d = g.shape
    return np.ascontiguousarray(g[:, : d // block * block].reshape(m, -1, block).swapaxes(0, 1))


def block_recursion(h):
    """The diagonals by the paper's rank-one updates of all blocks at once; h is G by blocks."""
    m = h.shape[1]
    denominator = np.empty(h.shape[:2], np.float32)
    for i in range(m):
        g = h[:, i].copy()
        c = (h[:, :i] @ g[:, :, None])[:, :, 0] / denominator[:, :i]
        h[:, i] = g / DAMPING - (c[:, None, :] @ h[:, :i])[:, 0]
        denominator[:, i] = m + (g * h[:, i]).sum(1)
    return 1 / DAMPING - (h ** 2 / denominator[:, :, None]).sum(1)


def batched(g, block):
    """Fisher blocks and their inverses, batched."""
    parts = by_blocks(g, block)
    fisher = parts.swapaxes(1, 2) @ parts / len(g) + DAMPING * np.eye(block, dtype=np.float32)
    return np.linalg.inv(fisher)


def report(what, d, m, block, work):
    """The median of nine runs, fewer if that takes long; of an odd number."""
    times = []
    while len(times) < 9 and sum(times) < 0.7 or len(times) % 2 == 0:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    row = {"what": what, "d": d, "m": m, "block": block, "seconds": round(seconds, 4)}
    print(json.dumps(row), flush=True)


def main():
    quick, kind = "--quick" in sys.argv, sys.argv[-1]
    whole = 65536 if quick else 262144
    for m in (256,) if quick else (256, 1024):
        g = np.random.default_rng(0).uniform(-1, 1, (m, whole)).astype(np.float32)
        if kind == "full":
            report("numpy: Woodbury, diagonal", whole, m, 0, lambda: woodbury(g))
            part = g[:, : whole * 128 // m].copy()
            report("numpy: published recursion, diagonal", part.shape[1], m, 0,
                   lambda: recursion(part))
            continue
        for block in BLOCKS:
            report("numpy: batched inverses", whole, m, block, lambda: batched(g, block))
            part = by_blocks(g[:, : 8192 * 256 // m], block)
            report("numpy: published block recursion", 8192 * 256 // m, m, block,
                   lambda: block_recursion(part.copy()))


if __name__ == "__main__":
    main()
