"""Int8 networks: ranges and equalization of activations, rounding of weights, the QDQ file."""
