"""Mathematics that one or two methods need; what many need is in core."""
