"""Forward processes: rates, the linear SDEs made of them, and the exact steps of their reverse."""
