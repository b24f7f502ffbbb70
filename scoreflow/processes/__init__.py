"""Forward processes: rates, the linear SDEs made of them, the named processes, and the steps of their reverse."""
