"""Compare an exported file with its network on MegEngine's device: `compare.py CHECKPOINT ONNX`."""

import sys

import megengine as mge
import numpy as np
import onnxruntime

import weights


def main(argv: list[str]) -> int:
    checkpoint, file = argv
    net = weights.load(checkpoint)
    net.eval()
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: images})
    logits = net(mge.Tensor(images)).numpy()
    error = float(np.abs(logits - exported).max() / np.abs(logits).max())
    print(f"relative error {error:.1e} on {mge.get_default_device()}")
    return int(not error <= 1e-4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
