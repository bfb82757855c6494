"""torch's linear layer, computed by our kernel."""

from torch import Tensor, nn

from ..kernels.linear import linear


class Linear(nn.Linear):
    """Same parameters and result as `torch.nn.Linear`, faster on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
