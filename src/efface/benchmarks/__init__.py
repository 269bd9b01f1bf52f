"""Declarations of what is asked, of whom, and how it is scored."""
