"""The world that the shipped model is trained on: drawings, and words for them."""
