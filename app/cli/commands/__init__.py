"""The commands of `lethe`, one file per noun."""
