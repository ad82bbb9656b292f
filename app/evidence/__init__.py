"""What was measured: plain data that the engine returns and reports hold."""
