"""ONNX models as torch modules; whatever is not honoured is refused by name.

The path of an .onnx file goes in, an `nn.Module` comes out. Imports the calls of model files.
"""

from cpwl.network.files.onnx.operations import OPERATIONS
from cpwl.network.files.onnx.reader import read_onnx

__all__ = ["OPERATIONS", "read_onnx"]
