"""What all these stand-ins for a board's runtime do: onnxruntime runs the "compiled" network.

The file is the kit's ONNX file under the name of the compiled one; network.json lies beside it.
"""

import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


class OnnxBoard:
    def __init__(self, path):
        self.network = json.loads((Path(path).parent / "network.json").read_text())
        self.session = onnxruntime.InferenceSession(path)
        (self.input,) = self.session.get_inputs()
        self.calls = 0
        self.shape = [1, 3, self.network["size"], self.network["size"]]

    def of_nv12(self, packed):
        """Logits of NV12 in BT.601's video range, as the mapper's network computes them."""
        assert packed.dtype == np.uint8
        side = self.network["size"]
        bgr = cv2.cvtColor(packed.reshape(side * 3 // 2, side), cv2.COLOR_YUV2BGR_NV12)
        rgb = self.network["color"] == "RGB"
        return self.of_pixels((bgr[:, :, ::-1] if rgb else bgr)[None])

    def of_pixels(self, pixels):
        """Logits of uint8 [1, H, W, 3] in the network's order of colours."""
        assert (pixels.dtype, pixels.shape) == (np.uint8, (1, *self.shape[2:], 3))
        mean, std = (np.array(self.network[key]) for key in ("mean", "std"))
        values = ((pixels - mean) / std).astype(np.float32)
        return self.of_values(values.transpose(0, 3, 1, 2))

    def of_values(self, values):
        self.calls += 1
        if self.calls > int(os.environ.get("FAIL_AFTER", 1 << 30)):
            raise RuntimeError("no more calls")
        time.sleep(float(os.environ.get("SECONDS", 0)))
        logits = self.session.run(None, {self.input.name: np.ascontiguousarray(values)})[0]
        return logits.astype(os.environ.get("OUTPUT", "float32"))
