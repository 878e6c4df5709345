"""All that an application needs to run an artifact; ``make demo`` makes the one used here."""

import numpy as np

from edgec.runtime import load

image = np.load("examples/digits/evaluation.npz")["image"][0]  # uint8[8, 8, 1]
with load("demo/digits-cpu-x86_64.edgec") as session:
    prediction = session.predict(image)
print(f"a {prediction['labels'][0]}, with probability {prediction['scores'][0]:.3f}")
