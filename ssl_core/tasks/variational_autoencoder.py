"""Variational autoencoder: Kingma & Welling 2013, https://arxiv.org/abs/1312.6114.

The encoder maps each picture to a normal distribution over a few latent numbers, and the decoder makes the picture from
a sample of it. Both maximise a lower bound of the data's likelihood: the likelihood of the pixels, minus the KL
divergence of the picture's distribution from the standard normal.

Where the divergence costs more than a latent number gains, the encoder stops using that number. If it uses none
(posterior collapse; `active_units` is 0) nothing is learnt; with `warmup` the divergence weighs little at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ssl_core.errors import InputError
from ssl_core.nn.decoders import PixelDecoder, last_map
from ssl_core.nn.encoders import Encoder
from ssl_core.nn.heads import r_squared
from ssl_core.ops import images
from ssl_core.task import EncoderFactory, TaskModel
from ssl_core.types import Choice, Field, LogUniform, Panel, Raw, Shortcut, Uniform

ACTIVE = 0.01
"""A latent number is in use if its mean varies more than this over pictures (Burda et al. 2015, arXiv:1509.00519)."""


class Answer(NamedTuple):
    """Outputs of the model for n pictures."""

    pixels: Tensor
    """[n, 3, s, s]: means, or for the Bernoulli likelihood their logits."""
    mean: Tensor
    """[n, latent], means of the latent numbers."""
    log_variance: Tensor
    """[n, latent]."""
    beta: Tensor
    """Weight of the divergence at this step, one number."""


@dataclass(frozen=True)
class VariationalAutoencoder:
    """Which few numbers does the picture come from? A generative model of the pixels.

    Attributes:
        canvas: side in px of the square crop that the reader returns and the network sees; the paper: 28.
        latent: how many numbers a picture is made from; the paper: up to 200, mostly 3 to 20.
        likelihood: of a pixel: "bernoulli", the paper's for writing, or "gaussian", its other one.
        deviation: gaussian: standard deviation of a pixel, black to white being 1; the paper's decoder predicts it,
            and keeps means between 0 and 1 by a sigmoid; here they are free.
        beta: weight of the divergence; the paper: 1. Higher values separate factors (Higgins et al. 2017), lower ones
            keep more of the picture.
        warmup: optimizer steps in which the weight of the divergence rises to beta; the paper: none, 0.
        flip: chance of a left-right mirror first; the paper: none. 0 for writing and digits.
    """

    canvas: int = 64
    latent: int = 20
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    deviation: float = 0.1
    beta: float = 1.0
    warmup: int = 0
    flip: float = 0.0

    paper: ClassVar[str] = "Kingma & Welling 2013, arXiv:1312.6114"
    shortcuts: ClassVar[tuple[Shortcut, ...]] = ()
    search: ClassVar[Mapping[str, Choice | LogUniform | Uniform]] = {
        "latent": Choice((10, 20, 50, 200)),
        "beta": LogUniform(0.1, 10.0),
    }

    def __post_init__(self) -> None:
        if self.canvas < 8 or self.latent < 1 or self.warmup < 0:
            raise InputError(
                "variational_autoencoder: canvas must be at least 8 px, latent at least 1 and warmup at least 0."
            )
        if self.likelihood not in ("bernoulli", "gaussian"):
            raise InputError(
                f"variational_autoencoder: likelihood is {self.likelihood!r}; it can be bernoulli or gaussian."
            )
        if self.deviation <= 0 or self.beta < 0 or not 0 <= self.flip <= 1:
            raise InputError(
                "variational_autoencoder: deviation must be above 0, beta at least 0, and flip between 0 and 1."
            )

    @property
    def sample(self) -> Mapping[str, Field]:
        return {"image": Field("image", (3, self.canvas, self.canvas))}

    def make_batch(self, raw: Raw, rng: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """n images -> "images" [n, 3, s, s], and "noise" [n, latent] for the draw; the pixels in [0, 1]."""
        x = images.random_flip(images.to_float(raw["image"]), rng, self.flip)
        noise = torch.randn(len(x), self.latent, generator=rng, device=x.device)
        return {"images": images.normalise(x), "noise": noise}, x

    def build(self, encoder: EncoderFactory) -> TaskModel:
        return LatentModel(encoder(self.sample["image"]), self)

    def loss(self, outputs: Answer, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative bound, equation 7, in nats per pixel value. kl: in nats per picture; active_units: a number."""
        pixels, mean, log_variance, beta = outputs
        if self.likelihood == "bernoulli":
            each = F.binary_cross_entropy_with_logits(pixels, targets, reduction="none")
        else:
            each = ((pixels - targets) / self.deviation).square() / 2 + log(self.deviation) + log(2 * pi) / 2
        kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        loss = each.flatten(1).mean(1) + beta * kl / targets[0].numel()
        active = (mean.detach().var(0, correction=0) > ACTIVE).sum().float().expand(len(mean))
        metrics = {"kl": kl.detach(), "active_units": active, "r2": r_squared(self._restored(pixels), targets)}
        return loss, metrics

    def _restored(self, pixels: Tensor) -> Tensor:
        """Predicted pixels as pictures, without gradient."""
        return pixels.detach().sigmoid() if self.likelihood == "bernoulli" else pixels.detach()

    def chance(self, batch: int) -> dict[str, float]:
        return {"r2": 0.0}

    def show(self, inputs: dict[str, Tensor], outputs: Answer, targets: Tensor) -> Panel:
        captions = [f"divergence {value:.1f} nats" for value in self.loss(outputs, targets)[1]["kl"].tolist()]
        return Panel({"picture": targets, "restored": self._restored(outputs.pixels).clamp(0, 1)}, captions)


class LatentModel(TaskModel):
    """Encoder, a linear layer to mean and variance, a decoder; `steps` drives the warm-up."""

    steps: Tensor

    def __init__(self, encoder: Encoder, task: VariationalAutoencoder) -> None:
        super().__init__()
        self.task = task
        self.encoder = encoder
        channels, side = last_map(encoder, task.sample["image"].shape)
        self.latent = nn.Linear(encoder.dim, 2 * task.latent)
        nn.init.normal_(self.latent.weight, std=0.01)
        nn.init.zeros_(self.latent.bias)
        self.unfold = nn.Sequential(nn.Linear(task.latent, channels * side**2), nn.Unflatten(1, (channels, side, side)))
        self.decoder = PixelDecoder(channels, side, task.canvas)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor, noise: Tensor) -> Answer:
        """[n, 3, s, s] and [n, latent] -> the model's outputs, from one sample per picture."""
        mean, log_variance = self.latent(self.encoder(images)).float().chunk(2, 1)
        drawn = mean + (log_variance / 2).exp() * noise
        beta = self.task.beta * ((self.steps + 1) / max(1, self.task.warmup)).clamp_max(1)
        return Answer(self.decoder(self.unfold(drawn)), mean, log_variance, beta)

    def after_step(self) -> None:
        self.steps += 1

    def represent(self, raw: Raw) -> dict[str, Tensor]:
        """The encoder's layers, then "latent": the means."""
        layers = self.encoder.layers(images.normalise(images.to_float(raw["image"])))
        *_, last = layers.values()
        return layers | {"latent": self.latent(last).float()[:, : self.task.latent]}
