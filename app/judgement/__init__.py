"""What the evidence means: pure functions from scores and a policy to a verdict. README.md has the science."""
