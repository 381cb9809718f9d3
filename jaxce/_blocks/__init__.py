"""Statistics of the logits of a linear layer, `hidden @ classifier + bias`, without storing all of the logits at once.

The input is a checked `reference.Layer`: the arrays of the layer, labels (class indices or class probabilities), and what changes the logits. Read
`reference` first: its `statistics` is the definition that the other modules must reproduce.

- `chunked.statistics` returns the statistics of each token, with a derivative rule for every mode, in blocks of tokens and classes.
- `value_and_gradients.value_and_gradients` returns the sum of any losses over these statistics, and its gradients in the same pass.
- `mesh.on_devices` runs either on the devices of a mesh if it is known how the arrays are split, and `auto_mesh` if only the compiler knows it.
- `loops` has the loops over blocks, `sizes` their sizes, and `choice` what the caller may choose.

`axis_name` is the mesh axes over which the classes are split. With `axis_name`, `chunked` and `value_and_gradients` take the classes of this device,
labels that count from the first of these classes, and tangents or cotangents of these classes. They return the statistics and the sum over all
classes.

A token whose `mask` is false is replaced by zeros with label 0, whatever the token holds. The derivatives with respect to this token are 0.
"""
