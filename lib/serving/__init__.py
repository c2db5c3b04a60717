"""A trained clustering without its run: loaded in Python, or exported as ONNX or safetensors."""
