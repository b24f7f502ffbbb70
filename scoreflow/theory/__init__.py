"""Exact results on forward processes and samplers: distributions for Gaussian data and mixtures, bounds, planning.

Every computation is a scan over scalars in JAX, so it can be jitted and differentiated, also with respect to the
parameters of a schedule. Use double precision (`jax.enable_x64(True)`), because the results are often differences of
distributions that nearly agree.

Each docstring says whether a result is published or was derived for this library. "Derived" means that it was worked
out and checked numerically for scoreflow; it should not be quoted as anybody's theorem.
"""
