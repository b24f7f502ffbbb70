"""Training objectives. A loss returns its terms by name, one number per example each; their sum is minimized."""
