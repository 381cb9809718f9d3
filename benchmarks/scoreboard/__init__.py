"""The guarantees, measured: accuracy, hard values, labels and bad input, for jaxce and for other libraries."""
