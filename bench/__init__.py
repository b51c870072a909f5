"""medkg against what a user would run instead: same machine, same weights, same texts, one run, ratios."""
