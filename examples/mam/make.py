"""Makes the data of this example: the 8x8 digits of scikit-learn, binarised at 8.

    pip download --no-deps scikit-learn && python3 examples/mam/make.py scikit_learn-*.whl

Writes train.npy (1,400 images), test.npy (397) and occluded.npz (the first 16 test images with
their lower half hidden). The digits are those of the UCI Machine Learning Repository, "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998; CC BY 4.0), as scikit-learn ships
them. Then the model was trained by

    hone mam train --data examples/mam/train.npy --held-out examples/mam/test.npy \
        --output examples/mam/digits.onnx \
        --batch 256 --conditional-steps 3000 --marginal-steps 8000 \
        --learning-rate 2e-3 --weight-decay 0.1
"""

import csv
import gzip
import io
import pathlib
import sys
import zipfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
TRAIN = 1400


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz")).decode()
    pixels = np.array([row[:64] for row in csv.reader(io.StringIO(text)) if row], dtype=float)
    images = (pixels >= 8).astype(np.uint8).reshape(-1, 8, 8)
    np.save(HERE / "train.npy", images[:TRAIN])
    np.save(HERE / "test.npy", images[TRAIN:])
    known = np.ones((16, 8, 8), bool)
    known[:, 4:] = False
    np.savez_compressed(HERE / "occluded.npz", x=images[TRAIN:TRAIN + 16], known=known)


if __name__ == "__main__":
    main()
