"""Networks from and for other libraries: ONNX files, scikit-learn, PyTorch, Keras, Hugging Face's files."""
