"""What models read: text, images, problems that are computed, and tensors with known moments."""
