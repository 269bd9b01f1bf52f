"""What several attacks use."""
