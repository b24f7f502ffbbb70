"""The user's cache folder, and compiled programs kept in it."""

import os
from pathlib import Path

from scoreflow.runs import files


def folder() -> Path:
    """`scoreflow` in XDG_CACHE_HOME, by default in ~/.cache."""
    return files.local(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "scoreflow"


def enable_compilation_cache() -> None:
    """Keeps what XLA compiles, small programs too, for later processes; call before anything is compiled.

    JAX's own environment variables (JAX_COMPILATION_CACHE_DIR and the like) take precedence.
    """
    import jax

    settings = {
        "jax_compilation_cache_dir": str(folder() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
