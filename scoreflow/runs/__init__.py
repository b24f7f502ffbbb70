"""What a run needs and what knows nothing of diffusion: devices, checkpoints, folders, reports and errors."""
