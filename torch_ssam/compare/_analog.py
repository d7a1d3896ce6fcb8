"""The noise training of an analog toolkit, aihwkit-lightning, as a method that S-SAM's noise is compared with.

Its Linear and convolution layers compute with w + std max|w| xi, fresh xi for each filter in each forward pass
(ADD_NORMAL_PER_CHANNEL), and clip each filter after each step to c times its centred standard deviation
(LAYER_GAUSSIAN_PER_CHANNEL). Noise and clipping are the toolkit's own code; converters and input ranges are off, as
they are by default. They take the places of the model's layers and share their parameters, so that nothing has to be
copied back. It needs no Triton. Tests: tests/python/test_analog.py.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from torch_ssam._common.extras import need

KINDS = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def _toolkit(module: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has no Triton
        return need(f"aihwkit_lightning.{module}", "analog", "the method ala-noise")


def check_installed() -> None:
    """Raises ImportError, with what to install, where aihwkit-lightning is not there."""
    _toolkit("nn")


class AnalogLayers:
    """aihwkit-lightning's layers in the places of a model's Linear and convolution layers, until `finish`.

    Weights of other layers (embeddings, positions) get neither noise nor clipping, since the toolkit has none for them.

    Args:
        model: any module that has such layers; a layer that is the model itself has no place to be exchanged in.
        noise_std: of the noise in training mode, in units of each filter's largest |w|.
        weight_clip: c, in units of each filter's centred standard deviation.

    Raises:
        ImportError: aihwkit-lightning is not installed.
        ValueError: nothing to exchange; a convolution with groups (the toolkit's words).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> layers = AnalogLayers(model, noise_std=0.3, weight_clip=2.0)
        >>> optimizer = layers.optimizer(model.parameters(), lr=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()  # and clips
        >>> layers.finish()
        >>> type(model[0])
        <class 'torch.nn.modules.linear.Linear'>
    """

    def __init__(self, model: nn.Module, noise_std: float, weight_clip: float) -> None:
        toolkit, configs = _toolkit("nn"), _toolkit("simulator.configs")
        config = configs.TorchInferenceRPUConfig()
        config.modifier.noise_type = configs.WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
        config.modifier.std_dev = noise_std
        config.clip.type = configs.WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
        config.clip.sigma = weight_clip
        kinds = {getattr(nn, kind): getattr(toolkit, f"Analog{kind}") for kind in KINDS}
        self._places = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is not None and type(child) in kinds
        ]
        if not self._places:
            raise ValueError(
                f"the model, a {type(model).__name__}, has no {', '.join(KINDS)} layer inside; ala-noise needs one."
            )
        # A layer with two places has one.
        self.layers = {layer: _exchanged(kinds[type(layer)], layer, config) for *_, layer in self._places}
        self._exchange()

    def _exchange(self) -> None:
        for parent, name, layer in self._places:
            parent._modules[name] = self.layers[layer].train(layer.training)

    def finish(self) -> None:
        """The model's own layers are in their places again, with the weights as trained."""
        for parent, name, layer in self._places:
            parent._modules[name] = layer.train(self.layers[layer].training)

    @contextlib.contextmanager
    def clean(self) -> Iterator[None]:
        """Context in which the model is its own, without noise in training mode either."""
        self.finish()
        try:
            yield
        finally:
            self._exchange()

    def optimizer(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        """torch.optim.SGD of these parameters, after whose steps the toolkit clips."""
        made = _toolkit("optim").AnalogOptimizer(torch.optim.SGD, self.layers.values, params, **options)
        return made  # type: ignore[no-any-return]


def _exchanged(kind: Any, layer: Any, config: Any) -> Any:
    """The toolkit's layer with the layer's own parameters."""
    layer.weight.data = layer.weight.data.contiguous()  # it looks at the weights of a filter as one row
    analog = kind.from_digital(layer, config)
    analog.weight, analog.bias = layer.weight, layer.bias
    return analog.train(layer.training)
