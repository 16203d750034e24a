"""What every room needs, written once."""
