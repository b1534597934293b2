"""Keyword spotting on any device: only the device string differs.

nnloom zoo fetch tflite_micro_speech -o speech.tflite
nnloom zoo fetch recordings -o .
nnloom compile speech.tflite -o speech
python examples/spot.py speech yes.npy no.npy
python examples/spot.py speech yes.npy no.npy --device model
python examples/spot.py speech yes.npy no.npy --device sim
python examples/spot.py speech yes.npy no.npy --device serial:/dev/ttyUSB0
"""

import argparse

import numpy as np

from nnloom.runtime import InferenceSession

WORDS = ("yes", "no", "unknown", "silence")


def main() -> None:
    """What is heard in each file, and the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="directory made by `nnloom compile`")
    parser.add_argument("inputs", nargs="+", help="features of a recording (.npy)")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with InferenceSession(arguments.artifact, device=arguments.device, fallback=False) as session:
        for path in arguments.inputs:
            (scores,) = session.run(np.load(path)).values()
            print(path, WORDS[scores.argmax()], *scores.ravel())


if __name__ == "__main__":
    main()
