"""What models read: text, and tensors with known moments."""
