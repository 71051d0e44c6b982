"""Commands are the files without a suffix; what they are made of is in the folders."""
