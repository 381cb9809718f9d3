"""Statistics of the logits of a linear layer, `hidden @ classifier + bias`, without holding those logits.

The contract. A kernel sees `hidden` `[tokens, features]`, `classifier` `[features, num_classes]`, `bias` `[num_classes]` or None, integer
`labels` `[tokens]`, `mask` `[tokens]` or None, `class_weights` `[num_classes]` or None and `soft_cap`, a scalar or None; all checked. It
knows no option but `soft_cap`, the only one that changes the logits themselves. It gives

- the fields of `LogitStats`, with a derivative rule for every mode: `chunked.statistics`; `reference.statistics` is what they mean;
- the sum of any losses made of those statistics, with its gradients in the same pass: `total.total_with_gradients`.

With an `axis_name`, the mesh axes over which the classes are split, both take and differentiate by some of the classes, the labels being
counted from the first of them, and give the statistics and the sum over all.

A token whose `mask` is false is read as zeros with label 0, whatever it holds; its derivatives are 0.
"""
