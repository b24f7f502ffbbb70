"""What is known exactly about forward processes and samplers: laws for Gaussian data and mixtures, bounds, planning.

Everything is a scan over scalars in JAX, so it can be jitted and differentiated, also by a schedule's parameters. Use
it in double precision (`jax.enable_x64(True)`): differences of laws that nearly agree are what it is for.

What is a published result and what was derived for this library is said where it stands; "derived" means worked out and
checked numerically here, and not to be quoted as anybody's theorem.
"""
