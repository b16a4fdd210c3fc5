"""Networks from files: this project's checkpoints, and everybody else's layouts.

import weights
net = weights.load("best.pkl")                          # the network that the file holds
net = weights.load("RepVGG-A0-train.pth", deploy=True)  # another repository's, fused

From a file to a network, a module a step:

    catalog      name of published weights or URL -> local file (by download)
    files        file -> contents: what a pickle, PyTorch, safetensors or .npz file holds
    recognition  contents of another repository's file -> layout, architecture, tensors renamed
    checkpoint   either -> Checkpoint; and back into a file
    loading      Checkpoint -> network
"""

from .loading import load, load_for_fine_tuning

__all__ = ["load", "load_for_fine_tuning"]
