"""From embeddings to numbers: NumPy in, numbers out."""
