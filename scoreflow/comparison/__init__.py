"""What `--mode=compare` is made of: reading runs, pairing them, equal budgets, pictures and the page."""
