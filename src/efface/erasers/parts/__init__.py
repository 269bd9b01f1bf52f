"""Mathematics that only one or two methods use; what many use is in core/."""
