"""onnxruntime behind the calls of rknn-toolkit2 that the kit's convert.py makes."""

import functools
import json
import os
import shutil

import cv2
from onnx_board import OnnxBoard


def _failing(method):
    """Let a method fail as those of newer toolkits do, where $RAISE names it."""

    @functools.wraps(method)
    def call(*arguments, **named):
        if os.environ.get("RAISE") == method.__name__:
            raise ValueError(f"Traceback ...\nRuntimeError: no {method.__name__}\n")
        return method(*arguments, **named)

    return call


class RKNN:
    def __init__(self, verbose):
        self._calls = {}

    def config(self, **settings):
        if settings["target_platform"] == "rk9":
            raise ValueError("Traceback ...\nValueError: Invalid target_platform 'rk9'!\n")
        self._calls["config"] = settings
        return 0

    @_failing
    def load_onnx(self, model, inputs, input_size_list):
        self._calls["load_onnx"] = [model, inputs, input_size_list]
        self._model = model
        return 0

    @_failing
    def build(self, do_quantization, dataset):
        if "REFUSE" in os.environ:
            return -1
        with open(dataset) as lines:
            images = [cv2.imread(line.strip()) for line in lines]
        assert all(image is not None for image in images)
        self._calls["build"] = [do_quantization, len(images)]
        return 0

    @_failing
    def export_rknn(self, path):
        shutil.copyfile(self._model, path)
        return 0

    @_failing
    def init_runtime(self):
        self._board = OnnxBoard(os.path.abspath(self._model))
        return 0

    @_failing
    def inference(self, inputs, data_format):
        assert data_format == ["nhwc"]
        return [self._board.of_pixels(inputs[0])]

    def release(self):
        with open("calls.json", "w") as file:
            json.dump(self._calls, file)
