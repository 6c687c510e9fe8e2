"""Trains a model by the energy of an Ising model on a torus and says how close it comes.

    PYTHONPATH=third_party/python python3 benches/mam_ising.py target/release/hone --lattice 4x4

Coupling 0.2 per edge, field 0.2. hone reports the true KL gap from 4096 draws, with its standard
error, against log Z by a transfer matrix. For up to 16 sites this script sums all states itself and
prints the error of theta's marginals on 400 random subsets of all sizes. Times are CPU seconds.
"""

import argparse
import itertools
import json
import pathlib
import resource
import subprocess
import tempfile

import numpy as np

K, H = 0.2, 0.2
# Options beside the lattice.
USUAL = {"4x4": ["--steps", "2000", "--batch", "30"],
         "10x10": ["--steps", "6000", "--batch", "4", "--network", "conv", "--hidden", "16", "--layers", "2",
                   "--learning-rate", "5e-3", "--average", "0.998"]}


def marginal_errors(hone, model, rows, columns, folder):
    states = np.array(list(itertools.product([0, 1], repeat=rows * columns)), np.int8)
    spins = (2 * states - 1).reshape(-1, rows, columns)
    edges = spins * (np.roll(spins, -1, 1) + np.roll(spins, -1, 2))
    log_f = K * edges.sum((1, 2)) + H * spins.sum((1, 2))
    log_z = np.log(np.exp(log_f).sum())
    p = np.exp(log_f - log_z)
    random = np.random.default_rng(0)
    masked, truth = [], []
    for row in states[random.choice(len(states), 400, p=p / p.sum())]:
        known = random.permutation(row.size)[: random.integers(1, row.size + 1)]
        masked.append(np.full(row.size, -1, np.int64))
        masked[-1][known] = row[known]
        truth.append(np.log(p[(states[:, known] == row[known]).all(1)].sum()))
    data = pathlib.Path(folder) / "rows.npy"
    np.save(data, np.array(masked))
    command = [hone, "mam", "score", model, "--data", data, "--method", "theta"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    errors = np.array([json.loads(line)["theta"] for line in out.splitlines()]) - truth
    return log_z, np.sqrt((errors ** 2).mean()), np.abs(errors).max()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hone")
    parser.add_argument("--lattice", default="4x4")
    # Whatever else is given goes to hone mam train, instead of the usual options.
    a, given = parser.parse_known_args()
    rows, columns = map(int, a.lattice.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        model = str(pathlib.Path(folder) / "ising.onnx")
        energy = f"ising:{a.lattice},coupling={K},field={H}"
        options = given or USUAL.get(a.lattice, [])
        subprocess.run([a.hone, "mam", "train", "--energy", energy, "--output", model, *options],
                       check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds")
        if rows * columns <= 16:
            log_z, rms, worst = marginal_errors(a.hone, model, rows, columns, folder)
            print(f"log Z by enumeration {log_z:.6f}; log-marginals of theta: error {rms:.3f} nats "
                  f"rms, at most {worst:.3f}")


if __name__ == "__main__":
    main()
