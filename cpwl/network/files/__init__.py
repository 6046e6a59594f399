"""Model files read as torch modules; nothing in a file is executed.

The path of an .onnx or .pt2 file goes in, an `nn.Module` comes out. Imports only errors.
"""

from cpwl.network.files.calls import FileModule
from cpwl.network.files.onnx import read_onnx
from cpwl.network.files.pt2 import read_pt2
from cpwl.network.files.signature import Output

__all__ = ["FileModule", "Output", "read_onnx", "read_pt2"]
