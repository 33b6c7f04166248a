"""Answers images (.npy arrays, as the network takes them) with an exported network; needs onnxruntime and numpy alone.

python serve_onnx.py model.onnx images.npy
"""

import sys

import numpy as np
import onnxruntime as ort

session = ort.InferenceSession(sys.argv[1], providers=ort.get_available_providers())
given = session.get_inputs()[0]
images = np.load(sys.argv[2], allow_pickle=False).astype(np.float32)
batch = given.shape[0] if isinstance(given.shape[0], int) else len(images)
for start in range(0, len(images), batch):
    piece = np.resize(images[start : start + batch], (batch, *images.shape[1:]))  # the last one is filled up
    scores = session.run(None, {given.name: piece})[0][: len(images) - start]
    print("\n".join(str(label) for label in scores.argmax(axis=1)))
