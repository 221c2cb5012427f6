"""One call of a traced PyTorch module as layers of a graph."""

from typing import Any, ClassVar

from nbprop.interchange.steps import Step


class TorchStep(Step):
    """A step that knows the reader, for weights."""

    reader: Any
    elementwise: ClassVar[set[Any]] = set()  # what leaves the axes as they are

    def weight(self, tensor):
        """A tensor's array; None for None."""
        return None if tensor is None else self.reader.array(tensor)

    def fail(self, text):
        """As everywhere; the name of a call stands for itself."""
        return ValueError(f"from_torch: {self.said} {text}")
