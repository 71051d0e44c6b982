"""How the embedded model is trained on the drawn world of `world`, and how it is judged."""
