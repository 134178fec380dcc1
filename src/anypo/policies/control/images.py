"""Images in observations: how their numbers lie, and the convolutions that read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anypo.networks import NetworkKind

LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, side of the kernel and stride of the convolutions. Source: Mnih et al. 2015."""
WIDTH = 512
"""Features of an image. Source: likewise."""
MIN_SIDE = 36
"""Pixels of the smallest side that the convolutions reduce to at least one number."""
IMAGE_ROWS = 256
"""Observations that are read together where no gradient is needed, which bounds the memory of a whole rollout's."""


@dataclass(frozen=True)
class Image:
    """An image as part of a vector: frames of [channel, height, width], or of [height, width, channel] where channels are `last`.

    most: the largest number of a pixel.
    """

    frames: int
    shape: tuple[int, ...]
    last: bool
    most: float

    @property
    def planes(self) -> tuple[int, int, int]:
        """Channels of all frames, height and width."""
        channels, height, width = np.roll(self.shape, 1 if self.last else 0).tolist()
        return self.frames * channels, height, width

    def read(self, numbers: Float[Tensor, "row number"]) -> Float[Tensor, "row channel height width"]:
        """Return the planes of images, in [0, 1]."""
        frames = numbers.unflatten(1, (self.frames, *self.shape))
        return (frames.movedim(-1, 2) if self.last else frames).flatten(1, 2) / self.most


def image_of(space: Any) -> Image | None:
    """Return how the image in a Box lies: bytes [height, width], with channels first or last, or a stack of such frames.

    The smallest of three sides counts channels. None where the box is no image, or one too small for the convolutions.
    """
    if space.dtype != np.uint8 or not 2 <= len(space.shape) <= 4:
        return None
    frames = space.shape[0] if len(space.shape) == 4 else 1
    shape = (1, *space.shape) if len(space.shape) == 2 else space.shape[-3:]
    image = Image(frames, shape, int(np.argmin(shape)) != 0, float(space.high.max()))
    return image if min(image.planes[1:]) >= MIN_SIDE else None


class NatureCNN(nn.Module):
    """Three convolutions and a linear layer with ReLU after each; orthogonal weights with gain sqrt(2), biases 0.

    Source: Mnih et al. 2015; weights as in PPO (Huang et al. 2022, "The 37 implementation details of PPO").
    """

    def __init__(self, image: Image, generator: torch.Generator):
        super().__init__()
        self.image = image
        inputs, *sides = image.planes
        learned: list[nn.Conv2d | nn.Linear] = []
        for channels, kernel, stride in LAYERS:
            learned.append(nn.Conv2d(inputs, channels, kernel, stride, device="meta"))
            inputs, sides = channels, [(side - kernel) // stride + 1 for side in sides]
        learned.append(nn.Linear(inputs * math.prod(sides), WIDTH, device="meta"))
        for layer in learned:
            weight, bias = layer.to_empty(device="cpu").parameters()
            nn.init.orthogonal_(weight, math.sqrt(2), generator=generator)
            nn.init.zeros_(bias)
        *convolutions, linear = learned
        layers = [part for layer in convolutions for part in (layer, nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU())

    def forward(self, numbers: Float[Tensor, "row number"]) -> Float[Tensor, "row feature"]:
        return self.layers(self.image.read(numbers)).to(numbers.dtype)  # autocast rounds it


class ImageFeatures(nn.Module):
    """Features of expanded observations: those of each image by a network of its own, then the other numbers.

    images: columns of each image, and how it lies there. others: the other columns. width: number of features.
    """

    others: Tensor

    def __init__(
        self, images: Sequence[tuple[slice, Image]], others: Int[Tensor, " column"], generator: torch.Generator
    ):
        super().__init__()
        self.columns = [columns for columns, _ in images]
        self.nets = nn.ModuleList(NatureCNN(image, generator) for _, image in images)
        self.register_buffer("others", others.clone(), persistent=False)  # a tensor of its own: traces name them
        self.width = WIDTH * len(images) + len(others)

    def forward(self, obs: Float[Tensor, "row dim"], others: Tensor | None = None) -> Float[Tensor, "row width"]:
        """Return the features.

        Args:
            obs: expanded observations.
            others: numbers beside the images, where these are not the observations' own.
        """
        seen = [net(obs[:, columns]) for net, columns in zip(self.nets, self.columns, strict=True)]
        return torch.cat([*seen, obs[:, self.others] if others is None else others], 1)


class BehindImages(nn.Module):
    """A network whose input begins with the features of observations; the convolutions are its own."""

    def __init__(self, convolutions: ImageFeatures, net: nn.Module):
        super().__init__()
        self.convolutions, self.net = convolutions, net

    def forward(self, obs: Float[Tensor, "row dim"], *others: Tensor | None, **options: bool) -> Any:
        """Evaluate the network.

        Args:
            obs: expanded observations.
            others: further inputs of the network.
            options: of the network; where it is `frozen`, the convolutions are constants too.
        """
        return self.net(self.look(obs, options.get("frozen", False)), *others, **options)

    def look(self, obs: Float[Tensor, "row dim"], frozen: bool) -> Float[Tensor, "row width"]:
        """Return the features of expanded observations, constants where they are `frozen`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.convolutions(obs)


class NetworkBehindImages(BehindImages):
    """A network beside the policy's own that reads images by convolutions of its own."""

    net: NetworkKind

    def __init__(self, convolutions: ImageFeatures, net: NetworkKind):
        super().__init__(convolutions, net)
        self.reads, self.latent = net.reads, net.latent

    def values(self, name: str, at: Mapping[str, Any], want: Collection[str], frozen: bool) -> dict[str, Tensor]:
        """See `NetworkKind.values`; where it is `frozen`, the convolutions are constants too."""
        seen = {key: self.look(at[key], frozen) for key in ("obs", "next") if key in at}
        return self.net.values(name, {**at, **seen}, want, frozen)
