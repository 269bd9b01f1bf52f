"""What differs between families of text-to-image models, and nowhere else."""
