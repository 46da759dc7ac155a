"""Literal types that settings, functions and commands share.

They have a module of their own so that the command line can import them without loading anything heavy.
"""

from typing import Literal

Modality = Literal["rgb+depth", "rgb", "depth"]
Preset = Literal["fast", "paper", "demo"]
EngineChoice = Literal["auto", "torch", "onnxruntime", "openvino"]
Target = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
