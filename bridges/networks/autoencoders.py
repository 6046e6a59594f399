"""Variational autoencoder of small images, of ReLU layers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Vae(nn.Module):
    """A variational autoencoder: `depth` hidden ReLU layers of one width on either side.

    Its weights start as K. He et al., "Delving deep into rectifiers", 2015, have them.

    Parameters
    ----------
    latents : int
        E, size of the latent space.
    width : int
        Of the hidden layers.
    depth : int
        Hidden layers of the encoder, and of the decoder.
    pixels : int
        D, size of an image.

    Attributes
    ----------
    encoder : nn.Sequential
        Image (B, D) -> mean and log-variance of the posterior (B, 2 E).
    decoder : nn.Sequential
        Latent (B, E) -> image before the sigmoid (B, D): continuous and piecewise linear.

    Examples
    --------
    >>> import torch
    >>> from bridges.networks.autoencoders import Vae
    >>> vae = Vae(latents=4, width=16, depth=2, pixels=9)
    >>> mean, log_variance = vae.encode(torch.rand(5, 9))
    >>> vae.decode(mean).shape
    torch.Size([5, 9])
    """

    def __init__(
        self, latents: int = 20, width: int = 128, depth: int = 5, pixels: int = 784
    ) -> None:
        super().__init__()
        hidden = (width,) * depth
        self.encoder = _perceptron((pixels, *hidden, 2 * latents))
        self.decoder = _perceptron((latents, *hidden, pixels))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posteriors, each (B, E)."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, D) in [0, 1]."""
        return self.decoder(latents).sigmoid()

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits at mean + noise * deviation, and mean and log-variance."""
        mean, log_variance = self.encode(images)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def negative_bound(images: Tensor, found: tuple[Tensor, Tensor, Tensor], beta: float) -> Tensor:
    """Return the mean over images of cross-entropy plus beta times KL divergence, in nats."""
    logits, mean, log_variance = found
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return (entropy + beta * divergence) / len(images)


def _perceptron(sizes: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        linear = nn.Linear(size, following)
        # torch's own start shrinks signals layer by layer: of 20 latents 3 stayed in use
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
