"""How the embedded model is trained on the drawn world of `embedded`, and how it is judged."""
