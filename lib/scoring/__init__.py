"""Predictions, scores, baselines and the comparison of several runs as numbers; not the pages that show them."""
