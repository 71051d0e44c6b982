"""What is measured: speed, memory, and how far pictures are from others' ones."""
