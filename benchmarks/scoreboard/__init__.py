"""The guarantees, measured: accuracy, hard values, labels and bad input, for jaxce and beside it for others."""
