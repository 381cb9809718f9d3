"""Measurements of the guarantees: accuracy, hard values, labels and bad input, for jaxce and for other libraries."""
