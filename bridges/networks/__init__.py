"""Networks that everything is compared on: `toys`, `pretrained` ones and diffusion models.

The name of a toy, of a published network or of a file goes in; torch modules in evaluation mode,
the domains they are looked at on, pictures and paths come out. Imports `cpwl`.
"""

from bridges.networks import (
    autoencoders,
    data,
    datasaurus,
    diffusion,
    pipelines,
    pretrained,
    toys,
    training,
)

__all__ = [
    "autoencoders",
    "data",
    "datasaurus",
    "diffusion",
    "pipelines",
    "pretrained",
    "toys",
    "training",
]
