"""What live workers can do."""
