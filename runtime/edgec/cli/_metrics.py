"""The metrics that options offer: named here too, for ``--help`` must not import numpy."""

METRICS = ("top1", "top5", "map50", "auc", "spearman", "mse")
