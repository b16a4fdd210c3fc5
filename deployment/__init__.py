"""Deployment: networks as ONNX and .mge files, int8 quantization and kits for boards."""
