"""Statistics of the logits of a linear layer, `hidden @ classifier + bias`, without storing all of the logits at once.

The input is a checked `reference.Layer`: `hidden` `[tokens, features]`, `classifier` `[features, num_classes]`, `bias` `[num_classes]` or
None, integer `labels` `[tokens]`, `mask` `[tokens]` or None, `class_weights` `[num_classes]` or None, and `soft_cap`, a scalar or None.
`soft_cap` is the only option of a loss that this package knows, because only `soft_cap` changes the logits.

- `chunked.statistics` returns the fields of `LogitStats`, with a derivative rule for every mode. `reference.statistics` defines these fields.
- `value_and_gradients.value_and_gradients` returns the sum of any losses over these statistics, and its gradients in the same pass.

`axis_name` is the mesh axes over which the classes are split. With `axis_name`, both functions take the classes of this device, labels that
count from the first of these classes, and tangents or cotangents of these classes. They return the statistics and the sum over all classes.

A token whose `mask` is false is replaced by zeros with label 0, whatever the token holds. The derivatives with respect to this token are 0.
"""
