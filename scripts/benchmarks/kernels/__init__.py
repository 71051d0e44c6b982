"""What can be known of the Triton kernels without a card: their machine code, and their count."""
