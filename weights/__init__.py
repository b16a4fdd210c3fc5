"""Reading weights from files."""
