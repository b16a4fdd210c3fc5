"""The ONNX files under OpenCV's dnn, which many deploy with and which rewrites graphs."""

import cv2
import numpy as np
import pytest

from deployment.onnx_export import export_onnx, load


@pytest.mark.parametrize("kind", ["RepGhost", "RepViT", "MobileOne", "RepVGG, SE", "RepVGGplus"])
def test_the_logits_are_those_of_onnxruntime(kind, network, preprocessing, tmp_path):
    """OpenCV 4.11 computes HardSwish for any product with HardSigmoid(alpha=1/6)."""
    path = tmp_path / "a.onnx"
    export_onnx(network(kind), path, preprocessing, size=48, batch=1)
    image = np.random.default_rng(1).standard_normal((1, 3, 48, 48), np.float32)
    expected = load(path)(image)
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(image)
    logits = net.forward()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
