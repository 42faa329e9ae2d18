"""What the stages of a recipe do on this machine: samples a second, share of its matrix products, peak memory."""
