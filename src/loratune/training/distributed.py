"""World: the processes that train together; only one is supported so far."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class World:
    """The training processes, as one of them sees them.

    With one process there is nothing to exchange: both operations return their tensor unchanged.
    """

    rank: int = 0  # the number of this process, from 0
    size: int = 1  # how many there are

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not one of {self.size} processes")

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and return it."""
        return self._exchange(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with that of rank 0, in place, and return it."""
        return self._exchange(tensor)

    def _exchange(self, tensor: Tensor) -> Tensor:
        if self.size > 1:
            raise NotImplementedError("training in several processes is not implemented")
        return tensor


ONE_PROCESS = World()
