"""Float ONNX networks and images of the int8 tests."""

import numpy as np
import onnx
import pytest

from deployment.onnx_export import export_onnx


@pytest.fixture
def images():
    """Smooth pictures, of different contrast, as photographs are."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((16, 3, 6, 6)) * rng.uniform(0.3, 2, (16, 1, 1, 1))
    return np.kron(coarse, np.ones((8, 8))).astype(np.float32)


@pytest.fixture
def float_onnx(network, preprocessing, tmp_path):
    """A function that exports one of the small networks of every family."""

    def make(kind, **options):
        path = tmp_path / "float.onnx"
        export_onnx(network(kind), path, preprocessing, size=48, **options)
        return onnx.load(path)

    return make
