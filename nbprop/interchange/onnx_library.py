"""The onnx package, imported when a file is read or written."""

from typing import Any


def onnx_library(function: str) -> Any:
    """The module. Raises ImportError that says how to get it."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(f"{function} needs onnx; install it with: pip install nbprop[onnx]") from error
    return onnx
