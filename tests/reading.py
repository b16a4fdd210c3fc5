"""Read pickles and PyTorch's files alone, without the search for weights in them."""

from data import unpickle
from weights import torch_file


def load_pickle(path):
    """Object in a pickle."""
    with unpickle.reading(path), open(path, "rb") as file:
        return unpickle.assert_data(unpickle.Unpickler(file).load())


def load_torch(path):
    """Object in a file of PyTorch's."""
    with unpickle.reading(path), open(path, "rb") as file:
        return torch_file.load_file(file)
