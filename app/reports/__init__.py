"""Reports: what an evaluation returns, how an audit is judged, how the outcome is written down."""
