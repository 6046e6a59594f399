"""Training of small networks: repeatable from a seed, resumable and interruptible.

Images, or latents with labels, and options go in; a module with its losses comes out. The command
`python -m bridges.networks.training vae --out FILE` trains an autoencoder. Imports
`bridges.networks` and `cpwl.files`.
"""

from bridges.networks.training.autoencoder import cached_vae, load_vae, train_vae
from bridges.networks.training.denoiser import train_denoiser
from bridges.networks.training.loop import Trained

__all__ = ["Trained", "cached_vae", "load_vae", "train_denoiser", "train_vae"]
