"""The words that settings, functions and commands choose from, apart from all else, for which commands must not wait."""

from typing import Literal

Modality = Literal["rgb+depth", "rgb", "depth"]
Preset = Literal["fast", "paper", "demo"]
EngineChoice = Literal["auto", "torch", "onnxruntime", "openvino"]
Target = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
