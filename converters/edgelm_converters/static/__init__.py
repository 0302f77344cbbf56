"""Encoders in integers, weights and activations, with ranges found beforehand on calibration data.

`encoder` walks through a model once for all: in NumPy, which collects what each tensor holds (`calibrate`), as a TFLite graph
(`tflite`) and as an ONNX graph (`onnx`). A tensor has the same name, and so the same range, in all three.
"""
