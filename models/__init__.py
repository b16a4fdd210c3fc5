"""Re-parameterized ConvNets: `create` one by name, `to_deploy` it, `profile` it.

import models
net = models.create("RepVGGA0", num_classes=10)
deployed = models.to_deploy(net)      # a new network: one convolution a block
"""

from . import environment  # first: sets the variables that MegEngine reads when it is imported
from .profile import Profile, profile
from .registry import (
    BLOCKS,
    canonical_name,
    create,
    head_names,
    list_models,
    own_options,
    state_shapes,
    variant_name,
)
from .reparam import to_deploy

__all__ = [
    "BLOCKS",
    "Profile",
    "canonical_name",
    "create",
    "environment",
    "head_names",
    "list_models",
    "own_options",
    "profile",
    "state_shapes",
    "to_deploy",
    "variant_name",
]
